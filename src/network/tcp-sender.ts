// The sending half of a connection: from the queue of the host's bytes to segments, as far as the guest's window and
// the congestion window allow; and from acknowledgments back to the queue.
//
//     una               nxt              max
//      │ sent, not acked │ to be resent   │ not sent yet …     │ FIN
//      └──── queue: offset 0 is una ───────────────────────────┘
//
// nxt is max but after a timeout, which goes back to una (RFC 9293's SND.NXT). The FIN takes the number behind the last
// byte of the queue.

import { SendQueue } from './tcp-send-queue.ts';
import { ACK, distance, FIN, PSH } from './tcp-segment.ts';
import { CongestionWindow, RetransmissionTimeout } from './tcp-timing.ts';

/** Sends `length` bytes from `offset` of the queue on as a segment; false if the guest's card has no room now. */
export type Transmit = (flags: number, sequence: number, offset: number, length: number) => boolean;

export type Acknowledged = 'advance' | 'none' | 'beyond';

const DUPLICATES_FOR_LOSS = 3;

export class TcpSender {
  readonly queue = new SendQueue();
  readonly timeout = new RetransmissionTimeout();
  readonly initialSequence: number;
  una: number;
  nxt: number;
  max: number;
  /** What the guest offered last, bytes from una on, and the most that it ever did. */
  windowBytes = 0;
  mss = 536;
  finQueued = false;
  finAcknowledged = false;
  /** Segments sent again, for metrics. */
  retransmissions = 0;
  readonly #congestion = new CongestionWindow();
  readonly #transmit: Transmit;
  #maxWindowBytes = 0;
  #windowShift = 0;
  /** The segment that updated the window last: its sequence number and acknowledgment. */
  #windowSequence = 0;
  #windowAcknowledgment = 0;
  #duplicates = 0;
  #recovering = false;
  #recoverTo = 0;
  /** The end of the segment whose acknowledgment is timed; sentMillis is -1 if none is. */
  #timedEnd = 0;
  #timedMillis = -1;

  constructor(initialSequence: number, transmit: Transmit) {
    this.initialSequence = initialSequence;
    this.#transmit = transmit;
    this.una = this.nxt = this.max = initialSequence;
  }

  /** Sequence numbers not acknowledged. */
  get inFlightBytes(): number {
    return distance(this.max, this.una);
  }

  /** Whether there is something that the guest has not got, sent or not. */
  get hasPending(): boolean {
    return this.queue.length > 0 || (this.finQueued && !this.finAcknowledged) || this.inFlightBytes > 0;
  }

  /** The SYN has gone out: it takes one number. */
  synSent(): void {
    this.nxt = this.max = (this.initialSequence + 1) >>> 0;
  }

  /** The guest has acknowledged the SYN; `window` is already scaled. */
  opened(sequence: number, acknowledgment: number, windowBytes: number, shift: number): void {
    this.una = this.max;
    this.#windowShift = shift;
    this.#setWindow(sequence, acknowledgment, windowBytes);
  }

