// Stored regions are found where, and only where, all of their instructions stand; and the translator makes use of them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FIRST_REGION } from '../../abi/decode-cache.ts';
import { Assembler } from '../../a64/test-assembler.ts';
import { GUEST_BASE, createTestMachine, runToHypercall } from '../test-machine.ts';
import type { TestMachine } from '../test-machine.ts';
import { RegionStore } from './region-store.ts';
import type { StoredRegion } from './region-store.ts';

const LOOPS = 20_000;

const stored = (entry: number, indices: readonly number[], words: readonly number[], followsCalls = false): StoredRegion => ({
  entry, indices, words: Uint32Array.from(words), followsCalls, body: () => ({ bytes: new Uint8Array([entry]), unlikely: [] }),
});

test('a region is found where all its instructions stand at their places, the largest of several', () => {
  const store = new RegionStore();
  const [small, large, other] = [stored(5, [5, 6], [1, 2]), stored(5, [4, 5, 6, 9], [7, 1, 2, 3]), stored(5, [5, 6], [1, 4])];
  for (const region of [small, large, other]) store.learn(region);
  const page = new Uint32Array(1024);
  page.set([7, 1, 2, 0, 0, 3], 4);
  assert.equal(store.find(5, page), large);
  page[9] = 4;
  assert.equal(store.find(5, page), small);
  page[6] = 4;
  assert.equal(store.find(5, page), other);
  page[6] = 2;
  const following = stored(5, [5, 6], [1, 2], true);
  for (const region of [stored(5, [5], [1], true), following]) store.learn(region);
  assert.equal(store.find(5, page), following, 'one in which calls are followed comes first');
  assert.equal(store.find(6, page), undefined);
  page[6] = 5;
  assert.deepEqual(store.entriesIn(page), [5], 'by the word at the entry alone');
  page[5] = 5;
  assert.equal(store.find(5, page), undefined);
  assert.deepEqual(store.entriesIn(page), []);
});

test('many regions: each is found at its own place, and where the page begins in an array does not matter', () => {
  const store = new RegionStore();
  const regions = Array.from({ length: 3000 }, (_, n) => stored(n % 1000, [n % 1000], [Math.imul(n, 0x9e37_79b1) >>> 0]));
  for (const region of regions) store.learn(region);
  assert.equal(store.size, 3000);
  for (const region of regions) {
    const words = new Uint32Array(2048);
    words[1024 + region.entry] = region.words[0]!;
    assert.equal(store.find(region.entry, words, 1024), region);
    assert.ok(store.entriesIn(words, 1024).includes(region.entry));
  }
});

test('one whose code is lost is not found again', () => {
  const store = new RegionStore();
  const lost = { ...stored(0, [0, 1], [1, 2]), body: () => undefined };
  store.learn(lost);
  const page = new Uint32Array(1024);
  page.set([1, 2]);
  assert.equal(store.find(0, page), lost);
  assert.equal(store.take(lost), undefined);
  assert.equal(store.find(0, page), undefined);
  assert.equal(store.used.size, 0);
});

/** A store that knows what another one has been told. */
function laterThan(...stores: readonly RegionStore[]): RegionStore {
  const later = new RegionStore();
  for (const region of stores.flatMap(store => store.takeFresh())) later.learn(region);
  return later;
}

/** x1 += constant, in a loop that counts x0 down. */
const loop = (constant: number): number[] =>
  new Assembler().nop().label('again').add(1, 1, constant).subs(0, 0, 1).bCond('ne', 'again').hvc(0).words();

function run(m: TestMachine): { result: bigint; retired: bigint } {
  m.vcpu.setX(0, BigInt(LOOPS));
  m.vcpu.setX(1, 0n);
  const retired = runToHypercall(m, GUEST_BASE, { instructions: 10_000, slicesMax: 2000 });
  return { result: m.vcpu.x(1), retired };
}
const regionAt = ({ engine, machine }: TestMachine, index: number): boolean =>
  machine.u16[(engine.decodeCache.slotFor(machine.firstFrame) + index * 16) / 2]! >= FIRST_REGION;

test('what one machine has emitted another one finds, with the same result and count, and does not emit', () => {
  const store = new RegionStore();
  const first = createTestMachine({ regions: { quantumMin: 500, store } });
  first.load(GUEST_BASE, loop(3));
  const expected = { result: BigInt(3 * LOOPS), retired: BigInt(3 * LOOPS + 2) };
  assert.deepEqual(run(first), expected);
  const later = laterThan(store);
  assert.ok([...later.candidates(1, loop(3)[1]!)].length > 0, 'the loop was emitted');

  const second = createTestMachine({ regions: { quantumMin: 500, store: later } });
  second.load(GUEST_BASE, loop(3));
  assert.deepEqual(run(second), expected);
  assert.ok(regionAt(second, 1), 'the loop is a region');
  assert.ok(later.used.size > 0);
  assert.equal(later.takeFresh().some(({ entry }) => entry === 1), false, 'the loop was emitted again');

  // Code that differs in one word is other code.
  const third = createTestMachine({ regions: { quantumMin: 500, store: later } });
  third.load(GUEST_BASE, loop(4));
  assert.deepEqual(run(third), { ...expected, result: BigInt(4 * LOOPS) });
  assert.ok(later.takeFresh().some(({ entry }) => entry === 1));
});

function storeOf(constants: readonly number[]): RegionStore {
  return laterThan(...constants.map(constant => {
    const store = new RegionStore();
    const m = createTestMachine({ regions: { quantumMin: 500, store } });
    m.load(GUEST_BASE, loop(constant));
    run(m);
    return store;
  }));
}

test('a stored region is entered when a vCPU has got to its place, hot or not', () => {
  const neverHot = { quantumMin: 500, hotSamples: 1e9 };
  for (const store of [storeOf([3]), new RegionStore()]) {
    const m = createTestMachine({ regions: { ...neverHot, store } });
    m.load(GUEST_BASE, loop(3));
    assert.equal(run(m).result, BigInt(3 * LOOPS));
    assert.equal(regionAt(m, 1), store.size > 0);
  }
});

test('code that changes: of each of its contents the stored region is found, as often as it changes', () => {
  const store = storeOf([2, 3, 4]);
  const m = createTestMachine({ regions: { quantumMin: 500, quantumMax: 1000, store } });
  for (const constant of [2, 3, 4, 2, 4, 5, 3]) {
    m.load(GUEST_BASE, loop(constant));
    assert.deepEqual(run(m), { result: BigInt(constant * LOOPS), retired: BigInt(3 * LOOPS + 2) });
    assert.ok(regionAt(m, 1));
  }
  assert.equal(store.takeFresh().filter(({ entry }) => entry === 1).length, 1, 'one of them was not known');
});

test('where all regions are given up again and again, stored ones are found again, and nothing is added twice', () => {
  const store = storeOf([2, 3]);
  const m = createTestMachine({ regions: { quantumMin: 100, hotSamples: 1, regionCountMax: 2, store } });
  for (let round = 0; round < 4; round++) {
    for (const constant of [2, 3, 6]) {
      m.load(GUEST_BASE, loop(constant));
      assert.equal(run(m).result, BigInt(constant * LOOPS));
    }
  }
  assert.ok(m.translator!.resets > 2);
  assert.equal(store.takeFresh().filter(({ entry }) => entry === 1).length, 1);
});
