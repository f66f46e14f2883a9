// Arithmetic against the host's own (round to nearest), against the exact reference (every rounding mode, FZ, flags),
// and against known vectors for NaNs and special cases.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../base/random.ts';
import * as arithmetic from './arithmetic.ts';
import type { Format, FpStatus } from './format.ts';
import {
  DOUBLE, FPCR_DN, FPCR_FZ, FPCR_RMODE_SHIFT, FPSR_DZC, FPSR_IDC, FPSR_IOC, FPSR_IXC, FPSR_UFC, HALF, Rounding, SINGLE,
} from './format.ts';
import type { Dyadic, Expected, Real } from './test-fp-reference.ts';
import {
  addDyadic, edgeEncodings, finiteValue, fromHost, isNaNEncoding, multiplyDyadic, randomEncoding, randomFinite,
  realDyadic, realQuotient, realSqrt, referenceRound, toHost,
} from './test-fp-reference.ts';

const SEED = 0x5a7e0001;
const FORMATS: readonly Format[] = [HALF, SINGLE, DOUBLE];
const FPCR_MODES = [Rounding.TIEEVEN, Rounding.POSINF, Rounding.NEGINF, Rounding.ZERO] as const;

type Binary = (format: Format, op1: bigint, op2: bigint, fpcr: number, status: FpStatus) => bigint;

const HOST_BINARY: readonly [Binary, (x: number, y: number) => number][] = [
  [arithmetic.fpAdd, (x, y) => x + y],
  [arithmetic.fpSub, (x, y) => x - y],
  [arithmetic.fpMul, (x, y) => x * y],
  [arithmetic.fpDiv, (x, y) => x / y],
];

function describe(format: Format, ...operands: bigint[]): string {
  return `width ${format.width}: ${operands.map((op) => `0x${op.toString(16)}`).join(' ')}`;
}

function checkAgainstHost(format: Format, actual: bigint, expected: number, what: () => string): void {
  if (Number.isNaN(expected)) assert.ok(isNaNEncoding(format, actual), what());
  else assert.equal(actual, fromHost(format, expected), what());
}

test('round to nearest gives what the host gives', (t) => {
  t.diagnostic(`seed ${SEED}`);
  const random = new SeededRandom(SEED);
  for (const format of FORMATS) {
    const edges = edgeEncodings(format);
    const pairs: [bigint, bigint][] = edges.flatMap((a) => edges.map((b): [bigint, bigint] => [a, b]));
    for (let i = 0; i < 10_000; i++) {
      const a = randomEncoding(format, random);
      pairs.push([a, randomEncoding(format, random, a)]);
    }
    for (const [a, b] of pairs) {
      for (const [operation, host] of HOST_BINARY) {
        const actual = operation(format, a, b, 0, { flags: 0 });
        const expected = host(toHost(format, a), toHost(format, b));
        checkAgainstHost(format, actual, expected, () => `${operation.name} ${describe(format, a, b)}`);
      }
      const root = arithmetic.fpSqrt(format, a, 0, { flags: 0 });
      checkAgainstHost(format, root, Math.sqrt(toHost(format, a)), () => `fpSqrt ${describe(format, a)}`);
    }
  }
});

/** Operands, their values after flushing, and what the reference needs to know. */
interface Sample {
  readonly format: Format;
  readonly rounding: Rounding;
  readonly flush: boolean;
  /** Operands a, b, c as encodings; `values` are what FZ leaves of them. */
  readonly operands: readonly [bigint, bigint, bigint];
  readonly negative: readonly [boolean, boolean, boolean];
  readonly values: readonly [Dyadic, Dyadic, Dyadic];
}

function isFlushed(format: Format, bits: bigint, flush: boolean): boolean {
  const magnitude = bits & format.magnitudeMask;
  return flush && format !== HALF && magnitude !== 0n && magnitude <= format.fractionMask;
}

function expectReal({ format, rounding, flush }: Sample, negative: boolean, real: Real): Expected {
  return referenceRound(format, negative, real, rounding, flush && format !== HALF);
}

function expectDyadic(sample: Sample, value: Dyadic, zeroIsNegative: boolean): Expected {
  if (value.numerator === 0n) return { bits: zeroIsNegative ? sample.format.signBit : 0n, flags: 0 };
  return expectReal(sample, value.numerator < 0n, realDyadic(absolute(value)));
}

