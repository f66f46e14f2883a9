// Back end of one paravirtual network card: moves frames between the guest's rings and a network. A card has one to
// four queues, each a pair of rings; frames of one connection go to the guest by the same queue, so that they stay in
// order.
//
//   guest ── tx ring ─► Transmitter ──┐                ┌─► network
//                                     ├── FramePort ───┤
//   guest ◄─ rx ring ── Receiver ◄────┘                └── network
//
// Nothing is under way between two calls: what was taken from a ring has been answered, and what was not is still in
// it. So the state of a card is the positions of its rings, and its pages can be given back at any moment (`letGo`);
// they are mapped again when they are needed. Between `hold` and `release` they are not: the guest's memory is somebody
// else's then, and what the guest and the network ask for meanwhile is seen to afterwards.

import { netifRxRequest, netifTxRequest } from '../../abi/xen-net.ts';
import type { GuestBus } from '../../hypervisor/guest-bus.ts';
import { NO_FEATURES } from '../../network/frame-port.ts';
import type { FramePort, GuestLink, LinkFeatures, Offload } from '../../network/frame-port.ts';
import { flowHash } from './flow-hash.ts';
import { Receiver } from './receiver.ts';
import { NetRing } from './ring.ts';
import { Transmitter } from './transmitter.ts';

export const NET_QUEUES_MAX = 4;
const PAGE_BYTES = 4096;
/**
 * That short frames (acknowledgments, questions, answers) have been sent is not worth an interrupt each: a driver is told
 * of several after this time, if it has not looked by itself.
 */
const SHORT_FRAME_BYTES = 512;
const TELL_LATER_MILLIS = 2;
const MEMORY_RETRY_MILLIS = 20;

/** What a guest's front end has agreed on, in numbers that mean something in the guest. */
export interface QueueConnection {
  /** Grants of the rings' pages. */
  readonly txRef: number;
  readonly rxRef: number;
  /** The guest's ends of the event channels; the same one twice where it has one for both. */
  readonly txPort: number;
  readonly rxPort: number;
  /** Answered requests, modulo 2^32. */
  readonly txPosition: number;
  readonly rxPosition: number;
}

export interface NetConnection {
  readonly queues: readonly QueueConnection[];
  readonly features: LinkFeatures;
  /** The guest takes frames that lie in several pages. */
  readonly scatterGather: boolean;
}

/** Counters since the card was attached, beside those of its port. */
export interface NetMetrics {
  /** Frames that were none, and frames that the guest got with an error. */
  txErrors: number;
  rxErrors: number;
  /** How often the network, or the guest, had no room. */
  txStalls: number;
  rxStalls: number;
  notifications: number;
  badIndices: number;
}

interface Queue {
  readonly connection: QueueConnection;
  readonly transmitter: Transmitter;
  readonly receiver: Receiver;
  /** The host's ends. */
  readonly txPort: number;
  readonly rxPort: number;
  isScheduled: boolean;
  isStalled: boolean;
  /** It was to be looked at while the card was held. */
  isMissed: boolean;
  /** Set while the guest is yet to be told of sent frames, with the rings' pages in use: not longer than that. */
  telling: NodeJS.Timeout | undefined;
  /** Set while there is no frame for a ring that is needed. */
  retrying: NodeJS.Timeout | undefined;
}

export class NetBackend implements GuestLink {
  readonly #bus: GuestBus;
  readonly #counts = { txErrors: 0, rxErrors: 0, txStalls: 0, rxStalls: 0, notifications: 0, badIndices: 0 };
  readonly #networkPort: () => FramePort;
  #queues: Queue[] = [];
  #connection: NetConnection | undefined;
  #isHeld = false;
  /** A frame was refused while the card was held. */
  #isWaitedFor = false;

  /** @param networkPort its place on the network; asked for while a front end is connected */
  constructor(bus: GuestBus, networkPort: () => FramePort) {
    this.#bus = bus;
    this.#networkPort = networkPort;
  }

