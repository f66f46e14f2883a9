// Disks in layers, lent to other threads: what these find and do by themselves, and when the host gets the disk back.

import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { BLANKS_MAX, CLUSTER_BYTES, FREE_LENT_MAX, MAP_PAGE_SPAN_BYTES } from '../../abi/layer-map.ts';
import { MAP_PAGES_BYTES, MapPages } from '../../lanes/map-pages.ts';
import { Disk } from './disk.ts';
import { Layer } from './layer.ts';
import { openDisk } from './open-disk.ts';
import { TestBorrower } from './test-borrower.ts';
import { pageMemory, rawFile, sectorsOf, tagsOf, testFolder } from './test-disks.ts';

const DISK_BYTES = 2 ** 20;
const memory = pageMemory(DISK_BYTES);

const pageOf = (tag: number): Uint8Array => sectorsOf(Array.from({ length: 8 }, () => tag), memory);
const writePage = (disk: Disk, page: number, tag: number): Promise<void> => disk.write([pageOf(tag)], page * 4096);

async function tagAt(disk: Disk, offset: number): Promise<number | undefined> {
  const bytes = memory.subarray(0, 4096);
  await disk.read([bytes], offset);
  return tagsOf(bytes)[0];
}

async function freeze(disk: Disk) {
  await disk.quiesce();
  const state = disk.freeze();
  disk.resume();
  return state;
}

function mapPages(pages?: number): MapPages {
  return new MapPages(new SharedArrayBuffer(MAP_PAGES_BYTES), 0, pages);
}

test('a fork that is lent gives its chain back before its original changes what is in it', async (t) => {
  const disk = await openDisk({ path: await rawFile(await testFolder(t), DISK_BYTES), format: 'raw' });
  await writePage(disk, 1, 11);
  const first = await freeze(disk);
  await writePage(disk, 2, 22);
  const second = await freeze(disk);
  const fork = Disk.fork(second);
  const borrower = new TestBorrower((to) => fork.lend(to));
  const tags = (): (number | undefined)[] => {
    const bytes = memory.subarray(0, 4 * 4096);
    assert.ok(borrower.read(bytes, 0));
    return tagsOf(bytes).filter((_, sector) => sector % 8 === 0);
  };
  assert.deepEqual(tags(), [0, 11, 22, 0]);
  assert.equal(fork.files().length, 2);
  await first.release();
  assert.ok(!borrower.isLent);
  assert.equal(fork.files().length, 1, 'the layer has gone into the file');
  assert.deepEqual(tags(), [0, 11, 22, 0]);
  await writePage(fork, 3, 33);
  assert.ok(!borrower.isLent, 'nothing is written behind the back of who reads');
  assert.deepEqual(tags(), [0, 11, 22, 33]);
  assert.ok(borrower.write(pageOf(44), 4096));
  assert.deepEqual(tags(), [0, 44, 22, 33]);
  await fork.close();
  assert.ok(!borrower.isLent);
  await second.release();
  assert.equal(await tagAt(disk, 4096), 11);
  await disk.close();
});

test('a request of another thread that is under way is waited for by flush, size, merge and close', async (t) => {
  const folder = await testFolder(t);
  const disk = await openDisk({ path: await rawFile(folder, DISK_BYTES), format: 'raw' });
  const state = await freeze(disk);
  await writePage(disk, 0, 1);
  const borrower = new TestBorrower((to) => disk.lend(to));
  const verbs: Record<string, () => Promise<unknown>> = {
    flush: () => disk.flush(), resize: () => disk.resize(2 * DISK_BYTES), read: () => tagAt(disk, 0), write: () => writePage(disk, 1, 2),
    discard: () => disk.discard(0, 65536), release: () => state.release(), close: () => disk.close(),
  };
  for (const [name, verb] of Object.entries(verbs)) {
    borrower.isBusy = false;
    assert.ok(borrower.write(pageOf(7), 5 * 4096), name);
    borrower.isBusy = true;
    let isOver = false;
    const doing = (async () => {
      await verb();
      isOver = true;
    })();
    for (let i = 0; i < 20; i++) await turn();
    assert.ok(!isOver && borrower.isLent && disk.lend({ maps: mapPages(), takeBack: () => {} }) === undefined, name);
    borrower.end();
    await doing;
    if (name === 'release') await writePage(disk, 0, 1);
  }
  assert.deepEqual(await readdir(folder), ['disk.img']);
});

