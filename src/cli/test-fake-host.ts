// A host without a machine, for tests of the command line: each guest is a function that the test gives, which writes
// to the console, reads what was typed and shuts down as a real guest would.

import { PassThrough, Duplex } from 'node:stream';
import { ZazenError } from '../base/errors.ts';
import { exitMarker, initReached, startMarker } from '../guest/init-script.ts';
import { attachGuestCommand } from '../host/guest-command.ts';
import type {
  CreateOptions, Domain, DomainEvent, DomainEventBody, DomainSpec, DomainState, DomainStats, ExecSpec, GuestCommand,
  Host, HostOptions, ShutdownReason,
} from '../host/types.ts';
import { Store } from '../xenstore/store.ts';

export type GuestBehaviour = (guest: FakeGuest) => void | Promise<void>;

export interface FakeHostOptions {
  guest?: GuestBehaviour;
  startHost?: () => Promise<void>;
  create?: (spec: DomainSpec, options: CreateOptions) => Promise<void>;
  close?: () => Promise<void>;
}

const NONCE = '0123abcd';
const UUID = '00000000-0000-4000-8000-000000000001';

class FakeConsole extends Duplex {
  readonly typed = new PassThrough();

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.typed.write(chunk);
    done();
  }
}

/** The guest's side of a domain. */
export class FakeGuest {
  readonly spec: DomainSpec;
  readonly #domain: FakeDomain;
  #typedText = '';

  constructor(domain: FakeDomain, spec: DomainSpec) {
    this.#domain = domain;
    this.spec = spec;
  }

  say(text: string | Uint8Array): void {
    this.#domain.console.push(typeof text === 'string' ? Buffer.from(text) : text);
  }

  /** Boots, runs the command that was asked for, whose output and status are these, and powers off. */
  command(output: string | Uint8Array, status: number): void {
    this.begin();
    this.say(output);
    this.end(status);
  }

  begin(): void {
    this.say(`boot message\r\n${initReached} 1.23\r\n`);
    this.say(`${startMarker}${NONCE}\n`);
  }

  end(status: number): void {
    this.say(`${exitMarker}${NONCE} ${status}\n`);
    this.shutdown('poweroff');
  }

  /** Waits until what was typed holds `wanted`; gives all of it. */
  async typed(wanted: string): Promise<string> {
    for await (const chunk of this.#domain.console.typed.iterator({ destroyOnReturn: false })) {
      this.#typedText += chunk.toString('latin1');
      if (this.#typedText.includes(wanted)) break;
    }
    return this.#typedText;
  }

  shutdown(reason: ShutdownReason): void {
    this.#domain.stop({ type: 'shutdown', reason });
  }

  stall(message: string): void {
    this.#domain.emit({ type: 'stalled', message });
  }
}

class FakeDomain implements Domain {
  readonly id = 1;
  readonly name: string;
  readonly uuid = UUID;
  readonly console = new FakeConsole();
  readonly exec: GuestCommand | undefined;
  state: DomainState = 'running';
  shutdownReason: ShutdownReason | undefined;
  readonly #events: DomainEvent[] = [];
  #changed = Promise.withResolvers<void>();

  constructor(spec: DomainSpec) {
    this.name = spec.name ?? 'domain-1';
    const tty = (spec.exec as ExecSpec | undefined)?.tty ?? 'pipe';
    this.exec = spec.exec === undefined ? undefined : attachGuestCommand(this.console, { nonce: NONCE, tty });
    this.emit({ type: 'started' });
  }

  emit(body: DomainEventBody): void {
    this.#events.push({ ...body, domainId: this.id, sequence: this.#events.length + 1, timeMillis: 0 });
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  stop(body: DomainEventBody & { type: 'shutdown' }): void {
    if (this.state !== 'running') return;
    this.state = 'shutdown';
    this.shutdownReason = body.reason;
    this.emit(body);
    this.console.push(null);
  }

  async *events(): AsyncIterableIterator<DomainEvent> {
    for (let i = 0; ; i++) {
      while (i >= this.#events.length) await this.#changed.promise;
      yield this.#events[i]!;
      if (this.#events[i]!.type === 'destroyed') return;
    }
  }

  async waitForShutdown(): Promise<ShutdownReason | 'destroyed'> {
    for await (const event of this.events()) {
      if (event.type === 'shutdown') return event.reason;
    }
    return 'destroyed';
  }

  async pause(): Promise<void> {}

  async unpause(): Promise<void> {}

  async shutdown(): Promise<void> {}

  async destroy(): Promise<void> {
    if (this.state === 'destroyed') return;
    this.state = 'destroyed';
    this.emit({ type: 'destroyed' });
    this.console.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }

  stats(): DomainStats {
    return {
      id: this.id, name: this.name, uuid: this.uuid, state: this.state, memoryBytes: 1, residentBytes: 1, vcpus: [],
      instructionsRetired: 800e6, runMillis: 4000, hypercalls: 1, unknownSystemRegisters: 0, consoleOutBytes: 1,
      consoleInBytes: 1,
    };
  }
}

/** Hosts that were started, and what became of them. */
export class FakeHosts {
  readonly specs: DomainSpec[] = [];
  readonly hostOptions: HostOptions[] = [];
  open = 0;
  readonly #options: FakeHostOptions;

  constructor(options: FakeHostOptions) {
    this.#options = options;
  }

  readonly start = async (hostOptions: HostOptions = {}): Promise<Host> => {
    this.hostOptions.push(hostOptions);
    await this.#options.startHost?.();
    this.open++;
    const domains: FakeDomain[] = [];
    let isOpen = true;
    const close = async (): Promise<void> => {
      if (!isOpen) return;
      isOpen = false;
      for (const domain of domains) await domain.destroy();
      await this.#options.close?.();
      this.open--;
    };
    return {
      store: new Store(),
      create: async (spec: DomainSpec = {}, options: CreateOptions = {}) => {
        this.specs.push(spec);
        await this.#options.create?.(spec, options);
        if (!isOpen) throw new ZazenError('ZAZEN_HOST_CLOSED', 'the host is closed');
        const domain = new FakeDomain(spec);
        domains.push(domain);
        void this.#options.guest?.(new FakeGuest(domain, spec));
        return domain;
      },
      domains: () => domains,
      stats: () => ({
        memoryBytes: 1, freeBytes: 1, dirtyBytes: 0, pcpus: [], domains: domains.length, uptimeMillis: 1,
      }),
      audit: async () => ({
        frames: 0, clean: 0, cached: 0, dirty: 0, scrubbing: 0, used: 0, tables: 0, problems: [],
      }),
      close,
      [Symbol.asyncDispose]: close,
    };
  };
}
