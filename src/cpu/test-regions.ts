// Compilation for test machines, all in one thread: of code that is hot, as in a host, or at once.

import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { DecodeCache } from './decode-cache.ts';
import type { Engine } from './engine.ts';
import { RegionClient } from './jit/region-client.ts';
import type { SamplingOptions } from './jit/region-client.ts';
import type { HotPlace, RegionMessage } from './jit/region-parcels.ts';
import type { StoredRegion } from './jit/region-store.ts';
import { Translator } from './jit/translator.ts';
import type { TranslatorLimits } from './jit/translator.ts';
import { WordDecoder } from './word-decoder.ts';

export type TestRegionOptions = TranslatorLimits & SamplingOptions;

function translatorFor(machine: MachineMemory, limits: TranslatorLimits): Translator {
  const { addressType, sizeBytes } = machine.parameters;
  return new Translator(machine, { addressType, minPages: 1, maxPages: sizeBytes / 65536 }, MACHINE_HEADER.at.pairLock, limits);
}

/** The translator's thread and its ports, without threads. */
export class LocalTranslator {
  readonly #machine: MachineMemory;
  readonly #options: TestRegionOptions;
  readonly #translator: Translator;
  readonly #queues: RegionMessage[][] = [];
  resets = 0;

  constructor(machine: MachineMemory, options: TestRegionOptions) {
    this.#machine = machine;
    this.#options = options;
    this.#translator = translatorFor(machine, options);
    machine.u32[MACHINE_HEADER.at.storedRegions >>> 2] = options.store?.size ?? 0;
  }

  get regionCount(): number { return this.#translator.regionCount; }
  get codeBytes(): number { return this.#translator.codeBytes; }

  /** For another engine. */
  client(): RegionClient {
    const queue: RegionMessage[] = [];
    const number = this.#queues.push(queue) - 1;
    return new RegionClient(this.#machine, {
      request: places => this.#translate(places, number),
      receive: () => queue.shift(),
    }, this.#options);
  }

  #translate(places: readonly HotPlace[], requester: number): void {
    for (const place of places) this.#translator.request(place, requester);
    this.#translator.look(requester);
    const { module, entries } = this.#translator.translate();
    this.#send(number => ({ module, entries: entries.get(number) ?? [] }));
    if (this.#translator.isFull) this.reset();
  }
  /** Gives up all regions. */
  reset(): void {
    this.resets++;
    const reset = this.#translator.startOver();
    this.#send(() => reset);
  }
  /** Has regions known to all engines. */
  prepare(regions: readonly StoredRegion[]): void {
    const { known } = this.#translator.prepare(regions);
    const { module } = this.#translator.translate();
    this.#send(() => ({ module, entries: [], known }));
  }
  #send(messageFor: (client: number) => RegionMessage): void {
    this.#queues.forEach((queue, number) => queue.push(messageFor(number)));
    Atomics.add(this.#machine.u32, MACHINE_HEADER.at.regionParcels >>> 2, 1);
  }
}

export interface ForcedOptions extends TranslatorLimits {
  /** Of which tier regions are; left out: of each in turns, two calls of `compile` for one and two for the other. */
  readonly followsCalls?: boolean;
}

/** Compiles regions of a machine's code at once, hot or not. */
export class ForcedRegions {
  readonly #decodeCache: DecodeCache;
  readonly #translator: Translator;
  readonly #engines: Engine[] = [];
  readonly #modules: WebAssembly.Module[] = [];
  readonly #followsCalls: boolean | undefined;
  #calls = 0;

  constructor(machine: MachineMemory, { followsCalls, ...limits }: ForcedOptions = {}) {
    this.#followsCalls = followsCalls;
    this.#decodeCache = new DecodeCache(machine, new WordDecoder());
    this.#translator = translatorFor(machine, { unreachedToo: true, ...limits });
  }

  get regionCount(): number { return this.#translator.regionCount; }
  /** For engines of other threads. */
  get modules(): readonly WebAssembly.Module[] { return this.#modules; }

  /** Gives an engine all regions, present and future: a record names them for every engine of the machine. */
  serve(engine: Engine): void {
    this.#engines.push(engine);
    for (const module of this.#modules) engine.addRegions(module);
  }

  /** Has regions run from each of these places on. They may go on in each other's pages: addresses are as in physical memory. */
  compile(places: readonly { mfn: number; offsetInPage: number }[]): void {
    const pages = new Set(places.map(({ mfn }) => mfn));
    const followsCalls = this.#followsCalls ?? (this.#calls++ & 2) === 0;
    for (const { mfn, offsetInPage } of places) {
      const neighbours = [...pages].filter(other => other !== mfn).flatMap(other => [other - mfn, this.#decodeCache.slotFor(other)]);
      const record = this.#decodeCache.slotFor(mfn) + (offsetInPage / 4) * RECORD_BYTES;
      this.#translator.request({ record, neighbours: new Int32Array(neighbours), followsCalls }, 0);
    }
    const { module, entries } = this.#translator.translate();
    if (module !== undefined) {
      this.#modules.push(module);
      for (const engine of this.#engines) engine.addRegions(module);
    }
    for (const entry of entries.get(0) ?? []) this.#decodeCache.enterRegion(entry.page, entry.indices, entry.tableIndex, entry.contents);
  }
}
