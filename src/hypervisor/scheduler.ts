// Which vCPU runs on which pCPU. All pCPUs take from one queue; a vCPU that waits is in no queue, and whoever has
// something for it wakes it. The records lie in machine memory (abi/scheduler.ts), so every thread may.
//
//             start               take               WFI, block
//   offline ─────────► runnable ◄─────► running ───────────────► blocked
//      ▲                  ▲      slice     │ │                      │
//      │                  └────────────────┼─┼──────────────────────┘ wake, interrupt, deadline
//      │                  └────────────────┼─┴─► throttled: the cap is used up, until the next period
//      └───────────────────────────────────┘ CPU_OFF
//
// The queue is in the order of virtual time: a vCPU's goes on while it runs, the faster the smaller the share of its
// domain, which is the domain's weight over all weights, whatever the number of its vCPUs. With equal weights that is
// round robin. Who was away begins where the others are, a little ahead of them.
//
// A runnable vCPU whose domain is paused, shut down or dying stays out of the queue until that changes. Locks are
// taken in the order: domain, interrupt controller, run queue.

import { DOMAIN, DOMAIN_STATE } from '../abi/domain-record.ts';
import { PCPU, SCHEDULER, VCPU_REQUEST, VCPU_SCHEDULE, VCPU_STATE, WEIGHT_DEFAULT } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { canSleep, ringBell, spinLock, spinUnlock } from '../memory/spin.ts';
import type { Scheduler } from './environment.ts';
import { DomainShares, nextPeriod } from './shares.ts';
import { VcpuTable } from './vcpu-table.ts';

const S = SCHEDULER.at;
const V = VCPU_SCHEDULE.at;
type VcpuField = keyof typeof V;
/**
 * How often to look whether a domain has stopped before sleeping until it has: some 80 µs. A vCPU that is in emitted code
 * takes less; one whose thread is off its core may be waiting for the very core that the looking would take.
 */
const STOP_SPINS = 1500;
/** How long a waiter sleeps at most. Not less: each look takes a core away, perhaps from the vCPU that it waits for. */
const STOP_WAIT_MILLIS = 10;

/** A turn on a pCPU, when others wait. */
export const TURN_NANOS = 1e6;
/** How far ahead of the others who comes back is put: it runs next, but cannot save up time by sleeping. */
const WAKE_BONUS_NANOS = TURN_NANOS;
/** What a vCPU had while nobody waited counts against it this much at most, in turns of its own. */
const LAG_TURNS_MAX = 32;
/** What a checkpoint keeps of a vCPU's run state. */
export interface SavedSchedule {
  readonly isOnline: boolean;
  readonly wasStarted: boolean;
  readonly goesOffline: boolean;
}

export class VcpuScheduling implements Scheduler {
  readonly machine: MachineMemory;
  readonly table: VcpuTable;
  readonly shares: DomainShares;
  readonly #header: number;
  readonly #schedules: number;
  #requestExit: () => void = () => {};
  #onShutDown: (domid: number) => void = () => {};

