// Sets of registers: bit n of `general` is register n (31: SP), bit n of `vectors` SIMD&FP register n.

import { SP_SLOT } from '../../a64/operand.ts';
import type { Operand } from '../../a64/operand.ts';

export interface RegisterSet {
  readonly general: number;
  readonly vectors: number;
}

export const noRegisters: RegisterSet = { general: 0, vectors: 0 };
export const allRegisters: RegisterSet = { general: -1, vectors: -1 };

export const contains = (mask: number, n: number): boolean => ((mask >>> n) & 1) !== 0;
export const union = (a: RegisterSet, b: RegisterSet): RegisterSet =>
  ({ general: a.general | b.general, vectors: a.vectors | b.vectors });
export const intersection = (a: RegisterSet, b: RegisterSet): RegisterSet =>
  ({ general: a.general & b.general, vectors: a.vectors & b.vectors });
export const isEqual = (a: RegisterSet, b: RegisterSet): boolean => a.general === b.general && a.vectors === b.vectors;

/** The registers that operands name; one that reads as zero or discards is none. */
export function registersOf(operands: Iterable<Operand>): RegisterSet {
  let general = 0;
  let vectors = 0;
  for (const { kind, value } of operands) {
    if (kind === 'v') vectors |= 1 << (value as number);
    else if (kind === 'x' && (value as number) <= SP_SLOT) general |= 1 << (value as number);
  }
  return { general, vectors };
}
