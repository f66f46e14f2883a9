// The hypervisor of one thread: all its parts over the machine memory, put together. Each pCPU worker has one, and so
// has the main thread, which makes no hypercalls but builds and ends domains and is the far end of event channels.

import { PCPU_MAX, THREAD_MAX } from '../abi/machine-memory.ts';
import { affinityOfVcpu } from '../abi/gic.ts';
import { GUEST_EVTCHN_PPI } from '../abi/xen.ts';
import { unreachable } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { resetVcpu } from '../cpu/reset.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { Heap } from '../memory/heap.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { P2m } from '../memory/p2m.ts';
import type { Environment, GuestAccess } from './environment.ts';
import { notifyHostOf } from './event-delivery.ts';
import { Gic } from './gic.ts';
import { Hypercalls } from './hypercalls.ts';
import { SafePoints } from './safe-points.ts';
import { VcpuScheduling } from './scheduler.ts';
import { Timers } from './timer.ts';

/** Number of the main thread among those that use the heap and stop the world: the first that is no pCPU. */
export const MAIN_THREAD = PCPU_MAX;
/** Number of the thread that looks after disks' rings (lanes/lane-server.ts). */
export const DISK_THREAD = PCPU_MAX + 1;
/** Number of the thread that networks live in, with their cards' rings and queues (host/network-loop.ts). */
export const NETWORK_THREAD = THREAD_MAX - 1;

const noGuestAccess: GuestAccess = {
  copyFromGuest: () => unreachable('a hypercall outside a pCPU'),
  copyToGuest: () => unreachable('a hypercall outside a pCPU'),
  mustRetry: () => unreachable('a hypercall outside a pCPU'),
};

export class HypervisorThread {
  readonly machine: MachineMemory;
  readonly clock: Clock;
  readonly heap: Heap;
  readonly p2m: P2m;
  readonly scheduling: VcpuScheduling;
  readonly safePoints: SafePoints;
  readonly gic: Gic;
  readonly timers: Timers;
  readonly environment: Environment;
  readonly hypercalls: Hypercalls;

  /**
   * @param thread number of the pCPU, MAIN_THREAD, DISK_THREAD or NETWORK_THREAD. The heap is initialized.
   * @param guest how hypercalls reach guest memory; left out where none are made
   */
  constructor(machine: MachineMemory, thread: number, clock: Clock, guest: GuestAccess = noGuestAccess) {
    this.machine = machine;
    this.clock = clock;
    this.heap = new Heap(machine, thread);
    this.p2m = new P2m(this.heap);
    this.scheduling = new VcpuScheduling(machine);
    this.safePoints = new SafePoints(machine, thread);
    this.gic = new Gic(machine, address => this.scheduling.interrupted(address),
      (address, intid) => this.#sampleLine(address, intid));
    this.timers = new Timers(this.gic, this.scheduling, clock);
    this.environment = {
      memory: machine, heap: this.heap, p2m: this.p2m, guest, clock,
      interrupts: this.gic, scheduler: this.scheduling,
      stage2: { flush: domid => this.safePoints.flushTlbs(domid) },
    };
    this.hypercalls = new Hypercalls(this.environment);
    this.scheduling.onShutDown(domid => notifyHostOf(this.hypercalls.domains.record(0), domid));
  }

  /** The guest clears its upcall flag without telling anybody; the end of the interrupt is when to look. */
  #sampleLine(vcpuAddress: number, intid: number): void {
    if (intid !== GUEST_EVTCHN_PPI) return;
    const record = this.hypercalls.domains.record(this.gic.domidOf(vcpuAddress));
    this.hypercalls.channels.delivery.syncUpcall(record, this.gic.indexOf(vcpuAddress));
  }

  /** Puts a vCPU that runs nowhere into its state after reset. */
  resetVcpu(vcpuAddress: number, entry: bigint, x0: bigint): void {
    resetVcpu(new VcpuState(this.machine, vcpuAddress), affinityOfVcpu(this.gic.indexOf(vcpuAddress)), entry, x0);
  }
}