/** Sum of two values with the given signs: a zero keeps a sign that both have, and else is -0 only towards -∞. */
function expectSum(sample: Sample, a: Dyadic, aNegative: boolean, b: Dyadic, bNegative: boolean): Expected {
  const zeroIsNegative = a.numerator === 0n && b.numerator === 0n && aNegative === bNegative
    ? aNegative
    : sample.rounding === Rounding.NEGINF;
  return expectDyadic(sample, addDyadic(a, b), zeroIsNegative);
}

function absolute({ numerator, exponent }: Dyadic): Dyadic {
  return { numerator: numerator < 0n ? -numerator : numerator, exponent };
}

function negated({ numerator, exponent }: Dyadic): Dyadic {
  return { numerator: -numerator, exponent };
}

/** An operation with its number of operands, and what it must give; undefined where the result is not a number. */
interface Checked {
  readonly name: string;
  readonly arity: 1 | 2 | 3;
  run(format: Format, a: bigint, b: bigint, c: bigint, fpcr: number, status: FpStatus): bigint;
  expect(sample: Sample): Expected | undefined;
}

const CHECKED: readonly Checked[] = [
  {
    name: 'add',
    arity: 2,
    run: (format, a, b, _c, fpcr, status) => arithmetic.fpAdd(format, a, b, fpcr, status),
    expect: (sample) => expectSum(
      sample, sample.values[0], sample.negative[0], sample.values[1], sample.negative[1]),
  },
  {
    name: 'sub',
    arity: 2,
    run: (format, a, b, _c, fpcr, status) => arithmetic.fpSub(format, a, b, fpcr, status),
    expect: (sample) => expectSum(
      sample, sample.values[0], sample.negative[0], negated(sample.values[1]), !sample.negative[1]),
  },
  {
    name: 'mul',
    arity: 2,
    run: (format, a, b, _c, fpcr, status) => arithmetic.fpMul(format, a, b, fpcr, status),
    expect: (sample) => expectDyadic(
      sample, multiplyDyadic(sample.values[0], sample.values[1]), sample.negative[0] !== sample.negative[1]),
  },
  {
    name: 'mulAdd',
    arity: 3,
    run: (format, a, b, c, fpcr, status) => arithmetic.fpMulAdd(format, c, a, b, fpcr, status),
    expect: (sample) => expectSum(
      sample, multiplyDyadic(sample.values[0], sample.values[1]), sample.negative[0] !== sample.negative[1],
      sample.values[2], sample.negative[2]),
  },
  {
    name: 'recipStep',
    arity: 2,
    run: (format, a, b, _c, fpcr, status) => arithmetic.fpRecipStepFused(format, a, b, fpcr, status),
    expect: (sample) => {
      const subtrahend = multiplyDyadic(sample.values[0], sample.values[1]);
      return expectSum(sample, { numerator: 2n, exponent: 0 }, false, negated(subtrahend), true);
    },
  },
  {
    name: 'rsqrtStep',
    arity: 2,
    run: (format, a, b, _c, fpcr, status) => arithmetic.fpRSqrtStepFused(format, a, b, fpcr, status),
    expect: (sample) => {
      const { numerator, exponent } = multiplyDyadic(sample.values[0], sample.values[1]);
      const halfOfProduct = { numerator: -numerator, exponent: exponent - 1 };
      return expectSum(sample, { numerator: 3n, exponent: -1 }, false, halfOfProduct, true);
    },
  },
  {
    name: 'div',
    arity: 2,
    run: (format, a, b, _c, fpcr, status) => arithmetic.fpDiv(format, a, b, fpcr, status),
    expect: (sample) => {
      const [x, y] = sample.values;
      if (x.numerator === 0n || y.numerator === 0n) return undefined;
      return expectReal(
        sample, sample.negative[0] !== sample.negative[1], realQuotient(absolute(x), absolute(y)));
    },
  },
  {
    name: 'sqrt',
    arity: 1,
    run: (format, a, _b, _c, fpcr, status) => arithmetic.fpSqrt(format, a, fpcr, status),
    expect: (sample) => {
      const [x] = sample.values;
      return x.numerator > 0n ? expectReal(sample, false, realSqrt(x)) : undefined;
    },
  },
];

function makeSample(
  format: Format, operands: Sample['operands'], rounding: Rounding, flush: boolean,
): Sample {
  const value = (bits: bigint): Dyadic => finiteValue(format, isFlushed(format, bits, flush) ? 0n : bits);
  const isNegative = (bits: bigint): boolean => (bits & format.signBit) !== 0n;
  const [a, b, c] = operands;
  return {
    format, rounding, flush, operands,
    negative: [isNegative(a), isNegative(b), isNegative(c)],
    values: [value(a), value(b), value(c)],
  };
}

