import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VIRTIO_ID, VIRTIO_MMIO as R } from '../../abi/emulated-devices.ts';
import { VirtioInput } from './input.ts';
import { QUEUE_NUM, TestDriver } from './test-driver.ts';

function rig(): { input: VirtioInput; driver: TestDriver } {
  const input = new VirtioInput();
  return { input, driver: new TestDriver(input) };
}

/** What the device says of a choice, as Linux reads it: the size, then byte by byte. */
function choose(driver: TestDriver, select: number, subsel: number): Buffer {
  driver.set(R.Config, select, 1);
  driver.set(R.Config + 1, subsel, 1);
  const size = driver.reg(R.Config + 2, 1);
  return Buffer.from(Array.from({ length: size }, (_, i) => driver.reg(R.Config + 8 + i, 1)));
}

test('it says that it is a keyboard of two keys, whatever was chosen before', () => {
  const { driver } = rig();
  assert.equal(driver.reg(R.DeviceID), VIRTIO_ID.input);
  assert.equal(driver.reg(R.Config + 2, 1), 0);
  assert.equal(choose(driver, 1, 0).toString(), 'Zazen buttons');
  const keys = choose(driver, 0x11, 1);
  assert.deepEqual(Array.from({ length: 8 * keys.length }, (_, i) => i).filter((bit) => ((keys[bit >>> 3]! >>> (bit & 7)) & 1) !== 0),
    [116, 408]);
  for (const [select, subsel] of [[0, 0], [0x11, 0], [0x11, 2], [0x10, 0], [0x12, 0], [1, 1], [255, 255]] as const) {
    assert.equal(choose(driver, select, subsel).length, 0);
    assert.equal(driver.reg(R.Config + 8, 4), 0);
  }
  choose(driver, 1, 0);
  // Nothing else there can be written, and choices are bytes.
  driver.set(R.Config + 2, 99, 1);
  driver.set(R.Config + 8, 0x5858_5858);
  driver.set(R.Config, 0x11, 4);
  assert.equal(choose(driver, 1, 0).toString(), 'Zazen buttons');
  // It is part of the device's state.
  driver.slot.restore(driver.slot.save());
  assert.equal(driver.reg(R.Config + 2, 1), 13);
  driver.close();
});

const EVENT = { isWritable: true, sizeBytes: 8 };
const events = (driver: TestDriver, first: number, count: number): number[][] => Array.from({ length: count }, (_, i) => {
  const bytes = driver.rig.read(first + 8 * i, 8);
  return [bytes.readUInt16LE(0), bytes.readUInt16LE(2), bytes.readInt32LE(4)];
});

test('a button is pressed for a driver that is there, with as much room as it gives', () => {
  const { input, driver } = rig();
  assert.equal(input.press(driver.slot, 'POWER'), false);
  driver.start(2);
  const { address } = driver.buffer(8 * QUEUE_NUM, true);
  const give = (index: number): void => driver.offer(0, [{ ...EVENT, address: address + 8 * index }], index);
  for (let i = 0; i < 6; i++) give(i);
  assert.equal(input.press(driver.slot, 'POWER'), true);
  const power = [[1, 116, 1], [0, 0, 0], [1, 116, 0], [0, 0, 0]];
  assert.deepEqual(events(driver, address, 4), power);
  assert.deepEqual(driver.takeUsed(0), [0, 1, 2, 3].map((head) => ({ head, sizeBytes: 8 })));
  assert(driver.line);
  // The rest comes when there is room.
  assert.equal(input.press(driver.slot, 'RESTART'), true);
  assert.equal(driver.takeUsed(0).length, 2);
  give(6);
  give(7);
  assert.deepEqual(events(driver, address + 32, 4), [[1, 408, 1], [0, 0, 0], [1, 408, 0], [0, 0, 0]]);
  // Not without end for a driver that gives none.
  assert.deepEqual([1, 2, 3, 4, 5].map(() => input.press(driver.slot, 'POWER')), [true, true, true, true, false]);
  // After a reset, nothing of before is given.
  driver.start(2);
  give(0);
  assert.equal(driver.takeUsed(0).length, 0);
  // Its lamps are looked at and thrown away.
  driver.offer(1, [driver.bytes(new Uint8Array(8))]);
  assert.deepEqual(driver.takeUsed(1), [{ head: 0, sizeBytes: 0 }]);
  driver.rig.write16(driver.avail(0) + 2, 99);
  driver.notify(0);
  input.press(driver.slot, 'POWER');
  assert(driver.isBroken);
  assert.equal(input.press(driver.slot, 'POWER'), false);
  driver.close();
});
