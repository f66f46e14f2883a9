import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_WORDS, GFN_LIMIT, P2M_KIND, P2M_READ_ONLY } from '../abi/machine-memory.ts';
import { Heap } from './heap.ts';
import { PageLoader } from './image-pages.ts';
import { NOT_MEMORY, OUT_OF_FRAMES, P2m, PAGE_LOST, READ_ONLY, entryKind, entryValue } from './p2m.ts';
import { makeEntry } from './p2m-nodes.ts';
import { assertAudit, createMachine, mark, markOf, seed } from './test-memory.ts';

const GIB_GFNS = 2 ** 18;

function setUp(sizeBytes = 4 * 1024 * 1024) {
  const memory = createMachine({ sizeBytes });
  const heap = new Heap(memory, 0);
  return { memory, heap, p2m: new P2m(heap) };
}

function releaseAll(heap: Heap, p2m: P2m, root: number, maxFrames = 1_000_000): number {
  let steps = 0;
  p2m.release(root);
  while (heap.tearDown.step(maxFrames)) steps++;
  assert.ok(!heap.tearDown.isPending);
  return steps;
}

test('a new domain of any size costs one frame and its tables', () => {
  const { heap, p2m } = setUp();
  const root = p2m.create(1);
  assert.ok(p2m.mapZeroRange(root, GIB_GFNS, 3 * GIB_GFNS));
  assert.equal(heap.stats().used, 1);
  assert.ok(p2m.mapZeroRange(root, 5 * GIB_GFNS, 100 * 1024 * 1024 / 4096));
  assert.equal(heap.stats().used, 2);
  assert.ok(!p2m.stale);
  for (const gfn of [GIB_GFNS, 4 * GIB_GFNS - 1, 5 * GIB_GFNS + 25599]) {
    const entry = p2m.lookup(root, gfn);
    assert.deepEqual([entryKind(entry), entryValue(entry)], [P2M_KIND.zero, heap.zeroMfn]);
  }
  const outside = [0, GIB_GFNS - 1, 4 * GIB_GFNS, 5 * GIB_GFNS + 25600, GFN_LIMIT - 1, GFN_LIMIT, -1, NaN, 2 ** 40];
  for (const gfn of outside) {
    assert.equal(p2m.lookup(root, gfn), P2M_KIND.absent);
    assert.equal(p2m.frameForWrite(root, gfn), NOT_MEMORY);
  }
  assertAudit(heap, { roots: [root] });
  releaseAll(heap, p2m, root);
  assert.equal(heap.stats().used, 0);
});

test('the first write brings a clean frame and makes no translation stale', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 1000);
  const mfn = p2m.frameForWrite(root, 999);
  assert.ok(mfn > 0 && !p2m.stale);
  assert.equal(markOf(memory, mfn), 0);
  p2m.releaseStale();
  assert.equal(p2m.frameForWrite(root, 999), mfn);
  assert.ok(!p2m.stale);
  assert.equal(entryValue(p2m.lookup(root, 999)), mfn);
  assert.equal(entryKind(p2m.lookup(root, 998)), P2M_KIND.zero);
  assert.equal(heap.chargedFrames(1), heap.stats().used);
  assertAudit(heap, { roots: [root] });
});

test('sharing costs one frame; writes copy; what was shared stays as it was', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 4096);
  for (let gfn = 0; gfn < 100; gfn++) mark(memory, p2m.frameForWrite(root, gfn), 1000 + gfn);
  p2m.releaseStale();
  const before = heap.stats().used;
  const checkpoint = p2m.share(root, 2);
  assert.equal(heap.stats().used, before + 1);
  const old = entryValue(p2m.lookup(root, 7));
  const fresh = p2m.frameForWrite(root, 7);
  assert.ok(p2m.stale && fresh !== old);
  assert.equal(markOf(memory, fresh), 1007);
  mark(memory, fresh, 5);
  assert.equal(entryValue(p2m.lookup(checkpoint, 7)), old);
  assert.equal(markOf(memory, old), 1007);
  assertAudit(heap, { roots: [root, checkpoint], pins: [old] });
  p2m.releaseStale();
  assert.equal(heap.stats().used, before + 4); // two nodes and a frame were copied
  releaseAll(heap, p2m, root);
  assertAudit(heap, { roots: [checkpoint] });
  assert.equal(p2m.frameForWrite(checkpoint, 7), old); // exclusive again, so nothing is copied
  for (let gfn = 0; gfn < 100; gfn++) assert.equal(markOf(memory, entryValue(p2m.lookup(checkpoint, gfn))), 1000 + gfn);
  releaseAll(heap, p2m, checkpoint);
  assert.equal(heap.stats().used, 0);
});

