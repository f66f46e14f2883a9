// Finds places in decoded code at which a stored region begins, before they are hot: as soon as a vCPU has got there.
//
// Nobody tells it. Each look goes over the slots of the decode cache: of one that is new or has changed it notes the places
// at which regions of the store begin; of the others it looks at the noted places whose turn has come, for a record that was
// decoded names its handler. That is two numbers for each slot and one for each noted place.

import { FIRST_REGION, HANDLER_DECODE } from '../../abi/decode-cache.ts';
import type { MachineMemory } from '../../memory/machine-memory.ts';
import type { CodePage, DecodeCache } from '../decode-cache.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';
import type { RegionStore } from './region-store.ts';

/** Places that one look finds: a module of so many regions takes some ten milliseconds to make. */
const LOOK_MAX = 128;

interface WatchedSlot {
  readonly mfn: number;
  readonly version: number;
  /** Where regions begin and nobody has been. */
  entries: number[];
}

/** Places of a page that were got to. */
export interface FoundPlaces {
  readonly page: CodePage;
  /** The page, as it is now. */
  readonly words: Uint32Array;
  readonly entries: readonly number[];
}

export class RegionFinder {
  readonly #machine: MachineMemory;
  readonly #decodeCache: DecodeCache;
  readonly #store: RegionStore;
  #slots: WatchedSlot[] = [];
  /** Where a look goes on that has found as much as it may. */
  #next = 0;

  constructor(machine: MachineMemory, decodeCache: DecodeCache, store: RegionStore) {
    this.#machine = machine;
    this.#decodeCache = decodeCache;
    this.#store = store;
  }

  /** Whether the last look has not come to the end. */
  get hasMore(): boolean { return this.#next > 0; }

  /** All places may be found again. */
  forget(): void {
    this.#slots = [];
    this.#next = 0;
  }

  look(): FoundPlaces[] {
    const count = this.#decodeCache.slotsInUse;
    // The decode cache was emptied.
    if (count < this.#slots.length) this.forget();
    const found: FoundPlaces[] = [];
    let places = 0;
    for (let slot = this.#next; slot < count; slot++) {
      const watched = this.#watch(slot);
      if (watched.entries.length === 0) continue;
      const reached = this.#reachedIn(slot, watched);
      if (reached === undefined) continue;
      found.push(reached);
      places += reached.entries.length;
      this.#next = slot + 1;
      if (places >= LOOK_MAX) return found;
    }
    this.#next = 0;
    return found;
  }

  #watch(slot: number): WatchedSlot {
    const mfn = this.#decodeCache.frameIn(slot);
    const version = this.#decodeCache.versionOf(slot);
    const known = this.#slots[slot];
    if (known !== undefined && known.mfn === mfn && known.version === version) return known;
    const first = mfn * PAGE_INSTRUCTIONS;
    // Nine of ten such places have nothing but the word at the entry in common with a region.
    const entries = mfn === 0 ? [] : this.#store.entriesIn(this.#machine.u32, first)
      .filter(index => this.#store.find(index, this.#machine.u32, first) !== undefined);
    return this.#slots[slot] = { mfn, version, entries };
  }

  /** Takes them off what is watched. */
  #reachedIn(slot: number, watched: WatchedSlot): FoundPlaces | undefined {
    const { u16, u32 } = this.#machine;
    const reached: number[] = [];
    const waiting: number[] = [];
    for (const index of watched.entries) {
      const handler = u16[this.#decodeCache.recordOf(slot, index) / 2]!;
      if (handler === HANDLER_DECODE) waiting.push(index);
      // Else a region is there.
      else if (handler < FIRST_REGION) reached.push(index);
    }
    if (waiting.length < watched.entries.length) watched.entries = waiting;
    if (reached.length === 0) return undefined;
    const page = this.#decodeCache.pageOf(this.#decodeCache.recordOf(slot, 0));
    if (page === undefined || page.mfn !== watched.mfn || page.version !== watched.version) return undefined;
    // A copy: the guest may write to the page meanwhile.
    const words = u32.slice(page.mfn * PAGE_INSTRUCTIONS, (page.mfn + 1) * PAGE_INSTRUCTIONS);
    return { page, words, entries: reached };
  }
}
