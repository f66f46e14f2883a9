// A thread of workers.test.ts: uses heap and p2m as hard as it can, checks all that it sees, and answers with the
// frames and trees that it still holds.

import { strict as assert } from 'node:assert';
import { parentPort, workerData } from 'node:worker_threads';
import { P2M_KIND } from '../abi/machine-memory.ts';
import { SeededRandom } from '../base/random.ts';
import { Heap } from './heap.ts';
import { PageLoader } from './image-pages.ts';
import { MachineMemory } from './machine-memory.ts';
import { P2m, entryKind, entryValue } from './p2m.ts';
import { FAULT_GFNS, IMAGE_GFNS, TEMPLATE_GFNS, mark, markOf } from './test-memory.ts';
import type { WorkerResult, WorkerTask } from './test-memory.ts';

const task = workerData as WorkerTask;
const memory = MachineMemory.attach(task.memory);
const heap = new Heap(memory, task.agent);
const p2m = new P2m(heap);
const random = new SeededRandom(task.seed);

/** Holds about as many frames as there are for each thread, so that the heap runs dry now and then. */
function useHeap(): WorkerResult {
  const held: { mfn: number; tag: number }[] = [];
  let outOfFrames = 0;
  let scrubbed = 0;
  const mostHeld = 400;
  for (let round = 1; round <= task.rounds; round++) {
    const draw = random.below(100);
    if (draw < 4) scrubbed += heap.scrubStep(random.below(150), () => random.below(20) === 0);
    else if (draw < 50 + (held.length < mostHeld ? 10 : -40)) {
      const overwritten = random.below(4) === 0;
      const mfn = heap.allocate(task.agent + 1, overwritten);
      if (mfn === 0) {
        outOfFrames++;
        continue;
      }
      if (overwritten) memory.zeroFrame(mfn);
      assert.equal(markOf(memory, mfn), 0, 'a frame came unscrubbed');
      const tag = task.agent * 2 ** 24 + round;
      mark(memory, mfn, tag);
      held.push({ mfn, tag });
    } else if (held.length > 0) {
      const index = random.below(held.length);
      const { mfn, tag } = held[index]!;
      held[index] = held[held.length - 1]!;
      held.pop();
      assert.equal(markOf(memory, mfn), tag, 'somebody else wrote to my frame');
      heap.release(mfn);
    }
  }
  return { held: held.map(({ mfn }) => mfn), roots: [], outOfFrames, scrubbed };
}

/** All threads write to the same untouched guest frames; each counts in a word of its own. */
function fault(): WorkerResult {
  for (let round = 0; round < task.rounds; round++) {
    for (let gfn = 0; gfn < FAULT_GFNS; gfn++) {
      const mfn = p2m.frameForWrite(task.root, gfn);
      assert.ok(mfn > 0);
      memory.u32[mfn * 1024 + task.agent]!++;
    }
  }
  p2m.releaseStale();
  return { held: [], roots: [], outOfFrames: 0, scrubbed: 0 };
}

/** Forks a template again and again, writes in the fork, and sees its own writes and the template's, nothing else. */
function fork(): WorkerResult {
  let outOfFrames = 0;
  for (let round = 1; round <= task.rounds; round++) {
    const root = p2m.share(task.root, task.agent + 1);
    assert.ok(root > 0);
    const written = new Map<number, number>();
    for (let i = 0; i < 20; i++) {
      const gfn = random.below(TEMPLATE_GFNS);
      const mfn = p2m.frameForWrite(root, gfn);
      if (mfn === 0) outOfFrames++;
      else {
        assert.equal(markOf(memory, mfn), written.get(gfn) ?? gfn + 1);
        written.set(gfn, task.agent * 2 ** 24 + round * 32 + i);
        mark(memory, mfn, written.get(gfn)!);
      }
      const other = random.below(TEMPLATE_GFNS);
      assert.equal(markOf(memory, entryValue(p2m.lookup(root, other))), written.get(other) ?? other + 1);
    }
    p2m.releaseStale();
    p2m.release(root);
    while (heap.tearDown.step(10)) heap.scrubStep(16);
  }
  return { held: [], roots: [], outOfFrames, scrubbed: 0 };
}

/** Agent 0 keeps replacing nodes of the common tree under the eyes of the others, who read it without a lock. */
function replace(): WorkerResult {
  const span = 1024;
  for (let round = 0; round < task.rounds; round++) {
    if (task.agent === 0) {
      assert.ok(p2m.mapZeroRange(task.root, 0, span));
      for (let i = 0; i < 8; i++) assert.ok(p2m.frameForWrite(task.root, random.below(span)) > 0);
      p2m.releaseStale();
      heap.scrubStep(32);
      continue;
    }
    const gfn = random.below(span);
    const kind = entryKind(p2m.lookup(task.root, gfn));
    assert.ok(kind === P2M_KIND.zero || kind === P2M_KIND.frame, 'a walk went through a freed node');
    const mfn = p2m.pinForRead(task.root, gfn);
    assert.ok(mfn === heap.zeroMfn || heap.frames.owner(mfn) === 1, 'pinned a frame of another owner');
    heap.unpin(mfn);
  }
  return { held: [], roots: [], outOfFrames: 0, scrubbed: 0 };
}

/** Forks a template whose pages are in an image; the first to touch one loads it, whoever that is, for all. */
function load(): WorkerResult {
  p2m.loader = new PageLoader(heap, p2m, { source: () => ({
    root: task.root,
    cluster: (gfn) => ({ gfn: gfn - gfn % 4, count: 4 }),
    read: (gfn, mfns) => {
      mfns.forEach((mfn, i) => { memory.zeroFrame(mfn); mark(memory, mfn, 1 + gfn + i); });
      return true;
    },
  }) });
  for (let round = 1; round <= task.rounds; round++) {
    const root = p2m.share(task.root, task.agent + 1);
    assert.ok(root > 0);
    const written = new Map<number, number>();
    for (let i = 0; i < 10; i++) {
      const gfn = random.below(IMAGE_GFNS);
      const isWrite = random.below(3) === 0;
      const mfn = isWrite ? p2m.frameForWrite(root, gfn) : p2m.frameForRead(root, gfn);
      assert.ok(mfn > 0);
      assert.equal(markOf(memory, mfn), written.get(gfn) ?? 1 + gfn);
      if (!isWrite) continue;
      written.set(gfn, task.agent * 2 ** 24 + round * 32 + i);
      mark(memory, mfn, written.get(gfn)!);
    }
    p2m.releaseStale();
    p2m.release(root);
    while (heap.tearDown.step(10)) heap.scrubStep(16);
  }
  return { held: [], roots: [], outOfFrames: 0, scrubbed: 0 };
}

parentPort?.postMessage({ heap: useHeap, fault, fork, replace, load }[task.work]());