test('differences from a frozen tree are good until the tree changes; looking for them survives that it does', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 4096);
  for (let gfn = 0; gfn < 1000; gfn += 10) mark(memory, p2m.frameForWrite(root, gfn), gfn);
  const frozen = p2m.share(root, 2);
  const places = new Uint32Array(100);
  const before = p2m.sequence(root);
  assert.equal(p2m.differences(root, frozen, places), 0);
  assert.ok(p2m.isAsOf(root, before));
  for (const gfn of [30, 50, 700]) p2m.frameForWrite(root, gfn);
  p2m.releaseStale();
  assert.ok(!p2m.isAsOf(root, before), 'the tree has changed');
  const now = p2m.sequence(root);
  assert.equal(p2m.differences(root, frozen, places), 3);
  assert.ok(p2m.isAsOf(root, now));
  assert.ok(!p2m.isAsOf(root, now | 1), 'what is found in the middle of a change is worth nothing');
  // A node that was freed under the look, and holds anything by now.
  const node = entryValue(memory.u32[root * FRAME_WORDS]!);
  const word = node * FRAME_WORDS + 2;
  const entry = memory.u32[word]!;
  for (const value of [memory.frameEnd, memory.frameEnd - 1, 2 ** 28 - 1]) {
    memory.u32[word] = makeEntry(P2M_KIND.node, value);
    assert.ok(p2m.differences(root, frozen, places) >= 1);
  }
  memory.u32[word] = entry;
  assert.equal(p2m.differences(root, frozen, places), 3);
  assert.ok(p2m.applyDifferences(root, places, 3));
  assert.equal(p2m.differences(root, frozen, places), 0);
  assertAudit(heap, { roots: [root, frozen] });
});

test('a replaced frame stays readable until the stale translations are gone', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  const mfn = heap.allocate(1);
  mark(memory, mfn, 77);
  assert.ok(p2m.mapFrame(root, 3, mfn));
  assert.ok(!p2m.stale);
  assert.ok(p2m.unmap(root, 3));
  assert.ok(p2m.stale);
  assert.equal(p2m.lookup(root, 3), P2M_KIND.absent);
  assert.equal(heap.frames.pins(mfn), 1);
  assert.equal(markOf(memory, mfn), 77);
  p2m.releaseStale();
  assert.equal(heap.frames.mappings(mfn) + heap.frames.pins(mfn), 0);
  assertAudit(heap, { roots: [root] });
});

test('pins do not make writes copy, shared mappings do', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 8);
  assert.equal(p2m.pinForRead(root, 1), heap.zeroMfn);
  assert.equal(p2m.pinForRead(root, 9), 0);
  assert.equal(p2m.pinForWrite(root, 9), NOT_MEMORY);
  const pinned = p2m.pinForWrite(root, 0);
  assert.equal(p2m.frameForWrite(root, 0), pinned);
  const template = heap.allocate(0);
  mark(memory, template, 9);
  assert.ok(heap.frames.retain(template));
  assert.ok(p2m.mapFrame(root, 1, template));
  assert.equal(heap.stats().shared, 1);
  const copy = p2m.frameForWrite(root, 1);
  assert.notEqual(copy, template);
  assert.equal(markOf(memory, copy), 9);
  p2m.releaseStale();
  assert.equal(heap.stats().shared, 0);
  assertAudit(heap, { roots: [root], held: [template], pins: [pinned] });
  releaseAll(heap, p2m, root);
  assert.equal(heap.frames.pins(pinned), 1);
  heap.unpin(pinned);
  heap.release(template);
  assert.equal(heap.stats().used, 0);
});

