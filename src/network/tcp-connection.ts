// The gateway's end of one TCP connection with a guest (RFC 9293; 7323 window scaling; 5961 against blind resets). What
// is at the host's end is a TcpApplication: a host socket, or the gateway's own DNS service.
//
//   opening ──accept──► syn-received ─┐                      FINs both ways
//   (the host's socket connects)      ├──► open ──────────────────────────► time-wait (we were first) ──► closed
//   syn-sent ─────────────────────────┘      └── RST, too many timeouts ─────────────────────────────────► closed
//
// `open` stands for ESTABLISHED and all states with one FIN: which of the two went by is kept by the halves.
// Input changes state and marks the connection; what is due goes out once per batch of frames, in `output`.

import type { PortState } from './port-state.ts';
import { Deadline } from './deadline-queue.ts';
import type { DeadlineQueue } from './deadline-queue.ts';
import type { Offload } from './frame-port.ts';
import { Reassembly } from './tcp-reassembly.ts';
import { NOBODY } from './tcp-application.ts';
import type { CloseReason, TcpApplication } from './tcp-application.ts';
import { ACK, distance, FIN, RST, SYN } from './tcp-segment.ts';
import type { TcpSegment } from './tcp-segment.ts';
import { TcpSender } from './tcp-sender.ts';

export type ConnectionState = 'opening' | 'syn-received' | 'syn-sent' | 'open' | 'time-wait' | 'closed';
/** What connections need of their stack. */
export interface TcpEnvironment {
  readonly deadlines: DeadlineQueue;
  readonly nowMillis: () => number;
  /** Sends a segment; what has data is refused, and the connection noted, when the guest's card has no room. */
  transmit(connection: TcpConnection, flags: number, sequence: number, offset: number, length: number): boolean;
  /** Calls `output` at the end of the batch. */
  markDirty(connection: TcpConnection): void;
  enteredTimeWait(connection: TcpConnection): void;
  removed(connection: TcpConnection): void;
}

/** Who talks to whom. */
export interface TcpAddresses {
  readonly guestMac: number;
  readonly guestAddress: number;
  readonly guestPort: number;
  readonly remoteAddress: number;
  readonly remotePort: number;
}

/** Most that is under way in one direction of one connection. */
export const BUFFER_BYTES = 512 * 1024;
/** Windows up to 2 MiB. */
export const WINDOW_SHIFT = 5;

const MAX_SYN_TRIES = 6;
const MAX_TRIES = 10;
const MAX_PROBES = 12;
const TIME_WAIT_MILLIS = 2000;
const KEEPALIVE_MILLIS = 7_200_000;
const KEEPALIVE_INTERVAL_MILLIS = 75_000;
/**
 * How long an acknowledgment may wait for an answer of the host's to go with, where the two ends take turns. Short next
 * to what systems take (40 to 200 ms): a guest that holds back a second small write until then loses little.
 */
const ACK_DELAY_MILLIS = 5;
const MIN_PROBE_MILLIS = 500;
const MAX_PROBE_MILLIS = 60_000;

