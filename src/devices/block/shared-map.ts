// A layer's map in memory that other threads see (abi/layer-map.ts): what the host puts there, lends with it, and finds when it
// has the disk back. Pages of the map move there when the layer is first lent, and stay until it is closed; those for which
// there is no room any more stay where they are, and requests for what they say with the host.

import { BLANKS_MAX, ENTRIES_PER_PAGE, FREE_LENT_MAX, GRANULE_BYTES, LAYER_HEAD, MAP_PAGE_SPAN_BYTES, NOT_SHARED } from '../../abi/layer-map.ts';
import type { MapPages } from '../../lanes/map-pages.ts';
import { EntryPage, PAGE_KIND } from './layer-format.ts';

export interface ReturnedMap {
  readonly end: number;
  /** Clusters that have got data. */
  readonly newClusters: number;
  readonly fileBytes: number;
  /** That were made. */
  readonly pages: readonly EntryPage[];
}

export class SharedMap {
  readonly #maps: MapPages;
  readonly #head: number;
  readonly #pages: number[] = [];
  /** There is a page that no table has. */
  #isIncomplete = false;

  constructor(maps: MapPages, pages: Iterable<EntryPage>) {
    this.#maps = maps;
    this.#head = this.#take();
    if (this.#head !== 0) for (const page of pages) this.add(page);
  }

  #take(): number {
    const page = this.#maps.take();
    if (page !== 0) this.#pages.push(page);
    return page;
  }
  #word(name: keyof typeof LAYER_HEAD): number {
    return this.#maps.wordOf(this.#head) + LAYER_HEAD[name];
  }
  #words(page: number): Uint32Array {
    return this.#maps.u32.subarray(this.#maps.wordOf(page), this.#maps.wordOf(page + 1));
  }

  /** The head, when every place of such a disk has a table; 0: there is no room. */
  headFor(maps: MapPages, sizeBytes: number): number {
    const tables = Math.ceil(sizeBytes / (MAP_PAGE_SPAN_BYTES * ENTRIES_PER_PAGE));
    if (maps !== this.#maps || this.#head === 0 || this.#isIncomplete) return 0;
    for (let table = 0; table < tables; table++) if (this.#table(table) === 0) return 0;
    return this.#head;
  }
  #table(table: number): number {
    const word = this.#word('tables') + table;
    if (this.#maps.u32[word] === 0) this.#maps.u32[word] = this.#take();
    return this.#maps.u32[word]!;
  }

  /** While it is not lent for writing. */
  add(page: EntryPage): void {
    const table = this.#table(Math.floor(page.index / ENTRIES_PER_PAGE));
    this.#isIncomplete ||= table === 0;
    if (table === 0) return;
    const taken = this.#take();
    if (taken !== 0) page.moveTo(this.#words(taken), false);
    this.#maps.u32[this.#maps.wordOf(table) + page.index % ENTRIES_PER_PAGE] = taken === 0 ? NOT_SHARED : taken;
  }

  /** @param free of which as many as there is room for are taken away */
  lend(end: number, free: number[], fileBytes: number): void {
    const { u32 } = this.#maps;
    const lent = free.splice(Math.max(0, free.length - FREE_LENT_MAX));
    u32.set(lent, this.#word('free'));
    u32[this.#word('freeCount')] = lent.length;
    u32[this.#word('hasMoreFree')] = Number(free.length > 0);
    u32[this.#word('end')] = end;
    u32[this.#word('newClusters')] = 0;
    u32[this.#word('madeCount')] = 0;
    u32[this.#word('fileGranules')] = Math.floor(fileBytes / GRANULE_BYTES);
    this.#stock();
  }

  /** Pages for places that have none yet. */
  #stock(): void {
    const { u32 } = this.#maps;
    for (let count = u32[this.#word('blankCount')]!; count < BLANKS_MAX; count++) {
      const page = this.#take();
      if (page === 0) return;
      u32[this.#word('blanks') + count] = page;
      u32[this.#word('blankCount')] = count + 1;
    }
  }

  /** @param free gets back what was not used */
  takeBack(free: number[]): ReturnedMap {
    const { u32 } = this.#maps;
    const at = this.#word('free');
    free.push(...u32.subarray(at, at + u32[this.#word('freeCount')]!));
    const pages = Array.from({ length: u32[this.#word('madeCount')]! }, (_, i) => {
      const made = this.#word('made') + 2 * i;
      const page = new EntryPage(PAGE_KIND.map, u32[made]!, 0);
      page.moveTo(this.#words(u32[made + 1]!), true);
      return page;
    });
    return {
      end: u32[this.#word('end')]!, newClusters: u32[this.#word('newClusters')]!,
      fileBytes: u32[this.#word('fileGranules')]! * GRANULE_BYTES, pages,
    };
  }

  /** Nobody looks at it any more. */
  end(): void {
    for (const page of this.#pages) this.#maps.giveBack(page);
    this.#pages.length = 0;
  }
}