test('read-only mappings refuse writes, shared or not', () => {
  const { heap, p2m } = setUp();
  const root = p2m.create(1);
  assert.ok(p2m.mapFrame(root, 5, heap.allocate(1), true));
  assert.equal(p2m.lookup(root, 5) & P2M_READ_ONLY, P2M_READ_ONLY);
  assert.equal(p2m.frameForWrite(root, 5), READ_ONLY);
  const copy = p2m.share(root, 2);
  assert.equal(p2m.frameForWrite(copy, 5), READ_ONLY);
  assertAudit(heap, { roots: [root, copy] });
});

test('image ranges split to the right pages and give way to loaded ones', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  assert.ok(p2m.mapImageRange(root, 100, GIB_GFNS, 3, 5000));
  for (const gfn of [100, 511, 512, 1000, GIB_GFNS - 1, GIB_GFNS, GIB_GFNS + 99]) {
    const entry = p2m.lookup(root, gfn);
    assert.deepEqual([entryKind(entry), entryValue(entry)], [P2M_KIND.image, 5000 + gfn - 100]);
    assert.deepEqual(p2m.imagePlace(root, gfn), { image: 3, entry });
  }
  assert.equal(p2m.frameForWrite(root, 1000), PAGE_LOST);
  assert.equal(p2m.pinForRead(root, 1000), 0);
  assert.equal(p2m.imagePlace(root, 99), undefined);
  const shared = p2m.share(root, 2);
  const entry = p2m.lookup(root, 1000);
  const loaded = heap.allocate(1, true);
  mark(memory, loaded, 1);
  assert.equal(p2m.replaceImagePage(root, 1000, entry, loaded), 'mapped');
  assert.equal(p2m.replaceImagePage(root, 1000, entry, 0), 'changed');
  assert.equal(p2m.replaceImagePage(root, 1001, p2m.lookup(root, 1001), 0), 'mapped');
  // In the node that both trees share: both have the page, and neither may write to it in place.
  for (const tree of [root, shared]) {
    assert.equal(entryValue(p2m.lookup(tree, 1000)), loaded);
    assert.equal(entryKind(p2m.lookup(tree, 1001)), P2M_KIND.zero);
  }
  const own = p2m.frameForWrite(root, 1000);
  assert.notEqual(own, loaded);
  assert.equal(markOf(memory, own), 1);
  assert.equal(p2m.frameForWrite(shared, 1000), loaded);
  p2m.releaseStale();
  assert.equal(entryValue(p2m.lookup(root, 1002)), 5902);
  assertAudit(heap, { roots: [root, shared] });
});

test('tear-down in small steps by changing threads drops everything once', () => {
  const { memory, heap, p2m } = setUp();
  const other = new Heap(memory, 1);
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 4 * GIB_GFNS);
  for (let i = 0; i < 200; i++) p2m.frameForWrite(root, (i * 7919) % (4 * GIB_GFNS));
  p2m.releaseStale();
  let turn = 0;
  p2m.release(root);
  while ((turn++ % 2 === 0 ? heap : other).tearDown.step(3)) {
    if (turn % 40 === 0) assertAudit(heap, { roots: [], readClean: false });
    assert.equal(heap.tearDown.isReleasing(1), heap.tearDown.isPending);
  }
  assert.ok(turn > 60);
  assert.equal(heap.stats().used, 0);
  assertAudit(heap, { roots: [] });
});

test('an allocator that finds no frame takes the next steps of a tear-down itself', () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 1024);
  const held: number[] = [];
  for (let gfn = 0, mfn = 1; mfn !== OUT_OF_FRAMES; gfn++) {
    mfn = p2m.frameForWrite(root, gfn);
    if (mfn !== OUT_OF_FRAMES) mark(memory, mfn, gfn + 1);
  }
  assert.equal(heap.allocate(2), 0);
  p2m.release(root);
  for (let mfn = heap.allocate(2); mfn !== 0; mfn = heap.allocate(2)) {
    assert.equal(markOf(memory, mfn), 0);
    held.push(mfn);
  }
  assert.ok(!heap.tearDown.isPending);
  assert.equal(held.length, heap.stats().total);
  assertAudit(heap, { roots: [], held });
  for (const mfn of held) heap.release(mfn);
  // Blocks come likewise.
  const second = p2m.create(1);
  p2m.mapZeroRange(second, 0, 1024);
  for (let gfn = 0; gfn < 600; gfn++) assert.ok(p2m.frameForWrite(second, gfn) > 0);
  p2m.release(second);
  const block = heap.allocateBlock(2, 8);
  assert.ok(block > 0);
  for (let i = 0; i < 256; i++) assert.equal(markOf(memory, block + i), 0);
});

