// Conversions between floating-point and integers or fixed point, and between formats: the fast paths (the rules are
// those of fp-inline.ts) and the way to the exact path.

import { f32, f64, i32, i64 } from '../wasm/scalar.ts';
import type { Expr, F32, F64, I32, I64, V128 } from '../wasm/types.ts';
import { f32x4, f64x2, i32x4, i64x2, v128 } from '../wasm/vector.ts';
import { attemptOrExact, roundHost } from './fp-inline.ts';
import type { Attempt } from './fp-inline.ts';
import { narrow, scalarDouble, scalarSingle, vector2D, widen } from './fp-shape.ts';
import type { Shape, Value } from './fp-shape.ts';
import type { Machine, Word } from './machine.ts';
import type { RoundingName } from './soft-float.ts';

/** How a conversion treats its integer. Without fraction bits it is an integer proper. */
export interface IntegerSide {
  readonly bits: 32 | 64;
  readonly unsigned: boolean;
  readonly fractionBits?: I32;
}

/** 2^(sign × fractionBits) in every lane. */
function scale(m: Machine, s: Shape, fractionBits: I32, sign: 1 | -1): Value {
  const exponent = (bias: number) => sign === 1
    ? i32.add(fractionBits, i32.const(bias)) : i32.sub(i32.const(bias), fractionBits);
  if (s.size === 32) {
    const single = f32.reinterpretI32(i32.shl(exponent(127), i32.const(23)));
    return s.let(m, s.vector ? f32x4.splat(single) : single);
  }
  const double = f64.reinterpretI64(i64.shl(i64.extendI32U(exponent(1023)), i64.const(52)));
  return s.let(m, s.vector ? f64x2.splat(double) : double);
}

// ---- to integer

/** The limits of an integer as doubles or singles: lowest value, and one above the highest. */
const limits = (to: IntegerSide): readonly [low: number, above: number] =>
  to.unsigned ? [0, 2 ** to.bits] : [-(2 ** (to.bits - 1)), 2 ** (to.bits - 1)];

/** A pinned operand, not yet scaled, rounded; whether that is in range; and whether nothing was rounded. */
function roundToRange(m: Machine, s: Shape, operand: Value, to: IntegerSide, rounding: RoundingName) {
  const [low, above] = limits(to);
  // Scaling up by a power of two is exact, or overflows to infinity, which is out of range.
  const scaled = to.fractionBits ? s.let(m, s.mul(operand, scale(m, s, to.fractionBits, 1))) : operand;
  const rounded = s.let(m, roundHost(m, s, scaled, rounding));
  const inRange = s.all(s.and(s.ge(rounded, s.const(low)), s.lt(rounded, s.const(above))));
  return { rounded, inRange, unchanged: () => s.all(s.eq(rounded, scaled)) };
}

const truncate64 = (value: F64, unsigned: boolean): I64 => unsigned ? i64.truncSatF64U(value) : i64.truncSatF64S(value);

/** A scalar to an i32 or i64, by to.bits. */
export function toInteger(m: Machine, s: Shape, operand: Value, to: IntegerSide, rounding: RoundingName): Word {
  const a = s.let(m, operand);
  const double = scalarDouble.let(m, s.size === 32 ? widen(s, a)[0]! : a) as F64;
  const { rounded, inRange, unchanged } = roundToRange(m, scalarDouble, double, to, rounding);
  const exact = {
    request: { operation: 'toFixed', from: s.size, to: to.bits, lanes: 1, rounding, unsigned: to.unsigned } as const,
    arguments: () => s.toScratch(m, 0, a),
    fractionBits: to.fractionBits,
  };
  if (to.bits === 64) {
    const value = truncate64(rounded as F64, to.unsigned);
    return attemptOrExact(m, 'i64', { value, ok: inRange, exact: unchanged }, { ...exact, result: () => m.scratch(6) });
  }
  const value = to.unsigned ? i32.truncSatF64U(rounded as F64) : i32.truncSatF64S(rounded as F64);
  return attemptOrExact(m, 'i32', { value, ok: inRange, exact: unchanged },
    { ...exact, result: () => i32.wrapI64(m.scratch(6)) });
}

