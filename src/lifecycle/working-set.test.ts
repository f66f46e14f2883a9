// Pages that an image stores twice, as bytes of a file that may say anything; what is recorded of a real guest and what
// comes of it is seen in test/guest/lazy-restore.test.ts.

import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { HOT_PAGES_MAX, encodePages, takeHotPages } from './working-set.ts';

const pageOf = (gfn: number): Uint8Array => new Uint8Array(FRAME_BYTES).fill(gfn % 251);
const taken = (section: Uint8Array | undefined) => [...takeHotPages({ takeSection: () => section })];

test('pages come back as they were, each at its guest frame, in their order', () => {
  const gfns = fc.uniqueArray(fc.nat(0xffff_ffff), { maxLength: 20 });
  fc.assert(fc.property(gfns, (list) => {
    assert.deepEqual(taken(encodePages(list, pageOf)), list.map((gfn) => ({ gfn, bytes: pageOf(gfn) })));
  }), { numRuns: 50 });
});

test('a section that is malformed has no pages', () => {
  const good = encodePages([7, 9], pageOf);
  const withCount = (count: number): Uint8Array => {
    const bytes = good.slice();
    new DataView(bytes.buffer).setUint32(0, count, true);
    return bytes;
  };
  const counts = [0, 1, 3, HOT_PAGES_MAX + 1, 0x3fff_ffff, 0xffff_ffff];
  const bad = [undefined, new Uint8Array(0), good.subarray(0, 3), good.subarray(0, -1), ...counts.map(withCount)];
  for (const section of bad) assert.deepEqual(taken(section), []);
  const many = encodePages(Array.from({ length: HOT_PAGES_MAX + 1 }, (_, gfn) => gfn), pageOf);
  assert.deepEqual(taken(many), []);
});
