// A client on the wire: bytes in, bytes out, and nothing known of where they come from. Input may be cut anywhere.
//
//   receive(bytes) --> message --> request --> reply --+
//                                                      +--> queue --> send(bytes)
//   watch fires ----------------------------> event ---+
//
// The queue is bounded. While replies wait beyond a bound the client is not read from (`wantsInput`). Events beyond
// theirs are not queued: their watch is remembered, and fires once, with its own path, when there is room; the protocol
// allows such spurious events, and a client that looks again at what it watches misses nothing.

import { assert } from '../base/assert.ts';
import { XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG, XS_TYPE } from '../abi/xenstore-wire.ts';
import type { XsErrno } from '../abi/xenstore-wire.ts';
import { bytesToString, stringToBytes } from './bytes.ts';
import type { StoreCore } from './core.ts';
import { savedArray, savedBytes, savedString } from './dump.ts';
import { XsError } from './errors.ts';
import { isSpecial } from './path.ts';
import { exceeds } from './quota.ts';
import { answer } from './requests.ts';
import { Session } from './session.ts';
import { watchedName } from './watches.ts';
import type { Watch } from './watches.ts';

const HEADER_BYTES = XSD_SOCKMSG.sizeBytes;
/** Above this many bytes of output waiting, the client is not read from. */
const INPUT_STOP_BYTES = 16384;
/** Above this many bytes of output waiting, events are put off. */
const EVENT_STOP_BYTES = 32768;

export interface ConnectOptions {
  /** Whose requests these are; relative paths are taken from /local/domain/<domainId>. */
  readonly domainId: number;
  /** May do everything, without quotas. */
  readonly privileged?: boolean;
  /**
   * Takes as many of these bytes as there is room for and returns their number; after a short count nothing is sent
   * until `flush` is called. It must not keep the array. It must not call the store, but it may end the connection
   * (`fail`, `close`) if it returns 0.
   */
  send(bytes: Uint8Array): number;
  /** As `saveState` gave it: the connection goes on where that one stood, once `flush` is called. */
  readonly state?: ConnectionState;
}

/** A connection at rest, as JSON-able data. Bytes are strings of characters 0 … 255. */
export interface ConnectionState {
  /** Of a message that has not come whole. */
  readonly input: string;
  readonly output: readonly { readonly event: boolean; readonly bytes: string }[];
  /** `path` as the client gave it; `depth` null for no bound; `pending` if it fires when there is room. */
  readonly watches: readonly {
    readonly path: string; readonly token: string; readonly depth: number | null; readonly pending: boolean;
  }[];
  /** Their commits will fail with EAGAIN. */
  readonly transactionIds: readonly number[];
}

interface Output {
  readonly bytes: Uint8Array;
  /** For an event that may stand for later ones alike. */
  readonly key: string | undefined;
  readonly event: boolean;
}

export class Connection {
  readonly #core: StoreCore;
  readonly #session: Session;
  readonly #send: (bytes: Uint8Array) => number;
  /** `broken`: the client violated the protocol and is heard no more. */
  #state: 'open' | 'broken' | 'closed' = 'open';

  readonly #header = new Uint8Array(HEADER_BYTES);
  #headerBytes = 0;
  #payload: Uint8Array | undefined;
  #payloadBytes = 0;

  #queue: Output[] = [];
  /** Of the first in the queue, how much is out. */
  #sentBytes = 0;
  #queuedBytes = 0;
  #queuedReplies = 0;
  readonly #queuedEvents = new Set<string>();
  readonly #overflowed = new Set<Watch>();
  #flushDue = false;
  #changes = 0;

