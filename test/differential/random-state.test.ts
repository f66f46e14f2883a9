// The generator reaches what it promises, and the comparison says what differs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { FPCR_MASK, FPSR_MASK, SCRATCH_BYTES, copyState, diffStates, emptyState } from './cpu-state.ts';
import { SCRATCH_ADDRESS } from './qemu-driver.ts';
import { edgeFloat, edgeInteger, randomState } from './random-state.ts';

test('the same seed gives the same state', () => {
  assert.deepEqual(randomState(new SeededRandom(7)), randomState(new SeededRandom(7)));
  assert.notDeepEqual(randomState(new SeededRandom(7)), randomState(new SeededRandom(8)));
});

test('states keep to defined control bits, an aligned SP and the asked-for pointers', () => {
  const random = new SeededRandom(9);
  const fpcrs = new Set<number>();
  for (let i = 0; i < 500; i++) {
    const state = randomState(random, { pointers: [3, 30] });
    fpcrs.add(state.fpcr);
    assert.equal(state.fpcr & ~FPCR_MASK, 0);
    assert.equal(state.fpsr & ~FPSR_MASK, 0);
    for (const pointer of [state.sp, state.x[3]!, state.x[30]!]) {
      assert.equal(pointer & 15n, 0n);
      assert.ok(pointer >= SCRATCH_ADDRESS && pointer < SCRATCH_ADDRESS + BigInt(SCRATCH_BYTES));
    }
  }
  assert.equal(fpcrs.size, 32, 'every combination of RMode, FZ, DN and AHP');
});

test('edge integers reach the extremes of each width', () => {
  const random = new SeededRandom(10);
  for (const bits of [8, 16, 32, 64]) {
    const seen = new Set(Array.from({ length: 2000 }, () => edgeInteger(random, bits)));
    const top = 1n << BigInt(bits - 1);
    for (const value of [0n, 1n, top, top - 1n, top + 1n, 2n * top - 1n, BigInt(bits - 1), BigInt(bits)]) {
      assert.ok(seen.has(BigInt.asUintN(bits, value)), `${value} of ${bits} bits`);
    }
    for (const value of seen) assert.ok(value >= 0n && value < 2n * top);
  }
});

test('edge floats reach every class of each format, with both signs', () => {
  const random = new SeededRandom(11);
  for (const [kind, exponentBits, fractionBits] of [
    ['float16', 5, 10], ['float32', 8, 23], ['float64', 11, 52],
  ] as const) {
    const classes = new Set<string>();
    for (let i = 0; i < 3000; i++) {
      const bits = edgeFloat(random, kind);
      assert.ok(bits >= 0n && bits < 1n << BigInt(1 + exponentBits + fractionBits));
      const sign = bits >> BigInt(exponentBits + fractionBits);
      const exponent = (bits >> BigInt(fractionBits)) & ((1n << BigInt(exponentBits)) - 1n);
      const fraction = bits & ((1n << BigInt(fractionBits)) - 1n);
      const quiet = fraction >> BigInt(fractionBits - 1);
      if (exponent === 0n) classes.add(`${fraction === 0n ? 'zero' : 'denormal'} ${sign}`);
      else if (exponent + 1n !== 1n << BigInt(exponentBits)) classes.add(`normal ${sign}`);
      else classes.add(`${fraction === 0n ? 'infinity' : quiet ? 'quiet NaN' : 'signalling NaN'} ${sign}`);
    }
    assert.equal(classes.size, 12, `${kind}: ${[...classes].join(', ')}`);
  }
});

test('diffStates names each difference and ignores undefined bits', () => {
  const expected = emptyState();
  assert.deepEqual(diffStates(expected, copyState(expected)), []);
  const actual = copyState(expected);
  actual.x[30] = 0xabcn;
  actual.nzcv = 0xa0000000;
  actual.fpcr = FPCR_MASK & (3 << 22) | 1 << 24 | 1 << 19;
  actual.fpsr = 0x11;
  actual.v[3] = 1n;
  actual.memory[100] = 5;
  assert.deepEqual(diffStates(expected, actual), [
    'x30: expected 0x0000000000000000, got 0x0000000000000abc',
    'nzcv: expected none, got N+C',
    'fpcr: expected RN+none, got RZ+FZ',
    'fpsr: expected none, got IXC+IOC',
    'v1: expected 0x0000000000000000_0000000000000000, got 0x0000000000000001_0000000000000000',
    'memory+0x64: expected bytes 00, got 05',
  ]);
});
