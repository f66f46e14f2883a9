// Regions that are compiled before a guest needs them: those that the last guest needed while it booted. A pCPU enters one as
// soon as it decodes the place where it begins, if all of its instructions stand around that: no sample, and no message.
//
//   word at its entry, place in the page ─► candidates, best first ─► all words agree ─► number in the table

import type { StoredRegion } from './region-store.ts';
import { placeHash } from './region-store.ts';

/** The regions, as a thread sends them to others. */
export interface PackedRegions {
  /** Number in the table of the first; the others follow. */
  readonly firstIndex: number;
  /** Of each: its entry, and how many instructions it has. */
  readonly heads: Uint16Array;
  /** Places of the instructions of all in their pages, and the instructions. */
  readonly indices: Uint16Array;
  readonly words: Uint32Array;
  /** Of each, shared by all threads: `ENTERED` when it was entered anywhere. */
  readonly entered: Uint8Array;
}

/** Who looks may write another number, and sees it again when the region is entered once more. */
export const ENTERED = 1;

const TABLE_FACTOR = 4;
const FILTER_BITS = 16;

/** @param regions where several begin at one place, the best first */
export function packRegions(regions: readonly StoredRegion[], firstIndex: number): PackedRegions {
  return {
    firstIndex,
    heads: Uint16Array.from(regions.flatMap(({ entry, indices }) => [entry, indices.length])),
    indices: Uint16Array.from(regions.flatMap(({ indices }) => indices)),
    words: Uint32Array.from(regions.flatMap(({ words }) => [...words])),
    entered: new Uint8Array(new SharedArrayBuffer(regions.length)),
  };
}

export class KnownRegions {
  readonly #packed: PackedRegions;
  /** Of each region: where its instructions begin in `indices` and `words`; and the end of the last one's. */
  readonly #starts: Uint32Array;
  readonly #entryWords: Uint32Array;
  /** By hash of place and word, open addressing: 1 + the first region that begins so; 0: none. */
  readonly #table: Uint32Array;
  /** Of a region: 1 + the next one that begins like it. */
  readonly #next: Uint32Array;
  /** A bit by the same hash, set where a region may begin: most that is asked for is nowhere, and this stays in the cache. */
  readonly #filter = new Uint32Array(1 << (FILTER_BITS - 5));

  constructor(packed: PackedRegions) {
    this.#packed = packed;
    const count = packed.heads.length / 2;
    this.#starts = new Uint32Array(count + 1);
    this.#entryWords = new Uint32Array(count);
    this.#next = new Uint32Array(count);
    let size = 64;
    while (size < count * TABLE_FACTOR) size *= 2;
    this.#table = new Uint32Array(size);
    for (let region = 0; region < count; region++) {
      const start = this.#starts[region]!;
      const end = this.#starts[region + 1] = start + packed.heads[2 * region + 1]!;
      this.#entryWords[region] = packed.words[start + packed.indices.subarray(start, end).indexOf(packed.heads[2 * region]!)]!;
    }
    for (let region = count - 1; region >= 0; region--) {
      const hash = placeHash(packed.heads[2 * region]!, this.#entryWords[region]!) >>> (32 - FILTER_BITS);
      this.#filter[hash >>> 5]! |= 1 << (hash & 31);
      const place = this.#placeOf(packed.heads[2 * region]!, this.#entryWords[region]!);
      this.#next[region] = this.#table[place]!;
      this.#table[place] = region + 1;
    }
  }

  #placeOf(index: number, word: number): number {
    const mask = this.#table.length - 1;
    for (let place = placeHash(index, word) & mask;; place = (place + 1) & mask) {
      const region = this.#table[place]! - 1;
      if (region < 0 || (this.#entryWords[region] === word && this.#packed.heads[2 * region] === index)) return place;
    }
  }

  /** Whether any region might begin there: of a hundred places, one. */
  begins(index: number, word: number): boolean {
    const hash = placeHash(index, word) >>> (32 - FILTER_BITS);
    return (this.#filter[hash >>> 5]! & (1 << (hash & 31))) !== 0 && this.#table[this.#placeOf(index, word)] !== 0;
  }
  /**
   * The best region that begins at a place of a page.
   * @param first place of the page's first word in `words`
   * @returns its number among these; -1: there is none
   */
  find(index: number, words: Uint32Array, first: number): number {
    let region = this.#table[this.#placeOf(index, words[first + index]!)]! - 1;
    while (region >= 0 && !this.#agrees(region, words, first)) region = this.#next[region]! - 1;
    return region;
  }
  #agrees(region: number, words: Uint32Array, first: number): boolean {
    const { indices, words: own } = this.#packed;
    for (let i = this.#starts[region]!; i < this.#starts[region + 1]!; i++) if (words[first + indices[i]!] !== own[i]) return false;
    return true;
  }

  /** Places of its instructions. */
  indicesOf(region: number): Uint16Array {
    return this.#packed.indices.subarray(this.#starts[region]!, this.#starts[region + 1]!);
  }
  /** Its number in the table, now that it is entered. */
  enter(region: number): number {
    this.#packed.entered[region] = ENTERED;
    return this.#packed.firstIndex + region;
  }
}
