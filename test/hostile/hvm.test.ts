// Guests of type hvm that write nonsense into every register of their emulated devices and into the queues that these
// serve. Seeds are in the tests' names.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import {
  GUEST_PL011_BASE, GUEST_PL031_BASE, GUEST_VIRTIO_MMIO_BASE, PL011, PL031, VIRTIO_MMIO as R, VIRTIO_MMIO_BYTES, VIRTIO_SLOTS,
} from '../../src/abi/emulated-devices.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { BASE, FREE, MEMORY, forEachRow, powerOff, repeat } from '../bare-metal.ts';
import { Arena } from './arena.ts';

let arena: Arena;
before(async () => { arena = await Arena.open(); });
after(() => arena.close());

const ROUNDS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 20);
const ROW_BYTES = 24;
const ROWS = 1000;

/** Rows of address, value, and whether it is a store of 8, 4, 2 or 1 bytes, or a load. */
function randomAccesses(dice: SeededRandom): Buffer {
  const rows = Buffer.alloc(ROWS * ROW_BYTES);
  const registers = Object.values(R);
  for (let row = 0; row < ROWS; row++) {
    const [address, value] = dice.pick([
      () => [GUEST_PL011_BASE + dice.pick([...Object.values(PL011), 4 * dice.below(0x400)]), dice.u32()],
      () => [GUEST_PL031_BASE + dice.pick([...Object.values(PL031), 4 * dice.below(0x400)]), dice.u32()],
      () => [GUEST_VIRTIO_MMIO_BASE + dice.below(VIRTIO_SLOTS) * VIRTIO_MMIO_BYTES + dice.pick([...registers, 4 * dice.below(128)]),
        dice.pick([dice.u32(), dice.below(16), 2 ** dice.below(9)])],
      // Bring a device to where it takes requests, with queues in memory that is full of nonsense.
      () => [GUEST_VIRTIO_MMIO_BASE + dice.below(5) * VIRTIO_MMIO_BYTES + dice.pick([R.Status, R.QueueReady, R.QueueNotify]), dice.pick([0, 1, 3, 11, 15])],
      () => [GUEST_VIRTIO_MMIO_BASE + dice.below(5) * VIRTIO_MMIO_BYTES + dice.pick([R.QueueDescLow, R.QueueDriverLow, R.QueueDeviceLow]),
        dice.pick([FREE, FREE + 16 * dice.below(4096), BASE - 4, BASE + 40 * 2 ** 20 - 16])],
      () => [FREE + 8 * dice.below(8192), dice.pick([dice.u32(), FREE + dice.below(65536), dice.below(64)])],
    ])() as [number, number];
    rows.writeBigUInt64LE(BigInt(address - address % 8 + dice.pick([0, 4])), row * ROW_BYTES);
    rows.writeBigUInt64LE(BigInt(value), row * ROW_BYTES + 8);
    rows.writeBigUInt64LE(BigInt(dice.below(6)), row * ROW_BYTES + 16);
  }
  return rows;
}

function access(a: Assembler, round: number): void {
  const label = (name: string): string => `${name}-${round}`;
  a.ldr(1, 20).ldr(2, 20, 8).ldr(3, 20, 16);
  for (const [i, size] of (['X', 'W', 'H', 'B'] as const).entries()) {
    a.sub(3, 3, i === 0 ? 0 : 1).cbnz(3, label(`not${i}`)).str(2, 1, 0, size).b(label('done')).label(label(`not${i}`));
  }
  a.ldr(4, 1, 0, 'W').label(label('done'));
}

for (const seed of [1, 2]) {
  test(`random accesses to all registers, and queues of nonsense (seed ${seed})`, async () => {
    const dice = new SeededRandom(seed);
    const guest = await arena.runToEnd({
      data: randomAccesses(dice),
      code: (a) => {
        repeat(a, ROUNDS, () => forEachRow(a, ROWS, ROW_BYTES, () => access(a, seed)));
        powerOff(a);
      },
    }, { type: 'hvm', memory: MEMORY });
    const { accesses, hostCalls } = guest.stats().emulated!;
    assert(accesses > 100 * ROUNDS && hostCalls > ROUNDS);
  });
}