/** Vector lanes to integers of the same width. */
export function toIntegers(m: Machine, s: Shape, operand: Value, to: IntegerSide, rounding: RoundingName): Value {
  const a = s.let(m, operand) as V128;
  const { rounded, inRange, unchanged } = roundToRange(m, s, a, to, rounding);
  const value = truncateLanes(s, rounded as V128, to);
  return attemptOrExact(m, 'v128', { value, ok: inRange, exact: unchanged }, {
    request: { operation: 'toFixed', from: s.size, lanes: s.lanes, rounding, unsigned: to.unsigned },
    arguments: () => s.toScratch(m, 0, a),
    result: () => m.scratchQ(6),
    fractionBits: to.fractionBits,
  });
}

function truncateLanes(s: Shape, rounded: V128, to: IntegerSide): V128 {
  if (s.size === 32) return to.unsigned ? i32x4.truncSatF32x4U(rounded) : i32x4.truncSatF32x4S(rounded);
  const lane = (k: number) => truncate64(f64x2.extract(rounded, k), to.unsigned);
  return i64x2.replace(i64x2.splat(lane(0)), 1, lane(1));
}

// ---- from integer

function convertScalar(s: Shape, integer: Word, from: IntegerSide): Value {
  const ops = s.size === 32 ? f32 : f64;
  if (from.bits === 64) return from.unsigned ? ops.convertI64U(integer as I64) : ops.convertI64S(integer as I64);
  return from.unsigned ? ops.convertI32U(integer as I32) : ops.convertI32S(integer as I32);
}

/** 1 if converting back gives the integer. The limit of the range is ruled out: it would saturate to the highest one. */
function convertsBack(s: Shape, integer: Word, value: Value, from: IntegerSide): I32 {
  const double = (s.size === 32 ? widen(s, value)[0] : value) as F64;
  const wide = from.bits === 64 ? integer as I64
    : from.unsigned ? i64.extendI32U(integer as I32) : i64.extendI32S(integer as I32);
  return i32.and(i64.eq(truncate64(double, from.unsigned), wide), f64.ne(double, f64.const(limits(from)[1])));
}

/** An integer (i32 or i64, by from.bits) to a scalar. */
export function fromInteger(m: Machine, s: Shape, operand: Word, from: IntegerSide): Value {
  const integer = m.f.let(operand as I64) as Word;
  const converted = s.let(m, convertScalar(s, integer, from));
  // Scaling down is exact: the smallest result, 2^-64, is far from tiny.
  const value = from.fractionBits ? s.mul(converted, scale(m, s, from.fractionBits, -1)) : converted;
  if (s.size === 64 && from.bits === 32) return value; // always exact
  return attemptOrExact(m, s.type, {
    value: value as Expr, ok: i32.const(1), exact: () => convertsBack(s, integer, converted, from),
  }, {
    request: { operation: 'fixedToFP', from: from.bits, to: s.size, lanes: 1, unsigned: from.unsigned },
    arguments: () => m.setScratch(0, from.bits === 64 ? integer as I64 : i64.extendI32U(integer as I32)),
    result: () => s.fromScratch(m) as Expr,
    fractionBits: from.fractionBits,
  }) as Value;
}

/** Integer lanes to numbers of the same width. */
export function fromIntegers(m: Machine, s: Shape, operand: V128, from: IntegerSide): Value {
  const integers = m.f.let(operand);
  const converted = s.let(m, convertLanes(s, integers, from)) as V128;
  const value = from.fractionBits ? s.mul(converted, scale(m, s, from.fractionBits, -1)) as V128 : converted;
  const exact = () => lanesConvertBack(s, integers, converted, from);
  return attemptOrExact(m, 'v128', { value, ok: i32.const(1), exact }, {
    request: { operation: 'fixedToFP', from: s.size, lanes: s.lanes, unsigned: from.unsigned },
    arguments: () => m.setScratchQ(0, integers),
    result: () => m.scratchQ(6),
    fractionBits: from.fractionBits,
  });
}

