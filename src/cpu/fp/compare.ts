// Comparisons, minimum and maximum. Contract of operands, FPCR and status: see format.ts.

import type { Format, FpStatus, Sign, Unpacked } from './format.ts';
import { FPSR_IOC, FpType, fpProcessNaNs, fpUnpack, fpZero, isNaNType } from './format.ts';

/** Condition flags as PSTATE holds them in NZCV order: N is bit 3, V is bit 0. */
export const NZCV_EQUAL = 0b0110;
export const NZCV_LESS = 0b1000;
export const NZCV_GREATER = 0b0010;
export const NZCV_UNORDERED = 0b0011;

/** An integer that orders numbers and infinities as their values do; both zeros, and flushed denormals, are 0. */
function orderKey(format: Format, bits: bigint, { type, sign }: Unpacked): bigint {
  if (type === FpType.ZERO) return 0n;
  const magnitude = bits & format.magnitudeMask;
  return sign ? -magnitude : magnitude;
}

/** Sign of op1 - op2 as -1, 0 or 1, or undefined when unordered; `signalNaNs` makes quiet NaNs set IOC too. */
function order(
  format: Format, op1: bigint, op2: bigint, signalNaNs: boolean, fpcr: number, status: FpStatus,
): -1 | 0 | 1 | undefined {
  const a = fpUnpack(format, op1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  if (isNaNType(a.type) || isNaNType(b.type)) {
    if (signalNaNs || a.type === FpType.SNAN || b.type === FpType.SNAN) status.flags |= FPSR_IOC;
    return undefined;
  }
  const key1 = orderKey(format, op1, a);
  const key2 = orderKey(format, op2, b);
  return key1 < key2 ? -1 : key1 > key2 ? 1 : 0;
}

/** FPCompare() (FCMP, FCMPE): NZCV as a 4-bit number. `signalNaNs` makes quiet NaNs set IOC too (FCMPE). */
export function fpCompare(
  format: Format, op1: bigint, op2: bigint, signalNaNs: boolean, fpcr: number, status: FpStatus,
): number {
  switch (order(format, op1, op2, signalNaNs, fpcr, status)) {
    case undefined:
      return NZCV_UNORDERED;
    case 0:
      return NZCV_EQUAL;
    case -1:
      return NZCV_LESS;
    case 1:
      return NZCV_GREATER;
  }
}

/** FPCompareEQ() (FCMEQ): only a signaling NaN sets IOC. */
export function fpCompareEQ(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): boolean {
  return order(format, op1, op2, false, fpcr, status) === 0;
}

/** FPCompareGE() (FCMGE): any NaN sets IOC. */
export function fpCompareGE(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): boolean {
  const ordering = order(format, op1, op2, true, fpcr, status);
  return ordering === 0 || ordering === 1;
}

/** FPCompareGT() (FCMGT): any NaN sets IOC. */
export function fpCompareGT(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): boolean {
  return order(format, op1, op2, true, fpcr, status) === 1;
}

/** The operand that is larger (or smaller, if `wantMin`); of two zeros the more positive (more negative) one. */
function extremum(
  format: Format, op1: bigint, op2: bigint, wantMin: boolean, fpcr: number, status: FpStatus,
): bigint {
  const a = fpUnpack(format, op1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  const nan = fpProcessNaNs(format, a.type, b.type, op1, op2, fpcr, status);
  if (nan !== undefined) return nan;
  const key1 = orderKey(format, op1, a);
  const key2 = orderKey(format, op2, b);
  const takesFirst = wantMin ? key1 < key2 : key1 > key2;
  if ((takesFirst ? a.type : b.type) !== FpType.ZERO) return takesFirst ? op1 : op2;
  // When only one operand is a zero this is its sign: the other one lost, so it is on the other side of zero.
  return fpZero(format, (wantMin ? a.sign | b.sign : a.sign & b.sign) as Sign);
}

export function fpMax(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return extremum(format, op1, op2, false, fpcr, status);
}

export function fpMin(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return extremum(format, op1, op2, true, fpcr, status);
}

/** A single quiet NaN operand yields to the other operand, by becoming the infinity that cannot win. */
function extremumNum(
  format: Format, op1: bigint, op2: bigint, wantMin: boolean, fpcr: number, status: FpStatus,
): bigint {
  const quiet1 = fpUnpack(format, op1, fpcr, status).type === FpType.QNAN;
  const quiet2 = fpUnpack(format, op2, fpcr, status).type === FpType.QNAN;
  const loser = wantMin ? format.infinity : format.infinity | format.signBit;
  return extremum(format, quiet1 && !quiet2 ? loser : op1, quiet2 && !quiet1 ? loser : op2, wantMin, fpcr, status);
}

/** FPMaxNum() (FMAXNM): like fpMax, but a number wins over a quiet NaN. */
export function fpMaxNum(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return extremumNum(format, op1, op2, false, fpcr, status);
}

/** FPMinNum() (FMINNM): like fpMin, but a number wins over a quiet NaN. */
export function fpMinNum(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return extremumNum(format, op1, op2, true, fpcr, status);
}
