// The names of the slow paths that meanings may call; the cpu room implements each in TypeScript.

/**
 * Helpers: (vCPU record, up to four 32-bit arguments) → 32-bit result; see Machine.compute. All are pure but for `counter`,
 * which puts CNTVCT_EL0 into scratch word 0.
 */
export const computeNames = ['softFloat', 'crc32', 'counter'] as const;
export type ComputeName = (typeof computeNames)[number];

/** Ends of an instruction; see Machine.trap. */
export const trapNames = [
  'undefined', 'svc', 'hvc', 'smc', 'brk', 'hlt', 'eret', 'mrs', 'msr', 'msrImmediate', 'sys', 'sysl', 'wfi', 'wfe', 'yield',
  'fpDisabled', 'spAlignment',
] as const;
export type TrapName = (typeof trapNames)[number];

/** Which field `msrImmediate` is of, op1:op2. Their immediate has D, A, I, F in bits 3 … 0, the vCPU record as in SPSR. */
export const DAIF_SET = 0b011_110;
export const DAIF_CLR = 0b011_111;
export const DAIF_SHIFT = 6;
