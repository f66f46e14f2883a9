// Pages by what is in them: a number for each content, and its regions.
//
// A page that holds the same code as one before it (a restored or another guest's, a library loaded again) gets all of
// that one's regions as soon as one place in it is asked for, instead of each when it has become hot once more.

import { createHash } from 'node:crypto';
import type { CodePage } from '../decode-cache.ts';
import type { RegionPage } from './region.ts';

/** Contents remembered at most, 4 KiB each: then all are forgotten. */
const CONTENTS_MAX = 4096;
/** Pages that regions were given to, likewise. */
const SERVED_MAX = 1 << 16;

/** Of a region: where it begins in its page, the places of all its instructions there, its pages, and its number. */
export interface PlacedEntry {
  readonly index: number;
  readonly indices: readonly number[];
  readonly pages: readonly RegionPage[];
  readonly followsCalls: boolean;
  readonly tableIndex: number;
}

export interface Content {
  readonly words: Uint32Array;
  /**
   * 64 bits, from the words alone: equal numbers, equal words. 0n, which is none, where another content has got the number.
   */
  readonly number: bigint;
  readonly entries: Map<number, PlacedEntry>;
}

/** Of a hash to which nobody can make a second page: else a guest might have others run its code. */
function hashOf(words: Uint32Array): bigint {
  return createHash('sha256').update(words).digest().readBigUInt64LE() || 1n;
}
const isEqual = (a: Uint32Array, b: Uint32Array): boolean => a.every((word, i) => word === b[i]);

export class PageContents {
  readonly #byHash = new Map<bigint, Content[]>();
  #count = 0;
  /** How many of its content's entries a page has been given. */
  readonly #served = new Map<string, number>();

  clear(): void {
    this.#byHash.clear();
    this.#served.clear();
    this.#count = 0;
  }

  /** What is known of a page with these words; later additions show in it. */
  of(words: Uint32Array): Content {
    if (this.#count >= CONTENTS_MAX) this.clear();
    const hash = hashOf(words);
    const same = this.#byHash.get(hash) ?? [];
    const known = same.find(content => isEqual(content.words, words));
    if (known !== undefined) return known;
    const content = { words, number: same.length === 0 ? hash : 0n, entries: new Map<number, PlacedEntry>() };
    same.push(content);
    this.#byHash.set(hash, same);
    this.#count++;
    return content;
  }

  /** @returns those entries that this page, as it is now, has not been given yet: it is given them */
  take({ slot, version, generation }: CodePage, entries: ReadonlyMap<number, PlacedEntry>): PlacedEntry[] {
    if (this.#served.size >= SERVED_MAX) this.#served.clear();
    const key = `${slot}:${version}:${generation}`;
    const before = this.#served.get(key) ?? 0;
    this.#served.set(key, entries.size);
    return [...entries.values()].slice(before);
  }
}
