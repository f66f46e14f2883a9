// What the guest receives: frames of the network, copied into pages that it has granted for that in its rx ring. A
// frame goes in whole or not at all; a page that is not granted any more makes it a frame with an error, which the
// guest drops.

import { NETIF_EXTRA_TYPE, NETIF_GSO_TYPE, NETIF_RSP, NETRXF } from '../../abi/xen-net.ts';
import type { GuestBus } from '../../hypervisor/guest-bus.ts';
import type { Offload } from '../../network/frame-port.ts';
import type { NetRing } from './ring.ts';

const PAGE_BYTES = 4096;

export interface ReceiveCounters {
  /** Frames that the guest got with an error. */
  rxErrors: number;
  /** How often there were no buffers. */
  rxStalls: number;
}

export class Receiver {
  readonly ring: NetRing;
  readonly #bus: GuestBus;
  readonly #counters: ReceiveCounters;
  /** Buffers that a frame waits for. */
  #wanted = 0;

  constructor(bus: GuestBus, ring: NetRing, counters: ReceiveCounters) {
    this.#bus = bus;
    this.ring = ring;
    this.#counters = counters;
  }

  /** @returns false: there are not enough buffers, or no ring now; the guest will tell when there are */
  receive(frame: Uint8Array, offload: Offload): boolean {
    const hasExtra = offload.gsoType !== 'none';
    const slots = Math.ceil(frame.length / PAGE_BYTES) + (hasExtra ? 1 : 0);
    if (!this.ring.open() || (this.ring.waiting() < slots && !this.ring.awaitRequests(slots))) {
      this.#wanted = slots;
      this.#counters.rxStalls++;
      return false;
    }
    this.#wanted = 0;
    const first = offload.checksumPartial ? NETRXF.csum_blank | NETRXF.data_validated : 0;
    let isGood = true;
    for (let slot = 0, at = 0; at < frame.length; slot++) {
      const isFirst = slot === 0;
      if (slot === 1 && hasExtra) {
        this.#putExtra(offload);
        continue;
      }
      const end = Math.min(frame.length, at + PAGE_BYTES);
      const more = end < frame.length ? NETRXF.more_data : 0;
      const flags = more | (isFirst ? first | (hasExtra ? NETRXF.extra_info : 0) : 0);
      if (!this.#put(slot, frame.subarray(at, end), flags)) isGood = false;
      at = end;
    }
    // A frame of one page still has its extra slot to come.
    if (hasExtra && frame.length <= PAGE_BYTES) this.#putExtra(offload);
    if (!isGood) this.#counters.rxErrors++;
    this.ring.advance(slots);
    return true;
  }

  /** The ring is open. @returns whether a frame waited, and there are buffers for it now */
  takeReady(): boolean {
    if (this.#wanted === 0) return false;
    if (this.ring.waiting() < this.#wanted && !this.ring.awaitRequests(this.#wanted)) return false;
    this.#wanted = 0;
    return true;
  }

  #put(slot: number, part: Uint8Array, flags: number): boolean {
    const id = this.ring.load(slot, 0) & 0xffff;
    const page = this.#bus.map(this.ring.load(slot, 1), true);
    const isGood = typeof page !== 'number';
    if (isGood) {
      this.#bus.memory.set(part, page.mfn * PAGE_BYTES);
      this.#bus.unmap(page);
    }
    const status = isGood ? part.length : NETIF_RSP.error;
    this.ring.store(slot, 0, id);
    this.ring.store(slot, 1, flags | (status << 16));
    return isGood;
  }

  #putExtra({ gsoType, gsoSize }: Offload): void {
    this.ring.store(1, 0, NETIF_EXTRA_TYPE.gso | (gsoSize << 16));
    this.ring.store(1, 1, gsoType === 'tcpv4' ? NETIF_GSO_TYPE.tcpv4 : NETIF_GSO_TYPE.tcpv6);
  }
}
