// The names of the slow paths that meanings may call; the cpu room implements each in TypeScript.

/** Pure helpers: (vCPU record, up to four 32-bit arguments) → 32-bit result; see Machine.compute. */
export const computeNames = ['softFloat', 'crc32'] as const;
export type ComputeName = (typeof computeNames)[number];

/** Ends of an instruction; see Machine.trap. */
export const trapNames = [
  'undefined', 'svc', 'hvc', 'smc', 'brk', 'hlt', 'eret', 'mrs', 'msr', 'msrImmediate', 'sys', 'sysl', 'wfi', 'wfe', 'yield',
  'fpDisabled', 'spAlignment',
] as const;
export type TrapName = (typeof trapNames)[number];
