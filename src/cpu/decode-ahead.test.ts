// Decoding ahead of a guest: what is decoded, in which order pages may come, and that nobody looks at them any more when they
// are withdrawn.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { Assembler } from '../a64/test-assembler.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import { AHEAD_RUNS_MAX, DECODE_AHEAD } from '../abi/decode-ahead.ts';
import { DecodeAhead } from './decode-ahead.ts';
import type { CodeRuns } from './decode-ahead.ts';
import { DecodeCache } from './decode-cache.ts';
import { createTestMachine } from './test-machine.ts';
import { WordDecoder } from './word-decoder.ts';

const CODE = Uint32Array.from(new Assembler(0n).addReg(1, 1, 2).mov(3, 77).ldr(2, 1).str(1, 1).addReg(4, 5, 6).words());
const run = (first: number, count: number): number => (first << 6) | (count - 1);
const codeOf = (...pages: (readonly number[])[]): CodeRuns => {
  const runs = pages.flat();
  let end = 0;
  return { ends: Uint32Array.from(pages, (page) => end += page.length), runs: Uint16Array.from(runs) };
};

function setUp() {
  const { machine } = createTestMachine();
  const cache = new DecodeCache(machine, new WordDecoder());
  const ahead = new DecodeAhead(machine, cache);
  const frames = [0, 1, 2, 3].map((i) => machine.firstFrame + i);
  for (const mfn of frames) for (let i = 0; i < 1024; i++) machine.u32[mfn * 1024 + i] = CODE[i % CODE.length]!;
  const decoded = (mfn: number): number[] => {
    const bits = cache.decodedIn(mfn);
    return bits === undefined ? [] : Array.from({ length: 1024 }, (_, i) => i).filter((i) => ((bits[i >>> 5]! >>> (i & 31)) & 1) !== 0);
  };
  return { machine, cache, ahead, frames, decoded, owner: {} };
}

test('the runs of each page are decoded, as they would be when a vCPU gets there, and nothing else', () => {
  const { machine, cache, ahead, frames, decoded, owner } = setUp();
  const [a, b, other] = frames as [number, number, number];
  assert(!ahead.isWaiting && !ahead.step());
  ahead.offer(owner, codeOf([run(0, 3), run(1020, 4)], [], [run(500, 1)]));
  assert(!ahead.isWaiting);
  assert(ahead.arrived(owner, 0, [a, 0, b]));
  for (let page = 0; page < 2; page++) assert(ahead.isWaiting && ahead.step());
  assert(!ahead.isWaiting && !ahead.step());
  assert.deepEqual([decoded(a), decoded(b)], [[0, 1, 2, 1020, 1021, 1022, 1023], [500]]);
  const records = (mfn: number, first: number, count: number): number[] => {
    const lanes = (cache.knownSlot(mfn) + first * RECORD_BYTES) / 2;
    return [...machine.u16.subarray(lanes, lanes + count * (RECORD_BYTES / 2))];
  };
  cache.decodeRun(cache.slotFor(other));
  assert.deepEqual(records(a, 0, 3), records(other, 0, 3));
  assert.notDeepEqual(records(a, 0, 3), records(a, 3, 3));
});

test('what is decoded already stays as it is', () => {
  const { machine, cache, ahead, frames: [mfn], owner } = setUp();
  const record = cache.slotFor(mfn!) + 2 * RECORD_BYTES;
  // A region begins there.
  machine.u16[record / 2] = 54_321;
  ahead.offer(owner, codeOf([run(0, 5)]));
  ahead.arrived(owner, 0, [mfn!]);
  assert(ahead.step());
  assert.equal(machine.u16[record / 2], 54_321);
});

test('pages come in any order, a page without a frame is left out, and a later offer is in place of one before', () => {
  const { ahead, frames, decoded, owner } = setUp();
  const [a, b, c] = frames as [number, number, number];
  const pages = [0, 1, 2, 3].map((i) => [run(i, 1)]);
  ahead.offer(owner, codeOf(...pages));
  assert(!ahead.arrived(owner, 3, [c]));
  assert(!ahead.arrived(owner, 1, [b]), 'the first one is missing');
  assert(!ahead.isWaiting);
  assert(ahead.arrived(owner, 0, [a]));
  ahead.step();
  ahead.step();
  assert.deepEqual([decoded(a), decoded(b), decoded(c), ahead.isWaiting], [[0], [1], [], false]);
  assert(ahead.arrived(owner, 2, [0]));
  assert(ahead.step());
  assert.deepEqual([decoded(c), ahead.isWaiting], [[3], false]);
  // One that was not done with.
  ahead.offer(owner, codeOf([run(9, 1)]));
  ahead.arrived(owner, 0, [a]);
  const later = {};
  ahead.offer(later, codeOf([run(8, 1)]));
  assert(!ahead.isWaiting && !ahead.arrived(owner, 0, [a]));
  ahead.withdraw(owner);
  assert(ahead.arrived(later, 0, [b]));
  while (ahead.step());
  assert.deepEqual([decoded(a), decoded(b)], [[0], [1, 8]]);
});

test('there is room for as much as there may be, and what has no slot is left out', () => {
  const { machine, cache, ahead, frames: [mfn], decoded, owner } = setUp();
  ahead.offer(owner, codeOf(Array.from({ length: AHEAD_RUNS_MAX }, (_, i) => run(i % 1024, 1))));
  ahead.arrived(owner, 0, [mfn!]);
  assert(ahead.step());
  assert.equal(decoded(mfn!).length, 1024);
  for (let next = machine.firstFrame; cache.slotsInUse < cache.capacity.slots; next++) cache.slotFor(next);
  const last = machine.frameEnd - 1;
  ahead.offer(owner, codeOf([run(0, 1)]));
  ahead.arrived(owner, 0, [last]);
  assert(!ahead.step() && !ahead.isWaiting);
  assert.equal(cache.knownSlot(last), 0);
});

test('who withdraws waits for those who are at a page', { timeout: PATIENCE_MILLIS }, async () => {
  const { machine, ahead, frames: [mfn], owner } = setUp();
  const { offsetBytes } = machine.region('decodeAhead');
  const [workers, ready] = [(offsetBytes + DECODE_AHEAD.at.workers) / 4, (offsetBytes + DECODE_AHEAD.at.ready) / 4];
  ahead.offer(owner, codeOf([run(0, 1)]));
  ahead.arrived(owner, 0, [mfn!]);
  machine.u32[workers] = 1;
  // At its page until nothing more is to be taken.
  const thread = new Worker(`
    const { workerData: { memory, workers, ready } } = require('node:worker_threads');
    const words = new Uint32Array(memory.buffer);
    while (Atomics.load(words, ready) !== 0);
    Atomics.store(words, workers, 0);`, { eval: true, workerData: { memory: machine.memory, workers, ready } });
  await once(thread, 'online');
  ahead.withdraw(owner);
  assert.equal(machine.u32[workers], 0);
  assert(!ahead.isWaiting && !ahead.step());
  await once(thread, 'exit');
});
