// The translator's store of regions, and when it is read and written: read when the thread begins, written when the host
// closes and now and then in between, here, where no guest waits for it.

import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import { regionStoreFolder } from '../base/cache-folder.ts';
import { ENTERED } from '../cpu/jit/known-regions.ts';
import { RegionStore, byWorth, identityOf } from '../cpu/jit/region-store.ts';
import type { StoredRegion } from '../cpu/jit/region-store.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { emitterVersion } from './emitter-version.ts';
import { RegionFolder } from './region-folder.ts';

/** From what is new until it is written, for the first time; then twice as long each time. */
const SAVE_FIRST_MILLIS = 10_000;
const SAVE_LAST_MILLIS = 300_000;
/** What the first guest needed that the last host has booted: identities of regions, f64 each. */
const BOOT_LIST = 'boot';
/** Of them at most: compiling them takes a tenth of a millisecond each, beside a guest that boots. */
const BOOT_LIST_MAX = 4096;
const NOTED = 2;

/** Regions that were compiled before anybody needed them, and of each whether it was entered since the last look, `ENTERED`. */
export interface PreparedRegions {
  readonly placed: readonly StoredRegion[];
  readonly entered: Uint8Array;
}

export class KeptRegions {
  readonly store = new RegionStore();
  readonly #machine: MachineMemory;
  #folder: RegionFolder | undefined;
  #timer: NodeJS.Timeout | undefined;
  #delayMillis = SAVE_FIRST_MILLIS;
  #added = 0;
  #prepared: PreparedRegions = { placed: [], entered: new Uint8Array(0) };
  /** Whether nothing is to be noted of a guest that boots. */
  #isBootNoted = true;

  /** @returns undefined where nothing is to be kept, or cannot */
  static open(machine: MachineMemory): KeptRegions | undefined {
    const path = regionStoreFolder();
    const version = path === undefined ? undefined : emitterVersion(machine.parameters.addressType);
    const folder = version && RegionFolder.open(path!, version);
    return folder && new KeptRegions(machine, folder);
  }

  private constructor(machine: MachineMemory, folder: RegionFolder) {
    this.#machine = machine;
    this.#folder = folder;
    folder.load(this.store);
    this.#count();
  }

  /**
   * A guest boots, the first one: what the last one needed is wanted at once, and what this one needs will be noted.
   * @param prepare compiles regions; of those that begin at one place, the best comes first
   */
  prepareBoot(prepare: (regions: readonly StoredRegion[]) => PreparedRegions): void {
    const bytes = this.#folder?.read(BOOT_LIST) ?? new Uint8Array(0);
    const listed = new Set(new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / Float64Array.BYTES_PER_ELEMENT));
    const regions = listed.size === 0 ? [] : this.store.regions.filter(region => listed.has(identityOf(region))).toSorted(byWorth);
    this.#isBootNoted = false;
    this.#prepared = prepare(regions);
    this.#count();
  }
  #noteBoot(): void {
    if (this.#isBootNoted) return;
    this.#isBootNoted = true;
    this.#noteEntered();
    const needed = [...this.store.used, ...this.store.fresh].slice(0, BOOT_LIST_MAX);
    this.#folder?.write(BOOT_LIST, new Uint8Array(Float64Array.from(needed, identityOf).buffer));
  }
  /** Of those that were prepared, pCPUs say nothing when they enter them. */
  #noteEntered(): void {
    const { placed, entered } = this.#prepared;
    // Thousands, and this is done after each module.
    for (let i = 0; i < entered.length; i++) {
      if (entered[i] !== ENTERED) continue;
      this.store.use(placed[i]!);
      entered[i] = NOTED;
    }
  }

  #count(): void {
    this.#noteEntered();
    const { u32 } = this.#machine;
    Atomics.store(u32, MACHINE_HEADER.at.storedRegions >>> 2, this.store.size);
    Atomics.store(u32, MACHINE_HEADER.at.foundRegions >>> 2, this.store.used.size);
    Atomics.store(u32, MACHINE_HEADER.at.addedRegions >>> 2, this.#added);
  }

  /** Something may be new. */
  notice(): void {
    this.#count();
    if (!this.store.hasFresh || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#delayMillis = Math.min(SAVE_LAST_MILLIS, 2 * this.#delayMillis);
      this.save();
    }, this.#delayMillis).unref();
  }

  save(): void {
    if (this.#folder === undefined) return;
    this.#noteBoot();
    const added = this.#folder.save(this.store);
    if (added === undefined) {
      this.#folder = undefined;
      this.store.keepNoNew();
    }
    this.#added += added ?? 0;
    this.#count();
  }
}
