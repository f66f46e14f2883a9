// The driver's half of a virtqueue, for tests: lays the rings out in guest memory, makes requests available, and reads
// what was used. It can be made to break every rule.
//
//   RAM_BASE + 0x1000 × queue         descriptors, then available ring
//            + 0x800                  used ring
//            + 0x10_0000 …            buffers, one after the other

import assert from 'node:assert/strict';
import {
  GUEST_VIRTIO_MMIO_BASE, VIRTIO_F, VIRTIO_MMIO as R, VIRTIO_MMIO_BYTES, VIRTIO_STATUS, virtioIntid,
} from '../../abi/emulated-devices.ts';
import { EmulatedRig, RAM_BASE } from '../../hypervisor/test-emulated.ts';
import { VirtioMmio } from './registers.ts';
import { VirtioSlot } from './slot.ts';
import type { SlotState, VirtioModel } from './slot.ts';

export const BUFFERS = RAM_BASE + 0x10_0000;
export const QUEUE_NUM = 16;
export const SLOT = 2;

export interface TestBuffer {
  readonly address: number;
  readonly sizeBytes: number;
  readonly isWritable?: boolean;
}

export class TestDriver {
  readonly rig: EmulatedRig;
  readonly mmio = new VirtioMmio();
  readonly slot: VirtioSlot;
  readonly #available: number[] = [];
  readonly #used: number[] = [];
  #nextBuffer = BUFFERS;

  constructor(model: VirtioModel, state?: SlotState) {
    this.rig = new EmulatedRig([this.mmio]);
    this.slot = new VirtioSlot({ frame: this.rig.frame, ram: this.rig.ram, domid: this.rig.domain.domid, slot: SLOT }, model, state);
  }

  reg(register: number, sizeBytes = 4): number {
    return this.rig.load(GUEST_VIRTIO_MMIO_BASE + SLOT * VIRTIO_MMIO_BYTES + register, sizeBytes);
  }
  set(register: number, value: number, sizeBytes = 4): void {
    this.rig.store(GUEST_VIRTIO_MMIO_BASE + SLOT * VIRTIO_MMIO_BYTES + register, value, sizeBytes);
  }
  get line(): boolean {
    return this.rig.line(virtioIntid(SLOT));
  }

  /** As Linux does it. @param features bits of the low half beside VERSION_1 */
  start(queues: number, features = 2 ** VIRTIO_F.INDIRECT_DESC): void {
    const { acknowledge, driver, featuresOk, driverOk } = VIRTIO_STATUS;
    this.set(R.Status, 0);
    this.set(R.Status, acknowledge);
    this.set(R.Status, driver);
    this.set(R.DriverFeaturesSel, 0);
    this.set(R.DriverFeatures, features);
    this.set(R.DriverFeaturesSel, 1);
    this.set(R.DriverFeatures, 1);
    this.set(R.Status, featuresOk);
    assert.notEqual(this.reg(R.Status) & featuresOk, 0);
    for (let queue = 0; queue < queues; queue++) this.#startQueue(queue);
    this.set(R.Status, driverOk);
    this.slot.service();
  }
  #startQueue(queue: number): void {
    this.rig.write(this.desc(queue), new Uint8Array(0x1000));
    this.#available[queue] = this.#used[queue] = 0;
    this.set(R.QueueSel, queue);
    assert.equal(this.reg(R.QueueReady), 0);
    this.set(R.QueueNum, QUEUE_NUM);
    for (const [low, address] of [[R.QueueDescLow, this.desc(queue)], [R.QueueDriverLow, this.avail(queue)], [R.QueueDeviceLow, this.used(queue)]] as const) {
      this.set(low, address);
      this.set(low + 4, 0);
    }
    this.set(R.QueueReady, 1);
    assert.equal(this.reg(R.QueueReady), 1);
  }

  desc(queue: number): number {
    return RAM_BASE + 0x1000 * queue;
  }
  avail(queue: number): number {
    return this.desc(queue) + 0x400;
  }
  used(queue: number): number {
    return this.desc(queue) + 0x800;
  }

  buffer(sizeBytes: number, isWritable = false): TestBuffer {
    const address = this.#nextBuffer;
    this.#nextBuffer += sizeBytes;
    return { address, sizeBytes, isWritable };
  }
  bytes(content: Uint8Array): TestBuffer {
    const buffer = this.buffer(content.length);
    this.rig.write(buffer.address, content);
    return buffer;
  }

  describe(at: number, { address, sizeBytes, isWritable = false }: TestBuffer, flags: number, next: number): void {
    const bytes = Buffer.alloc(16);
    bytes.writeBigUInt64LE(BigInt(address));
    bytes.writeUInt32LE(sizeBytes, 8);
    bytes.writeUInt16LE(flags | (isWritable ? 2 : 0), 12);
    bytes.writeUInt16LE(next, 14);
    this.rig.write(at, bytes);
  }

  /** Makes a chain from descriptor `first` on available, and notifies. */
  offer(queue: number, buffers: readonly TestBuffer[], first = 0): void {
    buffers.forEach((buffer, i) =>
      this.describe(this.desc(queue) + 16 * (first + i), buffer, i + 1 < buffers.length ? 1 : 0, first + i + 1));
    this.makeAvailable(queue, first);
    this.notify(queue);
  }
  /** The same as one indirect descriptor. */
  offerIndirect(queue: number, buffers: readonly TestBuffer[], first = 0): void {
    const table = this.buffer(16 * buffers.length);
    buffers.forEach((buffer, i) => this.describe(table.address + 16 * i, buffer, i + 1 < buffers.length ? 1 : 0, i + 1));
    this.describe(this.desc(queue) + 16 * first, table, 4, 0);
    this.makeAvailable(queue, first);
    this.notify(queue);
  }
  makeAvailable(queue: number, head: number): void {
    const index = this.#available[queue]!++;
    this.rig.write16(this.avail(queue) + 4 + 2 * (index % QUEUE_NUM), head);
    this.rig.write16(this.avail(queue) + 2, this.#available[queue]!);
  }
  notify(queue: number): void {
    this.set(R.QueueNotify, queue);
    this.slot.service();
  }

  /** What the device has given back since the last time. */
  takeUsed(queue: number): { head: number; sizeBytes: number }[] {
    const end = this.rig.read(this.used(queue) + 2, 2).readUInt16LE();
    const taken = [];
    for (; this.#used[queue]! % 65536 !== end; this.#used[queue]!++) {
      const element = this.rig.read(this.used(queue) + 4 + 8 * (this.#used[queue]! % QUEUE_NUM), 8);
      taken.push({ head: element.readUInt32LE(), sizeBytes: element.readUInt32LE(4) });
    }
    return taken;
  }

  get isBroken(): boolean {
    return (this.reg(R.Status) & VIRTIO_STATUS.deviceNeedsReset) !== 0;
  }

  close(): void {
    this.slot.close();
    this.rig.audit();
  }
}
