import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { systemClock } from '../base/clock.ts';
import { SafePoints } from './safe-points.ts';
import { HeapIdleWork } from './idle-work.ts';
import { PCPU, SCHEDULER } from '../abi/scheduler.ts';
import { RAM_PAGES, TestMachine, page } from './test-domain.ts';
import { VcpuScheduling } from './scheduler.ts';
import { DISK_THREAD, MAIN_THREAD } from './thread.ts';

const MILLIS = 1e6;

function setUp() {
  const machine = new TestMachine();
  const scheduling = new VcpuScheduling(machine.memory);
  const safePoints = new SafePoints(machine.memory, 0);
  const idleWork = new HeapIdleWork(machine.heap, scheduling, safePoints);
  return { machine, scheduling, safePoints, idleWork, heap: machine.heap };
}

/** A guest that has touched all of its memory is destroyed, but nothing of it released. */
function destroyGuest(machine: TestMachine): number {
  const guest = machine.createGuest();
  for (let i = 0; i < RAM_PAGES; i++) machine.memory.u32[guest.word(page(i))] = 0xdead;
  machine.p2m.release(machine.builder.destroyDomain(guest.made.domain));
  machine.builder.forgetDomain(guest.made.domain);
  return guest.domid;
}

test('idle work takes trees apart, then scrubs, then says that nothing is left', () => {
  const { machine, idleWork, heap } = setUp();
  // The first one leaves a table of ports to the host.
  destroyGuest(machine);
  heap.tearDown.finish();
  const { used } = heap.stats();
  destroyGuest(machine);
  assert.ok(heap.stats().used > used + RAM_PAGES);
  while (heap.tearDown.isPending) assert.ok(idleWork.step());
  assert.equal(heap.stats().used, used);
  assert.ok(heap.stats().dirty > RAM_PAGES);
  while (idleWork.step());
  assert.ok(!idleWork.isWaiting);
  assert.equal(heap.stats().dirty, 0);
  machine.audit();
});

test('an id is not used again before all that was charged to it by its tree is free', () => {
  const { machine, heap } = setUp();
  const dead = destroyGuest(machine);
  const ids = new Set<number>();
  for (let i = 0; i < 10; i++) {
    const guest = machine.createGuest(1, 1);
    ids.add(guest.domid);
    machine.p2m.release(machine.builder.destroyDomain(guest.made.domain));
    machine.builder.forgetDomain(guest.made.domain);
    if (i < 5) assert.ok(!ids.has(dead));
    else heap.tearDown.finish();
  }
  assert.ok(ids.has(dead));
});

test('closing and a stopped world end it after a frame or two', () => {
  const { machine, scheduling, idleWork, heap } = setUp();
  destroyGuest(machine);
  heap.tearDown.finish();
  const other = new SafePoints(machine.memory, 1);
  const { dirty } = heap.stats();
  other.stopWorld(() => assert.equal(heap.stats().dirty, dirty));
  scheduling.close();
  idleWork.step();
  assert.equal(heap.stats().dirty, dirty);
});

test('a pCPU with other work does not fall asleep, and who makes work wakes it', () => {
  const { machine, scheduling } = setUp();
  const start = systemClock.monotonicNanos();
  scheduling.sleep(0, 60_000, () => true);
  assert.ok(systemClock.monotonicNanos() - start < 30_000 * MILLIS);
  const idle = (machine.memory.region('scheduler').offsetBytes + SCHEDULER.at.idleLow) / 4;
  const bell = (pcpu: number) => machine.memory.i32[(machine.memory.pcpuAddress(pcpu) + PCPU.at.doorbell) / 4]!;
  const before = [0, 1, 40].map(bell);
  // One of them, the last one first.
  machine.memory.u32[idle] = 1;
  machine.memory.u32[idle + 1] = 1 << 8;
  scheduling.wakeIdlePcpu();
  assert.deepEqual([0, 1, 40].map(bell), [before[0], before[1], before[2]! + 1]);
  scheduling.wakeIdlePcpu();
  scheduling.wakeIdlePcpu();
  assert.deepEqual([0, 1, 40].map(bell), [before[0]! + 1, before[1], before[2]! + 1]);
  before[0]!++;
  before[2]!++;
  machine.memory.u32[idle] = 2;
  machine.memory.u32[idle + 1] = 1 << 8;
  scheduling.wakeIdlePcpus();
  assert.deepEqual([0, 1, 40].map(bell), [before[0], before[1]! + 1, before[2]! + 1]);
  assert.deepEqual([...machine.memory.u32.subarray(idle, idle + 2)], [0, 0]);
});

test('who stops the world waits for the disk thread, too', async () => {
  const { machine } = setUp();
  const { memory } = machine;
  const inCode = (memory.pcpuAddress(DISK_THREAD) + PCPU.at.inCode) / 4;
  new SafePoints(memory, DISK_THREAD).enterIdleWork();
  assert.equal(memory.u32[inCode], 1);
  // Goes on with its work until it is asked for, and then says so.
  const thread = new Worker(`
    const { workerData: { memory, inCode, owner } } = require('node:worker_threads');
    const words = new Uint32Array(memory.buffer);
    while (Atomics.load(words, owner) === 0);
    Atomics.store(words, inCode, 0);`,
    { eval: true, workerData: { memory: memory.memory, inCode, owner: (memory.region('scheduler').offsetBytes + SCHEDULER.at.worldOwner) / 4 } });
  await once(thread, 'online');
  let isOut = false;
  new SafePoints(memory, MAIN_THREAD).stopWorld(() => { isOut = memory.u32[inCode] === 0; });
  assert.ok(isOut);
  await once(thread, 'exit');
});
