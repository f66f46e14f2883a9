// The host's end of one ring of a network card. The guest can write anything there at any time, so the position is kept
// in memory that it cannot see, each word of a slot is read once, and a producer that is further ahead than the ring is
// long means "nothing to do" until the guest puts it right. Requests are answered in order, as they are taken: what is
// before the position is the guest's, what is after it was never looked at.

import { GNTST } from '../../abi/xen-grant-table.ts';
import { NETIF_RING_SLOTS, netifSring } from '../../abi/xen-net.ts';
import type { GuestBus, GuestPage } from '../../hypervisor/guest-bus.ts';

const PAGE_BYTES = 4096;
const { at } = netifSring;

export class NetRing {
  /** How often the guest's index could not be. */
  badIndices = 0;
  /** There was no frame for it when it was last to be opened: nobody tells when there is one. */
  isStarved = false;
  readonly ref: number;
  readonly #bus: GuestBus;
  readonly #slotWords: number;
  #page: GuestPage | undefined;
  #words: Uint32Array = new Uint32Array(0);
  #position: number;
  /** Position when the guest was last told how far it is. */
  #published: number;

  /** @param ref the guest's grant of the page @param position of a ring that is gone on with */
  constructor(bus: GuestBus, ref: number, slotBytes: number, position: number) {
    this.#bus = bus;
    this.ref = ref;
    this.#slotWords = slotBytes / 4;
    this.#position = this.#published = position >>> 0;
  }

  /** All requests up to here have been answered. */
  get position(): number {
    return this.#position;
  }

  /** Makes the page usable, until `letGo`. @returns false: the guest does not grant it, or there is no frame for it */
  open(): boolean {
    if (this.#page !== undefined) return true;
    const page = this.#bus.map(this.ref, true);
    this.isStarved = page === GNTST.eagain;
    if (typeof page === 'number') return false;
    this.#page = page;
    const { buffer, byteOffset } = this.#bus.memory;
    this.#words = new Uint32Array(buffer, byteOffset + page.mfn * PAGE_BYTES, PAGE_BYTES / 4);
    return true;
  }

  letGo(): void {
    if (this.#page !== undefined) this.#bus.unmap(this.#page);
    this.#page = undefined;
  }

  // ---- the rest while open

  /** Requests from the position on. */
  waiting(): number {
    const count = (Atomics.load(this.#words, at.req_prod / 4) - this.#position) >>> 0;
    if (count <= NETIF_RING_SLOTS) return count;
    this.badIndices++;
    return 0;
  }

  /** Asks the guest to tell when there are `count` requests. @returns whether there are already */
  awaitRequests(count: number): boolean {
    Atomics.store(this.#words, at.req_event / 4, (this.#position + count) | 0);
    // The guest may have put them there before it could see that.
    return this.waiting() >= count;
  }

  /** A word of the request `ahead` of the position. */
  load(ahead: number, word: number): number {
    return this.#words[this.#wordOf(ahead) + word]!;
  }
  /** A word of the response in its place. */
  store(ahead: number, word: number, value: number): void {
    this.#words[this.#wordOf(ahead) + word] = value;
  }
  #wordOf(ahead: number): number {
    return netifSring.sizeBytes / 4 + ((this.#position + ahead) % NETIF_RING_SLOTS) * this.#slotWords;
  }

  /** So many requests have been answered. */
  advance(count: number): void {
    this.#position = (this.#position + count) >>> 0;
  }

  /** Shows the guest the responses. @returns whether it wants to be told */
  publish(): boolean {
    const before = this.#published;
    if (before === this.#position) return false;
    Atomics.store(this.#words, at.rsp_prod / 4, this.#position);
    this.#published = this.#position;
    const wanted = Atomics.load(this.#words, at.rsp_event / 4);
    return ((this.#position - wanted) >>> 0) < ((this.#position - before) >>> 0);
  }

  /** Whether there are responses that it wants to be told of and has not found by itself. */
  get isTellingDue(): boolean {
    return ((this.#published - Atomics.load(this.#words, at.rsp_event / 4)) | 0) >= 0;
  }
}
