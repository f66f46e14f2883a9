import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { VIRTIO_F, VIRTIO_ID, VIRTIO_INTERRUPT, VIRTIO_MAGIC, VIRTIO_MMIO as R, VIRTIO_STATUS } from '../../abi/emulated-devices.ts';
import { SeededRandom } from '../../base/random.ts';
import { RAM_BASE, RAM_BYTES } from '../../hypervisor/test-emulated.ts';
import { VirtioConsole } from './console.ts';
import { VirtioEntropy } from './entropy.ts';
import { VirtioInput } from './input.ts';
import { BUFFERS, QUEUE_NUM, TestDriver } from './test-driver.ts';
import type { TestBuffer } from './test-driver.ts';

const entropy = () => new TestDriver(new VirtioEntropy(new SeededRandom(1)));

test('a device says what it is, and an empty slot that nobody is there', () => {
  const driver = entropy();
  assert.deepEqual([R.MagicValue, R.Version, R.DeviceID].map((register) => driver.reg(register)), [VIRTIO_MAGIC, 2, VIRTIO_ID.entropy]);
  driver.set(R.DeviceFeaturesSel, 1);
  assert.equal(driver.reg(R.DeviceFeatures), 1);
  driver.set(R.DeviceFeaturesSel, 2);
  assert.equal(driver.reg(R.DeviceFeatures), 0);
  driver.set(R.QueueSel, 0);
  assert.equal(driver.reg(R.QueueNumMax), 256);
  driver.set(R.QueueSel, 1);
  assert.equal(driver.reg(R.QueueNumMax), 0);
  assert.equal(driver.rig.load(0x0200_0008), 0);
  driver.close();
});

test('negotiation: nothing that was not offered, and not without VERSION_1', () => {
  const driver = entropy();
  const { acknowledge, driver: isDriver, featuresOk } = VIRTIO_STATUS;
  for (const [low, high, isGood] of [[0, 0, false], [1, 1, false], [0, 3, false], [2 ** VIRTIO_F.INDIRECT_DESC, 1, true]] as const) {
    driver.set(R.Status, 0);
    driver.set(R.Status, acknowledge | isDriver);
    for (const [half, bits] of [low, high].entries()) {
      driver.set(R.DriverFeaturesSel, half);
      driver.set(R.DriverFeatures, bits);
    }
    driver.set(R.Status, acknowledge | isDriver | featuresOk);
    assert.equal((driver.reg(R.Status) & featuresOk) !== 0, isGood);
  }
  driver.close();
});

test('entropy: buffers are filled, with an interrupt until it is acknowledged', () => {
  const driver = entropy();
  driver.start(1);
  const [first, second] = [driver.buffer(13, true), driver.buffer(100, true)];
  driver.offer(0, [first, second]);
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 113 }]);
  assert(new Set(driver.rig.read(first.address, 113)).size > 30);
  assert.equal(driver.reg(R.InterruptStatus), VIRTIO_INTERRUPT.usedBuffer);
  assert(driver.line);
  driver.set(R.InterruptACK, VIRTIO_INTERRUPT.usedBuffer);
  assert(!driver.line);
  // A driver that polls wants no interrupt.
  driver.rig.write16(driver.avail(0), 1);
  driver.offerIndirect(0, [driver.buffer(8, true)], 3);
  assert.deepEqual(driver.takeUsed(0), [{ head: 3, sizeBytes: 8 }]);
  assert(!driver.line);
  // Rings wrap.
  for (let i = 0; i < 70_000; i += 1009) driver.offer(0, [first], i % QUEUE_NUM);
  assert.equal(driver.takeUsed(0).length, Math.ceil(70_000 / 1009));
  driver.close();
});

test('event index: each side is told of what it asked for, and of nothing else', () => {
  const driver = entropy();
  driver.start(1, 2 ** VIRTIO_F.EVENT_IDX);
  const usedEvent = driver.avail(0) + 4 + 2 * QUEUE_NUM;
  const availEvent = (): number => driver.rig.read(driver.used(0) + 4 + 8 * QUEUE_NUM, 2).readUInt16LE();
  const buffer = driver.buffer(4, true);
  /** @returns whether the driver was interrupted */
  const offer = (): boolean => {
    driver.offer(0, [buffer]);
    const wasInterrupted = driver.line;
    driver.set(R.InterruptACK, VIRTIO_INTERRUPT.usedBuffer);
    return wasInterrupted;
  };
  assert.equal(availEvent(), 0);
  assert(offer());
  assert.equal(availEvent(), 1);
  driver.rig.write16(usedEvent, 3);
  // The flag that says the same without an index means nothing now.
  assert.deepEqual([offer(), offer()], [false, false]);
  driver.rig.write16(driver.avail(0), 1);
  assert.deepEqual([offer(), offer()], [true, false]);
  assert.equal(availEvent(), 5);
  // Several in one go: asked for the one after the last.
  for (let i = 0; i < 3; i++) driver.makeAvailable(0, 0);
  driver.notify(0);
  assert.equal(availEvent(), 8);
  // What the device has asked for it does not ask for again, until what it has written may be gone.
  driver.rig.write16(driver.used(0) + 4 + 8 * QUEUE_NUM, 77);
  driver.slot.service(true);
  assert.equal(availEvent(), 77);
  driver.slot.restore(driver.slot.save());
  driver.slot.service(true);
  assert.equal(availEvent(), 8);
  for (let i = 0; i < 70_000; i += 7) {
    driver.rig.write16(usedEvent, (8 + i / 7) % 65536);
    if (i % 11 === 0) driver.rig.write16(usedEvent, (7 + i / 7) % 65536);
    assert.equal(offer(), i % 11 !== 0);
  }
  driver.close();
});

