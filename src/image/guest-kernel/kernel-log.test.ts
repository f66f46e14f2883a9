import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../../base/errors.ts';
import { formatLog, readKernelLog } from './kernel-log.ts';
import { makeKernel } from './test-kernel.ts';
import type { TestKernel } from './test-kernel.ts';

// Places of the test's own; the sizes are those of Linux 6.1.
const [POINTER, RING, DESCRIPTORS, INFOS, TEXT] = [0x8000, 0x8100, 0x9000, 0xa000, 0xb000];
const COUNT_BITS = 3;
const SIZE_BITS = 8;
const FINALIZED = 2n << 62n;

function lines(kernel: TestKernel): string[] {
  return [`SYMBOL(prb)=${kernel.at(POINTER).toString(16)}`, 'SIZE(printk_ringbuffer)=88',
    ...Object.entries({
      'printk_ringbuffer.desc_ring': 0, 'printk_ringbuffer.text_data_ring': 48, 'prb_desc_ring.count_bits': 0,
      'prb_desc_ring.descs': 8, 'prb_desc_ring.infos': 16, 'prb_desc_ring.head_id': 24, 'prb_desc_ring.tail_id': 32,
      'prb_desc.state_var': 0, 'prb_desc.text_blk_lpos': 8, 'prb_data_blk_lpos.begin': 0, 'prb_data_blk_lpos.next': 8,
      'printk_info.seq': 0, 'printk_info.ts_nsec': 8, 'printk_info.text_len': 16, 'prb_data_ring.size_bits': 0,
      'prb_data_ring.data': 8,
    }).map(([name, offset]) => `OFFSET(${name})=${offset}`), 'SIZE(prb_desc)=24', 'SIZE(printk_info)=88'];
}

interface Entry {
  readonly id: number;
  /** Default finalized. */
  readonly state?: bigint;
  readonly begin: number;
  readonly next: number;
  /** Put behind the block's ID, at this place in the ring. */
  readonly text?: readonly [place: number, text: string];
  readonly length?: number;
}

function makeLog(tail: number, head: number, entries: readonly Entry[]): TestKernel {
  const kernel = makeKernel();
  const u64 = (at: number, value: bigint | number) =>
    kernel.bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), at);
  u64(POINTER, kernel.at(RING));
  const ring = [COUNT_BITS, kernel.at(DESCRIPTORS), kernel.at(INFOS), head, tail, 0, SIZE_BITS, kernel.at(TEXT)];
  ring.forEach((value, i) => u64(RING + 8 * i, value));
  for (const { id, state = FINALIZED, begin, next, text, length } of entries) {
    const slot = id % 2 ** COUNT_BITS;
    u64(DESCRIPTORS + 24 * slot, BigInt(id) | state);
    u64(DESCRIPTORS + 24 * slot + 8, begin);
    u64(DESCRIPTORS + 24 * slot + 16, next);
    const info = INFOS + 88 * slot;
    u64(info, id + 1000);
    u64(info + 8, id * 1_500_000_000);
    kernel.bytes.writeUInt16LE(length ?? (text?.[1].length ?? 0), info + 16);
    kernel.bytes.writeUInt8(1, info + 18);
    kernel.bytes.writeUInt8(6 << 5, info + 19);
    if (text !== undefined) kernel.bytes.write(text[1], TEXT + text[0] + 8);
  }
  return kernel;
}

const read = (kernel: TestKernel) => {
  const { memory, info } = kernel.open(lines(kernel));
  return readKernelLog(memory, info);
};

test('records in order: wrapped ones, ones without text, and none that is being written or was given back', () => {
  const kernel = makeLog(6, 13, [
    { id: 6, begin: 0x100 + 200, next: 0x100 + 224, text: [200, 'first'] },
    { id: 7, begin: 0x100 + 240, next: 0x200 + 24, text: [0, 'wrapped'] }, // did not fit before the end
    { id: 8, begin: 3, next: 3 },
    { id: 9, state: 0n, begin: 0x200 + 24, next: 0x200 + 48, text: [24, 'reserved'] },
    { id: 10, state: 1n << 62n, begin: 0x200 + 48, next: 0x200 + 72, text: [48, 'two\nlines'] },
    { id: 11, state: 3n << 62n, begin: 0x200 + 72, next: 0x200 + 96, text: [72, 'reusable'] },
    { id: 12, begin: 0x200 + 96, next: 0x200 + 120, text: [96, 'cut short'], length: 3 },
    { id: 13, begin: 0x200 + 232, next: 0x300, text: [232, 'to the end'], length: 4000 }, // ends where the ring does
  ]);
  const records = read(kernel);
  assert.deepEqual(records.map(({ sequence, text }) => [Number(sequence), text]), [
    [1006, 'first'], [1007, 'wrapped'], [1008, ''], [1010, 'two\nlines'], [1012, 'cut'],
    [1013, 'to the end\0\0\0\0\0\0'],
  ]);
  assert.deepEqual([records[0]!.level, records[0]!.facility], [6, 1]);
  assert.equal(formatLog(records.slice(3, 4)), '[   15.000000] two\n[   15.000000] lines\n');
});

test('texts that overlap are no log; sizes and offsets beyond reason are refused', () => {
  const same = Array.from({ length: 8 }, (_, id): Entry => ({ id, begin: 0, next: 0x100, text: [0, 'x'.repeat(200)] }));
  assert.throws(() => read(makeLog(0, 7, same)), { code: 'ZAZEN_GUEST_KERNEL', message: /overlap/ });
  const kernel = makeLog(0, 0, []);
  kernel.bytes.writeUInt32LE(31, RING);
  assert.throws(() => read(kernel), { code: 'ZAZEN_GUEST_KERNEL' });
});

test('a ring of any bytes is read or refused', () => {
  const change = fc.tuple(fc.nat(0x4000 / 8 - 1), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
  fc.assert(fc.property(fc.array(change, { maxLength: 40 }), (changes) => {
    const kernel = makeLog(0, 7, Array.from({ length: 8 }, (_, id): Entry =>
      ({ id, begin: 24 * id, next: 24 * id + 24, text: [24 * id, `record ${id}`] })));
    for (const [word, value] of changes) kernel.bytes.writeBigUInt64LE(value, POINTER + 8 * word);
    try {
      assert.ok(read(kernel).length <= 8);
    } catch (error) {
      assert.ok(error instanceof ZazenError && error.code === 'ZAZEN_GUEST_KERNEL', String(error));
    }
  }), { numRuns: 200 });
});
