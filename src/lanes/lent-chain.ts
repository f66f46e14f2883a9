// A disk in layers, as the threads that serve its ring see it: files on top of each other, whose maps are in shared memory
// (abi/layer-map.ts). It is lent as a whole: while it is, nobody else looks at the topmost map nor changes any, and what a
// thread notes in it is the host's when the ring has gone back. Nothing here makes anything last: that is the host's flush.
//
// What is written goes to the place that the top has for it, or to a cluster that nobody uses: one that the host has lent for
// that, or the next at the end of the file. It is noted when it has been written, so that a write which fails has changed
// nothing. A write of less than a granule that is not there yet needs what lies around it, and is left to the host.

import {
  ALL_GRANULES, CHAIN, CHAIN_LEVEL, CLUSTER_BYTES, ENTRIES_PER_PAGE, GRANULE_BYTES, LAYER_HEAD, MAP_PAGE_WORD, NOT_SHARED,
} from '../abi/layer-map.ts';
import { NOWHERE, addExtent } from './lent-store.ts';
import type { Extent, LentStore } from './lent-store.ts';
import type { MapPages } from './map-pages.ts';

interface Level {
  readonly fd: number;
  /** First word of the layer's head; 0: a raw file. */
  readonly head: number;
  readonly sizeBytes: number;
}

/** An entry of the map that is to be set; words. */
interface Mark {
  readonly page: number;
  readonly entry: number;
  readonly cluster: number;
  readonly bits: number;
}

/** What a write takes of what the host has lent. */
interface Taken {
  free: number;
  end: number;
  clusters: number;
  fileGranules: number;
}

export class LentChain implements LentStore {
  readonly #maps: MapPages;
  readonly #u32: Uint32Array;
  readonly #levels: readonly Level[];
  /** Of the write that was looked for last. */
  #marks: Mark[] = [];
  #taken: Taken = { free: 0, end: 0, clusters: 0, fileGranules: 0 };