test('after a reset nothing of before is finished', () => {
  const taken: unknown[] = [];
  const driver = new TestDriver({
    deviceId: 4, queueCount: 1, features: [], config: () => new Uint8Array(0), restarted: () => {},
    serve: (slot) => { taken.push(slot.queues[0]!.take()); },
  });
  driver.start(1);
  const buffer = driver.buffer(16, true);
  driver.offer(0, [buffer]);
  const chain = taken.at(-1) as Parameters<(typeof driver.slot.queues)[0]['complete']>[0];
  assert.deepEqual(driver.slot.save(), { inFlight: [[0]] });
  driver.set(R.Status, 0);
  // Neither before the host has heard of it nor after.
  assert(driver.slot.queues[0]!.complete(chain, new Uint8Array(16).fill(7)));
  assert.deepEqual([...driver.rig.read(buffer.address, 16)], Array.from({ length: 16 }, () => 0));
  driver.slot.service();
  assert.deepEqual(driver.slot.save(), { inFlight: [[]] });
  assert(!driver.line);
  driver.close();
});

test('console: bytes both ways, pieces of any size', () => {
  const console = new VirtioConsole(() => {});
  const driver = new TestDriver(console);
  driver.start(2);
  assert.equal(console.putInput(Buffer.from('lost')), 0);
  driver.offer(1, [driver.bytes(Buffer.from('hello ')), driver.bytes(Buffer.from('world'))]);
  driver.offer(1, [driver.bytes(Buffer.alloc(40_000, 'x'))], 4);
  assert(console.hasOutput());
  const output = [];
  while (console.hasOutput()) output.push(console.takeOutput());
  assert.equal(Buffer.concat(output).toString(), `hello world${'x'.repeat(40_000)}`);
  assert.equal(driver.takeUsed(1).length, 2);
  const input = driver.buffer(5, true);
  driver.offer(0, [input]);
  assert.equal(console.putInput(Buffer.from('abcdefgh')), 5);
  assert.equal(console.putInput(Buffer.from('fgh')), 0);
  assert.equal(driver.rig.read(input.address, 5).toString(), 'abcde');
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 5 }]);
  driver.close();
});

test('a driver that breaks the rules gets no more service until it resets the device', () => {
  const wrongs: Record<string, (driver: TestDriver) => void> = {
    'index jumps': (driver) => driver.rig.write16(driver.avail(0) + 2, QUEUE_NUM + 1),
    'head outside the table': (driver) => driver.makeAvailable(0, QUEUE_NUM),
    'loop': (driver) => {
      driver.describe(driver.desc(0), driver.buffer(4, true), 1, 1);
      driver.describe(driver.desc(0) + 16, driver.buffer(4, true), 1, 0);
      driver.makeAvailable(0, 0);
    },
    'next outside the table': (driver) => {
      driver.describe(driver.desc(0), driver.buffer(4, true), 1, QUEUE_NUM);
      driver.makeAvailable(0, 0);
    },
    'to read after to write': (driver) => driver.offer(0, [driver.buffer(4, true), driver.buffer(4)]),
    'buffer outside RAM': (driver) => driver.offer(0, [{ address: RAM_BASE + RAM_BYTES - 8, sizeBytes: 16, isWritable: true }]),
    'buffer at the end of the world': (driver) => driver.offer(0, [{ address: 2 ** 52, sizeBytes: 16, isWritable: true }]),
    'table in a table': (driver) => {
      const inner = driver.buffer(16);
      driver.describe(inner.address, inner, 4, 0);
      driver.describe(driver.desc(0), inner, 4, 0);
      driver.makeAvailable(0, 0);
    },
    'table of half a descriptor': (driver) => {
      driver.describe(driver.desc(0), driver.buffer(24), 4, 0);
      driver.makeAvailable(0, 0);
    },
    'table outside RAM': (driver) => {
      driver.describe(driver.desc(0), { address: 0x1000, sizeBytes: 16 }, 4, 0);
      driver.makeAvailable(0, 0);
    },
  };
  for (const [name, doWrong] of Object.entries(wrongs)) {
    const driver = entropy();
    driver.start(1);
    doWrong(driver);
    driver.notify(0);
    assert(driver.isBroken, name);
    assert.equal(driver.reg(R.InterruptStatus) & VIRTIO_INTERRUPT.configuration, VIRTIO_INTERRUPT.configuration, name);
    driver.offer(0, [driver.buffer(4, true)], 5);
    assert.deepEqual(driver.takeUsed(0), [], name);
    driver.start(1);
    driver.offer(0, [driver.buffer(4, true)]);
    assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 4 }], name);
    driver.close();
  }
});

