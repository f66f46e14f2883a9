// The window to the kernel: a further segment of the ELF file, for debuggers that know the kernel's addresses only. Read
// here as they read it, by the program headers alone.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { BASE_GFN, bankOf, fillFrame, frameOf, makeFolder, makeMachine, makeRequest } from './test-images.ts';
import { writeImage } from './writer.ts';

const folder = makeFolder();
const PT_LOAD = 1;

/** Segments of a 64-bit little-endian ELF file that are memory. */
function loadSegments(file: Buffer): { vaddr: bigint; paddr: bigint; bytes: Buffer }[] {
  const [at, size, count] = [Number(file.readBigUInt64LE(0x20)), file.readUInt16LE(0x36), file.readUInt16LE(0x38)];
  return Array.from({ length: count }, (_, i) => file.subarray(at + i * size, at + (i + 1) * size))
    .filter((header) => header.readUInt32LE(0) === PT_LOAD)
    .map((header) => {
      const field = (offset: number): bigint => header.readBigUInt64LE(offset);
      const bytes = file.subarray(Number(field(8)), Number(field(8) + field(32)));
      return { vaddr: field(16), paddr: field(24), bytes };
    });
}

test('the window shows the pages that it says, of whichever bank, and the banks theirs', async () => {
  const machine = makeMachine(64 * FRAME_BYTES);
  for (let mfn = 1; mfn < 8; mfn++) fillFrame(machine, mfn, mfn);
  const banks = [bankOf(2), bankOf(6, BASE_GFN + 100)];
  const pages = [{ gfn: BASE_GFN, count: 1, mfn: 1 }, { gfn: BASE_GFN + 101, count: 5, mfn: 2 }];
  const windows = [[0, 0, 1, 0xffff_8000_0800_0000n], [1, 3, 4, 0xffff_ffc0_1234_5000n]] as const;
  for (const [bank, page, firstMfn, vaddr] of windows) {
    const path = join(folder, `window-${bank}.core`);
    const guestAddress = banks[bank]!.guestAddress + page * FRAME_BYTES;
    const kernelWindow = { virtualAddress: vaddr, guestAddress, sizeBytes: 2 * FRAME_BYTES };
    await writeImage(makeRequest({ path, machine, banks, pages, kernelWindow }));
    const segments = loadSegments(readFileSync(path));
    assert.deepEqual(segments.map(({ paddr, bytes }) => [paddr, bytes.length]), [...banks, kernelWindow]
      .map((segment) => [BigInt(segment.guestAddress), segment.sizeBytes]));
    const [first, second, window] = segments as [typeof segments[0], typeof segments[0], typeof segments[0]];
    assert.ok(first.bytes.subarray(0, FRAME_BYTES).equals(frameOf(machine, 1)));
    assert.ok(second.bytes.subarray(FRAME_BYTES, 2 * FRAME_BYTES).equals(frameOf(machine, 2)));
    assert.equal(window.vaddr, vaddr);
    assert.ok(window.bytes.subarray(0, FRAME_BYTES).equals(frameOf(machine, firstMfn)));
    const pagesOfBank = [first, second][bank]!.bytes;
    assert.ok(window.bytes.equals(pagesOfBank.subarray(page * FRAME_BYTES, (page + 2) * FRAME_BYTES)));
  }
});
