// What the pCPUs are at: looked at a few hundred times a second, while somebody asks for statistics.

import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import { PCPU } from '../abi/scheduler.ts';
import { ACTIVITY, vcpuRecord } from '../abi/vcpu.ts';
import { DecodeCache } from '../cpu/decode-cache.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { ActivitySamples, CodeCacheStats } from './types.ts';

const INTERVAL_MILLIS = 2;
/** Nobody has asked for so long: nobody looks any more. */
const REST_AFTER_MILLIS = 5000;
const NAMES = Object.fromEntries(Object.entries(ACTIVITY).map(([name, number]) => [number, name as keyof typeof ACTIVITY]));

export class ActivitySampler {
  readonly #machine: MachineMemory;
  readonly #decodeCache: DecodeCache;
  readonly #samples = { code: 0, memory: 0, decoding: 0, hypervisor: 0, devices: 0, idle: 0 };
  #timer: NodeJS.Timeout | undefined;
  #askedAt = 0;

  constructor(machine: MachineMemory) {
    this.#machine = machine;
    this.#decodeCache = new DecodeCache(machine);
  }

  /** As of now; from now on somebody looks, for a while. */
  get samples(): ActivitySamples {
    this.#askedAt = performance.now();
    this.#timer ??= setInterval(() => this.#look(), INTERVAL_MILLIS).unref();
    return { ...this.#samples };
  }
  get codeCache(): CodeCacheStats {
    const { slots, used } = this.#decodeCache.capacity;
    const { at } = MACHINE_HEADER;
    const count = (offset: number): number => this.#machine.u32[offset / 4]!;
    return {
      pages: slots, usedPages: used, regions: count(at.compiledRegions), storedRegions: count(at.storedRegions),
      foundRegions: count(at.foundRegions), addedRegions: count(at.addedRegions),
    };
  }

  #look(): void {
    const { u32, parameters } = this.#machine;
    for (let pcpu = 0; pcpu < parameters.pcpuCount; pcpu++) {
      const record = this.#machine.pcpuAddress(pcpu);
      const vcpu = Atomics.load(u32, (record + PCPU.at.inCode) / 4) === 0 ? 0 : Atomics.load(u32, (record + PCPU.at.vcpu) / 4);
      const name = vcpu === 0 ? 'idle' : NAMES[Atomics.load(u32, (vcpu + vcpuRecord.at.activity) >>> 2)] ?? 'code';
      this.#samples[name]++;
    }
    if (performance.now() - this.#askedAt > REST_AFTER_MILLIS) this.stop();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
