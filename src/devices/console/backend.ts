// Backend of a guest's console: moves bytes between the guest's console page (or the queues of a virtio console) and Node
// streams.
//
//            out ring ──► history (the last bytes, always)
//   guest ◄─┤         └─► every stream that is being read      slow reader: the ring fills, and the guest waits
//            in ring  ◄── what is written to any stream        slow guest: the stream's `write` says wait
//
// A stream counts from its first read on; it starts with the history. Nobody reads: output goes to the history alone,
// and the guest never waits. A stream that was read and then is neither read nor destroyed holds the guest up, as a
// terminal does on which Ctrl-S was typed.

import { Duplex } from 'node:stream';
import { ConsoleHistory } from './history.ts';
import type { ConsoleTransport } from './ring.ts';

export interface ConsoleOptions {
  /** Where the bytes go through: a ConsoleRing of the console's page, or another device's queues. */
  readonly transport: ConsoleTransport;
  /** Signals the guest's event channel. It must not call back. */
  notify(): void;
  /** How much output is kept for who comes late. */
  readonly historyBytes?: number;
  /** To go on where `save` stood. */
  readonly state?: ConsoleState;
}

/** What a saved guest's console has beside its page. */
export interface ConsoleState {
  readonly history: Uint8Array;
  /** Stands for the history's contents; undefined: of another process. */
  readonly version?: object | undefined;
}

/** Counters since the backend was made. */
export interface ConsoleMetrics {
  readonly outputBytes: number;
  readonly inputBytes: number;
  /** Events sent to the guest. */
  readonly notifications: number;
  /** How often output was left in the ring because a reader was slow. */
  readonly outputStalls: number;
  /** How often input had to wait for the guest. */
  readonly inputStalls: number;
  /** How often the guest's indices were nonsense. */
  readonly badIndices: number;
  /** Streams that are being read now. */
  readonly readers: number;
}

interface PendingInput {
  readonly stream: Duplex;
  bytes: Uint8Array;
  readonly done: () => void;
}

const DEFAULT_HISTORY_BYTES = 65536;
/** Most output that one `service` takes: a guest that never stops writing must not hold the host's thread for ever. */
const SERVICE_BYTES = 16384;

export class ConsoleBackend {
  readonly #ring: ConsoleTransport;
  readonly #history: ConsoleHistory;
  readonly #notify: () => void;
  readonly #streams = new Set<ConsoleStream>();
  readonly #input: PendingInput[] = [];
  readonly #counts = { outputBytes: 0, inputBytes: 0, notifications: 0, outputStalls: 0, inputStalls: 0 };
  #stream: ConsoleStream | undefined;
  #serving = false;
  #again = false;
  #scheduled = false;
  #closed = false;
  /** What was in the ring when the console was closed, on its way to the readers. */
  #last: Buffer | undefined;

  constructor(options: ConsoleOptions) {
    this.#ring = options.transport;
    this.#history = new ConsoleHistory(options.historyBytes ?? DEFAULT_HISTORY_BYTES);
    this.#notify = () => options.notify();
    if (options.state !== undefined) this.#history.restore(options.state.history, options.state.version);
  }

