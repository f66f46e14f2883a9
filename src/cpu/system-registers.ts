// The CPU's own system registers: what MRS and MSR do for each. The interrupt controller's and the timers' belong to
// the host (host.ts). A register that stands nowhere is UNDEFINED for the guest and counted.

import { constantSystemRegisters, sysreg, systemRegister } from '../a64/system-registers.ts';
import { vcpuRecord, xOffset } from '../abi/vcpu.ts';
import { flushAll, setPan, updateAsid } from './tlb.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;

export interface RegisterDefinition {
  read?: (vcpu: VcpuState) => bigint;
  write?: (vcpu: VcpuState, value: bigint) => void;
  /** Lowest exception level that may read (default 1); writing always needs 1 unless `writeEl` says otherwise. */
  readEl?: (vcpu: VcpuState) => boolean;
  writeEl?: (vcpu: VcpuState) => boolean;
}

const constant = (value: bigint): RegisterDefinition => ({ read: () => value });
const stored = (offset: number, bits = 0xffff_ffff_ffff_ffffn): RegisterDefinition => ({
  read: vcpu => vcpu.get64(offset),
  write: (vcpu, value) => vcpu.set64(offset, value & bits),
});
/** Stored, and `changed` follows a write that changes the value. */
const storedThen = (offset: number, changed: (vcpu: VcpuState) => void): RegisterDefinition => ({
  read: vcpu => vcpu.get64(offset),
  write: (vcpu, value) => {
    const old = vcpu.get64(offset);
    vcpu.set64(offset, value);
    if (old !== value) changed(vcpu);
  },
});
const readZero: RegisterDefinition = { read: () => 0n, write: () => {} };
const always = (): boolean => true;

const SCTLR_RES1 = 0x30d0_0800n;
const SCTLR_UCT = 1 << 15;
const SCTLR_UMA = 1 << 9;
const DAIF_BITS = 0x3c0;
const PAN_BIT = 1 << 22;

/**
 * Identification (Arm ARM D19.2): Armv8.0 with LSE, LRCPC, CRC32, RDM, AES, SHA1, SHA256, PMULL, PAN, hardware access
 * flag and dirty state, 16-bit ASIDs, E0PD; AArch64 only; no EL2, EL3, PMU, SVE, pointer authentication.
 * CSV2 and CSV3 say that speculation does not leak between contexts: emitted code does not speculate across guests by
 * design of the guest, and Linux then leaves out mitigations that would only cost.
 */
const identification: Readonly<Record<number, bigint>> = {
  [sysreg.MIDR_EL1]: constantSystemRegisters.MIDR_EL1,
  [sysreg.REVIDR_EL1]: 0n,
  [sysreg.AIDR_EL1]: 0n,
  [sysreg.ID_AA64PFR0_EL1]: 0x1300_0000_0100_0011n,
  [sysreg.ID_AA64DFR0_EL1]: 0x0000_0000_0010_1006n,
  [sysreg.ID_AA64ISAR0_EL1]: 0x0000_0000_1021_1120n,
  [sysreg.ID_AA64ISAR1_EL1]: 0x0000_0000_0010_0000n,
  [sysreg.ID_AA64MMFR0_EL1]: 0x0000_0000_0f00_0022n,
  [sysreg.ID_AA64MMFR1_EL1]: 0x0000_0000_0010_0002n,
  [sysreg.ID_AA64MMFR2_EL1]: 0x1000_0000_0000_0000n,
  [sysreg.CLIDR_EL1]: 0n,
  [sysreg.CCSIDR_EL1]: 0n,
};

function breakpointRegisters(): [number, RegisterDefinition][] {
  const banks = [[4, at.dbgbvr], [5, at.dbgbcr], [6, at.dbgwvr], [7, at.dbgwcr]] as const;
  return banks.flatMap(([op2, offset]) => Array.from({ length: 16 }, (_, n) =>
    [systemRegister(2, 0, 0, n, op2), stored(offset + 8 * n)] as [number, RegisterDefinition]));
}

/** op0 = 3, op1 = 0, CRn = 0, CRm = 1 … 7: the identification space; what is not named reads as zero. */
function identificationSpace(): [number, RegisterDefinition][] {
  const registers: [number, RegisterDefinition][] = [];
  for (let crm = 1; crm < 8; crm++) {
    for (let op2 = 0; op2 < 8; op2++) registers.push([systemRegister(3, 0, 0, crm, op2), constant(0n)]);
  }
  for (const [encoding, value] of Object.entries(identification)) registers.push([Number(encoding), constant(value)]);
  return registers;
}

