// A disk whose ring is lent, with the threads that serve it, stepped by a test.

import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { HostLane, LaneTable } from '../../lanes/lane.ts';
import type { LentQueue } from '../../lanes/lane-queue.ts';
import { LaneServer } from '../../lanes/lane-server.ts';
import { BlockBackend } from './backend.ts';
import type { Disk } from './disk.ts';
import { openDisk } from './open-disk.ts';
import { FrameViews, RingQueue } from './ring-queue.ts';
import type { LaneGuest } from './ring-queue.ts';
import { rawFile, testFolder } from './test-disks.ts';
import { TestGuest, TestRing } from './test-front-end.ts';
import type { TestResponse } from './test-front-end.ts';

export const SECTORS = 1024;
export const GOOD = { ref: 20, first: 0, last: 7 };

/** The disk thread and a vCPU's in this one: they do something when they are told to. */
export class TestThread {
  readonly table = new LaneTable();
  readonly guest: LaneGuest;
  isReady = true;
  isLocal = true;
  /** How often somebody wanted to know that. */
  asked = 0;
  /** Whom the ring's events are for. */
  listener = 'host';
  isClosed = false;
  nanos = 0;
  onMap: () => void = () => {};
  readonly lane: HostLane;
  freeBytes = 2 ** 40;
  /** In place of the disk's file; undefined: that. */
  fd: number | undefined;
  readonly #brings = {
    nanos: () => this.nanos, freeBytes: () => this.freeBytes,
    openQueue: (lent: LentQueue) => new RingQueue(this.guest, lent, new FrameViews()),
  };
  readonly #server = new LaneServer(this.table, this.#brings);
  /** Called when a vCPU waits for the disk. */
  onWait: () => void = () => {};
  readonly #vcpus = new LaneServer(this.table, {
    ...this.#brings,
    wait: (call) => {
      this.onWait();
      return call();
    },
  });

  constructor(guest: TestGuest) {
    this.guest = {
      memory: guest.memory,
      map: (refs, write) => {
        this.onMap();
        const pages = refs.map((ref) => guest.map(ref, write));
        const got = pages.filter((page) => typeof page !== 'number');
        if (got.length === pages.length) return got;
        for (const page of got) guest.unmap(page);
        return undefined;
      },
      unmap: (pages) => { for (const page of pages) guest.unmap(page); },
      notify: () => guest.notify(),
    };
    this.table.open(3, { domid: 1, port: 1 });
    this.lane = new HostLane(this.table, 3, {
      canTake: () => {
        this.asked++;
        return this.isReady;
      },
      take: () => { this.listener = 'disk thread'; },
      takeBack: () => { this.listener = 'host'; },
      closed: () => { this.isClosed = true; },
    });
    // Whatever the test's folder is on.
    const lend = this.lane.lend.bind(this.lane);
    this.lane.lend = (loan, onReturn) => lend({ ...loan, isLocal: this.isLocal, fd: this.fd ?? loan.fd }, onReturn);
  }

  get state(): number {
    return this.table.get(3, 'state');
  }
  serve(): boolean {
    return this.#server.serve();
  }
  /** The guest's thread says that there is something. @returns whether the disk thread need not look */
  serveAtOnce(): boolean {
    return this.#vcpus.serveAtOnce(3);
  }
  readAhead(): boolean {
    return this.#server.readAhead();
  }
}

export async function setUp(t: TestContext, options: { disk?: Disk; isReadOnly?: boolean; losesData?: boolean } = {}) {
  const path = await rawFile(await testFolder(t), SECTORS * 512);
  const disk = options.disk ?? await openDisk({ path, format: 'raw', isReadOnly: options.isReadOnly });
  const guest = new TestGuest(64);
  const ring = new TestRing(guest, [1]);
  guest.grantAll(20, 40);
  const thread = new TestThread(guest);
  const clock = { nowNanos: 0, monotonicNanos: () => clock.nowNanos, wallMillis: () => 0 };
  const backend = new BlockBackend({
    guest: { memory: guest.memory, map: (ref, write) => guest.map(ref, write), unmap: (page) => guest.unmap(page), notify: () => guest.notify() },
    disk, clock,
  });
  assert.ok(backend.connect({ ringRefs: [1], isPersistent: false, position: 0 }));
  backend.useLane(thread.lane);
  t.after(async () => {
    backend.disconnect();
    thread.serve();
    await backend.pause();
    if (options.losesData) await assert.rejects(disk.close(), { code: 'ZAZEN_DISK_IO' });
    else await disk.close();
  });
  /** With both threads at work. */
  const answers = async (count: number): Promise<TestResponse[]> => {
    const got: TestResponse[] = [];
    for (backend.service(); got.length < count; await turn()) {
      thread.serve();
      got.push(...ring.responses());
    }
    return got;
  };
  backend.service();
  assert.equal(thread.listener, 'disk thread');
  return { path, disk, guest, ring, thread, backend, clock, answers };
}
