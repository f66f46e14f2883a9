import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { VIRTIO_MMIO as R } from '../../abi/emulated-devices.ts';
import { SeededRandom } from '../../base/random.ts';
import { VirtioBlock } from './block.ts';
import type { VirtioDiskStore } from './block.ts';
import { TestDriver } from './test-driver.ts';
import type { TestBuffer } from './test-driver.ts';

const DISK_BYTES = 1 << 20;

/** A disk in memory, whose requests end when the test lets them. */
class TestDisk implements VirtioDiskStore {
  readonly sizeBytes = DISK_BYTES;
  readonly isReadOnly: boolean;
  readonly canDiscard = true;
  readonly content = Buffer.alloc(DISK_BYTES);
  readonly log: string[] = [];
  gate: Promise<void> = Promise.resolve();
  fails = false;

  constructor(isReadOnly = false) {
    this.isReadOnly = isReadOnly;
  }
  async #go(what: string, offset: number, sizeBytes: number): Promise<void> {
    this.log.push(`${what} ${offset} ${sizeBytes}`);
    assert(offset >= 0 && offset + sizeBytes <= DISK_BYTES && offset % 512 === 0 && sizeBytes % 512 === 0);
    await this.gate;
    if (this.fails) throw new Error('the disk has failed');
  }
  async read([bytes]: Uint8Array[], offset: number): Promise<void> {
    await this.#go('read', offset, bytes!.length);
    bytes!.set(this.content.subarray(offset, offset + bytes!.length));
  }
  async write([bytes]: Uint8Array[], offset: number): Promise<void> {
    assert(!this.isReadOnly);
    await this.#go('write', offset, bytes!.length);
    this.content.set(bytes!, offset);
  }
  async discard(offset: number, sizeBytes: number): Promise<void> {
    await this.#go('discard', offset, sizeBytes);
    this.content.fill(0, offset, offset + sizeBytes);
  }
  flush(): Promise<void> {
    return this.#go('flush', 0, 0);
  }
}

let buffersTaken = 0;
function takeBuffer(sizeBytes: number): Disposable & { readonly bytes: Uint8Array } {
  buffersTaken++;
  return { bytes: new Uint8Array(sizeBytes), [Symbol.dispose]: () => { buffersTaken--; } };
}

function open(disk = new TestDisk()) {
  let now = 0;
  const model = new VirtioBlock({ disk, id: 'xvda', takeBuffer, clock: { monotonicNanos: () => ++now } });
  const driver = new TestDriver(model);
  const header = (type: number, sector: number): TestBuffer => {
    const bytes = Buffer.alloc(16);
    bytes.writeUInt32LE(type);
    bytes.writeBigUInt64LE(BigInt(sector), 8);
    return driver.bytes(bytes);
  };
  const close = async (): Promise<void> => {
    model.close();
    await model.pause();
    driver.close();
    assert.equal(buffersTaken, 0);
  };
  return { disk, model, driver, header, close };
}

async function settle(): Promise<void> {
  for (let i = 0; i < 8; i++) await turn();
}

test('reads, writes, flushes and discards where it is told to', async () => {
  const { disk, model, driver, header, close } = open();
  driver.start(1);
  assert.equal(driver.reg(R.Config), DISK_BYTES / 512);
  const status = driver.buffer(1, true);
  const ask = async (buffers: TestBuffer[]): Promise<{ status: number; sizeBytes: number }> => {
    driver.rig.write(status.address, Uint8Array.of(99));
    driver.offerIndirect(0, [...buffers, status]);
    await settle();
    const [used] = driver.takeUsed(0);
    return { status: driver.rig.read(status.address, 1)[0]!, sizeBytes: used!.sizeBytes };
  };
  assert.deepEqual(await ask([header(1, 8), driver.bytes(Buffer.alloc(1024, 'a')), driver.bytes(Buffer.alloc(512, 'b'))]), { status: 0, sizeBytes: 1 });
  assert.equal(disk.content.toString('latin1', 8 * 512, 11 * 512), 'a'.repeat(1024) + 'b'.repeat(512));
  const [one, two] = [driver.buffer(512, true), driver.buffer(1024, true)];
  assert.deepEqual(await ask([header(0, 8), one, two]), { status: 0, sizeBytes: 1537 });
  assert.equal(driver.rig.read(one.address, 1536).toString('latin1'), 'a'.repeat(1024) + 'b'.repeat(512));
  assert.deepEqual(await ask([header(4, 0)]), { status: 0, sizeBytes: 1 });
  const range = Buffer.alloc(16);
  range.writeBigUInt64LE(9n);
  range.writeUInt32LE(1, 8);
  assert.deepEqual(await ask([header(11, 0), driver.bytes(range)]), { status: 0, sizeBytes: 1 });
  assert.equal(disk.content[9 * 512], 0);
  const id = driver.buffer(20, true);
  assert.deepEqual(await ask([header(8, 0), id]), { status: 0, sizeBytes: 21 });
  assert.equal(driver.rig.read(id.address, 5).toString(), 'xvda\0');
  assert.deepEqual(await ask([header(77, 0)]), { status: 2, sizeBytes: 1 });
  // What cannot be is an error of that request, and the next one is served.
  const wrong: TestBuffer[][] = [
    [header(0, DISK_BYTES / 512), driver.buffer(512, true)], [header(0, 2 ** 50), driver.buffer(512, true)],
    [header(0, 0), driver.buffer(100, true)], [header(1, DISK_BYTES / 512 - 1), driver.bytes(Buffer.alloc(1024))],
    [header(1, 0)], [header(0, 0)], [driver.bytes(Buffer.alloc(8))], [header(11, 0), driver.bytes(Buffer.alloc(15))],
  ];
  for (const buffers of wrong) assert.equal((await ask(buffers)).status, 1);
  assert.equal(model.counts.badRequests, wrong.length);
  disk.fails = true;
  assert.equal((await ask([header(4, 0)])).status, 1);
  assert.equal(model.counts.failures, 1);
  assert.deepEqual(disk.log, ['write 4096 1536', 'read 4096 1536', 'flush 0 0', 'discard 4608 512', 'flush 0 0']);
  await close();
});

