import assert from 'node:assert/strict';
import test from 'node:test';
import { P2M_KIND } from '../abi/machine-memory.ts';
import { Heap } from './heap.ts';
import { resolveImageLeaves } from './image-leaves.ts';
import { placeInTemplate } from './image-pages.ts';
import { P2m, PAGE_LOST, entryKind } from './p2m.ts';
import { assertAudit, createMachine, mark, markOf } from './test-memory.ts';

const PAGES = 3 * 512 + 100;
const IMAGE = 3;

/** A template of which nothing is loaded yet; page p will have the mark 1 + p. */
function setUp() {
  const memory = createMachine({ sizeBytes: 16 * 1024 * 1024 });
  const heap = new Heap(memory, 0);
  const p2m = new P2m(heap);
  const template = p2m.create(0);
  assert.ok(p2m.mapZeroRange(template, 0, 2 ** 18));
  assert.ok(p2m.mapImageRange(template, 0, PAGES, IMAGE, 0));
  const load = (page: number): void => {
    const mfn = heap.allocate(0, true);
    memory.zeroFrame(mfn);
    mark(memory, mfn, 1 + page);
    assert.ok(placeInTemplate(heap, p2m, template, page, mfn));
  };
  return { memory, heap, p2m, template, load };
}

test('trees get what a complete template has, without a frame, and do without it from then on', () => {
  const { memory, heap, p2m, template, load } = setUp();
  // One that shares all nodes; one with a node of its own that knows some pages; one whose upper node is its own.
  const sharing = p2m.share(template, 1);
  const writing = p2m.share(template, 2);
  load(5);
  mark(memory, p2m.frameForWrite(writing, 5), 0x5000);
  const apart = p2m.share(template, 3);
  assert.ok(p2m.unmap(apart, 2000));
  for (let page = 0; page < PAGES; page++) load(page);
  p2m.releaseStale();
  assert.equal(p2m.frameForRead(writing, 6), PAGE_LOST, 'no loader');
  const taken: number[] = [];
  for (let mfn = heap.allocate(4); mfn !== 0; mfn = heap.allocate(4)) taken.push(mfn);
  const trees = [sharing, writing, apart];
  assert.ok(resolveImageLeaves(heap, trees, template, IMAGE));
  assertAudit(heap, { roots: [template, ...trees], held: taken, readClean: false });
  for (const mfn of taken) heap.release(mfn);
  p2m.release(template);
  heap.tearDown.finish();
  p2m.releaseStale();
  for (const root of trees) {
    for (let page = 0; page < PAGES; page++) {
      assert.equal(markOf(memory, p2m.frameForRead(root, page)), root === writing && page === 5 ? 0x5000 : 1 + page);
    }
  }
  assert.equal(entryKind(p2m.lookup(apart, 2000)), P2M_KIND.absent);
  mark(memory, p2m.frameForWrite(apart, 6), 0x6000);
  assert.equal(markOf(memory, p2m.frameForRead(sharing, 6)), 7);
  p2m.releaseStale();
  assertAudit(heap, { roots: trees });
  for (const root of trees) p2m.release(root);
  heap.tearDown.finish();
  assert.equal(heap.stats().used, 0);
});

test('leaves of other images stay as they are', () => {
  const { heap, p2m, template, load } = setUp();
  const root = p2m.share(template, 1);
  assert.ok(p2m.mapImageRange(root, 100, 10, IMAGE + 1, 100));
  for (let page = 0; page < PAGES; page++) load(page);
  assert.ok(resolveImageLeaves(heap, [root], template, IMAGE));
  assert.deepEqual([99, 100, 109, 110].map((gfn) => entryKind(p2m.lookup(root, gfn))),
    [P2M_KIND.frame, P2M_KIND.image, P2M_KIND.image, P2M_KIND.frame]);
  p2m.releaseStale();
  assertAudit(heap, { roots: [template, root] });
});