export class TcpConnection {
  readonly addresses: TcpAddresses;
  readonly port: PortState;
  readonly sender: TcpSender;
  /** For super-frames of this connection's segment size. */
  gsoOffload: Offload = { checksumPartial: true, gsoSize: 0, gsoType: 'tcpv4' };
  /** Owned by the stack: its lists and its table. */
  dirty = false;
  next: TcpConnection | undefined;
  application: TcpApplication;
  state: ConnectionState;
  /** The next byte expected from the guest, and the edge of the window that it was offered. */
  rcvNxt = 0;
  rcvEdge = 0;
  windowShift = 0;
  scaled = false;
  readonly #environment: TcpEnvironment;
  readonly #reassembly = new Reassembly();
  readonly #deadline = new Deadline(() => this.#onDeadline());
  #guestMss = 536;
  #sendShift = 0;
  #ackPending = false;
  /** When an acknowledgment that waits for an answer goes alone; Infinity: none does. */
  #ackMillis = Infinity;
  /** The guest's bytes have been answered soon, lately; and when it sent some that have not yet been. */
  #takesTurns = false;
  #unansweredMillis = -Infinity;
  #delivered = false;
  /** Where the guest's stream ends, once its FIN was seen. */
  #finSequence: number | undefined;
  #finReceived = false;
  #closedFirst = false;
  /** Timeouts or probes without any answer, and probes of a window that stays shut. */
  #tries = 0;
  #probes = 0;
  /** When to retransmit or probe (Infinity: nothing is due), and when the guest was last heard. */
  #retryMillis = Infinity;
  #probing = false;
  #heardMillis: number;
  #keepaliveMillis: number;
  #chargedBytes = 0;

  constructor(
    environment: TcpEnvironment, port: PortState, addresses: TcpAddresses, initialSequence: number,
    application: TcpApplication, state: 'opening' | 'syn-sent',
  ) {
    this.#environment = environment;
    this.port = port;
    this.addresses = addresses;
    this.application = application;
    this.state = state;
    this.sender = new TcpSender(initialSequence, (flags, sequence, offset, length) =>
      environment.transmit(this, flags, sequence, offset, length));
    this.#heardMillis = environment.nowMillis();
    this.#keepaliveMillis = this.#heardMillis + KEEPALIVE_MILLIS;
  }

  /** Whether the guest has said that it sends no more. */
  get guestEnded(): boolean {
    return this.#finReceived;
  }

  /** Notes the guest's SYN, before `accept`. */
  synReceived(segment: TcpSegment): void {
    this.rcvNxt = this.rcvEdge = (segment.sequence + 1) >>> 0;
    this.#takeOptions(segment);
    this.sender.windowBytes = segment.window;
  }

  /** Answers the guest's SYN: the host's end is there. */
  accept(): void {
    if (this.state !== 'opening') return;
    this.state = 'syn-received';
    this.#sendSyn();
  }

  /** Begins a connection to the guest. */
  connect(): void {
    this.scaled = true;
    this.#sendSyn();
  }

  /** Queues a chunk, which belongs to the connection from now on. */
  write(chunk: Uint8Array): void {
    if (this.state === 'closed' || this.state === 'time-wait' || this.sender.finQueued) return;
    this.sender.queue.push(chunk);
    this.#charge();
    this.#environment.markDirty(this);
  }

  /** Sends a FIN behind what is queued. */
  end(): void {
    if (this.sender.finQueued || this.state === 'closed' || this.state === 'time-wait') return;
    this.sender.finQueued = true;
    this.#environment.markDirty(this);
  }

  /** Ends the connection with a RST. */
  abort(): void {
    if (this.state === 'closed') return;
    if (this.state === 'opening') {
      this.#environment.transmit(this, RST | ACK, 0, 0, 0);
    } else if (this.state !== 'time-wait') {
      this.#environment.transmit(this, RST | ACK, this.sender.max, 0, 0);
    }
    this.#close('aborted');
  }

  /** Forgets the connection without a word to the guest. */
  forget(): void {
    this.#close('aborted');
  }

