// The registers of virtio devices on the memory-mapped transport, version 2 (OASIS Virtual I/O Device 1.2, 4.2.2), for
// all slots of a domain. What a device is, the host says in its slot (slot.ts); the driver's side of the negotiation,
// the queues' addresses and interrupts are done here, in the thread of the pCPU. A notification sets a bit and tells
// the host; of a network card, the network thread.
//
// A reset takes the slot's lock, under which the host writes into queues: when the register has been written, the
// device writes to none of the driver's memory any more.

import {
  GUEST_VIRTIO_MMIO_BASE, VIRTIO_CONFIG_BYTES, VIRTIO_F, VIRTIO_ID, VIRTIO_MAGIC, VIRTIO_MMIO, VIRTIO_MMIO_BYTES,
  VIRTIO_QUEUE, VIRTIO_QUEUES_MAX, VIRTIO_QUEUE_NUM_MAX, VIRTIO_SLOT, VIRTIO_SLOTS, VIRTIO_STATUS, VIRTIO_VENDOR,
  virtioIntid, virtioQueueAt, virtioSlotAt,
} from '../../abi/emulated-devices.ts';
import type { DeviceFrame, RegisterModel } from '../../hypervisor/emulated-devices.ts';
import { CONFIG_CHOICE_BYTES, chooseInputConfig } from './input-config.ts';

const R = VIRTIO_MMIO;
const S = VIRTIO_SLOT.at;
const Q = VIRTIO_QUEUE.at;
const VERSION = 2;
const VERSION_1_HIGH = 1 << (VIRTIO_F.VERSION_1 - 32);
const NOTHING_SHARED = 0xffff_ffff;
/** Registers that hold half of an address of the selected queue. */
const ADDRESS_FIELDS: Readonly<Partial<Record<number, number>>> = {
  [R.QueueDescLow]: Q.desc, [R.QueueDescHigh]: Q.desc + 4,
  [R.QueueDriverLow]: Q.driver, [R.QueueDriverHigh]: Q.driver + 4,
  [R.QueueDeviceLow]: Q.device, [R.QueueDeviceHigh]: Q.device + 4,
};
/** What a reset leaves of a slot: what the device is. */
const RESET_FIELDS = [
  S.driverFeaturesLow, S.driverFeaturesHigh, S.deviceFeaturesSel, S.driverFeaturesSel, S.queueSel, S.status,
  S.interruptStatus, S.kicks,
] as const;

/** Drives a slot's interrupt line. With its lock. */
export function driveVirtioLine(frame: DeviceFrame, slot: number): void {
  frame.setLine(virtioIntid(slot), frame.get(virtioSlotAt(slot) + S.interruptStatus) !== 0);
}

/** Forgets all that a driver has said. With the slot's lock. */
export function resetVirtioSlot(frame: DeviceFrame, slot: number): void {
  const at = virtioSlotAt(slot);
  for (const field of RESET_FIELDS) frame.set(at + field, 0);
  for (let queue = 0; queue < VIRTIO_QUEUES_MAX; queue++) {
    for (let field = 0; field < VIRTIO_QUEUE.sizeBytes; field += 4) frame.set(at + virtioQueueAt(queue) + field, 0);
  }
  frame.set(at + S.resets, frame.get(at + S.resets) + 1);
  driveVirtioLine(frame, slot);
}

export class VirtioMmio implements RegisterModel {
  readonly base = GUEST_VIRTIO_MMIO_BASE;
  readonly sizeBytes = VIRTIO_SLOTS * VIRTIO_MMIO_BYTES;
  /**
   * Where a thread looks after queues itself: told of a notification, holding no lock.
   * @returns false when the host's thread is to look
   */
  serveSlot: ((domid: number, slot: number) => boolean) | undefined;

  load(frame: DeviceFrame, offset: number): number {
    const at = virtioSlotAt(Math.floor(offset / VIRTIO_MMIO_BYTES));
    const register = offset % VIRTIO_MMIO_BYTES;
    switch (register) {
      case R.InterruptStatus: return frame.get(at + S.interruptStatus);
      case R.MagicValue: return VIRTIO_MAGIC;
      case R.Version: return VERSION;
      case R.DeviceID: return frame.get(at + S.deviceId);
      case R.VendorID: return VIRTIO_VENDOR;
    }
    if (frame.get(at + S.deviceId) === 0) return 0;
    if (register >= R.Config) {
      return register < R.Config + VIRTIO_CONFIG_BYTES ? frame.get(at + S.config + register - R.Config) : 0;
    }
    switch (register) {
      case R.Status: return frame.get(at + S.status);
      case R.ConfigGeneration: return frame.get(at + S.configGeneration);
      case R.DeviceFeatures: return deviceFeatures(frame, at);
      case R.QueueNumMax: return selectedQueue(frame, at) === 0 ? 0 : VIRTIO_QUEUE_NUM_MAX;
      case R.QueueReady: {
        const queue = selectedQueue(frame, at);
        return queue === 0 ? 0 : frame.get(queue + Q.ready);
      }
    }
    return register >= R.SHMLenLow && register <= R.SHMBaseHigh ? NOTHING_SHARED : 0;
  }