  get metrics(): NetMetrics {
    const badIndices = this.#queues.reduce((sum, { transmitter, receiver }) =>
      sum + transmitter.ring.badIndices + receiver.ring.badIndices, this.#counts.badIndices);
    return { ...this.#counts, badIndices };
  }
  get isConnected(): boolean {
    return this.#connection !== undefined;
  }
  get features(): LinkFeatures {
    return this.#connection?.features ?? NO_FEATURES;
  }

  /** @returns false, and nothing has happened, when a ring or an event channel of it cannot be used */
  connect(connection: NetConnection): boolean {
    const canUse = (ring: NetRing): boolean => ring.open() || ring.isStarved;
    if (this.goOn(connection) && this.#queues.every(({ transmitter, receiver }) =>
      canUse(transmitter.ring) && canUse(receiver.ring))) return true;
    this.disconnect();
    return false;
  }

  /**
   * As after `connect` at an earlier time. Rings are used when they are needed and can be, as after `letGo`: that the
   * guest has just taken a grant back, or that there is no frame now, does not end a connection.
   * @returns false, and nothing has happened, when it has not got the event channels
   */
  goOn(connection: NetConnection): boolean {
    const queues: Queue[] = [];
    this.#queues = queues;
    for (const wanted of connection.queues) {
      const queue = this.#openQueue(wanted);
      if (queue === undefined) {
        this.disconnect();
        return false;
      }
      queues.push(queue);
    }
    this.#connection = connection;
    return true;
  }

  #openQueue(connection: QueueConnection): Queue | undefined {
    const { txRef, rxRef, txPort, rxPort, txPosition, rxPosition } = connection;
    const txRing = new NetRing(this.#bus, txRef, netifTxRequest.sizeBytes, txPosition);
    const rxRing = new NetRing(this.#bus, rxRef, netifRxRequest.sizeBytes, rxPosition);
    const isSplit = txPort !== rxPort;
    const serveTx = (): void => this.#serveTx(queue);
    const serveRx = (): void => this.#serveRx(queue);
    const serveBoth = (): void => { serveRx(); serveTx(); };
    const send = (frame: Uint8Array, offload: Offload): boolean => this.#networkPort().send(frame, offload);
    const hostTx = this.#bus.bind(txPort, isSplit ? serveTx : serveBoth);
    const hostRx = isSplit && hostTx > 0 ? this.#bus.bind(rxPort, serveRx) : hostTx;
    const queue: Queue = {
      connection, txPort: hostTx, rxPort: hostRx, isScheduled: false, isStalled: false, isMissed: false,
      telling: undefined, retrying: undefined,
      transmitter: new Transmitter(this.#bus, txRing, this.#counts, send),
      receiver: new Receiver(this.#bus, rxRing, this.#counts),
    };
    if (hostTx > 0 && hostRx > 0) return queue;
    this.#closeQueue(queue);
    return undefined;
  }

  #closeQueue({ transmitter, receiver, txPort, rxPort, telling, retrying }: Queue): void {
    clearTimeout(telling);
    clearTimeout(retrying);
    transmitter.ring.letGo();
    receiver.ring.letGo();
    this.#counts.badIndices += transmitter.ring.badIndices + receiver.ring.badIndices;
    if (txPort > 0) this.#bus.close(txPort);
    if (rxPort > 0 && rxPort !== txPort) this.#bus.close(rxPort);
  }

  disconnect(): void {
    this.#connection = undefined;
    for (const queue of this.#queues.splice(0)) this.#closeQueue(queue);
  }

  /** Gives back all pages of the guest, so that its memory can be frozen. */
  letGo(): void {
    for (const queue of this.#queues) {
      this.#tellOfSent(queue);
      queue.transmitter.ring.letGo();
      queue.receiver.ring.letGo();
    }
  }

  /** Gives back all pages of the guest and uses none until `release`. */
  hold(): void {
    this.letGo();
    this.#isHeld = true;
  }
  /** Goes on with what has come meanwhile. */
  release(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    for (const queue of this.#queues) {
      if (!queue.isMissed) continue;
      queue.isMissed = false;
      this.#serveRx(queue);
      this.#serveTx(queue);
    }
    if (!this.#isWaitedFor) return;
    this.#isWaitedFor = false;
    this.#networkPort().ready();
  }

  save(): NetConnection | undefined {
    return this.#connection && {
      ...this.#connection,
      queues: this.#queues.map(({ connection, transmitter, receiver }) => ({
        ...connection, txPosition: transmitter.ring.position, rxPosition: receiver.ring.position,
      })),
    };
  }