test('a thread makes map pages from a stock, and the host more of them', async (t) => {
  const path = join(await testFolder(t), 'disk.layer');
  const places = 2 * BLANKS_MAX + 5;
  await (await Layer.create(path, { sizeBytes: places * MAP_PAGE_SPAN_BYTES })).close();
  const disk = await openDisk({ path });
  await disk.write([pageOf(1)], 0);
  const maps = mapPages();
  const borrower = new TestBorrower((to) => disk.lend(to), maps);
  let left = 0;
  for (let i = 1; i < places; i++) {
    if (borrower.write(pageOf(i + 1), i * MAP_PAGE_SPAN_BYTES)) continue;
    left++;
    assert.ok(borrower.write(pageOf(i + 1), i * MAP_PAGE_SPAN_BYTES), 'restocked');
  }
  assert.equal(left, 2);
  await disk.close();
  assert.equal(maps.inUse, 0);
  const again = await openDisk({ path, isReadOnly: true });
  for (let i = 0; i < places; i++) assert.equal(await tagAt(again, i * MAP_PAGE_SPAN_BYTES), i + 1);
  await again.close();
});

test('when there is no memory for maps, the host does what needs it', async (t) => {
  const path = join(await testFolder(t), 'disk.layer');
  const places = 12;
  await (await Layer.create(path, { sizeBytes: places * MAP_PAGE_SPAN_BYTES })).close();
  for (const pages of [1, 2, 3, 5, 9]) {
    const disk = await openDisk({ path });
    const maps = mapPages(pages);
    const borrower = new TestBorrower((to) => disk.lend(to), maps);
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < places; i++) {
        const tag = pages * 100 + round * 20 + i;
        if (!borrower.write(pageOf(tag), i * MAP_PAGE_SPAN_BYTES)) await disk.write([pageOf(tag)], i * MAP_PAGE_SPAN_BYTES);
        const bytes = memory.subarray(4096, 2 * 4096);
        if (borrower.read(bytes, i * MAP_PAGE_SPAN_BYTES)) assert.equal(tagsOf(bytes)[0], tag);
        assert.equal(await tagAt(disk, i * MAP_PAGE_SPAN_BYTES), tag);
      }
    }
    if (pages === 9) assert.ok(borrower.writes > 0 && borrower.writes < 3 * places);
    await disk.close();
    assert.equal(maps.inUse, 0);
  }
});

test('a thread uses clusters that were discarded before the file grows', async (t) => {
  const path = join(await testFolder(t), 'disk.layer');
  const clusters = FREE_LENT_MAX + 50;
  await (await Layer.create(path, { sizeBytes: 4 * clusters * CLUSTER_BYTES })).close();
  const disk = await openDisk({ path });
  const borrower = new TestBorrower((to) => disk.lend(to));
  const cluster = sectorsOf(Array.from({ length: CLUSTER_BYTES / 512 }, () => 9), memory);
  const fill = async (first: number): Promise<void> => {
    for (let i = first; i < first + clusters; i++) {
      if (!borrower.write(cluster, i * CLUSTER_BYTES)) await disk.write([cluster], i * CLUSTER_BYTES);
    }
  };
  await fill(0);
  await disk.discard(0, clusters * CLUSTER_BYTES);
  await fill(clusters);
  assert.ok((await stat(path)).size > 2 * clusters * CLUSTER_BYTES, 'a map on the disk may still name them');
  await disk.flush();
  const { size } = await stat(path);
  const before = borrower.writes;
  await fill(0);
  assert.ok(borrower.writes - before >= clusters - 2);
  await disk.flush();
  assert.equal((await stat(path)).size, size);
  for (let i = 0; i < 2 * clusters; i++) assert.equal(await tagAt(disk, i * CLUSTER_BYTES), 9);
  await disk.close();
});

test('a layer that a thread has written much to is not put into the file while the guest waits', async (t) => {
  const sizeBytes = 20 * 2 ** 20;
  for (const writtenBytes of [2 ** 20, sizeBytes]) {
    const disk = await openDisk({ path: await rawFile(await testFolder(t), sizeBytes), format: 'raw' });
    const state = await freeze(disk);
    await writePage(disk, 0, 1);
    const borrower = new TestBorrower((to) => disk.lend(to));
    memory.fill(5);
    for (let at = 0; at < writtenBytes; at += DISK_BYTES) assert.ok(borrower.write(memory, at));
    await state.release();
    assert.equal(disk.files().length, writtenBytes === sizeBytes ? 2 : 1);
    await disk.close();
  }
});

test('of a disk that loses a write after its answer every flush fails, also when nothing of it lasts', async (t) => {
  const disk = await openDisk({ path: await rawFile(await testFolder(t), DISK_BYTES), format: 'raw' });
  const state = await freeze(disk);
  const fork = Disk.fork(state);
  for (const one of [fork, disk]) {
    await writePage(one, 0, 1);
    await one.flush();
    const lent = one.lend({ maps: mapPages(), takeBack: () => {} })!;
    assert.ok(lent.chain !== 0 && lent.isWritable);
    lent.giveBack(true, true);
    await assert.rejects(one.flush(), { code: 'EIO' });
    assert.equal(one.lend({ maps: mapPages(), takeBack: () => {} }), undefined);
  }
  await fork.close();
  await state.release();
  await assert.rejects(disk.close(), { code: 'ZAZEN_DISK_IO' });
});
