// What the disk thread does: sleeps until a ring that it was lent has something, or it is lent another one, and serves them
// all (lanes/lane-server.ts), until the host closes. And what pCPUs' threads do with a ring of the guest that they run.

import { statfsSync } from 'node:fs';
import { systemClock } from '../base/clock.ts';
import { FrameViews, RingQueue } from '../devices/block/ring-queue.ts';
import type { LaneGuest } from '../devices/block/ring-queue.ts';
import { VirtqueueOfLane } from '../devices/virtio/lane-queue.ts';
import type { VirtioGuest } from '../devices/virtio/lane-queue.ts';
import type { VirtioMmio } from '../devices/virtio/registers.ts';
import { DeviceFrame } from '../hypervisor/emulated-devices.ts';
import { ringDiskThread } from '../hypervisor/event-delivery.ts';
import type { GrantMapping } from '../hypervisor/grant-table.ts';
import { GuestRam } from '../hypervisor/guest-ram.ts';
import { DISK_THREAD, HypervisorThread } from '../hypervisor/thread.ts';
import { LaneTable } from '../lanes/lane.ts';
import type { LaneQueue, LentQueue } from '../lanes/lane-queue.ts';
import { LaneServer } from '../lanes/lane-server.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { P2m } from '../memory/p2m.ts';
import type { DiskWorkerData } from './disk-thread.ts';

export function runDiskThread({ memory, doorbell, lanes }: DiskWorkerData): void {
  const machine = MachineMemory.attach(memory);
  const thread = new HypervisorThread(machine, DISK_THREAD, systemClock);
  const table = new LaneTable(lanes);
  const views = new FrameViews();
  const server = new LaneServer(table, {
    nanos: () => systemClock.monotonicNanos(),
    openQueue: (lent) => openQueue(thread, lent, views, (body) => betweenCode(thread, body)),
    freeBytes,
  });
  while (!table.isClosed) {
    const heard = Atomics.load(machine.i32, doorbell);
    if (!server.serve() && !server.readAhead()) Atomics.wait(machine.i32, doorbell, heard);
  }
}

/** From now on requests of guests that this pCPU runs are served here where that is quicker. */
export function serveLanes(thread: HypervisorThread, lanes: SharedArrayBuffer, virtio: VirtioMmio): void {
  const { safePoints, scheduling, hypercalls: { channels, domains } } = thread;
  const table = new LaneTable(lanes);
  const views = new FrameViews();
  const server = new LaneServer(table, {
    nanos: () => systemClock.monotonicNanos(),
    openQueue: (lent) => openQueue(thread, lent, views, (body) => body()),
    freeBytes,
    wait: (call) => {
      let result: ReturnType<typeof call>;
      safePoints.aside(() => { result = call(); });
      return result!;
    },
  });
  // Another vCPU that waits for this pCPU could run meanwhile.
  const serveLane = (lane: number): boolean => !scheduling.hasWaiting && server.serveAtOnce(lane);
  channels.serveLane = serveLane;
  virtio.serveSlot = (domid, slot) => {
    const lane = table.laneOfSlot(domid, slot);
    if (lane === undefined) return false;
    if (!serveLane(lane)) ringDiskThread(domains.record(0));
    return true;
  };
}

function freeBytes(fd: number): number {
  try {
    const { bavail, bsize } = statfsSync(`/proc/self/fd/${fd}`);
    return bavail * bsize;
  } catch {
    return 0;
  }
}

/** @param atWork wraps what is done with the machine's memory */
function openQueue(thread: HypervisorThread, lent: LentQueue, views: FrameViews, atWork: AtWork): LaneQueue {
  const { end } = lent;
  return 'port' in end ? new RingQueue(ringGuest(thread, end.domid, end.port, atWork), lent, views)
    : new VirtqueueOfLane(virtioGuest(thread, end.domid, atWork), end.domid, end.slot, lent);
}

function ringGuest(thread: HypervisorThread, domid: number, port: number, atWork: AtWork): LaneGuest {
  const { machine, hypercalls: { grants, channels, domains } } = thread;
  const host = domains.record(0);
  return {
    memory: machine.u8,
    map: (refs, write) => {
      const pages = atWork(() => grants.mapAll(domid, refs, write));
      return typeof pages === 'number' ? undefined : pages;
    },
    unmap: (pages) => atWork(() => grants.unmapAll(pages as readonly GrantMapping[])),
    notify: () => atWork(() => channels.send(host, port)),
  };
}

function virtioGuest({ gic, environment, heap, hypercalls: { domains } }: HypervisorThread, domid: number, atWork: AtWork): VirtioGuest {
  // Pages that are still in an image are the host's to read: that may take long, and this thread holds the lane's lock.
  const ram = new GuestRam({ ...environment, p2m: new P2m(heap) }, domains.record(domid));
  return { frame: new DeviceFrame(gic, domains), ram, atWork };
}

type AtWork = <T>(body: () => T) => T;

/**
 * For a thread that runs no code: what it does with the machine's memory counts as such, so that who has stopped the world
 * finds nothing half done.
 */
function betweenCode<T>({ safePoints }: HypervisorThread, body: () => T): T {
  safePoints.enterIdleWork();
  try {
    return body();
  } finally {
    safePoints.leave();
  }
}
