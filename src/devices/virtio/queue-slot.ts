// The slot of a virtio device, as a queue in it sees it: the registers that it needs, and how the driver is interrupted. The
// host's thread has one such (slot.ts), and whoever serves a lent queue another (lane-queue.ts).

import { VIRTIO_F, VIRTIO_INTERRUPT, VIRTIO_SLOT, VIRTIO_STATUS, virtioSlotAt } from '../../abi/emulated-devices.ts';
import type { DeviceFrame } from '../../hypervisor/emulated-devices.ts';
import type { GuestRam } from '../../hypervisor/guest-ram.ts';
import { driveVirtioLine } from './registers.ts';

const S = VIRTIO_SLOT.at;

export abstract class QueueSlot {
  readonly frame: DeviceFrame;
  readonly ram: GuestRam;
  /** Of the slot. */
  readonly number: number;
  /** How often the driver was interrupted. */
  interrupts = 0;
  /** Offset of the slot in the frame. */
  protected readonly at: number;
  /** Resets of the device or a queue that this thread has acted upon. */
  protected resetsSeen = 0;

  /** @param frame of this thread, of nobody else */
  constructor(frame: DeviceFrame, ram: GuestRam, slot: number) {
    this.frame = frame;
    this.ram = ram;
    this.at = virtioSlotAt(slot);
    this.number = slot;
  }

  /** The driver breaks the rules. */
  abstract markBroken(): void;
  /** A page could not be had. */
  abstract tryLater(): void;

  get status(): number {
    return this.frame.get(this.at + S.status);
  }
  get isBroken(): boolean {
    return (this.status & VIRTIO_STATUS.deviceNeedsReset) !== 0;
  }
  get hasIndirect(): boolean {
    return this.hasFeature(VIRTIO_F.INDIRECT_DESC);
  }
  get hasEventIndex(): boolean {
    return this.hasFeature(VIRTIO_F.EVENT_IDX);
  }
  hasFeature(bit: number): boolean {
    const half = this.frame.get(this.at + (bit < 32 ? S.driverFeaturesLow : S.driverFeaturesHigh));
    return ((half >>> (bit % 32)) & 1) !== 0;
  }
  /** The driver has reset the device or a queue, and this thread has not acted upon that yet. */
  get isReset(): boolean {
    return this.frame.get(this.at + S.resets) !== this.resetsSeen;
  }
  /** For who goes on from here. */
  get resets(): number {
    return this.resetsSeen;
  }

  locked<T>(body: () => T): T {
    this.frame.lock(this.at + S.lock);
    try {
      return body();
    } finally {
      this.frame.unlock(this.at + S.lock);
    }
  }

  /** With the lock. */
  interrupt(why: number = VIRTIO_INTERRUPT.usedBuffer): void {
    this.interrupts++;
    this.frame.set(this.at + S.interruptStatus, this.frame.get(this.at + S.interruptStatus) | why);
    driveVirtioLine(this.frame, this.number);
  }
}
