// Regions that are known in advance are entered where code is decoded, without a sample, wherever all of their instructions
// stand and nowhere else; and results and counts stay those of the interpreter.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FIRST_REGION } from '../../abi/decode-cache.ts';
import { Assembler } from '../../a64/test-assembler.ts';
import { MACHINE_HEADER } from '../../abi/machine-memory.ts';
import { GUEST_BASE, createTestMachine, runToHypercall } from '../test-machine.ts';
import type { TestMachine } from '../test-machine.ts';
import { KnownRegions, packRegions } from './known-regions.ts';
import { RegionStore, byWorth } from './region-store.ts';
import type { StoredRegion } from './region-store.ts';

const LOOPS = 2000;
const PAGE = 4096;
const OTHER_PAGE = 5;

const region = (entry: number, indices: readonly number[], words: readonly number[], followsCalls = false): StoredRegion =>
  ({ entry, indices, words: Uint32Array.from(words), followsCalls, body: () => undefined });

test('the best region of those whose instructions all stand there', () => {
  const [small, large, other, following] = [region(5, [5, 6], [1, 2]), region(5, [4, 5, 6, 9], [7, 1, 2, 3]), region(5, [5, 6], [1, 4]),
    region(5, [5, 6], [1, 2], true)];
  const filler = Array.from({ length: 300 }, (_, i) => region(100 + i, [100 + i], [1]));
  const page = new Uint32Array(2048);
  page.set([7, 1, 2, 0, 0, 3], 1024 + 4);
  const found = (regions: readonly StoredRegion[]): StoredRegion | undefined => {
    const ordered = [...filler, ...regions].toSorted(byWorth);
    return ordered[new KnownRegions(packRegions(ordered, 0)).find(5, page, 1024)];
  };
  assert.equal(found([small, large, other]), large);
  assert.equal(found([following, large]), following);
  page[1024 + 9] = 4;
  assert.equal(found([small, large, other]), small);
  page[1024 + 6] = 4;
  assert.equal(found([small, large, other]), other);
  page[1024 + 6] = 5;
  assert.equal(found([small, large, other]), undefined);
  const known = new KnownRegions(packRegions([...filler, small], 1000));
  assert.deepEqual([known.begins(5, 1), known.begins(5, 2), known.begins(6, 2)], [true, false, false]);
});

test('what is entered is said to whoever has sent the regions', () => {
  const packed = packRegions([region(1, [1], [1]), region(2, [2, 3], [1, 2])], 1000);
  const known = new KnownRegions(packed);
  assert.equal(known.enter(1), 1001);
  assert.deepEqual([[...packed.entered], [...known.indicesOf(1)]], [[0, 1], [2, 3]]);
});

/** x1 += constant twice, in a loop that counts x0 down: two blocks, with a way into the second that is taken every other time. */
const code = (constant: number): number[] => new Assembler().nop().label('again')
  .add(1, 1, constant).tbz(0, 0, 'odd').nop().label('odd').add(1, 1, constant).subs(0, 0, 1).bCond('ne', 'again').hvc(0).words();
const AGAIN = 1;
const ODD = 4;
const expected = (constant: number): { result: bigint; retired: bigint } =>
  ({ result: BigInt(2 * constant * LOOPS), retired: BigInt(5.5 * LOOPS + 2) });

function run(m: TestMachine, address = GUEST_BASE): { result: bigint; retired: bigint } {
  m.vcpu.setX(0, BigInt(LOOPS));
  m.vcpu.setX(1, 0n);
  const retired = runToHypercall(m, address, { instructions: 1000, slicesMax: 2000 });
  return { result: m.vcpu.x(1), retired };
}
const regionsIn = ({ engine, machine }: TestMachine, page: number): number[] => {
  const slot = engine.decodeCache.slotFor(machine.firstFrame + page);
  return [AGAIN, ODD].filter(index => machine.u16[(slot + index * 16) / 2]! >= FIRST_REGION);
};

/** A store of the regions that begin at both labels. */
function storeOf(constant: number): RegionStore {
  const store = new RegionStore();
  for (const quantumMin of [500, 501, 502, 503]) {
    const fresh = new RegionStore();
    const m = createTestMachine({ regions: { quantumMin, hotSamples: 1, store: fresh } });
    m.load(GUEST_BASE, code(constant));
    for (let i = 0; i < 4; i++) run(m);
    for (const each of fresh.takeFresh()) {
      if ([AGAIN, ODD].includes(each.entry) && !store.regions.some(({ entry }) => entry === each.entry)) store.learn(each);
    }
  }
  assert.deepEqual(store.regions.map(({ entry }) => entry).toSorted(), [AGAIN, ODD]);
  return store;
}

/** A machine that knows the store's regions, where nothing becomes hot and nobody looks for them in what has been decoded. */
function machineThatKnows(store: RegionStore): TestMachine {
  const m = createTestMachine({ regions: { hotSamples: 1e9, store } });
  m.machine.u32[MACHINE_HEADER.at.storedRegions >>> 2] = 0;
  m.translator!.prepare(store.regions.toSorted(byWorth));
  // What is known comes at the end of a slice.
  m.load(GUEST_BASE + OTHER_PAGE * PAGE, code(9));
  assert.deepEqual(run(m, GUEST_BASE + OTHER_PAGE * PAGE), expected(9));
  return m;
}

test('a known region is entered where its code is decoded, and one that begins within it as well', () => {
  const m = machineThatKnows(storeOf(3));
  m.load(GUEST_BASE, code(3));
  m.load(GUEST_BASE + PAGE, code(4));
  m.load(GUEST_BASE + 2 * PAGE, code(3));
  for (const [page, constant] of [3, 4, 3].entries()) {
    assert.deepEqual(run(m, GUEST_BASE + page * PAGE), expected(constant));
    assert.deepEqual(regionsIn(m, page), constant === 3 ? [AGAIN, ODD] : [], `in page ${page}`);
  }
});

test('a page that changes loses its known regions, and has them again when it is as it was', () => {
  const m = machineThatKnows(storeOf(3));
  for (const constant of [3, 5, 3, 6, 3]) {
    m.load(GUEST_BASE, code(constant));
    m.engine.decodeCache.invalidateLine(m.machine.firstFrame, 0, 64, action => action());
    assert.deepEqual(run(m), expected(constant));
    assert.deepEqual(regionsIn(m, 0), constant === 3 ? [AGAIN, ODD] : []);
  }
});

test('when all regions are given up, none is known any more: their numbers are used again', () => {
  const m = machineThatKnows(storeOf(3));
  m.load(GUEST_BASE, code(3));
  assert.deepEqual(run(m), expected(3));
  assert.deepEqual(regionsIn(m, 0), [AGAIN, ODD]);
  m.translator!.reset();
  m.load(GUEST_BASE + PAGE, code(3));
  assert.deepEqual(run(m, GUEST_BASE + PAGE), expected(3));
  assert.deepEqual(run(m), expected(3));
  assert.deepEqual([regionsIn(m, 0), regionsIn(m, 1)], [[], []]);
});
