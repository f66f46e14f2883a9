import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Heap } from './heap.ts';
import type { MachineMemory } from './machine-memory.ts';
import { assertAudit, createMachine, mark, markOf, seed } from './test-memory.ts';

function allocateAll(heap: Heap, overwritten = false): number[] {
  const all: number[] = [];
  for (let mfn = heap.allocate(1, overwritten); mfn !== 0; mfn = heap.allocate(1, overwritten)) all.push(mfn);
  return all;
}

/** Every frame of the machine, marked and held. */
function fill(memory: MachineMemory, heap: Heap): number[] {
  const all = allocateAll(heap);
  all.forEach((mfn) => mark(memory, mfn, 0xbad));
  return all;
}

test('every frame can be had once, and then none', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  const total = memory.frameEnd - memory.firstFrame - 1;
  const all = allocateAll(heap);
  assert.equal(all.length, total);
  assert.equal(new Set(all).size, total);
  assert.equal(heap.allocate(2), 0);
  assert.equal(heap.allocateBlock(2, 1), 0);
  assert.equal(heap.chargedFrames(1), total);
  assertAudit(heap, { roots: [], held: all });
  all.forEach((mfn) => heap.release(mfn));
  const stats = heap.stats();
  assert.deepEqual([stats.used, stats.dirty], [0, total]);
  assertAudit(heap, { roots: [] });
});

test('a pin keeps a frame whose mappings come and go; one too many given back says which frame it was', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  const mfn = heap.allocate(3);
  assert.ok(heap.pin(mfn));
  heap.release(mfn);
  assert.throws(() => heap.frames.retain(mfn), { message: `retain of a frame without a mapping: frame ${mfn}, used, of account 3, count 10000` });
  for (const mappings of [1, 2]) {
    assert.ok(heap.frames.retainPinned(mfn));
    assert.equal(heap.frames.mappings(mfn), mappings);
  }
  assertAudit(heap, { roots: [], held: [mfn, mfn], pins: [mfn] });
  for (let i = 0; i < 2; i++) heap.release(mfn);
  heap.unpin(mfn);
  assert.throws(() => heap.frames.retainPinned(mfn), /retain of a frame without a pin/);
  assert.throws(() => heap.release(mfn), /release of a frame without a mapping/);
});

test('freed frames come back scrubbed, or as they are to who promises to overwrite them', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  fill(memory, heap).forEach((mfn) => heap.release(mfn));
  const old = heap.allocate(2, true);
  assert.equal(markOf(memory, old), 0xbad);
  heap.release(old); // the promise failed
  for (let mfn = heap.allocate(2); mfn !== 0; mfn = heap.allocate(2)) assert.equal(markOf(memory, mfn), 0);
});

test('scrubbing makes whole clean blocks again', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 3);
  const before = heap.stats();
  fill(memory, heap).forEach((mfn) => heap.releaseLater(mfn));
  heap.flushReleases();
  assert.equal(heap.scrubStep(128, () => true), 0);
  let scrubbed = 0;
  for (let step = heap.scrubStep(); step !== 0; step = heap.scrubStep()) scrubbed += step;
  assert.equal(scrubbed, before.total);
  assert.deepEqual(heap.stats(), before);
  assertAudit(heap, { roots: [] });
  assert.notEqual(heap.allocateBlock(1, 8), 0);
});

test('a scrubber that is told to stop returns what it did clean and the rest dirty', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  fill(memory, heap).forEach((mfn) => heap.release(mfn));
  const { dirty } = heap.stats();
  let asked = 0;
  assert.equal(heap.scrubStep(64, () => asked++ === 10), 10);
  assert.equal(heap.stats().dirty, dirty - 10);
  assert.equal(heap.stats().clean, 10);
  assertAudit(heap, { roots: [] });
});

