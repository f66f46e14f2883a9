// The slots of the decode cache: what is in one when it is taken, and memory that is touched before that.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HANDLER_DECODE, HANDLER_END_OF_PAGE, HANDLER_UNDEFINED, SLOT_BYTES, SLOT_RECORDS } from '../abi/decode-cache.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import { DecodeCache } from './decode-cache.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { createTestMachine } from './test-machine.ts';
import { WordDecoder } from './word-decoder.ts';

test('a slot is empty when it is taken for the first time, and again when all have been given back', () => {
  const { machine } = createTestMachine();
  const cache = new DecodeCache(machine, new WordDecoder());
  const handlers = (slot: number): number[] =>
    Array.from({ length: SLOT_RECORDS }, (_, i) => machine.u16[(slot + i * RECORD_BYTES) / 2]!);
  const fresh = [...Array<number>(SLOT_RECORDS - 1).fill(HANDLER_DECODE), HANDLER_END_OF_PAGE];
  const frames = [0, 1, 2].map((i) => machine.firstFrame + i);
  for (let round = 0; round < 3; round++) {
    // The first of them are used again, the last never was.
    for (const mfn of frames.slice(0, round + 1)) {
      const slot = cache.slotFor(mfn);
      assert.deepEqual(handlers(slot), fresh, `round ${round}`);
      for (let i = 0; i < 1024; i += 64) cache.decodeRun(slot + i * RECORD_BYTES);
      assert.equal(machine.u16[slot / 2], HANDLER_UNDEFINED, 'the frame holds zeros');
    }
    cache.empty();
  }
});

for (const ahead of [false, true]) {
  test(`the system gives the memory of slots once: it is written before it is read${ahead ? ', and ahead of that' : ''}`, () => {
    const machine = MachineMemory.create({ sizeBytes: 96 * 2 ** 20, domainCount: 1, vcpuCount: 4, codeBytes: 32 * 2 ** 20 });
    const cache = new DecodeCache(machine, new WordDecoder());
    const { slots } = cache.capacity;
    const pages = slots * SLOT_BYTES / 4096;
    const before = process.resourceUsage().minorPageFault;
    for (let i = 0; i < slots; i++) {
      if (ahead) for (let isWanted = cache.wantAhead(); isWanted; isWanted = cache.wantsTouching) cache.touchAhead();
      const slot = cache.slotFor(machine.firstFrame + i);
      for (let record = slot; record < slot + 1024 * RECORD_BYTES; record += 256 * RECORD_BYTES) {
        assert.equal(machine.u16[record / 2], HANDLER_DECODE);
        machine.u16[record / 2] = HANDLER_UNDEFINED;
      }
    }
    // Twice as many where memory is read first: once for the page that all share, and once to write. The rest is V8's.
    const faults = process.resourceUsage().minorPageFault - before;
    assert.ok(faults < 1.6 * pages, `${faults} page faults for ${pages} pages`);
  });
}

test('slots are touched ahead of those in use, so many and no more, and what is in them stays', () => {
  const { machine } = createTestMachine();
  const cache = new DecodeCache(machine, new WordDecoder());
  const touchAll = (): number => {
    let steps = 0;
    assert.ok(!cache.wantsTouching, 'nobody has asked for more');
    for (let isWanted = cache.wantAhead(); isWanted; isWanted = cache.wantsTouching, steps++) cache.touchAhead();
    return steps;
  };
  const ahead = touchAll();
  assert.ok(ahead > 0 && ahead < cache.capacity.slots);
  const slots = [0, 1, 2].map((i) => cache.slotFor(machine.firstFrame + i));
  for (const slot of slots) cache.decodeRun(slot);
  assert.equal(touchAll(), slots.length);
  for (const slot of slots) assert.equal(machine.u16[slot / 2], HANDLER_UNDEFINED);
  cache.empty();
  assert.equal(touchAll(), 0);
  for (let mfn = machine.firstFrame; cache.slotsInUse < cache.capacity.slots; mfn++) cache.slotFor(mfn);
  assert.ok(!cache.wantAhead(), 'there are no more');
});
