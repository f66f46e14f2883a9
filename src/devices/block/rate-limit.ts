// How much a disk may do in a second. A bucket fills evenly up to what a tenth of a second gives; a request may overdraw it,
// and then the next one waits until it is out of debt, so that requests of every size pass and the mean is kept.

import type { Clock } from '../../base/clock.ts';

export interface RateLimits {
  /** Both for reads and writes together; undefined: as much as there is. */
  readonly bytesPerSecond?: number | undefined;
  readonly requestsPerSecond?: number | undefined;
}

const BURST_SECONDS = 0.1;
const NANOS_PER_SECOND = 1e9;

class Bucket {
  readonly #perSecond: number;
  readonly #most: number;
  #level: number;
  #filledNanos: number;

  constructor(perSecond: number, nowNanos: number) {
    this.#perSecond = perSecond;
    this.#most = Math.max(1, perSecond * BURST_SECONDS);
    this.#level = this.#most;
    this.#filledNanos = nowNanos;
  }

  /** Milliseconds until there is something in it. */
  delayMillis(nowNanos: number): number {
    const passed = (nowNanos - this.#filledNanos) / NANOS_PER_SECOND;
    this.#level = Math.min(this.#most, this.#level + passed * this.#perSecond);
    this.#filledNanos = nowNanos;
    return this.#level > 0 ? 0 : (-this.#level / this.#perSecond) * 1000 + 1;
  }
  take(amount: number): void {
    this.#level -= amount;
  }
}

export class RateLimit {
  readonly #clock: Pick<Clock, 'monotonicNanos'>;
  readonly #bytes: Bucket | undefined;
  readonly #requests: Bucket | undefined;

  constructor(limits: RateLimits, clock: Pick<Clock, 'monotonicNanos'>) {
    const now = clock.monotonicNanos();
    this.#clock = clock;
    this.#bytes = limits.bytesPerSecond === undefined ? undefined : new Bucket(limits.bytesPerSecond, now);
    this.#requests = limits.requestsPerSecond === undefined ? undefined : new Bucket(limits.requestsPerSecond, now);
  }

  get isLimited(): boolean {
    return this.#bytes !== undefined || this.#requests !== undefined;
  }

  /** Milliseconds until the next request may start; 0: now. */
  delayMillis(): number {
    if (this.#bytes === undefined && this.#requests === undefined) return 0;
    const now = this.#clock.monotonicNanos();
    return Math.max(this.#bytes?.delayMillis(now) ?? 0, this.#requests?.delayMillis(now) ?? 0);
  }

  takeRequest(): void {
    this.#requests?.take(1);
  }
  takeBytes(bytes: number): void {
    this.#bytes?.take(bytes);
  }
}
