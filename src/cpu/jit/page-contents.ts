// The regions of pages by what is in them. A page that holds the same code as one before it (a restored or another guest's,
// a library loaded again) gets all of that one's regions as soon as one place in it is asked for, instead of each when it
// has become hot once more.

import type { CodePage } from '../decode-cache.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';

/** Contents remembered at most, 4 KiB each: then all are forgotten. */
const CONTENTS_MAX = 4096;
/** Pages that regions were given to, likewise. */
const SERVED_MAX = 1 << 16;

/** Of a region: where it begins in its page, the places of all its instructions, and its number. */
export interface PlacedEntry {
  readonly index: number;
  readonly indices: readonly number[];
  readonly tableIndex: number;
}

interface Content {
  readonly words: Uint32Array;
  readonly entries: Map<number, PlacedEntry>;
}

function hashOf(words: Uint32Array): number {
  let hash = 0;
  for (let i = 0; i < PAGE_INSTRUCTIONS; i++) hash = Math.imul(hash ^ words[i]!, 0x9e37_79b1) ^ (hash >>> 15);
  return hash;
}
const isEqual = (a: Uint32Array, b: Uint32Array): boolean => a.every((word, i) => word === b[i]);

export class PageContents {
  readonly #byHash = new Map<number, Content[]>();
  #count = 0;
  /** How many of its content's entries a page has been given. */
  readonly #served = new Map<string, number>();

  clear(): void {
    this.#byHash.clear();
    this.#served.clear();
    this.#count = 0;
  }

  /** What is known of a page with these words; later additions show in it. */
  of(words: Uint32Array): Map<number, PlacedEntry> {
    if (this.#count >= CONTENTS_MAX) this.clear();
    const hash = hashOf(words);
    const same = this.#byHash.get(hash) ?? [];
    const known = same.find(content => isEqual(content.words, words));
    if (known !== undefined) return known.entries;
    const entries = new Map<number, PlacedEntry>();
    same.push({ words, entries });
    this.#byHash.set(hash, same);
    this.#count++;
    return entries;
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
