// Promotes hot code: forms the region at a record, and compiles what is new in batches.
//
//   record ─► page, version ─► region ─► key known? ──yes──► its number ─┐
//                                          └──no──► batch ─► module ─────┴─► parcel
//
// Regions are position-independent, so equal code in another page (a fork's copy, the same library in another guest)
// is compiled once; and where all of a page is equal, all of its regions come at once (page-contents.ts).

import { FIRST_REGION } from '../../abi/decode-cache.ts';
import { tuning } from '../../base/tuning.ts';
import type { MachineMemory } from '../../memory/machine-memory.ts';
import type { MemoryImport } from '../../wasm/module.ts';
import { DecodeCache } from '../decode-cache.ts';
import type { CodePage } from '../decode-cache.ts';
import { TABLE_SIZE } from '../handlers.ts';
import { RegionCompiler } from './compile.ts';
import type { PlacedRegion } from './compile.ts';
import { PageContents } from './page-contents.ts';
import type { Content, PlacedEntry } from './page-contents.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';
import type { IsReached, Neighbour, PageSource, Region } from './region.ts';
import { packRegions } from './known-regions.ts';
import type { PackedRegions } from './known-regions.ts';
import { RegionFinder } from './region-finder.ts';
import type { HotPlace, RegionEntry, RegionReset } from './region-parcels.ts';
import type { RegionStore, StoredRegion } from './region-store.ts';

/** Regions that one batch may add: it is bounded by what threads ask for between two translations. */
const BATCH_ROOM = 0x2000;
/** Emitted code of all regions at most. V8 makes some 3.6 times as much of it, so this is about 230 MiB of machine code. */
const CODE_MAX_BYTES = tuning.emittedBytes ?? 64 * 2 ** 20;

export interface TranslatorLimits {
  /** Instructions of a region at most. */
  readonly regionMax?: number;
  /** Has regions contain what no vCPU has got to as well. */
  readonly unreachedToo?: boolean;
  /** Regions at most before all are given up. */
  readonly regionCountMax?: number;
  readonly codeMaxBytes?: number;
  /** Where regions that were emitted before are found, and new ones go. */
  readonly store?: RegionStore | undefined;
  /** Makes a module; left out: as the engine does by itself. */
  readonly makeModule?: (bytes: Uint8Array<ArrayBuffer>) => WebAssembly.Module;
}

/** A page beside one that is asked for. */
interface KnownPage extends PageSource {
  readonly page: CodePage;
}
type KnownNeighbour = (distance: number) => KnownPage | undefined;

export interface Translation {
  /** Of the regions that are new; undefined when there are none. */
  readonly module: WebAssembly.Module | undefined;
  /** By requester. */
  readonly entries: ReadonlyMap<number, readonly RegionEntry[]>;
}

export class Translator {
  readonly #machine: MachineMemory;
  readonly #decodeCache: DecodeCache;
  readonly #compiler: RegionCompiler;
  readonly #limits: TranslatorLimits;
  readonly #known = new Map<string, number>();
  readonly #finder: RegionFinder | undefined;
  /** Numbers of those that came from the store. */
  readonly #found = new Map<StoredRegion, number>();
  /** Those of the batch in which calls are followed. */
  readonly #following = new Set<Region>();
  readonly #contents = new PageContents();
  readonly #asked = new Set<string>();
  #batch: PlacedRegion[] = [];
  #entries = new Map<number, RegionEntry[]>();
  #nextIndex = FIRST_REGION;
  #codeBytes = 0;
  #epoch = 0;

  /** @param pairLockAddress as for `buildInterpreter` */
  constructor(machine: MachineMemory, memory: MemoryImport, pairLockAddress: number, limits: TranslatorLimits = {}) {
    this.#machine = machine;
    this.#decodeCache = new DecodeCache(machine);
    this.#compiler = new RegionCompiler(memory, pairLockAddress);
    this.#limits = limits;
    this.#finder = limits.store && new RegionFinder(machine, this.#decodeCache, limits.store);
  }

