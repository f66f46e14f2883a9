// A process of failure.test.ts: a host in which an error of ours is made, as its first word says.
//
//   lock   a pCPU's thread fails in the middle of the run queue, which it has locked; this one goes there, too
//   vcpu   the same, and it leaves a vCPU as if that ran; this one waits for it to stop
//   network  the network thread fails while this one waits for its answer
//   main   this thread fails where it holds a lock, and whoever it did that for catches the error

import { VCPU_STATE } from '../../src/abi/scheduler.ts';
import { systemClock } from '../../src/base/clock.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { HostCore } from '../../src/host/host-core.ts';
import type { HostCard } from '../../src/host/networks.ts';

const core = new HostCore({
  memoryBytes: 256 * 2 ** 20, pcpus: 1, clock: systemClock, random: new SeededRandom(1), log: () => {},
});
core.startWorkers();
await Promise.all([core.firstPcpuRuns, core.networks.begin()]);
const { scheduling, machine } = core.thread;

/** There is no vCPU of that number, so the pCPU's thread, when it takes it, fails with the queue's lock. */
function spoilQueue(): void {
  Atomics.store(machine.u32, scheduling.word('head'), 0x30_0000);
  scheduling.poke(0);
}

/** @returns a domain whose vCPU nobody will ever take out of that state */
function makeRunning(): number {
  const [vcpuAddress] = core.takeVcpus(1) as [number];
  const { domain } = core.builder.createDomain({ vcpuAddresses: [vcpuAddress], handle: new Uint8Array(16), maxPages: 1 })!;
  core.thread.gic.resetDomain(domain.domid, [vcpuAddress]);
  scheduling.attach(vcpuAddress);
  scheduling.set(vcpuAddress, 'state', VCPU_STATE.running);
  return domain.domid;
}

const acts: Readonly<Record<string, () => void>> = {
  lock: () => {
    spoilQueue();
    for (;;) scheduling.wakeIdlePcpus();
  },
  vcpu: () => {
    const domid = makeRunning();
    spoilQueue();
    scheduling.waitUntilStopped(domid);
  },
  network: () => { core.networks.cardMetrics([{ number: 99 } as HostCard]); },
  main: () => {
    scheduling.lockQueue();
    throw new Error('caught');
  },
};
try {
  acts[process.argv[2]!]!();
} catch (error) {
  console.log((error as Error).message.split('\n')[0]);
}
// It is not this that ends the process.
setInterval(() => {}, 1000);
