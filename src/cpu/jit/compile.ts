// A module of compiled regions. They are placed in the table that the interpreter's handlers are in, so that a decoded
// record whose handler is a region's number runs the region; and they call the interpreter's shared functions.

import { computeNames } from '../../a64/slow.ts';
import { ModuleBuilder } from '../../wasm/module.ts';
import type { MemoryImport } from '../../wasm/module.ts';
import type { Callable } from '../../wasm/function.ts';
import { computeSignature } from '../emitted-calls.ts';
import { TABLE_SIZE, handlerSignature, sharedFunctions } from '../interpreter.ts';
import { RegionEmitter } from './region-emitter.ts';
import type { Natures } from './region-emitter.ts';
import type { RegionContext } from './region-machine.ts';
import { formRegion } from './region.ts';
import type { IsReached, Region } from './region.ts';

/** A region and its place in the table. */
export interface PlacedRegion {
  readonly region: Region;
  readonly tableIndex: number;
}

export class RegionCompiler {
  readonly #memory: MemoryImport;
  readonly #pairLockAddress: number;
  readonly #natures: Natures = new Map();
  /** Emits nothing that stays. */
  readonly #surveyor: RegionEmitter;

  /** @param pairLockAddress as for `buildInterpreter` */
  constructor(memory: MemoryImport, pairLockAddress: number) {
    this.#memory = memory;
    this.#pairLockAddress = pairLockAddress;
    this.#surveyor = this.#begin().emitter;
  }

  /** @param words of a page @returns undefined when there is nothing to compile */
  form(words: Uint32Array, entry: number, maximum?: number, isReached?: IsReached): Region | undefined {
    return formRegion(words, entry, this.#surveyor.endsInTrap, maximum, isReached);
  }

  #begin(): { module: ModuleBuilder; emitter: RegionEmitter } {
    const module = new ModuleBuilder(handlerSignature, this.#memory);
    module.importTable(TABLE_SIZE);
    const shared = Object.fromEntries(Object.entries(sharedFunctions)
      .map(([name, signature]) => [name, module.importFunction(name, signature)])) as Record<keyof typeof sharedFunctions, Callable>;
    const compute = Object.fromEntries(computeNames
      .map(name => [name, module.importFunction(`compute_${name}`, computeSignature)])) as RegionContext['compute'];
    const context: RegionContext = {
      ...shared, compute, addressType: this.#memory.addressType, pairLockAddress: this.#pairLockAddress,
    };
    return { module, emitter: new RegionEmitter(context, this.#natures, () => module.scratch(handlerSignature)) };
  }

  /** @returns the module's bytes; instantiated with `regionImports` it puts the regions into the table */
  compile(regions: readonly PlacedRegion[]): Uint8Array<ArrayBuffer> {
    const { module, emitter } = this.#begin();
    for (const { region, tableIndex } of regions) {
      const f = module.function(handlerSignature);
      emitter.emit(f, region);
      module.place(tableIndex, f);
    }
    return module.encode();
  }
}

/**
 * What a module of regions is instantiated with.
 * @param interpreter exports of the interpreter's instance
 * @param imports what that instance was given
 */
export function regionImports(interpreter: WebAssembly.Exports, imports: WebAssembly.Imports): WebAssembly.Imports {
  return { env: { ...imports['env'], ...interpreter } as WebAssembly.Imports[string] };
}
