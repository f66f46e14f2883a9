// The records that scheduling works on (abi/scheduler.ts), with what the vCPU records and the domains' say about
// running. Every thread reads and writes them, one word at a time.

import { DOMAIN, DOMAIN_STATE } from '../abi/domain-record.ts';
import { PCPU, SCHEDULER, VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { PENDING, vcpuRecord } from '../abi/vcpu.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { VcpuTable } from './vcpu-table.ts';

const V = VCPU_SCHEDULE.at;
type VcpuField = keyof typeof V;

export class ScheduleRecords {
  readonly machine: MachineMemory;
  readonly table: VcpuTable;
  /** Of SCHEDULER, and of the first DOMAIN_SCHEDULE. */
  readonly headerAddress: number;
  readonly domainsAddress: number;
  readonly #schedules: number;

  constructor(machine: MachineMemory) {
    this.machine = machine;
    this.table = new VcpuTable(machine);
    this.headerAddress = machine.region('scheduler').offsetBytes;
    this.#schedules = this.headerAddress + SCHEDULER.sizeBytes;
    this.domainsAddress = this.#schedules + machine.parameters.vcpuCount * VCPU_SCHEDULE.sizeBytes;
  }

  /** Of a vCPU that is new. */
  clear(vcpuAddress: number): void {
    const start = this.#schedule(vcpuAddress);
    this.machine.u8.fill(0, start, start + VCPU_SCHEDULE.sizeBytes);
  }

  #schedule(vcpuAddress: number): number {
    return this.#schedules + this.table.numberOf(vcpuAddress) * VCPU_SCHEDULE.sizeBytes;
  }
  /** Of a field of VCPU_SCHEDULE, in 32-bit words; the next two likewise. */
  index(vcpuAddress: number, field: VcpuField): number {
    return (this.#schedule(vcpuAddress) + V[field]) >>> 2;
  }
  get(vcpuAddress: number, field: VcpuField): number {
    return Atomics.load(this.machine.u32, this.index(vcpuAddress, field));
  }
  set(vcpuAddress: number, field: VcpuField, value: number): void {
    Atomics.store(this.machine.u32, this.index(vcpuAddress, field), value);
  }
  /** A field in nanoseconds, by its offset in VCPU_SCHEDULE. */
  getNanos(vcpuAddress: number, offset: number): number {
    return this.machine.f64[(this.#schedule(vcpuAddress) + offset) / 8]!;
  }
  setNanos(vcpuAddress: number, offset: number, nanos: number): void {
    this.machine.f64[(this.#schedule(vcpuAddress) + offset) / 8] = nanos;
  }
  word(field: keyof typeof SCHEDULER.at): number {
    return (this.headerAddress + SCHEDULER.at[field]) >>> 2;
  }
  pcpuWord(pcpu: number, field: keyof typeof PCPU.at): number {
    return (this.machine.pcpuAddress(pcpu) + PCPU.at[field]) >>> 2;
  }
  /** Takes a running vCPU out of emitted code at its next branch. */
  kick(vcpuAddress: number): void {
    Atomics.store(this.machine.u32, (vcpuAddress + vcpuRecord.at.pending) >>> 2, PENDING.leave);
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
  get isClosing(): boolean {
    return Atomics.load(this.machine.u32, this.word('closing')) !== 0;
  }
}
