// What the table lacks is what the guest is not shown: an instruction that QEMU's CPU executes and the table does not
// know must belong to a feature that the guest's CPU does not have. ZAZEN_SEED and ZAZEN_WORDS widen the search.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decode } from '../../src/a64/table.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { QemuOracle } from './qemu-oracle.ts';
import type { OracleCase } from './qemu-oracle.ts';
import { randomState } from './random-state.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 7);
const WORDS = Number(process.env['ZAZEN_WORDS'] ?? 12_000);
const ALL_REGISTERS = Array.from({ length: 31 }, (_, n) => n);

/** Mask, bits, what it is: features of the oracle's CPU (Neoverse N1) beyond the guest's. */
const OTHER_FEATURES: readonly (readonly [mask: number, bits: number, feature: string])[] = [
  [0x7fc00000, 0x1ec00000, 'FEAT_FP16: scalar, conversions'],
  [0xffc00000, 0x1fc00000, 'FEAT_FP16: three sources'],
  [0x9f60c400, 0x0e400400, 'FEAT_FP16: three registers'],
  [0xdf60c400, 0x5e400400, 'FEAT_FP16: scalar three registers'],
  [0x9f7e0c00, 0x0e780800, 'FEAT_FP16: two registers'],
  [0xdf7e0c00, 0x5e780800, 'FEAT_FP16: scalar two registers'],
  [0xbf7fcc00, 0x0e30c800, 'FEAT_FP16: across lanes'],
  [0xff7fcc00, 0x5e30c800, 'FEAT_FP16: scalar pairwise'],
  [0x9ff0fc00, 0x0f10e400, 'FEAT_FP16: fixed point to floating point'],
  [0x9ff0fc00, 0x0f10fc00, 'FEAT_FP16: floating point to fixed point'],
  [0xdff0fc00, 0x5f10e400, 'FEAT_FP16: scalar fixed point to floating point'],
  [0xdff0fc00, 0x5f10fc00, 'FEAT_FP16: scalar floating point to fixed point'],
  [0x9fc0b400, 0x0f001000, 'FEAT_FP16: FMLA, FMLS by element'],
  [0x9fc0f400, 0x0f009000, 'FEAT_FP16: FMUL, FMULX by element'],
  [0xdfc0b400, 0x5f001000, 'FEAT_FP16: scalar FMLA, FMLS by element'],
  [0xdfc0f400, 0x5f009000, 'FEAT_FP16: scalar FMUL, FMULX by element'],
  [0x9ff8fc00, 0x0f00fc00, 'FEAT_FP16: FMOV (vector, immediate); QEMU 7.2 takes the unallocated op = 1 for it too'],
  [0x9fe0fc00, 0x0e809400, 'FEAT_DotProd: SDOT, UDOT (vector)'],
  [0x9fc0f400, 0x0f80e000, 'FEAT_DotProd: SDOT, UDOT (by element)'],
];
const belongsElsewhere = (word: number): boolean =>
  OTHER_FEATURES.some(([mask, bits]) => ((word & mask) >>> 0) === bits);

/** Words of the whole encoding space, some with a run of bits cleared or set, which is where allocated ones lie. */
function randomWord(random: SeededRandom): number {
  const word = random.u32();
  const run = (2 ** random.below(11) - 1) << random.below(32);
  return random.pick([word, word & ~run, word | run]) >>> 0;
}

/** Exception generation, which QEMU answers with signals of its own. */
const isException = (word: number): boolean => word >>> 24 === 0xd4;

test('an instruction that QEMU has and the table lacks is of another feature', async () => {
  console.log(`seed ${SEED} (ZAZEN_SEED sets it), ${WORDS} words (ZAZEN_WORDS)`);
  const random = new SeededRandom(SEED);
  const cases: OracleCase[] = [];
  while (cases.length < WORDS) {
    const word = randomWord(random);
    if (isException(word) || belongsElsewhere(word) || decode(word) !== undefined) continue;
    cases.push({ words: [word], state: randomState(random, { pointers: ALL_REGISTERS }) });
  }
  const oracle = await QemuOracle.start();
  const results = await oracle.run(cases);
  const missing = cases.filter((_, i) => results[i]!.fault?.signal !== 'SIGILL').map(c => c.words[0]!.toString(16));
  assert.deepEqual(missing, []);
});
