// Conversions against the host's, against the exact reference, and exhaustively for half precision.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../base/random.ts';
import type { FixedPoint } from './convert.ts';
import { fixedToFP, fpConvert, fpRoundInt, fpToFixed } from './convert.ts';
import type { Format } from './format.ts';
import {
  DOUBLE, FPCR_AHP, FPCR_DN, FPCR_FZ, FPCR_RMODE_SHIFT, FPSR_IDC, FPSR_IOC, FPSR_IXC, FPSR_OFC, FPSR_UFC, HALF,
  Rounding, SINGLE,
} from './format.ts';
import type { Dyadic } from './test-fp-reference.ts';
import {
  edgeEncodings, finiteValue, fromHost, isFiniteEncoding, isNaNEncoding, randomEncoding, randomFinite, realDyadic,
  referenceRound, toHost,
} from './test-fp-reference.ts';

const SEED = 0x5a7e0004;
const FORMATS: readonly Format[] = [HALF, SINGLE, DOUBLE];
const MODES = [Rounding.TIEEVEN, Rounding.POSINF, Rounding.NEGINF, Rounding.ZERO] as const;
const INTEGER_MODES = [...MODES, Rounding.TIEAWAY] as const;

/** The integer that a value × 2^scale rounds to, by floor division. */
function referenceInteger({ numerator, exponent }: Dyadic, scale: number, rounding: Rounding): [bigint, boolean] {
  const power = exponent + scale;
  if (power >= 0) return [numerator * 2n ** BigInt(power), true];
  const divisor = 2n ** BigInt(-power);
  const remainder = ((numerator % divisor) + divisor) % divisor;
  const floor = (numerator - remainder) / divisor;
  if (remainder === 0n) return [floor, true];
  const twice = remainder * 2n;
  const up = {
    [Rounding.TIEEVEN]: twice > divisor || (twice === divisor && floor % 2n !== 0n),
    [Rounding.POSINF]: true,
    [Rounding.NEGINF]: false,
    [Rounding.ZERO]: numerator < 0n,
    [Rounding.TIEAWAY]: twice > divisor || (twice === divisor && numerator > 0n),
    [Rounding.ODD]: floor % 2n === 0n,
  }[rounding];
  return [up ? floor + 1n : floor, false];
}

/** A finite encoding whose magnitude is around the integers up to 2^64. */
function randomNearIntegers(format: Format, random: SeededRandom): bigint {
  if (random.below(4) === 0) return randomFinite(format, random);
  const halves = BigInt.asIntN(random.below(66) + 1, random.u64());
  return fromHost(format, Number(halves) / 2 ** (1 + random.below(3)));
}

test('rounding to integral values in every mode', (t) => {
  t.diagnostic(`seed ${SEED}`);
  const random = new SeededRandom(SEED);
  for (const format of FORMATS) {
    for (let i = 0; i < 4_000; i++) {
      const op = randomNearIntegers(format, random);
      if (!isFiniteEncoding(format, op)) continue;
      const rounding = random.pick(INTEGER_MODES);
      const exact = random.below(2) === 1;
      const [integer, unchanged] = referenceInteger(finiteValue(format, op), 0, rounding);
      const zero = op & format.signBit;
      const status = { flags: 0 };
      const what = `width ${format.width}: 0x${op.toString(16)} mode ${rounding}`;
      const expected = integer === 0n ? zero : fromHost(format, Number(integer));
      assert.equal(fpRoundInt(format, op, rounding, exact, 0, status), expected, what);
      assert.equal(status.flags, exact && !unchanged ? FPSR_IXC : 0, what);
    }
    const status = { flags: 0 };
    assert.equal(fpRoundInt(format, format.infinity, Rounding.ZERO, true, 0, status), format.infinity);
    assert.equal(status.flags, 0);
    const quieted = format.defaultNaN | 1n;
    assert.equal(fpRoundInt(format, format.infinity | 1n, Rounding.ZERO, true, 0, status), quieted);
    assert.equal(status.flags, FPSR_IOC);
  }
  const status = { flags: 0 };
  assert.equal(fpRoundInt(SINGLE, 0x8000_0001n, Rounding.NEGINF, true, FPCR_FZ, status), 0x8000_0000n);
  assert.equal(status.flags, FPSR_IDC);
});

