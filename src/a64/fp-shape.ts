// Floating-point values in the four shapes that instructions work on: one single, one double, and vectors of them.
// `shape(size, lanes)` gives the WebAssembly operations of one, so that fast paths are written once for all.
//
// A vector of 64 bits (two singles) is computed in the low half of a v128: whatever stands in the upper half is neither
// looked at (`all`) nor written to a register (`write` zeroes the upper half).

import { f32, f64, i32, i64, select } from '../wasm/scalar.ts';
import type { F32, F64, I32, I64, V128, ValType } from '../wasm/types.ts';
import { f32x4, f64x2, i32x4, i64x2, i8x16, v128 } from '../wasm/vector.ts';
import type { Machine } from './machine.ts';
import type { VReg } from './operand.ts';

/** A value in a shape: F32, F64 or V128. The operations of one shape only ever meet its own values. */
export type Value = F32 | F64 | V128;
/** The outcome of a comparison in each lane: 0 or 1 for a scalar, zeros or ones for a vector. */
export type Mask = I32 | V128;
/** The encodings of numbers as integers. */
export type Bits = I32 | I64 | V128;

type Unary = (a: Value) => Value;
type Binary = (a: Value, b: Value) => Value;
type Compare = (a: Value, b: Value) => Mask;

interface Ops {
  add: Binary; sub: Binary; mul: Binary; div: Binary; min: Binary; max: Binary;
  abs: Unary; neg: Unary; sqrt: Unary; ceil: Unary; floor: Unary; trunc: Unary; nearest: Unary;
  eq: Compare; ne: Compare; lt: Compare; gt: Compare; le: Compare; ge: Compare;
}

export interface Shape extends Ops {
  readonly size: 32 | 64;
  readonly lanes: 1 | 2 | 4;
  readonly vector: boolean;
  readonly type: ValType;
  read(m: Machine, r: VReg): Value;
  write(m: Machine, r: VReg, value: Value): void;
  /** Operand `index` of the exact path, and its result. */
  toScratch(m: Machine, index: number, value: Value): void;
  fromScratch(m: Machine): Value;
  let(m: Machine, value: Value): Value;
  /** The same number in every lane. */
  const(value: number): Value;
  /** Size of `magnitude` (positive), sign of `sign`. */
  copysign(magnitude: Value, sign: Value): Value;
  choose(mask: Mask, whenTrue: Value, whenFalse: Value): Value;
  and(a: Mask, b: Mask): Mask;
  or(a: Mask, b: Mask): Mask;
  /** 1 if it is true in all lanes that count. */
  all(mask: Mask): I32;
  /** A mask as the result of an instruction: all ones for true. */
  fromMask(mask: Mask): Value;
}

function scalar(size: 32 | 64): Shape {
  const single = size === 32;
  const ops = single ? f32 : f64;
  const read = (m: Machine, r: VReg): Value => single ? m.fs(r) : m.fd(r);
  return {
    ...(ops as unknown as Ops),
    size, lanes: 1, vector: false, type: single ? 'f32' : 'f64',
    read,
    write: (m, r, value) => single ? m.setFs(r, value as F32) : m.setFd(r, value as F64),
    toScratch: (m, index, value) => m.setScratch(2 * index, single
      ? i64.extendI32U(i32.reinterpretF32(value as F32)) : i64.reinterpretF64(value as F64)),
    fromScratch: m => single
      ? f32.reinterpretI32(i32.wrapI64(m.scratch(6))) : f64.reinterpretI64(m.scratch(6)),
    let: (m, value) => m.f.let(value as F64),
    const: value => ops.const(value),
    copysign: (magnitude, sign) => single
      ? f32.copysign(magnitude as F32, sign as F32) : f64.copysign(magnitude as F64, sign as F64),
    choose: (mask, whenTrue, whenFalse) => select(mask as I32, whenTrue as F64, whenFalse as F64),
    and: (a, b) => i32.and(a as I32, b as I32),
    or: (a, b) => i32.or(a as I32, b as I32),
    all: mask => mask as I32,
    fromMask: mask => single
      ? f32.reinterpretI32(i32.sub(i32.const(0), mask as I32))
      : f64.reinterpretI64(i64.extendI32S(i32.sub(i32.const(0), mask as I32))),
  };
}