  /** @param chain its page */
  constructor(maps: MapPages, chain: number) {
    this.#maps = maps;
    this.#u32 = maps.u32;
    const first = maps.wordOf(chain);
    this.#levels = Array.from({ length: this.#u32[first + CHAIN.depth]! }, (_, level) => {
      const at = first + CHAIN.levels + level * CHAIN_LEVEL.words;
      const head = this.#u32[at + CHAIN_LEVEL.head]!;
      return {
        fd: this.#u32[at + CHAIN_LEVEL.fd]!, head: head === 0 ? 0 : maps.wordOf(head),
        sizeBytes: maps.f64[(at + CHAIN_LEVEL.sizeBytes) / 2]!,
      };
    });
  }

  // ---- reading ------------------------------------------------------------------------------------------------------

  find(offset: number, sizeBytes: number): Extent[] | undefined {
    const extents: Extent[] = [];
    return this.#find(0, offset, offset, offset + sizeBytes, extents) ? extents : undefined;
  }

  /** @param base where the request begins */
  #find(number: number, base: number, from: number, to: number, extents: Extent[]): boolean {
    const level = this.#levels[number];
    const end = level === undefined ? from : Math.max(from, Math.min(to, level.sizeBytes));
    if (from < end) {
      if (level!.head === 0) addExtent(extents, { fd: level!.fd, at: from, from: from - base, sizeBytes: end - from });
      else if (!this.#findInLayer(number, base, from, end, extents)) return false;
    }
    if (end < to) addExtent(extents, { fd: NOWHERE, at: 0, from: end - base, sizeBytes: to - end });
    return true;
  }

  #findInLayer(number: number, base: number, from: number, to: number, extents: Extent[]): boolean {
    const { fd, head } = this.#levels[number]!;
    for (let at = from; at < to;) {
      const page = this.#pageOf(head, at);
      if (page === NOT_SHARED) return false;
      const entry = page === 0 ? 0 : this.#entryOf(page, at);
      const granules = page === 0 ? 0 : this.#u32[entry + 1]!;
      const first = Math.floor((at % CLUSTER_BYTES) / GRANULE_BYTES);
      const answer = answerOf(granules, first);
      let last = first;
      while (last + 1 < CLUSTER_BYTES / GRANULE_BYTES && answerOf(granules, last + 1) === answer) last++;
      const next = Math.min(to, at - at % CLUSTER_BYTES + (last + 1) * GRANULE_BYTES);
      if (answer === ANSWER.below) {
        if (!this.#find(number + 1, base, at, next, extents)) return false;
      } else if (answer === ANSWER.zero) addExtent(extents, { fd: NOWHERE, at: 0, from: at - base, sizeBytes: next - at });
      else addExtent(extents, { fd, at: this.#u32[entry]! * CLUSTER_BYTES + at % CLUSTER_BYTES, from: at - base, sizeBytes: next - at });
      at = next;
    }
    return true;
  }

  /** The map page for a place on the disk; 0: none, NOT_SHARED: the host has it. */
  #pageOf(head: number, offset: number): number {
    const table = this.#u32[this.#tableWord(head, offset)]!;
    return table === 0 ? NOT_SHARED : this.#u32[this.#slotWord(table, offset)]!;
  }
  #tableWord(head: number, offset: number): number {
    return head + LAYER_HEAD.tables + Math.floor(offset / (CLUSTER_BYTES * ENTRIES_PER_PAGE * ENTRIES_PER_PAGE));
  }
  #slotWord(table: number, offset: number): number {
    return this.#maps.wordOf(table) + Math.floor(offset / (CLUSTER_BYTES * ENTRIES_PER_PAGE)) % ENTRIES_PER_PAGE;
  }
  #entryOf(page: number, offset: number): number {
    return this.#maps.wordOf(page) + 2 * (Math.floor(offset / CLUSTER_BYTES) % ENTRIES_PER_PAGE);
  }

  // ---- writing ------------------------------------------------------------------------------------------------------

  findForWrite(offset: number, sizeBytes: number): Extent[] | undefined {
    const { fd, head, sizeBytes: diskBytes } = this.#levels[0]!;
    const end = offset + sizeBytes;
    if (head === 0 || end > diskBytes) return undefined;
    const u32 = this.#u32;
    const taken = {
      free: u32[head + LAYER_HEAD.freeCount]!, end: u32[head + LAYER_HEAD.end]!, clusters: 0, fileGranules: u32[head + LAYER_HEAD.fileGranules]!,
    };
    const marks: Mark[] = [];
    const extents: Extent[] = [];
    for (let at = offset; at < end;) {
      const next = Math.min(end, at - at % CLUSTER_BYTES + CLUSTER_BYTES);
      const page = this.#pageForWrite(head, at);
      if (page === NOT_SHARED) return undefined;
      const entry = this.#entryOf(page, at);
      const { bits, whole } = granulesOf(at % CLUSTER_BYTES, next - at);
      if ((bits & ~whole & ~u32[entry + 1]!) !== 0) return undefined;
      const known = u32[entry]!;
      const cluster = known === 0 ? this.#newCluster(head, taken) : known;
      if (cluster === 0) return undefined;
      const place = cluster * CLUSTER_BYTES + at % CLUSTER_BYTES;
      addExtent(extents, { fd, at: place, from: at - offset, sizeBytes: next - at });
      taken.fileGranules = Math.max(taken.fileGranules, Math.ceil((place + next - at) / GRANULE_BYTES));
      marks.push({ page: this.#maps.wordOf(page), entry, cluster, bits });
      at = next;
    }
    this.#marks = marks;
    this.#taken = taken;
    return extents;
  }

  #newCluster(head: number, taken: Taken): number {
    taken.clusters++;
    if (taken.free > 0) return this.#u32[head + LAYER_HEAD.free + --taken.free]!;
    return this.#u32[head + LAYER_HEAD.hasMoreFree] === 0 ? taken.end++ : 0;
  }

  /** As `#pageOf`; where there is none, a blank one is put. An empty page of the map says what none does. */
  #pageForWrite(head: number, offset: number): number {
    const u32 = this.#u32;
    const known = this.#pageOf(head, offset);
    const blanks = u32[head + LAYER_HEAD.blankCount]!;
    if (known !== 0) return known;
    if (blanks === 0) return NOT_SHARED;
    const page = u32[head + LAYER_HEAD.blanks + blanks - 1]!;
    const made = u32[head + LAYER_HEAD.madeCount]!;
    u32[head + LAYER_HEAD.blankCount] = blanks - 1;
    u32[head + LAYER_HEAD.madeCount] = made + 1;
    u32[head + LAYER_HEAD.made + 2 * made] = Math.floor(offset / (CLUSTER_BYTES * ENTRIES_PER_PAGE));
    u32[head + LAYER_HEAD.made + 2 * made + 1] = page;
    u32[this.#slotWord(u32[this.#tableWord(head, offset)]!, offset)] = page;
    return page;
  }

  written(): void {
    const u32 = this.#u32;
    const { head } = this.#levels[0]!;
    for (const { page, entry, cluster, bits } of this.#marks) {
      const before = u32[entry + 1]!;
      const granules = (before | bits) & ~(bits << 16);
      if (u32[entry] === cluster && granules >>> 0 === before) continue;
      u32[entry] = cluster;
      u32[entry + 1] = granules;
      u32[page + MAP_PAGE_WORD.dirty] = 1;
    }
    u32[head + LAYER_HEAD.freeCount] = this.#taken.free;
    u32[head + LAYER_HEAD.end] = this.#taken.end;
    u32[head + LAYER_HEAD.newClusters]! += this.#taken.clusters;
    u32[head + LAYER_HEAD.fileGranules] = this.#taken.fileGranules;
    this.#marks = [];
    this.#taken.clusters = 0;
  }
}

const ANSWER = { data: 0, zero: 1, below: 2 } as const;

function answerOf(granules: number, granule: number): number {
  if ((granules >>> granule & 1) !== 0) return ANSWER.data;
  return (granules >>> (16 + granule) & 1) !== 0 ? ANSWER.zero : ANSWER.below;
}

/** Bits of the granules that a part of a cluster touches, and of those that it covers. */
function granulesOf(offset: number, sizeBytes: number): { bits: number; whole: number } {
  const between = (first: number, end: number): number => (first < end ? (2 ** end - 1) & ~(2 ** first - 1) & ALL_GRANULES : 0);
  const end = offset + sizeBytes;
  return {
    bits: between(Math.floor(offset / GRANULE_BYTES), Math.ceil(end / GRANULE_BYTES)),
    whole: between(Math.ceil(offset / GRANULE_BYTES), Math.floor(end / GRANULE_BYTES)),
  };
}
