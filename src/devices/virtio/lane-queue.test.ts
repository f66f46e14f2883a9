// Queues of virtio disks that are lent to other threads: what these answer, what they leave to the host, and that whatever
// the driver does meanwhile it gets each answer once and finds nothing of its memory written after a reset.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { VIRTIO_F, VIRTIO_MMIO as R } from '../../abi/emulated-devices.ts';
import { SeededRandom } from '../../base/random.ts';
import { LANE_STATE } from '../../lanes/lane.ts';
import { Disk } from '../block/disk.ts';
import type { TestBuffer } from './test-driver.ts';
import { LentDisk, SECTORS } from './test-lent-disk.ts';

const EVENT_IDX = 2 ** VIRTIO_F.INDIRECT_DESC + 2 ** VIRTIO_F.EVENT_IDX;

for (const features of [2 ** VIRTIO_F.INDIRECT_DESC, EVENT_IDX]) {
  test(`reads and writes are answered by the disk thread, and the host hears of none; features ${features.toString(16)}`, async (t) => {
    const lent = await LentDisk.open(t, { features });
    const { driver, model } = lent;
    const written = lent.write(8, Buffer.alloc(8192, 0xa5));
    const pieces = [driver.bytes(Buffer.alloc(512, 1)), driver.bytes(Buffer.alloc(3584, 2))];
    const inPieces = lent.ask(1, 64, pieces, 1);
    assert.ok(lent.serve());
    assert.deepEqual([written(), inPieces()], [0, 0]);
    assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 1 }, { head: 1, sizeBytes: 1 }]);
    const [one, two] = [lent.read(16, 4096), lent.read(64, 4096, 1)];
    assert.ok(lent.serve());
    assert.ok(!lent.serve(), 'nothing is left');
    assert.deepEqual([one.status(), two.status()], [0, 0]);
    assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 4097 }, { head: 1, sizeBytes: 4097 }]);
    assert.deepEqual(one.bytes(), Buffer.alloc(4096, 0xa5));
    assert.deepEqual(two.bytes(), Buffer.concat([Buffer.alloc(512, 1), Buffer.alloc(3584, 2)]));
    assert.ok(driver.line);
    assert.ok(!driver.rig.hostWasCalled());
    const { reads, writes, readBytes, writtenBytes, byDiskThread, notifications } = model.counts;
    assert.deepEqual({ reads, writes, readBytes, writtenBytes, byDiskThread }, { reads: 2, writes: 2, readBytes: 8192, writtenBytes: 12288, byDiskThread: 4 });
    assert.ok(notifications > 0 && driver.slot.interrupts === 0);
    assert.equal(lent.disk.files()[0]!.stats.reads + lent.disk.files()[0]!.stats.writes, 0);
    const file = await readFile(lent.path);
    assert.ok(file.subarray(8 * 512, 24 * 512).every((byte) => byte === 0xa5));
  });
}

test('what is not for it comes back, is answered, and the queue goes there again; what it wrote is flushed', async (t) => {
  const lent = await LentDisk.open(t);
  const { driver, model } = lent;
  const none: TestBuffer = { address: 0x1000, sizeBytes: 4096, isWritable: true };
  const statuses = [
    lent.write(0, Buffer.alloc(4096, 7)), lent.ask(4, 0, [], 1), lent.ask(8, 0, [driver.buffer(20, true)], 2),
    lent.read(SECTORS - 7, 4096, 3).status, lent.read(2 ** 50, 4096, 4).status, lent.read(0, 100, 5).status,
    lent.ask(0, 0, [], 6), lent.ask(77, 0, [], 7), lent.ask(0, 0, [driver.bytes(Buffer.alloc(512)), driver.buffer(512, true)], 8),
    lent.read(0, 4096, 9).status,
  ];
  await lent.answered(statuses.length);
  assert.deepEqual(statuses.map((status) => status()), [0, 0, 0, 1, 1, 1, 1, 2, 0, 0]);
  assert.equal(model.counts.badRequests, 4);
  assert.equal(lent.disk.files()[0]!.stats.syncs, 1, 'what another thread has written is known to be on its way');
  const before = model.counts.byDiskThread;
  const again = lent.read(0, 4096);
  await lent.answered(1);
  assert.deepEqual([again.status(), again.bytes().every((byte) => byte === 7)], [0, true]);
  assert.equal(model.counts.byDiskThread, before + 1);
  // Memory that is none: the device stops until it is reset, as when the host finds it.
  driver.offerIndirect(0, [lent.header(0, 0), none, driver.buffer(1, true)]);
  for (; !driver.isBroken; await turn()) lent.serve();
  assert.ok(!lent.isLent);
  lent.start();
  assert.ok(lent.isLent);
  const good = lent.read(0, 4096);
  await lent.answered(1);
  assert.equal(good.status(), 0);
});

