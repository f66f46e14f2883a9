// Integer operations on lanes that Wasm SIMD does not have: halving, saturating, counting, polynomial. Arguments are
// pinned (see lanes.ts); results are not. Saturating operations set FPSR.QC before they return.

import { i32 } from '../../wasm/scalar.ts';
import type { V128 } from '../../wasm/types.ts';
import { i16x8, i32x4, i8x16, v128 } from '../../wasm/vector.ts';
import { bytesConstant, shuffleElements, splatConstant } from './lanes.ts';
import type { Lanes, Signedness } from './lanes.ts';

// The average without the carry that does not fit: a + b = 2 * (a & b) + (a ^ b), a - b = (a ^ b) - 2 * (~a & b).

export function halvingAdd(l: Lanes, sign: Signedness, a: V128, b: V128): V128 {
  return l.add(v128.and(a, b), l.shr(sign, v128.xor(a, b), 1));
}
/** Rounds up: a + b = 2 * (a | b) - (a ^ b). */
export function roundingHalvingAdd(l: Lanes, sign: Signedness, a: V128, b: V128): V128 {
  return l.sub(v128.or(a, b), l.shr(sign, v128.xor(a, b), 1));
}
export function halvingSub(l: Lanes, sign: Signedness, a: V128, b: V128): V128 {
  return l.sub(l.shr(sign, v128.xor(a, b), 1), v128.andnot(b, a));
}

export function absoluteDifference(l: Lanes, sign: Signedness, a: V128, b: V128): V128 {
  return l.sub(l.max(sign, a, b), l.min(sign, a, b));
}

/** The limit on the side of `a`'s sign: the greatest signed value, or the least where `a` is negative. */
function signedLimit(l: Lanes, a: V128): V128 {
  return v128.xor(l.signs(a), l.highest);
}

/** `saturatedValue` where the lanes of `overflow` are ones, noted in QC, else `value`. */
export function saturateWhere(l: Lanes, overflow: V128, saturatedValue: V128, value: V128): V128 {
  const pinned = l.let(overflow);
  l.saturated(pinned);
  return v128.bitselect(saturatedValue, value, pinned);
}

export function saturatingAdd(l: Lanes, sign: Signedness, a: V128, b: V128): V128 {
  const wrapped = l.let(l.add(a, b));
  if (l.size < 2) {
    const shape = l.size === 0 ? i8x16 : i16x8;
    return checkedSaturation(l, sign === 'S' ? shape.addSatS(a, b) : shape.addSatU(a, b), wrapped);
  }
  if (sign === 'U') return saturateWhere(l, l.gt('U', a, wrapped), l.ones, wrapped);
  // Overflow: the result's sign differs from that of both operands.
  const overflow = l.signs(v128.and(v128.xor(a, wrapped), v128.xor(b, wrapped)));
  return saturateWhere(l, overflow, signedLimit(l, a), wrapped);
}

export function saturatingSub(l: Lanes, sign: Signedness, a: V128, b: V128): V128 {
  const wrapped = l.let(l.sub(a, b));
  if (l.size < 2) {
    const shape = l.size === 0 ? i8x16 : i16x8;
    return checkedSaturation(l, sign === 'S' ? shape.subSatS(a, b) : shape.subSatU(a, b), wrapped);
  }
  if (sign === 'U') return saturateWhere(l, l.gt('U', b, a), l.zero, wrapped);
  const overflow = l.signs(v128.and(v128.xor(a, b), v128.xor(a, wrapped)));
  return saturateWhere(l, overflow, signedLimit(l, a), wrapped);
}

/** QC if a saturated result is not the exact (or wrapped) one. */
function checkedSaturation(l: Lanes, saturatedValue: V128, exact: V128): V128 {
  const pinned = l.let(saturatedValue);
  l.saturated(v128.xor(pinned, exact));
  return pinned;
}

/**
 * Signed accumulator plus unsigned value (SUQADD), or unsigned accumulator plus signed value (USQADD): `sign` is the
 * accumulator's. Moved by half the range, the accumulator has the value's signedness, and the limits move along.
 */
export function saturatingAccumulate(l: Lanes, sign: Signedness, accumulator: V128, value: V128): V128 {
  const moved = l.let(v128.xor(accumulator, l.lowest));
  return v128.xor(saturatingAdd(l, sign === 'S' ? 'U' : 'S', moved, value), l.lowest);
}

/** SQABS, SQNEG: only the least value overflows; it negates to itself, and its complement is the greatest. */
export function saturatingNegation(l: Lanes, a: V128, negated: V128): V128 {
  const overflow = l.let(l.eq(a, l.lowest));
  l.saturated(overflow);
  return v128.xor(negated, overflow);
}

/** Kinds of narrowing by saturation: signed to signed, unsigned to unsigned, signed to unsigned. */
export type Narrowing = 'SS' | 'UU' | 'SU';

