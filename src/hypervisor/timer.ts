// The generic timers of a vCPU (Arm ARM D12): a counter of 62.5 MHz that all vCPUs of a domain share, and two timers
// that compare with it, virtual and physical. The registers lie in the vCPU record, the offset of the domain's time in
// GIC_DOMAIN. Counts fit a double for a century; only comparators may be larger, and those never match.

import { sysreg } from '../a64/system-registers.ts';
import { GIC_DOMAIN } from '../abi/gic.ts';
import { VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { PENDING, vcpuRecord } from '../abi/vcpu.ts';
import { GUEST_TIMER_PHYS_NS_PPI, GUEST_TIMER_VIRT_PPI } from '../abi/xen.ts';
import type { Clock } from '../base/clock.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import type { Gic } from './gic.ts';
import type { VcpuScheduling } from './scheduler.ts';

const at = vcpuRecord.at;
export const TIMER_HERTZ = 62_500_000;
export const NANOS_PER_TICK = 16;
const CTL_ENABLE = 1;
const CTL_IMASK = 2;
const CTL_ISTATUS = 4;
const TWO_32 = 0x1_0000_0000;

interface TimerFields { readonly ctl: number; readonly cval: number; readonly intid: number }
const virtualTimer: TimerFields = { ctl: at.cntvCtl, cval: at.cntvCval, intid: GUEST_TIMER_VIRT_PPI };
const physicalTimer: TimerFields = { ctl: at.cntpCtl, cval: at.cntpCval, intid: GUEST_TIMER_PHYS_NS_PPI };
const timers = [virtualTimer, physicalTimer] as const;

export class Timers {
  readonly #gic: Gic;
  readonly #scheduling: VcpuScheduling;
  readonly #clock: Clock;

  constructor(gic: Gic, scheduling: VcpuScheduling, clock: Clock) {
    this.#gic = gic;
    this.#scheduling = scheduling;
    this.#clock = clock;
  }

  // ---- virtual time of a domain

  #timeField(domid: number, field: 'timeOffset' | 'timeStopped'): number {
    return (this.#gic.domainAt(domid) + GIC_DOMAIN.at[field]) / 8;
  }
  #offset(domid: number): number {
    return this.#gic.machine.f64[this.#timeField(domid, 'timeOffset')]!;
  }

  /** Host time as the domain sees it: it stands still while stopped. */
  #domainNow(domid: number, hostNanos: number): number {
    return this.#gic.machine.f64[this.#timeField(domid, 'timeStopped')]! || hostNanos;
  }

  /**
   * Sets what the domain's counter says now, in nanoseconds; 0 for a new domain. A vCPU that is blocked has to be woken
   * if the time went forward.
   */
  setTime(domid: number, nanos: number): void {
    const now = this.#domainNow(domid, this.#clock.monotonicNanos());
    this.#gic.machine.f64[this.#timeField(domid, 'timeOffset')] = now - nanos;
  }
  /** Virtual time in nanoseconds: what the counter says, before it is cut to ticks. */
  time(domid: number): number {
    return this.#domainNow(domid, this.#clock.monotonicNanos()) - this.#offset(domid);
  }
  /** Virtual time stands still until `startTime`. The domain's vCPUs must not be running. */
  stopTime(domid: number): void {
    const index = this.#timeField(domid, 'timeStopped');
    this.#gic.machine.f64[index] ||= this.#clock.monotonicNanos();
  }
  isTimeStopped(domid: number): boolean {
    return this.#gic.machine.f64[this.#timeField(domid, 'timeStopped')] !== 0;
  }
  startTime(domid: number): void {
    const { f64 } = this.#gic.machine;
    const index = this.#timeField(domid, 'timeStopped');
    if (f64[index] === 0) return;
    f64[this.#timeField(domid, 'timeOffset')]! += this.#clock.monotonicNanos() - f64[index]!;
    f64[index] = 0;
  }

  // ---- timers of a vCPU

  #counterAt(vcpuAddress: number, hostNanos: number): number {
    const domid = this.#gic.domidOf(vcpuAddress);
    return Math.max(0, Math.floor((this.#domainNow(domid, hostNanos) - this.#offset(domid)) / NANOS_PER_TICK));
  }
  /** CNTVCT_EL0 and CNTPCT_EL0, in ticks. */
  counter(vcpuAddress: number): number {
    return this.#counterAt(vcpuAddress, this.#clock.monotonicNanos());
  }

  #comparator(vcpuAddress: number, timer: TimerFields): number {
    return this.#gic.get(vcpuAddress + timer.cval + 4) * TWO_32 + this.#gic.get(vcpuAddress + timer.cval);
  }
  #isDue(vcpuAddress: number, timer: TimerFields, counter: number): boolean {
    const enabled = (this.#gic.get(vcpuAddress + timer.ctl) & CTL_ENABLE) !== 0;
    return enabled && counter >= this.#comparator(vcpuAddress, timer);
  }

  /** Drives the lines of both timers from the time. By the thread that runs the vCPU, or while nobody does. */
  update(vcpuAddress: number, hostNanos: number): void {
    const counter = this.#counterAt(vcpuAddress, hostNanos);
    for (const timer of timers) this.#drive(vcpuAddress, timer, counter);
  }
  #drive(vcpuAddress: number, timer: TimerFields, counter: number): void {
    const masked = (this.#gic.get(vcpuAddress + timer.ctl) & CTL_IMASK) !== 0;
    const level = !masked && this.#isDue(vcpuAddress, timer, counter);
    // Nobody but the caller moves this line, so it can be looked at without the lock.
    const lines = this.#gic.get(this.#gic.bitsAt('level', vcpuAddress, 0));
    if (((lines >>> timer.intid) & 1) !== Number(level)) this.#gic.setInterruptLevel(vcpuAddress, timer.intid, level);
  }

  /**
   * Host time when the next line of a timer rises. Infinity: none will; one that is up already does not count.
   */
  nextDeadlineNanos(vcpuAddress: number): number {
    const domid = this.#gic.domidOf(vcpuAddress);
    if (this.#gic.machine.f64[this.#timeField(domid, 'timeStopped')] !== 0) return Infinity;
    const lines = this.#gic.get(this.#gic.bitsAt('level', vcpuAddress, 0));
    let deadline = Infinity;
    for (const timer of timers) {
      const armed = (this.#gic.get(vcpuAddress + timer.ctl) & (CTL_ENABLE | CTL_IMASK)) === CTL_ENABLE;
      if (!armed || ((lines >>> timer.intid) & 1) !== 0) continue;
      deadline = Math.min(deadline, this.#comparator(vcpuAddress, timer) * NANOS_PER_TICK + this.#offset(domid));
    }
    return deadline;
  }

  // ---- registers; whether EL0 may use them (CNTKCTL_EL1) is checked by the CPU before it asks

  /** Puts the value into 64 bits of the vCPU record. @returns false when that is no readable register of the timers */
  read(vcpu: VcpuState, encoding: number, slot: number): boolean {
    const { address } = vcpu;
    switch (encoding) {
      case sysreg.CNTVCT_EL0: case sysreg.CNTPCT_EL0: vcpu.setDouble(slot, this.counter(address)); return true;
      case sysreg.CNTFRQ_EL0: vcpu.setHalves(slot, TIMER_HERTZ, 0); return true;
      case sysreg.CNTV_CTL_EL0: vcpu.setHalves(slot, this.#readControl(address, virtualTimer), 0); return true;
      case sysreg.CNTP_CTL_EL0: vcpu.setHalves(slot, this.#readControl(address, physicalTimer), 0); return true;
      case sysreg.CNTV_CVAL_EL0: vcpu.copy64(slot, at.cntvCval); return true;
      case sysreg.CNTP_CVAL_EL0: vcpu.copy64(slot, at.cntpCval); return true;
      case sysreg.CNTV_TVAL_EL0: vcpu.setHalves(slot, this.#readTimerValue(address, virtualTimer), 0); return true;
      case sysreg.CNTP_TVAL_EL0: vcpu.setHalves(slot, this.#readTimerValue(address, physicalTimer), 0); return true;
      default: return false;
    }
  }

  #readControl(vcpuAddress: number, timer: TimerFields): number {
    const due = this.#isDue(vcpuAddress, timer, this.counter(vcpuAddress));
    return this.#gic.get(vcpuAddress + timer.ctl) | (due ? CTL_ISTATUS : 0);
  }
  /** Ticks until it is due, in 32 bits. */
  #readTimerValue(vcpuAddress: number, timer: TimerFields): number {
    return (this.#gic.get(vcpuAddress + timer.cval) - this.counter(vcpuAddress) % TWO_32) >>> 0;
  }

  /** @returns false when that is no writable register of the timers */
  write(vcpuAddress: number, encoding: number, low: number, high: number): boolean {
    switch (encoding) {
      case sysreg.CNTV_CTL_EL0: return this.#writeControl(vcpuAddress, virtualTimer, low);
      case sysreg.CNTP_CTL_EL0: return this.#writeControl(vcpuAddress, physicalTimer, low);
      case sysreg.CNTV_CVAL_EL0: return this.#writeComparator(vcpuAddress, virtualTimer, low, high);
      case sysreg.CNTP_CVAL_EL0: return this.#writeComparator(vcpuAddress, physicalTimer, low, high);
      case sysreg.CNTV_TVAL_EL0: return this.#writeTimerValue(vcpuAddress, virtualTimer, low);
      case sysreg.CNTP_TVAL_EL0: return this.#writeTimerValue(vcpuAddress, physicalTimer, low);
      default: return false;
    }
  }

  #writeControl(vcpuAddress: number, timer: TimerFields, value: number): true {
    this.#gic.set(vcpuAddress + timer.ctl, value & (CTL_ENABLE | CTL_IMASK));
    return this.#changed(vcpuAddress, timer);
  }
  #writeComparator(vcpuAddress: number, timer: TimerFields, low: number, high: number): true {
    this.#gic.set(vcpuAddress + timer.cval, low);
    this.#gic.set(vcpuAddress + timer.cval + 4, high);
    return this.#changed(vcpuAddress, timer);
  }
  /** The counter plus a signed number, modulo 2^64. */
  #writeTimerValue(vcpuAddress: number, timer: TimerFields, value: number): true {
    const comparator = this.counter(vcpuAddress) + (value | 0);
    const low = ((comparator % TWO_32) + TWO_32) % TWO_32;
    return this.#writeComparator(vcpuAddress, timer, low, Math.floor(comparator / TWO_32) >>> 0);
  }

  /** The line follows at once; a slice that was planned to last longer than the new deadline is cut. */
  #changed(vcpuAddress: number, timer: TimerFields): true {
    this.#drive(vcpuAddress, timer, this.counter(vcpuAddress));
    const sliceEnd = this.#scheduling.getNanos(vcpuAddress, VCPU_SCHEDULE.at.sliceEnd);
    if (this.nextDeadlineNanos(vcpuAddress) < sliceEnd) {
      Atomics.store(this.#gic.machine.u32, (vcpuAddress + at.pending) >>> 2, PENDING.leave);
    }
    return true;
  }

  /** What power-on of a vCPU resets: both timers are off. */
  reset(vcpuAddress: number): void {
    for (const timer of timers) this.#writeControl(vcpuAddress, timer, 0);
  }
}
