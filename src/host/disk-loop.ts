// What the disk thread does: sleeps until a ring that it was lent has something, or it is lent another one, and serves them
// all (devices/block/lane-server.ts), until the host closes. And what pCPUs' threads do with a ring of the guest that they run.

import { statfsSync } from 'node:fs';
import { systemClock } from '../base/clock.ts';
import { LaneServer } from '../devices/block/lane-server.ts';
import type { LaneGuest } from '../devices/block/lane-server.ts';
import { LaneTable } from '../devices/block/lane.ts';
import type { GrantMapping } from '../hypervisor/grant-table.ts';
import { DISK_THREAD, HypervisorThread } from '../hypervisor/thread.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import type { DiskWorkerData } from './disk-thread.ts';

export function runDiskThread({ memory, doorbell, lanes }: DiskWorkerData): void {
  const machine = MachineMemory.attach(memory);
  const thread = new HypervisorThread(machine, DISK_THREAD, systemClock);
  const table = new LaneTable(lanes);
  const server = new LaneServer(table, {
    nanos: () => systemClock.monotonicNanos(),
    guestOf: (domid, port) => betweenCode(thread, laneGuest(thread, domid, port)),
    freeBytes,
  });
  while (!table.isClosed) {
    const heard = Atomics.load(machine.i32, doorbell);
    if (!server.serve() && !server.readAhead()) Atomics.wait(machine.i32, doorbell, heard);
  }
}

/** From now on requests of guests that this pCPU runs are served here where that is quicker. */
export function serveLanes(thread: HypervisorThread, lanes: SharedArrayBuffer): void {
  const { safePoints, scheduling, hypercalls: { channels } } = thread;
  const server = new LaneServer(new LaneTable(lanes), {
    nanos: () => systemClock.monotonicNanos(),
    guestOf: (domid, port) => laneGuest(thread, domid, port),
    freeBytes,
    wait: (call) => {
      let result: ReturnType<typeof call>;
      safePoints.aside(() => { result = call(); });
      return result!;
    },
  });
  // Another vCPU that waits for this pCPU could run meanwhile.
  channels.serveLane = (lane) => !scheduling.hasWaiting && server.serveAtOnce(lane);
}

function freeBytes(fd: number): number {
  try {
    const { bavail, bsize } = statfsSync(`/proc/self/fd/${fd}`);
    return bavail * bsize;
  } catch {
    return 0;
  }
}

function laneGuest(thread: HypervisorThread, domid: number, port: number): LaneGuest {
  const { machine, hypercalls: { grants, channels, domains } } = thread;
  const host = domains.record(0);
  return {
    memory: machine.u8,
    map: (refs, write) => {
      const pages = grants.mapAll(domid, refs, write);
      return typeof pages === 'number' ? undefined : pages;
    },
    unmap: (pages) => grants.unmapAll(pages as readonly GrantMapping[]),
    notify: () => channels.send(host, port),
  };
}

/**
 * For a thread that runs no code: what it does with the machine's memory counts as such, so that who has stopped the world
 * finds nothing half done.
 */
function betweenCode({ safePoints }: HypervisorThread, guest: LaneGuest): LaneGuest {
  const atWork = <T>(work: () => T): T => {
    safePoints.enterIdleWork();
    try {
      return work();
    } finally {
      safePoints.leave();
    }
  };
  return {
    memory: guest.memory,
    map: (refs, write) => atWork(() => guest.map(refs, write)),
    unmap: (pages) => atWork(() => guest.unmap(pages)),
    notify: () => atWork(() => guest.notify()),
  };
}
