// The scheduler's records in machine memory: which vCPU runs where, and who waits for it.
//
// Region `scheduler`:
//   ┌──────────────────────────────┐
//   │ SCHEDULER                    │ run queue, idle pCPUs, stopping everything
//   │ VCPU_SCHEDULE × vcpuCount    │ in the order of the region `vcpus`
//   │ DOMAIN_SCHEDULE × domainCount│ weights and caps
//   └──────────────────────────────┘
// and PCPU at the start of each record of the region `pcpus`.

import { struct, u32, u64 } from './struct.ts';

/** vCPUs in links are named by their number in the region `vcpus`, plus 1; 0: none. */
export const SCHEDULER = struct('scheduler', {
  /** Covers the queue, the idle set and all changes of `queued`. */
  lock: u32,
  head: u32,
  tail: u32,
  /** A bit for each pCPU that sleeps, or is about to. */
  idleLow: u32,
  idleHigh: u32,
  /** The thread that holds all pCPUs at their safe point, plus 1; 0: they run. */
  worldOwner: u32,
  /** Non-zero: workers leave their loops. */
  closing: u32,
  /** How many threads sleep, or are about to, until some vCPU stops; and what they sleep on, counted up when one has. */
  stopWaiters: u32,
  stopBell: u32,
  /** How many stops are under way that take a fraction of a millisecond; and whether a pCPU has put off other work for one. */
  briefStops: u32,
  putOff: u32,
  /** How much of its time a vCPU runs between two samples of its stack; 0: no samples are taken. */
  sampleMicros: u32,
  /** Virtual time: what everybody has had who is not behind. A double; never goes back but for races. */
  virtualNanos: u64,
}, { padTo: 64 });

export const VCPU_STATE = {
  /** Powered off. */
  offline: 0,
  /** Being powered on: registers are set up. */
  starting: 1,
  /** In the queue, or kept out of it because it is paused. */
  runnable: 2,
  running: 3,
  blocked: 4,
  /** Would run, but its domain has had what its cap allows; until the next period. */
  throttled: 5,
} as const;

/** What a vCPU asked for during a call to the hypervisor; obeyed when it has left emitted code. */
export const VCPU_REQUEST = { block: 1, yield: 2, offline: 4 } as const;

/** Times are host nanoseconds, doubles. */
export const VCPU_SCHEDULE = struct('vcpuSchedule', {
  state: u32,
  queued: u32,
  next: u32,
  /** Somebody woke it while it was not blocked: the next block does not. */
  wakeToken: u32,
  request: u32,
  /** Counts blocks, so that old deadlines are known for what they are. */
  generation: u32,
  /** The pCPU that ran it last. */
  pcpu: u32,
  /** Non-zero once registers were set up for it to run. */
  started: u32,
  /** When the block that was asked for ends by itself. */
  blockUntil: u64,
  /** When the running slice is planned to end: an earlier deadline must say so. */
  sliceEnd: u64,
  runNanos: u64,
  /** What it has had: time on pCPUs, over its share. The queue is in this order. */
  virtualNanos: u64,
  /** When the running slice, or the last one, began. */
  sliceStart: u64,
  /** The one before it in the queue, named as in `next`. */
  previous: u32,
}, { padTo: 128 });

export const WEIGHT_DEFAULT = 256;
export const DOMAIN_SCHEDULE = struct('domainSchedule', {
  /** Of the domain as a whole, however many vCPUs it has. */
  weight: u32,
  /** Percent of one pCPU that all its vCPUs get together at most; 0: no limit. */
  capPercent: u32,
  /** The period, by its number modulo 2^32, that `usedMicros` is of, with what was overdrawn before. */
  period: u32,
  usedMicros: u32,
}, { sizeBytes: 16 });

export const PCPU = struct('pcpu', {
  /** Counted up to wake the pCPU; it sleeps on it. */
  doorbell: u32,
  /** Non-zero while emitted code or a slow path of it runs: the decode cache may not go. */
  inCode: u32,
  /** Address of the vCPU record that it runs; 0: none. */
  vcpu: u32,
  slices: u32,
  /** Non-zero while it is out of code in the middle of a call from it, waiting for others; it may hold stale frames. */
  aside: u32,
  busyNanos: u64,
  /** The part of it in slices that compiled code was in at the end. */
  compiledNanos: u64,
  /** `virtualNanos` of the vCPU that it runs; 0: none. */
  virtualNanos: u64,
  /** Address of the vCPU record that it took from the queue last. */
  taken: u32,
});