test('out of frames is an answer at every step, and nothing is lost', () => {
  const { heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 1024);
  p2m.frameForWrite(root, 0);
  const checkpoint = p2m.share(root, 2);
  p2m.releaseStale();
  const held: number[] = [];
  for (let mfn = heap.allocate(0); mfn !== 0; mfn = heap.allocate(0)) held.push(mfn);
  // The middle node, the leaf node and the frame are copied one after the other, as frames come.
  for (const spare of [0, 1, 1]) {
    for (let i = 0; i < spare; i++) heap.release(held.pop()!);
    assert.equal(p2m.frameForWrite(root, 0), OUT_OF_FRAMES);
    assertAudit(heap, { roots: [root, checkpoint], held });
    while (heap.stats().used < heap.stats().total) held.push(heap.allocate(0));
  }
  assert.equal(p2m.create(3), 0);
  assert.equal(p2m.share(root, 3), 0);
  assert.equal(p2m.mapFrame(root, GIB_GFNS, held[0]!), false);
  assert.equal(p2m.mapZeroRange(root, GIB_GFNS, 5), false);
  assert.equal(p2m.unmap(root, 2 * GIB_GFNS, 5), true); // nothing is there, so no node is needed
  assertAudit(heap, { roots: [root, checkpoint], held });
  for (const mfn of held) heap.release(mfn);
  assert.ok(p2m.frameForWrite(root, 0) > 0);
  p2m.releaseStale();
  releaseAll(heap, p2m, root);
  releaseAll(heap, p2m, checkpoint);
  assert.equal(heap.stats().used, 0);
});

// ---- Races, with the other thread's move made at the worst moment ---------------------------------------------------

/** Two threads of one domain; `meanwhile` runs once, when the first has found that it needs a frame. */
function raceAtAllocation(meanwhile: (other: P2m, root: number, checkpoint: number) => void) {
  const { memory, heap, p2m } = setUp();
  const other = new P2m(new Heap(memory, 1));
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 512);
  mark(memory, p2m.frameForWrite(root, 1), 11);
  const checkpoint = p2m.share(root, 2);
  p2m.frameForWrite(root, 2); // makes the path exclusive, so that only the frame is still to be allocated
  const allocate = heap.allocate.bind(heap);
  heap.allocate = (owner, overwritten) => {
    heap.allocate = allocate;
    const mfn = allocate(owner, overwritten);
    meanwhile(other, root, checkpoint);
    return mfn;
  };
  return { memory, heap, p2m, other, root, checkpoint };
}

test('of two first writes to one guest frame, one brings the frame and both use it', () => {
  let winner = 0;
  const { memory, heap, p2m, other, root, checkpoint } = raceAtAllocation((rival, tree) => {
    winner = rival.frameForWrite(tree, 3);
    mark(memory, winner, 33);
  });
  assert.equal(p2m.frameForWrite(root, 3), winner);
  assert.equal(markOf(memory, winner), 33);
  p2m.releaseStale();
  other.releaseStale();
  assertAudit(heap, { roots: [root, checkpoint] });
});

test('of two copies of one shared frame, one is used', () => {
  let winner = 0;
  const { memory, heap, p2m, other, root, checkpoint } = raceAtAllocation((rival, tree) => {
    winner = rival.frameForWrite(tree, 1);
    mark(memory, winner, 33);
  });
  assert.equal(p2m.frameForWrite(root, 1), winner);
  assert.equal(markOf(memory, winner), 33);
  assert.equal(markOf(memory, entryValue(p2m.lookup(checkpoint, 1))), 11);
  p2m.releaseStale();
  other.releaseStale();
  assertAudit(heap, { roots: [root, checkpoint] });
});