  constructor(machine: MachineMemory) {
    this.machine = machine;
    this.table = new VcpuTable(machine);
    this.#header = machine.region('scheduler').offsetBytes;
    this.#schedules = this.#header + SCHEDULER.sizeBytes;
    this.shares = new DomainShares(machine, this.#schedules + machine.parameters.vcpuCount * VCPU_SCHEDULE.sizeBytes);
  }

  /** What makes the vCPU that this thread runs leave emitted code after the instruction (Engine.requestExit). */
  onRequest(requestExit: () => void): void {
    this.#requestExit = requestExit;
  }

  /** What tells the host that a domain has been shut down and none of its vCPUs runs any more; maybe more than once. */
  onShutDown(tellHost: (domid: number) => void): void {
    this.#onShutDown = tellHost;
  }

  // ---- records

  #schedule(vcpuAddress: number): number {
    return this.#schedules + this.table.numberOf(vcpuAddress) * VCPU_SCHEDULE.sizeBytes;
  }
  #index(vcpuAddress: number, field: VcpuField): number {
    return (this.#schedule(vcpuAddress) + V[field]) >>> 2;
  }
  get(vcpuAddress: number, field: VcpuField): number {
    return Atomics.load(this.machine.u32, this.#index(vcpuAddress, field));
  }
  set(vcpuAddress: number, field: VcpuField, value: number): void {
    Atomics.store(this.machine.u32, this.#index(vcpuAddress, field), value);
  }
  /** A field in nanoseconds, by its offset in VCPU_SCHEDULE. */
  getNanos(vcpuAddress: number, offset: number): number {
    return this.machine.f64[(this.#schedule(vcpuAddress) + offset) / 8]!;
  }
  setNanos(vcpuAddress: number, offset: number, nanos: number): void {
    this.machine.f64[(this.#schedule(vcpuAddress) + offset) / 8] = nanos;
  }
  #moveState(vcpuAddress: number, from: number, to: number): boolean {
    if (Atomics.compareExchange(this.machine.u32, this.#index(vcpuAddress, 'state'), from, to) !== from) return false;
    if (from === VCPU_STATE.running || from === VCPU_STATE.starting) {
      this.#tellStopWaiters();
      this.#tellIfShutDown(this.table.domidOf(vcpuAddress));
    }
    return true;
  }
  #word(field: keyof typeof S): number {
    return (this.#header + S[field]) >>> 2;
  }
  #vcpuOfNumber(number: number): number {
    return this.machine.vcpuAddress(number);
  }
  /** Takes a running vCPU out of emitted code at its next branch. */
  kick(vcpuAddress: number): void {
    Atomics.store(this.machine.u32, (vcpuAddress + vcpuRecord.at.pending) >>> 2, 1);
  }
  isKicked(vcpuAddress: number): boolean {
    return Atomics.load(this.machine.u32, (vcpuAddress + vcpuRecord.at.pending) >>> 2) !== 0;
  }
  isRunning(vcpuAddress: number): boolean {
    return Atomics.load(this.machine.u32, (vcpuAddress + vcpuRecord.at.running) >>> 2) !== 0;
  }

  /** Whether nothing forbids the vCPU to run. */
  mayRun(vcpuAddress: number): boolean {
    const { u32 } = this.machine;
    const domain = this.machine.domainAddress(this.table.domidOf(vcpuAddress));
    return Atomics.load(u32, (domain + DOMAIN.at.pauseCount) >>> 2) === 0
      && Atomics.load(u32, (domain + DOMAIN.at.shutdown) >>> 2) === 0
      && Atomics.load(u32, (domain + DOMAIN.at.state) >>> 2) !== DOMAIN_STATE.dying;
  }

  // ---- life of a vCPU

  /**
   * A vCPU that is powered off and was never started. Its domain's interrupt controller knows it already. With the first
   * one, the domain gets the usual share.
   */
  attach(vcpuAddress: number): void {
    const start = this.#schedule(vcpuAddress);
    this.machine.u8.fill(0, start, start + VCPU_SCHEDULE.sizeBytes);
    if (this.table.indexOf(vcpuAddress) === 0) this.shares.reset(this.table.domidOf(vcpuAddress));
  }

  /** Powers the vCPU off for good; its domain is dying or paused, and the vCPU not running. */
  detach(vcpuAddress: number): void {
    assert(!this.isRunning(vcpuAddress), 'a running vCPU is taken away');
    this.#lock();
    this.#removeFromQueue(vcpuAddress);
    this.set(vcpuAddress, 'state', VCPU_STATE.offline);
    this.set(vcpuAddress, 'started', 0);
    this.#unlock();
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
    this.#lock();
    this.#removeFromQueue(vcpuAddress);
    this.set(vcpuAddress, 'request', saved.goesOffline ? VCPU_REQUEST.offline : 0);
    this.set(vcpuAddress, 'wakeToken', 0);
    this.set(vcpuAddress, 'started', Number(saved.wasStarted));
    this.set(vcpuAddress, 'state', saved.isOnline ? VCPU_STATE.runnable : VCPU_STATE.offline);
    this.#unlock();
  }

  isStarting(vcpuAddress: number): boolean {
    return this.get(vcpuAddress, 'state') === VCPU_STATE.starting;
  }

  setOnline(vcpuAddress: number, online: boolean): boolean {
    if (this.get(vcpuAddress, 'started') === 0) return false;
    if (online) {
      Atomics.and(this.machine.u32, this.#index(vcpuAddress, 'request'), ~VCPU_REQUEST.offline);
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
    Atomics.or(this.machine.u32, this.#index(vcpuAddress, 'request'), request);
    this.#requestExit();
  }
  takeRequests(vcpuAddress: number): number {
    return Atomics.exchange(this.machine.u32, this.#index(vcpuAddress, 'request'), 0);
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
    this.#lock();
    this.#enqueue(vcpuAddress);
    this.#unlock();
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
    const token = mindToken && Atomics.exchange(u32, this.#index(vcpuAddress, 'wakeToken'), 0) !== 0;
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
    return (Atomics.add(this.machine.u32, this.#index(vcpuAddress, 'generation'), 1) + 1) >>> 0 || 1;
  }

  // ---- virtual time

  /** How much faster than time a vCPU's virtual time goes: its domain's weight is for all its vCPUs that want to run. */
  #pace(vcpuAddress: number): number {
    const domid = this.table.domidOf(vcpuAddress);
    const count = this.table.vcpuCount(domid);
    let wanting = 0;
    for (let index = 0; index < count; index++) {
      const state = this.get(this.table.vcpuOf(domid, index), 'state');
      if (state === VCPU_STATE.running || state === VCPU_STATE.runnable) wanting++;
    }
    return Math.max(1, wanting) * WEIGHT_DEFAULT / this.shares.weight(domid);
  }

  #f64(address: number): number {
    return this.machine.f64[address / 8]!;
  }
  #setF64(address: number, value: number): void {
    this.machine.f64[address / 8] = value;
  }
  #pcpuVirtual(pcpu: number): number {
    return this.machine.pcpuAddress(pcpu) + PCPU.at.virtualNanos;
  }
  /** Where the one is who has had least, of those who run and wait. */
  #advanceVirtualTime(): void {
    const { u32, parameters } = this.machine;
    const head = u32[this.#word('head')]!;
    let least = head === 0 ? Infinity : this.getNanos(this.#vcpuOfNumber(head - 1), V.virtualNanos);
    for (let pcpu = 0; pcpu < parameters.pcpuCount; pcpu++) least = Math.min(least, this.#f64(this.#pcpuVirtual(pcpu)) || Infinity);
    const at = this.#header + S.virtualNanos;
    if (least < Infinity && least > this.#f64(at)) this.#setF64(at, least);
  }

  /** A vCPU has run for so long on a pCPU. By that pCPU. */
  charge(pcpu: number, vcpuAddress: number, nanos: number): void {
    const pace = this.#pace(vcpuAddress);
    let virtual = this.getNanos(vcpuAddress, V.virtualNanos) + nanos * pace;
    if (!this.hasWaiting) {
      virtual = Math.min(virtual, this.#f64(this.#header + S.virtualNanos) + LAG_TURNS_MAX * TURN_NANOS * Math.max(1, pace));
    }
    this.setNanos(vcpuAddress, V.virtualNanos, virtual);
    this.#setF64(this.#pcpuVirtual(pcpu), virtual);
    this.#advanceVirtualTime();
    this.shares.use(this.table.domidOf(vcpuAddress), nanos);
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
    return Atomics.load(this.machine.u32, this.#word('sampleMicros'));
  }
  set sampleMicros(micros: number) {
    Atomics.store(this.machine.u32, this.#word('sampleMicros'), micros);
  }

  // ---- the queue

  #lock(): void {
    spinLock(this.machine.u32, this.#word('lock'));
  }
  #unlock(): void {
    spinUnlock(this.machine.u32, this.#word('lock'));
  }

  /** Puts a runnable vCPU that may run and is not in the queue into it, and wakes a pCPU for it. The lock is held. */
  #enqueue(vcpuAddress: number): void {
    if (this.get(vcpuAddress, 'state') !== VCPU_STATE.runnable || this.get(vcpuAddress, 'queued') !== 0) return;
    if (!this.mayRun(vcpuAddress)) return;
    const floor = this.#f64(this.#header + S.virtualNanos) - WAKE_BONUS_NANOS;
    const virtual = Math.max(this.getNanos(vcpuAddress, V.virtualNanos), floor);
    this.setNanos(vcpuAddress, V.virtualNanos, virtual);
    // Behind all that have had as much; most often at the end.
    let before = this.machine.u32[this.#word('tail')]!;
    while (before !== 0 && this.getNanos(this.#vcpuOfNumber(before - 1), V.virtualNanos) > virtual) {
      before = this.get(this.#vcpuOfNumber(before - 1), 'previous');
    }
    this.set(vcpuAddress, 'queued', 1);
    this.#insertBehind(before, vcpuAddress);
    this.#wakePcpuFor(vcpuAddress);
  }

  /** @param before link of the one before it, 0: it becomes the first */
  #insertBehind(before: number, vcpuAddress: number): void {
    const link = this.table.numberOf(vcpuAddress) + 1;
    const next = before === 0 ? this.machine.u32[this.#word('head')]! : this.get(this.#vcpuOfNumber(before - 1), 'next');
    this.set(vcpuAddress, 'previous', before);
    this.set(vcpuAddress, 'next', next);
    this.#linkNext(before, link);
    this.#linkPrevious(next, link);
  }
  #removeFromQueue(vcpuAddress: number): void {
    if (this.get(vcpuAddress, 'queued') === 0) return;
    const [before, next] = [this.get(vcpuAddress, 'previous'), this.get(vcpuAddress, 'next')];
    this.#linkNext(before, next);
    this.#linkPrevious(next, before);
    this.set(vcpuAddress, 'queued', 0);
  }
  #linkNext(from: number, to: number): void {
    if (from === 0) Atomics.store(this.machine.u32, this.#word('head'), to);
    else this.set(this.#vcpuOfNumber(from - 1), 'next', to);
  }
  #linkPrevious(from: number, to: number): void {
    if (from === 0) this.machine.u32[this.#word('tail')] = to;
    else this.set(this.#vcpuOfNumber(from - 1), 'previous', to);
  }

  /** Whether some vCPU waits for a pCPU. */
  get hasWaiting(): boolean {
    return Atomics.load(this.machine.u32, this.#word('head')) !== 0;
  }

  /** Takes the next vCPU to run; it is running then. @returns its address, or 0 */
  take(pcpu: number): number {
    if (!this.hasWaiting) return 0;
    this.#lock();
    let taken = 0;
    while (taken === 0) {
      const head = this.machine.u32[this.#word('head')]!;
      if (head === 0) break;
      const vcpuAddress = this.#vcpuOfNumber(head - 1);
      this.#removeFromQueue(vcpuAddress);
      if (!this.mayRun(vcpuAddress) || !this.#moveState(vcpuAddress, VCPU_STATE.runnable, VCPU_STATE.running)) continue;
      this.set(vcpuAddress, 'pcpu', pcpu);
      Atomics.store(this.machine.u32, this.#pcpuWord(pcpu, 'taken'), vcpuAddress);
      taken = vcpuAddress;
    }
    this.#setF64(this.#pcpuVirtual(pcpu), taken === 0 ? 0 : this.getNanos(taken, V.virtualNanos));
    this.#unlock();
    return taken;
  }

  /**
   * The running vCPU goes back into the queue, or out of the way if it may not run.
   * @param spins it waits for another one: that one shall not have to wait for its next turn
   */
  putBack(vcpuAddress: number, spins = false): void {
    if (spins) this.#stepBehind(vcpuAddress);
    Atomics.store(this.machine.u32, (vcpuAddress + vcpuRecord.at.running) >>> 2, 0);
    this.#makeRunnable(vcpuAddress, VCPU_STATE.running);
  }
  /** Behind all that wait, but for those that have had much more. */
  #stepBehind(vcpuAddress: number): void {
    const own = this.getNanos(vcpuAddress, V.virtualNanos);
    this.#lock();
    const tail = this.machine.u32[this.#word('tail')]!;
    const last = tail === 0 ? own : this.getNanos(this.#vcpuOfNumber(tail - 1), V.virtualNanos);
    this.#unlock();
    this.setNanos(vcpuAddress, V.virtualNanos, Math.max(own, Math.min(last, own + TURN_NANOS * this.#pace(vcpuAddress))));
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
    this.#lock();
    for (let index = 0; index < count; index++) {
      const vcpuAddress = this.table.vcpuOf(domid, index);
      this.kick(vcpuAddress);
      this.#enqueue(vcpuAddress);
    }
    this.#unlock();
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
    const { i32, u32 } = this.machine;
    const bell = this.#word('stopBell');
    Atomics.add(u32, this.#word('stopWaiters'), 1);
    // Announced first, then looked: whoever lets go changes the vCPU's state first, then looks for who waits.
    const heard = Atomics.load(i32, bell);
    if (!this.isStopped(domid)) Atomics.wait(i32, bell, heard, STOP_WAIT_MILLIS);
    Atomics.sub(u32, this.#word('stopWaiters'), 1);
  }
  #tellStopWaiters(): void {
    if (Atomics.load(this.machine.u32, this.#word('stopWaiters')) === 0) return;
    ringBell(this.machine.i32, this.#word('stopBell'));
  }

  // ---- pCPUs

  #pcpuWord(pcpu: number, field: keyof typeof PCPU.at): number {
    return (this.machine.pcpuAddress(pcpu) + PCPU.at[field]) >>> 2;
  }
  #idleWord(pcpu: number): number {
    return this.#word(pcpu < 32 ? 'idleLow' : 'idleHigh');
  }

  /** The one that ran the vCPU last, if it is idle, else any. The lock is held. */
  #wakePcpuFor(vcpuAddress: number): void {
    const { u32 } = this.machine;
    const last = this.get(vcpuAddress, 'pcpu');
    if (((u32[this.#idleWord(last)]! >>> (last & 31)) & 1) !== 0) return this.#wakePcpu(last);
    // Neither asleep nor with another vCPU: it has just let go of this one, or woken up, and looks here before it sleeps.
    if (Atomics.load(u32, this.#pcpuWord(last, 'taken')) === vcpuAddress) return;
    const low = u32[this.#word('idleLow')]!;
    const high = u32[this.#word('idleHigh')]!;
    if (low !== 0) this.#wakePcpu(31 - Math.clz32(low & -low));
    else if (high !== 0) this.#wakePcpu(63 - Math.clz32(high & -high));
  }
  #wakePcpu(pcpu: number): void {
    this.machine.u32[this.#idleWord(pcpu)]! &= ~(1 << (pcpu & 31));
    this.poke(pcpu);
  }

  /** Ends a pCPU's sleep. Any thread. */
  poke(pcpu: number): void {
    ringBell(this.machine.i32, this.#pcpuWord(pcpu, 'doorbell'));
  }

  /** For who has made other work than vCPUs, which pCPUs do when they are idle. */
  wakeIdlePcpus(): void {
    const { u32 } = this.machine;
    this.#lock();
    for (const half of [0, 32]) {
      const idle = u32[this.#idleWord(half)]!;
      for (let bit = 0; bit < 32; bit++) if (((idle >>> bit) & 1) !== 0) this.#wakePcpu(half + bit);
    }
    this.#unlock();
  }

  /**
   * Sleeps until there is something to run or the time-out.
   * @param hasWork whether there is other work, for which who makes it calls `wakeIdlePcpus`
   */
  sleep(pcpu: number, timeoutMillis: number, hasWork: () => boolean = () => false): void {
    const { i32, u32 } = this.machine;
    const doorbell = this.#pcpuWord(pcpu, 'doorbell');
    const bit = 1 << (pcpu & 31);
    this.#lock();
    const heard = Atomics.load(i32, doorbell);
    const mustStay = this.hasWaiting || this.isClosing || hasWork();
    if (!mustStay) u32[this.#idleWord(pcpu)]! |= bit;
    this.#unlock();
    if (mustStay) return;
    Atomics.wait(i32, doorbell, heard, timeoutMillis);
    this.#lock();
    u32[this.#idleWord(pcpu)]! &= ~bit;
    this.#unlock();
  }

  get isClosing(): boolean {
    return Atomics.load(this.machine.u32, this.#word('closing')) !== 0;
  }
  /** Makes all pCPUs leave their loops, after the slice that they run. */
  close(): void {
    Atomics.store(this.machine.u32, this.#word('closing'), 1);
    this.#lock();
    this.#unlock();
    for (let pcpu = 0; pcpu < this.machine.parameters.pcpuCount; pcpu++) {
      const vcpuAddress = this.machine.u32[this.#pcpuWord(pcpu, 'vcpu')]!;
      if (vcpuAddress !== 0) this.kick(vcpuAddress);
      this.poke(pcpu);
    }
  }
}
