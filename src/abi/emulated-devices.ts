// The emulated devices of a domain of type hvm: where the guest finds them, and their registers in machine memory. All
// are in one frame that the domain record points to, so that any pCPU serves an access in its own thread, and a copy of
// the frame is the state of the devices.
//
//   guest physical                                      the frame
//   0x0200_0000 ┌──────────────────────────────┐           0 ┌────────────────────┐
//               │ virtio-mmio   12 × 0x200     │             │ counts             │
//   0x2200_0000 ├──────────────────────────────┤          64 ├────────────────────┤
//               │ PL011, first serial port     │             │ PL011_STATE        │
//   0x2200_1000 ├──────────────────────────────┤         128 ├────────────────────┤
//               │ PL031, real-time clock       │             │ PL031_STATE        │
//   0x2200_2000 └──────────────────────────────┘         192 ├────────────────────┤
//                                                            │ VIRTIO_SLOT × 12   │
//                                                            └────────────────────┘
//
// Addresses and interrupts of PL011 and virtio-mmio are those of Xen's arch-arm.h; the PL031 and the last virtio slot,
// which is the buttons', have the next free ones.
// Each device has a lock of its own, taken after the domain's lock and before the interrupt controller's. It covers
// registers and, for virtio, what the device writes into a queue: after a reset by the driver nothing is written.

import { assert } from '../base/assert.ts';
import { FRAME_BYTES } from './machine-memory.ts';
import { array, struct, u32, u64, u8 } from './struct.ts';
import { GUEST_PL011_BASE, GUEST_PL011_SIZE, GUEST_VPL011_SPI } from './xen.ts';

// ---- where ----------------------------------------------------------------------------------------------------------

export const GUEST_VIRTIO_MMIO_BASE = 0x0200_0000;
/** Of one device. */
export const VIRTIO_MMIO_BYTES = 0x200;
const GUEST_VIRTIO_MMIO_SPI_FIRST = 33;
const GUEST_VIRTIO_MMIO_SPI_LAST = 43;
export const BUTTONS_SLOT = GUEST_VIRTIO_MMIO_SPI_LAST - GUEST_VIRTIO_MMIO_SPI_FIRST + 1;
export const VIRTIO_SLOTS = BUTTONS_SLOT + 1;
export const GUEST_PL031_BASE = GUEST_PL011_BASE + GUEST_PL011_SIZE;
export const GUEST_PL031_SIZE = 0x1000;
export const GUEST_PL031_SPI = 44;
const GUEST_BUTTONS_SPI = 45;
/** INTID of a slot. */
export const virtioIntid = (slot: number): number =>
  slot === BUTTONS_SLOT ? GUEST_BUTTONS_SPI : GUEST_VIRTIO_MMIO_SPI_FIRST + slot;
export { GUEST_PL011_BASE, GUEST_PL011_SIZE, GUEST_VPL011_SPI as GUEST_PL011_SPI };

// ---- PL011 (Arm DDI 0183) -------------------------------------------------------------------------------------------

export const PL011 = {
  DR: 0x0, RSR: 0x4, FR: 0x18, ILPR: 0x20, IBRD: 0x24, FBRD: 0x28, LCR_H: 0x2c, CR: 0x30, IFLS: 0x34, IMSC: 0x38,
  RIS: 0x3c, MIS: 0x40, ICR: 0x44, DMACR: 0x48, IDENTIFICATION: 0xfe0,
} as const;
export const PL011_FR = { cts: 1, dsr: 2, dcd: 4, busy: 8, rxfe: 0x10, txff: 0x20, rxff: 0x40, txfe: 0x80 } as const;
/** Bits of IMSC, RIS, MIS and ICR: received, sent, received and then nothing more. */
export const PL011_INT = { rx: 0x10, tx: 0x20, rt: 0x40 } as const;
export const PL011_STATE = struct('pl011State', {
  lock: u32, imsc: u32, ris: u32, cr: u32, lcrH: u32, ibrd: u32, fbrd: u32, ifls: u32, ilpr: u32, dmacr: u32,
  /** The output had no room for a FIFO of bytes: when it has again, that is an interrupt. */
  txShort: u32,
}, { padTo: 64 });

// ---- PL031 (Arm DDI 0224) -------------------------------------------------------------------------------------------

export const PL031 = {
  DR: 0x0, MR: 0x4, LR: 0x8, CR: 0xc, IMSC: 0x10, RIS: 0x14, MIS: 0x18, ICR: 0x1c, IDENTIFICATION: 0xfe0,
} as const;
export const PL031_STATE = struct('pl031State', {
  lock: u32,
  /** What is to be added to the Unix time, modulo 2^32. */
  offset: u32,
  load: u32, match: u32, imsc: u32, ris: u32,
  /** The match value lies ahead: when the counter gets there, that is an interrupt. */
  armed: u32,
}, { padTo: 64 });

