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
/** Without those of large frames to the guest. */
const PLAIN_FEATURES = 0x1182b;
const EVENT_IDX = 2 ** 29;
/** Large frames of TCP over IPv4 and IPv6 to the guest; with buffers that are put together. */
const LARGE_FEATURES = PLAIN_FEATURES | 0x180;
const MERGING_FEATURES = LARGE_FEATURES | 0x8000;

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
  driver.start(2, PLAIN_FEATURES);
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
  driver.start(2, PLAIN_FEATURES);
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

test('while it is held queues are not touched; what comes meanwhile is seen to afterwards', async () => {
  const { sent, state, model, driver, header } = open();
  driver.start(2, PLAIN_FEATURES);
  driver.slot.hold();
  driver.offer(1, [header(0, 0, 0), driver.bytes(Buffer.alloc(60))]);
  driver.offer(0, [driver.buffer(1526, true)]);
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), false);
  model.link.writable();
  await turn();
  assert.deepEqual([sent.length, state.ready, driver.takeUsed(0).length, driver.takeUsed(1).length], [0, 0, 0, 0]);
  assert.deepEqual(driver.slot.save(), { inFlight: [[], []] });
  driver.slot.release();
  assert.deepEqual([sent.length, state.ready, driver.takeUsed(1).length], [1, 1, 1]);
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), true);
  assert.equal(driver.takeUsed(0).length, 1);
  // One that nothing has come for but a frame: it looks whether there are buffers.
  driver.slot.hold();
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), false);
  driver.slot.release();
  assert.equal(state.ready, 1);
  driver.offer(0, [driver.buffer(1526, true)]);
  assert.equal(state.ready, 2);
  driver.close();
});

test('a notification is for the network thread, everything else for the host\'s', () => {
  const { driver } = open();
  driver.start(2, PLAIN_FEATURES);
  assert.deepEqual([driver.rig.hostWasCalled(), driver.rig.networkWasCalled()], [true, false]);
  driver.notify(1);
  assert.deepEqual([driver.rig.hostWasCalled(), driver.rig.networkWasCalled()], [false, true]);
  driver.set(R.Status, 0);
  assert.deepEqual([driver.rig.hostWasCalled(), driver.rig.networkWasCalled()], [true, false]);
  driver.close();
});

test('receives frames when the driver has given buffers', () => {
  const { state, model, driver } = open();
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), false);
  driver.start(2, PLAIN_FEATURES);
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

/** Ethernet, IPv4 and TCP headers with a blank checksum, and what goes with them. */
function superFrame(payloadBytes: number): Buffer {
  const frame = Buffer.alloc(54 + payloadBytes);
  frame.writeUInt16BE(0x0800, 12);
  frame.writeUInt16BE(0x4500, 14);
  frame.writeUInt16BE(40 + payloadBytes, 16);
  frame[23] = 6;
  frame.set([10, 0, 2, 2, 10, 0, 2, 15], 26);
  frame[46] = 0x50;
  for (let i = 54; i < frame.length; i++) frame[i] = i * 7;
  return frame;
}
const GSO = { checksumPartial: true, gsoSize: 1460, gsoType: 'tcpv4' } as const;
/** What the driver of `superFrame(2000)` finds at its start: pseudo-header summed, the rest to be done by whoever checks. */
const GSO_HEADER = [1, 1, 54, 0, 1460 & 0xff, 1460 >> 8, 34, 0, 16, 0];

