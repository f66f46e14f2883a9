// Fast paths of floating-point arithmetic, inline, and the way to the exact path when one does not apply.
//
// A fast path holds for FPCR = 0 (round to nearest, no flushing, NaNs propagate), which is what nearly all programs
// run with. It computes with the host's IEEE arithmetic and then proves, by comparisons alone, that the manual gives
// the same bits and no flag but perhaps IXC (`ok`). NaN operands or results, overflow and tiny results are never
// proved. IXC needs no proof when FPSR has it already, which is so after a program's first inexact operation; until
// then `exact` must show that nothing was rounded. Whatever is not shown goes to the exact path, which sets the flags.
//
// Every bound below may be stricter than need be: that costs time, not correctness.

import { i32 } from '../wasm/scalar.ts';
import { hasFusedMadd } from '../wasm/relaxed-madd.ts';
import type { Expr, F32, F64, I32, I64, V128, ValType } from '../wasm/types.ts';
import { f32x4, f64x2 } from '../wasm/vector.ts';
import { bitsOf, narrow, wideShape, widen } from './fp-shape.ts';
import type { Mask, Shape, Value } from './fp-shape.ts';
import type { Machine } from './machine.ts';
import { packRequest } from './soft-float.ts';
import type { RoundingName, SoftFloatOperation, SoftFloatRequest } from './soft-float.ts';

const FPSR_IXC = 1 << 4;

/** A fast path that has been emitted: its value, and what must hold for it. */
export interface Attempt<T extends ValType = ValType> {
  readonly value: Expr<T>;
  readonly ok: I32;
  /** Emits the proof that nothing was rounded. Absent: always exact, or flags do not depend on it. */
  readonly exact?: () => I32;
}

export interface Exact<T extends ValType> {
  readonly request: SoftFloatRequest;
  /** Puts the operands into the scratch words. */
  readonly arguments: () => void;
  readonly result: () => Expr<T>;
  readonly fractionBits?: I32;
}

/** The fast path if it is proved, else the exact one. The result is a local. */
export function attemptOrExact<T extends ValType>(
  m: Machine, type: T, attempt: Attempt<T> | undefined, exact: Exact<T>,
): Expr<T> {
  const { f } = m;
  const result = f.local(type);
  const exactPath = () => {
    exact.arguments();
    const request = i32.const(packRequest(exact.request));
    const flags = m.compute('softFloat', request, m.fpcr(), exact.fractionBits ?? i32.const(0));
    m.setFpsr(i32.or(m.fpsr(), flags));
    f.set(result, exact.result());
  };
  if (attempt === undefined) {
    exactPath();
    return result;
  }
  f.set(result, attempt.value);
  const ok = f.local('i32');
  f.set(ok, i32.and(i32.eqz(m.fpcr()), attempt.ok));
  if (attempt.exact) {
    const proof = attempt.exact;
    f.if(i32.eqz(i32.and(m.fpsr(), i32.const(FPSR_IXC))), () => {
      f.if(ok, () => f.set(ok, proof()));
    });
  }
  f.if(i32.eqz(ok), exactPath);
  return result;
}

/** An operation from lanes of a shape to lanes of the same shape. Operands are pinned. */
export function evaluate(
  m: Machine, s: Shape, operation: SoftFloatOperation, operands: readonly Value[], attempt?: Attempt,
  options: { rounding?: RoundingName; exact?: boolean } = {},
): Value {
  return attemptOrExact(m, s.type, attempt, {
    request: { operation, from: s.size, lanes: s.lanes, ...options },
    arguments: () => operands.forEach((operand, index) => s.toScratch(m, index, operand)),
    result: () => s.fromScratch(m) as Expr,
  }) as Value;
}

// ---- what a result shows

const minNormal = (s: Shape) => s.const(s.size === 32 ? 2 ** -126 : 2 ** -1022);
/** Neither infinite nor NaN. */
const isFinite = (s: Shape, a: Value): Mask => s.lt(s.abs(a), s.const(Infinity));
const isZero = (s: Shape, a: Value): Mask => s.eq(a, s.const(0));
/** Not NaN. */
const isNumber = (s: Shape, a: Value): Mask => s.eq(a, a);
/** A rounded result above the smallest normal number: the exact one was not tiny either. */
const isOrdinary = (s: Shape, a: Value): Mask => s.and(s.gt(s.abs(a), minNormal(s)), isFinite(s, a));