test('a frame that becomes exclusive while it is copied is written in place', () => {
  let inPlace = 0;
  const { memory, heap, p2m, root } = raceAtAllocation((rival, tree, checkpoint) => {
    releaseAll(heap, rival, checkpoint);
    inPlace = rival.frameForWrite(tree, 1);
    mark(memory, inPlace, 33);
  });
  assert.equal(p2m.frameForWrite(root, 1), inPlace);
  assert.equal(markOf(memory, inPlace), 33);
  p2m.releaseStale();
  assertAudit(heap, { roots: [root] });
});

test('a walk whose node is replaced, freed and reused under it starts again', () => {
  const { memory, heap, p2m } = setUp();
  const other = new P2m(new Heap(memory, 1));
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 512);
  p2m.frameForWrite(root, 5);
  p2m.releaseStale();
  const load = Atomics.load;
  const held: number[] = [];
  const intrude = () => {
    Atomics.load = load;
    assert.ok(other.mapZeroRange(root, 0, GIB_GFNS));
    other.releaseStale();
    for (let mfn = heap.allocate(2, true); mfn !== 0; mfn = heap.allocate(2, true)) {
      memory.u32.fill(0xfffffff1, mfn * 1024, mfn * 1024 + 1024); // nodes of a lunatic
      held.push(mfn);
    }
  };
  Atomics.load = ((words: Uint32Array, index: number) => {
    const value = load(words, index);
    if (index === root * 1024) intrude();
    return value;
  }) as typeof Atomics.load;
  try {
    assert.equal(p2m.lookup(root, 5), (heap.zeroMfn << 4) | P2M_KIND.zero);
  } finally {
    Atomics.load = load;
  }
  assert.ok(held.length > 0);
  assertAudit(heap, { roots: [root], held });
});

// ---- Pages in images ------------------------------------------------------------------------------------------------

/** Page p of image 7 has the mark 1000 + p; pages 0 to 2047 are stored. */
function setUpImage(sizeBytes?: number) {
  const { memory, heap, p2m } = setUp(sizeBytes);
  const template = p2m.create(0);
  assert.ok(p2m.mapImageRange(template, 0, 2048, 7, 0));
  const reads: number[][] = [];
  const image = { lost: new Set<number>(), clusterPages: 4 };
  p2m.loader = new PageLoader(heap, p2m, { source: (number) => number !== 7 ? undefined : {
    root: template,
    cluster: (gfn) => ({ gfn: gfn - gfn % image.clusterPages, count: image.clusterPages }),
    read: (gfn, mfns) => {
      reads.push([gfn, mfns.length]);
      mfns.forEach((mfn, i) => { memory.zeroFrame(mfn); mark(memory, mfn, 1000 + gfn + i); });
      return !mfns.some((_, i) => image.lost.has(gfn + i));
    },
  } });
  return { memory, heap, p2m, template, reads, image };
}

test('a page in an image is loaded by whoever touches it, once for all trees', () => {
  const { memory, heap, p2m, template, reads } = setUpImage();
  const trees = [1, 2, 3].map((owner) => p2m.share(template, owner));
  const [first, second, third] = trees as [number, number, number];
  assert.equal(markOf(memory, p2m.frameForRead(first, 5)), 1005);
  assert.deepEqual(reads, [[4, 4]]);
  // A node of its own, of which one page is there and the rest is not.
  const written = p2m.frameForWrite(second, 6);
  mark(memory, written, 1);
  assert.equal(markOf(memory, p2m.frameForRead(third, 6)), 1006);
  const pinned = p2m.pinForRead(second, 9);
  assert.equal(markOf(memory, pinned), 1009);
  assert.equal(p2m.frameForRead(third, 9), pinned);
  heap.unpin(pinned);
  assert.equal(p2m.frameForRead(second, 8), p2m.frameForRead(first, 8));
  assert.deepEqual(reads, [[4, 4], [8, 4]]);
  assert.equal(p2m.frameForRead(first, 2048), NOT_MEMORY);
  p2m.releaseStale();
  assertAudit(heap, { roots: [template, ...trees] });
  for (const root of [template, ...trees]) releaseAll(heap, p2m, root);
  assert.equal(heap.stats().used, 0);
});

