// The loop of a pCPU thread: takes a vCPU, runs it slice by slice, and sleeps when there is none.
//
//   take ─► enter code ─► may it run? ─► timers ─► run ─► leave code ─► block │ put back │ next slice
//
// A slice is about a millisecond of instructions at the rate seen lately, or less when a timer is due before. Between
// slices others get their turn. What others want of a vCPU they say by its `pending` word, which ends a slice early.

import { STALL_OUT_OF_FRAMES } from '../abi/domain-record.ts';
import { PCPU, VCPU_REQUEST, VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { RUNSTATE } from '../abi/xen-shared-info.ts';
import type { Clock } from '../base/clock.ts';
import { tuning } from '../base/tuning.ts';
import type { ExitReason } from '../cpu/host.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { Deadlines } from './deadlines.ts';
import type { SafePoints } from './safe-points.ts';
import { TURN_NANOS } from './run-queue.ts';
import type { VcpuScheduling } from './scheduler.ts';
import type { Timers } from './timer.ts';

/** What is left of a turn after a slice is not worth another one if it is shorter. */
const TURN_REST_NANOS = TURN_NANOS / 16;
/** Of a vCPU that has never run here: nothing that it needs is at hand yet, and whoever looks soon sees that it runs. */
const FIRST_SLICE_INSTRUCTIONS = 64;
/** Fuel has 28 bits for instructions, one of them the sign. */
const SLICE_MAX_INSTRUCTIONS = tuning.sliceInstructions ?? 4_000_000;
const SLICE_MIN_INSTRUCTIONS = Math.min(2000, SLICE_MAX_INSTRUCTIONS);
/** Guess of the first slice. */
const FIRST_INSTRUCTIONS_PER_NANO = 0.1;
/** Weight of the newest slice in the rate. */
const RATE_WEIGHT = 1 / 8;
/** Between two YIELDs or WFEs of a vCPU that does nothing but wait there are fewer instructions than this. */
const SPIN_INSTRUCTIONS = 200;
/**
 * After so many of them in a row, some 50 µs, the vCPU rests for a while: whoever it waits for takes long, perhaps for
 * want of a core, and that may be this one. If it still has to wait then, it looks a few times only.
 */
const SPINS_MAX = 16;
const SPINS_AFTER_REST = 4;
const REST_NANOS = 50_000;
const NANOS_PER_MILLI = 1e6;
const NANOS_PER_MICRO = 1000;
/** A sleep this long costs nothing, and a clock that goes slow is noticed. */
const SLEEP_MAX_MILLIS = 60_000;

/**
 * As the engine says it; or YIELD and WFE, which end a slice early although nobody wanted the vCPU; or there was none,
 * because the domain's cap is used up.
 */
type SliceEnd = ExitReason | 'yield' | 'throttled';

/** What runs a vCPU's code: cpu/engine.ts. */
export interface VcpuRunner {
  vcpu(vcpuAddress: number): VcpuState;
  run(vcpu: VcpuState, instructions: number): ExitReason;
  requestExit(reason: ExitReason): void;
  obeyFlushRequest(vcpu: VcpuState): void;
  /** Whether the last slice ended in compiled code. */
  readonly isInRegions: boolean;
}

/** Work for idle time. */
export interface IdleWork {
  /** Whether there is something to do; may be wrong for a moment. */
  readonly isWaiting: boolean;
  /** Does a small piece, and less when a vCPU waits. @returns false if there was nothing to do */
  step(): boolean;
}

export interface PCpuOptions {
  readonly pcpu: number;
  readonly machine: MachineMemory;
  readonly scheduling: VcpuScheduling;
  readonly safePoints: SafePoints;
  readonly timers: Timers;
  readonly clock: Clock;
  /** What DOMAIN.at.stalled is to say of the vCPU that has just stopped for want of a frame. */
  readonly stallReason?: () => number;
  /** A domain was paused for want of a frame, in the pCPU's thread: tells the host. */
  readonly onStall?: (domid: number) => void;
  /** A vCPU changes its state, one of RUNSTATE: called in this thread, at a safe point. */
  readonly onRunstate?: (vcpuAddress: number, runstate: number) => void;
  readonly idleWork?: IdleWork;
  /** A vCPU, between two instructions, has run for so long since its last sample: called in this thread, at a safe point. */
  readonly onSample?: (vcpu: VcpuState, nanos: number) => void;
}

export class PCpu {
  readonly #options: PCpuOptions;
  readonly #engine: VcpuRunner;
  readonly #deadlines: Deadlines;
  #instructionsPerNano = FIRST_INSTRUCTIONS_PER_NANO;
  /** Of the last slice that was long enough to tell. */
  #lastRate = 0;
  /** How often in a row a vCPU has been seen to spin. */
  readonly #spinning = { vcpuAddress: 0, spins: 0 };
  /** Until the next sample; and time since the last one. */
  readonly #sampling = { instructions: 0, nanos: 0 };

  constructor(engine: VcpuRunner, options: PCpuOptions) {
    const { scheduling, safePoints } = options;
    this.#options = options;
    this.#engine = engine;
    this.#deadlines = new Deadlines(d => scheduling.isBlockedIn(d.vcpuAddress, d.generation));
    scheduling.onRequest(() => engine.requestExit('host'));
    safePoints.onFlush(vcpuAddress => engine.obeyFlushRequest(engine.vcpu(vcpuAddress)));
  }

  /** Until the host closes (VcpuScheduling.close). */
  runLoop(): void {
    const { scheduling, pcpu } = this.#options;
    while (!scheduling.isClosing) {
      this.#wakeDue();
      const vcpuAddress = scheduling.take(pcpu);
      if (vcpuAddress !== 0) {
        this.#runTurn(vcpuAddress);
        scheduling.awaitReturn(vcpuAddress);
      } else if (!this.#doIdleWork()) this.#sleep();
    }
  }

  /** @returns false if there is none, or it has to wait */
  #doIdleWork(): boolean {
    const { scheduling, idleWork } = this.#options;
    return idleWork?.isWaiting === true && !scheduling.mustPutOff() && idleWork.step();
  }

  #sleep(): void {
    const { scheduling, pcpu, clock, idleWork } = this.#options;
    const millis = (this.#deadlines.next() - clock.monotonicNanos()) / NANOS_PER_MILLI;
    const hasWork = (): boolean => idleWork?.isWaiting === true && !scheduling.isBriefStop;
    if (millis > 0) scheduling.sleep(pcpu, Math.min(millis, SLEEP_MAX_MILLIS), hasWork);
  }

  #wakeDue(): void {
    const { scheduling, clock } = this.#options;
    if (this.#deadlines.size === 0) return;
    const now = clock.monotonicNanos();
    for (let due = this.#deadlines.takeDue(now); due !== undefined; due = this.#deadlines.takeDue(now)) {
      scheduling.expire(due.vcpuAddress, due.generation);
    }
  }

  // ---- a vCPU's turn

  #runTurn(vcpuAddress: number): void {
    try {
      this.#tellRunstate(vcpuAddress, RUNSTATE.running);
      this.#runSlices(vcpuAddress);
    } catch (error) {
      // A bug of ours: this thread ends, and nobody shall wait for the vCPU for ever.
      this.#options.scheduling.putOffline(vcpuAddress);
      throw error;
    }
  }

  #runSlices(vcpuAddress: number): void {
    const { scheduling, clock } = this.#options;
    const vcpu = this.#engine.vcpu(vcpuAddress);
    let turnEnd = clock.monotonicNanos() + TURN_NANOS;
    for (;;) {
      const reason = this.#runSlice(vcpu, turnEnd);
      if (reason === undefined) return this.#putBack(vcpuAddress);
      if (reason === 'throttled') return this.#throttle(vcpuAddress);
      if (reason === 'noFrame') this.#stall(vcpuAddress);
      const requests = scheduling.takeRequests(vcpuAddress);
      if ((requests & VCPU_REQUEST.offline) !== 0) return scheduling.putOffline(vcpuAddress);
      if ((requests & VCPU_REQUEST.block) !== 0) return this.#block(vcpuAddress, true);
      if (reason === 'wfi') return this.#block(vcpuAddress, false);
      if ((requests & VCPU_REQUEST.yield) !== 0) return this.#putBack(vcpuAddress, true);
      this.#wakeDue();
      if (scheduling.isClosing) return this.#putBack(vcpuAddress);
      const now = clock.monotonicNanos();
      // One that spins gives way to the one that it waits for.
      if (turnEnd - now > TURN_REST_NANOS && reason !== 'yield') continue;
      if (scheduling.hasWaiting) return this.#putBack(vcpuAddress, reason === 'yield');
      if (this.#spinning.spins > SPINS_MAX) return this.#rest(vcpuAddress, now);
      turnEnd = now + TURN_NANOS;
    }
  }

  /** @returns undefined if the vCPU may not run */
  #runSlice(vcpu: VcpuState, turnEnd: number): SliceEnd | undefined {
    const { scheduling, safePoints, timers, clock } = this.#options;
    const { u32 } = this.#options.machine;
    const { address } = vcpu;
    // First the marks, then the look: whoever forbids it to run sets that first, then looks at the one mark or sets
    // the other, which ends the slice.
    Atomics.store(u32, (address + vcpuRecord.at.running) >>> 2, 1);
    Atomics.store(u32, (address + vcpuRecord.at.pending) >>> 2, 0);
    if (!scheduling.mayRun(address)) return undefined;
    if ((scheduling.get(address, 'request') & VCPU_REQUEST.offline) !== 0) return 'host';
    const start = clock.monotonicNanos();
    timers.update(address, start);
    const capLeft = scheduling.shares.leftNanos(scheduling.table.domidOf(address), start);
    if (capLeft <= 0) return 'throttled';
    const end = Math.min(turnEnd, timers.nextDeadlineNanos(address), this.#deadlines.next(), start + capLeft);
    scheduling.setNanos(address, VCPU_SCHEDULE.at.sliceStart, start);
    scheduling.setNanos(address, VCPU_SCHEDULE.at.sliceEnd, end);
    const isFirst = scheduling.getNanos(address, VCPU_SCHEDULE.at.runNanos) === 0;
    const budget = this.#untilSample(isFirst ? FIRST_SLICE_INSTRUCTIONS : this.#budget(end - start));
    const retiredBefore = vcpu.getDouble(vcpuRecord.at.instructionsRetired);
    safePoints.enter(address);
    let reason: ExitReason;
    try {
      reason = this.#engine.run(vcpu, budget);
    } finally {
      safePoints.leave();
      // The slice is over: a deadline cuts nothing.
      scheduling.setNanos(address, VCPU_SCHEDULE.at.sliceEnd, 0);
    }
    const now = clock.monotonicNanos();
    timers.update(address, now);
    const retired = vcpu.getDouble(vcpuRecord.at.instructionsRetired) - retiredBefore;
    this.#account(address, now - start, retired);
    this.#sample(vcpu, now - start, retired);
    const yielded = reason === 'slice' && retired < budget && !scheduling.isKicked(address);
    this.#noteSpin(address, yielded && retired < SPIN_INSTRUCTIONS);
    return yielded ? 'yield' : reason;
  }

  #noteSpin(vcpuAddress: number, spins: boolean): void {
    const spinning = this.#spinning;
    if (!spins || spinning.vcpuAddress !== vcpuAddress) spinning.spins = 0;
    spinning.vcpuAddress = vcpuAddress;
    if (spins) spinning.spins++;
  }

  /** A slice ends where a sample is due: what it says must not depend on what else ends slices. */
  #untilSample(budget: number): number {
    const { scheduling: { sampleMicros }, onSample } = this.#options;
    if (sampleMicros === 0 || onSample === undefined) return budget;
    const sampling = this.#sampling;
    // Not in step with what the guest does periodically.
    if (sampling.instructions <= 0) {
      const interval = sampleMicros * NANOS_PER_MICRO * this.#instructionsPerNano;
      sampling.instructions = Math.max(SLICE_MIN_INSTRUCTIONS, Math.ceil(interval * (0.5 + Math.random())));
    }
    return Math.min(budget, sampling.instructions);
  }
  #sample(vcpu: VcpuState, nanos: number, retired: number): void {
    const { scheduling: { sampleMicros }, safePoints, onSample } = this.#options;
    if (onSample === undefined || sampleMicros === 0) return;
    const sampling = this.#sampling;
    sampling.instructions -= retired;
    sampling.nanos += nanos;
    // The rate may have been underestimated.
    if (sampling.instructions > 0 || sampling.nanos < sampleMicros * NANOS_PER_MICRO / 2) return;
    safePoints.enter(vcpu.address);
    try {
      onSample(vcpu, sampling.nanos);
    } finally {
      safePoints.leave();
    }
    sampling.nanos = 0;
  }

  #budget(nanos: number): number {
    const instructions = Math.floor(nanos * this.#instructionsPerNano);
    return Math.max(SLICE_MIN_INSTRUCTIONS, Math.min(SLICE_MAX_INSTRUCTIONS, instructions));
  }

  #account(vcpuAddress: number, nanos: number, instructions: number): void {
    const { scheduling, machine, pcpu } = this.#options;
    if (instructions >= SLICE_MIN_INSTRUCTIONS && nanos > 0) {
      const rate = instructions / nanos;
      // Compiled code is ten times as fast as interpreted code: what becomes slow must not overrun its slices for long. But
      // a single slow slice may be one in which the thread was off its core.
      const believed = Math.max(rate, this.#lastRate);
      this.#lastRate = rate;
      this.#instructionsPerNano = Math.min(believed, this.#instructionsPerNano + (rate - this.#instructionsPerNano) * RATE_WEIGHT);
    }
    const { runNanos } = VCPU_SCHEDULE.at;
    scheduling.setNanos(vcpuAddress, runNanos, scheduling.getNanos(vcpuAddress, runNanos) + nanos);
    scheduling.charge(pcpu, vcpuAddress, nanos);
    const record = machine.pcpuAddress(pcpu);
    machine.f64[(record + PCPU.at.busyNanos) / 8]! += nanos;
    if (this.#engine.isInRegions) machine.f64[(record + PCPU.at.compiledNanos) / 8]! += nanos;
    machine.u32[(record + PCPU.at.slices) / 4]!++;
  }

  #stall(vcpuAddress: number): void {
    const { scheduling, onStall, stallReason } = this.#options;
    const domid = scheduling.table.domidOf(vcpuAddress);
    if (scheduling.stallDomain(domid, stallReason?.() ?? STALL_OUT_OF_FRAMES)) onStall?.(domid);
  }

  /** It may write to the guest's memory, so it counts as code. */
  #tellRunstate(vcpuAddress: number, runstate: number): void {
    const { onRunstate, safePoints } = this.#options;
    if (onRunstate === undefined) return;
    safePoints.enter(vcpuAddress);
    try {
      onRunstate(vcpuAddress, runstate);
    } finally {
      safePoints.leave();
    }
  }

  #putBack(vcpuAddress: number, spins = false): void {
    this.#tellRunstate(vcpuAddress, RUNSTATE.runnable);
    this.#options.scheduling.putBack(vcpuAddress, spins);
  }
  #throttle(vcpuAddress: number): void {
    const { scheduling, clock } = this.#options;
    this.#tellRunstate(vcpuAddress, RUNSTATE.runnable);
    const { generation, untilNanos } = scheduling.throttleRunning(vcpuAddress, clock.monotonicNanos());
    this.#deadlines.add({ nanos: untilNanos, vcpuAddress, generation });
  }

  #block(vcpuAddress: number, untilAsked: boolean, until = Infinity): void {
    const { scheduling, timers } = this.#options;
    this.#tellRunstate(vcpuAddress, RUNSTATE.blocked);
    const timer = timers.nextDeadlineNanos(vcpuAddress);
    const asked = untilAsked ? scheduling.getNanos(vcpuAddress, VCPU_SCHEDULE.at.blockUntil) : until;
    const generation = scheduling.blockRunning(vcpuAddress, untilAsked);
    this.#deadlines.add({ nanos: Math.min(timer, asked), vcpuAddress, generation });
  }
  /** One that spins, and nobody else waits. */
  #rest(vcpuAddress: number, now: number): void {
    this.#spinning.spins = SPINS_MAX - SPINS_AFTER_REST;
    this.#block(vcpuAddress, false, now + REST_NANOS);
  }
}
