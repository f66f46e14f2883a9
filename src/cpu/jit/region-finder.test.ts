import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RECORD_BYTES } from '../../a64/operand.ts';
import { DecodeCache } from '../decode-cache.ts';
import { createTestMachine } from '../test-machine.ts';
import { WordDecoder } from '../word-decoder.ts';
import { RegionFinder } from './region-finder.ts';
import { PAGE_INSTRUCTIONS } from './region.ts';
import { RegionStore } from './region-store.ts';

const NOP = 0xd503_201f;
const RET = 0xd65f_03c0;
const ENTRY = 3;

test('a place is found once, when a vCPU has got there, if all of a region stands around it', () => {
  const { machine } = createTestMachine();
  const cache = new DecodeCache(machine, new WordDecoder());
  const store = new RegionStore();
  store.learn({ entry: ENTRY, indices: [ENTRY, ENTRY + 1], words: Uint32Array.of(NOP, RET), followsCalls: false, body: () => undefined });
  const finder = new RegionFinder(machine, cache, store);
  const page = (mfn: number, ...words: number[]): number => {
    machine.u32.fill(NOP, mfn * PAGE_INSTRUCTIONS, (mfn + 1) * PAGE_INSTRUCTIONS);
    machine.u32.set(words, mfn * PAGE_INSTRUCTIONS + ENTRY);
    return cache.slotFor(mfn);
  };
  const mfn = machine.firstFrame;
  const look = (): unknown => finder.look().map(found => [found.page.mfn, found.entries]);
  const same = page(mfn, NOP, RET);
  const other = page(mfn + 1, NOP, NOP);
  assert.deepEqual(look(), [], 'nobody has been there');
  for (const slot of [same, other]) cache.decodeRun(slot + ENTRY * RECORD_BYTES);
  assert.deepEqual(look(), [[mfn, [ENTRY]]]);
  assert.deepEqual(look(), []);
  // What stands there changes, and is looked at anew.
  machine.u32[(mfn + 1) * PAGE_INSTRUCTIONS + ENTRY + 1] = RET;
  cache.invalidateLine(mfn + 1, 0, 64, action => action());
  assert.deepEqual(look(), [], 'nobody has been there since');
  cache.decodeRun(other + ENTRY * RECORD_BYTES);
  assert.deepEqual(look(), [[mfn + 1, [ENTRY]]]);
  assert.equal(finder.hasMore, false);
});
