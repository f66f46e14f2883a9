// A private Ethernet switch: the ports of the guests on one network, and the gateway.
//
//   guest ──► SwitchPort.send ──► checks ──► known address ──► that port, or the gateway
//             (rate bound)        (spoofing)   group address ──► every other port and the gateway
//                                              unknown ────────► ports that may have any address
//
// A port has one MAC address and sends from no other; a port attached with `anyMac` (a guest that bridges guests of its
// own) may, and its addresses are learned, up to a bound. Networks share nothing: each has a switch of its own.
//
// Frames for a guest that has no buffers wait in its port's queue, up to a bound, then are dropped, as switches do.
// The gateway's TCP uses `offer` instead, which never queues, and is woken when the guest has room: it loses nothing.

import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { BROADCAST_MAC, formatMac, isGroupMac } from './addresses.ts';
import { MAX_FRAME_BYTES } from './frame-port.ts';
import type { FramePort, GuestLink, Offload } from './frame-port.ts';
import { ETHERNET_HEADER_BYTES } from './packet.ts';
import type { Scheduler, Timer } from './scheduler.ts';
import { linkTakes, MIN_GSO_BYTES, Segmenter } from './segmentation.ts';
import { readMac } from './wire.ts';

const QUEUE_FRAMES = 512;
const QUEUE_BYTES = 1 << 20;
const LEARNED_ADDRESSES = 1024;
const LEARNED_MILLIS = 300_000;
/** A port's rate is kept over this time: bursts may be that long. */
const BURST_MILLIS = 50;
const VLAN_TAG_BYTES = 4;

/** Counters of a port; tx is what the guest sends. */
export interface PortCounters {
  txFrames: number;
  txBytes: number;
  rxFrames: number;
  rxBytes: number;
  /** Frames from another address than the port's. */
  txSpoofed: number;
  /** Frames too short, too long, or with offloads that do not fit. */
  txMalformed: number;
  /** How often the guest was told to wait because of its rate. */
  txThrottled: number;
  /** Frames for the guest dropped because its queue was full or its card cannot take them. */
  rxDropped: number;
}

export interface PortOptions {
  readonly mac: number;
  readonly anyMac?: boolean;
  /** Most that the guest may send, bytes a second. */
  readonly rateBytesPerSecond?: number;
}

/** The network's own station. */
export interface Gateway {
  readonly mac: number;
  receive(port: SwitchPort, frame: Uint8Array, offload: Offload): void;
  /** The guest takes frames again after `offer` was refused. */
  portReady(port: SwitchPort): void;
  portClosed(port: SwitchPort): void;
}

interface WaitingFrame {
  readonly frame: Uint8Array;
  readonly offload: Offload;
}

export class SwitchPort implements FramePort {
  readonly mac: number;
  readonly anyMac: boolean;
  readonly link: GuestLink;
  readonly counters: PortCounters = {
    txFrames: 0, txBytes: 0, rxFrames: 0, rxBytes: 0, txSpoofed: 0, txMalformed: 0, txThrottled: 0, rxDropped: 0,
  };
  readonly #switch: Switch;
  readonly #rate: RateLimit | undefined;
  #queue: WaitingFrame[] = [];
  #queueBytes = 0;
  #refused = false;
  #inLink = false;
  #closed = false;

  constructor(owner: Switch, link: GuestLink, options: PortOptions, scheduler: Scheduler) {
    this.#switch = owner;
    this.link = link;
    this.mac = options.mac;
    this.anyMac = options.anyMac ?? false;
    const rate = options.rateBytesPerSecond;
    if (rate !== undefined) this.#rate = new RateLimit(rate, scheduler, () => this.#closed || link.writable());
  }

  /** Whether frames wait for the guest: `offer` will be refused. */
  get congested(): boolean {
    return this.#refused || this.#queue.length > 0;
  }

  get closed(): boolean {
    return this.#closed;
  }