  /** The application holds less than before. */
  released(): void {
    if (this.state !== 'open') return;
    this.#charge();
    const gained = distance(this.rcvNxt + this.#receiveSpace(), this.rcvEdge);
    if (gained < Math.min(2 * this.#guestMss, BUFFER_BYTES / 2)) return;
    this.#ackPending = true;
    this.#environment.markDirty(this);
  }

  /** The window field of a segment that is sent now. The edge never moves back. */
  advertise(syn: boolean): number {
    const gained = distance(this.rcvNxt + this.#receiveSpace(), this.rcvEdge);
    if (gained >= Math.min(this.#guestMss, BUFFER_BYTES / 2)) this.rcvEdge = (this.rcvEdge + gained) >>> 0;
    const windowBytes = Math.max(0, distance(this.rcvEdge, this.rcvNxt));
    return Math.min(0xffff, syn ? windowBytes : windowBytes >>> this.windowShift);
  }

  /** A segment from the guest, whose checksum holds. */
  input(segment: TcpSegment, frame: Uint8Array): void {
    this.#heardMillis = this.#environment.nowMillis();
    switch (this.state) {
      case 'opening':
        if ((segment.flags & RST) !== 0 && segment.sequence === this.rcvNxt) this.#close('reset');
        break;
      case 'syn-sent':
        this.#inputSynSent(segment);
        break;
      case 'time-wait':
        this.#inputTimeWait(segment);
        break;
      case 'syn-received':
      case 'open':
        this.#inputOpen(segment, frame);
        break;
      case 'closed':
        break;
    }
  }

  /** Sends all that is due: data, FIN, acknowledgment. */
  output(): void {
    if (this.#delivered) {
      this.#delivered = false;
      this.application.flush();
    }
    const { sender } = this;
    const nowMillis = this.#environment.nowMillis();
    if (this.state === 'open') {
      const before = sender.nxt;
      sender.output(this.port.burstBytes(sender.mss), nowMillis);
      if (sender.nxt !== before) this.#answered(nowMillis);
      this.#armRetry(nowMillis);
    }
    if (this.#ackPending && (this.state === 'open' || this.state === 'time-wait')) {
      this.#ackPending = false;
      this.#ackMillis = Infinity;
      this.#environment.transmit(this, ACK, sender.nxt, 0, 0);
    }
    this.#charge();
  }

  /** Data has gone to the guest, and the acknowledgment with it. */
  #answered(nowMillis: number): void {
    this.#ackPending = false;
    this.#ackMillis = Infinity;
    if (nowMillis - this.#unansweredMillis < ACK_DELAY_MILLIS) this.#takesTurns = true;
    this.#unansweredMillis = -Infinity;
  }

  #receiveSpace(): number {
    const held = this.application.heldBytes() + this.#reassembly.bytes;
    return Math.max(0, (this.scaled ? BUFFER_BYTES : 0xffff) - held);
  }

  #takeOptions(segment: TcpSegment): void {
    this.#guestMss = Math.max(64, segment.mss);
    this.sender.mss = Math.min(this.#guestMss, this.port.maxSegmentBytes);
    this.gsoOffload = { checksumPartial: true, gsoSize: this.sender.mss, gsoType: 'tcpv4' };
    this.scaled = segment.windowScale >= 0;
    this.windowShift = this.scaled ? WINDOW_SHIFT : 0;
    this.#sendShift = this.scaled ? segment.windowScale : 0;
  }

  #sendSyn(): void {
    const { sender } = this;
    const flags = this.state === 'syn-sent' ? SYN : SYN | ACK;
    this.#environment.transmit(this, flags, sender.initialSequence, 0, 0);
    sender.synSent();
    this.#setRetry(this.#environment.nowMillis() + sender.timeout.millis);
  }

  #inputSynSent(segment: TcpSegment): void {
    const { flags } = segment;
    const acknowledges = (flags & ACK) !== 0;
    if (acknowledges && segment.acknowledgment !== this.sender.max) {
      if ((flags & RST) === 0) this.#environment.transmit(this, RST, segment.acknowledgment, 0, 0);
      return;
    }
    if ((flags & RST) !== 0) {
      if (acknowledges) this.#close('refused');
      return;
    }
    if ((flags & SYN) === 0) return;
    this.synReceived(segment);
    if (!acknowledges) {
      this.state = 'syn-received';
      this.#sendSyn();
      return;
    }
    this.#opened(segment, segment.window);
  }

  #opened(segment: TcpSegment, windowBytes: number): void {
    this.state = 'open';
    this.#tries = 0;
    this.#setRetry(Infinity);
    this.sender.opened(segment.sequence, segment.acknowledgment, windowBytes, this.#sendShift);
    if ((segment.flags & SYN) !== 0) this.#acknowledge();
    // The host may have written already.
    this.#environment.markDirty(this);
    this.application.connected();
  }

  #inputTimeWait(segment: TcpSegment): void {
    if ((segment.flags & RST) !== 0) {
      if (segment.sequence === this.rcvNxt) this.#close('finished');
      return;
    }
    if (segment.sequenceBytes > 0) this.#acknowledge();
  }

  #inputOpen(segment: TcpSegment, frame: Uint8Array): void {
    const { flags } = segment;
    if (!this.#isAcceptable(segment)) {
      if ((flags & RST) === 0) this.#acknowledge();
      return;
    }
    if ((flags & RST) !== 0) {
      if (segment.sequence === this.rcvNxt) this.#close(this.state === 'syn-received' ? 'refused' : 'reset');
      else this.#acknowledge();
      return;
    }
    if ((flags & SYN) !== 0) {
      this.#acknowledge();
      return;
    }
    if ((flags & ACK) === 0) return;
    if (this.state === 'syn-received') {
      if (segment.acknowledgment !== this.sender.max) {
        this.#environment.transmit(this, RST, segment.acknowledgment, 0, 0);
        return;
      }
      this.#opened(segment, segment.window << this.#sendShift);
    } else if (!this.#inputAcknowledgment(segment)) {
      return;
    }
    if (this.#isOpen()) this.#inputPayload(segment, frame);
    if (this.#isOpen()) this.#inputFin(segment);
    if (this.#isOpen()) this.#finishIfDone();
    if (this.#isOpen()) this.#charge();
  }

  /** A method, since what is called in between may close the connection. */
  #isOpen(): boolean {
    return this.state === 'open';
  }

  /** RFC 9293 3.10.7.4, first check; old duplicates of a SYN included. */
  #isAcceptable(segment: TcpSegment): boolean {
    const windowBytes = Math.max(0, distance(this.rcvEdge, this.rcvNxt));
    const first = distance(segment.sequence, this.rcvNxt);
    const length = segment.sequenceBytes;
    if (first >= 0) return first < windowBytes || first === 0;
    return first + length > 0;
  }

  /** False: the segment is not to be looked at any further. */
  #inputAcknowledgment(segment: TcpSegment): boolean {
    const { sender } = this;
    const hadWindow = sender.windowBytes > 0;
    const result = sender.acknowledge(segment.sequence, segment.acknowledgment, segment.window,
      segment.sequenceBytes === 0, this.#heardMillis);
    if (result === 'beyond') {
      this.#acknowledge();
      return false;
    }
    if (result === 'advance') {
      this.#tries = 0;
      this.#setRetry(sender.inFlightBytes > 0 ? this.#heardMillis + sender.timeout.millis : Infinity);
      this.application.drained();
    } else if (this.#probing) {
      this.#tries = 0; // a guest that answers probes may keep its window shut as long as it likes
      if (!hadWindow && sender.windowBytes > 0) this.#setRetry(Infinity);
    }
    if (sender.windowBytes > 0) {
      this.#probes = 0;
    }
    if (this.#isOpen() && sender.hasPending) this.#environment.markDirty(this);
    return true;
  }

  #inputPayload(segment: TcpSegment, frame: Uint8Array): void {
    if (segment.payloadBytes === 0) return;
    if (this.#mayWait(segment)) {
      this.#ackMillis = this.#heardMillis + ACK_DELAY_MILLIS;
      this.#setDeadline();
      this.#environment.markDirty(this);
    } else this.#acknowledge();
    if (this.#finReceived) return;
    const skip = Math.max(0, distance(this.rcvNxt, segment.sequence));
    const start = segment.payloadOffset + skip;
    const sequence = (segment.sequence + skip) >>> 0;
    const end = Math.min(segment.payloadEnd, start + Math.max(0, distance(this.rcvEdge, sequence)));
    if (start >= end) return;
    const payload = frame.subarray(start, end);
    if (sequence !== this.rcvNxt) {
      if (this.port.budget.admitsEarly(payload.length)) this.#reassembly.insert(sequence, payload);
      return;
    }
    if (!this.port.budget.admits(payload.length)) return;
    this.#deliver(payload);
    for (let more = this.#takeEarly(); more !== undefined; more = this.#takeEarly()) this.#deliver(more);
  }

  /** Whether the acknowledgment of a segment may wait: a short one in its place, and none waits already (RFC 1122). */
  #mayWait(segment: TcpSegment): boolean {
    return this.#takesTurns && this.#ackMillis === Infinity && !this.#ackPending && segment.sequence === this.rcvNxt
      && segment.payloadBytes < this.#guestMss && (segment.flags & FIN) === 0 && this.#reassembly.bytes === 0;
  }

  #takeEarly(): Uint8Array | undefined {
    return this.#isOpen() && this.#reassembly.bytes > 0 ? this.#reassembly.take(this.rcvNxt) : undefined;
  }

  #deliver(payload: Uint8Array): void {
    this.rcvNxt = (this.rcvNxt + payload.length) >>> 0;
    this.#delivered = true;
    this.#unansweredMillis = this.#heardMillis;
    this.application.receive(payload);
  }

  #inputFin(segment: TcpSegment): void {
    if ((segment.flags & FIN) !== 0) {
      this.#acknowledge();
      this.#finSequence ??= (segment.sequence + segment.payloadBytes) >>> 0;
    }
    if (this.#finReceived || this.#finSequence !== this.rcvNxt) return;
    this.#finReceived = true;
    this.#closedFirst = this.#finSent();
    this.rcvNxt = (this.rcvNxt + 1) >>> 0;
    if (distance(this.rcvEdge, this.rcvNxt) < 0) this.rcvEdge = this.rcvNxt;
    this.#reassembly.clear();
    this.application.ended();
  }

  #finSent(): boolean {
    return this.sender.finAcknowledged || this.sender.inFlightBytes > this.sender.queue.length;
  }

  #finishIfDone(): void {
    if (!this.#finReceived || !this.sender.finAcknowledged) return;
    if (!this.#closedFirst) {
      this.#close('finished');
      return;
    }
    this.state = 'time-wait';
    const { application } = this;
    this.application = NOBODY;
    this.#delivered = false;
    this.#setRetry(Infinity);
    this.#environment.deadlines.set(this.#deadline, this.#heardMillis + TIME_WAIT_MILLIS);
    this.#environment.enteredTimeWait(this);
    application.flush();
    application.closed('finished');
  }

  #acknowledge(): void {
    this.#ackPending = true;
    this.#environment.markDirty(this);
  }

