// What workers.test.ts and its pCPU threads (test-pcpu-worker.ts) agree on.

export interface PcpuTask {
  readonly memory: WebAssembly.Memory;
  readonly counters: SharedArrayBuffer;
  readonly pcpu: number;
  readonly timerIntid: number;
  /** Of so many interrupts served, one flushes the TLBs of the domain; 0: none. */
  readonly flushEvery: number;
}

/** Words of the shared counters. */
export const COUNTERS = {
  hops: 0, ticks: 1, served: 2, errors: 3, worldStopped: 4,
  /** Set by the test: a vCPU that runs stays where it is until some thread sleeps until it stops. And how many do. */
  hold: 5, held: 6,
} as const;
/** A quarter of a millisecond. */
export const TIMER_PERIOD_TICKS = 15_625;
