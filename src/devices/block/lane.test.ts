import assert from 'node:assert/strict';
import { readFile, truncate } from 'node:fs/promises';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { BLKIF_OP, BLKIF_RSP, blkifRequest } from '../../abi/xen-block.ts';
import { HostLane, LANE_STATE, LaneWatch } from '../../lanes/lane.ts';
import { Disk } from './disk.ts';
import { openDisk } from './open-disk.ts';
import { rawFile, seed, testFolder } from './test-disks.ts';
import { TestRing } from './test-front-end.ts';
import { GOOD, SECTORS, setUp } from './test-lane.ts';

const runs = Number(process.env['ZAZEN_TEST_RUNS'] ?? 60);

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

test('a read-only disk is not written to, and may be part of a checkpoint', async (t) => {
  const { ring, thread, answers, disk, backend } = await setUp(t, { isReadOnly: true });
  ring.request(BLKIF_OP.write, 0, [GOOD]);
  assert.equal((await answers(1))[0]!.status, BLKIF_RSP.error);
  await backend.pause();
  assert.equal(thread.state, LANE_STATE.free);
  const state = disk.freeze();
  backend.resume();
  ring.request(BLKIF_OP.read, 0, [GOOD]);
  assert.equal((await answers(1))[0]!.status, 0);
  await state.release();
});

test('after a checkpoint the ring is lent, and comes back for the write that makes a layer', async (t) => {
  const { disk, guest, ring, thread, backend, answers } = await setUp(t);
  await backend.pause();
  const state = disk.freeze();
  backend.resume();
  assert.equal(thread.listener, 'disk thread');
  guest.page(20).fill(0x11);
  ring.request(BLKIF_OP.read, 0, [{ ...GOOD, ref: 21 }]);
  assert.ok(thread.serve());
  assert.ok(guest.page(21).every((byte) => byte === 0));
  ring.request(BLKIF_OP.write, 0, [GOOD]);
  assert.deepEqual((await answers(2)).map(({ status }) => status), [0, 0]);
  assert.equal(disk.files().length, 2);
  assert.equal(backend.metrics.byDiskThread, 1);
  // From then on the thread finds places in the layer by itself.
  assert.equal(thread.listener, 'disk thread');
  ring.request(BLKIF_OP.write, 8, [GOOD]);
  ring.indirect(BLKIF_OP.write, 512, Array.from({ length: 20 }, () => GOOD), 10);
  for (const [i, sector] of [0, 8, 16, 512].entries()) ring.request(BLKIF_OP.read, sector, [{ ...GOOD, ref: 22 + i }]);
  assert.ok(thread.serve());
  assert.deepEqual(ring.responses().map(({ status }) => status), Array.from({ length: 6 }, () => 0));
  assert.deepEqual([22, 23, 24, 25].map((ref) => new Set(guest.page(ref))), [0x11, 0x11, 0, 0x11].map((byte) => new Set([byte])));
  assert.equal(backend.metrics.byDiskThread, 7);
  assert.equal(disk.files()[1]!.stats.reads, 0);
  // Part of a page that is not there needs what lies around it.
  ring.request(BLKIF_OP.write, 801, [{ ref: 20, first: 0, last: 0 }]);
  assert.equal((await answers(1))[0]!.status, 0);
  ring.request(BLKIF_OP.read, 800, [{ ...GOOD, ref: 26 }]);
  assert.equal((await answers(1))[0]!.status, 0);
  assert.deepEqual(guest.page(26), new Uint8Array(4096).fill(0x11, 512, 1024));
  await state.release();
});