  constructor(core: StoreCore, options: ConnectOptions) {
    this.#core = core;
    this.#send = (bytes) => options.send(bytes);
    this.#session = new Session(core, options.domainId, options.privileged ?? false,
      (watch, path) => this.#notify(watch, path));
    if (options.state === undefined) return;
    try {
      this.#restore(options.state);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Is another number whenever `saveState` would give something else. */
  get changes(): number {
    return this.#changes;
  }

  get state(): 'open' | 'broken' | 'closed' {
    return this.#state;
  }

  /** False while so much output waits that nothing more is read, and for good once the connection is not open. */
  get wantsInput(): boolean {
    return this.#state === 'open' && this.#queuedBytes < INPUT_STOP_BYTES
      && (this.#session.privileged || !exceeds(this.#queuedReplies + 1, this.#session.quota.outstanding));
  }

  /** Bytes of output that `send` has not taken. */
  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  /**
   * Takes bytes from the client and answers every request that is complete.
   * @returns how many were taken: fewer than given only if `wantsInput` became false; offer the rest again later.
   */
  receive(bytes: Uint8Array): number {
    let used = 0;
    this.#changes++;
    while (used < bytes.length && this.wantsInput) {
      if (this.#payload === undefined) {
        const count = Math.min(HEADER_BYTES - this.#headerBytes, bytes.length - used);
        this.#header.set(bytes.subarray(used, used + count), this.#headerBytes);
        this.#headerBytes += count;
        used += count;
        if (this.#headerBytes < HEADER_BYTES) continue;
        const payloadBytes = readHeader(this.#header).payloadBytes;
        if (payloadBytes > XENSTORE_PAYLOAD_MAX) {
          this.#stop('broken');
          return used;
        }
        this.#payload = new Uint8Array(payloadBytes);
      } else {
        const count = Math.min(this.#payload.length - this.#payloadBytes, bytes.length - used);
        this.#payload.set(bytes.subarray(used, used + count), this.#payloadBytes);
        this.#payloadBytes += count;
        used += count;
      }
      if (this.#payloadBytes === this.#payload.length) this.#handleMessage(this.#payload);
    }
    return used;
  }

  /** Sends what waits, as far as `send` takes it. Call it when there is room again. */
  flush(): void {
    if (this.#queue.length === 0) this.#queueOverflowed();
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      const rest = next.bytes.subarray(this.#sentBytes);
      const taken = this.#send(rest);
      assert(taken >= 0 && taken <= rest.length, 'send takes no more than it is given');
      this.#sentBytes += taken;
      this.#changes++;
      this.#queuedBytes -= taken;
      if (this.#sentBytes > 0 && next.key !== undefined) this.#queuedEvents.delete(next.key);
      if (taken < rest.length) return;
      this.#queue.shift();
      this.#sentBytes = 0;
      if (!next.event) this.#queuedReplies--;
      if (this.#queue.length === 0) this.#queueOverflowed();
    }
  }

  /** Drops watches, transactions and all bytes in either direction: the client starts anew, on a message boundary. */
  reset(): void {
    assert(this.#state !== 'closed', 'a closed connection stays closed');
    this.#stop('open');
  }

  /** The other side can't be understood any more; only `reset` helps. */
  fail(): void {
    if (this.#state === 'open') this.#stop('broken');
  }

  close(): void {
    this.#stop('closed');
  }

  saveState(): ConnectionState {
    const input = bytesToString(this.#header.subarray(0, this.#headerBytes))
      + (this.#payload === undefined ? '' : bytesToString(this.#payload.subarray(0, this.#payloadBytes)));
    return {
      input,
      output: this.#queue.map(({ bytes, event }, i) =>
        ({ event, bytes: bytesToString(i === 0 ? bytes.subarray(this.#sentBytes) : bytes) })),
      watches: this.#session.watches.map((watch) => ({
        path: watchedName(watch), token: watch.token, depth: watch.depth === Infinity ? null : watch.depth,
        pending: this.#overflowed.has(watch),
      })),
      transactionIds: this.#session.transactionIds,
    };
  }

  /** EINVAL if the state is none that `saveState` gives. */
  #restore(state: ConnectionState): void {
    for (const { path, token, depth, pending } of savedArray(state.watches)) {
      if (depth !== null && !(depth >= 0)) throw new XsError('EINVAL');
      const watch = this.#session.restoreWatch(savedString(path), bytesToString(savedBytes(token)), depth ?? Infinity);
      if (pending) this.#overflowed.add(watch);
    }
    for (const id of savedArray(state.transactionIds)) this.#session.reopenTransaction(id >>> 0);
    for (const { event, bytes } of savedArray(state.output)) {
      this.#push({ bytes: savedBytes(bytes), event, key: undefined });
    }
    this.#restoreInput(savedBytes(state.input));
  }

  /** Less than a message, so nothing is answered by it. */
  #restoreInput(input: Uint8Array): void {
    this.#header.set(input.subarray(0, HEADER_BYTES));
    this.#headerBytes = Math.min(input.length, HEADER_BYTES);
    if (this.#headerBytes < HEADER_BYTES) return;
    const { payloadBytes } = readHeader(this.#header);
    this.#payloadBytes = input.length - HEADER_BYTES;
    if (payloadBytes > XENSTORE_PAYLOAD_MAX || this.#payloadBytes >= payloadBytes) throw new XsError('EINVAL');
    this.#payload = new Uint8Array(payloadBytes);
    this.#payload.set(input.subarray(HEADER_BYTES));
  }

  #stop(state: 'open' | 'broken' | 'closed'): void {
    this.#changes++;
    this.#session.reset();
    this.#clearInput();
    this.#queue = [];
    this.#sentBytes = this.#queuedBytes = this.#queuedReplies = 0;
    this.#queuedEvents.clear();
    this.#overflowed.clear();
    this.#state = state;
  }

  #clearInput(): void {
    this.#headerBytes = 0;
    this.#payload = undefined;
    this.#payloadBytes = 0;
  }

  #handleMessage(payload: Uint8Array): void {
    const { type, requestId, transactionId } = readHeader(this.#header);
    this.#clearInput();
    this.#core.operate(() => {
      let replyType: number = type;
      let reply: Uint8Array;
      try {
        reply = answer({ core: this.#core, session: this.#session, transactionId }, type, payload);
        if (reply.length > XENSTORE_PAYLOAD_MAX) throw new XsError('E2BIG');
      } catch (error) {
        if (!(error instanceof XsError)) throw error;
        replyType = XS_TYPE.ERROR;
        reply = errorPayload(error.errno);
      }
      this.#enqueue({ bytes: message(replyType, requestId, transactionId, reply), event: false, key: undefined });
    });
  }

  #notify(watch: Watch, path: string): void {
    const payload = stringToBytes(`${path}\0${watch.token}\0`);
    // Such an event can't be told; a client that sets a watch this long gets none, as with Xen's store.
    if (payload.length > XENSTORE_PAYLOAD_MAX) return;
    const key = isSpecial(path) ? undefined : `${path}\0${watch.token}`;
    if (key !== undefined && this.#queuedEvents.has(key)) return;
    if (this.#queuedBytes + payload.length > EVENT_STOP_BYTES) {
      this.#overflowed.add(watch);
      this.#changes++;
      return;
    }
    if (key !== undefined) this.#queuedEvents.add(key);
    this.#enqueue({ bytes: message(XS_TYPE.WATCH_EVENT, 0, 0, payload), event: true, key });
  }

  #queueOverflowed(): void {
    if (this.#overflowed.size === 0) return;
    const watches = [...this.#overflowed];
    this.#overflowed.clear();
    this.#core.operate(() => {
      for (const watch of watches) if (this.#session.has(watch)) this.#notify(watch, watchedName(watch));
    });
  }

  #push(output: Output): void {
    this.#changes++;
    this.#queue.push(output);
    this.#queuedBytes += output.bytes.length;
    if (!output.event) this.#queuedReplies++;
  }

  #enqueue(output: Output): void {
    this.#push(output);
    if (this.#flushDue) return;
    this.#flushDue = true;
    this.#core.deliverLater(() => {
      this.#flushDue = false;
      this.flush();
    });
  }
}

function readHeader(header: Uint8Array) {
  const view = new DataView(header.buffer, header.byteOffset, HEADER_BYTES);
  return {
    type: view.getUint32(XSD_SOCKMSG.at.type, true),
    requestId: view.getUint32(XSD_SOCKMSG.at.req_id, true),
    transactionId: view.getUint32(XSD_SOCKMSG.at.tx_id, true),
    payloadBytes: view.getUint32(XSD_SOCKMSG.at.len, true),
  };
}

/** A whole message, header and payload. */
export function message(type: number, requestId: number, transactionId: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(XSD_SOCKMSG.at.type, type, true);
  view.setUint32(XSD_SOCKMSG.at.req_id, requestId, true);
  view.setUint32(XSD_SOCKMSG.at.tx_id, transactionId, true);
  view.setUint32(XSD_SOCKMSG.at.len, payload.length, true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

const errorPayload = (errno: XsErrno) => stringToBytes(`${errno}\0`);