test('to fixed point: every mode, width, sign and fraction, with saturation', (t) => {
  t.diagnostic(`seed ${SEED + 1}`);
  const random = new SeededRandom(SEED + 1);
  for (const format of FORMATS) {
    for (let i = 0; i < 5_000; i++) {
      const width = random.pick([32, 64] as const);
      const to: FixedPoint = {
        width, unsigned: random.below(2) === 1, fractionBits: random.below(2) === 1 ? 0 : random.below(width + 1),
      };
      const op = randomNearIntegers(format, random);
      if (!isFiniteEncoding(format, op)) continue;
      const rounding = random.pick(INTEGER_MODES);
      const [integer, unchanged] = referenceInteger(finiteValue(format, op), to.fractionBits, rounding);
      const min = to.unsigned ? 0n : -(2n ** BigInt(width - 1));
      const max = to.unsigned ? 2n ** BigInt(width) - 1n : 2n ** BigInt(width - 1) - 1n;
      const saturated = integer < min ? min : integer > max ? max : integer;
      const status = { flags: 0 };
      const what = `width ${format.width}: 0x${op.toString(16)} mode ${rounding} to ${JSON.stringify(to)}`;
      assert.equal(fpToFixed(format, op, to, rounding, 0, status), BigInt.asUintN(width, saturated), what);
      assert.equal(status.flags, saturated !== integer ? FPSR_IOC : unchanged ? 0 : FPSR_IXC, what);
    }
  }
});

test('to fixed point: infinities, NaNs, zeros and flushed denormals', () => {
  const signed: FixedPoint = { width: 64, unsigned: false, fractionBits: 0 };
  const unsigned: FixedPoint = { width: 32, unsigned: true, fractionBits: 0 };
  const cases: [bigint, FixedPoint, number, bigint, number][] = [
    [DOUBLE.infinity, signed, 0, 0x7fff_ffff_ffff_ffffn, FPSR_IOC],
    [DOUBLE.infinity | DOUBLE.signBit, signed, 0, 0x8000_0000_0000_0000n, FPSR_IOC],
    [DOUBLE.infinity, unsigned, 0, 0xffff_ffffn, FPSR_IOC],
    [DOUBLE.infinity | DOUBLE.signBit, unsigned, 0, 0n, FPSR_IOC],
    [DOUBLE.defaultNaN, signed, 0, 0n, FPSR_IOC],
    [DOUBLE.infinity | 1n, unsigned, 0, 0n, FPSR_IOC],
    [DOUBLE.signBit, unsigned, 0, 0n, 0],
    [1n, signed, 0, 0n, FPSR_IXC],
    [1n, signed, FPCR_FZ, 0n, FPSR_IDC],
    [fromHost(DOUBLE, -0.25), unsigned, 0, 0n, FPSR_IXC],
    [fromHost(DOUBLE, -1), unsigned, 0, 0n, FPSR_IOC],
  ];
  for (const [op, to, fpcr, result, flags] of cases) {
    const status = { flags: 0 };
    assert.equal(fpToFixed(DOUBLE, op, to, Rounding.TIEEVEN, fpcr, status), result, `0x${op.toString(16)}`);
    assert.equal(status.flags, flags, `0x${op.toString(16)} flags`);
  }
});

test('from fixed point, rounded once', (t) => {
  t.diagnostic(`seed ${SEED + 2}`);
  const random = new SeededRandom(SEED + 2);
  for (const format of FORMATS) {
    for (let i = 0; i < 2_000; i++) {
      const width = random.pick([32, 64] as const);
      const unsigned = random.below(2) === 1;
      const from: FixedPoint = { width, unsigned, fractionBits: random.below(2) === 1 ? 0 : random.below(width + 1) };
      const bits = BigInt.asUintN(width, random.u64() >> BigInt(random.below(width)));
      const value = unsigned ? bits : BigInt.asIntN(width, bits);
      const rounding = random.pick(MODES);
      const magnitude = { numerator: value < 0n ? -value : value, exponent: -from.fractionBits };
      const expected = value === 0n
        ? { bits: 0n, flags: 0 }
        : referenceRound(format, value < 0n, realDyadic(magnitude), rounding, false);
      const status = { flags: 0 };
      const what = `${value} ${JSON.stringify(from)} mode ${rounding} width ${format.width}`;
      assert.equal(fixedToFP(format, bits, from, rounding, 0, status), expected.bits, what);
      assert.equal(status.flags, expected.flags, what);
    }
  }
});

