// A TCP end for tests, written apart from the product and simpler: the guest's. It keeps all that it ever sent, resends
// everything that is not acknowledged after a fixed time, and takes segments in any order. Sequence numbers are kept as
// plain offsets from the initial ones (streams in tests are short of 2^32).

import assert from 'node:assert/strict';
import type { Scheduler, Timer } from './scheduler.ts';

export const FIN = 1;
export const SYN = 2;
export const RST = 4;
export const ACK = 16;

export interface PeerSegment {
  flags: number;
  sequence: number;
  acknowledgment: number;
  window: number;
  payload: Uint8Array;
  mss?: number;
  windowScale?: number;
}

export interface PeerOptions {
  readonly scheduler: Scheduler;
  readonly send: (segment: PeerSegment) => void;
  readonly initialSequence?: number;
  readonly mss?: number;
  /** Undefined: the option is not sent. */
  readonly windowScale?: number;
  /** What it buffers until `read`; by default everything is read at once. */
  readonly bufferBytes?: number;
  readonly autoRead?: boolean;
  /** Payload of its segments; more than the MSS makes super-frames. */
  readonly segmentBytes?: number;
  readonly resendMillis?: number;
}

export type PeerState = 'idle' | 'syn-sent' | 'syn-received' | 'open' | 'reset' | 'closed';

export class TestTcpPeer {
  state: PeerState = 'idle';
  /** In order; `read` takes from it. */
  received: Uint8Array[] = [];
  receivedBytes = 0;
  /** The far end has sent its FIN, and all before it is here. */
  ended = false;
  finAcknowledged = false;
  resends = 0;
  /** MSS and window scale that the far end offered. */
  farMss: number | undefined;
  farScale: number | undefined;
  farWindow = 0;
  largestPayload = 0;
  readonly #options: PeerOptions;
  readonly #iss: number;
  #irs = 0;
  #out: Uint8Array = new Uint8Array(0);
  #outBytes = 0;
  #fin = false;
  /** Offsets into #out. */
  #una = 0;
  #nxt = 0;
  #rcvNxt = 0;
  #unread = 0;
  #early = new Map<number, Uint8Array>();
  #finAt = Infinity;
  #timer: Timer | undefined;
  #announced = 0;

  constructor(options: PeerOptions) {
    this.#options = options;
    this.#iss = options.initialSequence ?? 1000;
  }

  get sentAll(): boolean {
    return this.#una === this.#outBytes;
  }

  get acknowledgedBytes(): number {
    return this.#una;
  }

