// Taking an exception to EL1 and returning from one (Arm ARM: AArch64.TakeException, AArch64.ExceptionReturn).
// Only EL0 and EL1 exist, both AArch64.

import { vcpuRecord } from '../abi/vcpu.ts';
import { setPan } from './tlb.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;

/** ESR_ELx.EC values (Arm ARM D19.2.37). */
export const exceptionClass = {
  unknown: 0x00, wfxTrap: 0x01, fpAccess: 0x07, illegalState: 0x0e, svc64: 0x15, hvc64: 0x16, smc64: 0x17, systemRegister: 0x18,
  instructionAbortLower: 0x20, instructionAbort: 0x21, pcAlignment: 0x22,
  dataAbortLower: 0x24, dataAbort: 0x25, spAlignment: 0x26, brk64: 0x3c,
} as const;

/** Fault status codes; those with a level have it in the low two bits. */
export const faultStatus = {
  addressSize: 0x00, translation: 0x04, accessFlag: 0x08, permission: 0x0c,
  externalAbort: 0x10, externalAbortOnWalk: 0x14, alignment: 0x21, exclusiveUnsupported: 0x35,
} as const;

export const SPSR_IL = 1 << 20;
const SPSR_M = 0xf;
export const DAIF_ALL = 0x3c0;
export const PSTATE_PAN = 1 << 22;
export const SCTLR_SPAN = 1 << 23;
/** In the vector table, by where the exception comes from: the current level with SP_EL0 or its own, the lower one. */
export const vectorOffset = { currentSp0: 0, current: 0x200, lower: 0x400 } as const;

/** Where an interrupt's vector is, from there. */
export const irqVector = 0x80;

export const syndrome = (ec: number, iss: number): number => ((ec << 26) | (1 << 25) | iss) >>> 0;

export type VectorKind = 'synchronous' | 'irq';

/** PSTATE as SPSR_EL1 shows it. */
export function pstate(vcpu: VcpuState): number {
  const mode = vcpu.el === 0 ? 0 : 4 | vcpu.get32(at.spSel);
  return (vcpu.nzcv() | vcpu.get32(at.daif) | vcpu.get32(at.pan) | vcpu.get32(at.pstateRest) | mode) >>> 0;
}

/**
 * @param returnAddress for ELR_EL1.
 * @returns the vector's address, where execution goes on.
 */
export function takeException(vcpu: VcpuState, kind: VectorKind, returnAddress: bigint, esr?: number): bigint {
  vcpu.set64(at.spsrEl1, BigInt(pstate(vcpu)));
  vcpu.set64(at.elrEl1, returnAddress);
  if (esr !== undefined) vcpu.setHalves(at.esrEl1, esr, 0);
  const { currentSp0, current, lower } = vectorOffset;
  const from = vcpu.el === 0 ? lower : vcpu.get32(at.spSel) === 0 ? currentSp0 : current;
  vcpu.saveSp();
  vcpu.enterEl(1, 1);
  vcpu.set32(at.daif, DAIF_ALL);
  vcpu.set32(at.pstateRest, 0);
  if ((vcpu.get32(at.sctlrEl1) & SCTLR_SPAN) === 0) setPan(vcpu, true);
  return (vcpu.get64(at.vbarEl1) & ~0x7ffn) + BigInt(from + (kind === 'irq' ? irqVector : 0));
}

/**
 * ERET. An illegal return (AArch32, EL2 or EL3, reserved mode) sets PSTATE.IL and stays at EL1.
 *
 * @returns the address where execution goes on.
 */
export function exceptionReturn(vcpu: VcpuState): bigint {
  const spsr = vcpu.get32(at.spsrEl1);
  const mode = spsr & 0x1f;
  const legal = mode === 0 || mode === 4 || mode === 5;
  vcpu.saveSp();
  vcpu.setNzcv(spsr);
  vcpu.set32(at.daif, spsr & DAIF_ALL);
  setPan(vcpu, (spsr & PSTATE_PAN) !== 0);
  vcpu.set32(at.pstateRest, legal ? spsr & SPSR_IL : SPSR_IL);
  if (legal) vcpu.enterEl(mode === 0 ? 0 : 1, spsr & SPSR_M & 1);
  vcpu.set64(at.exclusiveAddress, 0xffff_ffff_ffff_ffffn);
  return vcpu.get64(at.elrEl1);
}
