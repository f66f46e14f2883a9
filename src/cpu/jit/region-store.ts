// Regions that were emitted before, by this process or by others: found by the instructions that they were made of.
//
//   word at its entry, place in the page ─► candidates ─► all words agree ─► the emitted function
//
// Emitted code depends on nothing but the instructions, the emitter, and what the process was started with, so a region is
// good wherever all of its instructions stand at the same places of a page. Where the regions lie (files, or nowhere) is
// the host's; it sees to it that they are of this emitter.

import type { FunctionBody } from '../../wasm/function.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';
import type { Region } from './region.ts';

/** What a region was made of, and what became of it. */
export interface StoredRegion {
  /** Place in the page at which it begins. */
  readonly entry: number;
  /** Places of all its instructions in the page, ascending, and the instructions. */
  readonly indices: readonly number[];
  readonly words: Uint32Array;
  /** Calls were followed: it was hot for long. */
  readonly followsCalls: boolean;
  /** @returns undefined when it cannot be had any more */
  readonly body: () => FunctionBody | undefined;
}

/** Where nine of ten places are free, most words need one look to be told from those at which a region begins. */
const TABLE_FACTOR = 8;

/** Of a word that stands at a place. */
export const placeHash = (index: number, word: number): number => Math.imul(word ^ Math.imul(index + 1, 0x85eb_ca6b), 0x9e37_79b1) >>> 0;

/** 53 bits, the same in all processes; two regions that have the same by chance are taken for one, and one of them is not kept. */
export function identityOf({ entry, indices, words, followsCalls }: StoredRegion): number {
  let [a, b] = [entry, followsCalls ? entry : ~entry];
  indices.forEach((index, i) => {
    a = Math.imul(a ^ placeHash(index, words[i]!), 0x85eb_ca6b) ^ (a >>> 13);
    b = Math.imul(b ^ words[i]!, 0xc2b2_ae35) ^ (b >>> 16) ^ index;
  });
  return (a >>> 0) * 2 ** 21 + (b >>> 11);
}

/** Whether a page has all of a region's instructions. @param first place of the page's first word in `words` */
export function agrees({ indices, words }: StoredRegion, page: Uint32Array, first = 0): boolean {
  for (let i = 0; i < indices.length; i++) if (page[first + indices[i]!] !== words[i]) return false;
  return true;
}

/** Of regions that begin at the same place: with calls first, large ones first. */
export const byWorth = (a: StoredRegion, b: StoredRegion): number =>
  Number(b.followsCalls) - Number(a.followsCalls) || b.indices.length - a.indices.length;
const isBetter = (a: StoredRegion, b: StoredRegion | undefined): boolean => b === undefined || byWorth(a, b) < 0;

export class RegionStore {
  /** By hash, open addressing: 1 + index into `#regions` of the first one with the same entry and word there; 0: none. */
  #table = new Uint32Array(256);
  readonly #regions: StoredRegion[] = [];
  /** Of each, the word at its entry. */
  readonly #entryWords: number[] = [];
  /** Of a region: 1 + index of the next one with the same entry and word there. */
  readonly #next: number[] = [];
  readonly #used = new Set<StoredRegion>();
  readonly #lost = new Set<StoredRegion>();
  #fresh: StoredRegion[] = [];
  /** What was ever in `#fresh`, by `identityOf`. */
  readonly #added = new Set<number>();
  #keepsNew = true;