function checkSample(sample: Sample, { name, arity, run, expect }: Checked): void {
  const { format, flush, rounding, operands } = sample;
  const expected = expect(sample);
  if (expected === undefined) return;
  const fpcr = (rounding << FPCR_RMODE_SHIFT) | (flush ? FPCR_FZ : 0);
  const used = operands.slice(0, arity);
  const denormal = used.some((bits) => isFlushed(format, bits, flush));
  const status = { flags: 0 };
  const what = `${name} ${describe(format, ...used)} fpcr 0x${fpcr.toString(16)}`;
  assert.equal(run(format, ...operands, fpcr, status), expected.bits, what);
  assert.equal(status.flags, expected.flags | (denormal ? FPSR_IDC : 0), `${what} flags`);
}

test('every rounding mode, flushing and the flags follow the exact value', (t) => {
  t.diagnostic(`seed ${SEED + 1}`);
  const random = new SeededRandom(SEED + 1);
  for (const format of FORMATS) {
    for (let i = 0; i < 2_000; i++) {
      const a = randomFinite(format, random);
      const b = randomFinite(format, random, a);
      const c = randomFinite(format, random, random.pick([a, b]));
      const sample = makeSample(format, [a, b, c], random.pick(FPCR_MODES), random.below(2) === 1);
      for (const checked of CHECKED) checkSample(sample, checked);
    }
  }
});

/** The odd x with odd × x = 1 modulo 2^bits, by Newton's iteration. */
function inverseModulo(odd: bigint, bits: number): bigint {
  let inverse = odd;
  for (let correct = 3; correct < bits; correct *= 2) inverse *= 2n - odd * inverse;
  return BigInt.asUintN(bits, inverse);
}

test('a far smaller addend decides a product next to a tie or to a representable number', (t) => {
  t.diagnostic(`seed ${SEED + 2}`);
  const random = new SeededRandom(SEED + 2);
  const mulAdd = CHECKED.find(({ name }) => name === 'mulAdd')!;
  for (const format of FORMATS) {
    const precision = format.fractionBits + 1;
    const one = BigInt(format.bias) << format.exponentShift;
    for (let i = 0; i < 1_500; i++) {
      // Two significands whose product ends in the wanted bits, as the exact product is about 2 × precision long.
      const low = BigInt(random.pick([0, 1, 2, 3])) << BigInt(precision - 2);
      const wanted = BigInt.asUintN(precision, low + BigInt(random.below(3) - 1));
      const first = (random.u64() & format.fractionMask) | 1n;
      const second = BigInt.asUintN(precision, wanted * inverseModulo(first | (1n << format.exponentShift), precision));
      if (second >> format.exponentShift !== 1n) continue;
      const distance = BigInt(random.below(Math.min(3 * precision, format.bias - 1)) + 1);
      const addend = random.below(3) === 0
        ? BigInt(random.below(4)) + 1n
        : (((one >> format.exponentShift) - distance) << format.exponentShift) | (random.u64() & format.fractionMask);
      const operands = [one | first, one | (second & format.fractionMask), addend] as const;
      const signed = operands.map((bits) => bits | (random.below(2) === 1 ? format.signBit : 0n));
      const sample = makeSample(format, [signed[0]!, signed[1]!, signed[2]!], random.pick(FPCR_MODES), false);
      checkSample(sample, mulAdd);
    }
  }
});

test('flushed operands read as zeros of their sign and set IDC', () => {
  const status = { flags: 0 };
  assert.equal(arithmetic.fpAdd(SINGLE, 0x8000_0001n, 0x8000_0000n, FPCR_FZ, status), 0x8000_0000n);
  assert.equal(status.flags, FPSR_IDC);
  status.flags = 0;
  assert.equal(arithmetic.fpDiv(DOUBLE, 0x3ff0_0000_0000_0000n, 1n, FPCR_FZ, status), DOUBLE.infinity);
  assert.equal(status.flags, FPSR_IDC | FPSR_DZC);
  status.flags = 0;
  assert.equal(arithmetic.fpAdd(HALF, 1n, 1n, FPCR_FZ, status), 2n);
  assert.equal(status.flags, 0);
  // An exact denormal result is flushed as well, with UFC and without IXC.
  assert.equal(arithmetic.fpMul(SINGLE, 0x0080_0000n, 0xbf00_0000n, FPCR_FZ, status), 0x8000_0000n);
  assert.equal(status.flags, FPSR_UFC);
  // An IDC of an operand is kept beside the IOC of a signaling NaN.
  status.flags = 0;
  assert.equal(arithmetic.fpAdd(SINGLE, 0x7f80_0001n, 1n, FPCR_FZ, status), 0x7fc0_0001n);
  assert.equal(status.flags, FPSR_IOC | FPSR_IDC);
});

