// Comparisons, minimum and maximum, against the host's and against known vectors for NaNs and zeros.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../base/random.ts';
import * as compare from './compare.ts';
import type { Format } from './format.ts';
import { DOUBLE, FPCR_DN, FPCR_FZ, FPSR_IDC, FPSR_IOC, HALF, SINGLE } from './format.ts';
import { edgeEncodings, fromHost, isNaNEncoding, randomEncoding, toHost } from './test-fp-reference.ts';

const SEED = 0x5a7e0002;

function isSignaling(format: Format, bits: bigint): boolean {
  return isNaNEncoding(format, bits) && (bits & format.quietBit) === 0n;
}

function hostNzcv(x: number, y: number): number {
  if (x === y) return 0b0110;
  if (x < y) return 0b1000;
  return x > y ? 0b0010 : 0b0011;
}

function checkPair(format: Format, a: bigint, b: bigint): void {
  const [x, y] = [toHost(format, a), toHost(format, b)];
  const what = `width ${format.width}: 0x${a.toString(16)} 0x${b.toString(16)}`;
  const anyNaN = Number.isNaN(x) || Number.isNaN(y) ? FPSR_IOC : 0;
  const signaling = isSignaling(format, a) || isSignaling(format, b) ? FPSR_IOC : 0;
  const run = <T>(flags: number, expected: T, operation: (status: { flags: number }) => T): void => {
    const status = { flags: 0 };
    assert.equal(operation(status), expected, what);
    assert.equal(status.flags, flags, `${what} flags`);
  };
  run(signaling, hostNzcv(x, y), (status) => compare.fpCompare(format, a, b, false, 0, status));
  run(anyNaN, hostNzcv(x, y), (status) => compare.fpCompare(format, a, b, true, 0, status));
  run(signaling, x === y, (status) => compare.fpCompareEQ(format, a, b, 0, status));
  run(anyNaN, x >= y, (status) => compare.fpCompareGE(format, a, b, 0, status));
  run(anyNaN, x > y, (status) => compare.fpCompareGT(format, a, b, 0, status));
  if (anyNaN !== 0) return;
  run(0, fromHost(format, Math.max(x, y)), (status) => compare.fpMax(format, a, b, 0, status));
  run(0, fromHost(format, Math.min(x, y)), (status) => compare.fpMin(format, a, b, 0, status));
  run(0, fromHost(format, Math.max(x, y)), (status) => compare.fpMaxNum(format, a, b, 0, status));
  run(0, fromHost(format, Math.min(x, y)), (status) => compare.fpMinNum(format, a, b, 0, status));
}

test('comparisons, minimum and maximum are what the host finds', (t) => {
  t.diagnostic(`seed ${SEED}`);
  const random = new SeededRandom(SEED);
  for (const format of [HALF, SINGLE, DOUBLE]) {
    const edges = edgeEncodings(format);
    for (const a of edges) for (const b of edges) checkPair(format, a, b);
    for (let i = 0; i < 3_000; i++) {
      const a = randomEncoding(format, random);
      checkPair(format, a, randomEncoding(format, random, a));
    }
  }
});

test('NaNs in minimum and maximum', () => {
  const q1 = 0x7fc0_0001n;
  const q2 = 0xffc0_0002n;
  const s1 = 0x7f80_0003n;
  const one = 0x3f80_0000n;
  const check = (operation: typeof compare.fpMax, op1: bigint, op2: bigint, result: bigint, flags: number): void => {
    const status = { flags: 0 };
    assert.equal(operation(SINGLE, op1, op2, 0, status), result, operation.name);
    assert.equal(status.flags, flags);
  };
  for (const operation of [compare.fpMax, compare.fpMin]) {
    check(operation, one, q1, q1, 0);
    check(operation, q1, q2, q1, 0);
    check(operation, q1, s1, 0x7fc0_0003n, FPSR_IOC);
  }
  for (const operation of [compare.fpMaxNum, compare.fpMinNum]) {
    check(operation, one, q1, one, 0);
    check(operation, q2, one, one, 0);
    check(operation, q2, SINGLE.infinity, SINGLE.infinity, 0);
    check(operation, q2, SINGLE.infinity | SINGLE.signBit, SINGLE.infinity | SINGLE.signBit, 0);
    check(operation, q1, q2, q1, 0);
    check(operation, one, s1, 0x7fc0_0003n, FPSR_IOC);
    check(operation, q1, s1, 0x7fc0_0003n, FPSR_IOC);
  }
  assert.equal(compare.fpMax(SINGLE, q2, one, FPCR_DN, { flags: 0 }), SINGLE.defaultNaN);
  assert.equal(compare.fpMaxNum(SINGLE, q2, one, FPCR_DN, { flags: 0 }), one);
});

test('flushed denormals compare as zeros', () => {
  const status = { flags: 0 };
  assert.equal(compare.fpCompare(SINGLE, 1n, 0x8000_0001n, false, FPCR_FZ, status), compare.NZCV_EQUAL);
  assert.equal(status.flags, FPSR_IDC);
  assert.equal(compare.fpMax(SINGLE, 1n, 0x8000_0000n, FPCR_FZ, status), 0n);
  assert.equal(compare.fpMin(SINGLE, 1n, 0x8000_0001n, FPCR_FZ, status), 0x8000_0000n);
  status.flags = 0;
  assert.equal(compare.fpCompare(HALF, 1n, 0n, false, FPCR_FZ, status), compare.NZCV_GREATER);
  assert.equal(compare.fpMax(HALF, 1n, 0n, FPCR_FZ, status), 1n);
  assert.equal(status.flags, 0);
});
