// A vector register seen as lanes of one size: the operations that Advanced SIMD has for all sizes, one name each.
// Where Wasm SIMD lacks one for a size, it is put together here. The arguments of every operation are pinned or
// constant: they may be emitted more than once.
//
// `width` is how many low bits of a register the instruction works on: 128 or 64 in vector forms (Q), one lane in
// scalar forms. Operations compute all lanes; `write`, `saturated` and what combines lanes (`unzip`, `reduce`) look at
// the width. So scalar and vector forms of an instruction share one meaning.

import type { FunctionBuilder } from '../../wasm/function.ts';
import { i32, i64 } from '../../wasm/scalar.ts';
import type { I32, I64, V128 } from '../../wasm/types.ts';
import { i16x8, i32x4, i64x2, i8x16, v128 } from '../../wasm/vector.ts';
import type { Machine } from '../machine.ts';
import type { VReg } from '../operand.ts';

/** Log2 of the lane's bytes: 0 (8 bits) to 3 (64 bits). */
export type Size = number;
export type Signedness = 'S' | 'U';

const shapes = [i8x16, i16x8, i32x4, i64x2] as const;
const partlySigned = [i8x16, i16x8, i32x4] as const;
const wideShapes = [i16x8, i32x4, i64x2] as const;

const FPSR_QC_SHIFT = 27;

/** Width of a vector form. */
export const vectorWidth = (q: number): number => q ? 128 : 64;
/** Width of a scalar form. */
export const scalarWidth = (size: Size): number => 8 << size;

/** A v128 constant with `value` (modulo the lane's size) in all lanes. */
export function splatConstant(size: Size, value: bigint): V128 {
  const bits = 8 << size;
  const lane = BigInt.asUintN(bits, value);
  let half = 0n;
  for (let at = 0; at < 64; at += bits) half |= lane << BigInt(at);
  return v128.const(half, half);
}

/** A v128 constant from its 16 bytes. */
export function bytesConstant(bytes: ArrayLike<number>): V128 {
  const view = new DataView(Uint8Array.from(bytes).buffer);
  return v128.const(view.getBigUint64(0, true), view.getBigUint64(8, true));
}

/** A shuffle of whole lanes: `element` numbers the source of each, first those of `a`, then those of `b`. */
export function shuffleElements(size: Size, a: V128, b: V128, element: (lane: number) => number): V128 {
  const bytes = Array.from({ length: 16 }, (_, k) => (element(k >> size) << size) + (k & ((1 << size) - 1)));
  return i8x16.shuffle(a, b, bytes);
}

/** Writes the low `width` bits of the register and zeroes the rest. */
export function writeVector(m: Machine, r: VReg, width: number, value: V128): void {
  if (width === 128) m.setQ(r, value);
  else if (width === 64) m.setD(r, i64x2.extract(value, 0));
  else if (width === 32) m.setS(r, i32x4.extract(value, 0));
  else if (width === 16) m.setS(r, i16x8.extractU(value, 0));
  else m.setS(r, i8x16.extractU(value, 0));
}

/** Writes the low half of `value` to the register: to its low half, zeroing the rest, or to its upper half alone. */
export function writeHalf(m: Machine, r: VReg, upper: boolean, value: V128): void {
  const half = i64x2.extract(value, 0);
  if (upper) m.setQ(r, i64x2.replace(m.q(r), 1, half));
  else m.setD(r, half);
}

export class Lanes {
  readonly m: Machine;
  readonly f: FunctionBuilder;
  readonly size: Size;
  /** Of one lane. */
  readonly bits: number;
  /** Of the register. */
  readonly width: number;
  readonly #shape: (typeof shapes)[number];

  constructor(m: Machine, size: Size, width: number) {
    this.m = m;
    this.f = m.f;
    this.size = size;
    this.bits = 8 << size;
    this.width = width;
    this.#shape = shapes[size]!;
  }

  /** The same register as lanes of another size. */
  resized(size: Size): Lanes {
    return new Lanes(this.m, size, this.width);
  }

  let(value: V128): V128 {
    return this.f.let(value);
  }
  write(r: VReg, value: V128): void {
    writeVector(this.m, r, this.width, value);
  }

  // ---- constants
  constant(value: bigint): V128 {
    return splatConstant(this.size, value);
  }
  get zero(): V128 {
    return this.constant(0n);
  }
  get ones(): V128 {
    return this.constant(-1n);
  }
  /** The lane's sign bit alone: the smallest signed value. */
  get lowest(): V128 {
    return this.constant(1n << BigInt(this.bits - 1));
  }
  get highest(): V128 {
    return this.constant((1n << BigInt(this.bits - 1)) - 1n);
  }

