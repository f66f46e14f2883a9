// Loads and stores that reach over the border of two pages, against QEMU. Its scratch memory is one page, so it runs
// each case inside of it; Zazen runs the same case moved to the border of two virtual pages that are both this page,
// with the contents rotated to match.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fieldsOf } from '../../src/a64/row.ts';
import { rows } from '../../src/a64/table.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { SCRATCH_BYTES, copyState, diffStates } from './cpu-state.ts';
import type { CpuState } from './cpu-state.ts';
import { accessAt, existingVariants, hasBaseRegister } from './instruction-cases.ts';
import type { InstructionCase } from './instruction-cases.ts';
import { QemuOracle, SCRATCH_ADDRESS } from './qemu-oracle.ts';
import { DOUBLE_ADDRESS, ZazenRunner } from './zazen-runner.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 4);
/** The access starts at most so many bytes before the border: most sizes reach over it then. */
const BEFORE_BORDER_BYTES = 15;

/** Accesses of these groups are aligned, so they never reach over a border. */
const ALIGNED_GROUPS = new Set(['loads-stores-exclusive', 'atomics']);

console.log(`seed ${SEED} (ZAZEN_SEED sets it)`);

/** The address is in one register only, so that moving it changes nothing else. */
function movesAlone({ row, word }: InstructionCase): boolean {
  const { Rn, ...others } = fieldsOf(row, word);
  return row.fp ? others.Rm !== Rn : ![others.Rt, others.Rt2, others.Rm].includes(Rn);
}

function movedBase(state: CpuState, register: number, delta: bigint): void {
  if (register === 31) state.sp = BigInt.asUintN(64, state.sp + delta);
  else state.x[register] = BigInt.asUintN(64, state.x[register]! + delta);
}

/** Byte i goes to i + by. */
function rotated(memory: Uint8Array, by: number): Uint8Array {
  const at = ((by % SCRATCH_BYTES) + SCRATCH_BYTES) % SCRATCH_BYTES;
  const result = new Uint8Array(SCRATCH_BYTES);
  result.set(memory.subarray(0, SCRATCH_BYTES - at), at);
  result.set(memory.subarray(SCRATCH_BYTES - at), 0);
  return result;
}

test('accesses across a page border agree with QEMU', async () => {
  const random = new SeededRandom(SEED);
  const wanted = SCRATCH_ADDRESS + BigInt(SCRATCH_BYTES / 2);
  const cases = rows.filter(row => hasBaseRegister(row) && !ALIGNED_GROUPS.has(row.group))
    .flatMap(row => existingVariants(row).flatMap(statics => [0, 1].map(() => accessAt(row, statics, random, wanted)!)))
    .filter(movesAlone);
  const results = await (await QemuOracle.start()).run(cases);
  const runners = [new ZazenRunner('i32'), new ZazenRunner('i64')];
  cases.forEach(({ row, word, words, state, target }, i) => {
    const { Rn } = fieldsOf(row, word);
    const place = SCRATCH_BYTES - 1 - random.below(BEFORE_BORDER_BYTES);
    const delta = DOUBLE_ADDRESS + BigInt(place) - target;
    const by = place - Number(target - SCRATCH_ADDRESS);
    const moved = copyState(state);
    movedBase(moved, Rn!, delta);
    moved.memory = rotated(state.memory, by);
    const expected = copyState(results[i]!.state);
    movedBase(expected, Rn!, delta);
    expected.memory = rotated(expected.memory, by);
    const actual = runners[i % 2]!.run(words, moved, results[i]!.codeAddress);
    const what = `${row.name} (${word.toString(16)}), ${SCRATCH_BYTES - place} bytes before the border`;
    assert.equal(results[i]!.fault, undefined, what);
    assert.equal(actual.fault, undefined, what);
    assert.deepEqual(diffStates(expected, actual.state), [], what);
  });
});