// ---- virtio-mmio (OASIS Virtual I/O Device 1.2, 4.2) ----------------------------------------------------------------

export const VIRTIO_MMIO = {
  MagicValue: 0x0, Version: 0x4, DeviceID: 0x8, VendorID: 0xc, DeviceFeatures: 0x10, DeviceFeaturesSel: 0x14,
  DriverFeatures: 0x20, DriverFeaturesSel: 0x24, QueueSel: 0x30, QueueNumMax: 0x34, QueueNum: 0x38, QueueReady: 0x44,
  QueueNotify: 0x50, InterruptStatus: 0x60, InterruptACK: 0x64, Status: 0x70, QueueDescLow: 0x80, QueueDescHigh: 0x84,
  QueueDriverLow: 0x90, QueueDriverHigh: 0x94, QueueDeviceLow: 0xa0, QueueDeviceHigh: 0xa4, SHMLenLow: 0xb0,
  SHMBaseHigh: 0xbc, ConfigGeneration: 0xfc, Config: 0x100,
} as const;
export const VIRTIO_MAGIC = 0x7472_6976;
/** 'ZAZN'. */
export const VIRTIO_VENDOR = 0x4e5a_415a;
export const VIRTIO_STATUS = {
  acknowledge: 1, driver: 2, driverOk: 4, featuresOk: 8, deviceNeedsReset: 0x40, failed: 0x80,
} as const;
export const VIRTIO_INTERRUPT = { usedBuffer: 1, configuration: 2 } as const;
export const VIRTIO_ID = { net: 1, block: 2, console: 3, entropy: 4, input: 18 } as const;
/** Feature bits by number. */
export const VIRTIO_F = { INDIRECT_DESC: 28, EVENT_IDX: 29, VERSION_1: 32 } as const;

/** What a driver can choose as the size of a queue. */
export const VIRTIO_QUEUE_NUM_MAX = 256;
export const VIRTIO_QUEUES_MAX = 2;
export const VIRTIO_CONFIG_BYTES = 64;

export const VIRTIO_QUEUE = struct('virtioQueue', {
  num: u32,
  ready: u32,
  /** Guest physical addresses: descriptor table, available ring, used ring. */
  desc: u64, driver: u64, device: u64,
  /** Of the available ring, what the device has taken; of the used ring, what it has put there. Modulo 2^16. */
  lastAvail: u32,
  usedIndex: u32,
});

/** deviceId 0: nobody is there. */
export const VIRTIO_SLOT = struct('virtioSlot', {
  lock: u32,
  deviceId: u32,
  /** How many queues the device has. */
  queueCount: u32,
  featuresLow: u32, featuresHigh: u32,
  driverFeaturesLow: u32, driverFeaturesHigh: u32,
  deviceFeaturesSel: u32, driverFeaturesSel: u32,
  queueSel: u32,
  status: u32,
  interruptStatus: u32,
  configGeneration: u32,
  /** Counts resets of device or queue: what was begun before one is not finished after it. */
  resets: u32,
  /** A bit for each queue that the driver has notified of. */
  kicks: u32,
  queues: array(VIRTIO_QUEUE, VIRTIO_QUEUES_MAX),
  config: array(u8, VIRTIO_CONFIG_BYTES),
}, { padTo: 256 });

// ---- the frame ------------------------------------------------------------------------------------------------------

export const EMULATED = struct('emulatedDevices', {
  /** Register accesses of all vCPUs, and how many of them had something to tell the host's thread. Modulo 2^32. */
  accesses: u32,
  hostCalls: u32,
  counts: array(u32, 14),
  pl011: PL011_STATE,
  pl031: PL031_STATE,
  virtio: array(VIRTIO_SLOT, VIRTIO_SLOTS),
}, { padTo: FRAME_BYTES });
assert(EMULATED.at.pl011 === 64, 'drawn like this');

/** Offset of a virtio device in the frame. */
export const virtioSlotAt = (slot: number): number => EMULATED.at.virtio + slot * VIRTIO_SLOT.sizeBytes;
/** Offset of a queue in its slot. */
export const virtioQueueAt = (queue: number): number => VIRTIO_SLOT.at.queues + queue * VIRTIO_QUEUE.sizeBytes;

/** Offsets of the locks: nobody holds one in a frame that was copied from a domain that stood still. */
export const EMULATED_LOCKS: readonly number[] = [
  EMULATED.at.pl011 + PL011_STATE.at.lock, EMULATED.at.pl031 + PL031_STATE.at.lock,
  ...Array.from({ length: VIRTIO_SLOTS }, (_, slot) => virtioSlotAt(slot) + VIRTIO_SLOT.at.lock),
];
