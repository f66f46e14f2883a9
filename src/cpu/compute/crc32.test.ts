import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ComputeContext } from './context.ts';
import { crc32 } from './crc32.ts';

const context: ComputeContext = { u32: new Uint32Array(0), u64: new BigUint64Array(0), scratch: 0, record: 0 };

/** The usual checksum of a text: starts from all ones and is inverted at the end. */
function checksum(text: string, polynomial: 0 | 4): number {
  let crc = 0xffffffff;
  for (const byte of Buffer.from(text)) crc = crc32(context, crc, byte, 0, polynomial);
  return ~crc >>> 0;
}

test('check values of the two polynomials', () => {
  assert.equal(checksum('123456789', 0), 0xcbf43926);
  assert.equal(checksum('123456789', 4), 0xe3069283);
});

test('wider steps equal single bytes, lowest first', () => {
  for (const polynomial of [0, 4]) {
    const bytes = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
    const step = (crc: number, byte: number) => crc32(context, crc, byte, 0, polynomial);
    const expected = [1, 2, 4, 8].map(size => bytes.slice(0, size).reduce(step, 0x12345678) >>> 0);
    const wide = (log2: number) => crc32(context, 0x12345678, 0x76543210, 0xfedcba98, polynomial | log2) >>> 0;
    assert.deepEqual([0, 1, 2, 3].map(wide), expected);
  }
});
