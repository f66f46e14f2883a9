// A load or store that faults has changed no register and no flag, so that it can be executed again: for every row
// that has a base register, in each variant, accesses that lie behind the end of mapped memory or reach over it. (What
// a store wrote before the end stays; the architecture allows it.)

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rows } from '../../src/a64/table.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { SCRATCH_BYTES, diffStates } from './cpu-state.ts';
import { accessAt, existingVariants, hasBaseRegister } from './instruction-cases.ts';
import { SCRATCH_ADDRESS } from './qemu-oracle.ts';
import { CODE_ADDRESS, ZazenRunner } from './zazen-runner.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 3);
const END = SCRATCH_ADDRESS + BigInt(SCRATCH_BYTES);
const LARGEST_ACCESS_BYTES = 64;
const EC_DATA_ABORT = 0x24;
const DFSC_ALIGNMENT = 0x21;
const WNR = 1 << 6;

console.log(`seed ${SEED} (ZAZEN_SEED sets it)`);
const runner = new ZazenRunner('i32');

for (const [group, members] of Map.groupBy(rows.filter(hasBaseRegister), row => row.group)) {
  test(`${group}: faults are precise`, () => {
    const random = new SeededRandom(SEED);
    for (const row of members) {
      for (const statics of existingVariants(row)) {
        // At first wholly behind the end (SP, which is kept aligned, may lie 15 bytes lower), then around it.
        const distances = [16, 16 - random.below(16), -random.below(LARGEST_ACCESS_BYTES)];
        for (const distance of distances) {
          const found = accessAt(row, statics, random, END + BigInt(distance));
          assert.ok(found, row.name);
          const { words, state, target } = found;
          const { state: after, fault } = runner.run(words, state, CODE_ADDRESS);
          const what = `${row.name} (${words[0]!.toString(16)}) at the end of memory ${target - END}`;
          if (target >= END) assert.ok(fault, `${what} has to fault`);
          if (!fault) continue;
          assert.equal(fault.exceptionClass, EC_DATA_ABORT, what);
          assert.equal(fault.pc, CODE_ADDRESS, what);
          const isAlignment = (fault.esr & 0x3f) === DFSC_ALIGNMENT;
          const first = isAlignment || target >= END ? target : END;
          const far = fault.address;
          assert.ok(far >= first && far < first + BigInt(LARGEST_ACCESS_BYTES), `${what}: FAR ${far.toString(16)}`);
          if (/^(LD|ST)/.test(row.name) && group !== 'atomics') {
            assert.equal((fault.esr & WNR) !== 0, row.name.startsWith('ST'), `${what}: WnR`);
          }
          assert.deepEqual(diffStates({ ...state, memory: after.memory }, after), [], what);
        }
      }
    }
  });
}