test('tininess is detected before rounding', () => {
  // (1 - 2^-24) × 2^-126 rounds up to the smallest normal, and still underflows.
  const status = { flags: 0 };
  assert.equal(arithmetic.fpMul(SINGLE, 0x0080_0000n, 0x3f7f_ffffn, 0, status), 0x0080_0000n);
  assert.equal(status.flags, FPSR_UFC | FPSR_IXC);
});

test('NaN operands: signaling first, then by position; quieted, or the default NaN', () => {
  const q1 = 0x7fc0_1111n;
  const q2 = 0xffc0_2222n;
  const s1 = 0x7f80_1111n;
  const s2 = 0xff80_2222n;
  const one = 0x3f80_0000n;
  const quiet = (bits: bigint): bigint => bits | 0x0040_0000n;
  const cases: [bigint, bigint, bigint, number][] = [
    [q1, q2, q1, 0], [q2, q1, q2, 0], [one, q2, q2, 0], [q1, s2, quiet(s2), FPSR_IOC],
    [s1, s2, quiet(s1), FPSR_IOC], [s1, q2, quiet(s1), FPSR_IOC], [one, s2, quiet(s2), FPSR_IOC],
  ];
  const operations: Binary[] = [
    arithmetic.fpAdd, arithmetic.fpSub, arithmetic.fpMul, arithmetic.fpMulX, arithmetic.fpDiv,
  ];
  for (const operation of operations) {
    for (const [op1, op2, result, flags] of cases) {
      const status = { flags: 0 };
      assert.equal(operation(SINGLE, op1, op2, 0, status), result, operation.name);
      assert.equal(status.flags, flags);
      assert.equal(operation(SINGLE, op1, op2, FPCR_DN, status), SINGLE.defaultNaN);
      assert.equal(status.flags, flags);
    }
  }
  for (const [op1, op2, result, flags] of cases) {
    // The steps negate their first operand before they look at it.
    const fromFirst = op1 !== one && result === quiet(op1);
    const status = { flags: 0 };
    const expected = fromFirst ? result ^ SINGLE.signBit : result;
    assert.equal(arithmetic.fpRecipStepFused(SINGLE, op1, op2, 0, status), expected);
    assert.equal(arithmetic.fpRSqrtStepFused(SINGLE, op1, op2, 0, status), expected);
    assert.equal(status.flags, flags);
  }
});

