// Conversions: to integral values, to and from fixed point, and between formats.
// Contract of operands, FPCR and status: see format.ts.

import type { Format, FpStatus, Sign } from './format.ts';
import {
  FPCR_AHP, FPCR_DN, FPSR_IOC, FPSR_IXC, FpType, Rounding, fpInfinity, fpProcessNaN, fpRoundingMode, fpUnpack,
  fpUnpackCV, fpZero, isNaNType,
} from './format.ts';
import { fpRound, roundMagnitude } from './round.ts';

/**
 * FPRoundInt() (FRINT*): rounds to an integral value in the same format. A zero result has the operand's sign.
 * `exact` (FRINTX) makes a changed value set IXC; FRINTI and FRINTX pass fpRoundingMode(fpcr).
 */
export function fpRoundInt(
  format: Format, op: bigint, rounding: Rounding, exact: boolean, fpcr: number, status: FpStatus,
): bigint {
  const a = fpUnpack(format, op, fpcr, status);
  if (isNaNType(a.type)) return fpProcessNaN(format, a.type, op, fpcr, status);
  if (a.type === FpType.INFINITY) return op;
  if (a.type === FpType.ZERO) return fpZero(format, a.sign);
  if (a.exponent >= 0) return op;
  const { value, inexact } = roundMagnitude(a.sign, a.significand, -a.exponent, rounding);
  if (inexact && exact) status.flags |= FPSR_IXC;
  if (value === 0n) return fpZero(format, a.sign);
  return fpRound(format, a.sign, value, 0, fpcr, status);
}

/** Shape of an integer register operand of a fixed-point conversion. */
export interface FixedPoint {
  readonly width: 16 | 32 | 64;
  readonly unsigned: boolean;
  /** Number of fraction bits, 0 … width. */
  readonly fractionBits: number;
}

/**
 * FPToFixed() (FCVT*S, FCVT*U): op × 2^fractionBits rounded to an integer, as an encoding of `width` bits. Out of
 * range saturates and sets IOC (and not IXC); a NaN gives 0 and sets IOC.
 */
export function fpToFixed(
  format: Format, op: bigint, to: FixedPoint, rounding: Rounding, fpcr: number, status: FpStatus,
): bigint {
  const a = fpUnpack(format, op, fpcr, status);
  if (isNaNType(a.type)) {
    status.flags |= FPSR_IOC;
    return 0n;
  }
  if (a.type === FpType.ZERO) return 0n;
  const magnitudeBits = BigInt(to.unsigned ? to.width : to.width - 1);
  const max = (1n << magnitudeBits) - 1n;
  const min = to.unsigned ? 0n : -max - 1n;
  let integer = a.sign ? min : max;
  let outOfRange = true;
  let inexact = false;
  if (a.type !== FpType.INFINITY) {
    const rounded = roundMagnitude(a.sign, a.significand, -a.exponent - to.fractionBits, rounding);
    const exactInteger = a.sign ? -rounded.value : rounded.value;
    outOfRange = exactInteger < min || exactInteger > max;
    inexact = rounded.inexact;
    if (!outOfRange) integer = exactInteger;
  }
  if (outOfRange) status.flags |= FPSR_IOC;
  else if (inexact) status.flags |= FPSR_IXC;
  return BigInt.asUintN(to.width, integer);
}

/** FixedToFP() (SCVTF, UCVTF): the number integer × 2^-fractionBits of a `width`-bit encoding; 0 gives +0. */
export function fixedToFP(
  format: Format, integer: bigint, from: FixedPoint, rounding: Rounding, fpcr: number, status: FpStatus,
): bigint {
  const value = from.unsigned ? BigInt.asUintN(from.width, integer) : BigInt.asIntN(from.width, integer);
  if (value === 0n) return 0n;
  const sign: Sign = value < 0n ? 1 : 0;
  return fpRound(format, sign, sign ? -value : value, -from.fractionBits, fpcr, status, rounding);
}

/** FPConvertNaN(): the NaN quieted, keeping its sign and the most significant fraction bits. */
function convertNaN(from: Format, to: Format, op: bigint): bigint {
  const shift = to.fractionBits - from.fractionBits;
  const fraction = op & from.fractionMask;
  const converted = shift >= 0 ? fraction << BigInt(shift) : fraction >> BigInt(-shift);
  const sign = (op & from.signBit) === 0n ? 0n : to.signBit;
  return sign | to.infinity | to.quietBit | converted;
}

/**
 * FPConvert() (FCVT, FCVTL, FCVTN; with Rounding.ODD FCVTXN): to another format. Half precision is IEEE or alternative
 * as FPCR.AHP says; the alternative format has neither infinity (which becomes the largest number) nor NaN (which
 * becomes zero), and sets IOC for them. FPCR.FZ flushes single and double operands and results, never half ones.
 */
export function fpConvert(
  from: Format, to: Format, op: bigint, fpcr: number, status: FpStatus, rounding: Rounding = fpRoundingMode(fpcr),
): bigint {
  const a = fpUnpackCV(from, op, fpcr, status);
  const alternativeHalf = to.width === 16 && (fpcr & FPCR_AHP) !== 0;
  switch (a.type) {
    case FpType.QNAN:
    case FpType.SNAN:
      if (a.type === FpType.SNAN || alternativeHalf) status.flags |= FPSR_IOC;
      if (alternativeHalf) return fpZero(to, a.sign);
      return (fpcr & FPCR_DN) === 0 ? convertNaN(from, to, op) : to.defaultNaN;
    case FpType.INFINITY:
      if (!alternativeHalf) return fpInfinity(to, a.sign);
      status.flags |= FPSR_IOC;
      return fpZero(to, a.sign) | to.magnitudeMask;
    case FpType.ZERO:
      return fpZero(to, a.sign);
  }
  return fpRound(to, a.sign, a.significand, a.exponent, fpcr, status, rounding, alternativeHalf);
}
