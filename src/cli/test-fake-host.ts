// A host without a machine, for tests of the command line: each guest is a function that the test gives, which writes
// to the console, reads what was typed and shuts down as a real guest would.

import { once } from 'node:events';
import { PassThrough, Duplex } from 'node:stream';
import { ZazenError } from '../base/errors.ts';
import { exitMarker, initReached, startMarker } from '../guest/init-script.ts';
import { EventLog } from '../host/event-log.ts';
import { checkShare } from '../host/domain-spec.ts';
import { attachGuestCommand } from '../host/guest-command.ts';
import { StackSamples } from '../host/profile.ts';
import type {
  Checkpoint, CpuShare, CreateOptions, DiskSpec, Domain, DomainEvent, DomainEventBody, DomainSaveOptions, DomainSaveStats,
  DomainSpec, DomainState, DomainStats, EventSubscription, ExecSpec, ForkSpec, GuestCommand, Host, HostEvent,
  HostOptions, RestoreOptions, RollbackStats, SaveOptions, SaveStats, ShutdownReason, SubscribeOptions,
  SuspendAttempt, SuspendOptions, SuspendStats, NicSpec, NicStats, Profiling,
} from '../host/types.ts';
import type { DomainShare } from '../hypervisor/shares.ts';
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
  readonly typed: PassThrough;

  constructor(typed: PassThrough) {
    super();
    this.typed = typed;
  }

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
    this.#domain.output(typeof text === 'string' ? Buffer.from(text) : text);
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
    for await (const chunk of this.#domain.typed.iterator({ destroyOnReturn: false })) {
      this.#typedText += chunk.toString('latin1');
      if (this.#typedText.includes(wanted)) break;
    }
    return this.#typedText;
  }

  shutdown(reason: ShutdownReason): void {
    this.#domain.stop({ type: 'shutdown', reason });
  }

  /** Waits until the toolstack asks the guest to stop. */
  asked(): Promise<'poweroff' | 'reboot'> {
    return this.#domain.asked.promise;
  }

  stall(message: string): void {
    this.#domain.emit({ type: 'stalled', code: 'ZAZEN_HOST_OUT_OF_MEMORY', message });
  }
}

export class FakeDomain implements Domain {
  readonly nics: NicStats[] = [];
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  readonly typed = new PassThrough();
  readonly console = new FakeConsole(this.typed);
  readonly asked = Promise.withResolvers<'poweroff' | 'reboot'>();
  readonly exec: GuestCommand | undefined;
  state: DomainState = 'running';
  shutdownReason: ShutdownReason | undefined;
  readonly #events = new EventLog<DomainEvent>();
  readonly #hostEvents: EventLog<HostEvent>;
  readonly #attached = new Set<FakeConsole>();
  #history = Buffer.alloc(0);

  readonly #make: (spec: DomainSpec) => FakeDomain;
  #share: DomainShare;

  constructor(id: number, spec: DomainSpec, make: (spec: DomainSpec) => FakeDomain, hostEvents: EventLog<HostEvent>) {
    this.id = id;
    this.#share = checkShare(spec, { weight: 256, capPercent: 0 });
    this.#hostEvents = hostEvents;
    this.#make = make;
    this.name = spec.name ?? `domain-${id}`;
    this.uuid = spec.uuid ?? UUID;
    const tty = (spec.exec as ExecSpec | undefined)?.tty ?? 'pipe';
    this.exec = spec.exec === undefined ? undefined : attachGuestCommand(this.console, { nonce: NONCE, tty });
    this.emit({ type: 'started' });
    if (spec.paused === true) this.state = 'paused';
  }

