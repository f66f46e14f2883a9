// Which vCPU runs on which pCPU. All pCPUs take from one queue; a vCPU that waits is in no queue, and whoever has
// something for it wakes it. This is what happens to a vCPU; who is next is run-queue.ts.
//
//             start               take               WFI, block
//   offline ─────────► runnable ◄─────► running ───────────────► blocked
//      ▲                  ▲      slice     │ │                      │
//      │                  └────────────────┼─┼──────────────────────┘ wake, interrupt, deadline
//      │                  └────────────────┼─┴─► throttled: the cap is used up, until the next period
//      └───────────────────────────────────┘ CPU_OFF
//
// A runnable vCPU whose domain is paused, shut down or dying stays out of the queue until that changes. Locks are
// taken in the order: domain, interrupt controller, run queue.

import { DOMAIN } from '../abi/domain-record.ts';
import { VCPU_REQUEST, VCPU_SCHEDULE, VCPU_STATE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { assertNoneFailed } from '../base/failure.ts';
import { canSleep, nap, ringBell } from '../memory/spin.ts';
import type { Scheduler } from './environment.ts';
import { RunQueue } from './run-queue.ts';
import { nextPeriod } from './shares.ts';

const V = VCPU_SCHEDULE.at;
/**
 * How often to look whether a domain has stopped before sleeping until it has: some 80 µs. A vCPU that is in emitted code
 * takes less; one whose thread is off its core may be waiting for the very core that the looking would take.
 */
const STOP_SPINS = 1500;
/** How often a pCPU looks whether a vCPU comes back that is stopped briefly: some 250 µs, longer than a checkpoint takes. */
const RETURN_LOOKS = 5000;
/** How often the vCPUs of a domain are tried to be found on cores, and how long they are given the caller's in between. */
const FIND_ATTEMPTS_MAX = 10;
const FIND_NAP_MILLIS = 0.2;
/** How long a waiter sleeps at most. Not less: each look takes a core away, perhaps from the vCPU that it waits for. */
const STOP_WAIT_MILLIS = 10;

/** What a checkpoint keeps of a vCPU's run state. */
export interface SavedSchedule {
  readonly isOnline: boolean;
  readonly wasStarted: boolean;
  readonly goesOffline: boolean;
}

export class VcpuScheduling extends RunQueue implements Scheduler {
  #requestExit: () => void = () => {};
  #onShutDown: (domid: number) => void = () => {};

  /** What makes the vCPU that this thread runs leave emitted code after the instruction (Engine.requestExit). */
  onRequest(requestExit: () => void): void {
    this.#requestExit = requestExit;
  }

  /** What tells the host that a domain has been shut down and none of its vCPUs runs any more; maybe more than once. */
  onShutDown(tellHost: (domid: number) => void): void {
    this.#onShutDown = tellHost;
  }

  // ---- life of a vCPU

  #moveState(vcpuAddress: number, from: number, to: number): boolean {
    if (Atomics.compareExchange(this.machine.u32, this.index(vcpuAddress, 'state'), from, to) !== from) return false;
    if (from === VCPU_STATE.running || from === VCPU_STATE.starting) {
      this.#tellStopWaiters();
      this.#tellIfShutDown(this.table.domidOf(vcpuAddress));
    }
    return true;
  }

  /**
   * A vCPU that is powered off and was never started. Its domain's interrupt controller knows it already. With the first
   * one, the domain gets the usual share.
   */
  attach(vcpuAddress: number): void {
    this.clear(vcpuAddress);
    if (this.table.indexOf(vcpuAddress) === 0) this.shares.reset(this.table.domidOf(vcpuAddress));
  }

  /** Powers the vCPU off for good; its domain is dying or paused, and the vCPU not running. */
  detach(vcpuAddress: number): void {
    assert(!this.isRunning(vcpuAddress), 'a running vCPU is taken away');
    this.lockQueue();
    this.dequeue(vcpuAddress);
    this.set(vcpuAddress, 'state', VCPU_STATE.offline);
    this.set(vcpuAddress, 'started', 0);
    this.unlockQueue();
  }

  /**
   * Powers a vCPU on.
   * @param setUp puts its registers into the state that it starts with
   * @returns false if it is on already
   */
  start(vcpuAddress: number, setUp: () => void): boolean {
    if (!this.#moveState(vcpuAddress, VCPU_STATE.offline, VCPU_STATE.starting)) return false;
    setUp();
    this.set(vcpuAddress, 'request', 0);
    this.set(vcpuAddress, 'started', 1);
    this.#makeRunnable(vcpuAddress, VCPU_STATE.starting);
    return true;
  }

  isOnline(vcpuAddress: number): boolean {
    return this.get(vcpuAddress, 'state') !== VCPU_STATE.offline;
  }

  /** Of a vCPU that is stopped. That it waits is not kept: a wait may end at any time, and the guest looks again. */
  save(vcpuAddress: number): SavedSchedule {
    return {
      isOnline: this.isOnline(vcpuAddress),
      wasStarted: this.get(vcpuAddress, 'started') !== 0,
      goesOffline: (this.get(vcpuAddress, 'request') & VCPU_REQUEST.offline) !== 0,
    };
  }
  /** Of a vCPU that is stopped, and whose domain may not run. */
  restore(vcpuAddress: number, saved: SavedSchedule): void {
    this.lockQueue();
    this.dequeue(vcpuAddress);
    this.set(vcpuAddress, 'request', saved.goesOffline ? VCPU_REQUEST.offline : 0);
    this.set(vcpuAddress, 'wakeToken', 0);
    this.set(vcpuAddress, 'started', Number(saved.wasStarted));
    this.set(vcpuAddress, 'state', saved.isOnline ? VCPU_STATE.runnable : VCPU_STATE.offline);
    this.unlockQueue();
  }

  isStarting(vcpuAddress: number): boolean {
    return this.get(vcpuAddress, 'state') === VCPU_STATE.starting;
  }

  setOnline(vcpuAddress: number, online: boolean): boolean {
    if (this.get(vcpuAddress, 'started') === 0) return false;
    if (online) {
      Atomics.and(this.machine.u32, this.index(vcpuAddress, 'request'), ~VCPU_REQUEST.offline);
      this.#makeRunnable(vcpuAddress, VCPU_STATE.offline);
    } else {
      // If it runs, it or its pCPU obeys; if not, the next pCPU that takes it.
      this.#request(vcpuAddress, VCPU_REQUEST.offline);
      this.wake(vcpuAddress);
      this.kick(vcpuAddress);
    }
    return true;
  }

  // ---- waiting and waking

  #request(vcpuAddress: number, request: number): void {
    Atomics.or(this.machine.u32, this.index(vcpuAddress, 'request'), request);
    this.#requestExit();
  }
  takeRequests(vcpuAddress: number): number {
    return Atomics.exchange(this.machine.u32, this.index(vcpuAddress, 'request'), 0);
  }

  block(vcpuAddress: number, deadlineNanos: number | undefined): void {
    this.setNanos(vcpuAddress, V.blockUntil, deadlineNanos ?? Infinity);
    this.#request(vcpuAddress, VCPU_REQUEST.block);
  }

  yield(vcpuAddress: number): void {
    this.#request(vcpuAddress, VCPU_REQUEST.yield);
  }

  wake(vcpuAddress: number): void {
    this.set(vcpuAddress, 'wakeToken', 1);
    this.#makeRunnable(vcpuAddress, VCPU_STATE.blocked);
  }

  /** For the interrupt controller, which has raised the IRQ line: a blocked vCPU goes on. */
  interrupted(vcpuAddress: number): void {
    this.#makeRunnable(vcpuAddress, VCPU_STATE.blocked);
  }

  #makeRunnable(vcpuAddress: number, from: number): void {
    if (!this.#moveState(vcpuAddress, from, VCPU_STATE.runnable)) return;
    this.lockQueue();
    this.enqueue(vcpuAddress);
    this.unlockQueue();
  }

  /**
   * The running vCPU waits, if there is nothing for it yet. By its pCPU, after it has left emitted code.
   * @param mindToken whether a wake that came before counts; a WFI waits for interrupts only
   * @returns the block's generation, or 0 if the vCPU is not this pCPU's any more or goes on: look at the state
   */
  blockRunning(vcpuAddress: number, mindToken: boolean): number {
    const { u32 } = this.machine;
    if (!mindToken) this.set(vcpuAddress, 'wakeToken', 0);
    const generation = this.#nextGeneration(vcpuAddress);
    Atomics.store(u32, (vcpuAddress + vcpuRecord.at.running) >>> 2, 0);
    if (!this.#moveState(vcpuAddress, VCPU_STATE.running, VCPU_STATE.blocked)) return 0;
    const irqLine = Atomics.load(u32, (vcpuAddress + vcpuRecord.at.irqLine) >>> 2);
    const token = mindToken && Atomics.exchange(u32, this.index(vcpuAddress, 'wakeToken'), 0) !== 0;
    const offline = (this.get(vcpuAddress, 'request') & VCPU_REQUEST.offline) !== 0;
    if (irqLine !== 0 || token || offline) this.#makeRunnable(vcpuAddress, VCPU_STATE.blocked);
    return generation;
  }
  /** A deadline of a block, or of being throttled, has come: ends it if it is still that one. */
  expire(vcpuAddress: number, generation: number): void {
    if (this.get(vcpuAddress, 'generation') !== generation) return;
    this.#makeRunnable(vcpuAddress, VCPU_STATE.blocked);
    this.#makeRunnable(vcpuAddress, VCPU_STATE.throttled);
  }
  isBlockedIn(vcpuAddress: number, generation: number): boolean {
    const state = this.get(vcpuAddress, 'state');
    return this.get(vcpuAddress, 'generation') === generation && (state === VCPU_STATE.blocked || state === VCPU_STATE.throttled);
  }
  #nextGeneration(vcpuAddress: number): number {
    return (Atomics.add(this.machine.u32, this.index(vcpuAddress, 'generation'), 1) + 1) >>> 0 || 1;
  }

  /** The running vCPU rests until the next period. @returns as `blockRunning`, and until when */
  throttleRunning(vcpuAddress: number, nowNanos: number): { generation: number; untilNanos: number } {
    const generation = this.#nextGeneration(vcpuAddress);
    Atomics.store(this.machine.u32, (vcpuAddress + vcpuRecord.at.running) >>> 2, 0);
    this.#moveState(vcpuAddress, VCPU_STATE.running, VCPU_STATE.throttled);
    return { generation, untilNanos: nextPeriod(nowNanos) };
  }

  /** See SCHEDULER; of all domains. */
  get sampleMicros(): number {
    return Atomics.load(this.machine.u32, this.word('sampleMicros'));
  }
  set sampleMicros(micros: number) {
    Atomics.store(this.machine.u32, this.word('sampleMicros'), micros);
  }

  /**
   * The running vCPU goes back into the queue, or out of the way if it may not run.
   * @param spins it waits for another one: that one shall not have to wait for its next turn
   */
  putBack(vcpuAddress: number, spins = false): void {
    if (spins) this.stepBehind(vcpuAddress);
    Atomics.store(this.machine.u32, (vcpuAddress + vcpuRecord.at.running) >>> 2, 0);
    this.#makeRunnable(vcpuAddress, VCPU_STATE.running);
  }
  /** The running vCPU is powered off. */
  putOffline(vcpuAddress: number): void {
    Atomics.store(this.machine.u32, (vcpuAddress + vcpuRecord.at.running) >>> 2, 0);
    this.#moveState(vcpuAddress, VCPU_STATE.running, VCPU_STATE.offline);
  }

  // ---- pausing

  /** After DOMAIN.pauseCount, shutdown or state has changed, by any thread. */
  pauseChanged(domid: number): void {
    // If the caller is one of the vCPUs, it goes no further than the present instruction.
    this.#requestExit();
    const count = this.table.vcpuCount(domid);
    this.lockQueue();
    for (let index = 0; index < count; index++) {
      const vcpuAddress = this.table.vcpuOf(domid, index);
      this.kick(vcpuAddress);
      this.enqueue(vcpuAddress);
    }
    this.unlockQueue();
  }

  shutDown(domid: number): void {
    this.pauseChanged(domid);
    this.#tellIfShutDown(domid);
  }
  /** By whoever has set the mark, and by each vCPU that stops: the last of them finds it so. */
  #tellIfShutDown(domid: number): void {
    const shutdown = (this.machine.domainAddress(domid) + DOMAIN.at.shutdown) >>> 2;
    if (Atomics.load(this.machine.u32, shutdown) !== 0 && this.isStopped(domid)) this.#onShutDown(domid);
  }

  /** Counted; the vCPUs may still be in emitted code until `isStopped`. */
  pauseDomain(domid: number): void {
    Atomics.add(this.machine.u32, (this.machine.domainAddress(domid) + DOMAIN.at.pauseCount) >>> 2, 1);
    this.pauseChanged(domid);
  }
  unpauseDomain(domid: number): void {
    const before = Atomics.sub(this.machine.u32, (this.machine.domainAddress(domid) + DOMAIN.at.pauseCount) >>> 2, 1);
    assert(before > 0, 'a domain is unpaused that was not paused');
    this.pauseChanged(domid);
  }

  /**
   * Pauses a domain that cannot go on for want of a frame, for the host to decide. By its pCPU.
   * @param why what DOMAIN.at.stalled is to say
   * @returns false if the host is to hear of it already
   */
  stallDomain(domid: number, why: number): boolean {
    const stalled = this.#stalledIndex(domid);
    // The mark says that there is a pause to take over, so the pause comes first.
    this.pauseDomain(domid);
    if (Atomics.compareExchange(this.machine.u32, stalled, 0, why) === 0) return true;
    this.unpauseDomain(domid);
    return false;
  }
  /** @returns why the domain was stalled, 0: it was not; if so, the pause is the caller's now, to be ended by `unpauseDomain` */
  takeStall(domid: number): number {
    return Atomics.exchange(this.machine.u32, this.#stalledIndex(domid), 0);
  }
  #stalledIndex(domid: number): number {
    return (this.machine.domainAddress(domid) + DOMAIN.at.stalled) >>> 2;
  }

  /** Whether all vCPUs are out of emitted code, between two instructions, and out of their pCPUs' hands. */
  isStopped(domid: number): boolean {
    const count = this.table.vcpuCount(domid);
    for (let index = 0; index < count; index++) {
      // A pCPU that has taken a vCPU, or is about to put it back, may be at work on its memory without running it.
      const state = this.get(this.table.vcpuOf(domid, index), 'state');
      if (state === VCPU_STATE.running || state === VCPU_STATE.starting) return false;
    }
    return true;
  }
  /** Of a domain that may not run: returns when it is stopped. Takes as long as an instruction's slow path at most. */
  waitUntilStopped(domid: number): void {
    for (let attempt = 0; !this.isStopped(domid); attempt++) {
      const count = this.table.vcpuCount(domid);
      for (let index = 0; index < count; index++) this.kick(this.table.vcpuOf(domid, index));
      if (attempt < STOP_SPINS || !canSleep) Atomics.pause();
      else this.#sleepUntilStop(domid);
    }
  }

  /** Gives the core away until some vCPU is let go of, or for a while. */
  #sleepUntilStop(domid: number): void {
    assertNoneFailed();
    const { i32, u32 } = this.machine;
    const bell = this.word('stopBell');
    Atomics.add(u32, this.word('stopWaiters'), 1);
    // Announced first, then looked: whoever lets go changes the vCPU's state first, then looks for who waits.
    const heard = Atomics.load(i32, bell);
    if (!this.isStopped(domid)) Atomics.wait(i32, bell, heard, STOP_WAIT_MILLIS);
    Atomics.sub(u32, this.word('stopWaiters'), 1);
  }
  #tellStopWaiters(): void {
    if (Atomics.load(this.machine.u32, this.word('stopWaiters')) === 0) return;
    ringBell(this.machine.i32, this.word('stopBell'));
  }

  // ---- stops for a fraction of a millisecond

  /**
   * A domain is about to be paused and will be unpaused at once. Until `endBriefStop`, pCPUs begin no other work, which would
   * take locks and cores that the caller needs, and who lets go of the domain's vCPU looks for it to come back.
   */
  beginBriefStop(): void {
    Atomics.add(this.machine.u32, this.word('briefStops'), 1);
  }
  endBriefStop(): void {
    Atomics.sub(this.machine.u32, this.word('briefStops'), 1);
    if (Atomics.exchange(this.machine.u32, this.word('putOff'), 0) !== 0) this.wakeIdlePcpus();
  }
  get isBriefStop(): boolean {
    return Atomics.load(this.machine.u32, this.word('briefStops')) !== 0;
  }
  /** Whether other work has to wait; if so, pCPUs that sleep are woken when it has not. */
  mustPutOff(): boolean {
    if (!this.isBriefStop) return false;
    Atomics.store(this.machine.u32, this.word('putOff'), 1);
    // It may have ended just before, and then nobody wakes us.
    return this.isBriefStop;
  }

  /**
   * Calls back before a domain is stopped, and again, for some milliseconds at most, until each of its vCPUs that run has begun
   * a slice meanwhile: its thread has a core, and will stop at once. One that has none stops only when it gets it back, while
   * the others stand still already.
   */
  findOnCores(domid: number, clock: Clock, meanwhile: () => void): void {
    for (let attempt = 1; ; attempt++) {
      const sinceNanos = clock.monotonicNanos();
      for (let index = 0; index < this.table.vcpuCount(domid); index++) this.kick(this.table.vcpuOf(domid, index));
      meanwhile();
      if (this.#haveBegun(domid, sinceNanos) || attempt === FIND_ATTEMPTS_MAX || !canSleep) return;
      nap(FIND_NAP_MILLIS);
    }
  }
  #haveBegun(domid: number, sinceNanos: number): boolean {
    for (let index = 0; index < this.table.vcpuCount(domid); index++) {
      const vcpuAddress = this.table.vcpuOf(domid, index);
      const isOld = this.getNanos(vcpuAddress, V.sliceStart) < sinceNanos;
      if (isOld && this.get(vcpuAddress, 'state') === VCPU_STATE.running) return false;
    }
    return true;
  }

  /**
   * By the pCPU that has let go of a vCPU: if that is stopped briefly, looks for it for a while. To sleep and be woken costs
   * both sides more, and the core would go to somebody else. Who sleeps until the vCPU stops may need this very core.
   */
  awaitReturn(vcpuAddress: number): void {
    const { u32 } = this.machine;
    if (!this.isBriefStop || Atomics.load(u32, this.word('stopWaiters')) !== 0) return;
    if (this.get(vcpuAddress, 'state') !== VCPU_STATE.runnable) return;
    for (let looks = 0; looks < RETURN_LOOKS && this.isBriefStop && !this.hasWaiting; looks++) Atomics.pause();
  }

  /**
   * When the vCPUs of a domain that was unpaused had begun to run on, in host nanoseconds.
   * @param sinceNanos when it was paused
   * @param nowNanos the answer when one that is to run has not begun yet, or none is
   */
  ranOnAt(domid: number, sinceNanos: number, nowNanos: number): number {
    let latest = 0;
    for (let index = 0; index < this.table.vcpuCount(domid); index++) {
      const vcpuAddress = this.table.vcpuOf(domid, index);
      const state = this.get(vcpuAddress, 'state');
      if (state !== VCPU_STATE.running && state !== VCPU_STATE.runnable) continue;
      const start = this.getNanos(vcpuAddress, V.sliceStart);
      if (start < sinceNanos) return nowNanos;
      latest = Math.max(latest, start);
    }
    return latest === 0 ? nowNanos : Math.min(latest, nowNanos);
  }

  // ---- closing

  /** Makes all pCPUs leave their loops, after the slice that they run. */
  close(): void {
    Atomics.store(this.machine.u32, this.word('closing'), 1);
    this.lockQueue();
    this.unlockQueue();
    for (let pcpu = 0; pcpu < this.machine.parameters.pcpuCount; pcpu++) {
      const vcpuAddress = this.machine.u32[this.pcpuWord(pcpu, 'vcpu')]!;
      if (vcpuAddress !== 0) this.kick(vcpuAddress);
      this.poke(pcpu);
    }
  }
}