  get regionCount(): number { return this.#known.size + this.#found.size; }
  /** Of them, those that were not emitted here. */
  get foundCount(): number { return this.#found.size; }
  /** Bytes of emitted code of all regions. */
  get codeBytes(): number { return this.#codeBytes; }

  /** Wants the code at a place compiled; `translate` does it. */
  request({ record, neighbours, followsCalls }: HotPlace, requester: number): void {
    const key = `${record} ${followsCalls}`;
    if (this.#asked.has(key)) return;
    this.#asked.add(key);
    const page = this.#decodeCache.pageOf(record);
    if (page === undefined) return;
    const content = this.#contents.of(this.#wordsOf(page));
    const neighbour = this.#neighbours(neighbours);
    const known = content.entries.get(page.index) ?? this.#enterStored(content, page.index);
    const wanted = known !== undefined && (known.followsCalls || !followsCalls) ? known : this.#enter(content, page, neighbour, followsCalls);
    this.#give(page, content, requester, wanted === undefined ? [] : [wanted], neighbour);
  }
  /** @param wanted that is asked for again has been lost: its page has changed and is as it was once more */
  #give(page: CodePage, content: Content, requester: number, wanted: readonly PlacedEntry[], neighbour: KnownNeighbour): void {
    const entries = this.#entries.get(requester) ?? [];
    this.#entries.set(requester, entries);
    const news = new Set([...this.#contents.take(page, content.entries), ...wanted]);
    for (const { index, indices, pages, tableIndex } of news) {
      const contents = [{ page, content: content.number }];
      for (const { distance } of pages.slice(1)) {
        const other = neighbour(distance);
        if (other !== undefined) contents.push({ page: other.page, content: other.content });
      }
      entries.push({ page: { ...page, index }, indices, tableIndex, contents });
    }
  }

  /** A copy: the guest may write to the page meanwhile. */
  #wordsOf({ mfn }: CodePage): Uint32Array {
    return this.#machine.u32.slice(mfn * PAGE_INSTRUCTIONS, (mfn + 1) * PAGE_INSTRUCTIONS);
  }

  /** Looks at pages around one as they are now, each once. @param found as in HotPlace */
  #neighbours(found: Int32Array): KnownNeighbour {
    const slots = new Map<number, number>();
    for (let i = 0; i < found.length; i += 2) slots.set(found[i]!, found[i + 1]! >>> 0);
    const known = new Map<number, KnownPage | undefined>();
    return distance => {
      if (!known.has(distance)) known.set(distance, this.#knownPage(slots.get(distance)));
      return known.get(distance);
    };
  }
  #knownPage(record: number | undefined): KnownPage | undefined {
    const page = record === undefined ? undefined : this.#decodeCache.pageOf(record);
    if (page === undefined) return undefined;
    const { words, number } = this.#contents.of(this.#wordsOf(page));
    return number === 0n ? undefined : { page, words, content: number, isReached: this.#reachedIn(page.mfn) ?? (() => true) };
  }

  /**
   * Looks for places that a vCPU has got to and where a region begins that is in the store. `translate` gives them.
   * @returns whether there are more than fit into a batch
   */
  look(requester: number): boolean {
    if (this.#finder === undefined) return false;
    const places = this.#finder.look();
    for (const { page, words, entries } of places) {
      const content = this.#contents.of(words);
      const wanted = entries.flatMap(index => content.entries.get(index) ?? this.#enterStored(content, index) ?? []);
      this.#give(page, content, requester, wanted, () => undefined);
    }
    return this.#finder.hasMore;
  }
  /**
   * Wants regions of the store compiled that nobody has asked for, for pCPUs to enter them where they find them.
   * @param regions where several begin at one place, the best first
   * @returns those that will be in the next module
   */
  prepare(regions: readonly StoredRegion[]): { readonly placed: readonly StoredRegion[]; readonly known: PackedRegions } {
    const firstIndex = this.#nextIndex;
    const placed = regions.filter(region => !this.#found.has(region) && this.#placeStored(region) !== undefined);
    return { placed, known: packRegions(placed, firstIndex) };
  }
  #enterStored({ words, entries }: Content, index: number): PlacedEntry | undefined {
    const region = this.#limits.store?.find(index, words);
    const tableIndex = region && (this.#found.get(region) ?? this.#placeStored(region));
    if (tableIndex === undefined) return undefined;
    this.#limits.store!.use(region!);
    const entry = { index, indices: region!.indices, pages: [{ distance: 0, content: 0n }], followsCalls: region!.followsCalls, tableIndex };
    entries.set(index, entry);
    return entry;
  }
  #placeStored(region: StoredRegion): number | undefined {
    const body = this.#limits.store!.take(region);
    if (body === undefined) return undefined;
    const tableIndex = this.#nextIndex++;
    this.#found.set(region, tableIndex);
    this.#batch.push({ body, tableIndex });
    return tableIndex;
  }

  #enter({ words, entries }: Content, { index, mfn }: CodePage, neighbour: Neighbour, followsCalls: boolean): PlacedEntry | undefined {
    const region = this.#compiler.form(words, index, {
      maximum: this.#limits.regionMax, isReached: this.#reachedIn(mfn), neighbour, followsCalls,
    });
    if (region === undefined) return undefined;
    const tableIndex = this.#known.get(region.key) ?? this.#place(region);
    if (followsCalls) this.#following.add(region);
    const instructions = region.blocks.flatMap(block => block.instructions).filter(({ page }) => page === 0);
    const indices = [...new Set(instructions.map(each => each.index))];
    const entry = { index, indices, pages: region.pages, followsCalls, tableIndex };
    entries.set(index, entry);
    return entry;
  }

  /** What no vCPU has got to by now is not worth compiling: a quarter of all code is on ways that errors would take. */
  #reachedIn(mfn: number): IsReached | undefined {
    if (this.#limits.unreachedToo) return undefined;
    const decoded = this.#decodeCache.decodedIn(mfn);
    return decoded && (index => (decoded[index >>> 5]! >>> (index & 31) & 1) !== 0);
  }

  #place(region: Region): number {
    const tableIndex = this.#nextIndex++;
    this.#known.set(region.key, tableIndex);
    this.#batch.push({ region, tableIndex });
    return tableIndex;
  }

  /** Whether there may be no room for a further batch: time to `startOver`. */
  get isFull(): boolean {
    const { regionCountMax = TABLE_SIZE - FIRST_REGION - BATCH_ROOM, codeMaxBytes = CODE_MAX_BYTES } = this.#limits;
    return this.regionCount >= regionCountMax || this.#codeBytes >= codeMaxBytes;
  }
  /** Forgets all regions. What was asked for and not yet translated is lost: it is hot and will be asked for again. */
  startOver(): RegionReset {
    this.#known.clear();
    this.#found.clear();
    this.#finder?.forget();
    this.#contents.clear();
    this.#asked.clear();
    this.#batch = [];
    this.#entries = new Map();
    this.#nextIndex = FIRST_REGION;
    this.#codeBytes = 0;
    return { epoch: ++this.#epoch };
  }

  /** Compiles what was asked for. */
  translate(): Translation {
    let module: WebAssembly.Module | undefined;
    if (this.#batch.length > 0) {
      const { bytes, bodies } = this.#compiler.compile(this.#batch);
      this.#codeBytes += bytes.length;
      for (const [region, body] of bodies) this.#limits.store?.add(region, body, this.#following.has(region));
      module = this.#limits.makeModule?.(bytes) ?? new WebAssembly.Module(bytes);
    }
    const entries = this.#entries;
    this.#batch = [];
    this.#following.clear();
    this.#entries = new Map();
    this.#asked.clear();
    return { module, entries };
  }
}
