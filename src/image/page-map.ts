// The page map: for each page of the guest's memory whether it is zero, stored in this file, or the parent's. Two bits
// a page, from the low bits of each byte up, banks one after the other; bits behind the last page are zero.
//
// The checksums of stored pages lie packed in the same order, so a page's checksum is found by its rank: the number of
// stored pages before it, which is known for every 1024th page and counted from there.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { PAGE_STATE } from './format.ts';
import type { Bank, PageState, PageStretch } from './format.ts';

const PAGES_PER_BYTE = 4;
const RANK_BYTES = 256;
const STATES: readonly (PageState | undefined)[] = ['zero', 'stored', 'parent', undefined];
const { stored: STORED, parent: PARENT } = PAGE_STATE;

/** By byte: how many of its pages are stored, and whether all four states are valid. */
const storedIn = new Uint8Array(256);
const isValid = new Uint8Array(256);
for (let byte = 0; byte < 256; byte++) {
  const states = [0, 2, 4, 6].map((shift) => (byte >>> shift) & 3);
  storedIn[byte] = states.filter((state) => state === STORED).length;
  isValid[byte] = states.includes(3) ? 0 : 1;
}

export class PageMap {
  readonly bytes: Uint8Array;
  readonly pageCount: number;
  readonly #banks: readonly { readonly firstGfn: number; readonly endGfn: number; readonly firstPage: number }[];
  #ranks: Uint32Array | undefined;

  constructor(banks: readonly Bank[], bytes?: Uint8Array) {
    let page = 0;
    this.#banks = banks.map(({ guestAddress, sizeBytes }) => {
      const firstGfn = guestAddress / FRAME_BYTES;
      const count = sizeBytes / FRAME_BYTES;
      const bank = { firstGfn, endGfn: firstGfn + count, firstPage: page };
      page += count;
      return bank;
    });
    this.pageCount = page;
    this.bytes = bytes ?? new Uint8Array(PageMap.sizeBytes(page));
    assert(this.bytes.length === PageMap.sizeBytes(page), 'page map of another size');
  }

  static sizeBytes(pageCount: number): number {
    return Math.ceil(pageCount / PAGES_PER_BYTE);
  }

  /** Whether bytes from a file hold only the three states, and nothing behind the last page. */
  isWellFormed(): boolean {
    const used = this.pageCount % PAGES_PER_BYTE;
    if (used !== 0 && this.bytes.at(-1)! >>> (2 * used) !== 0) return false;
    for (const byte of this.bytes) if (isValid[byte] !== 1) return false;
    return true;
  }

  /** Index of a guest page among all pages, or -1 if no bank holds it. */
  pageOf(gfn: number): number {
    for (const { firstGfn, endGfn, firstPage } of this.#banks) {
      if (gfn >= firstGfn && gfn < endGfn) return firstPage + gfn - firstGfn;
    }
    return -1;
  }

  #stateAt(page: number): number {
    return (this.bytes[page >>> 2]! >>> (2 * (page & 3))) & 3;
  }

  state(gfn: number): PageState | undefined {
    const page = this.pageOf(gfn);
    return page < 0 ? undefined : STATES[this.#stateAt(page)];
  }

  /** Only from zero, while an image is written. */
  mark(gfn: number, state: 'stored' | 'parent'): void {
    const page = this.pageOf(gfn);
    this.bytes[page >>> 2]! |= (state === 'stored' ? STORED : PARENT) << (2 * (page & 3));
  }

  /** The number of stored pages before this page of all pages; with `pageCount`, of all. */
  rank(page: number): number {
    this.#ranks ??= this.#countRanks();
    const byte = page >>> 2;
    const block = Math.floor(byte / RANK_BYTES);
    let rank = this.#ranks[block]!;
    for (let i = block * RANK_BYTES; i < byte; i++) rank += storedIn[this.bytes[i]!]!;
    for (let p = byte * PAGES_PER_BYTE; p < page; p++) if (this.#stateAt(p) === STORED) rank++;
    return rank;
  }

  #countRanks(): Uint32Array {
    const ranks = new Uint32Array(Math.floor(this.bytes.length / RANK_BYTES) + 1);
    let rank = 0;
    for (let i = 0; i < this.bytes.length; i++) {
      if (i % RANK_BYTES === 0) ranks[i / RANK_BYTES] = rank;
      rank += storedIn[this.bytes[i]!]!;
    }
    if (this.bytes.length % RANK_BYTES === 0) ranks[this.bytes.length / RANK_BYTES] = rank;
    return ranks;
  }

  /** Stretches of equal state, in ascending order, of the pages of all banks or of a range of GFNs. */
  *stretches(gfn = 0, count = Infinity): Generator<PageStretch> {
    for (const { firstGfn, endGfn, firstPage } of this.#banks) {
      const first = firstPage + Math.max(gfn, firstGfn) - firstGfn;
      const end = firstPage + Math.min(gfn + count, endGfn) - firstGfn;
      for (let page = first; page < end;) {
        const state = this.#stateAt(page);
        const next = this.#endOfStretch(page, end, state);
        yield { gfn: firstGfn + page - firstPage, count: next - page, state: STATES[state]! };
        page = next;
      }
    }
  }

  #endOfStretch(page: number, end: number, state: number): number {
    const whole = state * 0x55; // the state in all four places
    while (page < end) {
      if ((page & 3) === 0 && page + 4 <= end && this.bytes[page >>> 2] === whole) page += 4;
      else if (this.#stateAt(page) === state) page++;
      else break;
    }
    return page;
  }
}
