// The translator's store of regions, and when it is read and written: read when the thread begins, written when the host
// closes and now and then in between, here, where no guest waits for it.

import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import { regionStoreFolder } from '../base/cache-folder.ts';
import { RegionStore } from '../cpu/jit/region-store.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { emitterVersion } from './emitter-version.ts';
import { RegionFolder } from './region-folder.ts';

/** From what is new until it is written, for the first time; then twice as long each time. */
const SAVE_FIRST_MILLIS = 10_000;
const SAVE_LAST_MILLIS = 300_000;

export class KeptRegions {
  readonly store = new RegionStore();
  readonly #machine: MachineMemory;
  #folder: RegionFolder | undefined;
  #timer: NodeJS.Timeout | undefined;
  #delayMillis = SAVE_FIRST_MILLIS;
  #added = 0;

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

  #count(): void {
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
    }, this.#delayMillis);
  }

  save(): void {
    if (this.#folder === undefined) return;
    const added = this.#folder.save(this.store);
    if (added === undefined) {
      this.#folder = undefined;
      this.store.keepNoNew();
    }
    this.#added += added ?? 0;
    this.#count();
  }
}
