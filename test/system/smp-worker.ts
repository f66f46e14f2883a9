// A thread that runs one vCPU of an SmpRig whenever it is told to, until the guest calls the host.

import { workerData } from 'node:worker_threads';
import { Engine } from '../../src/cpu/engine.ts';
import { TestHost } from '../../src/cpu/test-machine.ts';
import { VcpuState } from '../../src/cpu/vcpu-state.ts';
import { MachineMemory } from '../../src/memory/machine-memory.ts';
import { CLOSE, CONTROL, THREADS_MASK } from './smp-rig.ts';
import type { SmpTask } from './smp-rig.ts';

const { memory, control, interpreter, regions, index, vcpuCount } = workerData as SmpTask;
const machine = MachineMemory.attach(memory);
const vcpus = Array.from({ length: vcpuCount }, (_, i) => new VcpuState(machine, machine.vcpuAddress(i)));
const host = new TestHost(machine, vcpus);
const engine = new Engine(machine, host, interpreter, { pcpu: index });
host.engine = engine;
for (const region of regions) engine.addRegions(region);

const SLICE = 1_000_000;
const words = new Int32Array(control);
Atomics.add(words, CONTROL.ready, 1);
Atomics.notify(words, CONTROL.ready);
for (let round = 0; ;) {
  Atomics.wait(words, CONTROL.round, round);
  round = Atomics.load(words, CONTROL.round);
  if (round === CLOSE) break;
  if (index >= (round & THREADS_MASK)) continue;
  const calls = host.hypercalls.length;
  while (host.hypercalls.length === calls) engine.run(engine.vcpu(machine.vcpuAddress(index)), SLICE);
  Atomics.add(words, CONTROL.done, 1);
  Atomics.notify(words, CONTROL.done);
}
