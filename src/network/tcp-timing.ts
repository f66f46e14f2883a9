// When to send again and how much at once: round-trip time estimate (RFC 6298) and congestion window (RFC 5681, 6582).
//
// The path to a guest is a ring in memory that refuses what it cannot take, so loss is rare; but a guest may drop
// segments itself, and the standard answers work for that.

const INITIAL_RTO_MILLIS = 1000;
const MIN_RTO_MILLIS = 200;
const MAX_RTO_MILLIS = 60_000;
/** Larger than RFC 6928's: there is no network to congest before the guest's first answer. */
const INITIAL_WINDOW_BYTES = 65536;

export class RetransmissionTimeout {
  #smoothedMillis = -1;
  #variationMillis = 0;
  #backoff = 1;

  get millis(): number {
    const base = this.#smoothedMillis < 0 ? INITIAL_RTO_MILLIS : this.#smoothedMillis + 4 * this.#variationMillis;
    return Math.min(MAX_RTO_MILLIS, Math.max(MIN_RTO_MILLIS, base) * this.#backoff);
  }

  measured(millis: number): void {
    this.#backoff = 1;
    if (this.#smoothedMillis < 0) {
      this.#smoothedMillis = millis;
      this.#variationMillis = millis / 2;
      return;
    }
    this.#variationMillis += (Math.abs(this.#smoothedMillis - millis) - this.#variationMillis) / 4;
    this.#smoothedMillis += (millis - this.#smoothedMillis) / 8;
  }

  /** After a timeout. */
  backOff(): void {
    this.#backoff = Math.min(this.#backoff * 2, 512);
  }

  /** Something new was acknowledged. */
  progress(): void {
    this.#backoff = 1;
  }
}

export class CongestionWindow {
  bytes = INITIAL_WINDOW_BYTES;
  #threshold = Infinity;

  acknowledged(count: number, mss: number): void {
    if (this.bytes < this.#threshold) this.bytes += count;
    else this.bytes += Math.max(1, Math.floor((mss * count) / this.bytes));
    // More than any window that can be offered is of no use.
    this.bytes = Math.min(this.bytes, 0x4000_0000);
  }

  timedOut(inFlightBytes: number, mss: number): void {
    this.#threshold = Math.max(inFlightBytes >> 1, 2 * mss);
    this.bytes = mss;
  }

  /** Three duplicate acknowledgments: one segment is sent again at once. */
  enterRecovery(inFlightBytes: number, mss: number): void {
    this.#threshold = Math.max(inFlightBytes >> 1, 2 * mss);
    this.bytes = this.#threshold + 3 * mss;
  }

  /** A further duplicate: a segment has left the path. */
  inflate(mss: number): void {
    this.bytes += mss;
  }

  /** An acknowledgment that does not cover all that was in flight at the loss. */
  partial(count: number, mss: number): void {
    this.bytes = Math.max(mss, this.bytes - count + mss);
  }

  leaveRecovery(): void {
    this.bytes = this.#threshold;
  }
}