test('allocators take clean and dirty frames out of a chunk under scrubbing, always zero', () => {
  const memory = createMachine();
  const scrubber = new Heap(memory, 0);
  const allocator = new Heap(memory, 1);
  const all = fill(memory, scrubber);
  const chunkStart = all.find((mfn) => mfn % 64 === 0)!;
  const held = all.filter((mfn) => mfn < chunkStart || mfn >= chunkStart + 64);
  for (let i = 0; i < 64; i++) scrubber.release(chunkStart + i);
  let frames = 0;
  const scrubbed = scrubber.scrubStep(64, () => {
    if (frames++ === 0) return false; // asked before the chunk is opened
    assert.equal(allocator.stats().scrubbing, 64 - 3 * (frames - 2));
    for (let i = 0; i < 3; i++) {
      const mfn = allocator.allocate(2);
      assert.ok(mfn >= chunkStart && mfn < chunkStart + 64);
      assert.equal(markOf(memory, mfn), 0);
      mark(memory, mfn, 0xf00d);
      held.push(mfn);
    }
    if (frames === 5) assertAudit(allocator, { roots: [], held });
    return frames > 16;
  });
  assert.equal(scrubbed, 16);
  held.forEach((mfn) => assert.ok([0xbad, 0xf00d].includes(markOf(memory, mfn))));
  assertAudit(allocator, { roots: [], held });
  for (let mfn = allocator.allocate(2); mfn !== 0; mfn = allocator.allocate(2)) {
    assert.equal(markOf(memory, mfn), 0);
    held.push(mfn);
  }
  assert.equal(held.length, all.length);
});

test('an agent without frames robs the caches of others', () => {
  const memory = createMachine();
  const rich = new Heap(memory, 0);
  const poor = new Heap(memory, 1);
  const held = allocateAll(rich);
  for (let i = 0; i < 5; i++) {
    const mfn = held.pop()!;
    memory.zeroFrame(mfn);
    rich.releaseUntouched(mfn);
  }
  assert.equal(rich.stats().cached, 5);
  for (let i = 0; i < 5; i++) held.push(poor.allocate(2));
  assert.equal(new Set(held).size, rich.stats().total);
  assert.equal(poor.allocate(2), 0);
  assert.equal(rich.allocate(2), 0);
  assertAudit(rich, { roots: [], held });
});

test('a new agent takes over the cache of an earlier one of its number', () => {
  const memory = createMachine();
  const first = new Heap(memory, 5).allocate(1);
  const again = new Heap(memory, 5);
  const { cached } = again.stats();
  assert.ok(cached > 0);
  const second = again.allocate(1);
  assert.equal(again.stats().cached, cached - 1);
  assertAudit(again, { roots: [], held: [first, second] });
});

test('pins keep a frame alive; a free frame cannot be pinned', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  const mfn = heap.allocate(1);
  assert.ok(heap.pin(mfn));
  heap.release(mfn);
  assert.equal(heap.stats().used, 1);
  assertAudit(heap, { roots: [], pins: [mfn] });
  heap.unpin(mfn);
  assert.equal(heap.stats().used, 0);
  for (let frame = memory.firstFrame + 1; frame < memory.frameEnd; frame++) assert.equal(heap.pin(frame), false);
  assert.ok(heap.pin(heap.zeroMfn));
  heap.unpin(heap.zeroMfn);
  assertAudit(heap, { roots: [] });
});

test('unpinning many frames frees those that nobody else uses, when the batch is handed in or full', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  const frames = Array.from({ length: 100 }, () => heap.allocate(1));
  for (const mfn of frames) {
    heap.pin(mfn);
    heap.release(mfn);
  }
  heap.pin(frames[0]!);
  for (const mfn of [...frames, heap.zeroMfn]) heap.unpinLater(mfn);
  assert.equal(heap.stats().dirty, 64, 'a full batch went back, the rest waits');
  heap.flushReleases();
  assert.equal(heap.stats().used, 1);
  assert.equal(heap.chargedFrames(1), 1);
  assertAudit(heap, { roots: [], pins: [frames[0]!] });
});

test('an untouched frame goes back clean, but dirty if somebody has it pinned', () => {
  const heap = new Heap(createMachine(), 0);
  const mfn = heap.allocate(1);
  heap.releaseUntouched(mfn);
  assert.deepEqual([heap.stats().dirty, heap.stats().used], [0, 0]);
  const again = heap.allocate(1);
  assert.equal(again, mfn);
  assert.ok(heap.pin(again));
  heap.releaseUntouched(again);
  assertAudit(heap, { roots: [], pins: [again] });
  heap.unpin(again);
  assert.deepEqual([heap.stats().dirty, heap.stats().used], [1, 0]);
});

test('counts stop at their limits instead of overflowing', () => {
  const heap = new Heap(createMachine(), 0);
  const mfn = heap.allocate(1);
  let mappings = 1;
  while (heap.frames.retain(mfn)) mappings++;
  let pins = 0;
  while (heap.pin(mfn)) pins++;
  assert.deepEqual([mappings, pins], [65535, 16383]);
  for (; pins > 0; pins--) heap.unpin(mfn);
  for (; mappings > 0; mappings--) heap.release(mfn);
  assert.equal(heap.stats().used, 0);
});