  attachConsole(): Duplex {
    const stream = new FakeConsole(this.typed);
    stream.push(this.#history);
    if (this.state === 'shutdown') stream.push(null);
    this.#attached.add(stream);
    stream.on('close', () => this.#attached.delete(stream));
    return stream;
  }

  /** How many streams there are beside `console`. */
  get attached(): number {
    return this.#attached.size;
  }

  output(bytes: Uint8Array): void {
    this.#history = Buffer.concat([this.#history, bytes]);
    for (const stream of [this.console, ...this.#attached]) stream.push(bytes);
  }

  emit(body: DomainEventBody): void {
    const event: DomainEvent = { ...body, domainId: this.id, sequence: this.#events.length + 1, timeMillis: Date.now() };
    this.#events.add(event);
    this.#hostEvents.add({ ...event, name: this.name });
  }

  stop(body: DomainEventBody & { type: 'shutdown' }): void {
    if (this.state === 'destroyed' || this.state === 'shutdown') return;
    this.state = 'shutdown';
    this.shutdownReason = body.reason;
    this.emit(body);
    for (const stream of [this.console, ...this.#attached]) stream.push(null);
  }

  events(options?: SubscribeOptions): EventSubscription<DomainEvent> {
    return this.#events.subscribe(options);
  }

  async waitForShutdown(): Promise<ShutdownReason | 'destroyed'> {
    for await (const event of this.events()) {
      if (event.type === 'shutdown') return event.reason;
    }
    return 'destroyed';
  }

  async pause(): Promise<void> {
    this.state = 'paused';
    this.emit({ type: 'paused' });
  }

  async load(): Promise<void> {}
  readonly disks: string[] = [];
  async attachDisk({ target = 'xvda' }: DiskSpec): Promise<string> {
    this.disks.push(target);
    return target;
  }
  async detachDisk(target: string): Promise<void> {
    this.disks.splice(this.disks.indexOf(target), 1);
  }
  async resizeDisk(): Promise<void> {}
  async unpause(): Promise<void> {
    this.state = 'running';
    this.emit({ type: 'unpaused' });
  }

  async suspend({ via = 'auto' }: SuspendOptions = {}): Promise<SuspendStats> {
    if (via === 'event-channel') throw new ZazenError('ZAZEN_SUSPEND_NOT_OFFERED', 'it offers no suspend event channel');
    const way = via === 'store' ? 'store' : 'transparent';
    this.state = 'suspended';
    this.emit({ type: 'suspended', via: way });
    const attempts: SuspendAttempt[] = [{ via: way, outcome: 'suspended', micros: 250 }];
    if (via === 'auto') attempts.unshift({ via: 'event-channel', outcome: 'not-offered', micros: 10 });
    return { via: way, requestedAt: 1, completedMicros: 260, attempts };
  }

  async resume(): Promise<void> {
    this.state = 'running';
    this.emit({ type: 'resumed', reason: 'cancelled' });
  }

  async shutdown({ reason = 'poweroff' }: { reason?: 'poweroff' | 'reboot' } = {}): Promise<void> {
    this.asked.resolve(reason);
  }

  async checkpoint(): Promise<Checkpoint> {
    const destroy = async (): Promise<void> => {};
    return {
      id: ++lastCheckpointId, domainId: this.id, domainName: this.name, memoryBytes: 1, vcpus: 1, createdMillis: 1,
      stats: { stopMicros: 1, downtimeMicros: 2, totalMicros: 3 },
      fork: async (wanted: number | readonly ForkSpec[] = 1) => {
        const specs = typeof wanted === 'number' ? Array.from({ length: wanted }, () => ({})) : wanted;
        return specs.map((spec) => this.#make(spec));
      },
      save: (path, options) => this.save(path, options),
      destroy, [Symbol.asyncDispose]: destroy,
    };
  }

  async save(path: string, { onProgress, signal, parent, via }: DomainSaveOptions = {}): Promise<DomainSaveStats> {
    if (via !== undefined && this.state !== 'suspended') {
      const suspend = await this.suspend({ via });
      await this.resume();
      return { ...await this.save(path), suspend };
    }
    for (let pagesDone = 0; pagesDone <= 100; pagesDone += 50) onProgress?.({ pagesDone, pageCount: 100 });
    // A disk that never gets ready, for who wants to go.
    if (path.endsWith('slow')) await once(signal!, 'abort');
    signal?.throwIfAborted();
    return parent === undefined ? SAVE_STATS : { ...SAVE_STATS, pagesWritten: 5, parentPages: 20 };
  }

  dumpCore(path: string, options?: SaveOptions): Promise<SaveStats> {
    return this.save(path, options);
  }

  async attachNic(spec: NicSpec = {}): Promise<NicStats> {
    const nic = {
      handle: this.nics.length, network: spec.network ?? 'default', mac: spec.mac ?? '00:16:3e:00:00:01', address: '10.0.2.15',
      isConnected: true, txFrames: 1, txBytes: 2, rxFrames: 3, rxBytes: 4, txErrors: 0, rxErrors: 0, rxDropped: 0,
      notifications: 5, forwards: [...spec.forwards ?? []], missingForwards: [],
    };
    this.nics.push(nic);
    return nic;
  }
  async addForward(forward: string, handle = 0): Promise<string> {
    const nic = this.nics.find((one) => one.handle === handle);
    if (nic === undefined) throw new ZazenError('ZAZEN_NIC_UNKNOWN', `${this.name} has no network card ${handle}`);
    (nic.forwards as string[]).push(forward);
    return forward;
  }
  async removeForward(forward: string): Promise<void> {
    for (const { forwards } of this.nics) {
      const at = forwards.indexOf(forward);
      if (at >= 0) return void (forwards as string[]).splice(at, 1);
    }
    throw new ZazenError('ZAZEN_FORWARD_UNKNOWN', `no port is forwarded to ${this.name} as ${forward}`);
  }
  async detachNic(handle: number): Promise<void> {
    const at = this.nics.findIndex((nic) => nic.handle === handle);
    if (at < 0) throw new ZazenError('ZAZEN_NIC_UNKNOWN', `${this.name} has no network card ${handle}`);
    this.nics.splice(at, 1);
  }

  async rollback(checkpoint: Checkpoint): Promise<RollbackStats> {
    if (checkpoint.domainId !== this.id) throw new ZazenError('ZAZEN_CHECKPOINT_FOREIGN', 'it is of another domain');
    this.emit({ type: 'rolledBack' });
    return { stopMicros: 1, downtimeMicros: 2, totalMicros: 3 };
  }

  async destroy(): Promise<void> {
    if (this.state === 'destroyed') return;
    this.state = 'destroyed';
    this.emit({ type: 'destroyed' });
    this.#events.end();
    for (const stream of [this.console, ...this.#attached]) stream.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }

  profile(): Profiling {
    return { stop: async () => new StackSamples().finish(this.name, () => undefined) };
  }
  setCpuShare(share: CpuShare): void {
    this.#share = checkShare(share, this.#share);
  }

  stats(): DomainStats {
    return {
      id: this.id, name: this.name, uuid: this.uuid, state: this.state, memoryBytes: 1, residentBytes: 1, vcpus: [],
      instructionsRetired: 800e6, runMillis: 4000, hypercalls: 1, tlbMisses: 1, unknownSystemRegisters: 0, consoleOutBytes: 1,
      consoleInBytes: 1, nics: this.nics, cpuWeight: this.#share.weight, cpuCapPercent: this.#share.capPercent,
    };
  }
}

let lastCheckpointId = 0;
const SAVE_STATS: SaveStats = {
  pagesWritten: 25, zeroPages: 75, parentPages: 0, bytesWritten: 102_400, requests: 3, fileBytes: 409_600, direct: true, writeMillis: 1,
  syncMillis: 1, millis: 2,
};

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
    const store = new Store();
    const events = new EventLog<HostEvent>();
    const domains: FakeDomain[] = [];
    let lastId = 0;
    const make = (spec: DomainSpec): FakeDomain => {
      const domain = new FakeDomain(++lastId, spec, make, events);
      store.domainIntroduced(domain.id);
      domains.push(domain);
      return domain;
    };
    let isOpen = true;
    const close = async (): Promise<void> => {
      if (!isOpen) return;
      isOpen = false;
      for (const domain of domains) await domain.destroy();
      await this.#options.close?.();
      this.open--;
    };
    return {
      store,
      create: async (spec: DomainSpec = {}, options: CreateOptions = {}) => {
        this.specs.push(spec);
        await this.#options.create?.(spec, options);
        if (!isOpen) throw new ZazenError('ZAZEN_HOST_CLOSED', 'the host is closed');
        const domain = make(spec);
        void this.#options.guest?.(new FakeGuest(domain, spec));
        return domain;
      },
      restore: async (path: string, { name, uuid, paused }: RestoreOptions = {}) => {
        if (!path.endsWith('.core')) throw new ZazenError('ZAZEN_IMAGE_BROKEN', `${path}: this is no image`);
        return make({ name: name ?? 'restored', uuid, paused });
      },
      loadCheckpoint: async () => make({}).checkpoint(),
      events: (options) => events.subscribe(options),
      domains: () => domains.filter((domain) => domain.state !== 'destroyed'),
      stats: () => ({
        memoryBytes: 1, freeBytes: 1, cleanBytes: 1, dirtyBytes: 0, scrubbingBytes: 0, sharedBytes: 0, cachedBytes: 0,
        releasingBytes: 0, pcpus: [], hostThreadMillis: 0, networkThreadMillis: 0, codeCache: { pages: 100, usedPages: 20, regions: 7, storedRegions: 5, foundRegions: 3, addedRegions: 4 },
        activity: { code: 0, memory: 0, decoding: 0, hypervisor: 0, devices: 0, idle: 0 }, domains: domains.length, networks: {}, uptimeMillis: 1, isSettled: true,
      }),
      audit: async () => ({
        frames: 0, clean: 0, cached: 0, dirty: 0, scrubbing: 0, used: 0, tables: 0, problems: [],
      }),
      close,
      [Symbol.asyncDispose]: close,
    };
  };
}
