import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  clampToHalf, countLeadingSigns, countLeadingZeros, doublingHighHalf, halvingAdd, halvingSub, pairwiseLongAdd, reduce,
  reverseBits, roundingHalvingAdd, saturatingAccumulate, saturatingAdd, saturatingNegation, saturatingSub,
} from './arithmetic.ts';
import type { BinaryOperation } from './forms.ts';
import type { Signedness } from './lanes.ts';
import { compile, fromLanes, lanesOf, saturate, vectorOf } from './test-lanes.ts';

const SIZES = [0, 1, 2, 3];
const SIGNS: Signedness[] = ['S', 'U'];

const options = { seed: 20, numRuns: 60 };

/** Compares a saturating or wrapping operation on two vectors with what it says of single lanes, in exact integers. */
function check(
  size: number, sign: Signedness, operation: BinaryOperation, exact: (a: bigint, b: bigint) => bigint,
  form: { saturates: boolean; second?: Signedness },
): void {
  const bits = 8 << size;
  for (const width of [128, 64, bits]) {
    const run = compile(size, width, 2, (l, [a, b]) => operation(l, a!, b!, b!));
    fc.assert(fc.property(vectorOf(bits), vectorOf(bits), (a, b) => {
      const bs = lanesOf(b, bits, form.second ?? sign);
      const exacts = lanesOf(a, bits, sign).map((lane, k) => exact(lane, bs[k]!));
      const limited = exacts.map(value => form.saturates ? saturate(value, bits, sign) : value);
      const actual = run([a, b]);
      assert.equal(actual.value, fromLanes(limited, bits));
      const inUse = width / bits;
      assert.equal(actual.qc, form.saturates && limited.slice(0, inUse).some((value, k) => value !== exacts[k]));
    }), options);
  }
}

for (const size of SIZES) {
  for (const sign of SIGNS) {
    test(`sums and differences, halved or saturated: ${sign}${8 << size}`, () => {
      check(size, sign, (l, a, b) => halvingAdd(l, sign, a, b), (a, b) => (a + b) >> 1n, { saturates: false });
      check(size, sign, (l, a, b) => roundingHalvingAdd(l, sign, a, b), (a, b) => (a + b + 1n) >> 1n,
        { saturates: false });
      check(size, sign, (l, a, b) => halvingSub(l, sign, a, b), (a, b) => (a - b) >> 1n, { saturates: false });
      check(size, sign, (l, a, b) => saturatingAdd(l, sign, a, b), (a, b) => a + b, { saturates: true });
      check(size, sign, (l, a, b) => saturatingSub(l, sign, a, b), (a, b) => a - b, { saturates: true });
      check(size, sign, (l, a, b) => saturatingAccumulate(l, sign, a, b), (a, b) => a + b,
        { saturates: true, second: sign === 'S' ? 'U' : 'S' });
    });
  }

  test(`counts and saturating negation: ${8 << size} bits`, () => {
    const bits = 8 << size;
    check(size, 'S', (l, a) => saturatingNegation(l, a, l.neg(a)), a => -a, { saturates: true });
    check(size, 'S', (l, a) => saturatingNegation(l, a, l.abs(a)), a => a < 0n ? -a : a, { saturates: true });
    if (size === 3) return; // CLZ and CLS have no lanes of 64 bits
    const leadingZeros = (a: bigint) => a === 0n ? bits : bits - a.toString(2).length;
    check(size, 'U', (l, a) => countLeadingZeros(l, a), a => BigInt(leadingZeros(a)), { saturates: false });
    check(size, 'S', (l, a) => countLeadingSigns(l, a), a => BigInt(leadingZeros(a < 0n ? ~a : a) - 1),
      { saturates: false });
  });
}

test('high half of the doubled product', () => {
  for (const size of [1, 2]) {
    const bits = BigInt(8 << size);
    const half = 1n << (bits - 1n);
    check(size, 'S', (l, a, b) => doublingHighHalf(l, a, b, { round: false }), (a, b) => (2n * a * b) >> bits,
      { saturates: true });
    check(size, 'S', (l, a, b) => doublingHighHalf(l, a, b, { round: true }), (a, b) => (2n * a * b + half) >> bits,
      { saturates: true });
    for (const accumulate of ['add', 'sub'] as const) {
      const factor = accumulate === 'add' ? 2n : -2n;
      check(size, 'S', (l, a, b) => doublingHighHalf(l, a, b, { round: true, accumulate, accumulator: a }),
        (a, b) => ((a << bits) + factor * a * b + half) >> bits, { saturates: true });
    }
  }
});

test('narrowing by saturation', () => {
  for (const size of [1, 2, 3]) {
    const bits = 8 << size;
    for (const [kind, from, to] of [['SS', 'S', 'S'], ['UU', 'U', 'U'], ['SU', 'S', 'U']] as const) {
      const run = compile(size, 128, 1, (l, [a]) => clampToHalf(l, kind, a!));
      fc.assert(fc.property(fc.oneof(vectorOf(bits), vectorOf(bits / 2)), a => {
        const exacts = lanesOf(a, bits, from);
        const limited = exacts.map(value => saturate(value, bits / 2, to));
        const actual = run([a]);
        assert.deepEqual(lanesOf(actual.value, bits, from), limited);
        assert.equal(actual.qc, limited.some((value, k) => value !== exacts[k]));
      }), options);
    }
  }
});

test('sums of neighbours and over all lanes', () => {
  const sum = (values: readonly bigint[]) => values.reduce((a, b) => a + b, 0n);
  for (const size of [1, 2, 3]) {
    const bits = 8 << size;
    for (const sign of SIGNS) {
      const run = compile(size, 128, 1, (l, [a]) => pairwiseLongAdd(l, sign, a!));
      fc.assert(fc.property(vectorOf(bits / 2), a => {
        const narrow = lanesOf(a, bits / 2, sign);
        const expected = Array.from({ length: 128 / bits }, (_, k) => sum(narrow.slice(2 * k, 2 * k + 2)));
        assert.equal(run([a]).value, fromLanes(expected, bits));
      }), options);
    }
    for (const width of [128, 64]) {
      const run = compile(size, width, 1, (l, [a]) => reduce(l, a!, (x, y) => l.add(x, y)));
      fc.assert(fc.property(vectorOf(bits), a => {
        const expected = sum(lanesOf(a, bits, 'U').slice(0, width / bits));
        assert.equal(lanesOf(run([a]).value, bits, 'U')[0], BigInt.asUintN(bits, expected));
      }), options);
    }
  }
});

test('bits of bytes reversed', () => {
  const run = compile(0, 128, 1, (_, [a]) => reverseBits(a!));
  const reversed = (byte: bigint) => BigInt(`0b${byte.toString(2).padStart(8, '0').split('').toReversed().join('')}`);
  fc.assert(fc.property(vectorOf(8), a => {
    assert.equal(run([a]).value, fromLanes(lanesOf(a, 8, 'U').map(reversed), 8));
  }), options);
});