// ---- error terms, all exact unless something overflows, which makes them NaN

/** a + b - sum, where sum is a + b rounded (Knuth). */
function sumError(m: Machine, s: Shape, a: Value, b: Value, sum: Value): Value {
  const shadow = s.let(m, s.sub(sum, a));
  return s.add(s.sub(a, s.sub(sum, shadow)), s.sub(b, shadow));
}

/** a × b - product for doubles; product is a × b rounded, and at least 2^-968 or an exact zero (Dekker, Veltkamp). */
function productError(m: Machine, s: Shape, a: Value, b: Value, product: Value): Value {
  const split = (x: Value): [Value, Value] => {
    const scaled = s.let(m, s.mul(x, s.const(2 ** 27 + 1)));
    const high = s.let(m, s.sub(scaled, s.sub(scaled, x)));
    return [high, s.let(m, s.sub(x, high))];
  };
  const [aHigh, aLow] = split(a);
  const [bHigh, bLow] = split(b);
  const high = s.sub(s.mul(aHigh, bHigh), product);
  return s.add(s.add(s.add(high, s.mul(aHigh, bLow)), s.mul(aLow, bHigh)), s.mul(aLow, bLow));
}

/** 1 if a × b is exactly `result` in every lane. */
function isExactProduct(m: Machine, s: Shape, a: Value, b: Value, result: Value): I32 {
  if (hasFusedMadd) {
    // Far from the smallest numbers a difference cannot be lost.
    const isFar = s.ge(s.abs(result), s.const(s.size === 32 ? 2 ** -60 : 2 ** -900));
    const inRange = s.or(isFar, s.or(isZero(s, a), isZero(s, b)));
    return s.all(s.and(inRange, isZero(s, hostFused(s, a, b, s.neg(result)))));
  }
  if (s.size === 32) return wideAll(m, s, [a, b, result], (wide, [x, y, r]) => wide.eq(wide.mul(x!, y!), r!));
  const product = s.let(m, s.mul(a, b));
  const inRange = s.or(s.ge(s.abs(product), s.const(2 ** -968)), isZero(s, product));
  const noError = isZero(s, productError(m, s, a, b, product));
  return s.all(s.and(s.and(inRange, noError), s.eq(product, result)));
}

/** 1 if a predicate on doubles holds for singles, all of them. */
function wideAll(
  m: Machine, s: Shape, values: readonly Value[], predicate: (wide: Shape, values: Value[]) => Mask,
): I32 {
  const wide = wideShape(s);
  const pieces = values.map(value => widen(s, value).map(piece => wide.let(m, piece)));
  return pieces[0]!.map((_, k) => wide.all(predicate(wide, pieces.map(p => p[k]!)))).reduce((a, b) => i32.and(a, b));
}

// ---- arithmetic. Operands are pinned.

type Fast = (m: Machine, s: Shape, a: Value, b: Value) => Attempt;

/** A sum that underflows is exact, so only overflow and NaN need the exact path. */
const fastAdd: Fast = (m, s, a, b) => {
  const value = s.let(m, s.add(a, b));
  return { value, ok: s.all(isFinite(s, value)), exact: () => s.all(isZero(s, sumError(m, s, a, b, value))) };
};

const fastSub: Fast = (m, s, a, b) => {
  const value = s.let(m, s.sub(a, b));
  return {
    value, ok: s.all(isFinite(s, value)),
    exact: () => s.all(isZero(s, sumError(m, s, a, s.let(m, s.neg(b)), value))),
  };
};

/** A zero product is exact if an operand is zero; zero times infinity is NaN, and NaN is not zero. */
const fastMul: Fast = (m, s, a, b) => {
  const value = s.let(m, s.mul(a, b));
  const exactZero = s.and(s.or(isZero(s, a), isZero(s, b)), isZero(s, value));
  return {
    value, ok: s.all(s.or(isOrdinary(s, value), exactZero)),
    exact: () => isExactProduct(m, s, a, b, value),
  };
};

const fastDiv: Fast = (m, s, a, b) => {
  const value = s.let(m, s.div(a, b));
  const exactZero = s.and(isZero(s, a), isZero(s, value));
  return {
    value, ok: s.all(s.or(isOrdinary(s, value), exactZero)),
    exact: () => isExactProduct(m, s, value, b, a),
  };
};

