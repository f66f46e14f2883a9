// Whether the guests of a host are at rest: then there is time for what a host puts off when it starts
// (docs/decisions/2026-11-21-threads-begin-when-needed.md).

/** Of all pCPUs together. A guest that boots is at rest for some milliseconds now and then, never for long. */
const BUSY_MAX = 0.05;
const NANOS_PER_MILLI = 1e6;

export class QuietTimes {
  #lookedAtMillis = 0;
  #busyNanos = 0;

  /**
   * To be called now and then, a few times a second.
   * @param busyNanos what all pCPUs have run guests until now
   * @returns true: a guest has run, and since the last call hardly any
   */
  look(nowMillis: number, busyNanos: number): boolean {
    const share = (busyNanos - this.#busyNanos) / NANOS_PER_MILLI / (nowMillis - this.#lookedAtMillis);
    const hasRun = this.#busyNanos > 0;
    this.#lookedAtMillis = nowMillis;
    this.#busyNanos = busyNanos;
    return hasRun && share < BUSY_MAX;
  }
}
