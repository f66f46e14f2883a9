// Exact arithmetic: add, subtract, multiply, divide, square root, fused multiply-add and the fused Newton steps.
// Contract of operands, FPCR and status: see format.ts.

import type { Format, FpStatus, Sign, Unpacked } from './format.ts';
import {
  FPSR_DZC, FpType, Rounding, fpInfinity, fpInvalid, fpProcessNaN, fpProcessNaNs, fpRoundingMode, fpTwo, fpUnpack,
  fpZero,
} from './format.ts';
import { bitLength, fpRound } from './round.ts';

/** FPNeg(): flips the sign, of a NaN too; sets no flag. */
export function fpNeg(format: Format, op: bigint): bigint {
  return op ^ format.signBit;
}

/** FPAbs(): clears the sign, of a NaN too; sets no flag. */
export function fpAbs(format: Format, op: bigint): bigint {
  return op & format.magnitudeMask;
}

/** A finite exact value (-1)^sign × significand × 2^exponent; the significand may be 0. */
interface Term {
  readonly sign: Sign;
  readonly significand: bigint;
  readonly exponent: number;
}

function product(a: Term, b: Term): Term {
  return {
    sign: (a.sign ^ b.sign) as Sign,
    significand: a.significand * b.significand,
    exponent: a.exponent + b.exponent,
  };
}

/**
 * Replaces a term that only decides between "a little more" and "a little less" than `large` by one as far away as
 * need be, so that sums of very different magnitudes do not make very long integers. Every number at which the
 * rounding of the sum could change is a multiple of 2^grid, and so is `large`; hence everything strictly between 0
 * and 2^grid added to it gives the same result and flags.
 */
function nearby(format: Format, large: Term, small: Term): Term {
  const leadingExponent = large.exponent + bitLength(large.significand) - 1;
  const grid = Math.min(large.exponent, leadingExponent - format.fractionBits - 3);
  if (small.exponent + bitLength(small.significand) > grid) return small;
  return { sign: small.sign, significand: 1n, exponent: grid - 1 };
}

/** The rounded sum of two finite terms. An exact zero is negative only when both terms are, or rounding is to -∞. */
function roundedSum(format: Format, a: Term, b: Term, fpcr: number, status: FpStatus): bigint {
  if (a.significand === 0n && b.significand === 0n && a.sign === b.sign) return fpZero(format, a.sign);
  if (a.significand !== 0n && b.significand !== 0n) {
    b = nearby(format, a, b);
    a = nearby(format, b, a);
  }
  const exponent = Math.min(
    a.significand === 0n ? b.exponent : a.exponent,
    b.significand === 0n ? a.exponent : b.exponent,
  );
  const sum = alignedSigned(a, exponent) + alignedSigned(b, exponent);
  if (sum === 0n) return fpZero(format, fpRoundingMode(fpcr) === Rounding.NEGINF ? 1 : 0);
  return sum < 0n ? fpRound(format, 1, -sum, exponent, fpcr, status) : fpRound(format, 0, sum, exponent, fpcr, status);
}

function alignedSigned(term: Term, exponent: number): bigint {
  if (term.significand === 0n) return 0n;
  const aligned = term.significand << BigInt(term.exponent - exponent);
  return term.sign ? -aligned : aligned;
}