function convertLanes(s: Shape, integers: V128, from: IntegerSide): V128 {
  if (s.size === 32) return from.unsigned ? f32x4.convertI32x4U(integers) : f32x4.convertI32x4S(integers);
  const lane = (k: number) => convertScalar(scalarDouble, i64x2.extract(integers, k), from) as F64;
  return f64x2.replace(f64x2.splat(lane(0)), 1, lane(1));
}

function lanesConvertBack(s: Shape, integers: V128, converted: V128, from: IntegerSide): I32 {
  if (s.size === 32) {
    const same = i32x4.eq(truncateLanes(s, converted, from), integers);
    return s.all(v128.and(same, s.ne(converted, s.const(limits(from)[1])) as V128));
  }
  const lane = (k: number) =>
    convertsBack(scalarDouble, i64x2.extract(integers, k), f64x2.extract(converted, k), from);
  return i32.and(lane(0), lane(1));
}

// ---- between formats

/** Single to double; always exact but for signaling NaNs. */
export function singleToDouble(m: Machine, operand: F32): F64 {
  const a = m.f.let(operand);
  return attemptOrExact(m, 'f64', { value: f64.promoteF32(a), ok: f32.eq(a, a) }, {
    request: { operation: 'convert', from: 32, to: 64, lanes: 1 },
    arguments: () => scalarSingle.toScratch(m, 0, a),
    result: () => scalarDouble.fromScratch(m) as F64,
  });
}

/** The lower two singles to doubles. */
export function singlesToDoubles(m: Machine, operand: V128): V128 {
  const a = m.f.let(operand);
  const value = m.f.let(f64x2.promoteLowF32x4(a));
  return attemptOrExact(m, 'v128', { value, ok: vector2D.all(f64x2.eq(value, value)) }, {
    request: { operation: 'convert', from: 32, to: 64, lanes: 2 },
    arguments: () => m.setScratchQ(0, a),
    result: () => m.scratchQ(6),
  });
}

/**
 * A double (s is scalarSingle), or two (s is the shape of two singles), to single; the result's upper half is not
 * defined. 'odd' always takes the exact path.
 */
export function toSingle(m: Machine, s: Shape, operand: Value, rounding: 'dynamic' | 'odd'): Value {
  const wide: Shape = s.vector ? vector2D : scalarDouble;
  const a = wide.let(m, operand);
  return attemptOrExact(m, s.type, rounding === 'odd' ? undefined : fastToSingle(m, s, wide, a), {
    request: { operation: 'convert', from: 64, to: 32, lanes: s.lanes, rounding },
    arguments: () => wide.toScratch(m, 0, a),
    result: () => s.fromScratch(m) as Expr,
  }) as Value;
}

/** Above the smallest normal single a result is not tiny; a zero is exact. */
function fastToSingle(m: Machine, s: Shape, wide: Shape, a: Value): Attempt {
  const value = s.let(m, narrow(s, [a]));
  const back = wide.let(m, widen(s, value)[0]!);
  const size = wide.abs(back);
  const ordinary = wide.and(wide.gt(size, wide.const(2 ** -126)), wide.lt(size, wide.const(Infinity)));
  return {
    value: value as Expr, ok: wide.all(wide.or(ordinary, wide.eq(a, wide.const(0)))),
    exact: () => wide.all(wide.eq(back, a)),
  };
}

/** Conversions from or to half precision, always exact path: `lanes` lanes in the low end of a v128. */
export function convertHalf(m: Machine, operand: V128, from: 16 | 32 | 64, to: 16 | 32 | 64, lanes: number): V128 {
  const a = m.f.let(operand);
  return attemptOrExact(m, 'v128', undefined, {
    request: { operation: 'convert', from, to, lanes },
    arguments: () => m.setScratchQ(0, a),
    result: () => m.scratchQ(6),
  });
}
