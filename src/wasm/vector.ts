// SIMD operations as expressions, by the specification's names with the shape first: `i16x8.add(a, b)`.

import type { Code } from './code.ts';
import { Expr } from './types.ts';
import type { F32, F64, I32, I64, V128, ValType } from './types.ts';
import { loadOp, operation, storeOp } from './scalar.ts';

const op = (code: number) => 0xfd0000 | code;
const un = (code: number) => (a: V128): V128 => operation('v128', op(code), a);
const bi = (code: number) => (a: V128, b: V128): V128 => operation('v128', op(code), a, b);
/** a × b + c; whether it is rounded once or twice is the machine's (relaxed-madd.ts). */
const tri = (code: number) => (a: V128, b: V128, c: V128): V128 => operation('v128', op(code), a, b, c);
const test = (code: number) => (a: V128): I32 => operation('i32', op(code), a);
const shift = (code: number) => (a: V128, count: I32): V128 => operation('v128', op(code), a, count);
const splat = <T extends ValType>(code: number, _type: T) => (a: Expr<T>): V128 => operation('v128', op(code), a);

function withLane(code: number, lane: number): (out: Code) => void {
  return out => { out.opcode(op(code)); out.byte(lane); };
}
const extract = <T extends ValType>(type: T, code: number) => (a: V128, lane: number): Expr<T> =>
  new Expr(type, out => { a.emit(out); withLane(code, lane)(out); });
const replace = <T extends ValType>(_type: T, code: number) => (a: V128, lane: number, value: Expr<T>): V128 =>
  new Expr('v128', out => { a.emit(out); value.emit(out); withLane(code, lane)(out); });

export const v128 = {
  /** From two 64-bit halves. */
  const: (low: bigint, high: bigint): V128 => new Expr('v128', out => {
    out.opcode(op(0x0c));
    out.raw(new Uint8Array(new BigUint64Array([BigInt.asUintN(64, low), BigInt.asUintN(64, high)]).buffer));
  }),
  not: un(0x4d), and: bi(0x4e), andnot: bi(0x4f), or: bi(0x50), xor: bi(0x51),
  /** Bits of `a` where the mask is one, of `b` where it is zero. */
  bitselect: (a: V128, b: V128, mask: V128): V128 => operation('v128', op(0x52), a, b, mask),
  anyTrue: test(0x53),
  load: loadOp('v128', op(0x00)), store: storeOp('v128', op(0x0b)),
  load32Zero: loadOp('v128', op(0x5c)), load64Zero: loadOp('v128', op(0x5d)),
  load8Splat: loadOp('v128', op(0x07)), load16Splat: loadOp('v128', op(0x08)),
  load32Splat: loadOp('v128', op(0x09)), load64Splat: loadOp('v128', op(0x0a)),
};

export const i8x16 = {
  /** `lanes[i]` 0–15 picks a byte of `a`, 16–31 of `b`. */
  shuffle: (a: V128, b: V128, lanes: readonly number[]): V128 =>
    new Expr('v128', out => { a.emit(out); b.emit(out); out.opcode(op(0x0d)); out.raw(lanes); }),
  swizzle: bi(0x0e), splat: splat(0x0f, 'i32'),
  extractS: extract('i32', 0x15), extractU: extract('i32', 0x16), replace: replace('i32', 0x17),
  eq: bi(0x23), ne: bi(0x24), ltS: bi(0x25), ltU: bi(0x26), gtS: bi(0x27), gtU: bi(0x28),
  leS: bi(0x29), leU: bi(0x2a), geS: bi(0x2b), geU: bi(0x2c),
  abs: un(0x60), neg: un(0x61), popcnt: un(0x62), allTrue: test(0x63), bitmask: test(0x64),
  narrowS: bi(0x65), narrowU: bi(0x66), // from i16x8, reading its lanes as signed
  shl: shift(0x6b), shrS: shift(0x6c), shrU: shift(0x6d),
  add: bi(0x6e), addSatS: bi(0x6f), addSatU: bi(0x70), sub: bi(0x71), subSatS: bi(0x72), subSatU: bi(0x73),
  minS: bi(0x76), minU: bi(0x77), maxS: bi(0x78), maxU: bi(0x79), avgrU: bi(0x7b),
};

