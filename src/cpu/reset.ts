// The state of a vCPU after reset (Arm ARM: AArch64.TakeReset, entering EL1 because there is no EL2 or EL3).

import { vcpuRecord, xOffset } from '../abi/vcpu.ts';
import { flushAll } from './tlb.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
const DAIF_ALL = 0x3c0;
const MPIDR_RES1 = 0x8000_0000n;

/** What belongs to the record, not to the register file: others count on it, and on its only ever growing. */
const KEPT = [at.tlbFlushRequest, at.tlbFlushDone, at.instructionsRetired, at.instructionsRetired + 4,
  at.unknownSystemRegisters, at.unknownSystemRegisters + 4, at.hypercalls].toSorted((a, b) => a - b);

/**
 * @param affinity Aff0 of MPIDR_EL1: the number of the vCPU in its domain, below 16.
 * @param pc where it starts, with the MMU off and interrupts masked; `x0` as the boot protocols want it.
 */
export function resetVcpu(vcpu: VcpuState, affinity: number, pc = 0n, x0 = 0n): void {
  const index = (offset: number) => (vcpu.address + offset) / 4;
  let from = 0;
  for (const offset of KEPT) {
    vcpu.u32.fill(0, index(from), index(offset));
    from = offset + 4;
  }
  vcpu.u32.fill(0, index(from), index(vcpuRecord.sizeBytes));
  vcpu.set64(at.mpidrEl1, MPIDR_RES1 | BigInt(affinity));
  vcpu.set64(at.exclusiveAddress, 0xffff_ffff_ffff_ffffn);
  vcpu.set32(at.daif, DAIF_ALL);
  vcpu.setNzcv(0);
  vcpu.enterEl(1, 1);
  flushAll(vcpu);
  vcpu.set64(at.pcBase, pc);
  vcpu.set64(xOffset(0), x0);
}
