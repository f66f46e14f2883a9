// One lane of a register, chosen by an operand: DUP, INS, UMOV, SMOV and the operations by element.

import { i32 } from '../../wasm/scalar.ts';
import type { I32, V128 } from '../../wasm/types.ts';
import { i8x16, v128 } from '../../wasm/vector.ts';
import type { Machine } from '../machine.ts';
import { bytesConstant, shuffleElements } from './lanes.ts';
import type { Size } from './lanes.ts';

const iota = Array.from({ length: 16 }, (_, k) => k);

/** Every lane a copy of lane `lane` of `a`. */
export function splatElement(m: Machine, size: Size, a: V128, lane: I32): V128 {
  if (lane.constant !== undefined) {
    const pinned = m.f.let(a);
    return shuffleElements(size, pinned, pinned, () => lane.constant as number);
  }
  const bytesInLane = bytesConstant(iota.map(k => k % (1 << size)));
  return i8x16.swizzle(a, i8x16.add(i8x16.splat(i32.shl(lane, i32.const(size))), bytesInLane));
}

/** Ones in lane `index`, zeros in the others. */
export function elementMask(size: Size, index: I32): V128 {
  const lanes = iota.map(k => k >> size);
  if (index.constant !== undefined) return bytesConstant(lanes.map(lane => lane === index.constant ? 0xff : 0));
  return i8x16.eq(bytesConstant(lanes), i8x16.splat(index));
}

/** Bytes `first` (0 to 15, pinned) and the 15 after it of two registers in a row. */
export function bytesOfPair(low: V128, high: V128, first: I32): V128 {
  if (first.constant !== undefined) {
    return i8x16.shuffle(low, high, iota.map(k => k + (first.constant as number)));
  }
  // A swizzle gives zero for indices beyond its 16 bytes, also for those that have wrapped below zero.
  const bytes = bytesConstant(iota);
  return v128.or(
    i8x16.swizzle(low, i8x16.add(bytes, i8x16.splat(first))),
    i8x16.swizzle(high, i8x16.add(bytes, i8x16.splat(i32.sub(first, i32.const(16))))),
  );
}
