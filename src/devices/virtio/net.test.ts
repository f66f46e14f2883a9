import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { VIRTIO_MMIO as R } from '../../abi/emulated-devices.ts';
import { SeededRandom } from '../../base/random.ts';
import { MAX_FRAME_BYTES, NO_OFFLOAD } from '../../network/frame-port.ts';
import type { Offload } from '../../network/frame-port.ts';
import { VirtioNet } from './net.ts';
import { QUEUE_NUM, TestDriver } from './test-driver.ts';

const MAC = Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3);
const ALL_FEATURES = 0x1182b;

function open() {
  const sent: { frame: Buffer; offload: Offload }[] = [];
  const state = { isFull: false, ready: 0 };
  const model = new VirtioNet({
    mac: MAC, mtuBytes: 1500, port: () => ({
      send: (frame, offload) => {
        if (!state.isFull) sent.push({ frame: Buffer.from(frame), offload });
        return !state.isFull;
      },
      ready: () => { state.ready++; }, close: () => {},
    }),
  });
  const driver = new TestDriver(model);
  const header = (flags: number, gsoType: number, gsoSize: number) =>
    driver.bytes(Uint8Array.of(flags, gsoType, 0, 0, gsoSize & 0xff, gsoSize >>> 8, 0, 0, 0, 0, 0, 0));
  return { sent, state, model, driver, header };
}

test('sends frames with what the driver left undone about them', () => {
  const { sent, model, driver, header } = open();
  driver.start(2, ALL_FEATURES);
  assert.equal(driver.reg(R.Config), 0x013e_1600);
  assert.equal(driver.reg(R.Config + 6, 2), 1);
  const frame = Buffer.alloc(60, 'f');
  driver.offer(1, [header(0, 0, 0), driver.bytes(frame)]);
  driver.offer(1, [header(1, 0, 0), driver.bytes(frame.subarray(0, 20)), driver.bytes(frame.subarray(20))], 3);
  driver.offer(1, [header(1, 1, 1448), driver.bytes(frame)], 6);
  driver.offer(1, [header(1, 0x84, 1000), driver.bytes(frame)], 9);
  assert.deepEqual(sent.map(({ offload }) => offload), [
    NO_OFFLOAD, { checksumPartial: true, gsoSize: 0, gsoType: 'none' }, { checksumPartial: true, gsoSize: 1448, gsoType: 'tcpv4' },
    { checksumPartial: true, gsoSize: 1000, gsoType: 'tcpv6' },
  ]);
  for (const one of sent) assert.deepEqual(one.frame, frame);
  assert.deepEqual(driver.takeUsed(1).map(({ head }) => head), [0, 3, 6, 9]);
  // None, and such as would be too long or make no sense.
  driver.offer(1, [header(0, 0, 0)]);
  driver.offer(1, [header(0, 0, 0), { address: driver.desc(0), sizeBytes: MAX_FRAME_BYTES + 1 }], 3);
  driver.offer(1, [header(1, 1, 0), driver.bytes(frame)], 6);
  driver.offer(1, [header(1, 3, 100), driver.bytes(frame)], 9);
  assert.equal(sent.length, 4);
  assert.equal(model.counts.txErrors, 4);
  assert.equal(driver.takeUsed(1).length, 4);
  driver.close();
});

test('a network that is full keeps the frame in the ring', async () => {
  const { sent, state, model, driver, header } = open();
  driver.start(2, ALL_FEATURES);
  state.isFull = true;
  driver.offer(1, [header(0, 0, 0), driver.bytes(Buffer.alloc(60))]);
  assert.equal(driver.takeUsed(1).length, 0);
  assert.deepEqual(driver.slot.save(), { inFlight: [[], [0]] });
  state.isFull = false;
  model.link.writable();
  await turn();
  assert.equal(sent.length, 1);
  assert.equal(driver.takeUsed(1).length, 1);
  driver.close();
});

test('receives frames when the driver has given buffers', () => {
  const { state, model, driver } = open();
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), false);
  driver.start(2, ALL_FEATURES);
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), false);
  const buffer = driver.buffer(1526, true);
  driver.offer(0, [buffer]);
  assert.equal(state.ready, 1);
  const frame = Buffer.alloc(1514, 'r');
  assert.equal(model.link.receive(frame, NO_OFFLOAD), true);
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 1526 }]);
  assert.deepEqual([...driver.rig.read(buffer.address, 12)], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
  assert.deepEqual(driver.rig.read(buffer.address + 12, 1514), frame);
  // A buffer that is too small gets nothing of the frame.
  driver.offer(0, [driver.buffer(100, true)]);
  assert.equal(model.link.receive(frame, NO_OFFLOAD), true);
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 12 }]);
  assert.equal(model.counts.rxErrors, 1);
  driver.close();
});

const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 30);

test('random frames, headers and buffers: nothing throws, and every buffer comes back', () => {
  fc.assert(fc.property(fc.integer(), (seed) => {
    const random = new SeededRandom(seed);
    const { sent, state, model, driver } = open();
    driver.start(2, ALL_FEATURES);
    for (let i = 0; i < 60; i++) {
      state.isFull = random.below(4) === 0;
      const size = () => random.pick([0, 1, 11, 12, 26, 100, 1526, 65536, 70_000, 2 ** 31]);
      const queue = random.below(2);
      driver.offer(queue, Array.from({ length: 1 + random.below(3) }, () =>
        ({ address: driver.desc(2) + random.below(0x1000), sizeBytes: size(), isWritable: queue === 0 })), random.below(QUEUE_NUM - 3));
      driver.rig.write(driver.desc(2), Uint8Array.from({ length: 16 }, () => random.u32()));
      model.link.receive(Buffer.alloc(random.pick([14, 60, 1514])), NO_OFFLOAD);
      if (random.below(4) === 0) model.link.writable();
      driver.slot.service(true);
      if (driver.isBroken) driver.start(2, ALL_FEATURES);
    }
    for (const { frame } of sent) assert(frame.length >= 14 && frame.length <= MAX_FRAME_BYTES);
    driver.close();
  }), { numRuns: RUNS });
});