test('between formats: every mode and to odd, flushing, alternative half', (t) => {
  t.diagnostic(`seed ${SEED + 3}`);
  const random = new SeededRandom(SEED + 3);
  for (let i = 0; i < 6_000; i++) {
    const from = random.pick(FORMATS);
    const to = random.pick(FORMATS.filter((format) => format !== from));
    const rounding = random.pick([...MODES, Rounding.ODD] as const);
    const flush = random.below(2) === 1;
    const alternative = random.below(2) === 1;
    const op = random.below(2) === 1 ? randomFinite(from, random) : nearFormat(from, to, random);
    const value = finiteValue(from, op);
    const input = op & from.magnitudeMask;
    const inputFlushed = flush && from !== HALF && input !== 0n && input <= from.fractionMask;
    const { numerator, exponent } = value;
    const magnitude = { numerator: numerator < 0n ? -numerator : numerator, exponent };
    const negative = (op & from.signBit) !== 0n;
    const expected = input === 0n || inputFlushed
      ? { bits: negative ? to.signBit : 0n, flags: inputFlushed ? FPSR_IDC : 0 }
      : referenceRound(
        to, negative, realDyadic(magnitude), rounding, flush && to !== HALF, alternative && to === HALF);
    const fpcr = (flush ? FPCR_FZ : 0) | (alternative ? FPCR_AHP : 0);
    const status = { flags: 0 };
    const what = `${from.width} to ${to.width}: 0x${op.toString(16)} mode ${rounding} fpcr 0x${fpcr.toString(16)}`;
    assert.equal(fpConvert(from, to, op, fpcr, status, rounding), expected.bits, what);
    assert.equal(status.flags, expected.flags, `${what} flags`);
  }
});

/** A finite encoding of `from` with an exponent in the range of `to`, or a little outside. */
function nearFormat(from: Format, to: Format, random: SeededRandom): bigint {
  const span = 2 * to.bias + 2 * to.fractionBits + 8;
  const field = Math.min(Math.max(from.bias + random.below(span) - (span >> 1), 0), 2 * from.bias);
  return (randomFinite(from, random) & ~from.infinity) | (BigInt(field) << from.exponentShift);
}

test('half precision: all encodings to single and double and back', () => {
  for (let bits = 0n; bits < 0x1_0000n; bits++) {
    const status = { flags: 0 };
    const single = fpConvert(HALF, SINGLE, bits, 0, status);
    const double = fpConvert(HALF, DOUBLE, bits, 0, status);
    if (isNaNEncoding(HALF, bits)) {
      const quieted = bits | HALF.quietBit;
      assert.equal(status.flags, quieted === bits ? 0 : FPSR_IOC);
      assert.equal(fpConvert(SINGLE, HALF, single, 0, status), quieted);
      assert.equal(fpConvert(DOUBLE, HALF, double, 0, status), quieted);
      continue;
    }
    assert.equal(single, fromHost(SINGLE, toHost(HALF, bits)));
    assert.equal(double, fromHost(DOUBLE, toHost(HALF, bits)));
    assert.equal(fpConvert(SINGLE, HALF, single, 0, status), bits);
    // The alternative format differs in the top binade only, which holds finite numbers.
    const alternative = fpConvert(HALF, DOUBLE, bits, FPCR_AHP, status);
    const fraction = Number(bits & 0x3ffn);
    const expected = isFiniteEncoding(HALF, bits) ? toHost(HALF, bits) : 65536 * (1 + fraction / 1024);
    assert.equal(Math.abs(toHost(DOUBLE, alternative)), Math.abs(expected));
    assert.equal(fpConvert(DOUBLE, HALF, alternative, FPCR_AHP, status), bits);
    assert.equal(status.flags, 0);
  }
});