test('a flush of a disk of which nothing lasts has nothing to do, in any thread', async (t) => {
  const original = await openDisk({ path: await rawFile(await testFolder(t), SECTORS * 512), format: 'raw' });
  const state = original.freeze();
  t.after(async () => {
    await state.release();
    await original.close();
  });
  const { ring, thread, backend } = await setUp(t, { disk: Disk.fork(state) });
  const ids = [ring.request(BLKIF_OP.flush_diskcache, 0, []), ring.request(BLKIF_OP.read, 0, [GOOD])];
  assert.ok(thread.serve());
  ids.push(ring.request(BLKIF_OP.flush_diskcache, 0, []));
  assert.ok(thread.serveAtOnce());
  assert.deepEqual(ring.responses().map(({ id, status }) => [id, status]), ids.map((id) => [id, 0]));
  const { reads, flushes, byDiskThread, byVcpus } = backend.metrics;
  assert.deepEqual({ reads, flushes, byDiskThread, byVcpus }, { reads: 1, flushes: 2, byDiskThread: 2, byVcpus: 1 });
  // One with data is a write before it.
  ring.request(BLKIF_OP.flush_diskcache, 0, [GOOD]);
  assert.ok(!thread.serve());
  assert.equal(thread.state, LANE_STATE.free);
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
  const isStuck = (): boolean => {
    watch.look();
    return watch.isStuck;
  };
  const returned: number[] = [];
  const idle = new HostLane(stuck.thread.table, 4, { canTake: () => true, take: () => {}, takeBack: () => {}, closed: () => {} });
  lanes.set(4, idle);
  idle.lend({ ringMfns: [1], position: 7, resets: 0, fd: 0, chain: 0, isOwn: false, isVolatile: false, alignBytes: 1, sizeBytes: 0, isReadOnly: true, isLocal: true }, () => {
    assert.ok(watch.isStuck, 'nobody lends it again at once');
    returned.push(idle.position);
  });
  assert.ok(!isStuck() && !isStuck(), 'nothing is under way');
  stuck.ring.request(BLKIF_OP.read, 0, [GOOD]);
  let looked = 0;
  stuck.thread.onMap = () => {
    if (looked++ > 0) return;
    assert.ok(!isStuck(), 'it may have begun just now');
    assert.deepEqual(returned, []);
    assert.ok(isStuck());
    assert.deepEqual(returned, [7]);
    assert.ok(idle.isReady);
  };
  assert.ok(stuck.thread.serve());
  assert.equal(looked, 1);
  assert.ok(!isStuck());
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

for (const kind of ['one file', 'layers'] as const) test(`whatever a guest puts into the ring of a disk of ${kind}, whenever it is taken back: each request is answered once`, async (t) => {
  const { disk, guest, ring, thread, backend, answers } = await setUp(t);
  await backend.pause();
  const state = kind === 'layers' ? disk.freeze() : undefined;
  backend.resume();
  const segment = fc.oneof(
    { weight: 9, arbitrary: fc.record({ ref: fc.integer({ min: 20, max: 59 }), first: fc.constant(0), last: fc.constant(7) }) },
    fc.record({ ref: fc.integer({ min: 18, max: 61 }), first: fc.integer({ min: 0, max: 8 }), last: fc.integer({ min: 0, max: 9 }) }),
  );
  const sector = fc.oneof(
    { weight: 6, arbitrary: fc.nat({ max: SECTORS / 8 - 1 }).map((page) => page * 8) }, { weight: 2, arbitrary: fc.nat({ max: SECTORS }) }, fc.constant(2 ** 44),
  );
  const request = fc.oneof(
    fc.record({
      kind: fc.constant('plain' as const), operation: fc.constantFrom(BLKIF_OP.read, BLKIF_OP.write, BLKIF_OP.read, BLKIF_OP.write, BLKIF_OP.flush_diskcache, 77),
      sector, segments: fc.array(segment, { maxLength: 12 }),
    }),
    fc.record({ kind: fc.constant('indirect' as const), operation: fc.constantFrom(BLKIF_OP.read, BLKIF_OP.write), sector, segments: fc.array(segment, { maxLength: 40 }) }),
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
  assert.ok(backend.metrics.byDiskThread > runs / 8, `by the lane: ${backend.metrics.byDiskThread}`);
  await state?.release();
});