  // ---- arithmetic
  add(a: V128, b: V128): V128 { return this.#shape.add(a, b); }
  sub(a: V128, b: V128): V128 { return this.#shape.sub(a, b); }
  neg(a: V128): V128 { return this.#shape.neg(a); }
  abs(a: V128): V128 { return this.#shape.abs(a); }
  mul(a: V128, b: V128): V128 {
    if (this.size > 0) return wideShapes[this.size - 1]!.mul(a, b);
    return this.evens(i16x8.extmulLowU(a, b), i16x8.extmulHighU(a, b));
  }
  min(sign: Signedness, a: V128, b: V128): V128 {
    const shape = partlySigned[this.size];
    if (shape) return sign === 'S' ? shape.minS(a, b) : shape.minU(a, b);
    return v128.bitselect(b, a, this.gt(sign, a, b));
  }
  max(sign: Signedness, a: V128, b: V128): V128 {
    const shape = partlySigned[this.size];
    if (shape) return sign === 'S' ? shape.maxS(a, b) : shape.maxU(a, b);
    return v128.bitselect(a, b, this.gt(sign, a, b));
  }

  // ---- comparisons: a lane is all ones where they hold
  eq(a: V128, b: V128): V128 { return this.#shape.eq(a, b); }
  ne(a: V128, b: V128): V128 { return this.#shape.ne(a, b); }
  gt(sign: Signedness, a: V128, b: V128): V128 {
    if (sign === 'S') return this.#shape.gtS(a, b);
    const shape = partlySigned[this.size];
    return shape ? shape.gtU(a, b) : i64x2.gtS(v128.xor(a, this.lowest), v128.xor(b, this.lowest));
  }
  ge(sign: Signedness, a: V128, b: V128): V128 {
    if (sign === 'S') return this.#shape.geS(a, b);
    const shape = partlySigned[this.size];
    return shape ? shape.geU(a, b) : i64x2.geS(v128.xor(a, this.lowest), v128.xor(b, this.lowest));
  }

  // ---- shifts of all lanes by one count, below the lane's size
  shl(a: V128, count: I32 | number): V128 {
    return this.#shape.shl(a, toExpr(count));
  }
  shr(sign: Signedness, a: V128, count: I32 | number): V128 {
    return sign === 'S' ? this.#shape.shrS(a, toExpr(count)) : this.#shape.shrU(a, toExpr(count));
  }
  /** All ones where the lane is negative, else zero. */
  signs(a: V128): V128 {
    return this.shr('S', a, this.bits - 1);
  }

  // ---- between sizes
  /** The lower or upper half of the lanes, widened to twice the size. */
  widen(sign: Signedness, a: V128, upper: boolean): V128 {
    const shape = wideShapes[this.size]!;
    if (sign === 'S') return upper ? shape.extendHighS(a) : shape.extendLowS(a);
    return upper ? shape.extendHighU(a) : shape.extendLowU(a);
  }
  /** Products of the lower or upper half of the lanes, of twice the size. */
  mulWide(sign: Signedness, a: V128, b: V128, upper: boolean): V128 {
    const shape = wideShapes[this.size]!;
    if (sign === 'S') return upper ? shape.extmulHighS(a, b) : shape.extmulLowS(a, b);
    return upper ? shape.extmulHighU(a, b) : shape.extmulLowU(a, b);
  }
  /** Even-numbered lanes of `a`, then those of `b`: as lanes of twice the size, their low halves. */
  evens(a: V128, b: V128): V128 {
    return shuffleElements(this.size, a, b, lane => 2 * lane);
  }
  odds(a: V128, b: V128): V128 {
    return shuffleElements(this.size, a, b, lane => 2 * lane + 1);
  }
  /** UZP1 (`odd` 0) and UZP2 (1): every second lane of the registers' parts in use, taken as one sequence. */
  unzip(a: V128, b: V128, odd: number): V128 {
    const count = this.width / this.bits;
    const inB = 16 >> this.size;
    return shuffleElements(this.size, a, b, lane => {
      const from = (2 * lane + odd) % (2 * count);
      return from < count ? from : inB + from - count;
    });
  }

  // ---- saturation
  /** Sets FPSR.QC if the mask has a bit in the part of the register in use. */
  saturated(overflow: V128): void {
    let any: I32;
    if (this.width === 128) any = v128.anyTrue(overflow);
    else if (this.width === 64) any = i64Any(i64x2.extract(overflow, 0));
    else if (this.width === 32) any = i32Any(i32x4.extract(overflow, 0));
    else if (this.width === 16) any = i32Any(i16x8.extractU(overflow, 0));
    else any = i32Any(i8x16.extractU(overflow, 0));
    this.m.setFpsr(i32.or(this.m.fpsr(), i32.shl(any, i32.const(FPSR_QC_SHIFT))));
  }
}

const toExpr = (count: I32 | number): I32 => typeof count === 'number' ? i32.const(count) : count;
const i32Any = (value: I32): I32 => i32.ne(value, i32.const(0));
const i64Any = (value: I64): I32 => i64.ne(value, i64.const(0n));
