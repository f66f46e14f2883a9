// A module of compiled regions. They are placed in the table that the interpreter's handlers are in, so that a decoded
// record whose handler is a region's number runs the region; and they call the interpreter's shared functions.

import { computeNames } from '../../a64/slow.ts';
import { ModuleBuilder } from '../../wasm/module.ts';
import type { MemoryImport } from '../../wasm/module.ts';
import type { Callable, FunctionBody } from '../../wasm/function.ts';
import { computeSignature } from '../emitted-calls.ts';
import { TABLE_SIZE, handlerSignature, sharedFunctions } from '../handlers.ts';
import { RegionEmitter } from './region-emitter.ts';
import type { Natures } from './region-emitter.ts';
import type { RegionContext } from './region-machine.ts';
import { formRegion } from './region.ts';
import type { FormOptions, Region } from './region.ts';

/** A region, to be emitted or emitted before, and its place in the table. */
export type PlacedRegion = { readonly tableIndex: number } & ({ readonly region: Region } | { readonly body: FunctionBody });

export interface CompiledRegions {
  /** The module; instantiated with `regionImports` it puts the regions into the table. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of the regions that were emitted. */
  readonly bodies: ReadonlyMap<Region, FunctionBody>;
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
  form(words: Uint32Array, entry: number, options: FormOptions): Region | undefined {
    return formRegion(words, entry, this.#surveyor.endsInTrap, options);
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

  compile(regions: readonly PlacedRegion[]): CompiledRegions {
    const { module, emitter } = this.#begin();
    const bodies = new Map<Region, FunctionBody>();
    for (const placed of regions) {
      if ('region' in placed) bodies.set(placed.region, emitBody(module, emitter, placed.region));
      const body = 'region' in placed ? bodies.get(placed.region)! : placed.body;
      module.place(placed.tableIndex, module.emitted(handlerSignature, body));
    }
    return { bytes: module.encode(), bodies };
  }
}

function emitBody(module: ModuleBuilder, emitter: RegionEmitter, region: Region): FunctionBody {
  const f = module.scratch(handlerSignature);
  emitter.emit(f, region);
  return f.body();
}