  /** Regions that can be found. */
  get size(): number { return this.#regions.length; }
  /** Those that this process has made use of. */
  get used(): ReadonlySet<StoredRegion> { return this.#used; }
  /** Whether `takeFresh` has something to give. */
  get hasFresh(): boolean { return this.#fresh.length > 0; }

  /** Has a region be found. */
  learn(region: StoredRegion): void {
    if (this.#regions.length * TABLE_FACTOR >= this.#table.length) this.#grow();
    this.#regions.push(region);
    this.#entryWords.push(region.words[region.indices.indexOf(region.entry)]!);
    this.#next.push(0);
    this.#insert(this.#regions.length);
  }
  #grow(): void {
    this.#table = new Uint32Array(this.#table.length * 2);
    this.#next.fill(0);
    for (let number = 1; number <= this.#regions.length; number++) this.#insert(number);
  }
  #insert(number: number): void {
    const place = this.#placeOf(this.#regions[number - 1]!.entry, this.#entryWords[number - 1]!);
    const known = this.#table[place]!;
    if (known === 0) this.#table[place] = number;
    else {
      this.#next[number - 1] = this.#next[known - 1]!;
      this.#next[known - 1] = number;
    }
  }
  /** Where in the table those with this entry and word are, or would be. */
  #placeOf(entry: number, word: number): number {
    const mask = this.#table.length - 1;
    for (let place = placeHash(entry, word) & mask;; place = (place + 1) & mask) {
      const number = this.#table[place]!;
      if (number === 0) return place;
      if (this.#entryWords[number - 1] === word && this.#regions[number - 1]!.entry === entry) return place;
    }
  }

  /** All that can be found. */
  get regions(): readonly StoredRegion[] { return this.#regions; }

  /** Regions that begin at a place with this word. */
  *candidates(entry: number, word: number): Generator<StoredRegion> {
    for (let number = this.#table[this.#placeOf(entry, word)]!; number !== 0; number = this.#next[number - 1]!) {
      yield this.#regions[number - 1]!;
    }
  }
  /** Places of a page at which regions might begin. @param first place of the page's first word in `words` */
  entriesIn(words: Uint32Array, first = 0): number[] {
    const entries: number[] = [];
    for (let index = 0; index < PAGE_INSTRUCTIONS; index++) {
      if (this.#table[this.#placeOf(index, words[first + index]!)] !== 0) entries.push(index);
    }
    return entries;
  }

  /** The best region that begins at a place of a page: with calls, large. @param first place of the page's first word in `words` */
  find(entry: number, words: Uint32Array, first = 0): StoredRegion | undefined {
    let found: StoredRegion | undefined;
    for (const region of this.candidates(entry, words[first + entry]!)) {
      if (!this.#lost.has(region) && isBetter(region, found) && agrees(region, words, first)) found = region;
    }
    return found;
  }

  /** A region's emitted function is wanted. @returns undefined when it cannot be had any more */
  take(region: StoredRegion): FunctionBody | undefined {
    const body = region.body();
    if (body === undefined) this.#lost.add(region);
    return body;
  }
  /** It is entered. */
  use(region: StoredRegion): void {
    this.#used.add(region);
  }

  /**
   * A region has been emitted. Of one page only: of what stands in others nothing is known when a place is looked at.
   * @param followsCalls as it was formed
   */
  add({ pages, blocks, entry: { start: entry } }: Region, body: FunctionBody, followsCalls: boolean): void {
    if (!this.#keepsNew || pages.length > 1) return;
    // A function that is called more than once is in it as often.
    const byIndex = new Map(blocks.flatMap(block => block.instructions).map(({ index, word }) => [index, word]));
    const indices = [...byIndex.keys()].toSorted((a, b) => a - b);
    const words = Uint32Array.from(indices, index => byIndex.get(index)!);
    const region = { entry, indices, words, followsCalls, body: () => body };
    const identity = identityOf(region);
    // All regions may have been given up in the meantime, and this one emitted again.
    if (this.#added.has(identity)) return;
    this.#added.add(identity);
    for (const known of this.candidates(entry, byIndex.get(entry)!)) if (!this.#lost.has(known) && identityOf(known) === identity) return;
    this.#fresh.push(region);
  }
  /** Those that were added since `takeFresh` was last called. */
  get fresh(): readonly StoredRegion[] { return this.#fresh; }
  /** Regions that were added since the last call. */
  takeFresh(): readonly StoredRegion[] {
    const fresh = this.#fresh;
    this.#fresh = [];
    return fresh;
  }
  /** Nobody can take what is new. */
  keepNoNew(): void {
    this.#keepsNew = false;
    this.#fresh = [];
  }
}
