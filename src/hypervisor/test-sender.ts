// A thread of event-fifo.test.ts: sends an event from each of its ports, waits until the guest has taken them all, and
// so on. An event that is lost shows as one that is never taken.

import { workerData } from 'node:worker_threads';
import { EVTCHN_FIFO_PENDING } from '../abi/xen-event-channel.ts';
import { systemClock } from '../base/clock.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { P2m } from '../memory/p2m.ts';
import { Hypercalls } from './hypercalls.ts';
import type { SenderTask } from './test-domain.ts';

const GIVE_UP_NANOS = 20e9;
const task = workerData as SenderTask;
const memory = MachineMemory.attach(task.memory);
const heap = new Heap(memory, task.agent);
const nothing = () => undefined;
const { channels } = new Hypercalls({
  memory, heap, p2m: new P2m(heap), clock: systemClock,
  guest: { copyFromGuest: nothing, copyToGuest: () => false, mustRetry: () => false },
  interrupts: { setInterruptLevel: nothing },
  scheduler: {
    wake: nothing, block: nothing, yield: nothing, isOnline: () => true, setOnline: () => true, pauseChanged: nothing,
    shutDown: nothing,
  },
  stage2: { flush: nothing },
});
const host = channels.domains.record(0);

function run(): boolean {
  for (let round = 0; round < task.rounds; round++) {
    for (const { hostPort } of task.ports) channels.send(host, hostPort);
    const start = systemClock.monotonicNanos();
    for (const { word } of task.ports) {
      while ((Atomics.load(memory.u32, word) & EVTCHN_FIFO_PENDING) !== 0) {
        if (systemClock.monotonicNanos() - start > GIVE_UP_NANOS) return false;
      }
    }
  }
  return true;
}

const complete = run();
if (!complete) Atomics.add(task.finished, 1, 1);
Atomics.add(task.finished, 0, 1);
