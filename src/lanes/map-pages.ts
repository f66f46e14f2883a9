// Pages of shared memory for the maps of disks in layers (abi/layer-map.ts). The host takes them and gives them back; other
// threads find them by number. What was never used of them costs nothing.

import { SHARED_PAGE_BYTES, SHARED_PAGE_WORDS } from '../abi/layer-map.ts';

/** Maps of half a tebibyte of what guests have written. Disks for which there is no room are answered by the host. */
const PAGES = 16384;
export const MAP_PAGES_BYTES = PAGES * SHARED_PAGE_BYTES;

export class MapPages {
  readonly u32: Uint32Array;
  readonly f64: Float64Array;
  readonly #limit: number;
  /** The first that was never used. */
  #end = 1;
  readonly #free: number[] = [];

  /** @param pages so many can be taken */
  constructor(buffer: SharedArrayBuffer, offset: number, pages = PAGES) {
    this.u32 = new Uint32Array(buffer, offset, PAGES * SHARED_PAGE_WORDS);
    this.f64 = new Float64Array(buffer, offset, PAGES * SHARED_PAGE_WORDS / 2);
    this.#limit = Math.min(pages, PAGES);
  }

  /** Index of a page's first word. */
  wordOf(page: number): number {
    return page * SHARED_PAGE_WORDS;
  }

  get inUse(): number {
    return this.#end - 1 - this.#free.length;
  }

  /** A page of zeros. @returns 0 when there is none */
  take(): number {
    const used = this.#free.pop();
    if (used === undefined) return this.#end < this.#limit ? this.#end++ : 0;
    this.u32.fill(0, this.wordOf(used), this.wordOf(used + 1));
    return used;
  }
  giveBack(page: number): void {
    this.#free.push(page);
  }
}