test('in the alternative top binade every encoding is a number', () => {
  for (let bits = 0x7c00n; bits < 0x8000n; bits++) {
    const status = { flags: 0 };
    const expected = fromHost(SINGLE, 65536 * (1 + Number(bits - 0x7c00n) / 1024));
    assert.equal(fpConvert(HALF, SINGLE, bits, FPCR_AHP, status), expected);
    assert.equal(fpConvert(HALF, SINGLE, bits | 0x8000n, FPCR_AHP, status), expected | SINGLE.signBit);
    assert.equal(fpConvert(SINGLE, HALF, expected, FPCR_AHP, status), bits);
    assert.equal(status.flags, 0);
  }
});

test('double to single is what the host rounds', (t) => {
  t.diagnostic(`seed ${SEED + 4}`);
  const random = new SeededRandom(SEED + 4);
  const samples = [...edgeEncodings(DOUBLE)];
  for (let i = 0; i < 5_000; i++) samples.push(randomEncoding(DOUBLE, random), nearFormat(DOUBLE, SINGLE, random));
  for (const bits of samples) {
    if (isNaNEncoding(DOUBLE, bits)) continue;
    const expected = fromHost(SINGLE, toHost(DOUBLE, bits));
    assert.equal(fpConvert(DOUBLE, SINGLE, bits, 0, { flags: 0 }), expected, `0x${bits.toString(16)}`);
  }
});

test('conversions of NaNs and infinities, and FCVTXN', () => {
  const cases: [Format, Format, bigint, number, bigint, number][] = [
    [DOUBLE, SINGLE, 0xfff0_0000_2000_0001n, 0, 0xffc0_0001n, FPSR_IOC],
    [DOUBLE, SINGLE, 0xfff8_0000_2000_0001n, 0, 0xffc0_0001n, 0],
    [DOUBLE, SINGLE, 0xfff8_0000_2000_0001n, FPCR_DN, 0x7fc0_0000n, 0],
    [SINGLE, DOUBLE, 0x7f80_0001n, 0, 0x7ff8_0000_2000_0000n, FPSR_IOC],
    [SINGLE, DOUBLE, 0x7f80_0001n, FPCR_DN, DOUBLE.defaultNaN, FPSR_IOC],
    [SINGLE, HALF, 0xffc0_2000n, 0, 0xfe01n, 0],
    [SINGLE, HALF, 0xffc0_2000n, FPCR_AHP, 0x8000n, FPSR_IOC],
    [SINGLE, HALF, 0xff80_0000n, FPCR_AHP, 0xffffn, FPSR_IOC],
    [SINGLE, HALF, 0xff80_0000n, 0, 0xfc00n, 0],
    [SINGLE, HALF, 0x7f7f_ffffn, 0, 0x7c00n, FPSR_OFC | FPSR_IXC],
    [SINGLE, HALF, 0x7f7f_ffffn, FPCR_AHP, 0x7fffn, FPSR_IOC],
    [SINGLE, HALF, 0x7f7f_ffffn, Rounding.ZERO << FPCR_RMODE_SHIFT, 0x7bffn, FPSR_OFC | FPSR_IXC],
  ];
  for (const [from, to, op, fpcr, result, flags] of cases) {
    const status = { flags: 0 };
    assert.equal(fpConvert(from, to, op, fpcr, status), result, `0x${op.toString(16)}`);
    assert.equal(status.flags, flags, `0x${op.toString(16)} flags`);
  }
  const odd = (value: number): [bigint, number] => {
    const status = { flags: 0 };
    return [fpConvert(DOUBLE, SINGLE, fromHost(DOUBLE, value), 0, status, Rounding.ODD), status.flags];
  };
  assert.deepEqual(odd(1), [0x3f80_0000n, 0]);
  assert.deepEqual(odd(1 + 2 ** -52), [0x3f80_0001n, FPSR_IXC]);
  assert.deepEqual(odd(1 + 2 ** -23 + 2 ** -24), [0x3f80_0001n, FPSR_IXC]);
  assert.deepEqual(odd(Number.MAX_VALUE), [0x7f7f_ffffn, FPSR_OFC | FPSR_IXC]);
  assert.deepEqual(odd(-Number.MIN_VALUE), [0x8000_0001n, FPSR_UFC | FPSR_IXC]);
});
