// For tests only: what a correctly rounded result is, worked out from the definition and apart from the product's
// code. The candidates are the values of all encodings, which are searched in order; nothing is shifted or jammed.

import type { SeededRandom } from '../../base/random.ts';
import type { Format } from './format.ts';
import { FPSR_IOC, FPSR_IXC, FPSR_OFC, FPSR_UFC, Rounding } from './format.ts';

/** numerator × 2^exponent. */
export interface Dyadic {
  readonly numerator: bigint;
  readonly exponent: number;
}

/** Both numerators over the smaller of the two exponents. */
function aligned(a: Dyadic, b: Dyadic): { first: bigint; second: bigint; exponent: number } {
  const exponent = Math.min(a.exponent, b.exponent);
  return {
    first: a.numerator * 2n ** BigInt(a.exponent - exponent),
    second: b.numerator * 2n ** BigInt(b.exponent - exponent),
    exponent,
  };
}

export function compareDyadic(a: Dyadic, b: Dyadic): number {
  const { first, second } = aligned(a, b);
  return first < second ? -1 : first > second ? 1 : 0;
}

export function addDyadic(a: Dyadic, b: Dyadic): Dyadic {
  const { first, second, exponent } = aligned(a, b);
  return { numerator: first + second, exponent };
}

export function multiplyDyadic(a: Dyadic, b: Dyadic): Dyadic {
  return { numerator: a.numerator * b.numerator, exponent: a.exponent + b.exponent };
}

/** A magnitude's encoding read as a number, also where the format has infinity: that is the next power of two. */
function magnitudeValue(format: Format, magnitude: bigint): Dyadic {
  const unit = 2n ** BigInt(format.fractionBits);
  const field = Number(magnitude / unit);
  const fraction = magnitude % unit;
  return field === 0
    ? { numerator: fraction, exponent: 1 - format.bias - format.fractionBits }
    : { numerator: unit + fraction, exponent: field - format.bias - format.fractionBits };
}

/** The value of a finite encoding, with its sign. */
export function finiteValue(format: Format, bits: bigint): Dyadic {
  const { numerator, exponent } = magnitudeValue(format, bits % 2n ** BigInt(format.width - 1));
  return { numerator: bits >> BigInt(format.width - 1) === 1n ? -numerator : numerator, exponent };
}

/** A positive real number, known by how it compares (-1, 0, 1) with dyadic ones. */
export interface Real {
  compare(other: Dyadic): number;
}

export function realDyadic(value: Dyadic): Real {
  return { compare: (other) => compareDyadic(value, other) };
}

export function realQuotient(dividend: Dyadic, divisor: Dyadic): Real {
  return { compare: (other) => compareDyadic(dividend, multiplyDyadic(other, divisor)) };
}

export function realSqrt(radicand: Dyadic): Real {
  return { compare: (other) => compareDyadic(radicand, multiplyDyadic(other, other)) };
}

export interface Expected {
  bits: bigint;
  flags: number;
}

/** The result and flags of rounding ±real. `flush` is FPCR.FZ where it applies to the format. */
export function referenceRound(
  format: Format, negative: boolean, real: Real, rounding: Rounding, flush: boolean, alternativeHalf = false,
): Expected {
  const signBit = negative ? 2n ** BigInt(format.width - 1) : 0n;
  const tiny = real.compare({ numerator: 1n, exponent: 1 - format.bias }) < 0;
  if (tiny && flush) return { bits: signBit, flags: FPSR_UFC };
  const binades = 2n ** BigInt(format.exponentBits) - (alternativeHalf ? 0n : 1n);
  const limit = binades * 2n ** BigInt(format.fractionBits);
  let below = 0n;
  let above = limit + 1n;
  while (above - below > 1n) {
    const middle = (below + above) / 2n;
    if (real.compare(magnitudeValue(format, middle)) >= 0) below = middle;
    else above = middle;
  }
  const exact = real.compare(magnitudeValue(format, below)) === 0;
  const chosen = exact || below === limit ? below : chooseNeighbour(format, negative, real, below, rounding);
  if (chosen === limit) {
    if (alternativeHalf) return { bits: signBit + limit - 1n, flags: FPSR_IOC };
    const toInfinity = rounding === Rounding.TIEEVEN || rounding === (negative ? Rounding.NEGINF : Rounding.POSINF);
    return { bits: signBit + (toInfinity ? limit : limit - 1n), flags: FPSR_OFC | FPSR_IXC };
  }
  return { bits: signBit + chosen, flags: exact ? 0 : tiny ? FPSR_UFC | FPSR_IXC : FPSR_IXC };
}

