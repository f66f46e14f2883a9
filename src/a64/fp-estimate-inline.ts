// FRECPE and FRSQRTE: the fast paths (the rules are those of fp-inline.ts) compute the estimates that the Arm ARM
// defines on integers of nine bits as numbers from 256 to 511, in the operand's own format. They set no flags.

import type { Expr, I64 } from '../wasm/types.ts';
import { evaluate } from './fp-inline.ts';
import { bitsOf } from './fp-shape.ts';
import type { Bits, Shape, Value } from './fp-shape.ts';
import type { Machine } from './machine.ts';

/** The format's constants, and the operand's encoding with exponent field and top fraction bits cut out. */
function pieces(m: Machine, s: Shape, a: Value) {
  const bits = bitsOf(s);
  const [fractionBits, bias] = s.size === 32 ? [23, 127] : [52, 1023];
  const field = (value: number): bigint => BigInt(value) << BigInt(fractionBits);
  const encoding = m.f.let(bits.of(a) as I64) as Bits;
  const exponent = bits.and(encoding, bits.const(field(2 * bias + 1)));
  /** 1.fraction × 256 with `kept` fraction bits left. */
  const leading = (kept: number): Value => {
    const mask = ((1n << BigInt(kept)) - 1n) << BigInt(fractionBits - kept);
    return bits.toValue(bits.or(bits.and(encoding, bits.const(mask)), bits.const(field(bias + 8))));
  };
  return { bits, bias, field, encoding, exponent, leading, minNormal: s.const(2 ** (1 - bias)) };
}

/** FRECPE. Fast for normal numbers with a normal reciprocal. */
export function reciprocalEstimate(m: Machine, s: Shape, operand: Value): Value {
  const a = s.let(m, operand);
  const { bits, bias, field, encoding, exponent, leading, minNormal } = pieces(m, s, a);
  // a in 256 … 511 stands for 0.5 ≤ x < 1: (2^19 / (2a + 1) + 1) / 2, divisions without remainder.
  const odd = s.add(s.mul(leading(8), s.const(2)), s.const(1));
  const quotient = s.trunc(s.div(s.const(2 ** 19), odd));
  const estimate = bits.of(s.floor(s.mul(s.add(quotient, s.const(1)), s.const(0.5))));
  // The estimate's own exponent field, bias + 8, makes room for that of the result: 2 bias - 1 - exponent.
  const magnitude = bits.sub(bits.add(estimate, bits.const(field(bias - 9))), exponent);
  const sign = bits.and(encoding, bits.of(s.const(-0)));
  const size = s.let(m, s.abs(a));
  return evaluate(m, s, 'recipEstimate', [a], {
    value: bits.toValue(bits.or(magnitude, sign)) as Expr,
    ok: s.all(s.and(s.ge(size, minNormal), s.lt(size, s.const(2 ** (bias - 1))))),
  });
}

/** FRSQRTE. Fast for positive normal numbers. */
export function reciprocalSquareRootEstimate(m: Machine, s: Shape, operand: Value): Value {
  const a = s.let(m, operand);
  const { bits, bias, field, encoding, exponent, leading, minNormal } = pieces(m, s, a);
  // The middle of the interval that seven fraction bits leave open; twice that when the exponent field is even. The
  // greatest b with middle × b² < 2^28, plus one, halved without remainder. The square root is never an integer, and
  // even in single precision never rounded to one.
  const odd = s.let(m, s.add(leading(7), s.const(1)));
  const evenExponent = bits.eq(bits.and(encoding, bits.const(field(1))), bits.const(0n));
  const middle = s.choose(evenExponent, s.mul(odd, s.const(2)), odd);
  const above = s.ceil(s.sqrt(s.div(s.const(2 ** 28), middle)));
  const estimate = bits.of(s.floor(s.mul(above, s.const(0.5))));
  // The result's exponent field is (3 bias - 1 - exponent) / 2 without remainder.
  const halved = bits.shrU(bits.sub(bits.const(field(3 * bias - 1)), exponent), 1);
  const resultExponent = bits.and(halved, bits.const(field(2 * bias + 1)));
  return evaluate(m, s, 'rSqrtEstimate', [a], {
    value: bits.toValue(bits.sub(bits.add(estimate, resultExponent), bits.const(field(bias + 8)))) as Expr,
    ok: s.all(s.and(s.ge(a, minNormal), s.lt(a, s.const(Infinity)))),
  });
}
