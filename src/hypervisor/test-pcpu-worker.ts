// A pCPU thread of workers.test.ts: the real loop around an engine whose guests only pass interrupts around. Each
// guest acknowledges what is pending, and for each SGI sends one to the next vCPU of its domain; then it waits.

import { workerData } from 'node:worker_threads';
import { sysreg } from '../a64/system-registers.ts';
import { SCHEDULER } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { systemClock } from '../base/clock.ts';
import type { ExitReason } from '../cpu/host.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { Gic } from './gic.ts';
import { PCpu } from './pcpu.ts';
import { SafePoints } from './safe-points.ts';
import { VcpuScheduling } from './scheduler.ts';
import { COUNTERS, TIMER_PERIOD_TICKS } from './test-pcpu-task.ts';
import type { PcpuTask } from './test-pcpu-task.ts';
import { Timers } from './timer.ts';

const task = workerData as PcpuTask;
const machine = MachineMemory.attach(task.memory);
const counters = new Uint32Array(task.counters);
const scheduling = new VcpuScheduling(machine);
const gic = new Gic(machine, vcpu => scheduling.interrupted(vcpu));
const timers = new Timers(gic, scheduling, systemClock);
const safePoints = new SafePoints(machine, task.pcpu);
const at = vcpuRecord.at;

/** A long call from code, as it seems to the others; not for ever, if nobody comes to wait for it. */
function holdUntilAwaited(): void {
  const waiters = (machine.region('scheduler').offsetBytes + SCHEDULER.at.stopWaiters) / 4;
  const nothing = new Int32Array(new SharedArrayBuffer(4));
  Atomics.add(counters, COUNTERS.held, 1);
  for (let millis = 0; millis < 10_000 && Atomics.load(machine.u32, waiters) === 0; millis++) Atomics.wait(nothing, 0, 0, 1);
}

function serve(vcpu: VcpuState): void {
  const intid = gic.acknowledge(vcpu.address);
  if (intid === 1023) return;
  const index = gic.indexOf(vcpu.address);
  const domid = gic.domidOf(vcpu.address);
  if (intid === task.timerIntid) {
    Atomics.add(counters, COUNTERS.ticks, 1);
    timers.write(vcpu.address, sysreg.CNTV_TVAL_EL0, TIMER_PERIOD_TICKS, 0);
  } else {
    Atomics.add(counters, COUNTERS.hops, 1);
    Atomics.notify(new Int32Array(task.counters), COUNTERS.hops);
    gic.sendSgi(vcpu.address, (intid << 24) | (1 << ((index + 1) % gic.vcpuCount(domid))), 0);
    if (task.flushEvery !== 0 && Atomics.add(counters, COUNTERS.served, 1) % task.flushEvery === 0) {
      safePoints.flushTlbs(domid, { except: vcpu.address });
    }
  }
  gic.endOfInterrupt(vcpu.address, intid);
}

const engine = {
  isInRegions: false,
  vcpu: (address: number) => new VcpuState(machine, address),
  run(vcpu: VcpuState, instructions: number): ExitReason {
    // Two pCPUs in one vCPU, or code running while the world is stopped, would be counted here.
    if (Atomics.add(machine.u32, (vcpu.address + at.tpidrEl0) / 4, 1) !== 0) Atomics.add(counters, COUNTERS.errors, 1);
    if (Atomics.load(counters, COUNTERS.worldStopped) !== 0) Atomics.add(counters, COUNTERS.errors, 1);
    if (Atomics.load(counters, COUNTERS.hold) !== 0) holdUntilAwaited();
    Atomics.store(machine.u32, (vcpu.address + at.pending) / 4, 0);
    engine.obeyFlushRequest(vcpu);
    let left = instructions;
    const pending = (vcpu.address + at.pending) / 4;
    while (vcpu.get32(at.irqLine) !== 0 && left > 0 && Atomics.load(machine.u32, pending) === 0) {
      serve(vcpu);
      left -= 100;
    }
    const reason = Atomics.load(machine.u32, (vcpu.address + at.irqLine) / 4) === 0 ? 'wfi' : 'slice';
    Atomics.sub(machine.u32, (vcpu.address + at.tpidrEl0) / 4, 1);
    return reason;
  },
  requestExit(): void {},
  obeyFlushRequest(vcpu: VcpuState): void {
    const request = Atomics.load(machine.u32, (vcpu.address + at.tlbFlushRequest) / 4);
    Atomics.store(machine.u32, (vcpu.address + at.tlbFlushDone) / 4, request);
  },
};

new PCpu(engine, { pcpu: task.pcpu, machine, scheduling, safePoints, timers, clock: systemClock }).runLoop();
