// One lane of a register, chosen by an operand: DUP, INS, UMOV, SMOV and the operations by element.

import { i32 } from '../../wasm/scalar.ts';
import type { I32, V128 } from '../../wasm/types.ts';
import { i8x16 } from '../../wasm/vector.ts';
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
  return i8x16.eq(bytesConstant(iota.map(k => k >> size)), i8x16.splat(index));
}

/** Bytes `first` to `first` + 15 of a register; those beyond it (counted modulo 256) are zero. */
export function bytesFrom(a: V128, first: V128): V128 {
  return i8x16.swizzle(a, i8x16.add(bytesConstant(iota), first));
}