test('a read-only disk is not written to; one in layers is, when there is a layer to write to', async (t) => {
  const lent = await LentDisk.open(t, { isReadOnly: true });
  const status = lent.write(0, Buffer.alloc(4096, 1));
  await lent.answered(1);
  assert.equal(status(), 1);
  assert.ok((await readFile(lent.path)).every((byte) => byte === 0));

  const other = await LentDisk.open(t);
  await other.model.pause();
  assert.ok(!other.isLent);
  const state = other.disk.freeze();
  other.model.resume();
  await turn();
  assert.ok(other.isLent);
  const layered = other.write(0, Buffer.alloc(4096, 1));
  await other.answered(1);
  assert.deepEqual([layered(), other.disk.files().length, other.model.counts.byDiskThread], [0, 2, 0]);
  const next = other.write(8, Buffer.alloc(4096, 2));
  const both = other.read(0, 3 * 4096, 1);
  await other.answered(2);
  assert.deepEqual([next(), both.status(), other.model.counts.byDiskThread], [0, 0, 2]);
  assert.deepEqual(both.bytes(), Buffer.concat([1, 2, 0].map((byte) => Buffer.alloc(4096, byte))));
  await state.release();
});

test('a flush of a disk of which nothing lasts has nothing to do; of others it is the host\'s', async (t) => {
  const lent = await LentDisk.open(t);
  const lasting = lent.ask(4, 0, []);
  await lent.answered(1);
  assert.deepEqual([lasting(), lent.model.counts.flushes, lent.model.counts.byDiskThread], [0, 1, 0]);
  await lent.model.pause();
  const state = lent.disk.freeze();
  lent.model.resume();
  const fork = new LentDisk(lent.path, Disk.fork(state));
  fork.start();
  const flush = fork.ask(4, 0, []);
  assert.ok(fork.serve());
  assert.deepEqual([flush(), fork.model.counts.flushes, fork.model.counts.byDiskThread], [0, 1, 1]);
  await fork.close();
  await state.release();
});

test('pausing waits for the request under way and takes the queue back; what comes next waits', async (t) => {
  const lent = await LentDisk.open(t);
  const { driver, model } = lent;
  const first = lent.read(0, 4096);
  const second = lent.read(0, 4096, 1);
  let isPaused = false;
  let pausing: Promise<void> | undefined;
  lent.onWork = () => {
    pausing ??= (async () => {
      await model.pause();
      isPaused = true;
    })();
  };
  assert.ok(lent.serve());
  assert.ok(!isPaused && !lent.isLent, 'known when the loop has come to it; the next notifications are the host\'s');
  await pausing;
  lent.onWork = () => {};
  assert.deepEqual([first.status(), second.status()], [0, undefined]);
  assert.deepEqual(driver.slot.save(), { inFlight: [[]] }, 'nothing has to be taken again');
  assert.ok(!lent.serve());
  driver.slot.service(true);
  assert.equal(second.status(), undefined);
  model.resume();
  await lent.answered(2);
  assert.equal(second.status(), 0);
});

test('a driver that resets the device while a read is under way finds nothing of its memory written', async (t) => {
  const lent = await LentDisk.open(t);
  const { driver } = lent;
  await writeFile(lent.path, Buffer.alloc(SECTORS * 512, 9));
  for (const atOnce of [false, true]) {
    const read = lent.read(0, 4096);
    let isReset = false;
    const reset = (): void => {
      if (isReset) return;
      isReset = true;
      driver.set(R.Status, 0);
    };
    // Between what was read of the request and its answer.
    let steps = 0;
    lent.onWork = () => { if (++steps === 3) reset(); };
    if (atOnce) lent.onWait = reset;
    if (atOnce) lent.serveAtOnce();
    else lent.serve();
    lent.onWork = lent.onWait = () => {};
    assert.ok(isReset);
    assert.equal(read.status(), undefined);
    assert.ok(read.bytes().every((byte) => byte === 0));
    assert.ok(!driver.line);
    lent.serve();
    assert.equal(lent.state, LANE_STATE.free, 'and the queue is the host\'s');
    lent.start();
    await turn();
    assert.ok(lent.isLent);
    const again = lent.read(0, 4096);
    await lent.answered(1);
    assert.ok(again.status() === 0 && again.bytes().every((byte) => byte === 9));
  }
});