test('a lost page hurts nobody who does not need it, and is found again', () => {
  const { memory, heap, p2m, template, reads, image } = setUpImage();
  const root = p2m.share(template, 1);
  image.lost.add(6);
  assert.equal(markOf(memory, p2m.frameForRead(root, 5)), 1005);
  assert.deepEqual(reads.splice(0), [[4, 4], [5, 1]]);
  for (const ask of [p2m.frameForRead.bind(p2m), p2m.frameForWrite.bind(p2m), p2m.pinForWrite.bind(p2m)]) {
    assert.equal(ask(root, 6), PAGE_LOST);
  }
  assert.equal(p2m.pinForRead(root, 6), 0);
  assertAudit(heap, { roots: [template, root] });
  image.lost.clear();
  assert.equal(markOf(memory, p2m.frameForRead(root, 6)), 1006);
  assertAudit(heap, { roots: [template, root] });
});

test('out of frames while loading: what was there is there, and it goes on when there are frames again', () => {
  const { memory, heap, p2m, template } = setUpImage();
  const root = p2m.share(template, 1);
  p2m.frameForRead(root, 0);
  const taken: number[] = [];
  for (let mfn = heap.allocate(2); mfn !== 0; mfn = heap.allocate(2)) taken.push(mfn);
  assert.equal(p2m.frameForRead(root, 4), OUT_OF_FRAMES);
  assert.equal(p2m.frameForWrite(root, 600), OUT_OF_FRAMES);
  assert.equal(markOf(memory, p2m.frameForRead(root, 1)), 1001);
  // One frame: enough for the page, not for its neighbours.
  heap.release(taken.pop()!);
  assert.equal(markOf(memory, p2m.frameForRead(root, 4)), 1004);
  assertAudit(heap, { roots: [template, root], held: taken, readClean: false });
});

// ---- Against a model ------------------------------------------------------------------------------------------------

/** GFNs around every boundary of the tree; the model follows these only. */
const GFNS = [
  0, 1, 2, 510, 511, 512, 513, 1023, 1024, GIB_GFNS - 1, GIB_GFNS, GIB_GFNS + 1, 3 * GIB_GFNS, GFN_LIMIT - 1,
];

/** A page of an image may be there or still to be loaded: that makes no difference to a tree. */
type Content = 'absent' | 'zero' | `page ${number}` | `mark ${number}`;
const PAGE_MARK = 2 ** 30;
type Tree = { root: number; contents: Map<number, Content> };
type Step =
  | { op: 'write' | 'load'; tree: number; gfn: number }
  | { op: 'map' | 'zero' | 'unmap' | 'image'; tree: number; gfn: number; end: number }
  | { op: 'share' | 'release' | 'flush'; tree: number };

const tree = fc.nat(5);
const gfn = fc.constantFrom(...GFNS);
const stepArbitrary: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({
    op: fc.constantFrom('write' as const, 'write' as const, 'load' as const), tree, gfn,
  }) },
  { weight: 3, arbitrary: fc.record({
    op: fc.constantFrom('map' as const, 'zero' as const, 'unmap' as const, 'image' as const), tree, gfn, end: gfn,
  }) },
  { weight: 2, arbitrary: fc.record({
    op: fc.constantFrom('share' as const, 'share' as const, 'release' as const, 'flush' as const), tree,
  }) },
);

class Model {
  readonly memory = createMachine({ sizeBytes: 8 * 1024 * 1024 });
  readonly heap = new Heap(this.memory, 0);
  readonly p2m = new P2m(this.heap);
  readonly trees: Tree[] = [];
  readonly template = this.p2m.create(0);
  #tag = 1;

  constructor() {
    assert.ok(this.p2m.mapImageRange(this.template, 0, GFN_LIMIT, 4, 0));
    this.p2m.loader = new PageLoader(this.heap, this.p2m, { source: () => ({
      root: this.template,
      cluster: (g) => ({ gfn: g, count: 2 }),
      read: (g, mfns) => {
        mfns.forEach((mfn, i) => this.#markPage(mfn, g + i));
        return true;
      },
    }) });
    this.trees.push({ root: this.p2m.create(1), contents: new Map(GFNS.map((g) => [g, 'absent'])) });
  }

  read({ root }: Tree, g: number): Content {
    const entry = this.p2m.lookup(root, g);
    const kind = entryKind(entry);
    if (kind === P2M_KIND.absent) return 'absent';
    if (kind === P2M_KIND.image) return `page ${entryValue(entry)}`;
    const tag = markOf(this.memory, entryValue(entry));
    if (tag >= PAGE_MARK) return `page ${tag - PAGE_MARK}`;
    return tag === 0 ? 'zero' : `mark ${tag}`;
  }

  #markPage(mfn: number, page: number): void {
    this.memory.zeroFrame(mfn);
    mark(this.memory, mfn, PAGE_MARK + page);
  }

