// Time as an injected interface: tests bring their own, and replay will.

export interface Clock {
  /** Nanoseconds since an arbitrary origin, never going back; a double (exact to well below a microsecond). */
  monotonicNanos(): number;
  /** Milliseconds since 1970-01-01T00:00:00Z. */
  wallMillis(): number;
}

/** All threads of a process see the same monotonic time. */
export const systemClock: Clock = {
  monotonicNanos: () => {
    // Without a BigInt, which a thread that asks some times for each packet would have to collect.
    const [seconds, nanos] = process.hrtime();
    return seconds * 1e9 + nanos;
  },
  wallMillis: () => Date.now(),
};
