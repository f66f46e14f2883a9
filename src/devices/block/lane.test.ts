import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { BLKIF_OP, BLKIF_RSP, blkifRequest } from '../../abi/xen-block.ts';
import { BlockBackend } from './backend.ts';
import type { Disk } from './disk.ts';
import { HostLane, LANE_STATE, LaneTable, LaneWatch } from './lane.ts';
import { LaneServer } from './lane-server.ts';
import type { LaneGuest } from './lane-server.ts';
import { openDisk } from './open-disk.ts';
import { rawFile, seed, testFolder } from './test-disks.ts';
import { TestGuest, TestRing } from './test-front-end.ts';
import type { TestResponse } from './test-front-end.ts';

const SECTORS = 1024;
const runs = Number(process.env['ZAZEN_TEST_RUNS'] ?? 60);
const GOOD = { ref: 20, first: 0, last: 7 };

/** The disk thread and a vCPU's in this one: they do something when they are told to. */
class TestThread {
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
  readonly #server = new LaneServer(this.table, { nanos: () => this.nanos, guestOf: () => this.guest, freeBytes: () => this.freeBytes });
  /** Called when a vCPU waits for the disk. */
  onWait: () => void = () => {};
  readonly #vcpus = new LaneServer(this.table, {
    nanos: () => this.nanos, guestOf: () => this.guest, freeBytes: () => this.freeBytes,
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
    this.table.open(3, 1, 1);
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

async function setUp(t: TestContext, options: { disk?: Disk; isReadOnly?: boolean; losesData?: boolean } = {}) {
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

test('reads and writes are answered by the disk thread, and nobody else is asked', async (t) => {
  const { path, disk, guest, ring, thread, backend } = await setUp(t);
  guest.page(20).fill(0xa5);
  guest.page(21).fill(0x5a);
  // Multiples of a page, as file systems on disks with large sectors want them, though in pieces.
  const first = ring.request(BLKIF_OP.write, 8, [GOOD, { ref: 20, first: 2, last: 5 }, { ref: 21, first: 0, last: 3 }]);
  const second = ring.request(BLKIF_OP.read, 16, [{ ref: 30, first: 4, last: 7 }, { ref: 31, first: 0, last: 3 }]);
  const segments = Array.from({ length: 30 }, (_, i) => ({ ref: 20 + i, first: 0, last: 7 }));
  const third = ring.indirect(BLKIF_OP.write, 64, segments, 10);
  assert.ok(thread.serve());
  assert.deepEqual(ring.responses(), [
    { id: first, operation: BLKIF_OP.write, status: 0 }, { id: second, operation: BLKIF_OP.read, status: 0 },
    { id: third, operation: BLKIF_OP.write, status: 0 },
  ]);
  assert.ok(!thread.serve(), 'nothing is left');
  assert.ok(guest.page(30).every((byte, i) => byte === (i < 2048 ? 0 : 0xa5)));
  assert.ok(guest.page(31).every((byte, i) => byte === (i < 2048 ? 0x5a : 0)));
  const file = await readFile(path);
  assert.ok(file.subarray(8 * 512, 20 * 512).every((byte) => byte === 0xa5) && file.subarray(20 * 512, 24 * 512).every((byte) => byte === 0x5a));
  assert.deepEqual(file.subarray(64 * 512, 72 * 512), Buffer.from(guest.page(20)));
  assert.equal(guest.inUse, 1, 'only the ring is in use');
  const { reads, writes, readBytes, writtenBytes, byDiskThread, notifications } = backend.metrics;
  assert.deepEqual({ reads, writes, readBytes, writtenBytes, byDiskThread }, { reads: 1, writes: 2, readBytes: 4096, writtenBytes: 8192 + 30 * 4096, byDiskThread: 3 });
  assert.equal(notifications, guest.notifications);
  assert.equal(disk.files()[0]!.stats.reads + disk.files()[0]!.stats.writes, 0);
});

test('what is not for it comes back, is answered, and the ring goes there again; what it wrote is flushed', async (t) => {
  const { disk, guest, ring, thread, backend, answers } = await setUp(t);
  guest.granted.set(25, false);
  ring.request(BLKIF_OP.write, 0, [GOOD]);
  ring.request(BLKIF_OP.flush_diskcache, 0, []);
  ring.request(BLKIF_OP.read, 0, [{ ...GOOD, ref: 99 }]);
  ring.request(BLKIF_OP.read, 0, [GOOD, { ...GOOD, ref: 25 }]);
  ring.request(BLKIF_OP.read, SECTORS - 7, [GOOD]);
  ring.request(BLKIF_OP.write, Number.MAX_SAFE_INTEGER, [GOOD]);
  ring.request(BLKIF_OP.read, 0, [{ ...GOOD, first: 5, last: 4 }]);
  ring.request(99, 0, [GOOD]);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  const statuses = (await answers(9)).toSorted((a, b) => a.id - b.id).map(({ status }) => status);
  assert.deepEqual(statuses, [0, 0, ...Array.from({ length: 5 }, () => BLKIF_RSP.error), BLKIF_RSP.eopnotsupp, 0]);
  assert.equal(disk.files()[0]!.stats.syncs, 1, 'what another thread has written is known to be on its way');
  assert.equal(backend.metrics.badRequests, 5);
  assert.equal(thread.listener, 'disk thread');
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  const before = backend.metrics.byDiskThread;
  assert.equal((await answers(1))[0]!.status, 0);
  assert.equal(backend.metrics.byDiskThread, before + 1);
  assert.equal(guest.inUse, 1);
});

test('an index that cannot be is nothing to do, in either thread', async (t) => {
  const { ring, thread, backend, answers } = await setUp(t);
  ring.setIndex('req_prod', 1000);
  assert.ok(!thread.serve());
  assert.ok(backend.metrics.badIndices > 0);
  ring.setIndex('req_prod', 0);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.equal((await answers(1))[0]!.status, 0);
});

test('a read-only disk is not written to, and a disk in layers stays with the host', async (t) => {
  const { ring, thread, answers, disk, backend } = await setUp(t, { isReadOnly: true });
  ring.request(BLKIF_OP.write, 0, [GOOD]);
  assert.equal((await answers(1))[0]!.status, BLKIF_RSP.error);
  await backend.pause();
  assert.equal(thread.state, LANE_STATE.free);
  const state = disk.freeze();
  backend.resume();
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.equal((await answers(1))[0]!.status, 0, 'one that is only read may be part of a checkpoint');
  await state.release();
});

test('after a checkpoint, writes make a layer and the ring stays; when it has gone, the ring is lent again', async (t) => {
  const { disk, ring, thread, backend, answers } = await setUp(t);
  await backend.pause();
  const state = disk.freeze();
  const { asked } = thread;
  backend.resume();
  assert.equal(thread.listener, 'host');
  ring.request(BLKIF_OP.write, 0, [GOOD]);
  assert.equal((await answers(1))[0]!.status, 0);
  assert.equal(disk.files().length, 2);
  assert.equal(backend.metrics.byDiskThread, 0);
  assert.equal(thread.asked, asked, 'nor is the thread wanted for it');
  await state.release();
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  await answers(1);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  await answers(1);
  assert.ok(backend.metrics.byDiskThread > 0);
});

test('pausing waits for the request under way, and takes the ring back', async (t) => {
  const { guest, ring, thread, backend } = await setUp(t);
  let isPaused = false;
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  let pausing: Promise<void> | undefined;
  thread.onMap = () => {
    pausing ??= (async () => {
      await backend.pause();
      isPaused = true;
    })();
    assert.equal(thread.listener, 'host', 'events are the host\'s from now on');
  };
  thread.serve();
  assert.ok(!isPaused, 'known when the loop has come to it');
  await pausing;
  assert.equal(ring.responses().length, 1, 'the one under way is answered, the next one waits');
  assert.equal(guest.inUse, 1);
  assert.equal(backend.save()!.position, 1);
  backend.letGo();
  assert.equal(guest.inUse, 0);
  assert.ok(!thread.serve());
  thread.onMap = () => {};
  backend.resume();
  for (let got = 0; got < 1; await turn()) {
    thread.serve();
    got += ring.responses().length;
  }
});

test('a connection that ends while a request is under way: the ring is not touched again, the disk waits', async (t) => {
  const { disk, guest, ring, thread, backend } = await setUp(t);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  let before: Uint8Array | undefined;
  thread.onMap = () => {
    if (before !== undefined) return;
    backend.disconnect();
    assert.equal(guest.uses.get(1), 0, 'its pages may be anybody\'s');
    guest.page(1).fill(0xee);
    before = guest.page(1).slice();
  };
  const notifications = guest.notifications;
  thread.serve();
  assert.deepEqual(guest.page(1), before);
  assert.equal(guest.notifications, notifications);
  assert.equal(guest.inUse, 0);
  assert.equal(thread.state, LANE_STATE.free);
  assert.ok(!thread.isClosed, 'not before the host has heard');
  await backend.pause();
  assert.ok(thread.isClosed);
  await disk.close();
});

test('of a loan that has ended nothing is used for the next one', async (t) => {
  const { guest, ring, thread, backend } = await setUp(t);
  thread.serve();
  thread.serveAtOnce();
  await backend.pause();
  const other = new TestRing(guest, [2]);
  assert.ok(backend.connect({ ringRefs: [2], isPersistent: false, position: 0 }));
  backend.useLane(new HostLane(thread.table, 3, {
    canTake: () => true, take: () => {}, takeBack: () => {}, closed: () => {},
  }));
  backend.resume();
  assert.equal(thread.state, LANE_STATE.served);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  other.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(thread.serve());
  assert.deepEqual([ring.responses().length, other.responses().length], [0, 1]);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  other.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(thread.serveAtOnce());
  assert.deepEqual([ring.responses().length, other.responses().length], [0, 1]);
});

test('who reads from front to back gets what was read meanwhile; what it writes is never missed', async (t) => {
  const { path, disk, guest, ring, thread, backend, answers } = await setUp(t);
  const file = Buffer.from(Array.from({ length: SECTORS * 512 }, (_, i) => (i >>> 16) * 16 + i % 7));
  await writeFile(path, file);
  const large = Array.from({ length: 16 }, (_, i) => ({ ref: 20 + i, first: 0, last: 7 }));
  const BYTES = 65536;
  /** The nth part of the disk, as the guest gets it. */
  const readPart = (part: number): Buffer => {
    ring.indirect(BLKIF_OP.read, part * BYTES / 512, large, 10);
    assert.ok(thread.serve());
    assert.deepEqual(ring.responses().map(({ status }) => status), [0]);
    return Buffer.from(guest.memory.slice(20 * 4096, 36 * 4096));
  };
  const partOf = (bytes: Buffer, part: number): Buffer => bytes.subarray(part * BYTES, (part + 1) * BYTES);
  readPart(0);
  assert.ok(!thread.readAhead(), 'one request is no order yet');
  readPart(1);
  assert.ok(thread.readAhead());
  assert.ok(!thread.readAhead(), 'once');
  // Nobody but the guest writes to its disk: if somebody does, that shows where the bytes come from.
  await writeFile(path, Buffer.alloc(file.length, 0xee));
  assert.deepEqual(readPart(2), partOf(file, 2));
  assert.deepEqual(readPart(4), partOf(file, 4), 'whatever of it is asked for');
  assert.deepEqual(readPart(3), partOf(file, 3));
  guest.page(50).fill(0x77);
  ring.request(BLKIF_OP.write, 5 * BYTES / 512, [{ ref: 50, first: 0, last: 7 }]);
  assert.ok(thread.serve());
  ring.responses();
  assert.deepEqual(readPart(5), Buffer.concat([Buffer.alloc(4096, 0x77), Buffer.alloc(BYTES - 4096, 0xee)]));
  assert.equal(backend.metrics.failures, 0);

  // What the host does with the ring, or the disk, ends it.
  readPart(6);
  assert.ok(thread.readAhead());
  await backend.pause();
  assert.ok(!thread.readAhead(), 'the ring is not here');
  await writeFile(path, file);
  backend.resume();
  ring.indirect(BLKIF_OP.read, 7 * BYTES / 512, large, 10);
  assert.equal((await answers(1))[0]!.status, 0);
  assert.deepEqual(Buffer.from(guest.memory.slice(20 * 4096, 36 * 4096)), partOf(file, 7));
  assert.ok(!thread.readAhead(), 'nothing is behind the end');
  assert.equal(disk.files()[0]!.stats.reads, 0);
  assert.equal(guest.inUse, 1);
});

test('small requests that follow each other for long are read ahead, too, many at once', async (t) => {
  const { path, guest, ring, thread } = await setUp(t);
  const file = Buffer.from(Array.from({ length: SECTORS * 512 }, (_, i) => (i >>> 12) + i % 5));
  await writeFile(path, file);
  const readPage = (page: number): Buffer => {
    ring.request(BLKIF_OP.read, page * 8, [{ ref: 20, first: 0, last: 7 }]);
    assert.ok(thread.serve());
    assert.deepEqual(ring.responses().map(({ status }) => status), [0]);
    return Buffer.from(guest.page(20));
  };
  const pageOf = (bytes: Buffer, page: number): Buffer => bytes.subarray(page * 4096, (page + 1) * 4096);
  for (let page = 0; page < 7; page++) {
    readPage(page);
    assert.ok(!thread.readAhead(), 'by chance, perhaps');
  }
  readPage(7);
  assert.ok(thread.readAhead());
  const other = Buffer.alloc(file.length, 0xee);
  await writeFile(path, other);
  for (let page = 8; page < 8 + 32; page++) {
    assert.ok(!thread.readAhead(), 'there is more of what was read');
    assert.deepEqual(readPage(page), pageOf(file, page));
  }
  assert.ok(thread.readAhead());
  // One elsewhere, and the order has to show once more.
  assert.deepEqual(readPage(2), pageOf(other, 2));
  assert.ok(!thread.readAhead());
});

test('no reading ahead of a disk that others may write to, nor of one that fails', async (t) => {
  const large = Array.from({ length: 16 }, (_, i) => ({ ref: 20 + i, first: 0, last: 7 }));
  for (const isReadOnly of [true, false]) {
    const { path, ring, thread } = await setUp(t, { isReadOnly });
    for (const part of [0, 1]) ring.indirect(BLKIF_OP.read, part * 128, large, 10);
    assert.ok(thread.serve());
    await truncate(path, 2 * 65536);
    assert.equal(thread.readAhead(), !isReadOnly);
    assert.ok(!thread.readAhead(), 'not again and again');
  }
});

test('a small request that is alone is answered in the thread of the vCPU that has made it', async (t) => {
  const { path, guest, ring, thread, backend, answers } = await setUp(t);
  guest.page(20).fill(0x66);
  const write = ring.request(BLKIF_OP.write, 8, [GOOD]);
  const { notifications } = guest;
  assert.ok(thread.serveAtOnce());
  assert.deepEqual(ring.responses(), [{ id: write, operation: BLKIF_OP.write, status: 0 }]);
  assert.equal(guest.notifications, notifications + 1);
  assert.equal(ring.index('req_event'), ring.index('req_prod') + 1, 'the guest tells of the next one');
  assert.ok((await readFile(path)).subarray(4096, 8192).every((byte) => byte === 0x66));
  assert.deepEqual([backend.metrics.byVcpus, backend.metrics.byDiskThread, guest.inUse], [1, 0, 1]);
  // The other thread goes on where this one has ended, and the other way round.
  ring.request(BLKIF_OP.read, 8, [{ ...GOOD, ref: 30 }]);
  assert.ok(thread.serve());
  ring.request(BLKIF_OP.read, 8, [{ ...GOOD, ref: 31 }]);
  assert.ok(thread.serveAtOnce());
  assert.equal(ring.responses().length, 2);
  assert.ok(guest.page(30).every((byte) => byte === 0x66) && guest.page(31).every((byte) => byte === 0x66));
  // Not what takes long: several, or a large one; nor what only the host can do.
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(!thread.serveAtOnce());
  assert.ok(thread.serve());
  ring.indirect(BLKIF_OP.read, 0, [GOOD], 10);
  assert.ok(!thread.serveAtOnce());
  assert.ok(thread.serve());
  assert.equal(ring.responses().length, 3);
  ring.request(BLKIF_OP.read, 0, [{ ...GOOD, ref: 99 }]);
  assert.ok(thread.serveAtOnce(), 'the host has the ring, and hears of it');
  assert.equal(thread.state, LANE_STATE.free);
  assert.equal((await answers(1))[0]!.status, BLKIF_RSP.error);
  assert.deepEqual([backend.metrics.byVcpus, backend.metrics.byDiskThread], [2, 4]);
});

test('while one thread is busy with a ring the other does nothing to it, and what comes meanwhile is not forgotten', async (t) => {
  const { ring, thread } = await setUp(t);
  let tried = 0;
  // A second request comes while the vCPU waits for the disk; who tells of it, and the disk thread, find the ring busy.
  thread.onWait = () => {
    if (tried++ > 0) return;
    ring.request(BLKIF_OP.read, 0, [GOOD]);
    assert.ok(!thread.serveAtOnce());
    assert.ok(!thread.serve());
  };
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(!thread.serveAtOnce(), 'the disk thread is to look again');
  assert.equal(ring.responses().length, 1);
  assert.ok(thread.serve());
  assert.equal(ring.responses().length, 1);
  // The same, seen by the disk thread too late for the look that ends the vCPU's work.
  thread.onWait = () => { thread.serve(); };
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(!thread.serveAtOnce());
  thread.onWait = () => {};
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(thread.serveAtOnce(), 'once');
  assert.equal(ring.responses().length, 2);
  // And the other way round.
  thread.onMap = () => { assert.ok(!thread.serveAtOnce()); };
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(thread.serve());
  assert.equal(ring.responses().length, 1);
});

test('a vCPU waits for a disk that is quick and of this machine', async (t) => {
  const { ring, thread, answers, backend } = await setUp(t);
  const atOnce = (waitNanos: number): boolean => {
    thread.onWait = () => { thread.nanos += waitNanos; };
    ring.request(BLKIF_OP.read, 0, [GOOD]);
    const isServed = thread.serveAtOnce();
    assert.equal(thread.serve(), !isServed);
    assert.equal(ring.responses().length, 1);
    return isServed;
  };
  assert.deepEqual([50e3, 5e6, 50e3, 5e6].map(atOnce), [true, true, true, true], 'one that takes long tells nothing');
  assert.deepEqual([5e6, 50e3, 50e3].map(atOnce), [true, false, false]);
  thread.nanos += 79e6;
  assert.ok(!atOnce(50e3));
  thread.nanos += 1e6;
  assert.deepEqual([5e6, 50e3].map(atOnce), [true, false], 'it still is');
  thread.nanos += 80e6;
  assert.deepEqual([50e3, 5e6, 50e3].map(atOnce), [true, true, true]);

  // What is lent on a file system of another machine is left to the disk thread.
  await backend.pause();
  thread.isLocal = false;
  backend.resume();
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.ok(!thread.serveAtOnce());
  assert.equal((await answers(1))[0]!.status, 0);
});

test('what one thread has read ahead is forgotten when another writes; a vCPU reads on with the request itself', async (t) => {
  const { path, guest, ring, thread } = await setUp(t);
  const file = Buffer.from(Array.from({ length: SECTORS * 512 }, (_, i) => (i >>> 12) + i % 5));
  await writeFile(path, file);
  const pageOf = (bytes: Buffer, page: number): Buffer => bytes.subarray(page * 4096, (page + 1) * 4096);
  const readPage = (page: number, serve: () => boolean): Buffer => {
    ring.request(BLKIF_OP.read, page * 8, [{ ref: 20, first: 0, last: 7 }]);
    assert.ok(serve());
    assert.deepEqual(ring.responses().map(({ status }) => status), [0]);
    return Buffer.from(guest.page(20));
  };
  const atOnce = (): boolean => thread.serveAtOnce();
  const byThread = (): boolean => thread.serve();
  for (let page = 0; page < 9; page++) assert.deepEqual(readPage(page, atOnce), pageOf(file, page));
  const other = Buffer.alloc(file.length, 0xee);
  await writeFile(path, other);
  for (let page = 9; page < 8 + 32; page++) assert.deepEqual(readPage(page, atOnce), pageOf(file, page), 'read with the ninth');
  assert.deepEqual(readPage(40, atOnce), pageOf(other, 40));

  for (let page = 50; page < 58; page++) readPage(page, byThread);
  assert.ok(thread.readAhead());
  guest.page(21).fill(0x11);
  ring.request(BLKIF_OP.write, 60 * 8, [{ ref: 21, first: 0, last: 7 }]);
  assert.ok(thread.serveAtOnce());
  ring.responses();
  assert.deepEqual(readPage(60, byThread), Buffer.alloc(4096, 0x11));
});

const LARGE = Array.from({ length: 20 }, (_, i) => ({ ref: 20 + i, first: 0, last: 7 }));
const LARGE_BYTES = LARGE.length * 4096;

test('a large write is answered before it is on the disk, and is there before the ring is taken back', async (t) => {
  const { path, guest, ring, thread, backend } = await setUp(t);
  guest.memory.fill(0xa5, 20 * 4096, 40 * 4096);
  const atAnswer: { inFile: boolean; inUse: number }[] = [];
  let pausing: Promise<number> | undefined;
  guest.onNotify = () => {
    atAnswer.push({ inFile: readFileSync(path)[64 * 512] === 0xa5, inUse: guest.inUse });
    // From now on the pages are the guest's again.
    guest.memory.fill(0x77, 20 * 4096, 40 * 4096);
    pausing = backend.pause().then(() => readFileSync(path).subarray(64 * 512, 64 * 512 + LARGE_BYTES).filter((byte) => byte === 0xa5).length);
  };
  ring.indirect(BLKIF_OP.write, 64, LARGE, 10);
  assert.ok(thread.serve());
  assert.deepEqual(atAnswer, [{ inFile: false, inUse: 1 }], 'only the ring is in use');
  assert.deepEqual(ring.responses().map(({ status }) => status), [0]);
  assert.equal(await pausing, LARGE_BYTES);
});

test('a write is done before its answer when it is small, or when there is not much room for it', async (t) => {
  const { path, guest, ring, thread } = await setUp(t);
  const inFile: boolean[] = [];
  const write = (segments: typeof LARGE, fill: number): void => {
    guest.memory.fill(fill, 20 * 4096, 40 * 4096);
    guest.onNotify = () => { inFile.push(readFileSync(path)[64 * 512] === fill); };
    ring.indirect(BLKIF_OP.write, 64, segments, 10);
    thread.serve();
    assert.equal(ring.responses()[0]!.status, 0);
  };
  write(LARGE.slice(0, 15), 1);
  thread.freeBytes = 2 ** 30 + LARGE_BYTES - 1;
  write(LARGE, 2);
  thread.freeBytes = 2 ** 30 + LARGE_BYTES;
  write(LARGE, 3);
  // What was there has been used.
  thread.freeBytes = 2 ** 30;
  write(LARGE, 4);
  assert.deepEqual(inFile, [true, true, false, true]);
});

for (const when of ['by itself', 'asked for meanwhile', 'asked for before anybody has heard of it'] as const) {
  test(`a write that fails after its answer makes flushes fail; the ring comes back ${when}`, async (t) => {
    const { path, guest, ring, thread, backend, answers } = await setUp(t, { losesData: true });
    const fd = openSync(path, 'r');
    t.after(() => closeSync(fd));
    // The one that it has now is of the disk's file.
    await backend.pause();
    thread.fd = fd;
    backend.resume();
    assert.equal(thread.listener, 'disk thread');
    const pausing: Promise<void>[] = [];
    if (when === 'asked for meanwhile') guest.onNotify = () => { pausing.push(backend.pause()); };
    ring.indirect(BLKIF_OP.write, 64, LARGE, 10);
    assert.ok(thread.serve());
    guest.onNotify = () => {};
    if (when === 'asked for before anybody has heard of it') pausing.push(backend.pause());
    assert.equal(ring.responses()[0]!.status, 0);
    await pausing[0];
    thread.fd = undefined;
    backend.resume();
    ring.request(BLKIF_OP.flush_diskcache, 0, []);
    assert.equal((await answers(1))[0]!.status, BLKIF_RSP.error);
    assert.equal(backend.metrics.failures, 2, 'the write, and the flush');
    assert.equal(thread.listener, 'host', 'no write is answered early any more');
  });
}

test('a slow disk goes back to where several requests are under way at once, for a while', async (t) => {
  const { ring, thread, backend, clock, answers } = await setUp(t);
  thread.onMap = () => { thread.nanos += 30e6; };
  for (let i = 0; i < 4; i++) ring.request(BLKIF_OP.read, 0, [GOOD]);
  await answers(4);
  assert.equal(thread.listener, 'host');
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  await answers(1);
  assert.equal(backend.metrics.byDiskThread, 4);
  clock.nowNanos += 2e9;
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  await answers(1);
  assert.equal(thread.listener, 'disk thread');
});

test('while a request does not come back, the other rings do', async (t) => {
  const stuck = await setUp(t);
  const lanes = new Map([[3, stuck.thread.lane]]);
  const watch = new LaneWatch(stuck.thread.table, lanes);
  const returned: number[] = [];
  const idle = new HostLane(stuck.thread.table, 4, { canTake: () => true, take: () => {}, takeBack: () => {}, closed: () => {} });
  lanes.set(4, idle);
  idle.lend({ ringMfns: [1], position: 7, fd: 0, alignBytes: 1, sizeBytes: 0, isReadOnly: true, isLocal: true }, () => returned.push(idle.position));
  assert.ok(!watch.look() && !watch.look(), 'nothing is under way');
  stuck.ring.request(BLKIF_OP.read, 0, [GOOD]);
  let looked = 0;
  stuck.thread.onMap = () => {
    if (looked++ > 0) return;
    assert.ok(!watch.look(), 'it may have begun just now');
    assert.deepEqual(returned, []);
    assert.ok(watch.look());
    assert.deepEqual(returned, [7]);
    assert.ok(idle.isReady);
  };
  assert.ok(stuck.thread.serve());
  assert.equal(looked, 1);
  assert.ok(!watch.look());
  assert.equal(stuck.ring.responses().length, 1, 'the one that came back late is answered by who had it');
});

test('a file that is shorter than it was: the host answers', async (t) => {
  const { path, ring, backend, answers, guest } = await setUp(t);
  await truncate(path, 4096);
  guest.page(20).fill(1);
  ring.request(BLKIF_OP.read, 64, [GOOD]);
  assert.equal((await answers(1))[0]!.status, 0);
  assert.ok(guest.page(20).every((byte) => byte === 0));
  assert.equal(backend.metrics.byDiskThread, 0);
});

test('whatever a guest puts into the ring, whenever the ring is taken back: each request is answered once', async (t) => {
  const { guest, ring, thread, backend, answers } = await setUp(t);
  const segment = fc.record({ ref: fc.integer({ min: 18, max: 61 }), first: fc.integer({ min: 0, max: 8 }), last: fc.integer({ min: 0, max: 9 }) });
  const request = fc.oneof(
    fc.record({
      kind: fc.constant('plain' as const), operation: fc.constantFrom(BLKIF_OP.read, BLKIF_OP.write, BLKIF_OP.read, BLKIF_OP.write, BLKIF_OP.flush_diskcache, 77),
      sector: fc.oneof(fc.integer({ min: 0, max: SECTORS }), fc.constant(2 ** 44)), segments: fc.array(segment, { maxLength: 12 }),
    }),
    fc.record({ kind: fc.constant('indirect' as const), operation: fc.constantFrom(BLKIF_OP.read, BLKIF_OP.write), sector: fc.integer({ min: 0, max: SECTORS }), segments: fc.array(segment, { maxLength: 40 }) }),
    fc.record({ kind: fc.constant('bytes' as const), bytes: fc.uint8Array({ minLength: blkifRequest.sizeBytes, maxLength: blkifRequest.sizeBytes }) }),
  );
  const step = fc.constantFrom('serve', 'at once', 'service', 'turn', 'pause', 'index', 'ahead');
  await fc.assert(fc.asyncProperty(fc.array(request, { maxLength: 8 }), fc.array(step, { maxLength: 12 }), async (requests, steps) => {
    for (const given of requests) {
      if (given.kind === 'bytes') ring.put(Buffer.from(given.bytes));
      else if (given.kind === 'plain') ring.request(given.operation, given.sector, given.segments);
      else ring.indirect(given.operation, given.sector, given.segments, 10);
    }
    const produced = ring.index('req_prod');
    let got = 0;
    for (const what of steps) {
      if (what === 'serve') thread.serve();
      else if (what === 'at once') thread.serveAtOnce();
      else if (what === 'service') backend.service();
      else if (what === 'ahead') thread.readAhead();
      else if (what === 'turn') await turn();
      else if (what === 'index') {
        ring.setIndex('req_prod', produced + 1000);
        thread.serve();
        backend.service();
        ring.setIndex('req_prod', produced);
      } else {
        // In the middle of a request, if there is one.
        const pausing: Promise<void>[] = [];
        thread.onMap = () => { if (pausing.length === 0) pausing.push(backend.pause()); };
        thread.serve();
        thread.onMap = () => {};
        await (pausing[0] ?? backend.pause());
        assert.equal(guest.inUse, 1);
        backend.resume();
      }
      got += ring.responses().length;
    }
    if (got < requests.length) got += (await answers(requests.length - got)).length;
    assert.equal(got, requests.length);
    for (let i = 0; i < 3; i++) {
      await turn();
      thread.serve();
    }
    assert.equal(ring.responses().length, 0);
    assert.equal(guest.inUse, 1);
  }), { numRuns: runs, seed });
});