  #armRetry(nowMillis: number): void {
    const { sender } = this;
    if (sender.inFlightBytes > 0) {
      if (this.#retryMillis === Infinity || this.#probing) this.#setRetry(nowMillis + sender.timeout.millis);
    } else if (sender.hasPending && sender.windowBytes === 0) {
      if (!this.#probing) this.#armProbe(nowMillis);
    } else {
      this.#setRetry(Infinity);
    }
  }

  #armProbe(nowMillis: number): void {
    const delayMillis = Math.max(MIN_PROBE_MILLIS, this.sender.timeout.millis);
    this.#setRetry(nowMillis + Math.min(MAX_PROBE_MILLIS, delayMillis * 2 ** Math.min(this.#probes, 8)));
    this.#probing = true;
  }

  #setRetry(atMillis: number): void {
    this.#probing = false;
    this.#retryMillis = atMillis;
    this.#setDeadline();
  }

  #setDeadline(): void {
    const atMillis = Math.min(this.#retryMillis, this.#ackMillis, this.#keepaliveMillis);
    this.#environment.deadlines.set(this.#deadline, atMillis);
  }

  #onDeadline(): void {
    const nowMillis = this.#environment.nowMillis();
    if (this.state === 'time-wait') this.#close('finished');
    else if (nowMillis >= this.#ackMillis) this.#acknowledgeAlone();
    else if (nowMillis >= this.#retryMillis) this.#retry(nowMillis);
    else if (nowMillis >= this.#keepaliveMillis) this.#keepAlive(nowMillis);
    else this.#setDeadline();
  }

  /** The host has not answered in time, and is not waited for again until it does. */
  #acknowledgeAlone(): void {
    this.#ackMillis = Infinity;
    this.#takesTurns = false;
    this.#acknowledge();
    this.#setDeadline();
  }

  #retry(nowMillis: number): void {
    const { sender } = this;
    if (this.port.congested) {
      // The guest is not even taking frames: nothing is lost, and it may be paused. Not a failed try.
      const probing = this.#probing;
      this.#setRetry(nowMillis + sender.timeout.millis);
      this.#probing = probing;
      return;
    }
    this.#tries++;
    if (this.state !== 'open') {
      if (this.#tries > MAX_SYN_TRIES) this.#giveUp();
      else {
        sender.timeout.backOff();
        this.#sendSyn();
      }
    } else if (this.#probing || sender.windowBytes === 0) {
      if (this.#tries > MAX_PROBES) {
        this.#giveUp();
      } else {
        this.#probes++;
        this.#probe();
        this.#armProbe(nowMillis);
      }
    } else if (this.#tries > MAX_TRIES) {
      this.#giveUp();
    } else {
      sender.timedOut();
      this.#setRetry(nowMillis + sender.timeout.millis);
      this.output();
    }
  }

  /** Asks whether a silent guest still knows the connection. */
  #keepAlive(nowMillis: number): void {
    const silentMillis = nowMillis - this.#heardMillis;
    if (silentMillis < KEEPALIVE_MILLIS || this.port.congested || this.state !== 'open') {
      this.#keepaliveMillis = nowMillis + Math.max(KEEPALIVE_INTERVAL_MILLIS, KEEPALIVE_MILLIS - silentMillis);
    } else if (silentMillis > KEEPALIVE_MILLIS + MAX_PROBES * KEEPALIVE_INTERVAL_MILLIS) {
      this.#giveUp();
      return;
    } else {
      this.#keepaliveMillis = nowMillis + KEEPALIVE_INTERVAL_MILLIS;
      this.#probe();
    }
    this.#setDeadline();
  }

  /** An empty segment from before the window: whoever knows the connection must answer it with its state. */
  #probe(): void {
    this.#environment.transmit(this, ACK, (this.sender.una - 1) >>> 0, 0, 0);
  }

  #giveUp(): void {
    this.#environment.transmit(this, RST | ACK, this.sender.max, 0, 0);
    this.#close('timeout');
  }

  #charge(): void {
    const bytes = this.state === 'closed' ? 0
      : this.sender.queue.heldBytes + this.#reassembly.bytes + this.application.heldBytes();
    this.port.budget.change(bytes - this.#chargedBytes);
    this.#chargedBytes = bytes;
  }

  #close(reason: CloseReason): void {
    if (this.state === 'closed') return;
    const wasWaiting = this.state === 'time-wait';
    this.state = 'closed';
    this.#environment.deadlines.remove(this.#deadline);
    this.sender.queue.clear();
    this.#reassembly.clear();
    this.#charge();
    this.#environment.removed(this);
    const { application } = this;
    this.application = NOBODY;
    if (wasWaiting || reason === 'aborted') return;
    if (this.#delivered) application.flush();
    application.closed(reason);
  }
}