export const systemRegisters: ReadonlyMap<number, RegisterDefinition> = new Map<number, RegisterDefinition>([
  ...identificationSpace(),
  ...breakpointRegisters(),
  [sysreg.MPIDR_EL1, { read: vcpu => vcpu.get64(at.mpidrEl1) }],
  [sysreg.SCTLR_EL1, {
    ...storedThen(at.sctlrEl1, vcpu => {
      flushAll(vcpu);
      vcpu.updateSpAlignment();
    }),
    read: vcpu => vcpu.get64(at.sctlrEl1) | SCTLR_RES1,
  }],
  [sysreg.ACTLR_EL1, readZero],
  [sysreg.CPACR_EL1, storedThen(at.cpacrEl1, vcpu => vcpu.updateFpTrap())],
  [sysreg.TTBR0_EL1, storedThen(at.ttbr0El1, updateAsid)],
  [sysreg.TTBR1_EL1, storedThen(at.ttbr1El1, updateAsid)],
  [sysreg.TCR_EL1, storedThen(at.tcrEl1, vcpu => {
    flushAll(vcpu);
    updateAsid(vcpu);
  })],
  [sysreg.MAIR_EL1, storedThen(at.mairEl1, flushAll)],
  [sysreg.AMAIR_EL1, stored(at.amairEl1)],
  [sysreg.CONTEXTIDR_EL1, stored(at.contextidrEl1)],
  [sysreg.SPSR_EL1, stored(at.spsrEl1, 0xffff_ffffn)],
  [sysreg.ELR_EL1, stored(at.elrEl1)],
  [sysreg.ESR_EL1, stored(at.esrEl1)],
  [sysreg.FAR_EL1, stored(at.farEl1)],
  [sysreg.PAR_EL1, stored(at.parEl1)],
  [sysreg.AFSR0_EL1, stored(at.afsr0El1)],
  [sysreg.AFSR1_EL1, stored(at.afsr1El1)],
  [sysreg.VBAR_EL1, stored(at.vbarEl1, ~0x7ffn & 0xffff_ffff_ffff_ffffn)],
  [sysreg.RVBAR_EL1, constant(0n)],
  [sysreg.ISR_EL1, { read: vcpu => BigInt(vcpu.get32(at.irqLine) ? 0x80 : 0) }],
  [sysreg.CSSELR_EL1, stored(at.csselrEl1, 0xfn)],
  [sysreg.CNTKCTL_EL1, stored(at.cntkctlEl1)],
  [sysreg.TPIDR_EL1, stored(at.tpidrEl1)],
  [sysreg.TPIDR_EL0, { ...stored(at.tpidrEl0), readEl: always, writeEl: always }],
  [sysreg.TPIDRRO_EL0, { ...stored(at.tpidrroEl0), readEl: always }],
  [sysreg.CTR_EL0, { ...constant(constantSystemRegisters.CTR_EL0), readEl: vcpu => (vcpu.get32(at.sctlrEl1) & SCTLR_UCT) !== 0 }],
  [sysreg.DCZID_EL0, { ...constant(constantSystemRegisters.DCZID_EL0), readEl: always }],

  // PSTATE
  [sysreg.CURRENTEL, { read: vcpu => BigInt(vcpu.el << 2) }],
  [sysreg.SPSEL, {
    read: vcpu => BigInt(vcpu.get32(at.spSel)),
    write: (vcpu, value) => selectSp(vcpu, Number(value & 1n)),
  }],
  [sysreg.PAN, {
    read: vcpu => BigInt(vcpu.get32(at.pan)),
    write: (vcpu, value) => setPan(vcpu, (Number(value & 0xffff_ffffn) & PAN_BIT) !== 0),
  }],
  [sysreg.DAIF, {
    read: vcpu => BigInt(vcpu.get32(at.daif)),
    write: (vcpu, value) => vcpu.set32(at.daif, Number(value & BigInt(DAIF_BITS))),
    readEl: vcpu => (vcpu.get32(at.sctlrEl1) & SCTLR_UMA) !== 0,
    writeEl: vcpu => (vcpu.get32(at.sctlrEl1) & SCTLR_UMA) !== 0,
  }],
  [sysreg.SP_EL0, stored(at.spEl0)],

  // Debug: registers are kept, nothing ever matches.
  [sysreg.MDSCR_EL1, stored(at.mdscrEl1)],
  [sysreg.MDCCINT_EL1, stored(at.mdccintEl1)],
  [sysreg.OSLAR_EL1, { write: (vcpu, value) => vcpu.set64(at.oslarEl1, value & 1n) }],
  [sysreg.OSLSR_EL1, { read: vcpu => 8n | (vcpu.get64(at.oslarEl1) << 1n) }],
  [sysreg.OSDLR_EL1, stored(at.osdlrEl1, 1n)],
  [sysreg.MDRAR_EL1, constant(0n)],
  [sysreg.DBGPRCR_EL1, readZero],
  [sysreg.DBGCLAIMSET_EL1, { read: () => 0xffn, write: () => {} }],
  [sysreg.DBGCLAIMCLR_EL1, readZero],
  [sysreg.DBGAUTHSTATUS_EL1, constant(0n)],
  [sysreg.MDCCSR_EL0, constant(0n)],
  [sysreg.OSDTRRX_EL1, readZero],
  [sysreg.OSDTRTX_EL1, readZero],
  [sysreg.OSECCR_EL1, readZero],
]);

export function selectSp(vcpu: VcpuState, spSel: number): void {
  vcpu.saveSp();
  vcpu.set32(at.spSel, spSel);
  vcpu.copy64(xOffset(31), spSel === 0 ? at.spEl0 : at.spEl1);
}