test('large frames with blank checksums, in as many buffers as it takes', () => {
  const { state, model, driver } = open();
  assert.deepEqual(model.link.features, { checksumPartial: false, tsoV4: false, tsoV6: false });
  driver.start(2, MERGING_FEATURES | EVENT_IDX);
  assert.deepEqual(model.link.features, { checksumPartial: true, tsoV4: true, tsoV6: true });
  const buffers = Array.from({ length: 4 }, () => driver.buffer(700, true));
  const frame = superFrame(2000);
  buffers.slice(0, 2).forEach((buffer, i) => driver.offer(0, [buffer], i));
  // Two are not enough; they are kept for it.
  assert.equal(model.link.receive(frame, GSO), false);
  assert.deepEqual(driver.slot.save(), { inFlight: [[0, 1], []] });
  const ready = state.ready;
  buffers.slice(2).forEach((buffer, i) => driver.offer(0, [buffer], 2 + i));
  assert(state.ready > ready);
  // The driver wants to be told of the third one that is used.
  driver.rig.write16(driver.avail(0) + 4 + 2 * QUEUE_NUM, 2);
  const { interrupts } = driver.slot;
  assert.equal(model.link.receive(frame, GSO), true);
  assert.equal(driver.slot.interrupts, interrupts + 1);
  assert.deepEqual(driver.takeUsed(0), [0, 1, 2].map((head) => ({ head, sizeBytes: head < 2 ? 700 : 12 + 2054 - 1400 })));
  const bytes = Buffer.concat(buffers.slice(0, 3).map(({ address }) => driver.rig.read(address, 700))).subarray(0, 12 + 2054);
  assert.deepEqual([...bytes.subarray(0, 12)], [...GSO_HEADER, 3, 0]);
  // Sum of the pseudo-header: addresses, protocol, length of the segment.
  const sum = 0x0a00 + 0x0202 + 0x0a00 + 0x020f + 6 + 2020;
  frame.writeUInt16BE(sum, 50);
  assert.deepEqual(bytes.subarray(12), frame);
  // The fourth buffer is still there, for a short frame.
  assert.equal(model.link.receive(Buffer.alloc(60, 's'), NO_OFFLOAD), true);
  assert.deepEqual(driver.takeUsed(0), [{ head: 3, sizeBytes: 72 }]);
  assert.deepEqual([...driver.rig.read(buffers[3]!.address, 12)], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
  assert.equal(model.counts.rxErrors, 0);
  driver.close();
});

test('a driver that has one buffer for each large frame, and one whose buffers are not enough for any', () => {
  const { model, driver } = open();
  driver.start(2, LARGE_FEATURES);
  const buffer = driver.buffer(65562, true);
  driver.offer(0, [buffer]);
  assert.equal(model.link.receive(superFrame(2000), GSO), true);
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 12 + 2054 }]);
  assert.deepEqual([...driver.rig.read(buffer.address, 12)], [...GSO_HEADER, 1, 0]);

  driver.start(2, MERGING_FEATURES);
  for (let head = 0; head < QUEUE_NUM; head++) driver.offer(0, [driver.buffer(100, true)], head);
  assert.equal(model.link.receive(superFrame(2000), GSO), true);
  assert.equal(model.counts.rxErrors, 1);
  assert.deepEqual(driver.takeUsed(0), [{ head: 0, sizeBytes: 12 }]);
  // What is said to be TCP and is not is lost, and what fits is not.
  assert.equal(model.link.receive(Buffer.alloc(60), GSO), true);
  assert.equal(model.counts.rxErrors, 2);
  assert.equal(model.link.receive(superFrame(1000), GSO), true);
  assert.deepEqual(driver.takeUsed(0).map(({ head }) => head), Array.from({ length: 12 }, (_, i) => i + 1));
  // Without whole checksums there is nothing large.
  driver.start(2, MERGING_FEATURES & ~2);
  assert.deepEqual(model.link.features, { checksumPartial: false, tsoV4: false, tsoV6: false });
  driver.close();
});

test('buffers that were kept for a frame are taken again by a device that goes on from there', () => {
  const { model, driver } = open();
  driver.start(2, MERGING_FEATURES);
  driver.offer(0, [driver.buffer(700, true)], 5);
  assert.equal(model.link.receive(superFrame(2000), GSO), false);
  driver.slot.restore(driver.slot.save());
  assert.equal(model.link.receive(Buffer.alloc(60), NO_OFFLOAD), true);
  assert.deepEqual(driver.takeUsed(0), [{ head: 5, sizeBytes: 72 }]);
  driver.close();
});

const SUPER_FRAMES = [0, 1000, 9000, 65_000].map(superFrame);
const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 30);

test('random frames, headers and buffers: nothing throws, and every buffer comes back', () => {
  fc.assert(fc.property(fc.integer(), (seed) => {
    const random = new SeededRandom(seed);
    const { sent, state, model, driver } = open();
    const features = random.pick([PLAIN_FEATURES, LARGE_FEATURES, MERGING_FEATURES, MERGING_FEATURES | EVENT_IDX]);
    driver.start(2, features);
    for (let i = 0; i < 60; i++) {
      state.isFull = random.below(4) === 0;
      const size = () => random.pick([0, 1, 11, 12, 26, 100, 1526, 65536, 70_000, 2 ** 31]);
      const queue = random.below(2);
      driver.offer(queue, Array.from({ length: 1 + random.below(3) }, () =>
        ({ address: driver.desc(2) + random.below(0x1000), sizeBytes: size(), isWritable: queue === 0 })), random.below(QUEUE_NUM - 3));
      driver.rig.write(driver.desc(2), Uint8Array.from({ length: 16 }, () => random.u32()));
      model.link.receive(Buffer.alloc(random.pick([14, 60, 1514])), NO_OFFLOAD);
      model.link.receive(random.pick(SUPER_FRAMES), GSO);
      if (random.below(4) === 0) model.link.writable();
      driver.slot.service(true);
      if (driver.isBroken) driver.start(2, features);
    }
    for (const { frame } of sent) assert(frame.length >= 14 && frame.length <= MAX_FRAME_BYTES);
    driver.close();
  }), { numRuns: RUNS });
});
