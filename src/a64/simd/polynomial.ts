// Multiplication of polynomials over {0, 1}: PMUL, PMULL.

import type { FunctionBuilder } from '../../wasm/function.ts';
import { i32, i64 } from '../../wasm/scalar.ts';
import type { I64, V128 } from '../../wasm/types.ts';
import { i16x8, v128 } from '../../wasm/vector.ts';
import type { Lanes } from './lanes.ts';

/** Products of the lower or upper eight bytes, of 16 bits each. `l` has lanes of 8 bits. */
export function multiplyBytes(l: Lanes, a: V128, b: V128, upper: boolean): V128 {
  const factor = l.let(l.widen('U', a, upper));
  const shifted = l.let(l.widen('U', b, upper));
  let product: V128 | undefined;
  for (let bit = 0; bit < 8; bit++) {
    const isSet = i16x8.shrS(i16x8.shl(factor, i32.const(15 - bit)), i32.const(15));
    const term = v128.and(i16x8.shl(shifted, i32.const(bit)), isSet);
    product = product ? v128.xor(product, term) : term;
  }
  return product!;
}

/**
 * 64 × 64 → 128 bits, with Karatsuba's three products of 32 bits.
 * @returns the low and the high half
 */
export function multiplyWords(f: FunctionBuilder, a: I64, b: I64): [I64, I64] {
  const low32 = i64.const(0xffffffffn);
  const shift = i64.const(32n);
  const [aLow, aHigh] = [f.let(i64.and(a, low32)), f.let(i64.shrU(a, shift))];
  const [bLow, bHigh] = [f.let(i64.and(b, low32)), f.let(i64.shrU(b, shift))];
  const low = multiplyHalfWords(f, aLow, bLow);
  const high = multiplyHalfWords(f, aHigh, bHigh);
  const both = multiplyHalfWords(f, f.let(i64.xor(aLow, aHigh)), f.let(i64.xor(bLow, bHigh)));
  const middle = f.let(i64.xor(both, i64.xor(low, high)));
  return [i64.xor(low, i64.shl(middle, shift)), i64.xor(high, i64.shrU(middle, shift))];
}

const EVERY_FOURTH_BIT = 0x1111111111111111n;

/**
 * 32 × 32 → 64 bits. The factors are taken apart into four with three zeros between any two bits: in an integer product
 * of two such parts, at most eight ones meet in a place, and their carries stay in the three places above.
 */
function multiplyHalfWords(f: FunctionBuilder, a: I64, b: I64): I64 {
  const part = (value: I64, k: number) => f.let(i64.and(value, i64.const(EVERY_FOURTH_BIT << BigInt(k))));
  const as = [0, 1, 2, 3].map(k => part(a, k));
  const bs = [0, 1, 2, 3].map(k => part(b, k));
  const places = [0, 1, 2, 3].map(k => {
    const products = [0, 1, 2, 3].map(j => i64.mul(as[j]!, bs[(k - j + 4) % 4]!));
    return i64.and(products.reduce(i64.xor), i64.const(EVERY_FOURTH_BIT << BigInt(k)));
  });
  return f.let(places.reduce(i64.or));
}
