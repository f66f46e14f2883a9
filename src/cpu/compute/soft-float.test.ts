// The helper's own work: requests, lanes in the scratch words, rounding modes and flags. What the operations compute is
// tested in cpu/fp.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { packRequest, roundingNames, softFloatOperations, softFloatWidths, unpackRequest } from '../../a64/soft-float.ts';
import type { SoftFloatRequest } from '../../a64/soft-float.ts';
import { FPCR_AHP, FPSR_DZC, FPSR_IXC } from '../fp/format.ts';
import { softFloat } from './soft-float.ts';

const SCRATCH = 64;

/** Runs a request on operands in words 0 to 5; gives the result's two words and the flags. */
function run(request: SoftFloatRequest, operands: readonly bigint[], fpcr = 0, fractionBits = 0) {
  const u64 = new BigUint64Array(32).fill(0xdead_beef_dead_beefn);
  operands.forEach((word, i) => { u64[SCRATCH / 8 + i] = word; });
  const context = { u64, u32: new Uint32Array(u64.buffer), scratch: SCRATCH, record: 0 };
  const flags = softFloat(context, packRequest(request), fpcr, fractionBits);
  return { result: [u64[SCRATCH / 8 + 6], u64[SCRATCH / 8 + 7]], flags };
}

test('a request is what it was before packing, whatever its parts', () => {
  for (const operation of softFloatOperations) {
    for (const rounding of roundingNames) {
      for (const from of softFloatWidths) {
        for (const to of softFloatWidths) {
          const request = { operation, from, to, lanes: 4, rounding, unsigned: from === 32, exact: to === 64 };
          assert.deepEqual(unpackRequest(packRequest(request)), request);
        }
      }
    }
  }
  const short = unpackRequest(packRequest({ operation: 'add', from: 32, lanes: 1 }));
  assert.deepEqual([short.to, short.rounding, short.unsigned, short.exact], [32, 'dynamic', false, false]);
});

test('lanes that count are computed, the rest of the result is zero', () => {
  const one = 0x3f800000n;
  const two = 0x40000000n;
  const operands = [(two << 32n) | one, (one << 32n) | two, (one << 32n) | one, (two << 32n) | two];
  const three = 0x40400000n;
  assert.deepEqual(run({ operation: 'add', from: 32, lanes: 4 }, operands),
    { result: [(three << 32n) | two, (three << 32n) | 0x40800000n], flags: 0 });
  assert.deepEqual(run({ operation: 'add', from: 32, lanes: 2 }, operands), { result: [(three << 32n) | two, 0n], flags: 0 });
  assert.deepEqual(run({ operation: 'add', from: 32, lanes: 1 }, operands), { result: [two, 0n], flags: 0 });
});

test('flags of all lanes are joined', () => {
  const one = 0x3ff0000000000000n;
  const three = 0x4008000000000000n;
  const { flags } = run({ operation: 'div', from: 64, lanes: 2 }, [one, one, 0n, three]);
  assert.equal(flags, FPSR_DZC | FPSR_IXC);
});

test('lanes change their width between operand and result', () => {
  const halves = 0x4200_4000_3c00_b800n; // 3, 2, 1, -0.5
  const singles = [0x3f800000_bf000000n, 0x40400000_40000000n];
  assert.deepEqual(run({ operation: 'convert', from: 16, to: 32, lanes: 4 }, [halves]).result, singles);
  assert.deepEqual(run({ operation: 'convert', from: 32, to: 16, lanes: 4 }, singles).result, [halves, 0n]);
});

test('the rounding mode is the request’s, or FPCR’s when dynamic', () => {
  const oneAndAHalf = 0x3ff8000000000000n;
  const integer = (rounding: SoftFloatRequest['rounding'], fpcr: number) =>
    run({ operation: 'toFixed', from: 64, lanes: 1, rounding }, [oneAndAHalf], fpcr).result[0];
  const up = 1 << 22;
  const down = 2 << 22;
  assert.equal(integer('dynamic', up), 2n);
  assert.equal(integer('dynamic', down), 1n);
  assert.equal(integer('negative', up), 1n);
  assert.equal(integer('positive', down | FPCR_AHP), 2n);
});

test('fraction bits scale fixed point both ways', () => {
  const oneAndAHalf = 0x3fc00000n;
  assert.equal(run({ operation: 'toFixed', from: 32, lanes: 1, rounding: 'zero' }, [oneAndAHalf], 0, 4).result[0], 24n);
  assert.equal(run({ operation: 'fixedToFP', from: 64, to: 32, lanes: 1 }, [24n], 0, 4).result[0], oneAndAHalf);
});
