// Time as an injected interface, so that a whole host can be replayed from one seed.

export interface Clock {
  /** Nanoseconds since an arbitrary origin, never going back; a double (exact to well below a microsecond). */
  monotonicNanos(): number;
  /** Milliseconds since 1970-01-01T00:00:00Z. */
  wallMillis(): number;
}

/** All threads of one process share the origin of `performance.timeOrigin`-corrected time. */
export const systemClock: Clock = {
  monotonicNanos: () => Number(process.hrtime.bigint()),
  wallMillis: () => Date.now(),
};
