// The expansion of FMOV's immediate against its closed form.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { expandFpImmediate } from './fp-immediate.ts';

/** (-1)^a × (16 + efgh) / 16 × 2^e, where e counts 1 … 4 for b = 0 and -3 … 0 for b = 1 as cd goes up. */
function closedForm(imm8: number): number {
  const cd = (imm8 >> 4) & 3;
  const exponent = imm8 & 0x40 ? cd - 3 : cd + 1;
  const magnitude = ((16 + (imm8 & 15)) / 16) * 2 ** exponent;
  return imm8 & 0x80 ? -magnitude : magnitude;
}

test('every immediate is the number of its closed form, single and double', () => {
  for (let imm8 = 0; imm8 < 256; imm8++) {
    const single = new Float32Array(new Uint32Array([Number(expandFpImmediate(imm8, 32))]).buffer)[0];
    const double = new Float64Array(new BigUint64Array([expandFpImmediate(imm8, 64)]).buffer)[0];
    assert.equal(single, closedForm(imm8));
    assert.equal(double, closedForm(imm8));
  }
});
