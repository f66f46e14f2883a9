// Time for tests: it passes when a test says so, and callbacks run in a fixed order.

import type { Scheduler, Timer } from './scheduler.ts';

interface Waiting {
  readonly atMillis: number;
  readonly callback: () => void;
}

export class TestScheduler implements Scheduler {
  #nowMillis = 1000;
  /** In the order of their making, which decides between equal times. */
  readonly #timers = new Set<Waiting>();
  #soon: (() => void)[] = [];

  nowMillis(): number {
    return this.#nowMillis;
  }

  after(delayMillis: number, callback: () => void): Timer {
    const timer = { atMillis: this.#nowMillis + delayMillis, callback };
    this.#timers.add(timer);
    return { cancel: () => this.#timers.delete(timer) };
  }

  soon(callback: () => void): void {
    this.#soon.push(callback);
  }

  get timers(): number {
    return this.#timers.size;
  }

  /** Runs what is due without time passing. */
  settle(): void {
    while (this.#soon.length > 0) {
      const batch = this.#soon;
      this.#soon = [];
      for (const callback of batch) callback();
    }
  }

  /** Lets time pass, with all that falls due in it. */
  advance(millis: number): void {
    const untilMillis = this.#nowMillis + millis;
    this.settle();
    while (this.#next(untilMillis)) this.settle();
    this.#nowMillis = untilMillis;
  }

  /** Lets time pass until a condition holds; false if it did not within `limitMillis`. */
  until(condition: () => boolean, limitMillis = 600_000): boolean {
    const limit = this.#nowMillis + limitMillis;
    this.settle();
    while (!condition()) {
      if (!this.#next(limit)) return false;
      this.settle();
    }
    return true;
  }

  #next(untilMillis: number): boolean {
    let first: Waiting | undefined;
    for (const timer of this.#timers) if (first === undefined || timer.atMillis < first.atMillis) first = timer;
    if (first === undefined || first.atMillis > untilMillis) return false;
    this.#timers.delete(first);
    this.#nowMillis = Math.max(this.#nowMillis, first.atMillis);
    first.callback();
    return true;
  }
}