test('of a queue that is taken away while a request is under way, nothing is touched again', async (t) => {
  const lent = await LentDisk.open(t);
  const { driver, model } = lent;
  await writeFile(lent.path, Buffer.alloc(SECTORS * 512, 9));
  const read = lent.read(0, 4096);
  let steps = 0;
  let before: Uint8Array | undefined;
  const { machine, domain } = driver.rig;
  lent.onWork = () => {
    if (++steps !== 3) return;
    model.close();
    before = machine.u8.slice(driver.rig.frame.address, driver.rig.frame.address + 4096);
  };
  lent.serve();
  lent.onWork = () => {};
  assert.ok(before !== undefined && domain.domid > 0);
  assert.deepEqual(machine.u8.slice(driver.rig.frame.address, driver.rig.frame.address + 4096), before);
  assert.equal(read.status(), undefined);
  assert.ok(read.bytes().every((byte) => byte === 0));
  assert.equal(lent.state, LANE_STATE.free);
  assert.ok(!lent.isClosed, 'not before the host has heard');
});

test('a small request that is alone is answered in the thread of the vCPU that has made it', async (t) => {
  const lent = await LentDisk.open(t, { features: EVENT_IDX });
  const { driver, model } = lent;
  const write = lent.write(8, Buffer.alloc(4096, 0x66));
  assert.ok(lent.serveAtOnce());
  assert.equal(write(), 0);
  assert.ok(driver.line, 'the interrupt is there when the store is done');
  assert.equal(driver.rig.read(driver.used(0) + 4 + 8 * 16, 2).readUInt16LE(), 1, 'the guest tells of the next one');
  assert.deepEqual([model.counts.byVcpus, model.counts.byDiskThread], [1, 0]);
  // The other thread goes on where this one has ended, and the other way round.
  const [one, two] = [lent.read(8, 4096), lent.read(8, 4096, 1)];
  assert.ok(!lent.serveAtOnce(), 'several are not for it');
  assert.ok(lent.serve());
  const three = lent.read(8, 11 * 4096, 2);
  assert.ok(lent.serveAtOnce());
  const large = lent.read(8, 12 * 4096, 3);
  assert.ok(!lent.serveAtOnce(), 'nor is a large one');
  assert.ok(lent.serve());
  assert.deepEqual([one, two, three, large].map(({ status }) => status()), [0, 0, 0, 0]);
  for (const { bytes } of [one, two, three, large]) assert.equal(bytes()[0], 0x66);
  driver.takeUsed(0);
  const flush = lent.ask(4, 0, []);
  assert.ok(lent.serveAtOnce(), 'the host has the queue, and hears of it');
  assert.equal(lent.state, LANE_STATE.free);
  await lent.answered(1);
  assert.equal(flush(), 0);
  assert.deepEqual([model.counts.byVcpus, model.counts.byDiskThread], [2, 3]);
});

test('a large write is answered before it is on the disk, and is there before the queue is taken back', async (t) => {
  const lent = await LentDisk.open(t);
  const { model } = lent;
  const bytes = Buffer.alloc(1 << 19, 0xa5);
  const count = (): number => readFileSync(lent.path).subarray(4096, 4096 + bytes.length).filter((byte) => byte === 0xa5).length;
  const atAnswer: number[] = [];
  let pausing: Promise<number> | undefined;
  const status = lent.write(8, bytes);
  const { slot } = lent.driver;
  lent.onWork = () => {
    // The last look before the answer.
    if (status() === undefined) atAnswer.push(count());
    pausing ??= model.pause().then(() => count());
  };
  lent.serve();
  assert.equal(status(), 0);
  assert.ok(atAnswer.every((written) => written === 0) && atAnswer.length >= 4);
  assert.equal(await pausing, bytes.length);
  assert.deepEqual(slot.save(), { inFlight: [[]] });
});

