// Estimates against an independent definition in host arithmetic, the bounds that the manual promises, and known
// vectors.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../base/random.ts';
import * as estimate from './estimate.ts';
import type { Format } from './format.ts';
import {
  DOUBLE, FPCR_DN, FPCR_FZ, FPCR_RMODE_SHIFT, FPSR_DZC, FPSR_IDC, FPSR_IOC, FPSR_IXC, FPSR_OFC, FPSR_UFC, HALF,
  Rounding, SINGLE,
} from './format.ts';
import { randomFinite, toHost } from './test-fp-reference.ts';

const SEED = 0x5a7e0003;

type Unary = typeof estimate.fpRecipEstimate;

function check(
  operation: Unary, format: Format, op: bigint, result: bigint, flags: number, fpcr = 0,
): void {
  const status = { flags: 0 };
  const actual = operation(format, op, fpcr, status);
  assert.equal(actual.toString(16), result.toString(16), `${operation.name} 0x${op.toString(16)}`);
  assert.equal(status.flags, flags, `${operation.name} 0x${op.toString(16)} flags`);
}

test('the tables agree with their definition in real arithmetic', () => {
  // The result for the middle of the interval that the 9 bits name, rounded to 1/256.
  for (let a = 256; a < 512; a++) {
    const expected = Math.floor(256 / ((a + 0.5) / 512) + 0.5);
    assert.equal(estimate.unsignedRecipEstimate(((a << 23) | (a * 1237)) >>> 0) >>> 23, expected, `recip ${a}`);
  }
  for (let a = 128; a < 512; a++) {
    const middle = a < 256 ? (a + 0.5) / 512 : (Math.floor(a / 2) + 0.5) / 256;
    const expected = Math.floor(256 / Math.sqrt(middle) + 0.5);
    assert.equal(estimate.unsignedRSqrtEstimate((a << 23) >>> 0) >>> 23, expected, `rsqrt ${a}`);
  }
  assert.equal(estimate.unsignedRecipEstimate(0x8000_0000), 0xff80_0000);
  assert.equal(estimate.unsignedRecipEstimate(0xffff_ffff), 0x8000_0000);
  assert.equal(estimate.unsignedRecipEstimate(0x7fff_ffff), 0xffff_ffff);
  assert.equal(estimate.unsignedRSqrtEstimate(0x4000_0000), 0xff80_0000);
  assert.equal(estimate.unsignedRSqrtEstimate(0x3fff_ffff), 0xffff_ffff);
});

test('estimates are within 1/256 over the whole range, and raise nothing', (t) => {
  t.diagnostic(`seed ${SEED}`);
  const random = new SeededRandom(SEED);
  for (const format of [HALF, SINGLE, DOUBLE]) {
    for (let i = 0; i < 5_000; i++) {
      const bits = randomFinite(format, random);
      const value = toHost(format, bits);
      const what = `width ${format.width}: 0x${bits.toString(16)}`;
      const status = { flags: 0 };
      if (Math.abs(value) >= 2 ** (format.minExponent - 2)) {
        const product = value * toHost(format, estimate.fpRecipEstimate(format, bits, 0, status));
        // A denormal estimate loses up to two of its nine bits.
        assert.ok(Math.abs(product - 1) < (Math.abs(value) >= 2 ** -format.minExponent ? 1 / 64 : 1 / 256), what);
      }
      if (value > 0) {
        const root = toHost(format, estimate.fpRSqrtEstimate(format, bits, 0, status));
        assert.ok(Math.abs(root * Math.sqrt(value) - 1) < 1 / 256, what);
      }
      assert.equal(status.flags, 0, what);
    }
  }
});

