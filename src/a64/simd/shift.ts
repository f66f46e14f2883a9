// Shifts that Wasm SIMD does not have: rounding, by up to the lane's whole size, by a count of each lane's own, with
// saturation. Arguments are pinned (see lanes.ts); results are not.

import type { I32, V128 } from '../../wasm/types.ts';
import { v128 } from '../../wasm/vector.ts';
import { saturateWhere } from './arithmetic.ts';
import type { Lanes, Signedness } from './lanes.ts';

/** The last step of a right shift: by one, with the bit shifted out added if rounding. This cannot overflow. */
function shiftLastBit(l: Lanes, sign: Signedness, a: V128, round: boolean): V128 {
  const pinned = l.let(a);
  const shifted = l.shr(sign, pinned, 1);
  return round ? l.add(shifted, v128.and(pinned, l.constant(1n))) : shifted;
}

/** Right shift by 1 to the lane's size; the count is given less one. */
export function shiftRight(l: Lanes, sign: Signedness, a: V128, countLessOne: I32, round: boolean): V128 {
  const known = countLessOne.constant as number | undefined;
  if (known !== undefined && known + 1 < l.bits && !round) return l.shr(sign, a, known + 1);
  return shiftLastBit(l, sign, l.shr(sign, a, countLessOne), round);
}

/** Kinds of saturating left shifts: signed, unsigned, signed value to unsigned result. */
export type LeftSaturation = 'S' | 'U' | 'SU';

/** Left shift by less than the lane's size: SQSHL, UQSHL, SQSHLU (immediate). */
export function saturatingShiftLeft(l: Lanes, kind: LeftSaturation, a: V128, count: I32): V128 {
  if (kind === 'SU') {
    const clipped = l.let(v128.andnot(a, l.signs(a)));
    const positive = l.let(l.shl(clipped, count));
    const tooLarge = l.let(l.ne(l.shr('U', positive, count), clipped));
    l.saturated(v128.or(tooLarge, l.signs(a)));
    return v128.or(positive, tooLarge);
  }
  const shifted = l.let(l.shl(a, count));
  return saturateLeft(l, kind, a, l.ne(l.shr(kind, shifted, count), a), shifted);
}

function saturateLeft(l: Lanes, sign: Signedness, a: V128, overflow: V128, shifted: V128): V128 {
  const limit = sign === 'U' ? l.ones : v128.xor(l.signs(a), l.highest);
  return saturateWhere(l, overflow, limit, shifted);
}

/**
 * Each lane shifted by its own count (bits 0 to log2 of the lane's size, less one, of `counts`), as a ladder of shifts
 * by powers of two, each taken by the lanes whose count has that bit.
 */
function shiftLadder(l: Lanes, a: V128, counts: V128, step: (a: V128, count: number) => V128): V128 {
  let result = a;
  for (let bit = 0; 1 << bit < l.bits; bit++) {
    const pinned = l.let(result);
    result = v128.bitselect(step(pinned, 1 << bit), pinned, l.signs(l.shl(counts, l.bits - 1 - bit)));
  }
  return result;
}

/** SSHL, USHL and their rounding and saturating forms: by the signed low byte of each lane of `counts`. */
export function shiftByRegister(
  l: Lanes, sign: Signedness, a: V128, counts: V128, options: { round: boolean; saturate: boolean },
): V128 {
  const size = l.constant(BigInt(l.bits));
  const count = l.let(l.shr('S', l.shl(counts, l.bits - 8), l.bits - 8));
  const isRight = l.let(l.signs(count));
  const left = l.let(v128.andnot(
    shiftLadder(l, a, count, (v, n) => l.shl(v, n)),
    l.let(l.ge('S', count, size)),
  ));
  // To the right by n is by n - 1 and then 1; n - 1 is the count's complement. From the lane's size on, all bits go.
  const lessOne = l.let(v128.not(count));
  const farRight = l.let(l.ge('S', lessOne, size));
  const ladder = shiftLadder(l, a, lessOne, (v, n) => l.shr(sign, v, n));
  const gone = sign === 'S' ? l.signs(a) : l.zero;
  const right = shiftLastBit(l, sign, v128.bitselect(gone, ladder, farRight), options.round);
  const shifted = l.let(v128.bitselect(right, left, isRight));
  if (!options.saturate) return shifted;
  const back = shiftLadder(l, left, count, (v, n) => l.shr(sign, v, n));
  return saturateLeft(l, sign, a, v128.andnot(l.ne(back, a), isRight), shifted);
}

/** The bits that a left shift by `count` (below the lane's size) leaves free, complemented: SLI's mask. */
export function insertedByLeftShift(l: Lanes, count: I32): V128 {
  return l.shl(l.ones, count);
}
/** Likewise for a right shift by 1 to the lane's size, given less one: SRI's mask. */
export function insertedByRightShift(l: Lanes, countLessOne: I32): V128 {
  return shiftRight(l, 'U', l.ones, countLessOne, false);
}