test('who reads from front to back gets what was read meanwhile; what it writes is never missed', async (t) => {
  const lent = await LentDisk.open(t);
  const file = Buffer.from(Array.from({ length: SECTORS * 512 }, (_, i) => (i >>> 16) * 16 + i % 7));
  await writeFile(lent.path, file);
  const part = (of: Uint8Array, n: number): Buffer => Buffer.from(of.subarray(n * 65536, (n + 1) * 65536));
  const readPart = (n: number): Buffer => {
    const { status, bytes } = lent.read(n * 128, 65536);
    assert.ok(lent.serve());
    assert.equal(status(), 0);
    return bytes();
  };
  readPart(0);
  readPart(1);
  assert.ok(lent.readAhead());
  await writeFile(lent.path, Buffer.alloc(file.length, 0xee));
  assert.deepEqual(readPart(2), part(file, 2));
  lent.write(3 * 128, Buffer.alloc(4096, 0x77));
  assert.ok(lent.serve());
  assert.deepEqual(readPart(3), Buffer.concat([Buffer.alloc(4096, 0x77), Buffer.alloc(65536 - 4096, 0xee)]));
});

const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 12);

test('whatever a driver does, and whenever the queue is taken back: each request is answered once, the disk is as if by the host alone', async (t) => {
  await fc.assert(fc.asyncProperty(fc.integer(), async (seed) => {
    const random = new SeededRandom(seed);
    const lent = await LentDisk.open(t, { features: random.pick([2 ** VIRTIO_F.INDIRECT_DESC, EVENT_IDX]) });
    const { driver, model } = lent;
    let [offered, answered] = [0, 0];
    const restart = (): void => {
      lent.start();
      [offered, answered] = [0, 0];
    };
    const nonsense = (): void => {
      const at = driver.desc(0) + 16 * random.below(16);
      driver.describe(at, { address: random.pick([0, driver.desc(0), driver.desc(0) + 0x2000, 2 ** 40]), sizeBytes: random.pick([0, 1, 16, 4096, 2 ** 31]) },
        random.below(8), random.below(20));
    };
    const disturb = [
      () => driver.set(R.Status, 0), () => driver.set(R.QueueReady, 0), nonsense,
      () => driver.rig.write16(driver.avail(0) + 2, random.below(65536)), () => void model.pause().then(() => model.resume()),
    ];
    for (let i = 0; i < 40; i++) {
      if (offered - answered < 8) {
        const data = Array.from({ length: random.below(3) }, (): TestBuffer => random.below(2) === 0
          ? driver.bytes(Buffer.alloc(random.pick([0, 1, 512, 4096]), random.u32()))
          : { address: driver.desc(0) + 0x4000, sizeBytes: random.pick([1, 512, 4096, 65536, 2 ** 31]), isWritable: true });
        lent.ask(random.pick([0, 1, 0, 1, 4, 8, 99]), random.pick([0, 8, SECTORS - 1, SECTORS, 2 ** 40]), data.toSorted((a, b) => Number(a.isWritable) - Number(b.isWritable)), offered % 8);
        offered++;
      }
      const isDisturbed = random.below(6) === 0;
      const when = random.below(6);
      let steps = 0;
      lent.onWork = () => { if (isDisturbed && steps++ === when) random.pick(disturb)(); };
      random.pick([() => lent.serve(), () => lent.serveAtOnce(), () => lent.readAhead(), () => driver.slot.service(true)])();
      lent.onWork = () => {};
      await turn();
      if (isDisturbed) {
        // It may be broken, or have been reset: then nothing more comes of what was asked for.
        await turn();
        restart();
        continue;
      }
      answered += driver.takeUsed(0).length;
      assert.ok(answered <= offered);
      if (driver.isBroken) restart();
    }
    for (let i = 0; answered < offered && !driver.isBroken && i < 10_000; i++, await turn()) {
      lent.serve();
      driver.slot.service(true);
      answered += driver.takeUsed(0).length;
    }
    assert.ok(driver.isBroken || answered === offered, `seed ${seed}`);
  }), { numRuns: RUNS });
});
