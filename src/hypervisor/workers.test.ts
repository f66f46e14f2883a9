// Several pCPU threads and domains: tokens go round as SGIs, so one lost wake-up stops everything.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { sysreg } from '../a64/system-registers.ts';
import { PCPU_MAX } from '../abi/machine-memory.ts';
import { PCPU, SCHEDULER } from '../abi/scheduler.ts';
import { GUEST_TIMER_VIRT_PPI } from '../abi/xen.ts';
import { systemClock } from '../base/clock.ts';
import { Gic } from './gic.ts';
import { SafePoints } from './safe-points.ts';
import { VcpuScheduling } from './scheduler.ts';
import { InterruptRig, smallMachine } from './test-interrupts.ts';
import { COUNTERS, TIMER_PERIOD_TICKS } from './test-pcpu-task.ts';
import type { PcpuTask } from './test-pcpu-task.ts';
import { Timers } from './timer.ts';

const PCPUS = 2;

class Fleet {
  readonly machine = smallMachine(PCPUS);
  readonly counters = new Uint32Array(new SharedArrayBuffer(64));
  readonly scheduling = new VcpuScheduling(this.machine);
  readonly gic = new Gic(this.machine, vcpu => this.scheduling.interrupted(vcpu));
  readonly safePoints = new SafePoints(this.machine, PCPU_MAX);
  readonly rigs: readonly InterruptRig[];
  readonly #workers: Promise<void>[];

  constructor(vcpusOfDomains: readonly number[], flushEvery = 0) {
    let first = 0;
    this.rigs = vcpusOfDomains.map((count, i) => {
      const rig = new InterruptRig(count, this.machine, i + 1, first);
      first += count;
      rig.enable();
      for (const vcpu of rig.vcpus) this.scheduling.start(vcpu, () => {});
      return rig;
    });
    this.#workers = Array.from({ length: PCPUS }, (_, pcpu) => this.#startWorker(pcpu, flushEvery));
  }

  #startWorker(pcpu: number, flushEvery: number): Promise<void> {
    const task: PcpuTask = {
      memory: this.machine.memory, counters: this.counters.buffer as SharedArrayBuffer, pcpu,
      timerIntid: GUEST_TIMER_VIRT_PPI, flushEvery,
    };
    const worker = new Worker(new URL('./test-pcpu-worker.ts', import.meta.url), { workerData: task });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    worker.on('error', reject);
    worker.on('exit', () => resolve());
    return promise;
  }

  count(counter: keyof typeof COUNTERS): number {
    return Atomics.load(this.counters, COUNTERS[counter]);
  }
  /** Waits in this thread until a counter has gone up by so much. */
  waitFor(counter: keyof typeof COUNTERS, more: number): void {
    const target = this.count(counter) + more;
    const nothing = new Int32Array(new SharedArrayBuffer(4));
    for (const start = performance.now(); this.count(counter) < target;) {
      assert.ok(performance.now() - start < PATIENCE_MILLIS, `no progress at ${this.count(counter)} of ${target} ${counter}`);
      Atomics.wait(nothing, 0, 0, 1);
    }
  }
  sendTokens(rig: InterruptRig, tokens: number): void {
    for (let intid = 0; intid < tokens; intid++) this.gic.sendSgi(rig.vcpus[0]!, (intid << 24) | 1, 0);
  }
  get slices(): number {
    return this.machine.u32[(this.machine.pcpuAddress(0) + PCPU.at.slices) / 4]!
      + this.machine.u32[(this.machine.pcpuAddress(1) + PCPU.at.slices) / 4]!;
  }
  async close(): Promise<void> {
    this.scheduling.close();
    await Promise.all(this.#workers);
    assert.equal(this.count('errors'), 0, 'a vCPU ran twice at a time, or while the world was stopped');
  }
}

test('no wake-up is lost between threads, and no vCPU runs twice at a time', async () => {
  const fleet = new Fleet([3, 2]);
  try {
    fleet.sendTokens(fleet.rigs[0]!, 1);
    fleet.sendTokens(fleet.rigs[1]!, 2);
    fleet.waitFor('hops', 30_000);
  } finally {
    await fleet.close();
  }
});

