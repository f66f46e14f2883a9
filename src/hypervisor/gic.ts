// The interrupt controller of a domain: GICv3 with one security state, no LPIs, and the system-register CPU interface
// (Arm IHI 0069). Every interrupt is in Group 1: IGROUPR reads as ones, and the registers of Group 0 hold what is
// written to them without effect, because the CPU has no FIQ to signal Group 0 with.
//
//   line or write ──► pending ──► highest priority ──► PMR, running priority, enables ──► irqLine of the vCPU record
//
// All state lies in machine memory (abi/gic.ts) under the domain's lock, so any thread may raise an interrupt. Each
// change ends by evaluating the vCPUs that it concerns; a line that rises takes the vCPU out of emitted code or wakes
// it. This file is the state machine; gic-registers.ts is its face in memory, gic-cpu-interface.ts in system registers.

import {
  GICD_CTLR, GICR_WAKER, GIC_DOMAIN, GIC_FIRST_SPI, GIC_INTIDS, GIC_NO_TARGET, GIC_SPURIOUS, GIC_VCPU, GIC_WORDS,
  ICC_CTLR, affinityOfVcpu, vcpuOfAffinity,
} from '../abi/gic.ts';
import { PENDING, vcpuRecord } from '../abi/vcpu.ts';
import { GUEST_MAX_VCPUS } from '../abi/xen.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { spinLock, spinUnlock } from '../memory/spin.ts';
import { VcpuTable } from './vcpu-table.ts';

const D = GIC_DOMAIN.at;
const V = GIC_VCPU.at;
const IDLE_PRIORITY = 0xff;
/** Five bits of priority, so eight of a kind. */
export const PRIORITY_MASK = 0xf8;
/** Group 1 groups priorities by bits [7:BPR1]; with five bits no finer than this. */
export const BPR0_MIN = 2;
export const BPR1_MIN = 3;
const SGI_BITS = 0xffff;

/** State that is one bit for each interrupt. */
export type IntidBits = 'enabled' | 'pending' | 'active' | 'level' | 'edge';

const lowestBit = (word: number): number => 31 - Math.clz32(word & -word);

export class Gic extends VcpuTable {
  readonly #wake: (vcpuAddress: number) => void;
  readonly #sampleLine: (vcpuAddress: number, intid: number) => void;
  /** Priority of the interrupt that `#best` found. */
  #bestPriority = IDLE_PRIORITY;

  /**
   * @param wake called with the domain's lock held when an interrupt is there for a vCPU; takes no GIC lock
   * @param sampleLine called without the lock before a private interrupt is deactivated: time for a source whose line
   *   falls unseen (the guest clears Xen's evtchn_upcall_pending in its own memory) to say what the line is now
   */
  constructor(
    machine: MachineMemory, wake: (vcpuAddress: number) => void,
    sampleLine: (vcpuAddress: number, intid: number) => void = () => {},
  ) {
    super(machine);
    this.#wake = wake;
    this.#sampleLine = sampleLine;
  }

  lock(domain: number): void {
    spinLock(this.machine.u32, (domain + D.lock) >>> 2);
  }
  unlock(domain: number): void {
    spinUnlock(this.machine.u32, (domain + D.lock) >>> 2);
  }

  // ---- life

  /** A controller as after reset, for vCPUs that never ran. Addresses are in the order of their index. */
  resetDomain(domid: number, vcpuAddresses: readonly number[]): void {
    assert(vcpuAddresses.length <= GUEST_MAX_VCPUS, 'more vCPUs than a domain can have');
    const domain = this.domainAt(domid);
    this.lock(domain);
    this.machine.u8.fill(0, domain + 4, domain + GIC_DOMAIN.sizeBytes);
    this.set(domain + D.ctlr, GICD_CTLR.are | GICD_CTLR.ds);
    this.set(domain + D.vcpuCount, vcpuAddresses.length);
    vcpuAddresses.forEach((address, index) => {
      this.set(domain + D.vcpus + 4 * index, address);
      const vcpu = this.vcpuAt(address);
      this.machine.u8.fill(0, vcpu, vcpu + GIC_VCPU.sizeBytes);
      this.set(vcpu + V.domid, domid);
      this.set(vcpu + V.index, index);
      this.set(vcpu + V.waker, GICR_WAKER.processorSleep | GICR_WAKER.childrenAsleep);
      this.set(vcpu + V.edge, SGI_BITS);
      this.#resetCpuInterface(address);
    });
    this.unlock(domain);
  }

