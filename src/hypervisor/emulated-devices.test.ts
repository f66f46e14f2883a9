// What an access to an emulated register costs beside its time: nothing of anybody else's. Devices' own behaviour is
// tested beside them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { getHeapStatistics } from 'node:v8';
import {
  EMULATED, GUEST_PL011_BASE, GUEST_PL031_BASE, GUEST_VIRTIO_MMIO_BASE, PL011, PL011_STATE, PL031, VIRTIO_MMIO,
  VIRTIO_MMIO_BYTES, VIRTIO_SLOT, VIRTIO_STATUS, virtioSlotAt,
} from '../abi/emulated-devices.ts';
import { scratchOffset } from '../abi/vcpu.ts';
import { Pl011 } from '../devices/pl011/registers.ts';
import { Pl031 } from '../devices/pl031/registers.ts';
import { VirtioMmio } from '../devices/virtio/registers.ts';
import { VirtioEntropy } from '../devices/virtio/entropy.ts';
import { VirtioSlot } from '../devices/virtio/slot.ts';
import { SeededRandom } from '../base/random.ts';
import { EmulatedRig } from './test-emulated.ts';

const SLOT = 3;
const SLOT_ADDRESS = GUEST_VIRTIO_MMIO_BASE + SLOT * VIRTIO_MMIO_BYTES;
const SLOT_AT = virtioSlotAt(SLOT);

interface Access {
  readonly name: string;
  readonly address: number;
  readonly sizeBytes?: number;
  /** What is stored, different each time; left out: a load. */
  readonly value?: (time: number) => number;
  /** Offset in the frame of devices of the word that holds the register, if the access may change one. */
  readonly changes?: number;
}

const ACCESSES: readonly Access[] = [
  { name: 'PL011 flags', address: GUEST_PL011_BASE + PL011.FR },
  { name: 'PL011 flags, a byte', address: GUEST_PL011_BASE + PL011.FR, sizeBytes: 1 },
  { name: 'PL011 identification', address: GUEST_PL011_BASE + PL011.IDENTIFICATION },
  { name: 'PL011 mask', address: GUEST_PL011_BASE + PL011.IMSC, value: (time) => time % 2, changes: EMULATED.at.pl011 + PL011_STATE.at.imsc },
  { name: 'PL031 time', address: GUEST_PL031_BASE + PL031.DR },
  { name: 'virtio status', address: SLOT_ADDRESS + VIRTIO_MMIO.Status },
  { name: 'virtio configuration, two words', address: SLOT_ADDRESS + VIRTIO_MMIO.Config, sizeBytes: 8 },
  { name: 'virtio queue', address: SLOT_ADDRESS + VIRTIO_MMIO.QueueSel, value: (time) => time, changes: SLOT_AT + VIRTIO_SLOT.at.queueSel },
  { name: 'virtio acknowledge', address: SLOT_ADDRESS + VIRTIO_MMIO.InterruptACK, value: () => 1 },
  {
    name: 'virtio driver', address: SLOT_ADDRESS + VIRTIO_MMIO.Status, value: () => VIRTIO_STATUS.acknowledge,
    changes: SLOT_AT + VIRTIO_SLOT.at.status,
  },
];

function newRig(): EmulatedRig {
  const rig = new EmulatedRig([new Pl011(), new VirtioMmio(), new Pl031({ monotonicNanos: () => 0, wallMillis: () => 1e12 })]);
  const slot = new VirtioSlot({ frame: rig.frame, ram: rig.ram, domid: rig.domain.domid, slot: SLOT }, new VirtioEntropy(new SeededRandom(1)));
  assert.equal(slot.status, 0);
  return rig;
}

function make(rig: EmulatedRig, { address, sizeBytes = 4, value }: Access, time: number): boolean {
  if (value === undefined) return rig.devices.load(rig.vcpu, address, sizeBytes);
  rig.machine.u32[(rig.vcpu + scratchOffset(0)) / 4] = value(time);
  return rig.devices.store(rig.vcpu, address, sizeBytes);
}

/** Addresses of the words of the machine memory that are not what they were. */
function changedWords(before: Uint32Array, after: Uint32Array): number[] {
  const changed: number[] = [];
  const WORDS = 1024;
  for (let page = 0; page < after.length; page += WORDS) {
    const [was, is] = [before, after].map((words) => Buffer.from(words.buffer, words.byteOffset + 4 * page, 4 * WORDS)) as [Buffer, Buffer];
    if (was.equals(is)) continue;
    for (let word = page; word < page + WORDS; word++) if (before[word] !== after[word]) changed.push(4 * word);
  }
  return changed;
}

test('an access changes the register, the count of accesses and what it loads, and nothing else in the machine', () => {
  const rig = newRig();
  const scratch = [rig.vcpu + scratchOffset(0), rig.vcpu + scratchOffset(0) + 4];
  ACCESSES.forEach((access, i) => {
    const before = rig.machine.u32.slice();
    assert(make(rig, access, i + 1), access.name);
    const { accesses } = EMULATED.at;
    const allowed = new Set([rig.frame.address + accesses, ...scratch,
      ...(access.changes === undefined ? [] : [rig.frame.address + access.changes])]);
    // Doorbells of pCPUs, their vCPUs' marks, the host's events and bell, locks, interrupt lines: all as before.
    assert.deepEqual(changedWords(before, rig.machine.u32).filter((address) => !allowed.has(address)), [], access.name);
    assert.equal(rig.frame.get(accesses), before[(rig.frame.address + accesses) / 4]! + 1);
    assert.equal(rig.hostWasCalled(), false);
  });
  // The test sees it when an access does more: a byte for the console concerns the host.
  assert(make(rig, { name: 'PL011 data', address: GUEST_PL011_BASE + PL011.DR, value: () => 65 }, 0));
  assert(rig.hostWasCalled());
});

const ROUNDS_MAX = 30;
const TIMES = 50_000;
/** The runtime counts in blocks of up to some 100 KB; the smallest object for each access would be 12 bytes times TIMES. */
const NOISE_BYTES = 8 * TIMES;

test('an access allocates nothing', () => {
  const rig = newRig();
  for (const access of ACCESSES) {
    let least = Infinity;
    // The first rounds are compiled on the way, which allocates.
    for (let round = 0; round < ROUNDS_MAX && least >= NOISE_BYTES; round++) {
      const before = getHeapStatistics().total_allocated_bytes;
      for (let time = 0; time < TIMES; time++) make(rig, access, time);
      least = Math.min(least, getHeapStatistics().total_allocated_bytes - before);
    }
    assert(least < NOISE_BYTES, `${access.name}: ${least} bytes for ${TIMES} accesses`);
  }
});