test('FRECPE: known vectors and special cases', () => {
  const recip = estimate.fpRecipEstimate;
  check(recip, SINGLE, 0x3f80_0000n, 0x3f7f_8000n, 0);
  check(recip, SINGLE, 0x4040_0000n, 0x3eaa_8000n, 0);
  check(recip, DOUBLE, 0xc000_0000_0000_0000n, 0xbfdf_f000_0000_0000n, 0);
  check(recip, HALF, 0x3c00n, 0x3bfcn, 0);
  check(recip, SINGLE, 0x8000_0000n, 0xff80_0000n, FPSR_DZC);
  check(recip, SINGLE, 0xff80_0000n, 0x8000_0000n, 0);
  check(recip, SINGLE, 0x7f80_0001n, 0x7fc0_0001n, FPSR_IOC);
  check(recip, SINGLE, 0xffc0_0001n, 0x7fc0_0000n, 0, FPCR_DN);
  // 2^-128 is the smallest magnitude with a reciprocal estimate; below it the rounding mode decides.
  check(recip, SINGLE, 0x0020_0000n, 0x7f7f_8000n, 0);
  check(recip, SINGLE, 0x001f_ffffn, 0x7f80_0000n, FPSR_OFC | FPSR_IXC);
  check(recip, SINGLE, 0x801f_ffffn, 0xff7f_ffffn, FPSR_OFC | FPSR_IXC, Rounding.POSINF << FPCR_RMODE_SHIFT);
  check(recip, SINGLE, 0x801f_ffffn, 0xff80_0000n, FPSR_OFC | FPSR_IXC, Rounding.NEGINF << FPCR_RMODE_SHIFT);
  check(recip, SINGLE, 0x001f_ffffn, 0x7f7f_ffffn, FPSR_OFC | FPSR_IXC, Rounding.ZERO << FPCR_RMODE_SHIFT);
  check(recip, SINGLE, 0x0020_0000n, 0x7f80_0000n, FPSR_IDC | FPSR_DZC, FPCR_FZ);
  // From 2^126 up the estimate is denormal.
  check(recip, SINGLE, 0x7e80_0000n, 0x007f_c000n, 0);
  check(recip, SINGLE, 0x7f00_0000n, 0x003f_e000n, 0);
  check(recip, SINGLE, 0xfe80_0000n, 0x8000_0000n, FPSR_UFC, FPCR_FZ);
  check(recip, SINGLE, 0x7e7f_ffffn, 0x0080_0000n, 0, FPCR_FZ);
});

test('FRSQRTE and FRECPX: known vectors and special cases', () => {
  const rsqrt = estimate.fpRSqrtEstimate;
  check(rsqrt, SINGLE, 0x3f80_0000n, 0x3f7f_8000n, 0);
  check(rsqrt, SINGLE, 0x4000_0000n, 0x3f34_8000n, 0);
  check(rsqrt, SINGLE, 0x4080_0000n, 0x3eff_8000n, 0);
  check(rsqrt, SINGLE, 0x8000_0000n, 0xff80_0000n, FPSR_DZC);
  check(rsqrt, SINGLE, 0x7f80_0000n, 0n, 0);
  check(rsqrt, SINGLE, 0xff80_0000n, 0x7fc0_0000n, FPSR_IOC);
  check(rsqrt, SINGLE, 0xbf80_0000n, 0x7fc0_0000n, FPSR_IOC);
  check(rsqrt, SINGLE, 0x8000_0001n, 0xff80_0000n, FPSR_IDC | FPSR_DZC, FPCR_FZ);
  const recpx = estimate.fpRecpX;
  check(recpx, SINGLE, 0x3f80_1234n, 0x4000_0000n, 0);
  check(recpx, SINGLE, 0xc000_0000n, 0xbf80_0000n, 0);
  check(recpx, SINGLE, 0x8000_0001n, 0xff00_0000n, 0);
  check(recpx, SINGLE, 0x8000_0001n, 0xff00_0000n, FPSR_IDC, FPCR_FZ);
  check(recpx, DOUBLE, 0xfff0_0000_0000_0000n, 0x8000_0000_0000_0000n, 0);
  check(recpx, SINGLE, 0x7f80_0001n, 0x7fc0_0001n, FPSR_IOC);
});
