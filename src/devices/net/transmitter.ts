// What the guest sends: frames out of its tx ring, copied and checked, to the network. Each is looked at once:
//
//   slots ──words read once──► chain ──checked──► granted pages ──copied──► frame ──► network ──► responses
//
// A frame that the network does not take now stays in the ring. One that is none (slots that do not end, sizes that do
// not add up, pages that are not granted, offloads that nobody knows) is answered with an error, slot for slot.

import {
  NETIF_EXTRA_FLAG_MORE, NETIF_EXTRA_TYPE, NETIF_GSO_TYPE, NETIF_RING_SLOTS, NETIF_RSP, NETIF_SLOTS_MAX, NETTXF,
} from '../../abi/xen-net.ts';
import type { GuestBus } from '../../hypervisor/guest-bus.ts';
import { CHECKSUM_PARTIAL, NO_OFFLOAD } from '../../network/frame-port.ts';
import type { Offload } from '../../network/frame-port.ts';
import type { NetRing } from './ring.ts';

const PAGE_BYTES = 4096;
const ETHERNET_HEADER_BYTES = 14;
const FRAME_BYTES_MAX = 65536;
/** Done in one turn of the event loop: a guest that never stops sending must not hold the host's thread. */
const FRAMES_PER_TURN = 128;
const BYTES_PER_TURN = 1 << 20;

export interface TransmitCounters {
  /** Frames answered with an error. */
  txErrors: number;
  /** How often the network took no frame. */
  txStalls: number;
}

/** One buffer for all: a frame is sent before the next one is copied. */
const buffer = new Uint8Array(FRAME_BYTES_MAX);

export class Transmitter {
  readonly ring: NetRing;
  readonly #bus: GuestBus;
  readonly #counters: TransmitCounters;
  readonly #send: (frame: Uint8Array, offload: Offload) => boolean;
  // The frame at the front of the ring: its slots, those of them with data, and what is to be done.
  readonly #ids = new Uint16Array(NETIF_RING_SLOTS);
  readonly #isExtra = new Uint8Array(NETIF_RING_SLOTS);
  readonly #refs = new Uint32Array(NETIF_SLOTS_MAX);
  readonly #offsets = new Uint16Array(NETIF_SLOTS_MAX);
  readonly #sizes = new Uint32Array(NETIF_SLOTS_MAX);
  #slots = 0;
  #parts = 0;
  #offload: Offload = NO_OFFLOAD;
  /** Longest frame of the latest `service`. */
  longestBytes = 0;

  constructor(
    bus: GuestBus, ring: NetRing, counters: TransmitCounters, send: (frame: Uint8Array, offload: Offload) => boolean,
  ) {
    this.#bus = bus;
    this.ring = ring;
    this.#counters = counters;
    this.#send = send;
  }

  /**
   * Sends what is in the ring, which is open.
   * @returns `empty`: the guest will tell of the next frame; `stalled`: the network will; `more`: call again
   */
  service(): 'empty' | 'stalled' | 'more' {
    let frames = FRAMES_PER_TURN;
    let bytes = BYTES_PER_TURN;
    this.longestBytes = 0;
    while (frames-- > 0 && bytes > 0) {
      let waiting = this.ring.waiting();
      if (waiting === 0) {
        if (!this.ring.awaitRequests(1)) return 'empty';
        waiting = this.ring.waiting();
        if (waiting === 0) return 'empty';
      }
      const sizeBytes = this.#readChain(waiting) ? this.#copyParts() : 0;
      if (sizeBytes > 0 && !this.#send(buffer.subarray(0, sizeBytes), this.#offload)) {
        this.#counters.txStalls++;
        return 'stalled';
      }
      if (sizeBytes > this.longestBytes) this.longestBytes = sizeBytes;
      if (sizeBytes === 0) this.#counters.txErrors++;
      this.#respond(sizeBytes > 0 ? NETIF_RSP.okay : NETIF_RSP.error);
      bytes -= sizeBytes;
    }
    return 'more';
  }