  store(frame: DeviceFrame, offset: number, value: number, sizeBytes: number): void {
    const slot = Math.floor(offset / VIRTIO_MMIO_BYTES);
    const at = virtioSlotAt(slot);
    const register = offset % VIRTIO_MMIO_BYTES;
    if (register >= R.Config) return storeConfig(frame, at, register - R.Config, value, sizeBytes);
    // Registers are words.
    if (sizeBytes !== 4 || frame.get(at + S.deviceId) === 0) return;
    frame.lock(at + S.lock);
    const isForHost = this.#store(frame, slot, at, register, value);
    frame.unlock(at + S.lock);
    if (!isForHost) return;
    if (register === R.QueueNotify) {
      if (frame.get(at + S.deviceId) === VIRTIO_ID.net) return frame.callNetwork();
      if (this.serveSlot?.(frame.record.domid, slot) === true) return;
    }
    frame.callHost();
  }

  /** @returns whether the host has something to do */
  #store(frame: DeviceFrame, slot: number, at: number, register: number, value: number): boolean {
    switch (register) {
      case R.QueueNotify: return notify(frame, at, value);
      case R.InterruptACK:
        frame.set(at + S.interruptStatus, frame.get(at + S.interruptStatus) & ~value);
        driveVirtioLine(frame, slot);
        return false;
      case R.Status: return this.#setStatus(frame, slot, at, value);
      case R.DeviceFeaturesSel: frame.set(at + S.deviceFeaturesSel, value); return false;
      case R.DriverFeaturesSel: frame.set(at + S.driverFeaturesSel, value); return false;
      case R.DriverFeatures: setDriverFeatures(frame, at, value); return false;
      case R.QueueSel: frame.set(at + S.queueSel, value); return false;
    }
    const queue = selectedQueue(frame, at);
    if (queue === 0) return false;
    if (register === R.QueueReady) setReady(frame, at, queue, value);
    // A queue that is in use stays as it is.
    else if (frame.get(queue + Q.ready) !== 0) return false;
    else if (register === R.QueueNum) frame.set(queue + Q.num, isQueueNum(value) ? value : 0);
    else {
      const field = ADDRESS_FIELDS[register];
      if (field !== undefined) frame.set(queue + field, value);
    }
    return false;
  }

  #setStatus(frame: DeviceFrame, slot: number, at: number, value: number): boolean {
    const before = frame.get(at + S.status);
    if (value === 0) {
      resetVirtioSlot(frame, slot);
      return before !== 0;
    }
    const { featuresOk, driverOk } = VIRTIO_STATUS;
    // The driver sets bits one after the other; what the device has set stays.
    let status = before | (value & 0x8f);
    if ((before & featuresOk) === 0 && !areFeaturesGood(frame, at)) status &= ~featuresOk;
    frame.set(at + S.status, status);
    return (status & ~before & driverOk) !== 0;
  }
}

/** The only configuration space in which anything can be written is that of an input device. */
function storeConfig(frame: DeviceFrame, at: number, offset: number, value: number, sizeBytes: number): void {
  if (frame.get(at + S.deviceId) !== VIRTIO_ID.input || sizeBytes !== 1 || offset >= CONFIG_CHOICE_BYTES) return;
  frame.lock(at + S.lock);
  const config = frame.address + at + S.config;
  frame.machine.u8[config + offset] = value;
  chooseInputConfig(frame.machine.u8, config);
  frame.unlock(at + S.lock);
}

/** Offset in the frame of the queue that the driver has selected, or 0. */
function selectedQueue(frame: DeviceFrame, at: number): number {
  const queue = frame.get(at + S.queueSel);
  return queue < VIRTIO_QUEUES_MAX && queue < frame.get(at + S.queueCount) ? at + virtioQueueAt(queue) : 0;
}

function isQueueNum(value: number): boolean {
  return value > 0 && value <= VIRTIO_QUEUE_NUM_MAX && (value & (value - 1)) === 0;
}

function notify(frame: DeviceFrame, at: number, queue: number): boolean {
  if (!(queue < VIRTIO_QUEUES_MAX) || (frame.get(at + S.status) & VIRTIO_STATUS.driverOk) === 0) return false;
  if (frame.get(at + virtioQueueAt(queue) + Q.ready) === 0) return false;
  frame.set(at + S.kicks, frame.get(at + S.kicks) | (1 << queue));
  return true;
}

function deviceFeatures(frame: DeviceFrame, at: number): number {
  const half = frame.get(at + S.deviceFeaturesSel);
  return half === 0 ? frame.get(at + S.featuresLow) : half === 1 ? frame.get(at + S.featuresHigh) : 0;
}

function setDriverFeatures(frame: DeviceFrame, at: number, value: number): void {
  if ((frame.get(at + S.status) & VIRTIO_STATUS.featuresOk) !== 0) return;
  const half = frame.get(at + S.driverFeaturesSel);
  if (half === 0) frame.set(at + S.driverFeaturesLow, value);
  else if (half === 1) frame.set(at + S.driverFeaturesHigh, value);
}

/** Nothing that was not offered, and not the legacy interface. */
function areFeaturesGood(frame: DeviceFrame, at: number): boolean {
  const low = frame.get(at + S.driverFeaturesLow);
  const high = frame.get(at + S.driverFeaturesHigh);
  return (low & ~frame.get(at + S.featuresLow)) === 0 && (high & ~frame.get(at + S.featuresHigh)) === 0
    && (high & VERSION_1_HIGH) !== 0;
}

function setReady(frame: DeviceFrame, at: number, queue: number, value: number): void {
  const isReady = (value & 1) !== 0 && frame.get(queue + Q.num) !== 0;
  if (isReady === (frame.get(queue + Q.ready) !== 0)) return;
  frame.set(queue + Q.ready, isReady ? 1 : 0);
  frame.set(queue + Q.lastAvail, 0);
  frame.set(queue + Q.usedIndex, 0);
  if (!isReady) frame.set(at + S.resets, frame.get(at + S.resets) + 1);
}
