// Rounding of exact values to a floating-point format or to an integer: the one place where precision is lost.
//
// An exact value is (-1)^sign × significand × 2^exponent with a positive bigint significand. A value that has no
// finite binary expansion (quotient, square root) is given truncated, with at least two bits more than the format's
// precision and then one more bit, set when anything was cut off. Rounding cannot tell that from the exact value.

import type { Format, FpStatus, Sign } from './format.ts';
import {
  FPCR_FZ, FPSR_IOC, FPSR_IXC, FPSR_OFC, FPSR_UFC, Rounding, fpInfinity, fpMaxNormal, fpRoundingMode, fpZero,
} from './format.ts';

/** Number of bits of a non-negative bigint: 0 for 0, else floor(log2) + 1. */
export function bitLength(value: bigint): number {
  let length = 0;
  for (; value >= 0x1_0000_0000_0000n; value >>= 48n) length += 48;
  const low = Number(value);
  const high = Math.floor(low / 4294967296);
  return length + (high === 0 ? 32 - Math.clz32(low) : 64 - Math.clz32(high));
}

export interface RoundedMagnitude {
  readonly value: bigint;
  readonly inexact: boolean;
}

/** Rounds the magnitude significand × 2^-shift of a value of the given sign to an integer magnitude. */
export function roundMagnitude(
  sign: Sign, significand: bigint, shift: number, rounding: Rounding,
): RoundedMagnitude {
  if (shift <= 0) return { value: significand << BigInt(-shift), inexact: false };
  const value = significand >> BigInt(shift);
  const rest = significand - (value << BigInt(shift));
  if (rest === 0n) return { value, inexact: false };
  return { value: roundsUp(sign, value, rest, shift, rounding) ? value + 1n : value, inexact: true };
}

/** Whether value + rest × 2^-shift, 0 < rest < 2^shift, goes to value + 1 rather than to value. */
function roundsUp(sign: Sign, value: bigint, rest: bigint, shift: number, rounding: Rounding): boolean {
  const half = 1n << BigInt(shift - 1);
  switch (rounding) {
    case Rounding.TIEEVEN:
      return rest > half || (rest === half && (value & 1n) === 1n);
    case Rounding.TIEAWAY:
      return rest >= half;
    case Rounding.POSINF:
      return sign === 0;
    case Rounding.NEGINF:
      return sign === 1;
    case Rounding.ZERO:
      return false;
    case Rounding.ODD:
      return (value & 1n) === 0n;
  }
}

function overflowsToInfinity(sign: Sign, rounding: Rounding): boolean {
  if (rounding === Rounding.TIEEVEN || rounding === Rounding.TIEAWAY) return true;
  return rounding === (sign ? Rounding.NEGINF : Rounding.POSINF);
}

/** The result of an overflow, infinity or the largest number as the rounding mode says. Sets OFC and IXC. */
export function fpOverflow(format: Format, sign: Sign, rounding: Rounding, status: FpStatus): bigint {
  status.flags |= FPSR_OFC | FPSR_IXC;
  return overflowsToInfinity(sign, rounding) ? fpInfinity(format, sign) : fpMaxNormal(format, sign);
}

/**
 * FPRound(): the encoding of (-1)^sign × significand × 2^exponent (significand > 0). Sets OFC, UFC, IXC. Tininess is
 * detected before rounding. With FPCR.FZ a tiny single or double becomes zero and sets UFC alone, even if it could
 * be represented. `alternativeHalf` selects the alternative half-precision format (conversions only), in which an
 * overflow saturates and sets IOC.
 */
export function fpRound(
  format: Format, sign: Sign, significand: bigint, exponent: number, fpcr: number, status: FpStatus,
  rounding: Rounding = fpRoundingMode(fpcr), alternativeHalf = false,
): bigint {
  const { fractionBits, minExponent, exponentShift } = format;
  const leadingExponent = exponent + bitLength(significand) - 1;
  const tiny = leadingExponent < minExponent;
  if (tiny && (fpcr & FPCR_FZ) !== 0 && format.width !== 16) {
    status.flags |= FPSR_UFC;
    return fpZero(format, sign);
  }
  const lastPlaceExponent = Math.max(leadingExponent, minExponent) - fractionBits;
  const { value, inexact } = roundMagnitude(sign, significand, lastPlaceExponent - exponent, rounding);
  if (tiny && inexact) status.flags |= FPSR_UFC;
  // The leading bit of a normal significand adds one to the exponent field, as does a carry out of rounding.
  const magnitude = tiny ? value : (BigInt(leadingExponent - minExponent) << exponentShift) + value;
  if (alternativeHalf) {
    if (magnitude > format.magnitudeMask) {
      status.flags |= FPSR_IOC;
      return sign ? format.signBit | format.magnitudeMask : format.magnitudeMask;
    }
  } else if (magnitude >= format.infinity) {
    return fpOverflow(format, sign, rounding, status);
  }
  if (inexact) status.flags |= FPSR_IXC;
  return sign ? format.signBit | magnitude : magnitude;
}
