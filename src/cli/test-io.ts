// Streams of a process that is none, for tests of the command line.

import { PassThrough, Writable } from 'node:stream';
import type { buildRoot } from '../guest/build-root.ts';
import type { prepareGuest } from '../guest/initramfs.ts';
import { main } from './front-door.ts';
import { Interruption } from './io.ts';
import type { Io } from './io.ts';
import { serveControl } from '../daemon/server.ts';
import { FakeHosts } from './test-fake-host.ts';
import type { FakeHostOptions } from './test-fake-host.ts';

class Sink extends Writable {
  isTTY = false;
  rows = 24;
  columns = 80;
  bytes = Buffer.alloc(0);
  #heard = Promise.withResolvers<void>();

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.bytes = Buffer.concat([this.bytes, chunk]);
    this.#heard.resolve();
    this.#heard = Promise.withResolvers();
    done();
  }

  get text(): string {
    return this.bytes.toString('latin1');
  }

  /** Waits until it has been told `wanted`. */
  async hears(wanted: string): Promise<void> {
    while (!this.text.includes(wanted)) await this.#heard.promise;
  }
}

class Source extends PassThrough {
  isTTY = false;
  readonly rawModes: boolean[] = [];

  setRawMode(mode: boolean): void {
    this.rawModes.push(mode);
  }
}

export class FakeIo implements Io {
  readonly stdin = new Source();
  readonly stdout = new Sink();
  readonly stderr = new Sink();
  /** The runtime directory is none unless a test gives one: no control socket is served. */
  readonly env: Record<string, string> = { TERM: 'vt100' };
  readonly #controller = new AbortController();
  readonly #undos = new Set<() => void>();

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  onExit(undo: () => void): () => void {
    const once = (): void => {
      if (this.#undos.delete(once)) undo();
    };
    this.#undos.add(once);
    return once;
  }

  /** How many things are still to be undone. */
  get pending(): number {
    return this.#undos.size;
  }

  terminal(): this {
    this.stdin.isTTY = this.stdout.isTTY = this.stderr.isTTY = true;
    return this;
  }

  interrupt(): void {
    this.#controller.abort(new Interruption('ended by SIGINT', 130));
  }
}

/** Serves the control socket where a test has given a runtime directory, and nothing where not. */
export const serveIfAsked: typeof serveControl = async (host, options) => {
  if (options.env['ZAZEN_RUNTIME_DIR'] !== undefined) return serveControl(host, options);
  const close = async (): Promise<void> => {};
  return { socketPath: '/nonexistent', close, [Symbol.asyncDispose]: close };
};

export interface Outcome {
  status: number;
  out: string;
  err: string;
  hosts: FakeHosts;
}

/** Runs a command line against a fake host. */
export async function runCli(
  words: readonly string[],
  options: FakeHostOptions = {},
  io: FakeIo = new FakeIo(),
  prepare: typeof prepareGuest = async () => { throw new Error('not to be fetched here'); },
  build: typeof buildRoot = async () => { throw new Error('not to be built here'); },
): Promise<Outcome> {
  const hosts = new FakeHosts(options);
  const services = { startHost: hosts.start, prepareGuest: prepare, buildRoot: build, serveControl: serveIfAsked };
  const status = await main(words, io, services);
  return { status, out: io.stdout.text, err: io.stderr.text, hosts };
}
