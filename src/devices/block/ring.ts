// The host's end of a block ring. The guest can write anything there at any time, so indices of our own are kept in memory
// that it cannot see, each slot is copied before it is looked at, and a producer that is further ahead than the ring is
// long means "nothing to do" until the guest puts it right.

import { blkifRequest, blkifResponse, blkifRingSlots, blkifSring } from '../../abi/xen-block.ts';

const PAGE_BYTES = 4096;
const { at } = blkifSring;
const SLOT_BYTES = blkifRequest.sizeBytes;

export class BlockRing {
  readonly slots: number;
  /** How often the guest's index could not be. */
  badIndices = 0;
  readonly #pages: readonly Uint8Array[];
  readonly #header: Uint32Array;
  readonly #response = new Uint8Array(blkifResponse.sizeBytes);
  readonly #responseView = new DataView(this.#response.buffer);
  #consumed: number;
  #responded: number;

  /** @param pages of the ring, as the guest sees them, in order @param position of a ring that is gone on with */
  constructor(pages: readonly Uint8Array[], position: number) {
    this.#pages = pages;
    this.slots = blkifRingSlots(pages.length * PAGE_BYTES);
    this.#header = new Uint32Array(pages[0]!.buffer, pages[0]!.byteOffset, blkifSring.sizeBytes / 4);
    this.#consumed = this.#responded = position >>> 0;
  }

  /** Somebody else has answered requests meanwhile. While none is taken. */
  goOnAt(position: number): void {
    this.#consumed = this.#responded = position >>> 0;
  }
  /** All requests up to here have been answered; what comes after is still in the ring. */
  get position(): number {
    return this.#responded;
  }
  /** Requests that were taken and not answered. */
  get taken(): number {
    return (this.#consumed - this.#responded) >>> 0;
  }

  /**
   * Copies the next request. When there is none, the guest is asked to tell of the next one.
   * @returns whether there was one
   */
  take(into: Uint8Array): boolean {
    if (!this.peek(into)) return false;
    this.advance();
    return true;
  }

  /** As `take`, and the request stays in the ring; what it is may be another thing the next time. */
  peek(into: Uint8Array): boolean {
    if (this.taken >= this.slots || !this.#hasRequest()) return false;
    this.#copy((this.#consumed % this.slots) * SLOT_BYTES + blkifSring.sizeBytes, into);
    return true;
  }
  advance(): void {
    this.#consumed = (this.#consumed + 1) >>> 0;
  }
  /** Requests that are there to be taken. */
  get waiting(): number {
    return this.#waiting();
  }

  #hasRequest(): boolean {
    if (this.#waiting() > 0) return true;
    Atomics.store(this.#header, at.req_event / 4, this.#consumed + 1);
    // The guest may have put one there before it could see that.
    return this.#waiting() > 0;
  }

  #waiting(): number {
    const produced = Atomics.load(this.#header, at.req_prod / 4);
    const count = (produced - this.#consumed) >>> 0;
    // What was taken and not answered still has its slot.
    if (count + this.taken <= this.slots) return count;
    this.badIndices++;
    return 0;
  }

  /** @returns whether the guest wants to be told */
  respond(idLow: number, idHigh: number, operation: number, status: number): boolean {
    const view = this.#responseView;
    view.setUint32(blkifResponse.at.id, idLow, true);
    view.setUint32(blkifResponse.at.id + 4, idHigh, true);
    view.setUint8(blkifResponse.at.operation, operation);
    view.setInt16(blkifResponse.at.status, status, true);
    this.#put((this.#responded % this.slots) * SLOT_BYTES + blkifSring.sizeBytes, this.#response);
    const before = this.#responded;
    this.#responded = (before + 1) >>> 0;
    Atomics.store(this.#header, at.rsp_prod / 4, this.#responded);
    const wanted = Atomics.load(this.#header, at.rsp_event / 4);
    return ((this.#responded - wanted) >>> 0) < 1;
  }

  #copy(offset: number, into: Uint8Array): void {
    for (let done = 0; done < into.length;) {
      const inPage = (offset + done) % PAGE_BYTES;
      const bytes = Math.min(into.length - done, PAGE_BYTES - inPage);
      into.set(this.#pages[Math.floor((offset + done) / PAGE_BYTES)]!.subarray(inPage, inPage + bytes), done);
      done += bytes;
    }
  }

  #put(offset: number, from: Uint8Array): void {
    for (let done = 0; done < from.length;) {
      const inPage = (offset + done) % PAGE_BYTES;
      const bytes = Math.min(from.length - done, PAGE_BYTES - inPage);
      this.#pages[Math.floor((offset + done) / PAGE_BYTES)]!.set(from.subarray(done, done + bytes), inPage);
      done += bytes;
    }
  }
}
