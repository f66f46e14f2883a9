// The queue of vCPUs that want to run, in the order of virtual time, and the pCPUs that sleep until there is one.
//
// A vCPU's virtual time goes on while it runs, the faster the smaller the share of its domain, which is the domain's
// weight over all weights, whatever the number of its vCPUs. With equal weights that is round robin. Who was away begins
// where the others are, a little ahead of them.
//
// The lock covers queue, idle set and all changes of `queued`; it is the last one that anybody takes.

import { PCPU, SCHEDULER, VCPU_SCHEDULE, VCPU_STATE, WEIGHT_DEFAULT } from '../abi/scheduler.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { ringBell, spinLock, spinUnlock } from '../memory/spin.ts';
import { ScheduleRecords } from './schedule-records.ts';
import { DomainShares } from './shares.ts';

const S = SCHEDULER.at;
const V = VCPU_SCHEDULE.at;

/** A turn on a pCPU, when others wait. */
export const TURN_NANOS = 1e6;
/** How far ahead of the others who comes back is put: it runs next, but cannot save up time by sleeping. */
const WAKE_BONUS_NANOS = TURN_NANOS;
/** What a vCPU had while nobody waited counts against it this much at most, in turns of its own. */
const LAG_TURNS_MAX = 32;

export class RunQueue extends ScheduleRecords {
  readonly shares: DomainShares;

  constructor(machine: MachineMemory) {
    super(machine);
    this.shares = new DomainShares(machine, this.domainsAddress);
  }

