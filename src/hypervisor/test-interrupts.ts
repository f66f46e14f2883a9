// What the tests of interrupts, timers and scheduling share: a small machine whose vCPUs are records that nothing
// runs, and a clock that goes by hand.

import { GIC_VCPU, mpidrOfVcpu } from '../abi/gic.ts';
import { sysreg } from '../a64/system-registers.ts';
import { VCPU_BYTES, scratchOffset, vcpuRecord } from '../abi/vcpu.ts';
import { GUEST_GICV3_GICD_BASE, GUEST_GICV3_GICR0_BASE, GUEST_GICV3_GICR_STRIDE } from '../abi/xen.ts';
import type { Clock } from '../base/clock.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { GicCpuInterface } from './gic-cpu-interface.ts';
import { GicRegisters } from './gic-registers.ts';
import { Gic } from './gic.ts';
import { VcpuScheduling } from './scheduler.ts';
import { Timers } from './timer.ts';

export const gicd = (offset: number): number => GUEST_GICV3_GICD_BASE + offset;
export const gicr = (index: number, offset: number): number =>
  GUEST_GICV3_GICR0_BASE + index * GUEST_GICV3_GICR_STRIDE + offset;
/** The redistributor's frame of SGIs and PPIs. */
export const sgiFrame = (index: number, offset: number): number => gicr(index, 0x1_0000 + offset);

export function smallMachine(pcpuCount = 1): MachineMemory {
  return MachineMemory.create({
    sizeBytes: 4 * 1024 * 1024, pcpuCount, domainCount: 4, codeBytes: 0,
    vcpuCount: 20, vcpuStrideBytes: Math.ceil(VCPU_BYTES / 4096) * 4096,
  });
}

export class FakeClock implements Clock {
  nanos = 1e9;
  monotonicNanos(): number { return this.nanos; }
  wallMillis(): number { return this.nanos / 1e6; }
}

/** A domain of some vCPUs, and the registers of its interrupt controller as its vCPUs access them. */
export class InterruptRig {
  readonly domid: number;
  readonly machine: MachineMemory;
  readonly vcpus: readonly number[];
  readonly scheduling: VcpuScheduling;
  readonly gic: Gic;
  readonly registers: GicRegisters;
  readonly cpu: GicCpuInterface;
  readonly clock = new FakeClock();
  readonly timers: Timers;
  readonly woken: number[] = [];
  /** What a source says when it is asked for its line. */
  sampled: (vcpuAddress: number, intid: number) => void = () => {};

  /** Of one machine, rigs must differ in both domid and vCPUs. */
  constructor(vcpuCount: number, machine = smallMachine(), domid = 1, firstVcpu = 0) {
    this.domid = domid;
    this.machine = machine;
    this.vcpus = Array.from({ length: vcpuCount }, (_, i) => machine.vcpuAddress(firstVcpu + i));
    this.scheduling = new VcpuScheduling(machine);
    this.gic = new Gic(machine, vcpu => this.woken.push(vcpu), (vcpu, intid) => this.sampled(vcpu, intid));
    this.registers = new GicRegisters(this.gic);
    this.cpu = new GicCpuInterface(this.gic);
    this.timers = new Timers(this.gic, this.scheduling, this.clock);
    this.gic.resetDomain(domid, this.vcpus);
    this.vcpus.forEach((vcpu, i) => {
      machine.u64[(vcpu + vcpuRecord.at.mpidrEl1) / 8] = BigInt(mpidrOfVcpu(i));
      this.scheduling.attach(vcpu);
    });
    this.timers.setTime(domid, 0);
  }

  /** As a kernel does it: everything enabled at the distributor and each CPU interface, no priority masked. */
  enable(): void {
    this.store(gicd(0), 2);
    this.vcpus.forEach((_, i) => {
      this.store(gicr(i, 0x14), 0);
      this.store(sgiFrame(i, 0x100), 0xffff_ffff);
      this.write(i, sysreg.ICC_PMR_EL1, 0xff);
      this.write(i, sysreg.ICC_IGRPEN1_EL1, 1);
    });
  }

  load(address: number, sizeBytes = 4, by = 0): number {
    const vcpu = this.vcpus[by]!;
    if (!this.registers.load(vcpu, address, sizeBytes)) throw new Error('no register there');
    const index = (vcpu + scratchOffset(0)) / 4;
    return this.machine.u32[index]! + this.machine.u32[index + 1]! * 2 ** 32;
  }
  store(address: number, value: number, sizeBytes = 4, by = 0): void {
    const vcpu = this.vcpus[by]!;
    const index = (vcpu + scratchOffset(0)) / 4;
    this.machine.u32[index] = value % 2 ** 32;
    this.machine.u32[index + 1] = Math.floor(value / 2 ** 32);
    if (!this.registers.store(vcpu, address, sizeBytes)) throw new Error('no register there');
  }

  read(index: number, encoding: number): number {
    const value = this.cpu.read(this.vcpus[index]!, encoding);
    if (value === undefined) throw new Error('no such system register');
    return value;
  }
  write(index: number, encoding: number, low: number, high = 0): void {
    if (!this.cpu.write(this.vcpus[index]!, encoding, low, high)) throw new Error('no such system register');
  }
  acknowledge(index = 0): number { return this.read(index, sysreg.ICC_IAR1_EL1); }
  end(intid: number, index = 0): void { this.write(index, sysreg.ICC_EOIR1_EL1, intid); }

  irq(index = 0): boolean {
    return this.machine.u32[(this.vcpus[index]! + vcpuRecord.at.irqLine) / 4] !== 0;
  }
  kicked(index = 0): boolean {
    return Atomics.exchange(this.machine.u32, (this.vcpus[index]! + vcpuRecord.at.pending) / 4, 0) !== 0;
  }
  raise(intid: number, level = true, index = 0): void {
    if (intid < 32) this.gic.setInterruptLevel(this.vcpus[index]!, intid, level);
    else this.gic.setSpiLevel(this.domid, intid, level);
  }
  privateField(field: keyof typeof GIC_VCPU.at, index = 0): number {
    return this.gic.get(this.gic.vcpuAt(this.vcpus[index]!) + GIC_VCPU.at[field]);
  }
}