  /** What power-on of a vCPU resets: its CPU interface. */
  powerOn(vcpuAddress: number): void {
    const domain = this.domainOf(vcpuAddress);
    this.lock(domain);
    this.#resetCpuInterface(vcpuAddress);
    this.unlock(domain);
  }

  #resetCpuInterface(vcpuAddress: number): void {
    const vcpu = this.vcpuAt(vcpuAddress);
    for (const field of ['pmr', 'ctlr', 'igrpen0', 'igrpen1', 'ap0r0', 'ap1r0'] as const) this.set(vcpu + V[field], 0);
    this.set(vcpu + V.bpr0, BPR0_MIN);
    this.set(vcpu + V.bpr1, BPR1_MIN);
    this.evaluate(vcpuAddress);
  }

  // ---- bits and priorities; the lock is held

  /** Address of the word of bits that has the interrupts 32 × word …; word 0 is the vCPU's own. */
  bitsAt(field: IntidBits, vcpuAddress: number, word: number): number {
    if (word === 0) return this.vcpuAt(vcpuAddress) + V[field];
    return this.domainOf(vcpuAddress) + D[field] + 4 * word;
  }
  priorityAt(vcpuAddress: number, intid: number): number {
    if (intid < GIC_FIRST_SPI) return this.vcpuAt(vcpuAddress) + V.priority + intid;
    return this.domainOf(vcpuAddress) + D.priority + intid;
  }
  /** Latched, or held up by a level-sensitive line. */
  pendingBits(vcpuAddress: number, word: number): number {
    const line = this.get(this.bitsAt('level', vcpuAddress, word)) & ~this.get(this.bitsAt('edge', vcpuAddress, word));
    return (this.get(this.bitsAt('pending', vcpuAddress, word)) | line) >>> 0;
  }

  routeSpi(domain: number, intid: number, affinity: number): void {
    const index = vcpuOfAffinity(affinity);
    this.set(domain + D.router + 4 * intid, affinity);
    const known = index >= 0 && index < this.get(domain + D.vcpuCount);
    this.machine.u8[domain + D.target + intid] = known ? index : GIC_NO_TARGET;
  }

  // ---- raising

  /**
   * The line of a private interrupt (PPI, 16-31) changes. Any thread.
   * While high, a level-sensitive interrupt is pending; an edge-triggered one becomes pending when the line rises.
   */
  setInterruptLevel(vcpuAddress: number, intid: number, level: boolean): void {
    const domain = this.domainOf(vcpuAddress);
    this.lock(domain);
    if (this.#setLevel(vcpuAddress, intid, level)) this.evaluate(vcpuAddress);
    this.unlock(domain);
  }

  /** The line of a shared interrupt (SPI, 32-255) changes. Any thread. */
  setSpiLevel(domid: number, intid: number, level: boolean): void {
    assert(intid >= GIC_FIRST_SPI && intid < GIC_INTIDS, 'not an SPI');
    const domain = this.domainAt(domid);
    this.lock(domain);
    if (this.#setLevel(this.get(domain + D.vcpus), intid, level)) this.evaluateTarget(domain, intid);
    this.unlock(domain);
  }

  #setLevel(vcpuAddress: number, intid: number, level: boolean): boolean {
    const word = intid >>> 5;
    const bit = 1 << (intid & 31);
    const lines = this.bitsAt('level', vcpuAddress, word);
    const before = this.get(lines);
    if (((before & bit) !== 0) === level) return false;
    this.set(lines, before ^ bit);
    if (level && (this.get(this.bitsAt('edge', vcpuAddress, word)) & bit) !== 0) {
      const latch = this.bitsAt('pending', vcpuAddress, word);
      this.set(latch, this.get(latch) | bit);
    }
    return true;
  }

  /** SGIs are private and edge-triggered. The lock is held. */
  raiseSgi(vcpuAddress: number, intid: number): void {
    const latch = this.bitsAt('pending', vcpuAddress, 0);
    this.set(latch, this.get(latch) | (1 << intid));
    this.evaluate(vcpuAddress);
  }

  // ---- choosing

  /** The pending, enabled, inactive interrupt of highest priority, the lowest number among equals. */
  #best(vcpuAddress: number): number {
    let best = GIC_SPURIOUS;
    this.#bestPriority = IDLE_PRIORITY + 1;
    const vcpu = this.vcpuAt(vcpuAddress);
    const domain = this.domainAt(this.get(vcpu + V.domid));
    if ((this.get(domain + D.ctlr) & GICD_CTLR.enableGrp1) === 0) return best;
    if ((this.get(vcpu + V.waker) & GICR_WAKER.processorSleep) !== 0) return best;
    const { u32, u8 } = this.machine;
    const index = u32[(vcpu + V.index) >>> 2]!;
    for (let word = 0; word < GIC_WORDS; word++) {
      const base = word === 0 ? vcpu : domain + 4 * word;
      const at = word === 0 ? V : D;
      const line = u32[(base + at.level) >>> 2]! & ~u32[(base + at.edge) >>> 2]!;
      const pending = u32[(base + at.pending) >>> 2]! | line;
      let ready = pending & u32[(base + at.enabled) >>> 2]! & ~u32[(base + at.active) >>> 2]!;
      for (; ready !== 0; ready &= ready - 1) {
        const intid = 32 * word + lowestBit(ready);
        if (word !== 0 && u8[domain + D.target + intid] !== index) continue;
        const priority = u8[(word === 0 ? vcpu + V.priority : domain + D.priority) + intid]!;
        if (priority >= this.#bestPriority) continue;
        best = intid;
        this.#bestPriority = priority;
      }
    }
    return best;
  }

  /** The part of a priority that decides about preemption. */
  #groupPriority(vcpu: number, priority: number): number {
    const common = (this.get(vcpu + V.ctlr) & ICC_CTLR.cbpr) !== 0;
    const point = common ? Math.min(this.get(vcpu + V.bpr0) + 1, 8) : this.get(vcpu + V.bpr1);
    return priority & (0xff << point) & 0xff;
  }

  /** Priority of what is being handled; 0xff: nothing. */
  runningPriority(vcpuAddress: number): number {
    const vcpu = this.vcpuAt(vcpuAddress);
    const active = this.get(vcpu + V.ap0r0) | this.get(vcpu + V.ap1r0);
    return active === 0 ? IDLE_PRIORITY : lowestBit(active) << 3;
  }

  /** The interrupt that is to be signalled now, or 1023. */
  #signalled(vcpuAddress: number): number {
    const vcpu = this.vcpuAt(vcpuAddress);
    if (this.get(vcpu + V.igrpen1) === 0) return GIC_SPURIOUS;
    const best = this.#best(vcpuAddress);
    if (best === GIC_SPURIOUS || this.#bestPriority >= this.get(vcpu + V.pmr)) return GIC_SPURIOUS;
    const running = this.runningPriority(vcpuAddress);
    const preempts = running === IDLE_PRIORITY
      || this.#groupPriority(vcpu, this.#bestPriority) < this.#groupPriority(vcpu, running);
    return preempts ? best : GIC_SPURIOUS;
  }

  /** Drives the vCPU's IRQ line from the present state. The lock is held. */
  evaluate(vcpuAddress: number): void {
    const { u32 } = this.machine;
    const line = this.#signalled(vcpuAddress) === GIC_SPURIOUS ? 0 : 1;
    if (Atomics.exchange(u32, (vcpuAddress + vcpuRecord.at.irqLine) >>> 2, line) === line || line === 0) return;
    Atomics.or(u32, (vcpuAddress + vcpuRecord.at.pending) >>> 2, PENDING.attend);
    this.#wake(vcpuAddress);
  }
  evaluateTarget(domain: number, intid: number): void {
    const index = this.machine.u8[domain + D.target + intid]!;
    if (index < this.get(domain + D.vcpuCount)) this.evaluate(this.get(domain + D.vcpus + 4 * index));
  }
  evaluateAll(domain: number): void {
    const count = this.get(domain + D.vcpuCount);
    for (let index = 0; index < count; index++) this.evaluate(this.get(domain + D.vcpus + 4 * index));
  }

  // ---- handling, by the vCPU itself; the lock is taken here

  /** ICC_IAR1_EL1. @returns the interrupt that is now active, or 1023 */
  acknowledge(vcpuAddress: number): number {
    const domain = this.domainOf(vcpuAddress);
    this.lock(domain);
    const intid = this.#signalled(vcpuAddress);
    if (intid !== GIC_SPURIOUS) {
      const vcpu = this.vcpuAt(vcpuAddress);
      const bit = 1 << (intid & 31);
      const active = this.bitsAt('active', vcpuAddress, intid >>> 5);
      const latch = this.bitsAt('pending', vcpuAddress, intid >>> 5);
      this.set(active, this.get(active) | bit);
      this.set(latch, this.get(latch) & ~bit);
      const level = this.#groupPriority(vcpu, this.#bestPriority) >>> 3;
      this.set(vcpu + V.ap1r0, this.get(vcpu + V.ap1r0) | (1 << level));
      this.evaluate(vcpuAddress);
    }
    this.unlock(domain);
    return intid;
  }

  /** ICC_HPPIR1_EL1: what would be acknowledged if neither mask nor running priority stood against it. */
  highestPending(vcpuAddress: number): number {
    const domain = this.domainOf(vcpuAddress);
    this.lock(domain);
    const intid = this.#best(vcpuAddress);
    this.unlock(domain);
    return intid;
  }

  /** ICC_EOIR1_EL1: priority drop, and with EOImode 0 deactivation. */
  endOfInterrupt(vcpuAddress: number, intid: number): void {
    if (intid >= 1020) return;
    if (intid < GIC_FIRST_SPI) this.#sampleLine(vcpuAddress, intid);
    const domain = this.domainOf(vcpuAddress);
    const vcpu = this.vcpuAt(vcpuAddress);
    this.lock(domain);
    const active = this.get(vcpu + V.ap1r0);
    this.set(vcpu + V.ap1r0, active & (active - 1));
    if ((this.get(vcpu + V.ctlr) & ICC_CTLR.eoiMode) === 0) this.#deactivate(vcpuAddress, domain, intid);
    this.evaluate(vcpuAddress);
    this.unlock(domain);
  }

  /** ICC_DIR_EL1; without effect unless EOImode is 1. */
  deactivate(vcpuAddress: number, intid: number): void {
    if (intid < GIC_FIRST_SPI) this.#sampleLine(vcpuAddress, intid);
    const domain = this.domainOf(vcpuAddress);
    this.lock(domain);
    if ((this.get(this.vcpuAt(vcpuAddress) + V.ctlr) & ICC_CTLR.eoiMode) !== 0) {
      this.#deactivate(vcpuAddress, domain, intid);
      this.evaluate(vcpuAddress);
    }
    this.unlock(domain);
  }

  #deactivate(vcpuAddress: number, domain: number, intid: number): void {
    if (intid >= GIC_INTIDS) return;
    const active = this.bitsAt('active', vcpuAddress, intid >>> 5);
    this.set(active, this.get(active) & ~(1 << (intid & 31)));
    if (intid >= GIC_FIRST_SPI) this.evaluateTarget(domain, intid);
  }

  /** ICC_SGI1R_EL1, by its halves. */
  sendSgi(fromVcpu: number, low: number, high: number): void {
    const intid = (low >>> 24) & 15;
    const domain = this.domainOf(fromVcpu);
    const count = this.get(domain + D.vcpuCount);
    this.lock(domain);
    const allOthers = (high & 0x100) !== 0;
    // Aff3, Aff2 and the range selector are zero for every vCPU there is.
    const cluster = (high & 0x00ff_f0ff) === 0 ? affinityCluster(low) : -1;
    for (let index = 0; index < count; index++) {
      const vcpu = this.get(domain + D.vcpus + 4 * index);
      const affinity = affinityOfVcpu(index);
      const listed = affinity >>> 8 === cluster && ((low >>> (affinity & 15)) & 1) !== 0;
      if (allOthers ? vcpu !== fromVcpu : listed) this.raiseSgi(vcpu, intid);
    }
    this.unlock(domain);
  }
}

/** Aff1 of ICC_SGI1R_EL1. */
function affinityCluster(low: number): number {
  return (low >>> 16) & 0xff;
}
