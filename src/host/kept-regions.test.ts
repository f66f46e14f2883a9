// What a guest needed when it booted is prepared for the next one, in another process's host, for as long as it is needed.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Assembler } from '../a64/test-assembler.ts';
import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { ENTERED } from '../cpu/jit/known-regions.ts';
import type { StoredRegion } from '../cpu/jit/region-store.ts';
import { GUEST_BASE, createTestMachine } from '../cpu/test-machine.ts';
import { KeptRegions } from './kept-regions.ts';

const at = vcpuRecord.at;
const folder = mkdtempSync(join(tmpdir(), 'zazen-kept-regions-'));
process.env['ZAZEN_REGION_STORE'] = folder;
after(() => rmSync(folder, { recursive: true }));

interface Boot {
  /** Entries of what was prepared for it. */
  readonly prepared: readonly number[];
  readonly found: number;
}

/** @param needs whether a region that was prepared is entered @param code that is run till all of it is hot */
function boot(needs: (region: StoredRegion) => boolean, code?: readonly number[]): Boot {
  const { machine } = createTestMachine();
  const kept = KeptRegions.open(machine)!;
  let prepared: readonly StoredRegion[] = [];
  let entered = new Uint8Array(0);
  kept.prepareBoot(regions => {
    prepared = regions;
    entered = new Uint8Array(regions.length);
    return { placed: regions, entered };
  });
  prepared.forEach((region, i) => { if (needs(region)) entered[i] = ENTERED; });
  if (code !== undefined) {
    const m = createTestMachine({ regions: { quantumMin: 500, store: kept.store } });
    m.load(GUEST_BASE, code);
    m.vcpu.setX(0, 20_000n);
    m.vcpu.set64(at.pcBase, BigInt(GUEST_BASE));
    for (let slices = 0; m.host.hypercalls.length === 0; slices++) {
      assert.ok(slices < 2000, 'the loop does not end');
      m.engine.run(m.vcpu, 1000 + slices % 19);
    }
  }
  let uses = 0;
  const use = kept.store.use.bind(kept.store);
  kept.store.use = region => { uses++; use(region); };
  for (let looks = 0; looks < 3; looks++) kept.notice();
  assert.equal(uses, prepared.filter(needs).length, 'what was entered before a look is noted by that one');
  kept.save();
  return { prepared: prepared.map(({ entry }) => entry), found: machine.u32[MACHINE_HEADER.at.foundRegions >>> 2]! };
}
/** A loop that begins at the given instruction. */
const loopAt = (index: number): number[] => {
  const code = new Assembler();
  for (let i = 0; i < index; i++) code.nop();
  return code.label('again').add(1, 1, 3).subs(0, 0, 1).bCond('ne', 'again').hvc(0).words();
};

test('what the last boot has emitted or entered is prepared, and no more than that', () => {
  assert.deepEqual(boot(() => true, loopAt(3)), { prepared: [], found: 0 });
  // The place where a loop is entered first may have become hot as well.
  const first = boot(() => true);
  assert.ok(first.prepared.includes(3), `prepared at ${first.prepared}`);
  assert.equal(first.found, first.prepared.length);
  assert.deepEqual(boot(({ entry }) => entry === 3, loopAt(7)).prepared, first.prepared);
  const second = boot(({ entry }) => entry === 7);
  assert.ok(second.prepared.includes(3) && second.prepared.includes(7), `prepared at ${second.prepared}`);
  assert.deepEqual(boot(() => false), { prepared: [7], found: 0 });
  assert.deepEqual(boot(() => true).prepared, []);
});