/** below or below + 1, between which the real number lies. */
function chooseNeighbour(format: Format, negative: boolean, real: Real, below: bigint, rounding: Rounding): bigint {
  const above = below + 1n;
  const even = below % 2n === 0n ? below : above;
  const sum = addDyadic(magnitudeValue(format, below), magnitudeValue(format, above));
  const side = real.compare({ numerator: sum.numerator, exponent: sum.exponent - 1 });
  switch (rounding) {
    case Rounding.TIEEVEN:
      return side < 0 ? below : side > 0 ? above : even;
    case Rounding.TIEAWAY:
      return side < 0 ? below : above;
    case Rounding.POSINF:
      return negative ? below : above;
    case Rounding.NEGINF:
      return negative ? above : below;
    case Rounding.ZERO:
      return below;
    case Rounding.ODD:
      return even === below ? above : below;
  }
}

/** Encodings where things change: zeros, denormals, limits, infinities, NaNs, one and its neighbours. */
export function edgeEncodings(format: Format): bigint[] {
  const one = BigInt(format.bias) << format.exponentShift;
  const magnitudes = [
    0n, 1n, 2n, format.fractionMask, format.fractionMask + 1n, format.fractionMask + 2n, format.maxNormal,
    format.infinity, format.infinity + 1n, format.defaultNaN, format.defaultNaN + 5n, format.quietBit,
    one - 1n, one, one + 1n, one + format.quietBit, one + format.fractionMask + 1n,
  ];
  return magnitudes.flatMap((magnitude) => [magnitude, magnitude | format.signBit]);
}

export function isNaNEncoding(format: Format, bits: bigint): boolean {
  return (bits & format.magnitudeMask) > format.infinity;
}

export function isFiniteEncoding(format: Format, bits: bigint): boolean {
  return (bits & format.magnitudeMask) < format.infinity;
}

/** A random encoding: an edge, anything, one with few fraction bits, or one with an exponent near another's. */
export function randomEncoding(format: Format, random: SeededRandom, near = 0n): bigint {
  const anything = BigInt.asUintN(format.width, random.u64());
  switch (random.below(5)) {
    case 0:
      return random.pick(edgeEncodings(format));
    case 1:
      return anything;
    case 2:
      return anything & ~(format.fractionMask >> BigInt(random.below(format.fractionBits)));
    default: {
      const offset = BigInt(random.below(2 * format.fractionBits + 8) - format.fractionBits - 4);
      const field = ((near & format.infinity) >> format.exponentShift) + offset;
      const mask = format.infinity >> format.exponentShift;
      return (anything & ~format.infinity) | ((field & mask) << format.exponentShift);
    }
  }
}

/** A random finite encoding. */
export function randomFinite(format: Format, random: SeededRandom, near = 0n): bigint {
  for (;;) {
    const bits = randomEncoding(format, random, near);
    if (isFiniteEncoding(format, bits)) return bits;
  }
}

const view = new DataView(new ArrayBuffer(8));

export function toHost(format: Format, bits: bigint): number {
  view.setBigUint64(0, bits << BigInt(64 - format.width));
  if (format.width === 64) return view.getFloat64(0);
  return format.width === 32 ? view.getFloat32(0) : view.getFloat16(0);
}

/** Encoding of a host number, rounded to the format; not for NaNs, whose encodings the host does not keep. */
export function fromHost(format: Format, value: number): bigint {
  view.setBigUint64(0, 0n);
  if (format.width === 64) view.setFloat64(0, value);
  else if (format.width === 32) view.setFloat32(0, value);
  else view.setFloat16(0, value);
  return view.getBigUint64(0) >> BigInt(64 - format.width);
}