  #vcpuOfNumber(number: number): number {
    return this.machine.vcpuAddress(number);
  }
  #startRunning(vcpuAddress: number): boolean {
    const { u32 } = this.machine;
    const state = this.index(vcpuAddress, 'state');
    return Atomics.compareExchange(u32, state, VCPU_STATE.runnable, VCPU_STATE.running) === VCPU_STATE.runnable;
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
    const head = u32[this.word('head')]!;
    let least = head === 0 ? Infinity : this.getNanos(this.#vcpuOfNumber(head - 1), V.virtualNanos);
    for (let pcpu = 0; pcpu < parameters.pcpuCount; pcpu++) least = Math.min(least, this.#f64(this.#pcpuVirtual(pcpu)) || Infinity);
    const at = this.headerAddress + S.virtualNanos;
    if (least < Infinity && least > this.#f64(at)) this.#setF64(at, least);
  }

  /** A vCPU has run for so long on a pCPU. By that pCPU. */
  charge(pcpu: number, vcpuAddress: number, nanos: number): void {
    const pace = this.#pace(vcpuAddress);
    let virtual = this.getNanos(vcpuAddress, V.virtualNanos) + nanos * pace;
    if (!this.hasWaiting) {
      virtual = Math.min(virtual, this.#f64(this.headerAddress + S.virtualNanos) + LAG_TURNS_MAX * TURN_NANOS * Math.max(1, pace));
    }
    this.setNanos(vcpuAddress, V.virtualNanos, virtual);
    this.#setF64(this.#pcpuVirtual(pcpu), virtual);
    this.#advanceVirtualTime();
    this.shares.use(this.table.domidOf(vcpuAddress), nanos);
  }

  // ---- the queue

  lockQueue(): void {
    spinLock(this.machine.u32, this.word('lock'));
  }
  unlockQueue(): void {
    spinUnlock(this.machine.u32, this.word('lock'));
  }

  /** Puts a runnable vCPU that may run and is not in the queue into it, and wakes a pCPU for it. The lock is held. */
  enqueue(vcpuAddress: number): void {
    if (this.get(vcpuAddress, 'state') !== VCPU_STATE.runnable || this.get(vcpuAddress, 'queued') !== 0) return;
    if (!this.mayRun(vcpuAddress)) return;
    const floor = this.#f64(this.headerAddress + S.virtualNanos) - WAKE_BONUS_NANOS;
    const virtual = Math.max(this.getNanos(vcpuAddress, V.virtualNanos), floor);
    this.setNanos(vcpuAddress, V.virtualNanos, virtual);
    // Behind all that have had as much; most often at the end.
    let before = this.machine.u32[this.word('tail')]!;
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
    const next = before === 0 ? this.machine.u32[this.word('head')]! : this.get(this.#vcpuOfNumber(before - 1), 'next');
    this.set(vcpuAddress, 'previous', before);
    this.set(vcpuAddress, 'next', next);
    this.#linkNext(before, link);
    this.#linkPrevious(next, link);
  }
  /** Out of the queue, if it is in it. The lock is held. */
  dequeue(vcpuAddress: number): void {
    if (this.get(vcpuAddress, 'queued') === 0) return;
    const [before, next] = [this.get(vcpuAddress, 'previous'), this.get(vcpuAddress, 'next')];
    this.#linkNext(before, next);
    this.#linkPrevious(next, before);
    this.set(vcpuAddress, 'queued', 0);
  }
  #linkNext(from: number, to: number): void {
    if (from === 0) Atomics.store(this.machine.u32, this.word('head'), to);
    else this.set(this.#vcpuOfNumber(from - 1), 'next', to);
  }
  #linkPrevious(from: number, to: number): void {
    if (from === 0) this.machine.u32[this.word('tail')] = to;
    else this.set(this.#vcpuOfNumber(from - 1), 'previous', to);
  }

  /** Whether some vCPU waits for a pCPU. */
  get hasWaiting(): boolean {
    return Atomics.load(this.machine.u32, this.word('head')) !== 0;
  }

  /** Takes the next vCPU to run; it is running then. @returns its address, or 0 */
  take(pcpu: number): number {
    if (!this.hasWaiting) return 0;
    this.lockQueue();
    let taken = 0;
    while (taken === 0) {
      const head = this.machine.u32[this.word('head')]!;
      if (head === 0) break;
      const vcpuAddress = this.#vcpuOfNumber(head - 1);
      this.dequeue(vcpuAddress);
      if (!this.mayRun(vcpuAddress) || !this.#startRunning(vcpuAddress)) continue;
      this.set(vcpuAddress, 'pcpu', pcpu);
      Atomics.store(this.machine.u32, this.pcpuWord(pcpu, 'taken'), vcpuAddress);
      taken = vcpuAddress;
    }
    this.#setF64(this.#pcpuVirtual(pcpu), taken === 0 ? 0 : this.getNanos(taken, V.virtualNanos));
    this.unlockQueue();
    return taken;
  }

  /** Behind all that wait, but for those that have had much more. */
  stepBehind(vcpuAddress: number): void {
    const own = this.getNanos(vcpuAddress, V.virtualNanos);
    this.lockQueue();
    const tail = this.machine.u32[this.word('tail')]!;
    const last = tail === 0 ? own : this.getNanos(this.#vcpuOfNumber(tail - 1), V.virtualNanos);
    this.unlockQueue();
    this.setNanos(vcpuAddress, V.virtualNanos, Math.max(own, Math.min(last, own + TURN_NANOS * this.#pace(vcpuAddress))));
  }

  // ---- pCPUs

  #idleWord(pcpu: number): number {
    return this.word(pcpu < 32 ? 'idleLow' : 'idleHigh');
  }

  /** The one that ran the vCPU last, if it is idle, else any. The lock is held. */
  #wakePcpuFor(vcpuAddress: number): void {
    const { u32 } = this.machine;
    const last = this.get(vcpuAddress, 'pcpu');
    if (((u32[this.#idleWord(last)]! >>> (last & 31)) & 1) !== 0) return this.#wakePcpu(last);
    // Neither asleep nor with another vCPU: it has just let go of this one, or woken up, and looks here before it sleeps.
    if (Atomics.load(u32, this.pcpuWord(last, 'taken')) === vcpuAddress) return;
    const low = u32[this.word('idleLow')]!;
    const high = u32[this.word('idleHigh')]!;
    if (low !== 0) this.#wakePcpu(31 - Math.clz32(low & -low));
    else if (high !== 0) this.#wakePcpu(63 - Math.clz32(high & -high));
  }
  #wakePcpu(pcpu: number): void {
    this.machine.u32[this.#idleWord(pcpu)]! &= ~(1 << (pcpu & 31));
    this.poke(pcpu);
  }

  /** Ends a pCPU's sleep. Any thread. */
  poke(pcpu: number): void {
    ringBell(this.machine.i32, this.pcpuWord(pcpu, 'doorbell'));
  }

  /** For who has made other work than vCPUs, enough for one that is idle: the last one, as vCPUs without a past go to the first. */
  wakeIdlePcpu(): void {
    const { u32 } = this.machine;
    this.lockQueue();
    const low = u32[this.word('idleLow')]!;
    const high = u32[this.word('idleHigh')]!;
    if (high !== 0) this.#wakePcpu(63 - Math.clz32(high));
    else if (low !== 0) this.#wakePcpu(31 - Math.clz32(low));
    this.unlockQueue();
  }

  /** The same for all that are idle. */
  wakeIdlePcpus(): void {
    const { u32 } = this.machine;
    this.lockQueue();
    for (const half of [0, 32]) {
      const idle = u32[this.#idleWord(half)]!;
      for (let bit = 0; bit < 32; bit++) if (((idle >>> bit) & 1) !== 0) this.#wakePcpu(half + bit);
    }
    this.unlockQueue();
  }

  /**
   * Sleeps until there is something to run or the time-out.
   * @param hasWork whether there is other work, for which who makes it calls `wakeIdlePcpus`
   */
  sleep(pcpu: number, timeoutMillis: number, hasWork: () => boolean = () => false): void {
    const { i32, u32 } = this.machine;
    const doorbell = this.pcpuWord(pcpu, 'doorbell');
    const bit = 1 << (pcpu & 31);
    this.lockQueue();
    const heard = Atomics.load(i32, doorbell);
    const mustStay = this.hasWaiting || this.isClosing || hasWork();
    if (!mustStay) u32[this.#idleWord(pcpu)]! |= bit;
    this.unlockQueue();
    if (mustStay) return;
    Atomics.wait(i32, doorbell, heard, timeoutMillis);
    this.lockQueue();
    u32[this.#idleWord(pcpu)]! &= ~bit;
    this.unlockQueue();
  }
}