test('a read-only disk is not written', async () => {
  const { driver, header, disk, close } = open(new TestDisk(true));
  driver.start(1);
  const status = driver.buffer(1, true);
  for (const buffers of [[header(1, 0), driver.bytes(Buffer.alloc(512))], [header(11, 0), driver.bytes(Buffer.alloc(16))]]) {
    driver.offer(0, [...buffers, status]);
    await settle();
    assert.notEqual(driver.rig.read(status.address, 1)[0], 0);
  }
  assert.deepEqual(disk.log, []);
  await close();
});

test('paused, nothing is under way and nothing is begun; a reset while it waits leaves memory alone', async () => {
  const { model, driver, header, disk, close } = open();
  driver.start(1);
  disk.content.fill(5);
  const gate = Promise.withResolvers<void>();
  disk.gate = gate.promise;
  const data = driver.buffer(512, true);
  driver.offer(0, [header(0, 0), data, driver.buffer(1, true)]);
  let isPaused = false;
  const paused = (async () => {
    await model.pause();
    isPaused = true;
  })();
  await settle();
  assert(!isPaused);
  driver.offer(0, [header(0, 1), driver.buffer(512, true), driver.buffer(1, true)], 4);
  gate.resolve();
  await paused;
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 513 }]);
  assert.deepEqual(disk.log, ['read 0 512']);
  model.resume();
  await settle();
  assert.deepEqual(driver.takeUsed(0), [{ head: 4, sizeBytes: 513 }]);

  const again = Promise.withResolvers<void>();
  disk.gate = again.promise;
  const untouched = driver.buffer(512, true);
  driver.offer(0, [header(0, 0), untouched, driver.buffer(1, true)]);
  await settle();
  driver.set(R.Status, 0);
  again.resolve();
  await settle();
  assert.equal(driver.rig.read(untouched.address, 512).every((byte) => byte === 0), true);
  await close();
});

test('closed while somebody waits for it to pause: he hears of it, and nothing is begun when he lets it go on', async () => {
  const { model, driver, header, disk, close } = open();
  driver.start(1);
  const gate = Promise.withResolvers<void>();
  disk.gate = gate.promise;
  driver.offer(0, [header(0, 0), driver.buffer(512, true), driver.buffer(1, true)]);
  await settle();
  const paused = model.pause();
  model.close();
  const closed = model.pause();
  gate.resolve();
  await Promise.all([paused, closed]);
  model.resume();
  driver.offer(0, [header(0, 1), driver.buffer(512, true), driver.buffer(1, true)], 4);
  await settle();
  assert.deepEqual(disk.log, ['read 0 512']);
  await close();
});

const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 12);

test('random requests: each is answered once, and the disk is touched where it is', async () => {
  await fc.assert(fc.asyncProperty(fc.integer(), async (seed) => {
    const random = new SeededRandom(seed);
    const { driver, header, close } = open();
    driver.start(1);
    let offered = 0;
    let answered = 0;
    for (let i = 0; i < 40; i++) {
      const size = () => random.pick([1, 16, 511, 512, 1024, 65536, 2 ** 22, 2 ** 31]);
      const buffers = Array.from({ length: random.below(3) }, () => driver.bytes(Buffer.alloc(random.pick([0, 1, 16, 512, 4096]), random.u32())));
      const writable = Array.from({ length: random.below(3) }, (): TestBuffer => ({ address: driver.desc(0) + 0x2000, sizeBytes: size(), isWritable: true }));
      const all = [header(random.pick([0, 1, 4, 8, 11, 99]), random.pick([0, 1, 2047, 2048, 2 ** 40])), ...buffers, ...writable];
      driver.offer(0, all.slice(random.below(2)));
      offered++;
      await settle();
      answered += driver.takeUsed(0).length;
      if (driver.isBroken) {
        driver.start(1);
        answered = offered;
      }
      assert.equal(answered, offered);
    }
    await close();
  }), { numRuns: RUNS });
});