test('the audit finds what is wrong', () => {
  const memory = createMachine();
  const heap = new Heap(memory, 0);
  const [a, b] = [heap.allocate(1), heap.allocate(1)];
  const problems = (held: number[]) => assertFails(heap, held);
  assert.match(problems([a]), new RegExp(`frame ${b} is neither free nor in use`));
  assert.match(problems([a, b, b]), /has 2 mappings, but counts 1/);
  assert.match(problems([a, b, b + 100]), /free and in use/);
  heap.release(b);
  mark(memory, memory.frameEnd - 1, 1);
  assert.match(problems([a]), /clean frame \d+ is not zero/);
});

function assertFails(heap: Heap, held: number[]): string {
  try {
    assertAudit(heap, { roots: [], held });
  } catch (error) {
    return String(error);
  }
  return '';
}

type Step =
  | { op: 'allocate'; agent: number; order: number; overwritten: boolean; keep: boolean }
  | { op: 'retain' | 'pin' | 'drop' | 'touch'; agent: number; pick: number }
  | { op: 'scrub'; agent: number; maxFrames: number; stopAfter: number };

const agent = fc.integer({ min: 0, max: 2 });
const stepArbitrary: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fc.record({
    op: fc.constant('allocate' as const), agent, order: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 9 })),
    overwritten: fc.boolean(), keep: fc.boolean(),
  }) },
  { weight: 4, arbitrary: fc.record({
    op: fc.constantFrom('retain' as const, 'pin' as const, 'drop' as const, 'drop' as const, 'touch' as const),
    agent, pick: fc.nat(),
  }) },
  { weight: 1, arbitrary: fc.record({
    op: fc.constant('scrub' as const), agent, maxFrames: fc.integer({ min: 1, max: 200 }), stopAfter: fc.nat(140),
  }) },
);

test('random use by three agents: no overlap, nothing unscrubbed, nothing lost', (t) => {
  t.diagnostic(`seed ${seed}`);
  fc.assert(fc.property(fc.array(stepArbitrary, { minLength: 20, maxLength: 200 }), (steps) => {
    const memory = createMachine();
    const heaps = [new Heap(memory, 0), new Heap(memory, 1), new Heap(memory, 70)];
    /** Mark and uses of each frame in use: 'm' mappings and 'p' pins. */
    const model = new Map<number, { tag: number; uses: ('m' | 'p')[] }>();
    let tag = 1;
    for (const step of steps) {
      const heap = heaps[step.agent]!;
      if (step.op === 'scrub') {
        let asked = 0;
        heap.scrubStep(step.maxFrames, () => asked++ > step.stopAfter);
      } else if (step.op === 'allocate') {
        const first = heap.allocateBlock(step.agent + 1, step.order, step.overwritten);
        if (first === 0) {
          if (step.order === 0) assert.equal(model.size, heap.stats().total);
          continue;
        }
        assert.equal(first % 2 ** step.order, 0);
        for (let mfn = first; mfn < first + 2 ** step.order; mfn++) {
          assert.ok(!model.has(mfn), 'a frame was handed out twice');
          if (!step.overwritten) assert.equal(markOf(memory, mfn), 0);
          else memory.zeroFrame(mfn);
          if (!step.keep && !step.overwritten) {
            heap.releaseUntouched(mfn);
            continue;
          }
          mark(memory, mfn, ++tag);
          model.set(mfn, { tag, uses: ['m'] });
        }
      } else if (model.size > 0) {
        const mfn = [...model.keys()][step.pick % model.size]!;
        const frame = model.get(mfn)!;
        assert.equal(markOf(memory, mfn), frame.tag);
        if (step.op === 'touch') mark(memory, mfn, frame.tag = ++tag);
        else if (step.op === 'pin' && heap.pin(mfn)) frame.uses.push('p');
        else if (step.op === 'retain' && frame.uses.includes('m') && heap.frames.retain(mfn)) frame.uses.push('m');
        else if (step.op === 'drop') {
          if (frame.uses.splice(step.pick % frame.uses.length, 1)[0] === 'm') heap.release(mfn);
          else heap.unpin(mfn);
          if (frame.uses.length === 0) model.delete(mfn);
        }
      }
    }
    const listed = (use: 'm' | 'p') =>
      [...model].flatMap(([mfn, { uses }]) => uses.filter((u) => u === use).map(() => mfn));
    assertAudit(heaps[0]!, { roots: [], held: listed('m'), pins: listed('p') });
  }), { seed, numRuns: 60 });
});