/** Numbers only. Of two zeros WebAssembly takes the same one as Arm. */
const fastExtremum = (which: 'min' | 'max'): Fast => (m, s, a, b) => {
  const value = s.let(m, s[which](a, b));
  return { value, ok: s.all(isNumber(s, value)) };
};

const fastFor: Partial<Record<SoftFloatOperation, Fast>> = {
  add: fastAdd, sub: fastSub, mul: fastMul, mulX: fastMul, div: fastDiv,
  min: fastExtremum('min'), max: fastExtremum('max'), minNum: fastExtremum('min'), maxNum: fastExtremum('max'),
  recipStepFused: (m, s, a, b) => fusedStep(m, s, a, b, 2),
  rSqrtStepFused: (m, s, a, b) => fusedStep(m, s, a, b, 3),
};

export type BinaryOperation = 'add' | 'sub' | 'mul' | 'mulX' | 'div' | 'max' | 'min' | 'maxNum' | 'minNum' |
  'recipStepFused' | 'rSqrtStepFused';

export function binary(m: Machine, s: Shape, operation: BinaryOperation, left: Value, right: Value): Value {
  const a = s.let(m, left);
  const b = s.let(m, right);
  return evaluate(m, s, operation, [a, b], fastFor[operation]!(m, s, a, b));
}

export function squareRoot(m: Machine, s: Shape, operand: Value): Value {
  const a = s.let(m, operand);
  const value = s.let(m, s.sqrt(a));
  return evaluate(m, s, 'sqrt', [a], {
    value: value as Expr, ok: s.all(isFinite(s, value)), exact: () => isExactProduct(m, s, value, value, a),
  });
}

/** One of the operations that always take the exact path. */
export function unaryExact(m: Machine, s: Shape, operation: SoftFloatOperation, operand: Value): Value {
  return evaluate(m, s, operation, [s.let(m, operand)]);
}

// ---- fused multiply-add

/** addend + a × b, rounded once. */
export function multiplyAdd(m: Machine, s: Shape, addend: Value, left: Value, right: Value): Value {
  const c = s.let(m, addend);
  const a = s.let(m, left);
  const b = s.let(m, right);
  return evaluate(m, s, 'mulAdd', [c, a, b], fastMulAdd(m, s, c, a, b));
}

function fastMulAdd(m: Machine, s: Shape, c: Value, a: Value, b: Value): Attempt {
  return hasFusedMadd ? hostMulAdd(m, s, c, a, b) : emulatedMulAdd(m, s, c, a, b);
}

/**
 * Where the host's own is fused. A result of zero is exact if a factor is zero, or if the product is so large that what
 * rounding could have hidden would have shown. Nothing was rounded if neither product nor sum would have been on its own;
 * the rare case that only both together are exact is left to the exact path.
 */
export function hostMulAdd(m: Machine, s: Shape, c: Value, a: Value, b: Value): Attempt {
  const value = s.let(m, hostFused(s, a, b, c));
  const product = s.let(m, s.mul(a, b));
  const visible = s.ge(s.abs(product), s.const(s.size === 32 ? 2 ** -60 : 2 ** -900));
  const exactZero = s.and(isZero(s, value), s.or(visible, s.or(isZero(s, a), isZero(s, b))));
  return {
    value: value as Expr, ok: s.all(s.or(isOrdinary(s, value), exactZero)),
    exact: () => i32.and(isExactProduct(m, s, a, b, product),
      s.all(s.and(isZero(s, sumError(m, s, product, c, value)), s.eq(s.add(product, c), value)))),
  };
}

function hostFused(s: Shape, a: Value, b: Value, c: Value): Value {
  if (s.size === 32) {
    const { relaxedMadd, splat, extract } = f32x4;
    if (s.vector) return relaxedMadd(a as V128, b as V128, c as V128);
    return extract(relaxedMadd(splat(a as F32), splat(b as F32), splat(c as F32)), 0);
  }
  const { relaxedMadd, splat, extract } = f64x2;
  if (s.vector) return relaxedMadd(a as V128, b as V128, c as V128);
  return extract(relaxedMadd(splat(a as F64), splat(b as F64), splat(c as F64)), 0);
}

