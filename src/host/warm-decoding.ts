// What a pCPU does while it has never had anything to do: it decodes an instruction or two of each kind that there is. The
// table's code is read by V8 when it is first called, and made fast when it has been called often, so that the first guest
// of a process, and the first code of a restored one, would wait for that. What is decoded is remembered, and is seldom
// what a guest has; it is the code that counts.

import { rows } from '../a64/table.ts';
import { SeededRandom } from '../base/random.ts';
import type { DecodeAhead } from '../cpu/decode-ahead.ts';
import type { DecodeCache } from '../cpu/decode-cache.ts';
import type { IdleWork } from '../hypervisor/pcpu.ts';
import type { SafePoints } from '../hypervisor/safe-points.ts';

const WORDS_PER_ROW = 2;

export class WarmDecoding implements IdleWork {
  readonly #cache: Pick<DecodeCache, 'learn'>;
  readonly #random = new SeededRandom(1);
  #next = 0;

  constructor(cache: Pick<DecodeCache, 'learn'>) {
    this.#cache = cache;
  }

  get isWaiting(): boolean {
    return this.#next < rows.length;
  }

  /** One row of the table, some ten microseconds. */
  step(): boolean {
    const row = rows[this.#next++];
    if (row === undefined) return false;
    for (let i = 0; i < WORDS_PER_ROW; i++) this.#cache.learn(((this.#random.u32() & ~row.mask) | row.bits) >>> 0);
    return true;
  }
}

/** Code of a guest that is being restored is decoded before it gets there. */
export class CodeAhead implements IdleWork {
  readonly #ahead: Pick<DecodeAhead, 'isWaiting' | 'step'>;
  readonly #safePoints: Pick<SafePoints, 'enterIdleWork' | 'leave'>;

  constructor(ahead: Pick<DecodeAhead, 'isWaiting' | 'step'>, safePoints: Pick<SafePoints, 'enterIdleWork' | 'leave'>) {
    this.#ahead = ahead;
    this.#safePoints = safePoints;
  }

  get isWaiting(): boolean {
    return this.#ahead.isWaiting;
  }

  /** One page, some ten microseconds. */
  step(): boolean {
    if (!this.isWaiting) return false;
    this.#safePoints.enterIdleWork();
    try {
      return this.#ahead.step();
    } finally {
      this.#safePoints.leave();
    }
  }
}

/** Memory for code to be decoded into is touched before somebody waits for it. */
export class SlotsAhead implements IdleWork {
  readonly #cache: Pick<DecodeCache, 'wantsTouching' | 'touchAhead'>;

  constructor(cache: Pick<DecodeCache, 'wantsTouching' | 'touchAhead'>) {
    this.#cache = cache;
  }

  get isWaiting(): boolean {
    return this.#cache.wantsTouching;
  }

  /** One slot, some microseconds. */
  step(): boolean {
    const isWaiting = this.isWaiting;
    if (isWaiting) this.#cache.touchAhead();
    return isWaiting;
  }
}

/** The first of several that has something to do does a piece of it. */
export function firstOf(...works: readonly IdleWork[]): IdleWork {
  return {
    get isWaiting() { return works.some((work) => work.isWaiting); },
    step: () => works.some((work) => work.step()),
  };
}
