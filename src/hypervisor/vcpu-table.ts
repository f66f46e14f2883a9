// Which vCPU record belongs to which domain: found by any thread from the records in the region `interrupts`.

import { GIC_DOMAIN, GIC_VCPU } from '../abi/gic.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';

export class VcpuTable {
  readonly machine: MachineMemory;
  readonly #domains: number;
  readonly #vcpus: number;

  constructor(machine: MachineMemory) {
    this.machine = machine;
    this.#domains = machine.region('interrupts').offsetBytes;
    this.#vcpus = this.#domains + machine.parameters.domainCount * GIC_DOMAIN.sizeBytes;
  }

  get(address: number): number {
    return this.machine.u32[address >>> 2]!;
  }
  set(address: number, value: number): void {
    this.machine.u32[address >>> 2] = value;
  }

  /** A vCPU record's number in the region `vcpus`. */
  numberOf(vcpuAddress: number): number {
    return (vcpuAddress - this.machine.vcpuAddress(0)) / this.machine.parameters.vcpuStrideBytes;
  }
  /** Address of a domain's GIC_DOMAIN. */
  domainAt(domid: number): number {
    return this.#domains + domid * GIC_DOMAIN.sizeBytes;
  }
  /** Address of the GIC_VCPU that goes with a vCPU record. */
  vcpuAt(vcpuAddress: number): number {
    return this.#vcpus + this.numberOf(vcpuAddress) * GIC_VCPU.sizeBytes;
  }
  domainOf(vcpuAddress: number): number {
    return this.domainAt(this.domidOf(vcpuAddress));
  }

  domidOf(vcpuAddress: number): number {
    return this.get(this.vcpuAt(vcpuAddress) + GIC_VCPU.at.domid);
  }
  /** The vCPU's number in its domain. */
  indexOf(vcpuAddress: number): number {
    return this.get(this.vcpuAt(vcpuAddress) + GIC_VCPU.at.index);
  }
  vcpuCount(domid: number): number {
    return this.get(this.domainAt(domid) + GIC_DOMAIN.at.vcpuCount);
  }
  /** Address of the record of a domain's vCPU. */
  vcpuOf(domid: number, index: number): number {
    return this.get(this.domainAt(domid) + GIC_DOMAIN.at.vcpus + 4 * index);
  }
}
