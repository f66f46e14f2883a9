// What the disk thread does: sleeps until a ring that it was lent has something, or it is lent another one, and serves them
// all (devices/block/lane-server.ts), until the host closes.

import { receiveMessageOnPort } from 'node:worker_threads';
import { systemClock } from '../base/clock.ts';
import { LaneServer } from '../devices/block/lane-server.ts';
import type { LaneGuest } from '../devices/block/lane-server.ts';
import { LaneTable } from '../devices/block/lane.ts';
import type { GrantMapping } from '../hypervisor/grant-table.ts';
import { DISK_THREAD, HypervisorThread } from '../hypervisor/thread.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import type { DiskWorkerData, PostedLoan } from './disk-thread.ts';

export function runDiskThread({ memory, doorbell, lanes, port }: DiskWorkerData): void {
  const machine = MachineMemory.attach(memory);
  const thread = new HypervisorThread(machine, DISK_THREAD, systemClock);
  const server = new LaneServer(new LaneTable(lanes), () => systemClock.monotonicNanos());
  for (;;) {
    const heard = Atomics.load(machine.i32, doorbell);
    for (let posted = receiveMessageOnPort(port); posted !== undefined; posted = receiveMessageOnPort(port)) {
      const message = posted.message as PostedLoan | null;
      if (message === null) return;
      server.add(message.lane, message.number, message.loan, laneGuest(thread, message));
    }
    if (!server.serve() && !server.readAhead()) Atomics.wait(machine.i32, doorbell, heard);
  }
}

/** What it does with the machine's memory counts as code: who has stopped the world finds nothing half done. */
function laneGuest(thread: HypervisorThread, { domid, port }: PostedLoan): LaneGuest {
  const { machine, safePoints, hypercalls: { grants, channels, domains } } = thread;
  const host = domains.record(0);
  const atWork = <T>(work: () => T): T => {
    safePoints.enterIdleWork();
    try {
      return work();
    } finally {
      safePoints.leave();
    }
  };
  const unmap = (pages: readonly GrantMapping[]): void => { for (const page of pages) grants.unmap(page); };
  return {
    memory: machine.u8,
    map: (refs, write) => atWork(() => {
      const pages: GrantMapping[] = [];
      for (const ref of refs) {
        const page = grants.map(domid, ref, write);
        if (typeof page === 'number') {
          unmap(pages);
          return undefined;
        }
        pages.push(page);
      }
      return pages;
    }),
    unmap: (pages) => atWork(() => unmap(pages as readonly GrantMapping[])),
    notify: () => atWork(() => channels.send(host, port)),
  };
}