  /** The stream of a caller who needs only one. Once it is destroyed, this gives a new one. */
  get stream(): Duplex {
    if (this.#stream === undefined || this.#stream.destroyed) this.#stream = this.#open();
    return this.#stream;
  }

  /** A stream of its own: one more reader, who sees all output from the history on, and one more writer. */
  attach(): Duplex {
    return this.#open();
  }

  get metrics(): ConsoleMetrics {
    const readers = [...this.#streams].filter((stream) => stream.reading).length;
    return { ...this.#counts, badIndices: this.#ring.badIndices, readers };
  }

  /** Does what there is to do: call it when the guest has signalled. */
  service(): void {
    // A reader that is handed output may write to its stream, read on or close the console, and so call this again.
    this.#again = true;
    if (this.#serving || this.#closed) return;
    this.#serving = true;
    let moved = false;
    try {
      for (let budgetBytes = SERVICE_BYTES; this.#again && budgetBytes > 0 && !this.#closed;) {
        this.#again = false;
        const movedBytes = this.#moveOutput() + this.#moveInput();
        budgetBytes -= movedBytes;
        // The guest may have put out more meanwhile, and need not signal if it saw that we were not done.
        if (movedBytes > 0) moved = this.#again = true;
      }
    } finally {
      this.#serving = false;
      if (moved) this.#signal();
      if (this.#closed) this.#end();
      else if (this.#again) this.#serviceLater();
    }
  }

  /** What the console's page does not hold. Input that the guest has not taken stays with the streams. */
  save(): ConsoleState {
    return { history: this.#history.read(), version: this.#history.version };
  }

  /** Whether the guest may still have to be signalled: the call comes from somebody who has just been given its output. */
  get owesEvent(): boolean {
    return this.#serving;
  }

  /** The guest was put back to where `save` stood; streams go on with what it puts out from there. */
  restore(state: ConsoleState): void {
    this.#history.restore(state.history, state.version);
    this.service();
  }

  /**
   * The guest is gone: takes the last it has put out, ends the streams for their readers, and drops what the guest did
   * not take. The page is not used any more. A stream opened later has the history and an end.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#last = this.#ring.takeOutput();
    if (!this.#serving) this.#end();
  }

  #end(): void {
    this.#deliver(this.#last!);
    for (const { done } of this.#input.splice(0)) done();
    for (const stream of this.#streams) stream.finish();
  }

  #serviceLater(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.service();
    });
  }

  #open(): ConsoleStream {
    const stream = new ConsoleStream({
      history: () => this.#history.read(),
      closed: () => this.#closed,
      wanted: () => this.service(),
      input: (bytes, done) => {
        if (this.#closed) return done();
        this.#input.push({ stream, bytes, done });
        this.service();
      },
      destroyed: () => this.#forget(stream),
    });
    this.#streams.add(stream);
    return stream;
  }

  #forget(stream: ConsoleStream): void {
    this.#streams.delete(stream);
    const others = this.#input.filter((pending) => pending.stream !== stream);
    this.#input.splice(0, this.#input.length, ...others);
    // It may have been the one that held the guest up.
    this.service();
  }

  /** @returns bytes moved */
  #moveOutput(): number {
    for (const stream of this.#streams) {
      if (!stream.reading || stream.ready) continue;
      if (this.#ring.hasOutput()) this.#counts.outputStalls++;
      return 0;
    }
    const bytes = this.#ring.takeOutput();
    this.#deliver(bytes);
    return bytes.length;
  }

  #deliver(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#counts.outputBytes += bytes.length;
    // First the streams: one that begins to read now, in a callback of another, must not get these bytes twice.
    const readers = [...this.#streams].filter((stream) => stream.reading);
    this.#history.append(bytes);
    for (const stream of readers) stream.output(Buffer.from(bytes));
  }

  /** @returns bytes moved */
  #moveInput(): number {
    let moved = 0;
    for (let pending = this.#input[0]; pending !== undefined; pending = this.#input[0]) {
      const count = this.#ring.putInput(pending.bytes);
      moved += count;
      this.#counts.inputBytes += count;
      pending.bytes = pending.bytes.subarray(count);
      if (pending.bytes.length > 0) {
        this.#counts.inputStalls++;
        break;
      }
      this.#input.shift();
      pending.done();
    }
    return moved;
  }

  #signal(): void {
    this.#counts.notifications++;
    this.#notify();
  }
}

interface StreamSource {
  history(): Buffer;
  closed(): boolean;
  /** The reader has room again. */
  wanted(): void;
  input(bytes: Uint8Array, done: () => void): void;
  destroyed(): void;
}

class ConsoleStream extends Duplex {
  /** Has been read at least once. */
  reading = false;
  /** Has room for more. */
  ready = false;
  readonly #source: StreamSource;

  constructor(source: StreamSource) {
    // Reading ends when the guest is gone, and then there is nobody to write to either.
    super({ allowHalfOpen: false });
    this.#source = source;
  }

  output(bytes: Buffer): void {
    if (!this.destroyed) this.ready = this.push(bytes);
  }

  /** A stream that nobody reads keeps its end for its first reader. */
  finish(): void {
    if (this.reading && !this.destroyed) this.push(null);
  }

  override _read(): void {
    this.ready = true;
    if (!this.reading) {
      this.reading = true;
      const history = this.#source.history();
      if (history.length > 0) this.output(history);
      if (this.#source.closed()) this.push(null);
    }
    this.#source.wanted();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#source.input(chunk, done);
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.reading = false;
    this.#source.destroyed();
    done(error);
  }
}