  /** The next sequence number that it expects. */
  get expects(): number {
    return (this.#irs + 1 + this.#rcvNxt + (this.ended ? 1 : 0)) >>> 0;
  }

  /** The next sequence number that it will send. */
  get sequence(): number {
    return (this.#iss + 1 + this.#nxt) >>> 0;
  }

  connect(): void {
    this.state = 'syn-sent';
    this.#sendSyn(SYN);
    this.#arm();
  }

  write(bytes: Uint8Array): void {
    if (this.#outBytes + bytes.length > this.#out.length) {
      const grown = new Uint8Array(Math.max(2 * this.#out.length, this.#outBytes + bytes.length));
      grown.set(this.#out.subarray(0, this.#outBytes));
      this.#out = grown;
    }
    this.#out.set(bytes, this.#outBytes);
    this.#outBytes += bytes.length;
    this.#push();
  }

  end(): void {
    this.#fin = true;
    this.#push();
  }

  abort(): void {
    this.#segment(RST | ACK, this.#una, EMPTY);
    this.#close('reset');
  }

  /** Takes what has arrived, and tells the far end that there is room. */
  read(): Buffer {
    const bytes = Buffer.concat(this.received);
    this.received = [];
    this.#unread = 0;
    if (this.state === 'open') this.#segment(ACK, this.#nxt, EMPTY);
    return bytes;
  }

  /** A segment from the far end; it answers SYNs as a listener does. */
  input(segment: PeerSegment): void {
    const { flags } = segment;
    this.largestPayload = Math.max(this.largestPayload, segment.payload.length);
    if (this.state === 'reset' || this.state === 'closed') return;
    if ((flags & RST) !== 0) {
      const exact = segment.sequence === this.expects;
      if (this.state === 'syn-sent' ? segment.acknowledgment === (this.#iss + 1) >>> 0 : exact) this.#close('reset');
      else if (this.state === 'open') this.#segment(ACK, this.#nxt, EMPTY); // RFC 5961: let it prove itself
      return;
    }
    if ((flags & SYN) !== 0) {
      this.#inputSyn(segment);
      return;
    }
    if ((flags & ACK) === 0) return;
    if (this.state === 'syn-received' && segment.acknowledgment === (this.#iss + 1) >>> 0) this.state = 'open';
    if (this.state !== 'open') return;
    this.#inputAcknowledgment(segment);
    this.#inputData(segment);
    this.#push();
  }

  #inputSyn(segment: PeerSegment): void {
    if (this.state === 'idle' || this.state === 'syn-received') {
      this.#noteSyn(segment);
      this.state = 'syn-received';
      this.#sendSyn(SYN | ACK);
      this.#arm();
    } else if (this.state === 'syn-sent' && (segment.flags & ACK) !== 0) {
      assert.equal(segment.acknowledgment, (this.#iss + 1) >>> 0);
      this.#noteSyn(segment);
      this.state = 'open';
      this.#segment(ACK, this.#nxt, EMPTY);
      this.#push();
    } else if (this.state === 'open') {
      this.#segment(ACK, this.#nxt, EMPTY);
    }
  }

  #noteSyn(segment: PeerSegment): void {
    this.#irs = segment.sequence;
    this.farMss = segment.mss;
    this.farScale = segment.windowScale;
    this.farWindow = segment.window;
  }

  #inputAcknowledgment(segment: PeerSegment): void {
    const acknowledged = ((segment.acknowledgment - this.#iss - 1) | 0);
    const sent = this.#nxt + (this.#finSent ? 1 : 0);
    assert.ok(acknowledged <= Math.max(sent, this.#maxSent), 'acknowledges what was never sent');
    const scale = this.farScale !== undefined && this.#options.windowScale !== undefined ? this.farScale : 0;
    this.farWindow = segment.window << scale;
    if (acknowledged > this.#outBytes) this.finAcknowledged = true;
    const una = Math.min(acknowledged, this.#outBytes);
    if (una > this.#una) {
      this.#una = una;
      this.#nxt = Math.max(this.#nxt, una);
      this.#arm();
    }
  }

  #inputData(segment: PeerSegment): void {
    const start = (segment.sequence - this.#irs - 1) | 0;
    const { payload } = segment;
    const end = start + payload.length;
    if ((segment.flags & FIN) !== 0) this.#finAt = end;
    if (payload.length > 0) {
      const limit = this.#options.bufferBytes === undefined ? Infinity : this.#announced;
      if (end <= limit && end > this.#rcvNxt) this.#early.set(start, payload);
      this.#takeEarly();
    }
    if (this.#rcvNxt === this.#finAt) this.ended = true;
    if (payload.length > 0 || (segment.flags & FIN) !== 0 || start < this.#rcvNxt) this.#segment(ACK, this.#nxt, EMPTY);
  }

  #takeEarly(): void {
    for (let found = true; found;) {
      found = false;
      for (const [start, payload] of this.#early) {
        if (start > this.#rcvNxt) continue;
        this.#early.delete(start);
        if (start + payload.length <= this.#rcvNxt) continue;
        const fresh = payload.subarray(this.#rcvNxt - start);
        this.received.push(fresh);
        this.receivedBytes += fresh.length;
        this.#rcvNxt += fresh.length;
        if (this.#options.autoRead === false) this.#unread += fresh.length;
        found = true;
      }
    }
  }

  #finSent = false;
  #maxSent = 0;

  /** Sends what the window allows. */
  #push(): void {
    if (this.state !== 'open') return;
    const size = this.#options.segmentBytes ?? Math.min(this.#options.mss ?? 1460, this.farMss ?? 536);
    while (this.#nxt < this.#outBytes && this.#nxt < this.#una + this.farWindow) {
      const end = Math.min(this.#outBytes, this.#nxt + size, this.#una + this.farWindow);
      const from = this.#nxt;
      this.#nxt = end;
      this.#maxSent = Math.max(this.#maxSent, end);
      this.#segment(ACK, from, this.#out.slice(from, end));
    }
    if (this.#fin && !this.#finSent && this.#nxt === this.#outBytes) {
      this.#finSent = true;
      this.#maxSent = this.#outBytes + 1;
      this.#segment(FIN | ACK, this.#outBytes, EMPTY);
    }
    this.#arm();
  }

  #arm(): void {
    const waits = this.state === 'syn-sent' || this.state === 'syn-received' || this.#una < this.#outBytes
      || (this.#finSent && !this.finAcknowledged);
    this.#timer?.cancel();
    this.#timer = undefined;
    if (waits && this.state !== 'reset') {
      this.#timer = this.#options.scheduler.after(this.#options.resendMillis ?? 300, () => this.#resend());
    }
  }

  #resend(): void {
    this.#timer = undefined;
    this.resends++;
    if (this.state === 'syn-sent') this.#sendSyn(SYN);
    else if (this.state === 'syn-received') this.#sendSyn(SYN | ACK);
    else if (this.farWindow === 0 && this.#una < this.#outBytes) {
      this.#maxSent = Math.max(this.#maxSent, this.#una + 1);
      this.#segment(ACK, this.#una, this.#out.slice(this.#una, this.#una + 1)); // probe
    } else {
      this.#nxt = this.#una;
      this.#finSent = false;
      this.#push();
    }
    this.#arm();
  }

  #sendSyn(flags: number): void {
    const { mss = 1460, windowScale } = this.#options;
    this.#options.send({
      flags, sequence: this.#iss, acknowledgment: (flags & ACK) === 0 ? 0 : this.expects,
      window: Math.min(65535, this.#options.bufferBytes ?? 65535), payload: EMPTY, mss, windowScale,
    });
    this.#announced = Math.min(65535, this.#options.bufferBytes ?? 65535);
  }

  #segment(flags: number, offset: number, payload: Uint8Array): void {
    const atEnd = this.#finSent && offset === this.#outBytes && (flags & FIN) === 0 && payload.length === 0;
    const scale = this.farScale !== undefined ? this.#options.windowScale ?? 0 : 0;
    const space = Math.max(0, (this.#options.bufferBytes ?? 1 << 20) - this.#unread);
    const window = Math.min(65535, space >> scale);
    this.#announced = Math.max(this.#announced, this.#rcvNxt + (window << scale));
    this.#options.send({
      flags, sequence: (this.#iss + 1 + offset + (atEnd ? 1 : 0)) >>> 0,
      acknowledgment: this.expects, window, payload,
    });
  }

  #close(state: PeerState): void {
    this.state = state;
    this.#timer?.cancel();
    this.#timer = undefined;
  }
}

const EMPTY = new Uint8Array(0);
