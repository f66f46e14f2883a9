import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Signedness } from './lanes.ts';
import { saturatingShiftLeft, shiftByRegister, shiftRight } from './shift.ts';
import { compile, fromLanes, lanesOf, saturate, vectorOf } from './test-lanes.ts';

const SIZES = [0, 1, 2, 3];
const SIGNS: Signedness[] = ['S', 'U'];
const options = { seed: 21, numRuns: 80 };

/** Exact shift: left by a positive count, right by a negative one, rounding half up if asked. */
function exactShift(value: bigint, count: bigint, round: boolean): bigint {
  if (count >= 0n) return value << count;
  return (value + (round ? 1n << (-count - 1n) : 0n)) >> -count;
}

test('shifts by each lane of a register', () => {
  for (const size of SIZES) {
    const bits = 8 << size;
    // Counts are the signed low bytes; what stands above them has no meaning.
    const anyCount = fc.oneof(fc.integer({ min: -bits - 1, max: bits + 1 }), fc.integer({ min: -128, max: 127 }));
    const counts = fc.array(fc.tuple(anyCount, fc.bigInt(0n, (1n << 56n) - 1n)), {
      minLength: 128 / bits, maxLength: 128 / bits,
    });
    for (const sign of SIGNS) {
      for (const [round, saturates] of [[false, false], [true, false], [false, true], [true, true]] as const) {
        const run = compile(size, 128, 2, (l, [a, b]) =>
          shiftByRegister(l, sign, a!, b!, { round, saturate: saturates }));
        fc.assert(fc.property(vectorOf(bits), counts, (a, pairs) => {
          const b = fromLanes(pairs.map(([count, above]) => above << 8n | BigInt(count & 0xff)), bits);
          const exacts = lanesOf(a, bits, sign).map((lane, k) => exactShift(lane, BigInt(pairs[k]![0]), round));
          const limited = exacts.map(value => saturates ? saturate(value, bits, sign) : value);
          const actual = run([a, b]);
          assert.equal(actual.value, fromLanes(limited, bits));
          assert.equal(actual.qc, limited.some((value, k) => value !== exacts[k]));
        }), options);
      }
    }
  }
});

test('right shifts by an immediate, up to the whole lane', () => {
  for (const size of SIZES) {
    const bits = 8 << size;
    for (const sign of SIGNS) {
      for (const round of [false, true]) {
        const run = compile(size, 128, 1, (l, [a], count) => shiftRight(l, sign, a!, count, round));
        fc.assert(fc.property(vectorOf(bits), fc.integer({ min: 1, max: bits }), (a, count) => {
          const expected = lanesOf(a, bits, sign).map(lane => exactShift(lane, BigInt(-count), round));
          assert.equal(run([a], count - 1).value, fromLanes(expected, bits));
        }), options);
      }
    }
  }
});

test('saturating left shifts by an immediate', () => {
  for (const size of SIZES) {
    const bits = 8 << size;
    for (const [kind, from, to] of [['S', 'S', 'S'], ['U', 'U', 'U'], ['SU', 'S', 'U']] as const) {
      const run = compile(size, 128, 1, (l, [a], count) => saturatingShiftLeft(l, kind, a!, count));
      fc.assert(fc.property(vectorOf(bits), fc.integer({ min: 0, max: bits - 1 }), (a, count) => {
        const exacts = lanesOf(a, bits, from).map(lane => lane << BigInt(count));
        const limited = exacts.map(value => saturate(value, bits, to));
        const actual = run([a], count);
        assert.equal(actual.value, fromLanes(limited, bits));
        assert.equal(actual.qc, limited.some((value, k) => value !== exacts[k]));
      }), options);
    }
  }
});