/** The same out of additions and multiplications, for machines whose own is not fused. */
export function emulatedMulAdd(m: Machine, s: Shape, c: Value, a: Value, b: Value): Attempt {
  return s.size === 32 ? fastMulAddSingle(m, s, c, a, b) : fastMulAddDouble(m, s, c, a, b);
}

/** 2 - a × b, or (3 - a × b) / 2: the halved number is far from tiny, so that halving is exact. */
function fusedStep(m: Machine, s: Shape, a: Value, b: Value, constant: 2 | 3): Attempt {
  const step = fastMulAdd(m, s, s.let(m, s.const(constant)), s.let(m, s.neg(a)), b);
  return constant === 2 ? step : { ...step, value: s.mul(step.value as Value, s.const(0.5)) as Expr };
}

/**
 * The product of singles is exact in double; the sum is rounded to double and then to single. The second rounding sees
 * the wrong side of a tie only if the first one was not exact and gave a double that is exactly between two singles:
 * bit 28 set and the bits below it clear.
 */
function fastMulAddSingle(m: Machine, s: Shape, c: Value, a: Value, b: Value): Attempt {
  const { f } = m;
  const wide = wideShape(s);
  const bits = bitsOf(wide);
  const pin = (value: Value) => wide.let(m, value);
  const all = (predicate: (sum: Value, k: number) => Mask): I32 =>
    sums.map((sum, k) => wide.all(predicate(sum, k))).reduce((x, y) => i32.and(x, y));
  const [as, bs, addends] = [widen(s, a), widen(s, b), widen(s, c).map(pin)];
  const products = as.map((x, k) => pin(wide.mul(x, bs[k]!)));
  const sums = products.map((p, k) => pin(wide.add(p, addends[k]!)));
  const value = s.let(m, narrow(s, sums));
  const noError = (sum: Value, k: number) => isZero(wide, sumError(m, wide, products[k]!, addends[k]!, sum));

  // From the middle between the largest single and 2^128 on, the result is infinite.
  const inRange = (size: Value) =>
    wide.and(wide.gt(size, wide.const(2 ** -126)), wide.lt(size, wide.const(2 ** 128 - 2 ** 103)));
  const ok = f.local('i32');
  f.set(ok, all(sum => wide.or(inRange(wide.abs(sum)), isZero(wide, sum))));
  const noTie = all(sum => bits.ne(bits.and(bits.of(sum), bits.const(0x1fff_ffffn)), bits.const(0x1000_0000n)));
  f.if(i32.eqz(noTie), () => f.set(ok, i32.and(ok, all(noError))));
  const exact = () => {
    const rounded = widen(s, value);
    return all((sum, k) => wide.and(noError(sum, k), wide.eq(rounded[k]!, sum)));
  };
  return { value: value as Expr, ok, exact };
}

/**
 * Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd" (2008):
 * the product and the sums are split into rounded values and errors; the two errors are added with rounding to odd,
 * which keeps what the last addition needs to know. Valid while nothing overflows and no error is below the range,
 * which the bounds on product and addend ensure. A product with a zero operand is added as it is: only so is the sign
 * of a zero sum right.
 */
function fastMulAddDouble(m: Machine, s: Shape, c: Value, a: Value, b: Value): Attempt {
  const pin = (value: Value) => s.let(m, value);
  const product = pin(s.mul(a, b));
  const productLow = pin(productError(m, s, a, b, product));
  const inner = pin(s.add(c, productLow));
  const innerLow = pin(sumError(m, s, c, productLow, inner));
  const outer = pin(s.add(product, inner));
  const outerLow = pin(sumError(m, s, product, inner, outer));
  const rest = pin(s.add(innerLow, outerLow));
  const restLow = pin(sumError(m, s, innerLow, outerLow, rest));
  const odd = pin(roundToOdd(m, s, rest, restLow));
  const fused = pin(s.add(outer, odd));
  const plain = isZero(s, product);
  const value = pin(s.choose(plain, s.add(product, c), fused));

  const within = (x: Value) => s.and(s.ge(s.abs(x), s.const(2 ** -900)), s.le(s.abs(x), s.const(2 ** 1000)));
  const zeroProduct = s.and(s.and(s.or(isZero(s, a), isZero(s, b)), isZero(s, product)), isFinite(s, c));
  const inRange = s.and(within(product), s.or(within(c), isZero(s, c)));
  // `isFinite` also catches an operand so large that the splitting of the product overflowed.
  const ok = s.all(s.and(s.or(inRange, zeroProduct), isFinite(s, value)));
  const exact = () => s.all(s.or(plain, s.and(isZero(s, restLow), isZero(s, sumError(m, s, outer, odd, fused)))));
  return { value: value as Expr, ok, exact };
}

