// What domains may have of the pCPUs: weights, which the run queue's order follows (run-queue.ts), and caps, which are
// kept by periods:
//
//   used  ▁▃▅▇▇▇▇│▁▃▅▇▇▇  what runs over is taken off the next period
//         ran  rests     at the period's end as much as the cap allows is given back

import { DOMAIN_SCHEDULE, WEIGHT_DEFAULT } from '../abi/scheduler.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';

const D = DOMAIN_SCHEDULE.at;
/** A cap is kept over so much time. */
export const CAP_PERIOD_NANOS = 10e6;
const NANOS_PER_MICRO = 1000;
const MICROS_PER_PERCENT = CAP_PERIOD_NANOS / NANOS_PER_MICRO / 100;
/** Beyond that many periods nothing is left of what was used. */
const PERIODS_MAX = 1e6;

/** What a domain gets of the pCPUs. */
export interface DomainShare {
  /** Against the weights of others that have something to do; 256 is usual. */
  readonly weight: number;
  /** Percent of one pCPU; 0: no limit. */
  readonly capPercent: number;
}

export class DomainShares {
  readonly #machine: MachineMemory;
  readonly #start: number;

  /** @param start address of the first DOMAIN_SCHEDULE */
  constructor(machine: MachineMemory, start: number) {
    this.#machine = machine;
    this.#start = start;
  }

  #index(domid: number, field: keyof typeof D): number {
    return (this.#start + domid * DOMAIN_SCHEDULE.sizeBytes + D[field]) >>> 2;
  }

  /** Of a new domain: the usual share. */
  reset(domid: number): void {
    for (const field of ['period', 'usedMicros'] as const) this.#machine.u32[this.#index(domid, field)] = 0;
    this.set(domid, { weight: WEIGHT_DEFAULT, capPercent: 0 });
  }
  get(domid: number): DomainShare {
    const { u32 } = this.#machine;
    return {
      weight: Atomics.load(u32, this.#index(domid, 'weight')), capPercent: Atomics.load(u32, this.#index(domid, 'capPercent')),
    };
  }
  /** From now on. */
  set(domid: number, { weight, capPercent }: DomainShare): void {
    assert(weight > 0, 'a domain without weight');
    Atomics.store(this.#machine.u32, this.#index(domid, 'weight'), weight);
    Atomics.store(this.#machine.u32, this.#index(domid, 'capPercent'), capPercent);
  }
  weight(domid: number): number {
    return this.#machine.u32[this.#index(domid, 'weight')]!;
  }

  /** A vCPU of the domain has run for so long. */
  use(domid: number, nanos: number): void {
    const { u32 } = this.#machine;
    if (u32[this.#index(domid, 'capPercent')] === 0) return;
    Atomics.add(u32, this.#index(domid, 'usedMicros'), Math.round(nanos / NANOS_PER_MICRO));
  }
  /** How long the domain may still run, all its vCPUs together; 0 or less: not before the next period. */
  leftNanos(domid: number, nowNanos: number): number {
    const { u32 } = this.#machine;
    const capPercent = u32[this.#index(domid, 'capPercent')]!;
    if (capPercent === 0) return Infinity;
    const allowed = capPercent * MICROS_PER_PERCENT;
    const used = this.#index(domid, 'usedMicros');
    const index = this.#index(domid, 'period');
    const period = Math.floor(nowNanos / CAP_PERIOD_NANOS) >>> 0;
    const before = Atomics.load(u32, index);
    if (before !== period && Atomics.compareExchange(u32, index, before, period) === before) {
      const givenBack = Math.min((period - before) >>> 0, PERIODS_MAX) * allowed;
      // What others add meanwhile stays.
      Atomics.sub(u32, used, Math.min(Atomics.load(u32, used), givenBack));
    }
    return (allowed - Atomics.load(u32, used)) * NANOS_PER_MICRO;
  }
}

/** When the next period begins. */
export function nextPeriod(nowNanos: number): number {
  return (Math.floor(nowNanos / CAP_PERIOD_NANOS) + 1) * CAP_PERIOD_NANOS;
}
