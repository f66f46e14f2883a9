// Reciprocal and reciprocal square root estimates, which the Arm ARM defines to the bit, and the reciprocal exponent.
// Contract of operands, FPCR and status: see format.ts.

import type { Format, FpStatus, Unpacked } from './format.ts';
import {
  FPCR_FZ, FPSR_DZC, FPSR_UFC, FpType, fpInfinity, fpInvalid, fpProcessNaN, fpRoundingMode, fpUnpack, fpZero,
  isNaNType,
} from './format.ts';
import { bitLength, fpOverflow } from './round.ts';

/** RecipEstimate(): a in 256 … 511 stands for 0.5 ≤ x < 1; the result in 256 … 511 for 1/x in units of 1/256. */
function recipEstimate(a: number): number {
  const reciprocal = Math.floor(2 ** 19 / (a * 2 + 1));
  return (reciprocal + 1) >> 1;
}

/** RecipSqrtEstimate(): a in 128 … 511 stands for 0.25 ≤ x < 1; the result in 256 … 511 for 1/√x in units of 1/256. */
function recipSqrtEstimate(a: number): number {
  // The middle of the interval that the bits of a leave open; from 0.5 up the lowest bit is not looked at.
  const middle = a < 256 ? a * 2 + 1 : ((a >> 1) * 2 + 1) * 2;
  let root = 512;
  while (middle * (root + 1) * (root + 1) < 2 ** 28) root++;
  return (root + 1) >> 1;
}

/** A positive number as 1.fraction × 2^(biasedExponent - bias); a denormal gets a biased exponent of 0 or less. */
interface Normalized {
  readonly biasedExponent: number;
  /** The eight bits after the leading one. */
  readonly topFraction: number;
}

function normalize(format: Format, { significand, exponent }: Unpacked): Normalized {
  const length = bitLength(significand);
  const aligned = significand << BigInt(format.fractionBits + 1 - length);
  return {
    biasedExponent: exponent + length - 1 + format.bias,
    topFraction: Number(aligned >> BigInt(format.fractionBits - 8)) & 0xff,
  };
}

/** The significand 1.fraction of an estimate in units of 1/256, aligned to the format, its leading one included. */
function estimateSignificand(format: Format, estimate: number): bigint {
  return BigInt(estimate) << BigInt(format.fractionBits - 8);
}

/** FPRecipEstimate() (FRECPE). Overflow follows FPCR's rounding mode; with FPCR.FZ a tiny result is zero and UFC. */
export function fpRecipEstimate(format: Format, op: bigint, fpcr: number, status: FpStatus): bigint {
  const a = fpUnpack(format, op, fpcr, status);
  switch (a.type) {
    case FpType.QNAN:
    case FpType.SNAN:
      return fpProcessNaN(format, a.type, op, fpcr, status);
    case FpType.INFINITY:
      return fpZero(format, a.sign);
    case FpType.ZERO:
      status.flags |= FPSR_DZC;
      return fpInfinity(format, a.sign);
  }
  const { biasedExponent, topFraction } = normalize(format, a);
  // Below a quarter of the smallest normal number the reciprocal is out of range.
  if (biasedExponent < -1) return fpOverflow(format, a.sign, fpRoundingMode(fpcr), status);
  const resultExponent = 2 * format.bias - 1 - biasedExponent;
  if (resultExponent <= 0 && (fpcr & FPCR_FZ) !== 0 && format.width !== 16) {
    status.flags |= FPSR_UFC;
    return fpZero(format, a.sign);
  }
  const significand = estimateSignificand(format, recipEstimate(0x100 | topFraction));
  const magnitude = resultExponent > 0
    ? (BigInt(resultExponent) << format.exponentShift) | (significand & format.fractionMask)
    : significand >> BigInt(1 - resultExponent);
  return fpZero(format, a.sign) | magnitude;
}

/** FPRSqrtEstimate() (FRSQRTE). */
export function fpRSqrtEstimate(format: Format, op: bigint, fpcr: number, status: FpStatus): bigint {
  const a = fpUnpack(format, op, fpcr, status);
  if (isNaNType(a.type)) return fpProcessNaN(format, a.type, op, fpcr, status);
  if (a.type === FpType.ZERO) {
    status.flags |= FPSR_DZC;
    return fpInfinity(format, a.sign);
  }
  if (a.sign) return fpInvalid(format, status);
  if (a.type === FpType.INFINITY) return 0n;
  const { biasedExponent, topFraction } = normalize(format, a);
  // An even power of two is taken out, which leaves 0.25 ≤ x < 1.
  const leading = 0x100 | topFraction;
  const estimate = recipSqrtEstimate((biasedExponent & 1) === 0 ? leading : leading >> 1);
  const resultExponent = Math.floor((3 * format.bias - 1 - biasedExponent) / 2);
  const fraction = estimateSignificand(format, estimate) & format.fractionMask;
  return (BigInt(resultExponent) << format.exponentShift) | fraction;
}

/** FPRecpX() (FRECPX): ±2^-exponent by inverting the exponent field; for zeros and denormals the largest power. */
export function fpRecpX(format: Format, op: bigint, fpcr: number, status: FpStatus): bigint {
  const a = fpUnpack(format, op, fpcr, status);
  if (isNaNType(a.type)) return fpProcessNaN(format, a.type, op, fpcr, status);
  const exponentField = op & format.infinity;
  const largestField = format.infinity - (1n << format.exponentShift);
  return (op & format.signBit) | (exponentField === 0n ? largestField : exponentField ^ format.infinity);
}

/** UnsignedRecipEstimate() (URECPE): op is u32 in units of 2^-32, the result u32 in units of 2^-31; saturates. */
export function unsignedRecipEstimate(op: number): number {
  if (op >>> 31 === 0) return 0xffffffff;
  return (recipEstimate(op >>> 23) << 23) >>> 0;
}

/** UnsignedRSqrtEstimate() (URSQRTE): op is u32 in units of 2^-32, the result u32 in units of 2^-31; saturates. */
export function unsignedRSqrtEstimate(op: number): number {
  if (op >>> 30 === 0) return 0xffffffff;
  return (recipSqrtEstimate(op >>> 23) << 23) >>> 0;
}
