import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { P2M_KIND } from '../abi/machine-memory.ts';
import { Heap } from './heap.ts';
import { P2m, entryKind, entryValue } from './p2m.ts';
import { FAULT_GFNS, IMAGE_GFNS, TEMPLATE_GFNS, assertAudit, createMachine, mark, markOf, seed } from './test-memory.ts';
import type { WorkerResult, WorkerTask } from './test-memory.ts';

const WORKERS = 3;
const script = new URL('./test-worker.ts', import.meta.url);

async function runWorkers(task: Omit<WorkerTask, 'agent' | 'seed'>): Promise<WorkerResult[]> {
  const workers = Array.from({ length: WORKERS }, (_, agent) =>
    new Worker(script, { workerData: { ...task, agent, seed: seed * 100 + agent } }));
  try {
    return await Promise.all(workers.map(async (worker) => {
      const [result] = await once(worker, 'message');
      return result as WorkerResult;
    }));
  } finally {
    // One that failed may have left a lock held, for which the others would wait for ever.
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

function setUp() {
  const memory = createMachine();
  const heap = new Heap(memory, 64);
  return { memory, heap, p2m: new P2m(heap) };
}

test('three threads at the heap: no frame twice, none unscrubbed, none lost', async (t) => {
  t.diagnostic(`seed ${seed}`);
  const { memory, heap } = setUp();
  const results = await runWorkers({ memory: memory.memory, work: 'heap', rounds: 60_000, root: 0 });
  const held = results.flatMap((result) => result.held);
  t.diagnostic(`out of frames ${results.map((r) => r.outOfFrames)}, scrubbed ${results.map((r) => r.scrubbed)}`);
  assert.ok(results.every((result) => result.scrubbed > 0));
  assert.ok(results.some((result) => result.outOfFrames > 0));
  assertAudit(heap, { roots: [], held });
});

test('three threads that fault on the same guest frames agree on one frame for each', async () => {
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 1024);
  const rounds = 20;
  await runWorkers({ memory: memory.memory, work: 'fault', rounds, root });
  for (let gfn = 0; gfn < FAULT_GFNS; gfn++) {
    const mfn = entryValue(p2m.lookup(root, gfn));
    for (let agent = 0; agent < WORKERS; agent++) assert.equal(memory.u32[mfn * 1024 + agent], rounds);
  }
  assert.equal(heap.chargedFrames(1), FAULT_GFNS + 3);
  assertAudit(heap, { roots: [root], readClean: true });
});

test('three threads that fork one template see it unchanged and leave nothing behind', async (t) => {
  t.diagnostic(`seed ${seed}`);
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 1024);
  for (let gfn = 0; gfn < TEMPLATE_GFNS; gfn++) mark(memory, p2m.frameForWrite(root, gfn), gfn + 1);
  p2m.releaseStale();
  const { used } = heap.stats();
  await runWorkers({ memory: memory.memory, work: 'fork', rounds: 300, root });
  assert.deepEqual([heap.stats().used, heap.stats().shared], [used, 0]);
  assertAudit(heap, { roots: [root] });
});

test('three threads that load the pages of one image into shared nodes lose none, and see no other', async (t) => {
  t.diagnostic(`seed ${seed}`);
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(0);
  p2m.mapZeroRange(root, 0, 2048);
  assert.ok(p2m.mapImageRange(root, 0, IMAGE_GFNS, 1, 0));
  await runWorkers({ memory: memory.memory, work: 'load', rounds: 300, root });
  let loaded = 0;
  for (let gfn = 0; gfn < IMAGE_GFNS; gfn++) {
    const entry = p2m.lookup(root, gfn);
    if (entryKind(entry) !== P2M_KIND.frame) continue;
    assert.equal(markOf(memory, entryValue(entry)), 1 + gfn);
    loaded++;
  }
  assert.ok(loaded > IMAGE_GFNS / 2);
  assert.equal(heap.stats().shared, 0);
  assertAudit(heap, { roots: [root] });
});

test('reads without a lock never see a node that was replaced and freed', async (t) => {
  t.diagnostic(`seed ${seed}`);
  const { memory, heap, p2m } = setUp();
  const root = p2m.create(1);
  p2m.mapZeroRange(root, 0, 1024);
  await runWorkers({ memory: memory.memory, work: 'replace', rounds: 6000, root });
  assertAudit(heap, { roots: [root] });
});