export const i16x8 = {
  splat: splat(0x10, 'i32'), extractS: extract('i32', 0x18), extractU: extract('i32', 0x19), replace: replace('i32', 0x1a),
  eq: bi(0x2d), ne: bi(0x2e), ltS: bi(0x2f), ltU: bi(0x30), gtS: bi(0x31), gtU: bi(0x32),
  leS: bi(0x33), leU: bi(0x34), geS: bi(0x35), geU: bi(0x36),
  extaddPairwiseS: un(0x7c), extaddPairwiseU: un(0x7d),
  abs: un(0x80), neg: un(0x81), q15mulrSatS: bi(0x82), allTrue: test(0x83), bitmask: test(0x84),
  narrowS: bi(0x85), narrowU: bi(0x86), // from i32x4, reading its lanes as signed
  extendLowS: un(0x87), extendHighS: un(0x88), extendLowU: un(0x89), extendHighU: un(0x8a),
  shl: shift(0x8b), shrS: shift(0x8c), shrU: shift(0x8d),
  add: bi(0x8e), addSatS: bi(0x8f), addSatU: bi(0x90), sub: bi(0x91), subSatS: bi(0x92), subSatU: bi(0x93),
  mul: bi(0x95), minS: bi(0x96), minU: bi(0x97), maxS: bi(0x98), maxU: bi(0x99), avgrU: bi(0x9b),
  extmulLowS: bi(0x9c), extmulHighS: bi(0x9d), extmulLowU: bi(0x9e), extmulHighU: bi(0x9f),
};

export const i32x4 = {
  splat: splat(0x11, 'i32'), extract: extract('i32', 0x1b), replace: replace('i32', 0x1c),
  eq: bi(0x37), ne: bi(0x38), ltS: bi(0x39), ltU: bi(0x3a), gtS: bi(0x3b), gtU: bi(0x3c),
  leS: bi(0x3d), leU: bi(0x3e), geS: bi(0x3f), geU: bi(0x40),
  extaddPairwiseS: un(0x7e), extaddPairwiseU: un(0x7f),
  abs: un(0xa0), neg: un(0xa1), allTrue: test(0xa3), bitmask: test(0xa4),
  extendLowS: un(0xa7), extendHighS: un(0xa8), extendLowU: un(0xa9), extendHighU: un(0xaa),
  shl: shift(0xab), shrS: shift(0xac), shrU: shift(0xad),
  add: bi(0xae), sub: bi(0xb1), mul: bi(0xb5), minS: bi(0xb6), minU: bi(0xb7), maxS: bi(0xb8), maxU: bi(0xb9),
  dotI16x8S: bi(0xba), extmulLowS: bi(0xbc), extmulHighS: bi(0xbd), extmulLowU: bi(0xbe), extmulHighU: bi(0xbf),
  truncSatF32x4S: un(0xf8), truncSatF32x4U: un(0xf9), truncSatF64x2SZero: un(0xfc), truncSatF64x2UZero: un(0xfd),
};

export const i64x2 = {
  splat: splat(0x12, 'i64'), extract: extract('i64', 0x1d), replace: replace('i64', 0x1e),
  eq: bi(0xd6), ne: bi(0xd7), ltS: bi(0xd8), gtS: bi(0xd9), leS: bi(0xda), geS: bi(0xdb),
  abs: un(0xc0), neg: un(0xc1), allTrue: test(0xc3), bitmask: test(0xc4),
  extendLowS: un(0xc7), extendHighS: un(0xc8), extendLowU: un(0xc9), extendHighU: un(0xca),
  shl: shift(0xcb), shrS: shift(0xcc), shrU: shift(0xcd), add: bi(0xce), sub: bi(0xd1), mul: bi(0xd5),
  extmulLowS: bi(0xdc), extmulHighS: bi(0xdd), extmulLowU: bi(0xde), extmulHighU: bi(0xdf),
};

const floatShape = (compare: number, arithmetic: number) => ({
  eq: bi(compare), ne: bi(compare + 1), lt: bi(compare + 2), gt: bi(compare + 3), le: bi(compare + 4), ge: bi(compare + 5),
  abs: un(arithmetic), neg: un(arithmetic + 1), sqrt: un(arithmetic + 3), add: bi(arithmetic + 4), sub: bi(arithmetic + 5),
  mul: bi(arithmetic + 6), div: bi(arithmetic + 7), min: bi(arithmetic + 8), max: bi(arithmetic + 9),
  pmin: bi(arithmetic + 10), pmax: bi(arithmetic + 11),
});

export const f32x4 = {
  ...floatShape(0x41, 0xe0),
  splat: splat(0x13, 'f32') as (a: F32) => V128, extract: extract('f32', 0x1f), replace: replace('f32', 0x20),
  ceil: un(0x67), floor: un(0x68), trunc: un(0x69), nearest: un(0x6a),
  convertI32x4S: un(0xfa), convertI32x4U: un(0xfb), demoteF64x2Zero: un(0x5e), relaxedMadd: tri(0x105),
};

export const f64x2 = {
  ...floatShape(0x47, 0xec),
  splat: splat(0x14, 'f64') as (a: F64) => V128, extract: extract('f64', 0x21), replace: replace('f64', 0x22),
  ceil: un(0x74), floor: un(0x75), trunc: un(0x7a), nearest: un(0x94),
  convertLowI32x4S: un(0xfe), convertLowI32x4U: un(0xff), promoteLowF32x4: un(0x5f), relaxedMadd: tri(0x107),
};

/** A 64-bit value in the low half, zero above. */
export function v128FromI64(low: I64): V128 {
  return i64x2.replace(v128.const(0n, 0n), 0, low);
}
