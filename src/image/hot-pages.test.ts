// Pages that an image stores twice, and what is read beside them when it is opened.

import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import * as nodeFiles from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { HOT_PAGES_MAX, layoutImage } from './format.ts';
import type { HotArea } from './hot-area.ts';
import { openImage } from './image.ts';
import type { Image } from './image.ts';
import {
  BASE_GFN, bankOf, fillFrame, frameOf, makeFolder, makeMachine, makeRequest, readBack, runsOf,
} from './test-images.ts';
import type { WriteImageRequest } from './writer.ts';
import { writeImage } from './writer.ts';

const folder = makeFolder();
const machine = makeMachine(64 * FRAME_BYTES);
for (const mfn of [1, 2, 3]) fillFrame(machine, mfn, mfn);
const banks = [bankOf(8)];
const pages = runsOf([1, undefined, 2, 10, 3]);

async function write(
  name: string, hot: readonly (readonly [page: number, mfn: number])[], more: Partial<WriteImageRequest> = {},
): Promise<string> {
  const path = join(folder, name);
  const hotPages = hot.map(([page, mfn]) => ({ gfn: BASE_GFN + page, mfn }));
  await writeImage(makeRequest({ path, machine, banks, pages, later: async () => ({ sections: [], hotPages }), ...more }));
  return path;
}

/** Of the first ones. @returns those that are not what was written */
async function readHot(image: Image, mfns: Uint32Array): Promise<Set<number>> {
  await image.hotArea.read(machine, 0, mfns);
  return image.findAlteredHotPages(machine, 0, mfns);
}

test('hot pages lie one after the other and come back in their order; zero pages are none', async () => {
  const path = await write('hot.core', [[4, 3], [3, 10], [0, 1]]);
  await using image = await openImage(path);
  assert.deepEqual([...image.hotGfns], [BASE_GFN + 4, BASE_GFN]);
  assert.equal((await readHot(image, Uint32Array.of(21, 20))).size, 0);
  assert.ok(Buffer.from(frameOf(machine, 21)).equals(frameOf(machine, 3)));
  assert.ok(Buffer.from(frameOf(machine, 20)).equals(frameOf(machine, 1)));
  const { hotOffset, notesOffset } = layoutImage(banks, 2);
  assert.equal(notesOffset - hotOffset, 2 * FRAME_BYTES);
  assert.ok(readFileSync(path).subarray(hotOffset, hotOffset + FRAME_BYTES).equals(frameOf(machine, 3)));
  // As many as there are frames for.
  assert.equal((await readHot(image, Uint32Array.of(30))).size, 0);
  assert.ok(Buffer.from(frameOf(machine, 30)).equals(frameOf(machine, 3)));
  assert.deepEqual([(await image.verify()).problemCount, image.storedPages], [0, 3]);
});

test('they can be read when nothing but the head is known', { timeout: PATIENCE_MILLIS }, async () => {
  const path = await write('early.core', [[2, 2], [0, 1]]);
  const { hotOffset } = layoutImage(banks, 2);
  const hotPagesRead = Promise.withResolvers<void>();
  const open = async (...args: Parameters<typeof nodeFiles.open>) => {
    const handle = await nodeFiles.open(...args);
    const readv = handle.readv.bind(handle);
    return Object.assign(handle, { readv: async (buffers: readonly Uint8Array[], position: number) => {
      const isHead = position === 0 && buffers[0]!.length === FRAME_BYTES;
      // Notes come when the hot pages are there.
      if (!isHead && position !== hotOffset) await hotPagesRead.promise;
      return readv(buffers, position);
    } });
  };
  const counts: number[] = [];
  const atHead = (area: HotArea): void => {
    counts.push(area.pages);
    area.read(machine, 0, Uint32Array.of(20, 21)).then(hotPagesRead.resolve, hotPagesRead.reject);
  };
  await using image = await openImage(path, { files: { ...nodeFiles, open: open as typeof nodeFiles.open }, atHead });
  assert.deepEqual([counts, [...image.findAlteredHotPages(machine, 0, Uint32Array.of(20, 21))]], [[2], []]);
  // One that has none says so.
  await using plain = await openImage(await write('plain.core', []), { atHead: (area) => counts.push(area.pages) });
  assert.deepEqual([counts, plain.hotArea.pages], [[2, 0], 0]);
});

test('there are at most so many of them', async () => {
  const count = HOT_PAGES_MAX + 5;
  const large = makeMachine((count + 8) * FRAME_BYTES);
  for (let mfn = 1; mfn <= count; mfn++) large.u8[mfn * FRAME_BYTES] = mfn;
  large.u8.fill(1, FRAME_BYTES, (count + 1) * FRAME_BYTES);
  const path = join(folder, 'many.core');
  const hotPages = Array.from({ length: count }, (_, i) => ({ gfn: BASE_GFN + count - 1 - i, mfn: count - i }));
  await writeImage(makeRequest({
    path, machine: large, banks: [bankOf(count)], pages: [{ gfn: BASE_GFN, count, mfn: 1 }],
    later: async () => ({ sections: [], hotPages }),
  }));
  await using image = await openImage(path);
  assert.deepEqual([...image.hotGfns], hotPages.slice(0, HOT_PAGES_MAX).map(({ gfn }) => gfn));
  assert.equal((await image.verify()).problemCount, 0);
});

test('a second copy that was altered is told, and the first one is as good as before', async () => {
  const path = await write('altered.core', [[2, 2], [0, 1]]);
  const { hotOffset } = layoutImage(banks, 2);
  await using image = await openImage(path);
  const handle = await nodeFiles.open(path, 'r+');
  for (const offset of [0, 1234, FRAME_BYTES - 1]) {
    const at = hotOffset + FRAME_BYTES + offset;
    const [good] = readFileSync(path).subarray(at, at + 1);
    await handle.write(Uint8Array.of(good! ^ 4), 0, 1, at);
    assert.deepEqual([...await readHot(image, Uint32Array.of(20, 21))], [BASE_GFN]);
    const { problems } = await image.verify();
    assert.deepEqual(problems.map(({ gfn, message }) => [gfn, message]),
      [[BASE_GFN, `the second copy of page ${BASE_GFN} is not what was written`]]);
    assert.ok((await readBack(image, machine, 20, BASE_GFN, 1)).equals(frameOf(machine, 1)));
    await handle.write(Uint8Array.of(good!), 0, 1, at);
  }
  assert.equal((await image.verify()).problemCount, 0);
  truncateSync(path, hotOffset + FRAME_BYTES);
  await assert.rejects(readHot(image, Uint32Array.of(20, 21)), { code: 'ZAZEN_IMAGE_TRUNCATED' });
  await handle.close();
});

test('notes of any length come back, whether or not they are in what is read beside the head', async () => {
  for (const length of [0, 300_000, 380_000, 400_000, 4_300_000]) {
    const bytes = new Uint8Array(length).map((_, i) => i % 251);
    const path = await write('long.core', [[0, 1]], { sections: [{ name: 'long', bytes }] });
    await using image = await openImage(path);
    assert.ok(Buffer.from(image.section('long')).equals(bytes));
    assert.equal((await image.verify()).problemCount, 0);
    const file = readFileSync(path);
    file[file.length - 4000]! ^= 1;
    writeFileSync(path, file);
    await assert.rejects(openImage(path), { code: 'ZAZEN_IMAGE_CHECKSUM' });
  }
});