/** Lanes limited to the range of lanes of half the size: the low halves of the result are the value. */
function clamp(wide: Lanes, kind: Narrowing, a: V128): V128 {
  const half = BigInt(wide.bits / 2);
  const greatest = wide.constant((1n << (kind === 'SS' ? half - 1n : half)) - 1n);
  if (kind === 'UU') return wide.min('U', a, greatest);
  const least = kind === 'SS' ? -(1n << (half - 1n)) : 0n;
  return wide.max('S', wide.let(wide.min('S', a, greatest)), wide.constant(least));
}
export function clampToHalf(wide: Lanes, kind: Narrowing, a: V128): V128 {
  return checkedSaturation(wide, clamp(wide, kind, a), a);
}

/** Twice the product of the lower or upper half of the lanes, saturated: SQDMULL. Only least times least overflows. */
export function saturatingDoublingProduct(l: Lanes, wide: Lanes, a: V128, b: V128, upper: boolean): V128 {
  const product = wide.let(l.mulWide('S', a, b, upper));
  return saturatingAdd(wide, 'S', product, product);
}

/**
 * SQDMULH, SQRDMULH, SQRDMLAH, SQRDMLSH: the high half of twice the product (rounded), added to the accumulator or
 * subtracted with it. The accumulator has no bits below the high half, so it can be added after the shift; twice the
 * product shifted right by the lane's size is the product shifted by one less.
 */
export function doublingHighHalf(
  l: Lanes, a: V128, b: V128, options: { round: boolean; accumulate?: 'add' | 'sub'; accumulator?: V128 },
): V128 {
  const wide = l.resized(l.size + 1);
  const half = (upper: boolean): V128 => {
    const product = l.mulWide('S', a, b, upper);
    let high = options.accumulate === 'sub' ? wide.neg(product) : product;
    if (options.round) high = wide.add(high, wide.constant(1n << BigInt(l.bits - 2)));
    high = wide.shr('S', high, l.bits - 1);
    if (options.accumulator) high = wide.add(high, l.widen('S', options.accumulator, upper));
    return wide.let(high);
  };
  const low = half(false);
  const high = half(true);
  // An exact value out of range differs from the limit also in its low half.
  return checkedSaturation(l, l.evens(clamp(wide, 'SS', low), clamp(wide, 'SS', high)), l.let(l.evens(low, high)));
}

/** Neighbours added, as lanes of twice the size: SADDLP, UADDLP. */
export function pairwiseLongAdd(wide: Lanes, sign: Signedness, a: V128): V128 {
  const half = wide.bits / 2;
  if (wide.size === 1) return sign === 'S' ? i16x8.extaddPairwiseS(a) : i16x8.extaddPairwiseU(a);
  if (wide.size === 2) return sign === 'S' ? i32x4.extaddPairwiseS(a) : i32x4.extaddPairwiseU(a);
  return wide.add(wide.shr(sign, wide.shl(a, half), half), wide.shr(sign, a, half));
}

/** All lanes of the register's part in use folded into lane 0. */
export function reduce(l: Lanes, a: V128, combine: (a: V128, b: V128) => V128): V128 {
  let folded = a;
  for (let lanes = l.width / l.bits / 2; lanes >= 1; lanes /= 2) {
    const pinned = l.let(folded);
    const upper = l.let(shuffleElements(l.size, pinned, pinned, lane => (lane + lanes) % (16 >> l.size)));
    folded = combine(pinned, upper);
  }
  return folded;
}

/** Leading zeros: ones from the leading one downwards, and the zeros above them counted. */
export function countLeadingZeros(l: Lanes, a: V128): V128 {
  let smeared = a;
  for (let shift = 1; shift < l.bits; shift *= 2) {
    smeared = l.let(smeared);
    smeared = v128.or(smeared, l.shr('U', smeared, shift));
  }
  const counts = i8x16.popcnt(v128.not(smeared));
  if (l.size === 0) return counts;
  const counts16 = i16x8.extaddPairwiseU(counts);
  return l.size === 1 ? counts16 : i32x4.extaddPairwiseU(counts16);
}
/** Bits after the sign bit that equal it. */
export function countLeadingSigns(l: Lanes, a: V128): V128 {
  return l.sub(countLeadingZeros(l, v128.xor(a, l.shr('S', a, 1))), l.constant(1n));
}

const reversedNibbles = Array.from({ length: 16 }, (_, n) => (n & 1) << 3 | (n & 2) << 1 | (n & 4) >> 1 | n >> 3);

/** The bits of every byte in reverse order. */
export function reverseBits(a: V128): V128 {
  const table = bytesConstant(reversedNibbles);
  const low = i8x16.swizzle(table, v128.and(a, splatConstant(0, 15n)));
  return v128.or(i8x16.shl(low, i32.const(4)), i8x16.swizzle(table, i8x16.shrU(a, i32.const(4))));
}