  /** Takes the acknowledgment and window of a segment; `empty` says that it carries nothing else. */
  acknowledge(
    sequence: number, acknowledgment: number, window: number, empty: boolean, nowMillis: number,
  ): Acknowledged {
    const advance = distance(acknowledgment, this.una);
    if (distance(acknowledgment, this.max) > 0) return 'beyond';
    if (advance < 0) return 'none';
    const windowBytes = window << this.#windowShift;
    const sameWindow = windowBytes === this.windowBytes;
    const newer = distance(sequence, this.#windowSequence);
    if (newer > 0 || (newer === 0 && distance(acknowledgment, this.#windowAcknowledgment) >= 0)) {
      this.#setWindow(sequence, acknowledgment, windowBytes);
    }
    if (advance > 0) {
      this.#advance(acknowledgment, advance, nowMillis);
      return 'advance';
    }
    if (empty && sameWindow && this.inFlightBytes > 0 && windowBytes > 0) this.#duplicate();
    return 'none';
  }

  /** Sends what may be sent. False if the guest's card had no room. */
  output(burstBytes: number, nowMillis: number): boolean {
    for (;;) {
      const offset = distance(this.nxt, this.una);
      const unsent = this.queue.length - offset;
      const fin = this.finQueued && !this.finAcknowledged;
      if (unsent < 0 || (unsent === 0 && !fin)) return true;
      const usable = Math.min(this.windowBytes, this.#congestion.bytes) - offset;
      if (usable <= 0) return true;
      let length = Math.min(unsent, usable, burstBytes);
      if (length < unsent) {
        // Neither tiny segments for tiny windows (RFC 9293 3.8.6.2.1), nor a short one in the middle of the stream.
        if (length > this.mss) length -= length % this.mss;
        else if (length < this.mss && offset > 0 && length * 2 < this.#maxWindowBytes) return true;
      }
      const last = length === unsent;
      const withFin = last && fin && usable > length;
      if (!withFin && length === 0) return true;
      const flags = ACK | (last ? PSH : 0) | (withFin ? FIN : 0);
      if (!this.#transmit(flags, this.nxt, offset, length)) return false;
      this.#sent(length + (withFin ? 1 : 0), nowMillis);
    }
  }

  /** The oldest segment was not acknowledged in time: go back to it. */
  timedOut(): void {
    this.#congestion.timedOut(this.inFlightBytes, this.mss);
    this.timeout.backOff();
    this.nxt = this.una;
    this.#recovering = false;
    this.#duplicates = 0;
    this.#timedMillis = -1;
  }

  #setWindow(sequence: number, acknowledgment: number, windowBytes: number): void {
    this.windowBytes = windowBytes;
    this.#maxWindowBytes = Math.max(this.#maxWindowBytes, windowBytes);
    this.#windowSequence = sequence;
    this.#windowAcknowledgment = acknowledgment;
  }

  #sent(count: number, nowMillis: number): void {
    this.nxt = (this.nxt + count) >>> 0;
    if (distance(this.nxt, this.max) <= 0) {
      this.retransmissions++;
      return; // not timed: an answer could be to either copy
    }
    this.max = this.nxt;
    if (this.#timedMillis < 0) {
      this.#timedMillis = nowMillis;
      this.#timedEnd = this.nxt;
    }
  }

  #advance(acknowledgment: number, advance: number, nowMillis: number): void {
    let bytes = advance;
    if (bytes > this.queue.length) {
      this.finAcknowledged = true; // only the FIN is behind the queue's bytes
      bytes--;
    }
    this.queue.drop(bytes);
    this.una = acknowledgment;
    if (distance(this.nxt, this.una) < 0) this.nxt = this.una;
    this.timeout.progress();
    if (this.#timedMillis >= 0 && distance(acknowledgment, this.#timedEnd) >= 0) {
      this.timeout.measured(nowMillis - this.#timedMillis);
      this.#timedMillis = -1;
    }
    this.#duplicates = 0;
    if (!this.#recovering) {
      this.#congestion.acknowledged(advance, this.mss);
    } else if (distance(acknowledgment, this.#recoverTo) >= 0) {
      this.#recovering = false;
      this.#congestion.leaveRecovery();
    } else {
      this.#congestion.partial(advance, this.mss);
      this.#resendFirst();
    }
  }

  #duplicate(): void {
    if (this.#recovering) {
      this.#congestion.inflate(this.mss);
      return;
    }
    this.#duplicates++;
    if (this.#duplicates !== DUPLICATES_FOR_LOSS) return;
    this.#recovering = true;
    this.#recoverTo = this.max;
    this.#congestion.enterRecovery(this.inFlightBytes, this.mss);
    this.#resendFirst();
  }

  #resendFirst(): void {
    const length = Math.min(this.mss, this.queue.length, this.inFlightBytes);
    const withFin = this.finQueued && length === this.queue.length && this.inFlightBytes > length;
    this.#timedMillis = -1;
    if (this.#transmit(ACK | (withFin ? FIN : 0), this.una, 0, length)) this.retransmissions++;
  }
}
