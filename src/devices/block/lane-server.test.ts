// When requests are answered, and in whose thread: what is read ahead, small requests, large writes.

import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BLKIF_OP, BLKIF_RSP } from '../../abi/xen-block.ts';
import { LANE_STATE } from '../../lanes/lane.ts';
import { GOOD, SECTORS, setUp } from './test-lane.ts';

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
