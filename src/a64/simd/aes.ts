// The steps of AES (FIPS 197) on a v128 state, whose byte 4c + r is row r of column c. The S-boxes are computed here at
// load; looking a byte up is 16 swizzles, one for each row of the box, without secret-dependent addresses.

import type { FunctionBuilder } from '../../wasm/function.ts';
import { i32 } from '../../wasm/scalar.ts';
import type { V128 } from '../../wasm/types.ts';
import { i8x16, v128 } from '../../wasm/vector.ts';
import { bytesConstant, splatConstant } from './lanes.ts';

/** Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
function multiply(a: number, b: number): number {
  let product = 0;
  for (; b !== 0; b >>= 1) {
    if (b & 1) product ^= a;
    a = a << 1 ^ (a & 0x80 ? 0x11b : 0);
  }
  return product;
}

function makeSBoxes(): { forward: Uint8Array; inverse: Uint8Array } {
  const forward = new Uint8Array(256);
  const inverse = new Uint8Array(256);
  for (let value = 0; value < 256; value++) {
    let inverted = 1; // a^254 is the inverse, and 0 for 0; it is a² · a⁴ · … · a¹²⁸
    for (let k = 0, power = value; k < 7; k++) {
      power = multiply(power, power);
      inverted = multiply(inverted, power);
    }
    const rotations = inverted * 0x101; // the affine map sums the byte and its left rotations by 1 to 4
    let substituted = 0x63;
    for (let by = 0; by <= 4; by++) substituted ^= rotations >> (8 - by) & 0xff;
    forward[value] = substituted;
    inverse[substituted] = value;
  }
  return { forward, inverse };
}
const sBoxes = makeSBoxes();

function substitute(f: FunctionBuilder, box: Uint8Array, state: V128): V128 {
  const indices = f.let(state);
  let found = i8x16.swizzle(bytesConstant(box.subarray(0, 16)), indices);
  for (let row = 1; row < 16; row++) {
    const within = i8x16.sub(indices, splatConstant(0, BigInt(16 * row)));
    found = v128.or(found, i8x16.swizzle(bytesConstant(box.subarray(16 * row, 16 * row + 16)), within));
  }
  return found;
}

/** Every byte replaced by that of another row and column (modulo 4). */
function moveBytes(f: FunctionBuilder, state: V128, from: (row: number, column: number) => [number, number]): V128 {
  const pinned = f.let(state);
  return i8x16.shuffle(pinned, pinned, Array.from({ length: 16 }, (_, at) => {
    const [row, column] = from(at % 4, at >> 2);
    return 4 * (column & 3) + (row & 3);
  }));
}
const rotateColumns = (f: FunctionBuilder, state: V128, down: number): V128 =>
  moveBytes(f, state, (row, column) => [row + down, column]);

/** AESE, after the key has been added: ShiftRows and SubBytes. */
export function encryptRound(f: FunctionBuilder, state: V128): V128 {
  return substitute(f, sBoxes.forward, moveBytes(f, state, (row, column) => [row, column + row]));
}
/** AESD, after the key has been added. */
export function decryptRound(f: FunctionBuilder, state: V128): V128 {
  return substitute(f, sBoxes.inverse, moveBytes(f, state, (row, column) => [row, column - row]));
}

/** Twice every byte, in the field. */
function double(f: FunctionBuilder, state: V128): V128 {
  const pinned = f.let(state);
  const reduction = v128.and(i8x16.shrS(pinned, i32.const(7)), splatConstant(0, 0x1bn));
  return v128.xor(i8x16.shl(pinned, i32.const(1)), reduction);
}

/** A byte a with b, c, d below it in its column (cyclically) becomes 2a + 3b + c + d = 2(a + b) + b + (c + d). */
export function mixColumns(f: FunctionBuilder, state: V128): V128 {
  const a = f.let(state);
  const b = f.let(rotateColumns(f, a, 1));
  const sum = f.let(v128.xor(a, b));
  return v128.xor(v128.xor(double(f, sum), b), rotateColumns(f, sum, 2));
}
/** 14a + 11b + 13c + 9d: MixColumns of the state to which 4(a + c) has been added in both places. */
export function inverseMixColumns(f: FunctionBuilder, state: V128): V128 {
  const a = f.let(state);
  const sum = v128.xor(a, rotateColumns(f, a, 2));
  return mixColumns(f, v128.xor(a, double(f, double(f, sum))));
}