test('rings that lie where they cannot be', () => {
  for (const [register, address] of [
    [R.QueueDescLow, RAM_BASE + 8], [R.QueueDriverLow, RAM_BASE + 1], [R.QueueDeviceLow, RAM_BASE + 2], [R.QueueDescHigh, 0xffff_ffff],
    [R.QueueDriverHigh, 1], [R.QueueDeviceLow, 0x3900_0000 - 4], [R.QueueDescLow, RAM_BASE + RAM_BYTES],
  ] as const) {
    const driver = entropy();
    driver.start(1);
    driver.set(R.QueueReady, 0);
    driver.set(register, address);
    driver.set(R.QueueReady, 1);
    driver.offer(0, [driver.buffer(4, true)]);
    assert(driver.isBroken, `${register} ${address}`);
    driver.close();
  }
});

const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 60);

test('random registers, rings and descriptors: nothing throws, nothing is written outside, every pin is given back', () => {
  const address = fc.oneof(
    fc.nat(RAM_BYTES / 16).map((n) => RAM_BASE + 16 * n), fc.constantFrom(BUFFERS, RAM_BASE, RAM_BASE + RAM_BYTES - 16, 0, 0x3900_0000),
    fc.maxSafeNat(),
  );
  const register = fc.record({ register: fc.oneof(fc.constantFrom(...Object.values(R)), fc.nat(0x1ff)), value: fc.oneof(fc.nat(16), fc.nat(0xffff_ffff)) });
  const descriptor = fc.record({
    at: fc.nat(QUEUE_NUM - 1), queue: fc.nat(1), address, sizeBytes: fc.oneof(fc.nat(64), fc.nat(8192), fc.nat(0xffff_ffff)),
    flags: fc.nat(7), next: fc.oneof(fc.nat(QUEUE_NUM), fc.nat(0xffff)),
  });
  const offer = fc.record({ offered: fc.oneof(fc.nat(QUEUE_NUM), fc.nat(0xffff)), queue: fc.nat(1) });
  const scribble = fc.record({ scribbleAt: fc.nat(0x1fff), byte: fc.nat(255) });
  const restart = fc.constant({ restart: true as const });
  const steps = fc.array(fc.oneof(
    { weight: 3, arbitrary: descriptor }, { weight: 4, arbitrary: offer }, { weight: 2, arbitrary: register }, scribble, restart,
  ), { maxLength: 120 });
  const features = fc.nat(3).map((bits) => (bits & 1) * 2 ** VIRTIO_F.INDIRECT_DESC + (bits >>> 1) * 2 ** VIRTIO_F.EVENT_IDX);
  fc.assert(fc.property(steps, fc.constantFrom('console', 'entropy', 'input'), features, (all, kind, wanted) => {
    const console = new VirtioConsole(() => {});
    const input = new VirtioInput();
    const driver = new TestDriver(kind === 'console' ? console : kind === 'input' ? input : new VirtioEntropy(new SeededRandom(1)));
    const queues = kind === 'entropy' ? 1 : 2;
    driver.start(queues, wanted);
    const { used } = driver.rig.thread.heap.stats();
    for (const step of all) {
      if ('restart' in step) driver.start(queues, wanted);
      else if ('register' in step && step.register >= R.Config) driver.set(step.register, step.value & 0xff, 1);
      else if ('register' in step) driver.set(step.register - step.register % 4, step.value);
      else if ('scribbleAt' in step) driver.rig.write(RAM_BASE + step.scribbleAt, Uint8Array.of(step.byte));
      else if ('offered' in step) {
        if (step.queue < queues) driver.makeAvailable(step.queue, step.offered);
        driver.notify(step.queue);
      } else {
        const buffer: TestBuffer = { address: step.address, sizeBytes: step.sizeBytes };
        driver.describe(driver.desc(step.queue) + 16 * step.at, buffer, step.flags, step.next);
      }
      if (kind === 'console') {
        console.takeOutput();
        console.putInput(Buffer.from('input'));
      }
      if (kind === 'input') input.press(driver.slot, 'POWER');
      driver.slot.service(true);
    }
    // What was written lies in the guest's RAM: untouched pages of it become frames, and a few nodes.
    assert(driver.rig.thread.heap.stats().used - used <= RAM_BYTES / 4096 + 8);
    driver.close();
  }), { numRuns: RUNS });
});