function vector(size: 32 | 64, lanes: 2 | 4): Shape {
  const single = size === 32;
  const half = size * lanes === 64;
  const splat = (value: number): V128 => single
    ? splatBits(BigInt(new Uint32Array(new Float32Array([value]).buffer)[0]!) * 0x1_0000_0001n)
    : splatBits(new BigUint64Array(new Float64Array([value]).buffer)[0]!);
  const signs = splat(-0);
  return {
    ...((single ? f32x4 : f64x2) as unknown as Ops),
    size, lanes, vector: true, type: 'v128',
    read: (m, r) => m.q(r),
    write: (m, r, value) => half ? m.setD(r, i64x2.extract(value as V128, 0)) : m.setQ(r, value as V128),
    toScratch: (m, index, value) => m.setScratchQ(2 * index as 0 | 2 | 4, value as V128),
    fromScratch: m => m.scratchQ(6),
    let: (m, value) => m.f.let(value as V128),
    const: splat,
    copysign: (magnitude, sign) => v128.or(magnitude as V128, v128.and(sign as V128, signs)),
    choose: (mask, whenTrue, whenFalse) => v128.bitselect(whenTrue as V128, whenFalse as V128, mask as V128),
    and: (a, b) => v128.and(a as V128, b as V128),
    or: (a, b) => v128.or(a as V128, b as V128),
    all: mask => half ? i64.eq(i64x2.extract(mask as V128, 0), i64.const(-1)) : i32x4.allTrue(mask as V128),
    fromMask: mask => mask as V128,
  };
}

const splatBits = (bits: bigint): V128 => v128.const(bits, bits);

export const scalarSingle = scalar(32);
export const scalarDouble = scalar(64);
const vector2S = vector(32, 2);
const vector4S = vector(32, 4);
export const vector2D = vector(64, 2);

/** Of the fields sz and Q; Q = 0 with sz = 1 is reserved in vector instructions. */
export const vectorShape = (sz: number, q: number): Shape => sz ? vector2D : q ? vector4S : vector2S;
export const scalarShape = (sz: number): Shape => sz ? scalarDouble : scalarSingle;

/** Singles as doubles: pieces of the shape `wideShape`, low lanes first. Exact but for signaling NaNs. */
export function widen(s: Shape, value: Value): Value[] {
  if (!s.vector) return [f64.promoteF32(value as F32)];
  const low = f64x2.promoteLowF32x4(value as V128);
  return s.lanes === 2 ? [low] : [low, f64x2.promoteLowF32x4(highHalf(value as V128))];
}
export const wideShape = (s: Shape): Shape => s.vector ? vector2D : scalarDouble;

/** The inverse: doubles rounded to singles. */
export function narrow(s: Shape, pieces: readonly Value[]): Value {
  if (!s.vector) return f32.demoteF64(pieces[0] as F64);
  const low = f32x4.demoteF64x2Zero(pieces[0] as V128);
  return s.lanes === 2 ? low : joinLow(low, f32x4.demoteF64x2Zero(pieces[1] as V128));
}

const lowBytes = [0, 1, 2, 3, 4, 5, 6, 7];
/** The high 64 bits in the low half. */
export const highHalf = (a: V128): V128 => i8x16.shuffle(a, a, [...lowBytes.map(k => k + 8), ...lowBytes]);
/** The low halves of two vectors, that of `a` lowest. */
export const joinLow = (a: V128, b: V128): V128 => i8x16.shuffle(a, b, [...lowBytes, ...lowBytes.map(k => k + 16)]);

type BinaryBits = (a: Bits, b: Bits) => Bits;
interface BitsOps {
  add: BinaryBits; sub: BinaryBits; and: BinaryBits; or: BinaryBits; xor: BinaryBits;
  eq(a: Bits, b: Bits): Mask;
  ne(a: Bits, b: Bits): Mask;
  shrU(a: Bits, count: number): Bits;
  /** The same encoding in every lane. */
  const(bits: bigint): Bits;
  of(a: Value): Bits;
  toValue(a: Bits): Value;
}

/** Integer operations on the encodings of a shape's numbers, lane by lane. */
export function bitsOf(s: Shape): BitsOps {
  const single = s.size === 32;
  if (s.vector) {
    return {
      ...((single ? i32x4 : i64x2) as unknown as BitsOps),
      ...({ and: v128.and, or: v128.or, xor: v128.xor } as unknown as Pick<BitsOps, 'and' | 'or' | 'xor'>),
      shrU: (a, count) => (single ? i32x4 : i64x2).shrU(a as V128, i32.const(count)),
      const: bits => splatBits(single ? bits * 0x1_0000_0001n : bits),
      of: a => a as V128,
      toValue: a => a as V128,
    };
  }
  return {
    ...((single ? i32 : i64) as unknown as BitsOps),
    shrU: (a, count) => single
      ? i32.shrU(a as I32, i32.const(count)) : i64.shrU(a as I64, i64.const(count)),
    const: bits => single ? i32.const(Number(bits)) : i64.const(bits),
    of: a => single ? i32.reinterpretF32(a as F32) : i64.reinterpretF64(a as F64),
    toValue: a => single ? f32.reinterpretI32(a as I32) : f64.reinterpretI64(a as I64),
  };
}