  send(frame: Uint8Array, offload: Offload): boolean {
    assert(!this.#inLink, 'a link sent from within receive');
    if (this.#closed) return true;
    if (this.#rate?.take(frame.length) === false) {
      this.counters.txThrottled++;
      return false;
    }
    this.#switch.fromPort(this, frame, offload);
    return true;
  }

  ready(): void {
    if (this.#closed) return;
    this.#refused = false;
    let sent = 0;
    for (const { frame, offload } of this.#queue) {
      if (!this.#give(frame, offload)) break;
      this.#queueBytes -= frame.length;
      sent++;
    }
    if (sent > 0) this.#queue = this.#queue.slice(sent);
    if (!this.congested) this.#switch.gateway.portReady(this);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#queue = [];
    this.#queueBytes = 0;
    this.#rate?.close();
    this.#switch.detach(this);
  }

  /** Gives the guest a frame that its link can take as it is; false, and nothing happened, if there is no room. */
  offer(frame: Uint8Array, offload: Offload): boolean {
    if (this.congested || this.#closed) return false;
    return this.#give(frame, offload);
  }

  /** Gives the guest a frame now or later; drops it if too many wait. */
  deliver(frame: Uint8Array, offload: Offload): void {
    if (this.#closed) return;
    if (linkTakes(offload, this.link.features)) {
      this.#enqueue(frame, offload);
      return;
    }
    const emit = (part: Uint8Array, left: Offload): void => this.#enqueue(part, left);
    if (!this.#switch.segmenter.adapt(frame, offload, this.link.features, emit)) this.counters.rxDropped++;
  }

  #enqueue(frame: Uint8Array, offload: Offload): void {
    if (!this.congested && this.#give(frame, offload)) return;
    if (this.#queue.length >= QUEUE_FRAMES || this.#queueBytes + frame.length > QUEUE_BYTES) {
      this.counters.rxDropped++;
      return;
    }
    this.#queue.push({ frame: frame.slice(), offload: { ...offload } });
    this.#queueBytes += frame.length;
  }

  #give(frame: Uint8Array, offload: Offload): boolean {
    this.#inLink = true;
    const taken = this.link.receive(frame, offload);
    this.#inLink = false;
    if (taken) {
      this.counters.rxFrames++;
      this.counters.rxBytes += frame.length;
    } else {
      this.#refused = true;
    }
    return taken;
  }
}

export interface SwitchOptions {
  readonly mtuBytes: number;
  readonly scheduler: Scheduler;
  /** Sees every frame that passes, once. */
  readonly capture?: (frame: Uint8Array) => void;
}

export class Switch {
  readonly segmenter = new Segmenter();
  readonly #ports = new Map<number, SwitchPort>();
  readonly #learned = new Map<number, { port: SwitchPort; untilMillis: number }>();
  readonly #scheduler: Scheduler;
  readonly #maxPlainBytes: number;
  readonly #mtuBytes: number;
  readonly #capture: ((frame: Uint8Array) => void) | undefined;
  #gateway: Gateway | undefined;

  constructor(options: SwitchOptions) {
    this.#scheduler = options.scheduler;
    this.#mtuBytes = options.mtuBytes;
    this.#maxPlainBytes = ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES + options.mtuBytes;
    this.#capture = options.capture;
  }

  get gateway(): Gateway {
    assert(this.#gateway !== undefined, 'a switch without its gateway');
    return this.#gateway;
  }

  set gateway(gateway: Gateway) {
    this.#gateway = gateway;
  }

  get ports(): Iterable<SwitchPort> {
    return this.#ports.values();
  }

  /** Whether a card may come with this address. */
  isFree(mac: number): boolean {
    return !isGroupMac(mac) && mac !== 0 && mac !== this.gateway.mac && !this.#ports.has(mac);
  }

  attach(link: GuestLink, options: PortOptions): SwitchPort {
    if (isGroupMac(options.mac) || options.mac === 0) {
      throw new ZazenError('ZAZEN_NETWORK_MAC', `${formatMac(options.mac)} is not the address of one network card`, {
        hint: 'the lowest bit of the first byte must be 0, as in 00:16:3e:12:34:56',
      });
    }
    if (!this.isFree(options.mac)) {
      throw new ZazenError('ZAZEN_NETWORK_MAC_IN_USE', `${formatMac(options.mac)} is already on this network`, {
        hint: 'give each network card a MAC address of its own',
      });
    }
    const port = new SwitchPort(this, link, options, this.#scheduler);
    this.#ports.set(port.mac, port);
    return port;
  }

  detach(port: SwitchPort): void {
    this.#ports.delete(port.mac);
    for (const [mac, entry] of this.#learned) if (entry.port === port) this.#learned.delete(mac);
    this.gateway.portClosed(port);
  }

  /** The port where frames for `mac` go. */
  portOf(mac: number): SwitchPort | undefined {
    const port = this.#ports.get(mac);
    if (port !== undefined) return port;
    const learned = this.#learned.get(mac);
    return learned !== undefined && learned.untilMillis > this.#scheduler.nowMillis() ? learned.port : undefined;
  }

  fromPort(port: SwitchPort, frame: Uint8Array, offload: Offload): void {
    if (!this.#isSound(frame, offload)) {
      port.counters.txMalformed++;
      return;
    }
    const source = readMac(frame, 6);
    if (source !== port.mac && !(port.anyMac && this.#learn(source, port))) {
      port.counters.txSpoofed++;
      return;
    }
    port.counters.txFrames++;
    port.counters.txBytes += frame.length;
    this.#capture?.(frame);
    const destination = readMac(frame, 0);
    if (destination === this.gateway.mac) {
      this.gateway.receive(port, frame, offload);
      return;
    }
    const target = isGroupMac(destination) ? undefined : this.portOf(destination);
    if (target !== undefined) {
      if (target !== port) target.deliver(frame, offload);
      return;
    }
    const toAll = isGroupMac(destination);
    for (const other of this.#ports.values()) {
      if (other !== port && (toAll || other.anyMac)) other.deliver(frame, offload);
    }
    if (destination === BROADCAST_MAC) this.gateway.receive(port, frame, offload);
  }

  /** A frame of the gateway, for one port. */
  fromGateway(port: SwitchPort, frame: Uint8Array, offload: Offload): void {
    this.#capture?.(frame);
    port.deliver(frame, offload);
  }

  /** As fromGateway, for a sender that keeps what is refused. */
  offerFromGateway(port: SwitchPort, frame: Uint8Array, offload: Offload): boolean {
    if (!port.offer(frame, offload)) return false;
    this.#capture?.(frame);
    return true;
  }

  #isSound(frame: Uint8Array, offload: Offload): boolean {
    if (frame.length < ETHERNET_HEADER_BYTES || frame.length > MAX_FRAME_BYTES) return false;
    if (offload.gsoType === 'none') return frame.length <= this.#maxPlainBytes;
    return offload.checksumPartial && offload.gsoSize >= MIN_GSO_BYTES && offload.gsoSize < this.#mtuBytes;
  }

  /** False if the address belongs to somebody else, or there is no room to learn it. */
  #learn(mac: number, port: SwitchPort): boolean {
    if (isGroupMac(mac) || mac === this.gateway.mac || this.#ports.has(mac)) return false;
    const nowMillis = this.#scheduler.nowMillis();
    const known = this.#learned.get(mac);
    if (known !== undefined) {
      if (known.port !== port && known.untilMillis > nowMillis) return false;
      known.port = port;
      known.untilMillis = nowMillis + LEARNED_MILLIS;
      return true;
    }
    if (this.#learned.size >= LEARNED_ADDRESSES) {
      for (const [old, entry] of this.#learned) if (entry.untilMillis <= nowMillis) this.#learned.delete(old);
      if (this.#learned.size >= LEARNED_ADDRESSES) return false;
    }
    this.#learned.set(mac, { port, untilMillis: nowMillis + LEARNED_MILLIS });
    return true;
  }
}

/** A token bucket that may be overdrawn by one frame. */
class RateLimit {
  readonly #bytesPerMilli: number;
  readonly #burstBytes: number;
  readonly #scheduler: Scheduler;
  readonly #resume: () => void;
  #tokens: number;
  #atMillis: number;
  #timer: Timer | undefined;

  constructor(bytesPerSecond: number, scheduler: Scheduler, resume: () => void) {
    this.#bytesPerMilli = bytesPerSecond / 1000;
    this.#burstBytes = Math.max(1, this.#bytesPerMilli * BURST_MILLIS);
    this.#scheduler = scheduler;
    this.#resume = resume;
    this.#tokens = this.#burstBytes;
    this.#atMillis = scheduler.nowMillis();
  }

  /** False: nothing taken, and `resume` will be called. */
  take(bytes: number): boolean {
    const nowMillis = this.#scheduler.nowMillis();
    this.#tokens = Math.min(this.#burstBytes, this.#tokens + (nowMillis - this.#atMillis) * this.#bytesPerMilli);
    this.#atMillis = nowMillis;
    if (this.#tokens > 0) {
      this.#tokens -= bytes;
      return true;
    }
    this.#timer ??= this.#scheduler.after(Math.ceil((1 - this.#tokens) / this.#bytesPerMilli), () => {
      this.#timer = undefined;
      this.#resume();
    });
    return false;
  }

  close(): void {
    this.#timer?.cancel();
  }
}