function add(format: Format, op1: bigint, op2: bigint, negate2: Sign, fpcr: number, status: FpStatus): bigint {
  const a = fpUnpack(format, op1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  const nan = fpProcessNaNs(format, a.type, b.type, op1, op2, fpcr, status);
  if (nan !== undefined) return nan;
  const sign2 = (b.sign ^ negate2) as Sign;
  if (a.type === FpType.INFINITY) {
    if (b.type === FpType.INFINITY && a.sign !== sign2) return fpInvalid(format, status);
    return fpInfinity(format, a.sign);
  }
  if (b.type === FpType.INFINITY) return fpInfinity(format, sign2);
  const term2 = { sign: sign2, significand: b.significand, exponent: b.exponent };
  return roundedSum(format, a, term2, fpcr, status);
}

export function fpAdd(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return add(format, op1, op2, 0, fpcr, status);
}

/** op1 - op2. A NaN in op2 keeps its sign. */
export function fpSub(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return add(format, op1, op2, 1, fpcr, status);
}

/** Infinity times zero, in either order. */
function isInfinityTimesZero(a: Unpacked, b: Unpacked): boolean {
  return (a.type === FpType.INFINITY && b.type === FpType.ZERO) ||
    (a.type === FpType.ZERO && b.type === FpType.INFINITY);
}

function multiply(
  format: Format, op1: bigint, op2: bigint, extended: boolean, fpcr: number, status: FpStatus,
): bigint {
  const a = fpUnpack(format, op1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  const nan = fpProcessNaNs(format, a.type, b.type, op1, op2, fpcr, status);
  if (nan !== undefined) return nan;
  const sign = (a.sign ^ b.sign) as Sign;
  if (isInfinityTimesZero(a, b)) return extended ? fpTwo(format, sign) : fpInvalid(format, status);
  if (a.type === FpType.INFINITY || b.type === FpType.INFINITY) return fpInfinity(format, sign);
  if (a.type === FpType.ZERO || b.type === FpType.ZERO) return fpZero(format, sign);
  return fpRound(format, sign, a.significand * b.significand, a.exponent + b.exponent, fpcr, status);
}

export function fpMul(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return multiply(format, op1, op2, false, fpcr, status);
}

/** FPMulX() (FMULX): like fpMul, but infinity times zero is ±2.0. */
export function fpMulX(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return multiply(format, op1, op2, true, fpcr, status);
}

export function fpDiv(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  const a = fpUnpack(format, op1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  const nan = fpProcessNaNs(format, a.type, b.type, op1, op2, fpcr, status);
  if (nan !== undefined) return nan;
  const sign = (a.sign ^ b.sign) as Sign;
  if (a.type === b.type && a.type !== FpType.NONZERO) return fpInvalid(format, status);
  if (a.type === FpType.INFINITY) return fpInfinity(format, sign);
  if (b.type === FpType.ZERO) {
    status.flags |= FPSR_DZC;
    return fpInfinity(format, sign);
  }
  if (a.type === FpType.ZERO || b.type === FpType.INFINITY) return fpZero(format, sign);
  // Positive: gives the quotient two bits more than the precision, also with a denormal dividend.
  const shift = format.fractionBits + 3 + bitLength(b.significand) - bitLength(a.significand);
  const dividend = a.significand << BigInt(shift);
  const quotient = dividend / b.significand;
  const sticky = quotient * b.significand === dividend ? 0n : 1n;
  const exponent = a.exponent - b.exponent - shift - 1;
  return fpRound(format, sign, (quotient << 1n) | sticky, exponent, fpcr, status);
}

/** floor(sqrt(value)) for 0 < value < 2^128. */
function integerSqrt(value: bigint): bigint {
  const estimate = BigInt(Math.floor(Math.sqrt(Number(value))));
  // One Newton step from either side lands on or a little above the root.
  let root = (estimate + value / estimate) >> 1n;
  while (root * root > value) root--;
  return root;
}

export function fpSqrt(format: Format, op: bigint, fpcr: number, status: FpStatus): bigint {
  const a = fpUnpack(format, op, fpcr, status);
  switch (a.type) {
    case FpType.QNAN:
    case FpType.SNAN:
      return fpProcessNaN(format, a.type, op, fpcr, status);
    case FpType.ZERO:
      return fpZero(format, a.sign);
    case FpType.INFINITY:
      return a.sign ? fpInvalid(format, status) : fpInfinity(format, 0);
  }
  if (a.sign) return fpInvalid(format, status);
  // The radicand gets twice the bits that the root needs, and an even exponent.
  let shift = 2 * (format.fractionBits + 3) - bitLength(a.significand);
  if (((a.exponent - shift) & 1) !== 0) shift++;
  const radicand = a.significand << BigInt(shift);
  const root = integerSqrt(radicand);
  const sticky = root * root === radicand ? 0n : 1n;
  return fpRound(format, 0, (root << 1n) | sticky, (a.exponent - shift) / 2 - 1, fpcr, status);
}

/**
 * FPMulAdd(): addend + op1 × op2, rounded once. NaN operands count in the order addend, op1, op2. Infinity times zero
 * with a quiet NaN as addend is the default NaN and sets IOC. The negating instructions (FMSUB, FNMADD, FNMSUB, FMLS)
 * apply fpNeg to operands first, which changes the sign of NaNs as well.
 */
export function fpMulAdd(
  format: Format, addend: bigint, op1: bigint, op2: bigint, fpcr: number, status: FpStatus,
): bigint {
  const c = fpUnpack(format, addend, fpcr, status);
  const a = fpUnpack(format, op1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  if (isInfinityTimesZero(a, b) && c.type !== FpType.SNAN) return fpInvalid(format, status);
  const nan = processNaNs3(format, c, a, b, addend, op1, op2, fpcr, status);
  if (nan !== undefined) return nan;
  return mulAddNumbers(format, c, a, b, fpcr, status);
}

/** FPProcessNaNs3(): like fpProcessNaNs for three operands, in the order addend, op1, op2. */
function processNaNs3(
  format: Format, c: Unpacked, a: Unpacked, b: Unpacked, addend: bigint, op1: bigint, op2: bigint,
  fpcr: number, status: FpStatus,
): bigint | undefined {
  const laterSignaling = a.type === FpType.SNAN || b.type === FpType.SNAN;
  if (c.type === FpType.SNAN || (c.type === FpType.QNAN && !laterSignaling)) {
    return fpProcessNaN(format, c.type, addend, fpcr, status);
  }
  return fpProcessNaNs(format, a.type, b.type, op1, op2, fpcr, status);
}

/** c + a × b for operands that are not NaNs, and not infinity times zero. */
function mulAddNumbers(
  format: Format, c: Unpacked, a: Unpacked, b: Unpacked, fpcr: number, status: FpStatus,
): bigint {
  const productSign = (a.sign ^ b.sign) as Sign;
  if (a.type === FpType.INFINITY || b.type === FpType.INFINITY) {
    if (c.type === FpType.INFINITY && c.sign !== productSign) return fpInvalid(format, status);
    return fpInfinity(format, productSign);
  }
  if (c.type === FpType.INFINITY) return fpInfinity(format, c.sign);
  return roundedSum(format, c, product(a, b), fpcr, status);
}

/** (constant - op1 × op2) × 2^-halvings rounded once; `limit` is the result for infinity times zero. */
function stepFused(
  format: Format, constant: bigint, halvings: number, limit: bigint, op1: bigint, op2: bigint,
  fpcr: number, status: FpStatus,
): bigint {
  const negated1 = fpNeg(format, op1);
  const a = fpUnpack(format, negated1, fpcr, status);
  const b = fpUnpack(format, op2, fpcr, status);
  const nan = fpProcessNaNs(format, a.type, b.type, negated1, op2, fpcr, status);
  if (nan !== undefined) return nan;
  if (isInfinityTimesZero(a, b)) return limit;
  const { sign, significand, exponent } = product(a, b);
  if (a.type === FpType.INFINITY || b.type === FpType.INFINITY) return fpInfinity(format, sign);
  const first: Term = { sign: 0, significand: constant, exponent: -halvings };
  return roundedSum(format, first, { sign, significand, exponent: exponent - halvings }, fpcr, status);
}

/** FPRecipStepFused() (FRECPS): 2 - op1 × op2, rounded once. A NaN that comes from op1 has its sign flipped. */
export function fpRecipStepFused(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  return stepFused(format, 2n, 0, fpTwo(format, 0), op1, op2, fpcr, status);
}

/** FPRSqrtStepFused() (FRSQRTS): (3 - op1 × op2) / 2, rounded once. A NaN that comes from op1 has its sign flipped. */
export function fpRSqrtStepFused(format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus): bigint {
  const onePointFive = (BigInt(format.bias) << format.exponentShift) | format.quietBit;
  return stepFused(format, 3n, 1, onePointFive, op1, op2, fpcr, status);
}
