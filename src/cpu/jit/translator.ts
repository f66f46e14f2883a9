// Promotes hot code: forms the region at a record, and compiles what is new in batches.
//
//   record ─► page, version ─► region ─► key known? ──yes──► its number ─┐
//                                          └──no──► batch ─► module ─────┴─► parcel
//
// Regions are position-independent, so equal code in another page (a fork's copy, the same library in another guest)
// is compiled once.

import type { MachineMemory } from '../../memory/machine-memory.ts';
import type { MemoryImport } from '../../wasm/module.ts';
import { DecodeCache } from '../decode-cache.ts';
import { interpreterTableSize } from '../interpreter.ts';
import { RegionCompiler } from './compile.ts';
import type { PlacedRegion } from './compile.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';
import type { Region } from './region.ts';
import type { RegionEntry, RegionReset } from './region-parcels.ts';

/** A decoded record names its handler with sixteen bits. */
export const TABLE_SIZE = 0x1_0000;
/** Regions that one batch may add: it is bounded by what threads ask for between two translations. */
const BATCH_ROOM = 0x2000;
/** Emitted code of all regions at most; what the machine makes of it is several times as large. */
const CODE_MAX_BYTES = 32 * 2 ** 20;

export interface TranslatorLimits {
  /** Instructions of a region at most. */
  readonly regionMax?: number;
  /** Regions at most before all are given up. */
  readonly regionCountMax?: number;
  readonly codeMaxBytes?: number;
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
  readonly #asked = new Set<number>();
  #batch: PlacedRegion[] = [];
  #entries = new Map<number, RegionEntry[]>();
  #nextIndex = interpreterTableSize;
  #codeBytes = 0;

  /** @param pairLockAddress as for `buildInterpreter` */
  constructor(machine: MachineMemory, memory: MemoryImport, pairLockAddress: number, limits: TranslatorLimits = {}) {
    this.#machine = machine;
    this.#decodeCache = new DecodeCache(machine);
    this.#compiler = new RegionCompiler(memory, pairLockAddress);
    this.#limits = limits;
  }

  get regionCount(): number { return this.#known.size; }

  /** Wants the code at a record compiled; `translate` does it. */
  request(record: number, requester: number): void {
    if (this.#asked.has(record)) return;
    this.#asked.add(record);
    const page = this.#decodeCache.pageOf(record);
    if (page === undefined) return;
    // A copy: the guest may write to the page meanwhile.
    const words = this.#machine.u32.slice(page.mfn * PAGE_INSTRUCTIONS, (page.mfn + 1) * PAGE_INSTRUCTIONS);
    const region = this.#compiler.form(words, page.index, this.#limits.regionMax);
    if (region === undefined) return;
    const tableIndex = this.#known.get(region.key) ?? this.#place(region);
    const indices = region.blocks.flatMap(block => block.instructions.map(instruction => instruction.index));
    const entries = this.#entries.get(requester) ?? [];
    entries.push({ page, indices, tableIndex });
    this.#entries.set(requester, entries);
  }

  #place(region: Region): number {
    const tableIndex = this.#nextIndex++;
    this.#known.set(region.key, tableIndex);
    this.#batch.push({ region, tableIndex });
    return tableIndex;
  }

  /** Whether there may be no room for a further batch: time to `startOver`. */
  get isFull(): boolean {
    const { regionCountMax = TABLE_SIZE - interpreterTableSize - BATCH_ROOM, codeMaxBytes = CODE_MAX_BYTES } = this.#limits;
    return this.#known.size >= regionCountMax || this.#codeBytes >= codeMaxBytes;
  }
  /** Forgets all regions. What was asked for and not yet translated is lost: it is hot and will be asked for again. */
  startOver(): RegionReset {
    this.#known.clear();
    this.#asked.clear();
    this.#batch = [];
    this.#entries = new Map();
    this.#nextIndex = interpreterTableSize;
    this.#codeBytes = 0;
    return { generation: this.#decodeCache.generation };
  }

  /** Compiles what was asked for. */
  translate(): Translation {
    let module: WebAssembly.Module | undefined;
    if (this.#batch.length > 0) {
      const bytes = this.#compiler.compile(this.#batch);
      this.#codeBytes += bytes.length;
      module = new WebAssembly.Module(bytes);
    }
    const entries = this.#entries;
    this.#batch = [];
    this.#entries = new Map();
    this.#asked.clear();
    return { module, entries };
  }
}
