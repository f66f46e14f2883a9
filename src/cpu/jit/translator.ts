// Promotes hot code: forms the region at a record, and compiles what is new in batches.
//
//   record ─► page, version ─► region ─► key known? ──yes──► its number ─┐
//                                          └──no──► batch ─► module ─────┴─► parcel
//
// Regions are position-independent, so equal code in another page (a fork's copy, the same library in another guest)
// is compiled once; and where all of a page is equal, all of its regions come at once (page-contents.ts).

import { tuning } from '../../base/tuning.ts';
import type { MachineMemory } from '../../memory/machine-memory.ts';
import type { MemoryImport } from '../../wasm/module.ts';
import { DecodeCache } from '../decode-cache.ts';
import type { CodePage } from '../decode-cache.ts';
import { handlerCount } from '../../a64/table.ts';
import { TABLE_SIZE } from '../interpreter.ts';
import { RegionCompiler } from './compile.ts';
import type { PlacedRegion } from './compile.ts';
import { PageContents } from './page-contents.ts';
import type { PlacedEntry } from './page-contents.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';
import type { IsReached, Region } from './region.ts';
import type { RegionEntry, RegionReset } from './region-parcels.ts';

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
  /** Makes a module; left out: as the engine does by itself. */
  readonly makeModule?: (bytes: Uint8Array<ArrayBuffer>) => WebAssembly.Module;
}

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
  readonly #contents = new PageContents();
  readonly #asked = new Set<number>();
  #batch: PlacedRegion[] = [];
  #entries = new Map<number, RegionEntry[]>();
  #nextIndex = handlerCount;
  #codeBytes = 0;
  #epoch = 0;

  /** @param pairLockAddress as for `buildInterpreter` */
  constructor(machine: MachineMemory, memory: MemoryImport, pairLockAddress: number, limits: TranslatorLimits = {}) {
    this.#machine = machine;
    this.#decodeCache = new DecodeCache(machine);
    this.#compiler = new RegionCompiler(memory, pairLockAddress);
    this.#limits = limits;
  }

  get regionCount(): number { return this.#known.size; }
  /** Bytes of emitted code of all regions. */
  get codeBytes(): number { return this.#codeBytes; }

  /** Wants the code at a record compiled; `translate` does it. */
  request(record: number, requester: number): void {
    if (this.#asked.has(record)) return;
    this.#asked.add(record);
    const page = this.#decodeCache.pageOf(record);
    if (page === undefined) return;
    // A copy: the guest may write to the page meanwhile.
    const words = this.#machine.u32.slice(page.mfn * PAGE_INSTRUCTIONS, (page.mfn + 1) * PAGE_INSTRUCTIONS);
    const known = this.#contents.of(words);
    const wanted = known.get(page.index) ?? this.#enter(words, page, known);
    const entries = this.#entries.get(requester) ?? [];
    this.#entries.set(requester, entries);
    // One that is asked for again has been lost: its page has changed and is as it was once more.
    const news = new Set([...this.#contents.take(page, known), ...(wanted === undefined ? [] : [wanted])]);
    for (const { index, indices, tableIndex } of news) entries.push({ page: { ...page, index }, indices, tableIndex });
  }

  #enter(words: Uint32Array, { index, mfn }: CodePage, known: Map<number, PlacedEntry>): PlacedEntry | undefined {
    const region = this.#compiler.form(words, index, this.#limits.regionMax, this.#reachedIn(mfn));
    if (region === undefined) return undefined;
    const tableIndex = this.#known.get(region.key) ?? this.#place(region);
    const indices = region.blocks.flatMap(block => block.instructions.map(instruction => instruction.index));
    const entry = { index, indices, tableIndex };
    known.set(index, entry);
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
    const { regionCountMax = TABLE_SIZE - handlerCount - BATCH_ROOM, codeMaxBytes = CODE_MAX_BYTES } = this.#limits;
    return this.#known.size >= regionCountMax || this.#codeBytes >= codeMaxBytes;
  }
  /** Forgets all regions. What was asked for and not yet translated is lost: it is hot and will be asked for again. */
  startOver(): RegionReset {
    this.#known.clear();
    this.#contents.clear();
    this.#asked.clear();
    this.#batch = [];
    this.#entries = new Map();
    this.#nextIndex = handlerCount;
    this.#codeBytes = 0;
    return { epoch: ++this.#epoch };
  }

  /** Compiles what was asked for. */
  translate(): Translation {
    let module: WebAssembly.Module | undefined;
    if (this.#batch.length > 0) {
      const bytes = this.#compiler.compile(this.#batch);
      this.#codeBytes += bytes.length;
      module = this.#limits.makeModule?.(bytes) ?? new WebAssembly.Module(bytes);
    }
    const entries = this.#entries;
    this.#batch = [];
    this.#entries = new Map();
    this.#asked.clear();
    return { module, entries };
  }
}