test('fused multiply-add: known vectors, NaN order and infinity times zero', () => {
  const run = (addend: bigint, op1: bigint, op2: bigint, fpcr = 0): [bigint, number] => {
    const status = { flags: 0 };
    return [arithmetic.fpMulAdd(DOUBLE, addend, op1, op2, fpcr, status), status.flags];
  };
  const d = (value: number): bigint => fromHost(DOUBLE, value);
  const { infinity, defaultNaN, signBit, quietBit } = DOUBLE;
  const q = (payload: bigint): bigint => defaultNaN | payload;
  const s = (payload: bigint): bigint => infinity | payload;
  // (1 + 2^-52)(1 - 2^-52) - 1 = -2^-104: unfused it would be 0.
  assert.deepEqual(run(d(-1), d(1 + 2 ** -52), d(1 - 2 ** -52)), [d(-(2 ** -104)), 0]);
  assert.deepEqual(run(d(-(0.1 * 10)), d(0.1), d(10)), [d(2 ** -54), 0]);
  assert.deepEqual(run(d(-Number.MAX_VALUE), d(Number.MAX_VALUE), d(2)), [d(Number.MAX_VALUE), 0]);
  assert.deepEqual(run(d(2 ** -1074), d(2 ** -600), d(2 ** -600)), [1n, FPSR_UFC | FPSR_IXC]);
  assert.deepEqual(run(d(1), d(2 ** -600), d(-(2 ** -600)), 3 << FPCR_RMODE_SHIFT), [d(1 - 2 ** -53), FPSR_IXC]);
  assert.deepEqual(run(d(-6), d(2), d(3), 2 << FPCR_RMODE_SHIFT), [signBit, 0]);
  assert.deepEqual(run(d(-6), d(2), d(3)), [0n, 0]);

  assert.deepEqual(run(q(1n), infinity, 0n), [defaultNaN, FPSR_IOC]);
  assert.deepEqual(run(q(1n), signBit, infinity), [defaultNaN, FPSR_IOC]);
  assert.deepEqual(run(s(1n), infinity, 0n), [s(1n) | quietBit, FPSR_IOC]);
  assert.deepEqual(run(d(1), infinity, 0n), [defaultNaN, FPSR_IOC]);
  assert.deepEqual(run(infinity, infinity, d(-1)), [defaultNaN, FPSR_IOC]);
  assert.deepEqual(run(infinity, infinity, d(1)), [infinity, 0]);
  assert.deepEqual(run(infinity | signBit, d(1), d(1)), [infinity | signBit, 0]);
  assert.deepEqual(run(d(1), infinity | signBit, d(1)), [infinity | signBit, 0]);

  assert.deepEqual(run(q(1n), q(2n), q(3n)), [q(1n), 0]);
  assert.deepEqual(run(d(1), q(2n), q(3n)), [q(2n), 0]);
  assert.deepEqual(run(d(1), d(1), q(3n)), [q(3n), 0]);
  assert.deepEqual(run(q(1n), q(2n), s(3n)), [s(3n) | quietBit, FPSR_IOC]);
  assert.deepEqual(run(q(1n), s(2n), s(3n)), [s(2n) | quietBit, FPSR_IOC]);
  assert.deepEqual(run(s(1n), s(2n), s(3n)), [s(1n) | quietBit, FPSR_IOC]);
  assert.deepEqual(run(s(1n), s(2n), s(3n), FPCR_DN), [defaultNaN, FPSR_IOC]);
});

test('special results and their flags', () => {
  const { infinity, defaultNaN, signBit } = SINGLE;
  const one = 0x3f80_0000n;
  const cases: [Binary, bigint, bigint, bigint, number][] = [
    [arithmetic.fpAdd, infinity, infinity | signBit, defaultNaN, FPSR_IOC],
    [arithmetic.fpSub, infinity, infinity, defaultNaN, FPSR_IOC],
    [arithmetic.fpMul, infinity, 0n, defaultNaN, FPSR_IOC],
    [arithmetic.fpMulX, infinity, signBit, 0xc000_0000n, 0],
    [arithmetic.fpMulX, 0n, infinity, 0x4000_0000n, 0],
    [arithmetic.fpMulX, 0x4000_0000n, 0x4000_0000n, 0x4080_0000n, 0],
    [arithmetic.fpDiv, 0n, signBit, defaultNaN, FPSR_IOC],
    [arithmetic.fpDiv, infinity, infinity, defaultNaN, FPSR_IOC],
    [arithmetic.fpDiv, one, signBit, infinity | signBit, FPSR_DZC],
    [arithmetic.fpDiv, infinity, 0n, infinity, 0],
    [arithmetic.fpRecipStepFused, 0n, infinity, 0x4000_0000n, 0],
    [arithmetic.fpRecipStepFused, infinity, one, infinity | signBit, 0],
    [arithmetic.fpRSqrtStepFused, infinity, signBit, 0x3fc0_0000n, 0],
    [arithmetic.fpRSqrtStepFused, one | signBit, infinity, infinity, 0],
  ];
  for (const [operation, op1, op2, result, flags] of cases) {
    const status = { flags: 0 };
    assert.equal(operation(SINGLE, op1, op2, 0, status), result, `${operation.name} ${describe(SINGLE, op1, op2)}`);
    assert.equal(status.flags, flags);
  }
  const status = { flags: 0 };
  assert.equal(arithmetic.fpSqrt(SINGLE, signBit, 0, status), signBit);
  assert.equal(arithmetic.fpSqrt(SINGLE, infinity, 0, status), infinity);
  assert.equal(status.flags, 0);
  assert.equal(arithmetic.fpSqrt(SINGLE, infinity | signBit, 0, status), defaultNaN);
  assert.equal(status.flags, FPSR_IOC);
  assert.equal(arithmetic.fpNeg(SINGLE, 0x7f80_0001n), 0xff80_0001n);
  assert.equal(arithmetic.fpAbs(SINGLE, 0xff80_0001n), 0x7f80_0001n);
});
