// The page map: for each page of the guest's memory whether it is zero, stored in this file, or the parent's. Two bits
// a page, from the low bits of each byte up, banks one after the other; bits behind the last page are zero.
//
// The checksums of stored pages lie packed in the same order, so a page's checksum is found by its rank: the number of
// stored pages before it, which is known for every 256th page and counted from there. What goes through all of the map goes by
// words of sixteen pages: most of them are all zero, or all stored.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { PAGE_STATE } from './format.ts';
import type { Bank, PageState, PageStretch } from './format.ts';

const PAGES_PER_BYTE = 4;
const PAGES_PER_WORD = 16;
/** The rank is known of the first page of each so many words. */
const RANK_WORDS = 16;
/** The low bits of all pages of a word: so it is when all are stored. */
const LOW_BITS = 0x5555_5555;
const STATES: readonly (PageState | undefined)[] = ['zero', 'stored', 'parent', undefined];
const { stored: STORED, parent: PARENT } = PAGE_STATE;

/** How many pages of a word are stored. */
function storedIn(word: number): number {
  if (word === 0) return 0;
  if (word === LOW_BITS) return PAGES_PER_WORD;
  let bits = word & ~(word >>> 1) & LOW_BITS;
  bits = (bits & 0x3333_3333) + ((bits >>> 2) & 0x3333_3333);
  bits = (bits + (bits >>> 4)) & 0x0f0f_0f0f;
  return Math.imul(bits, 0x0101_0101) >>> 24;
}

export class PageMap {
  readonly bytes: Uint8Array;
  readonly pageCount: number;
  readonly #banks: readonly { readonly firstGfn: number; readonly endGfn: number; readonly firstPage: number }[];
  readonly #words: Uint32Array;
  #ranks: Uint32Array | undefined;

  /** @param bytes that stay as they are; default: all zero, to be marked */
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
    const sizeBytes = PageMap.sizeBytes(page);
    assert(bytes === undefined || bytes.length === sizeBytes, 'page map of another size');
    // Whole words; what is behind the last page in them is zero.
    this.#words = new Uint32Array(Math.ceil(page / PAGES_PER_WORD));
    this.bytes = new Uint8Array(this.#words.buffer, 0, sizeBytes);
    if (bytes !== undefined) this.bytes.set(bytes);
  }

  static sizeBytes(pageCount: number): number {
    return Math.ceil(pageCount / PAGES_PER_BYTE);
  }

  /** Whether bytes from a file hold only the three states, and nothing behind the last page. */
  isWellFormed(): boolean {
    const used = this.pageCount % PAGES_PER_BYTE;
    if (used !== 0 && this.bytes.at(-1)! >>> (2 * used) !== 0) return false;
    for (const word of this.#words) if ((word & (word >>> 1) & LOW_BITS) !== 0) return false;
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

  /** Whether all of some pages, at least one, are stored in this file. */
  areStored(gfn: number, count: number): boolean {
    const page = this.pageOf(gfn);
    return page >= 0 && this.pageOf(gfn + count - 1) === page + count - 1 && this.#endOfStretch(page, page + count, STORED) === page + count;
  }

  /** Only from zero, while an image is written. */
  mark(gfn: number, state: 'stored' | 'parent'): void {
    const page = this.pageOf(gfn);
    this.bytes[page >>> 2]! |= (state === 'stored' ? STORED : PARENT) << (2 * (page & 3));
  }

  /** The number of stored pages before this page of all pages; with `pageCount`, of all. */
  rank(page: number): number {
    this.#ranks ??= this.#countRanks();
    const last = Math.floor(page / PAGES_PER_WORD);
    const block = Math.floor(last / RANK_WORDS);
    let rank = this.#ranks[block]!;
    for (let i = block * RANK_WORDS; i < last; i++) rank += storedIn(this.#words[i]!);
    const rest = page % PAGES_PER_WORD;
    return rest === 0 ? rank : rank + storedIn(this.#words[last]! & (2 ** (2 * rest) - 1));
  }

  #countRanks(): Uint32Array {
    const words = this.#words;
    const ranks = new Uint32Array(Math.floor(words.length / RANK_WORDS) + 1);
    let rank = 0;
    for (let i = 0; i < words.length; i++) {
      if (i % RANK_WORDS === 0) ranks[i / RANK_WORDS] = rank;
      rank += storedIn(words[i]!);
    }
    if (words.length % RANK_WORDS === 0) ranks[words.length / RANK_WORDS] = rank;
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
    const whole = state * LOW_BITS; // the state in all places
    while (page < end) {
      if (page % PAGES_PER_WORD === 0 && page + PAGES_PER_WORD <= end && this.#words[page / PAGES_PER_WORD] === whole) page += PAGES_PER_WORD;
      else if (this.#stateAt(page) === state) page++;
      else break;
    }
    return page;
  }
}