/** The exact sum high + low (high is that sum rounded to nearest), rounded to the neighbour with an odd last bit. */
function roundToOdd(m: Machine, s: Shape, high: Value, low: Value): Value {
  const bits = bitsOf(s);
  const one = bits.const(1n);
  const highBits = m.f.let(bits.of(high) as I64);
  const even = bits.eq(bits.and(highBits, one), bits.const(0n));
  const adjust = bits.of(s.fromMask(s.and(even, s.ne(low, s.const(0)))));
  // One step away from zero if the signs agree, towards it if not.
  const disagree = bits.shrU(bits.xor(highBits, bits.of(low)), 63);
  const step = bits.sub(one, bits.add(disagree, disagree));
  return bits.toValue(bits.add(highBits, bits.and(step, adjust)));
}

// ---- comparisons

/** All ones where the relation holds. */
export function compareMask(m: Machine, s: Shape, relation: 'EQ' | 'GE' | 'GT', left: Value, right: Value): Value {
  const a = s.let(m, left);
  const b = s.let(m, right);
  const mask = relation === 'EQ' ? s.eq(a, b) : relation === 'GE' ? s.ge(a, b) : s.gt(a, b);
  return evaluate(m, s, `compare${relation}`, [a, b], {
    value: s.fromMask(mask) as Expr, ok: s.all(s.and(isNumber(s, a), isNumber(s, b))),
  });
}

/** NZCV in bits 3 … 0 of comparing two scalars; `signalAll` is FCMPE's: quiet NaNs set IOC as well. */
export function compareFlags(m: Machine, s: Shape, left: Value, right: Value, signalAll: boolean): I32 {
  const a = s.let(m, left);
  const b = s.let(m, right);
  // Less 1000, equal 0110, greater 0010.
  const less = i32.shl(s.lt(a, b) as I32, i32.const(3));
  const notLess = i32.or(i32.shl(s.ge(a, b) as I32, i32.const(1)), i32.shl(s.eq(a, b) as I32, i32.const(2)));
  return attemptOrExact(m, 'i32', {
    value: i32.or(less, notLess), ok: i32.or(s.lt(a, b) as I32, s.ge(a, b) as I32),
  }, {
    request: { operation: 'compare', from: s.size, lanes: 1, exact: signalAll },
    arguments: () => { s.toScratch(m, 0, a); s.toScratch(m, 1, b); },
    result: () => i32.wrapI64(m.scratch(6)),
  });
}

// ---- rounding to integral

/** Rounds to an integral number, host arithmetic; 'dynamic' stands for FPCR = 0. The operand is pinned. */
export function roundHost(m: Machine, s: Shape, a: Value, rounding: RoundingName): Value {
  switch (rounding) {
    case 'positive': return s.ceil(a);
    case 'negative': return s.floor(a);
    case 'zero': return s.trunc(a);
    case 'tiesAway': {
      const size = s.let(m, s.abs(a));
      const whole = s.let(m, s.floor(size));
      const up = s.ge(s.sub(size, whole), s.const(0.5));
      return s.copysign(s.choose(up, s.add(whole, s.const(1)), whole), a);
    }
    default: return s.nearest(a);
  }
}

/** FRINT*: `signalInexact` is FRINTX's. */
export function roundIntegral(
  m: Machine, s: Shape, operand: Value, rounding: RoundingName, signalInexact: boolean,
): Value {
  const a = s.let(m, operand);
  const value = s.let(m, roundHost(m, s, a, rounding));
  const attempt = { value: value as Expr, ok: s.all(isNumber(s, value)) };
  return evaluate(m, s, 'roundInt', [a], signalInexact ? { ...attempt, exact: () => s.all(s.eq(value, a)) } : attempt,
    { rounding, exact: signalInexact });
}
