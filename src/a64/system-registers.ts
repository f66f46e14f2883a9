// System registers by name and encoding (Arm ARM D19): op0:op1:CRn:CRm:op2 in sixteen bits, as the traps give it.

export function systemRegister(op0: number, op1: number, crn: number, crm: number, op2: number): number {
  return (op0 << 14) | (op1 << 11) | (crn << 7) | (crm << 3) | op2;
}
const r = systemRegister;

export const sysreg = {
  OSDTRRX_EL1: r(2, 0, 0, 0, 2), MDCCINT_EL1: r(2, 0, 0, 2, 0), MDSCR_EL1: r(2, 0, 0, 2, 2), OSDTRTX_EL1: r(2, 0, 0, 3, 2),
  OSECCR_EL1: r(2, 0, 0, 6, 2), MDRAR_EL1: r(2, 0, 1, 0, 0), OSLAR_EL1: r(2, 0, 1, 0, 4), OSLSR_EL1: r(2, 0, 1, 1, 4),
  OSDLR_EL1: r(2, 0, 1, 3, 4), DBGPRCR_EL1: r(2, 0, 1, 4, 4), DBGCLAIMSET_EL1: r(2, 0, 7, 8, 6),
  DBGCLAIMCLR_EL1: r(2, 0, 7, 9, 6), DBGAUTHSTATUS_EL1: r(2, 0, 7, 14, 6), MDCCSR_EL0: r(2, 3, 0, 1, 0),

  MIDR_EL1: r(3, 0, 0, 0, 0), MPIDR_EL1: r(3, 0, 0, 0, 5), REVIDR_EL1: r(3, 0, 0, 0, 6),
  ID_AA64PFR0_EL1: r(3, 0, 0, 4, 0), ID_AA64PFR1_EL1: r(3, 0, 0, 4, 1), ID_AA64ZFR0_EL1: r(3, 0, 0, 4, 4),
  ID_AA64DFR0_EL1: r(3, 0, 0, 5, 0), ID_AA64ISAR0_EL1: r(3, 0, 0, 6, 0), ID_AA64ISAR1_EL1: r(3, 0, 0, 6, 1),
  ID_AA64MMFR0_EL1: r(3, 0, 0, 7, 0), ID_AA64MMFR1_EL1: r(3, 0, 0, 7, 1), ID_AA64MMFR2_EL1: r(3, 0, 0, 7, 2),
  SCTLR_EL1: r(3, 0, 1, 0, 0), ACTLR_EL1: r(3, 0, 1, 0, 1), CPACR_EL1: r(3, 0, 1, 0, 2),
  TTBR0_EL1: r(3, 0, 2, 0, 0), TTBR1_EL1: r(3, 0, 2, 0, 1), TCR_EL1: r(3, 0, 2, 0, 2),
  SPSR_EL1: r(3, 0, 4, 0, 0), ELR_EL1: r(3, 0, 4, 0, 1), SP_EL0: r(3, 0, 4, 1, 0), SPSEL: r(3, 0, 4, 2, 0),
  CURRENTEL: r(3, 0, 4, 2, 2), PAN: r(3, 0, 4, 2, 3), ICC_PMR_EL1: r(3, 0, 4, 6, 0),
  AFSR0_EL1: r(3, 0, 5, 1, 0), AFSR1_EL1: r(3, 0, 5, 1, 1), ESR_EL1: r(3, 0, 5, 2, 0),
  FAR_EL1: r(3, 0, 6, 0, 0), PAR_EL1: r(3, 0, 7, 4, 0),
  MAIR_EL1: r(3, 0, 10, 2, 0), AMAIR_EL1: r(3, 0, 10, 3, 0), LORSA_EL1: r(3, 0, 10, 4, 0),
  VBAR_EL1: r(3, 0, 12, 0, 0), RVBAR_EL1: r(3, 0, 12, 0, 1), ISR_EL1: r(3, 0, 12, 1, 0),
  CONTEXTIDR_EL1: r(3, 0, 13, 0, 1), TPIDR_EL1: r(3, 0, 13, 0, 4), CNTKCTL_EL1: r(3, 0, 14, 1, 0),
  CCSIDR_EL1: r(3, 1, 0, 0, 0), CLIDR_EL1: r(3, 1, 0, 0, 1), AIDR_EL1: r(3, 1, 0, 0, 7), CSSELR_EL1: r(3, 2, 0, 0, 0),
  CTR_EL0: r(3, 3, 0, 0, 1), DCZID_EL0: r(3, 3, 0, 0, 7), NZCV: r(3, 3, 4, 2, 0), DAIF: r(3, 3, 4, 2, 1),
  FPCR: r(3, 3, 4, 4, 0), FPSR: r(3, 3, 4, 4, 1),
  TPIDR_EL0: r(3, 3, 13, 0, 2), TPIDRRO_EL0: r(3, 3, 13, 0, 3),
  CNTFRQ_EL0: r(3, 3, 14, 0, 0), CNTPCT_EL0: r(3, 3, 14, 0, 1), CNTVCT_EL0: r(3, 3, 14, 0, 2),
  CNTP_TVAL_EL0: r(3, 3, 14, 2, 0), CNTP_CTL_EL0: r(3, 3, 14, 2, 1), CNTP_CVAL_EL0: r(3, 3, 14, 2, 2),
  CNTV_TVAL_EL0: r(3, 3, 14, 3, 0), CNTV_CTL_EL0: r(3, 3, 14, 3, 1), CNTV_CVAL_EL0: r(3, 3, 14, 3, 2),

  ICC_IAR0_EL1: r(3, 0, 12, 8, 0), ICC_EOIR0_EL1: r(3, 0, 12, 8, 1), ICC_HPPIR0_EL1: r(3, 0, 12, 8, 2),
  ICC_BPR0_EL1: r(3, 0, 12, 8, 3), ICC_AP0R0_EL1: r(3, 0, 12, 8, 4), ICC_AP1R0_EL1: r(3, 0, 12, 9, 0),
  ICC_DIR_EL1: r(3, 0, 12, 11, 1), ICC_RPR_EL1: r(3, 0, 12, 11, 3), ICC_SGI1R_EL1: r(3, 0, 12, 11, 5),
  ICC_ASGI1R_EL1: r(3, 0, 12, 11, 6), ICC_SGI0R_EL1: r(3, 0, 12, 11, 7), ICC_IAR1_EL1: r(3, 0, 12, 12, 0),
  ICC_EOIR1_EL1: r(3, 0, 12, 12, 1), ICC_HPPIR1_EL1: r(3, 0, 12, 12, 2), ICC_BPR1_EL1: r(3, 0, 12, 12, 3),
  ICC_CTLR_EL1: r(3, 0, 12, 12, 4), ICC_SRE_EL1: r(3, 0, 12, 12, 5), ICC_IGRPEN0_EL1: r(3, 0, 12, 12, 6),
  ICC_IGRPEN1_EL1: r(3, 0, 12, 12, 7),
} as const;

/** What this CPU says of itself in registers that are read often. */
export const constantSystemRegisters = {
  /**
   * IDC (no cleaning needed for instruction fetch), no DIC (IC IVAU is needed), PIPT; lines as long as makes guests
   * maintain what they think are caches with few instructions: of 512 bytes for instructions, 2048 for data.
   */
  CTR_EL0: 0x9449_c007n,
  /** DC ZVA zeroes 64 bytes. */
  DCZID_EL0: 4n,
  MIDR_EL1: 0x000f_0510n,
} as const;
