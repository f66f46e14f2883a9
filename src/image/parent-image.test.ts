// Incremental images whose unchanged pages are found by checksum.

import assert from 'node:assert/strict';
import { readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { openImage } from './image.ts';
import { ParentImage } from './parent-image.ts';
import {
  BASE_GFN, bankOf, fillFrame, frameOf, makeFolder, makeMachine, makeRequest, readBack, runsOf,
} from './test-images.ts';
import { writeImage } from './writer.ts';
import type { ImageWritten, WriteImageRequest } from './writer.ts';

const folder = makeFolder();

/** @param parentPath undefined: a whole image */
async function write(request: WriteImageRequest, parentPath?: string): Promise<ImageWritten> {
  const parent = parentPath === undefined ? undefined : await ParentImage.open(parentPath);
  return writeImage({ ...request, parent: parent?.reference, parentPages: parent });
}

test('a chain of three: what a parent has is left to it, and all comes back', async () => {
  const machine = makeMachine(128 * FRAME_BYTES);
  for (let mfn = 1; mfn < 20; mfn++) fillFrame(machine, mfn, mfn);
  const paths = ['first', 'second', 'third'].map((name) => join(folder, `${name}.core`)) as [string, string, string];
  const request = makeRequest({ path: paths[0], machine, banks: [bankOf(8)], pages: [] });
  const states: (number | undefined)[][] = [
    [1, 2, 3, 4, undefined, 5, undefined, 6],
    [1, 2, 7, undefined, 8, 5, undefined, 6], // changed, emptied, filled
    [1, 2, 3, 4, 8, 9, 10, undefined], // back as it was in the first
  ];
  const written: ImageWritten[] = [];
  for (const [k, mfns] of states.entries()) {
    written.push(await write({ ...request, path: paths[k]!, pages: runsOf(mfns) }, paths[k - 1]));
  }
  assert.deepEqual(written.map(({ pagesWritten, parentPages, zeroPages }) => [pagesWritten, parentPages, zeroPages]),
    [[6, 0, 2], [2, 4, 2], [4, 3, 1]]);
  for (const [k, mfns] of states.entries()) {
    await using image = await openImage(paths[k]!);
    const back = await readBack(image, machine, 64, BASE_GFN, 8);
    for (const [page, mfn] of mfns.entries()) {
      const found = back.subarray(page * FRAME_BYTES, (page + 1) * FRAME_BYTES);
      assert.deepEqual(found, Buffer.from(mfn === undefined ? new Uint8Array(FRAME_BYTES) : frameOf(machine, mfn)));
    }
    assert.equal((await image.verify()).problemCount, 0);
  }
});

test('the same contents at another address are not the same page', async () => {
  const machine = makeMachine(65536);
  fillFrame(machine, 1, 1);
  const path = join(folder, 'place.core');
  const request = makeRequest({ path, machine, banks: [bankOf(4)], pages: runsOf([1, undefined]) });
  await write(request);
  const moved = await write({ ...request, path: join(folder, 'place-2.core'), pages: runsOf([undefined, 1]) }, path);
  assert.deepEqual([moved.pagesWritten, moved.parentPages], [1, 0]);
});

test('any contents of any chain come back, between runs of large gaps as well', async () => {
  const machine = makeMachine(8192 * FRAME_BYTES);
  for (let mfn = 1; mfn <= 8; mfn++) fillFrame(machine, mfn, mfn); // frame 0 stays zero
  const pageCount = 3000;
  const state = fc.array(fc.record({ at: fc.nat(pageCount - 1), count: fc.integer({ min: 1, max: 40 }), mfn: fc.nat(8) }),
    { maxLength: 12 });
  await fc.assert(fc.asyncProperty(fc.array(state, { minLength: 1, maxLength: 4 }), async (chain) => {
    const memory = Array.from<number | undefined>({ length: pageCount });
    let parentPath: string | undefined;
    for (const [k, changes] of chain.entries()) {
      for (const { at, count, mfn } of changes) memory.fill(mfn, at, Math.min(at + count, pageCount));
      const path = join(folder, `any-${k}.core`);
      await write(makeRequest({ path, machine, banks: [bankOf(pageCount)], pages: runsOf(memory) }), parentPath);
      parentPath = path;
      await using image = await openImage(path);
      const back = await readBack(image, machine, 4096, BASE_GFN, pageCount);
      for (let page = 0; page < pageCount; page++) {
        const found = back.subarray(page * FRAME_BYTES, (page + 1) * FRAME_BYTES);
        assert.ok(found.equals(frameOf(machine, memory[page] ?? 0)), `page ${page} of image ${k}`);
      }
    }
  }), { numRuns: 8 });
});

test('a parent that is lost, altered, no image, or the last of a full chain is refused', async () => {
  const machine = makeMachine(65536);
  fillFrame(machine, 1, 1);
  const first = join(folder, 'refused.core');
  const request = makeRequest({ path: first, machine, banks: [bankOf(4)], pages: runsOf([1]) });
  await assert.rejects(ParentImage.open(first), { code: 'ZAZEN_IMAGE_OPEN' });
  await write(request);
  const child = join(folder, 'refused-2.core');
  await write({ ...request, path: child }, first);
  renameSync(first, `${first}.away`);
  await assert.rejects(ParentImage.open(child), { code: 'ZAZEN_IMAGE_PARENT' });
  writeFileSync(first, 'something else');
  await assert.rejects(ParentImage.open(first), { code: 'ZAZEN_IMAGE_FORMAT' });
  renameSync(`${first}.away`, first);
  const bytes = readFileSync(child);
  bytes[bytes.length - 100]! ^= 1; // among the notes
  writeFileSync(`${child}.altered`, bytes);
  await assert.rejects(ParentImage.open(`${child}.altered`), { code: 'ZAZEN_IMAGE_CHECKSUM' });
  let last = child;
  for (let k = 3; k <= 64; k++) {
    const next = join(folder, `refused-${k}.core`);
    await write({ ...request, path: next }, last);
    last = next;
  }
  await assert.rejects(ParentImage.open(last), { code: 'ZAZEN_IMAGE_PARENT', message: /chain of 64 images/ });
  await using image = await openImage(last);
  assert.equal(image.pageState(BASE_GFN), 'parent');
});

test('no image of the chain is replaced by its child, whatever it is called', async () => {
  const machine = makeMachine(65536);
  const [first, second] = [join(folder, 'keep.core'), join(folder, 'keep-2.core')];
  const request = makeRequest({ path: first, machine, banks: [bankOf(4)], pages: [] });
  await write(request);
  await write({ ...request, path: second }, first);
  for (const path of [first, second]) {
    const before = readFileSync(path);
    await assert.rejects(write({ ...request, path }, second), { code: 'ZAZEN_IMAGE_CREATE' });
    assert.ok(readFileSync(path).equals(before));
  }
  symlinkSync('.', join(folder, 'link'));
  await assert.rejects(write({ ...request, path: join(folder, 'link', 'keep.core') }, second), { code: 'ZAZEN_IMAGE_CREATE' });
});