test('pausing stops a domain and only it; unpausing goes on where it was', async () => {
  const fleet = new Fleet([2, 2]);
  const [paused, other] = fleet.rigs;
  try {
    fleet.sendTokens(paused!, 2);
    for (let round = 0; round < 100; round++) {
      fleet.waitFor('hops', 20);
      fleet.scheduling.pauseDomain(paused!.domid);
      fleet.scheduling.waitUntilStopped(paused!.domid);
      const hops = fleet.count('hops');
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0.1);
      assert.equal(fleet.count('hops'), hops);
      fleet.scheduling.unpauseDomain(paused!.domid);
    }
    fleet.scheduling.pauseDomain(paused!.domid);
    fleet.sendTokens(other!, 1);
    fleet.waitFor('hops', 1000);
  } finally {
    await fleet.close();
  }
});

test('who waits for a vCPU that takes long to stop sleeps, and is woken when it has stopped', async () => {
  const fleet = new Fleet([1]);
  const { scheduling, machine } = fleet;
  const field = (name: 'stopWaiters' | 'stopBell') =>
    Atomics.load(machine.u32, (machine.region('scheduler').offsetBytes + SCHEDULER.at[name]) / 4);
  fleet.sendTokens(fleet.rigs[0]!, 1);
  fleet.waitFor('hops', 100);
  for (let round = 1; round <= 20; round++) {
    Atomics.store(fleet.counters, COUNTERS.hold, 1);
    fleet.waitFor('held', 1);
    Atomics.store(fleet.counters, COUNTERS.hold, 0);
    scheduling.pauseDomain(1);
    scheduling.waitUntilStopped(1);
    assert.ok(scheduling.isStopped(1));
    assert.ok(field('stopBell') >= round, 'the bell was rung');
    assert.equal(field('stopWaiters'), 0);
    scheduling.unpauseDomain(1);
    fleet.waitFor('hops', 10);
  }
  await fleet.close();
});

test('the world stops for one at a time while vCPUs flush each other\'s TLBs', async () => {
  const fleet = new Fleet([4], 3);
  try {
    fleet.sendTokens(fleet.rigs[0]!, 4);
    for (let round = 0; round < 200; round++) {
      fleet.waitFor('hops', 5);
      fleet.safePoints.stopWorld(() => {
        Atomics.store(fleet.counters, COUNTERS.worldStopped, 1);
        const hops = fleet.count('hops');
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0.1);
        Atomics.store(fleet.counters, COUNTERS.worldStopped, 0);
        // A vCPU that waits for the others' TLBs is in the middle of a call; no new interrupt is served meanwhile.
        assert.equal(fleet.count('hops'), hops);
      });
      fleet.safePoints.flushTlbs(fleet.rigs[0]!.domid);
    }
  } finally {
    await fleet.close();
  }
});

test('timers wake sleeping vCPUs, and between timers nothing runs', async () => {
  const fleet = new Fleet([1, 1]);
  const timers = new Timers(fleet.gic, fleet.scheduling, systemClock);
  try {
    for (const { vcpus, domid } of fleet.rigs) {
      fleet.scheduling.pauseDomain(domid);
      fleet.scheduling.waitUntilStopped(domid);
      timers.setTime(domid, 0);
      timers.write(vcpus[0]!, sysreg.CNTV_TVAL_EL0, TIMER_PERIOD_TICKS, 0);
      timers.write(vcpus[0]!, sysreg.CNTV_CTL_EL0, 1, 0);
      fleet.scheduling.unpauseDomain(domid);
      fleet.scheduling.wake(vcpus[0]!);
    }
    fleet.waitFor('ticks', 400);
    assert.ok(fleet.slices < 3 * fleet.count('ticks') + 20, `${fleet.slices} slices`);
  } finally {
    await fleet.close();
  }
});