  /** Reads the slots of the next frame. @returns false when they are none; `#slots` are to be answered all the same */
  #readChain(waiting: number): boolean {
    let isGood = true;
    let flags = 0;
    this.#slots = this.#parts = 0;
    do {
      if (this.#slots === waiting) return false;
      const ref = this.ring.load(this.#slots, 0);
      const place = this.ring.load(this.#slots, 1);
      const idAndSize = this.ring.load(this.#slots, 2);
      const isFirst = this.#slots === 0;
      flags = place >>> 16;
      this.#ids[this.#slots] = idAndSize;
      this.#isExtra[this.#slots++] = 0;
      if (this.#parts === NETIF_SLOTS_MAX) isGood = false;
      else {
        this.#refs[this.#parts] = ref;
        this.#offsets[this.#parts] = place;
        this.#sizes[this.#parts++] = idAndSize >>> 16;
      }
      if (isFirst) {
        this.#offload = (flags & NETTXF.csum_blank) !== 0 ? CHECKSUM_PARTIAL : NO_OFFLOAD;
        if ((flags & NETTXF.extra_info) !== 0 && !this.#readExtras(waiting)) isGood = false;
      } else if ((flags & NETTXF.extra_info) !== 0) isGood = false;
    } while ((flags & NETTXF.more_data) !== 0);
    return isGood;
  }

  #readExtras(waiting: number): boolean {
    let isGood = true;
    for (let more = true; more;) {
      if (this.#slots === waiting) return false;
      const head = this.ring.load(this.#slots, 0);
      const gsoType = this.ring.load(this.#slots, 1) & 0xff;
      this.#isExtra[this.#slots++] = 1;
      const gsoSize = head >>> 16;
      more = ((head >>> 8) & NETIF_EXTRA_FLAG_MORE) !== 0;
      const isKnown = gsoType === NETIF_GSO_TYPE.tcpv4 || gsoType === NETIF_GSO_TYPE.tcpv6;
      if ((head & 0xff) !== NETIF_EXTRA_TYPE.gso || !isKnown || gsoSize === 0) {
        isGood = false;
        continue;
      }
      const name = gsoType === NETIF_GSO_TYPE.tcpv4 ? 'tcpv4' : 'tcpv6';
      this.#offload = { checksumPartial: this.#offload.checksumPartial, gsoSize, gsoType: name };
    }
    return isGood;
  }

  /** @returns bytes of the frame; 0: it is none */
  #copyParts(): number {
    const sizeBytes = this.#sizes[0]!;
    let first = sizeBytes;
    for (let part = 1; part < this.#parts; part++) first -= this.#sizes[part]!;
    if (first <= 0 || sizeBytes < ETHERNET_HEADER_BYTES) return 0;
    this.#sizes[0] = first;
    let at = 0;
    for (let part = 0; part < this.#parts; part++) {
      const partBytes = this.#sizes[part]!;
      if (this.#offsets[part]! + partBytes > PAGE_BYTES || !this.#copyPart(part, at)) return 0;
      at += partBytes;
    }
    return sizeBytes;
  }

  #copyPart(part: number, at: number): boolean {
    const page = this.#bus.map(this.#refs[part]!, false);
    if (typeof page === 'number') return false;
    const start = page.mfn * PAGE_BYTES + this.#offsets[part]!;
    buffer.set(this.#bus.memory.subarray(start, start + this.#sizes[part]!), at);
    this.#bus.unmap(page);
    return true;
  }

  #respond(status: number): void {
    for (let slot = 0; slot < this.#slots; slot++) {
      const word = this.#isExtra[slot] === 1 ? NETIF_RSP.null << 16 : this.#ids[slot]! | (status << 16);
      this.ring.store(slot, 0, word);
    }
    this.ring.advance(this.#slots);
  }
}