  /** Looks at all rings, and has the guest look at them. */
  wake(): void {
    for (const queue of this.#queues) {
      this.#notify(queue.txPort);
      if (queue.rxPort !== queue.txPort) this.#notify(queue.rxPort);
      this.#serveTx(queue);
    }
    if (this.#queues.length > 0) this.#networkPort().ready();
  }

  /** If there is no frame for it, both rings are looked at again later. */
  #canOpen(queue: Queue, ring: NetRing): boolean {
    if (!this.#queues.includes(queue)) return false;
    if (this.#isHeld) queue.isMissed = true;
    if (this.#isHeld) return false;
    if (ring.open()) return true;
    if (ring.isStarved) this.#retry(queue);
    return false;
  }
  #retry(queue: Queue): void {
    queue.retrying ??= setTimeout(() => {
      queue.retrying = undefined;
      this.#serveRx(queue);
      this.#serveTx(queue);
    }, MEMORY_RETRY_MILLIS);
  }

  // ---- the guest sends

  #serveTx(queue: Queue): void {
    const { transmitter } = queue;
    if (!this.#canOpen(queue, transmitter.ring)) return;
    const outcome = transmitter.service();
    queue.isStalled = outcome === 'stalled';
    if (transmitter.ring.publish()) {
      if (transmitter.longestBytes > SHORT_FRAME_BYTES) this.#notify(queue.txPort);
      else queue.telling ??= setTimeout(() => this.#tellOfSent(queue), TELL_LATER_MILLIS);
    }
    if (outcome === 'more') this.#serveTxLater(queue);
  }

  /** If it is to be told and has not found out by itself. */
  #tellOfSent(queue: Queue): void {
    if (queue.telling === undefined) return;
    clearTimeout(queue.telling);
    queue.telling = undefined;
    if (queue.transmitter.ring.isTellingDue) this.#notify(queue.txPort);
  }

  #serveTxLater(queue: Queue): void {
    if (queue.isScheduled) return;
    queue.isScheduled = true;
    setImmediate(() => {
      queue.isScheduled = false;
      this.#serveTx(queue);
    });
  }

  writable(): void {
    for (const queue of this.#queues) if (queue.isStalled) this.#serveTxLater(queue);
  }

  // ---- the guest receives

  #serveRx(queue: Queue): void {
    const { receiver } = queue;
    if (this.#canOpen(queue, receiver.ring) && receiver.takeReady()) this.#networkPort().ready();
  }

  receive(frame: Uint8Array, offload: Offload): boolean {
    if (this.#connection === undefined) return false;
    if (this.#isHeld) this.#isWaitedFor = true;
    if (this.#isHeld) return false;
    const queue = this.#queues[this.#queues.length === 1 ? 0 : flowHash(frame) % this.#queues.length]!;
    const { receiver } = queue;
    if (frame.length > PAGE_BYTES && !this.#connection.scatterGather) {
      this.#counts.rxErrors++;
      return true;
    }
    if (!receiver.receive(frame, offload)) {
      if (receiver.ring.isStarved) this.#retry(queue);
      return false;
    }
    if (receiver.ring.publish()) this.#notify(queue.rxPort);
    return true;
  }

  #notify(port: number): void {
    this.#counts.notifications++;
    this.#bus.notify(port);
  }
}