  step(step: Step): void {
    const chosen = this.trees[step.tree % this.trees.length]!;
    const { root, contents } = chosen;
    switch (step.op) {
      case 'write': return this.#write(chosen, step.gfn);
      case 'load': return this.#load(chosen, step.gfn);
      case 'map': {
        const mfn = this.heap.allocate(1);
        mark(this.memory, mfn, ++this.#tag);
        assert.ok(this.p2m.mapFrame(root, step.gfn, mfn));
        contents.set(step.gfn, `mark ${this.#tag}`);
        return;
      }
      case 'share':
        if (this.trees.length < 6) this.trees.push({ root: this.p2m.share(root, 2), contents: new Map(contents) });
        return;
      case 'release':
        if (this.trees.length === 1) return;
        releaseAll(this.heap, this.p2m, root, 1 + (step.tree % 3));
        this.trees.splice(step.tree % this.trees.length, 1);
        return;
      case 'flush': return this.p2m.releaseStale();
      default: return this.#fill(chosen, step.op, Math.min(step.gfn, step.end), Math.max(step.gfn, step.end) + 1);
    }
  }

  #write({ root, contents }: Tree, g: number): void {
    const mfn = this.p2m.frameForWrite(root, g);
    const old = contents.get(g)!;
    if (old === 'absent') assert.equal(mfn, NOT_MEMORY);
    else {
      assert.ok(mfn > 0);
      assert.equal(this.read({ root, contents }, g), old);
      mark(this.memory, mfn, ++this.#tag);
      contents.set(g, `mark ${this.#tag}`);
    }
  }

  #load({ root }: Tree, g: number): void {
    const entry = this.p2m.lookup(root, g);
    if (g % 2 === 0) {
      assert.equal(this.p2m.frameForRead(root, g) > 0, entryKind(entry) !== P2M_KIND.absent);
      return;
    }
    if (entryKind(entry) !== P2M_KIND.image) return;
    const mfn = this.heap.allocate(1, true);
    this.#markPage(mfn, entryValue(entry));
    assert.equal(this.p2m.replaceImagePage(root, g, entry, mfn), 'mapped');
  }

  #fill({ root, contents }: Tree, op: 'zero' | 'unmap' | 'image', from: number, end: number): void {
    const count = end - from;
    const page = from >> 1;
    const filled = op === 'zero' ? this.p2m.mapZeroRange(root, from, count)
      : op === 'unmap' ? this.p2m.unmap(root, from, count) : this.p2m.mapImageRange(root, from, count, 4, page);
    assert.ok(filled);
    for (const g of GFNS) {
      if (g < from || g >= end) continue;
      contents.set(g, op === 'zero' ? 'zero' : op === 'unmap' ? 'absent' : `page ${page + g - from}`);
    }
  }
}

test('random changes of trees that share behave like separate maps', (t) => {
  t.diagnostic(`seed ${seed}`);
  fc.assert(fc.property(fc.array(stepArbitrary, { minLength: 10, maxLength: 80 }), (steps) => {
    const model = new Model();
    for (const step of steps) {
      model.step(step);
      for (const each of model.trees) for (const g of GFNS) assert.equal(model.read(each, g), each.contents.get(g));
    }
    model.p2m.releaseStale();
    assertAudit(model.heap, { roots: [model.template, ...model.trees.map(({ root }) => root)], readClean: false });
    for (const root of [model.template, ...model.trees.map((each) => each.root)]) releaseAll(model.heap, model.p2m, root);
    assert.equal(model.heap.stats().used, 0);
    assertAudit(model.heap, { roots: [], readClean: false });
  }), { seed, numRuns: 60 });
});
