import assert from 'node:assert/strict';
import { open, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { Worker } from 'node:worker_threads';
import { once } from 'node:events';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { openImage } from './image.ts';
import { ParentImage } from './parent-image.ts';
import { StoredPages } from './stored-pages.ts';
import { BASE_GFN, bankOf, fillFrame, frameOf, makeFolder, makeMachine, makeRequest, runsOf } from './test-images.ts';
import { writeImage } from './writer.ts';

const folder = makeFolder();

/** Pages: 0 stored in the parent, 1 zero, 2 stored in the child, 3 stored in the parent and changed by the child. */
async function writeChain(name: string) {
  const machine = makeMachine(64 * FRAME_BYTES);
  for (let mfn = 1; mfn < 6; mfn++) fillFrame(machine, mfn, mfn);
  const banks = [bankOf(4)];
  const parentPath = join(folder, `${name}-parent.core`);
  const path = join(folder, `${name}.core`);
  const pages = runsOf([1, undefined, undefined, 2]);
  const { reference: parent } = await writeImage(makeRequest({ path: parentPath, machine, banks, pages }));
  await writeImage(makeRequest({ path, machine, banks, parent, pages: runsOf(['parent', undefined, 3, 4]) }));
  return { machine, path, parentPath, expected: [1, 0, 3, 4] };
}

test('a description that was posted reads the pages of the whole chain', async () => {
  const { machine, path, expected } = await writeChain('whole');
  await using image = await openImage(path);
  const posted = structuredClone(image.pages.describe());
  assert.ok(posted.checksums.buffer instanceof SharedArrayBuffer && posted.pageMap.buffer instanceof SharedArrayBuffer);
  const pages = StoredPages.attach(posted);
  assert.deepEqual([...pages.runs()].map(({ gfn, count }) => [gfn - BASE_GFN, count]), [[0, 1], [2, 2]]);
  pages.readSync(machine, BASE_GFN, Uint32Array.of(20, 21, 22, 30));
  [20, 21, 22, 30].forEach((mfn, i) => {
    assert.ok(Buffer.from(frameOf(machine, mfn)).equals(frameOf(machine, expected[i]!)), `page ${i}`);
  });
});

test('another thread reads with the descriptor of this one', async () => {
  const { machine, path } = await writeChain('thread');
  await using image = await openImage(path);
  const worker = new Worker(`
    const { parentPort, workerData: { pages, memory, module, gfn } } = require('node:worker_threads');
    import(module).then(({ StoredPages }) => {
      const parameters = { addressType: 'i32', sizeBytes: memory.buffer.byteLength };
      const machine = { memory, u8: new Uint8Array(memory.buffer), parameters };
      StoredPages.attach(pages).readSync(machine, gfn, Uint32Array.of(40));
      parentPort.postMessage('read');
    });
  `, { eval: true, execArgv: [], workerData: {
    pages: image.pages.describe(), memory: machine.memory, gfn: BASE_GFN + 3,
    module: new URL('./stored-pages.ts', import.meta.url).href,
  } });
  await once(worker, 'message');
  assert.ok(Buffer.from(frameOf(machine, 40)).equals(frameOf(machine, 4)));
  await once(worker, 'exit');
});

test('what is lost or altered names the file that it is in, and the page', async () => {
  const { machine, path, parentPath } = await writeChain('lost');
  await using image = await openImage(path);
  const pages = StoredPages.attach(image.pages.describe());
  const read = (page: number) => () => pages.readSync(machine, BASE_GFN + page, Uint32Array.of(20));
  {
    await using file = await open(parentPath, 'r+');
    await file.write(Buffer.from('x'), 0, 1, FRAME_BYTES + 7);
  }
  const altered = new RegExp(`lost-parent.core: page ${BASE_GFN} is not`);
  assert.throws(read(0), { code: 'ZAZEN_IMAGE_CHECKSUM', message: altered });
  read(2)();
  await truncate(path, FRAME_BYTES);
  const cut = new RegExp(`lost.core: is cut short before page ${BASE_GFN + 3}`);
  assert.throws(read(3), { code: 'ZAZEN_IMAGE_TRUNCATED', message: cut });
  const closed = StoredPages.attach({ ...image.pages.describe(), fd: 1_000_000 });
  const readClosed = () => closed.readSync(machine, BASE_GFN + 2, Uint32Array.of(20));
  assert.throws(readClosed, { code: 'ZAZEN_IMAGE_READ', message: /EBADF/ });
});

test('all 64 bits of a checksum count: where pages are read, their second copies looked at, or found in a parent', async () => {
  const { machine, parentPath } = await writeChain('bits');
  await using image = await openImage(parentPath);
  const described = image.pages.describe();
  const parent = await ParentImage.open(parentPath);
  const [low, high] = described.checksums as unknown as [number, number];
  assert.ok(parent.has(BASE_GFN, low, high));
  assert.deepEqual([parent.has(BASE_GFN, low ^ 1, high), parent.has(BASE_GFN, low, high ^ 1)], [false, false]);
  for (const half of [0, 1]) {
    const checksums = Uint32Array.from(described.checksums);
    checksums[half]! ^= 1;
    const pages = StoredPages.attach({ ...described, checksums });
    assert.throws(() => pages.readSync(machine, BASE_GFN, Uint32Array.of(20)), { code: 'ZAZEN_IMAGE_CHECKSUM' });
    const gfns = Uint32Array.of(BASE_GFN, BASE_GFN + 3);
    assert.deepEqual([...pages.findAltered(machine, gfns, Uint32Array.of(1, 2))], [BASE_GFN]);
  }
});
