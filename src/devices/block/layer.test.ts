import assert from 'node:assert/strict';
import { readlinkSync } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../../base/errors.ts';
import { LaneTable } from '../../lanes/lane.ts';
import { BlockFile } from './block-file.ts';
import { DiskNode, readFrom } from './chain.ts';
import { DiskLoan } from './disk-loan.ts';
import { openDisk } from './open-disk.ts';
import { Layer } from './layer.ts';
import {
  CLUSTER_BYTES, DIRECTORY_OFFSET, ENTRIES_PER_PAGE, EntryPage, FIRST_CLUSTER, PAGE_BYTES, PAGE_KIND, PAIR_BYTES, decodeHeader, encodeHeader,
} from './layer-format.ts';
import { TestBorrower } from './test-borrower.ts';
import { pageMemory, rawFile, sectorsOf, seed, tagsOf, testFolder } from './test-disks.ts';

const runs = Number(process.env['ZAZEN_TEST_RUNS'] ?? 25);
const DISK_BYTES = 40 * CLUSTER_BYTES;
const memory = pageMemory(DISK_BYTES);
const FILE_METADATA_BYTES = FIRST_CLUSTER * CLUSTER_BYTES;

/** Contents of a layer with nothing below it, by granule. */
async function contentsOf(layer: Layer): Promise<number[]> {
  memory.fill(0);
  for (const run of layer.runs(0, layer.sizeBytes)) {
    if (run.kind === 0) await layer.file.read([memory.subarray(run.offset, run.offset + run.sizeBytes)], run.at);
  }
  return tagsOf(memory.subarray(0, layer.sizeBytes)).filter((_, sector) => sector % 8 === 0);
}

async function writeTag(layer: Layer, granule: number, tag: number, count = 1): Promise<void> {
  await layer.write([sectorsOf(Array.from({ length: 8 * count }, () => tag), memory)], granule * 4096);
}

test('space that was discarded is used again, and the end of the file given back', async (t) => {
  const path = join(await testFolder(t), 'a.layer');
  const layer = await Layer.create(path, { sizeBytes: DISK_BYTES });
  // The map's page gets its place before the data do.
  await writeTag(layer, 160, 1);
  await layer.flush();
  await layer.discard(160 * 4096, 4096);
  for (let round = 0; round < 5; round++) {
    for (let cluster = 0; cluster < 10; cluster++) await writeTag(layer, cluster * 16, 7, 16);
    await layer.flush();
    await layer.discard(0, 10 * CLUSTER_BYTES);
    await layer.flush();
    assert.equal(layer.dataBytes, 0);
  }
  assert.ok(layer.file.sizeBytes <= FILE_METADATA_BYTES + 12 * CLUSTER_BYTES);
  await layer.close();
  assert.ok((await readFile(path)).length <= FILE_METADATA_BYTES + 2 * CLUSTER_BYTES);
  const again = await Layer.open(path, 'read');
  assert.ok((await contentsOf(again)).every((tag) => tag === 0));
  await again.close();
});

test('a large layer knows what it has', async (t) => {
  const path = join(await testFolder(t), 'a.layer');
  const sizeBytes = 2 ** 40;
  const layer = await Layer.create(path, { sizeBytes });
  const places = [0, 31 * 2 ** 20, 5 * 2 ** 30, 17 * 2 ** 30, sizeBytes - 4096];
  for (const [i, place] of places.entries()) await layer.write([sectorsOf(Array.from({ length: 8 }, () => i + 1), memory)], place);
  await layer.close();
  const again = await Layer.open(path, 'read');
  for (const [i, place] of places.entries()) {
    const [run] = again.runs(place, 4096);
    await again.file.read([memory.subarray(0, 4096)], run!.at);
    assert.equal(tagsOf(memory.subarray(0, 4096))[0], i + 1);
  }
  assert.deepEqual(again.runs(2 ** 39, 2 ** 20).map(({ kind }) => kind), [2]);
  assert.ok((await readFile(path)).length < 5 * 2 ** 20);
  await again.close();
  await assert.rejects(Layer.create(`${path}2`, { sizeBytes: 2 ** 50 }), { code: 'ZAZEN_DISK_SIZE' });
  await assert.rejects(Layer.create(path, { sizeBytes }), { code: 'ZAZEN_DISK_UNREADABLE' });
});

test('damage in the records is found, and never shows as other contents', async (t) => {
  const path = join(await testFolder(t), 'a.layer');
  const layer = await Layer.create(path, { sizeBytes: DISK_BYTES });
  for (let round = 1; round < 6; round++) {
    for (let granule = round; granule < 600; granule += 13) await writeTag(layer, granule, granule * round);
    await layer.flush();
  }
  await layer.close();
  const good = await readFile(path);
  const wanted = await (async () => {
    const whole = await Layer.open(path, 'read');
    const contents = await contentsOf(whole);
    await whole.close();
    return contents;
  })();
  const mapAt = (() => {
    for (let at = FILE_METADATA_BYTES; at < good.length; at += PAGE_BYTES) {
      if (good.readUInt32LE(at) === PAGE_KIND.map) return at;
    }
    throw new Error('there is a map page');
  })();
  // One after the other in turn: a page that is torn while it is written leaves the one of before.
  const sequences = [0, 1].map((slot) => Number(good.readBigUInt64LE(mapAt - mapAt % PAIR_BYTES + slot * PAGE_BYTES + 8)));
  assert.equal(Math.abs(sequences[0]! - sequences[1]!), 1);
  const where = fc.oneof(
    fc.nat({ max: PAIR_BYTES - 1 }), fc.integer({ min: DIRECTORY_OFFSET, max: DIRECTORY_OFFSET + PAIR_BYTES - 1 }),
    fc.integer({ min: mapAt - mapAt % PAIR_BYTES, max: mapAt - mapAt % PAIR_BYTES + PAIR_BYTES - 1 }), fc.integer({ min: 0, max: 64 }),
  );
  const damage = fc.oneof(
    fc.record({ at: where, bytes: fc.uint8Array({ minLength: 1, maxLength: 40 }) }),
    fc.record({ at: where, bytes: fc.constant(new Uint8Array(PAGE_BYTES)) }),
    fc.record({ at: fc.constant(-1), bytes: fc.uint8Array({ minLength: 3, maxLength: 3 }) }),
  );
  let found = 0;
  await fc.assert(fc.asyncProperty(fc.array(damage, { minLength: 1, maxLength: 3 }), async (damages) => {
    let bytes = Buffer.from(good);
    for (const { at, bytes: patch } of damages) {
      if (at < 0) bytes = bytes.subarray(0, Math.floor(bytes.length * patch[0]! / 256));
      else if (at < bytes.length) bytes.set(patch.subarray(0, bytes.length - at), at);
    }
    await writeFile(path, bytes);
    let opened: Layer;
    try {
      opened = await Layer.open(path, 'read');
    } catch (error) {
      assert.ok(error instanceof ZazenError && /^ZAZEN_DISK_(FORMAT|DAMAGED)$/.test(error.code), String(error));
      found++;
      return;
    }
    const contents = await contentsOf(opened);
    // Slots that are all zero may be those of a younger layer.
    if (damages.every(({ bytes: patch }) => patch.length < PAGE_BYTES)) assert.deepEqual(contents, wanted);
    await opened.close();
  }), { seed, numRuns: 4 * runs });
  assert.ok(found > runs);
});

test('a file that was cut off is not an empty layer', async (t) => {
  const path = join(await testFolder(t), 'a.layer');
  const layer = await Layer.create(path, { sizeBytes: DISK_BYTES });
  await writeTag(layer, 0, 5);
  await layer.close();
  const good = await readFile(path);
  for (const sizeBytes of [100, PAGE_BYTES, PAIR_BYTES, PAIR_BYTES + PAGE_BYTES, DIRECTORY_OFFSET + PAIR_BYTES, FILE_METADATA_BYTES - 1]) {
    await writeFile(path, good.subarray(0, sizeBytes));
    await assert.rejects(Layer.open(path, 'read'), { code: /^ZAZEN_DISK_(FORMAT|DAMAGED)$/ }, `${sizeBytes} bytes`);
  }
});

test('whatever the records say with a right checksum, nothing outside the file is reached', async (t) => {
  const path = join(await testFolder(t), 'a.layer');
  const layer = await Layer.create(path, { sizeBytes: DISK_BYTES });
  await writeTag(layer, 0, 5, 64);
  await layer.close();
  const good = await readFile(path);
  const { header, sequence } = decodeHeader(good.subarray(0, PAIR_BYTES), path);
  const { maps } = new LaneTable();
  let compared = 0;
  const entry = fc.record({ entry: fc.nat({ max: ENTRIES_PER_PAGE - 1 }), cluster: fc.oneof(fc.nat({ max: 80 }), fc.nat({ max: 2 ** 32 - 1 })), present: fc.nat({ max: 0xffff }), zero: fc.nat({ max: 0xffff }) });
  await fc.assert(fc.asyncProperty(fc.array(entry, { maxLength: 6 }), fc.array(entry, { maxLength: 3 }), fc.nat({ max: 2 ** 40 }), async (map, directory, size) => {
    const bytes = Buffer.from(good);
    const put = (kind: 'map' | 'directory', at: number, entries: typeof map): void => {
      for (let slot = 0; slot < 2; slot++) {
        const page = new EntryPage(PAGE_KIND[kind], 0, at, 100 + slot);
        for (const one of entries) page.set(one.entry, one.cluster, one.present, kind === 'map' ? one.zero : 0);
        if (kind === 'directory' && directory.length === 0) page.setPlace(0, FILE_METADATA_BYTES);
        bytes.set(page.encode(header.uuid), at + slot * PAGE_BYTES);
      }
    };
    const sizeBytes = Math.max(512, size - size % 512);
    bytes.set(encodeHeader({ header: { ...header, sizeBytes }, sequence: sequence + 1 }), ((sequence + 1) % 2) * PAGE_BYTES);
    put('directory', DIRECTORY_OFFSET, directory);
    put('map', FILE_METADATA_BYTES, map);
    await writeFile(path, bytes);
    try {
      const opened = await Layer.open(path, 'read');
      for (const run of opened.runs(0, Math.min(sizeBytes, DISK_BYTES))) assert.ok(run.at + run.sizeBytes <= bytes.length);
      const node = new DiskNode(opened, undefined, 'nameless');
      const borrower = new TestBorrower((to) => DiskLoan.begin({ node, isTop: false, sizeBytes, isReadOnly: true, isVolatile: true, borrower: to, ended: () => {} })?.file, maps);
      const part = memory.subarray(0, Math.min(sizeBytes - sizeBytes % 4096, DISK_BYTES));
      if (part.length > 0 && borrower.read(part, 0)) {
        const seen = part.slice();
        const reads: Promise<void>[] = [];
        readFrom(node, [part], 0, reads);
        await Promise.all(reads);
        assert.ok(seen.every((byte, i) => byte === part[i]), 'other threads read the same');
        compared++;
      }
      borrower.takeBack();
      await opened.close();
      assert.equal(maps.inUse, 0);
    } catch (error) {
      assert.ok(error instanceof ZazenError && error.code === 'ZAZEN_DISK_DAMAGED', String(error));
    }
  }), { seed, numRuns: 2 * runs });
  assert.ok(compared > 0);
});

/** What happens to a file, in order; `sync`: all before it is on the disk. */
type Event = { readonly kind: 'write'; readonly at: number; readonly bytes: Uint8Array }
  | { readonly kind: 'size'; readonly bytes: number } | { readonly kind: 'sync' }
  | { readonly kind: 'flushed'; readonly tags: readonly number[] } | { readonly kind: 'wrote'; readonly granule: number; readonly tag: number };

test('when the power fails, what was flushed is there, and nothing that was never written', async (t) => {
  const folder = await testFolder(t);
  const path = join(folder, 'a.layer');
  const log: Event[] = [];
  // Sees every request of the one layer that is written here.
  for (const name of ['write', 'sync', 'truncate'] as const) {
    const original = BlockFile.prototype[name] as (...args: unknown[]) => Promise<void>;
    t.mock.method(BlockFile.prototype, name, async function record(this: BlockFile, ...args: unknown[]) {
      if (this.path === path && name === 'write') {
        log.push({ kind: 'write', at: args[1] as number, bytes: Buffer.concat(args[0] as Uint8Array[]) });
      } else if (this.path === path && name === 'truncate') log.push({ kind: 'size', bytes: args[0] as number });
      await original.apply(this, args);
      if (this.path === path && name === 'sync') log.push({ kind: 'sync' });
    });
  }
  const layer = await Layer.create(path, { sizeBytes: DISK_BYTES });
  const node = new DiskNode(layer, undefined, 'nameless');
  // Some of it is written by another thread, to which the layer is lent meanwhile.
  const borrower = new TestBorrower((to) => DiskLoan.begin({
    node, isTop: true, sizeBytes: DISK_BYTES, isReadOnly: false, isVolatile: true, borrower: to, ended: () => {},
  })?.file);
  borrower.onWrite = (bytes, at) => log.push({ kind: 'write', at, bytes: Buffer.from(bytes) });
  const tags = Array.from({ length: DISK_BYTES / 4096 }, () => 0);
  log.push({ kind: 'flushed', tags: [...tags] });
  let next = 1;
  const put = (granule: number, tag: number): void => {
    tags[granule] = tag;
    log.push({ kind: 'wrote', granule, tag });
  };
  for (const [what, granule, count] of fc.sample(fc.tuple(fc.nat({ max: 9 }), fc.nat({ max: tags.length - 20 }), fc.integer({ min: 1, max: 20 })), { seed, numRuns: 120 })) {
    if (what < 6) {
      const tag = next++;
      for (let i = 0; i < count; i++) put(granule + i, tag);
      const isWritten = what < 4 && borrower.write(sectorsOf(Array.from({ length: 8 * count }, () => tag), memory), granule * 4096);
      borrower.takeBack();
      if (!isWritten) await writeTag(layer, granule, tag, count);
    } else if (what < 8) {
      for (let i = 0; i < count; i++) put(granule + i, 0);
      await layer.discard(granule * 4096, count * 4096);
    } else {
      await layer.flush();
      log.push({ kind: 'flushed', tags: [...tags] });
    }
  }
  await layer.close();
  assert.ok(borrower.writes > 20);
  t.mock.restoreAll();
  // Most is at stake just before something is made sure of: all since the last time may be there, or only parts of it.
  const stakes = log.flatMap(({ kind }, i) => (kind === 'sync' ? [i] : []));
  const anyCut = fc.oneof(fc.nat({ max: log.length }), { arbitrary: fc.constantFrom(...stakes), weight: 3 });
  await fc.assert(fc.asyncProperty(anyCut, fc.infiniteStream(fc.nat({ max: 3 })), async (cut, dice) => {
    const crash = join(folder, 'crash.layer');
    const may = await replay(crash, log.slice(0, cut), dice);
    if (may === undefined) return;
    const opened = await Layer.open(crash, 'write');
    (await contentsOf(opened)).forEach((tag, granule) => assert.ok(may[granule]!.has(tag), `granule ${granule}: ${tag}`));
    // And it can be gone on with.
    await writeTag(opened, 3, 999_999);
    await opened.close();
    const again = await Layer.open(crash, 'read');
    assert.equal((await contentsOf(again))[3], 999_999);
    await again.close();
  }), { seed, numRuns: 2 * runs, endOnFailure: true });
});

/**
 * Puts on the disk what was synced, and of the rest whatever the dice say, sector by sector.
 * @returns what may be in each granule; undefined: there was no flush yet
 */
async function replay(path: string, events: readonly Event[], dice: Iterable<number>): Promise<Set<number>[] | undefined> {
  const synced = events.findLastIndex(({ kind }) => kind === 'sync');
  const throws = dice[Symbol.iterator]();
  let may: Set<number>[] | undefined;
  await writeFile(path, '');
  const file = await open(path, 'r+');
  for (const [i, event] of events.entries()) {
    if (event.kind === 'flushed') may = event.tags.map((tag) => new Set([tag]));
    if (event.kind === 'wrote') may?.[event.granule]!.add(event.tag);
    if (event.kind === 'size') await file.truncate(event.bytes);
    if (event.kind !== 'write') continue;
    const luck = i < synced ? 1 : throws.next().value!;
    if (luck === 1) await file.write(event.bytes, 0, event.bytes.length, event.at);
    if (luck < 2) continue;
    for (let at = 0; at < event.bytes.length; at += 512) {
      if (throws.next().value! < 2) await file.write(event.bytes, at, 512, event.at + at);
    }
  }
  await file.close();
  return may;
}

test('what a layer lies on must be what it was', async (t) => {
  const folder = await testFolder(t);
  const base = await rawFile(folder, DISK_BYTES, 'base.img');
  const top = join(folder, 'top.layer');
  const { mtimeNs, size } = await (async () => {
    const file = await open(base);
    const stat = await file.stat({ bigint: true });
    await file.close();
    return stat;
  })();
  await (await Layer.create(top, { sizeBytes: DISK_BYTES, backing: { kind: 'raw', path: 'base.img', sizeBytes: Number(size), modifiedNanos: mtimeNs } })).close();
  const disk = await openDisk({ path: top });
  await disk.write([sectorsOf([1, 2, 3], memory)], 512);
  await disk.close();
  const second = join(folder, 'second.layer');
  const below = await Layer.open(top, 'read');
  const { uuid, generation } = below.header;
  await below.close();
  await (await Layer.create(second, { sizeBytes: DISK_BYTES, backing: { kind: 'layer', path: top, uuid, generation } })).close();
  await (await openDisk({ path: second, isReadOnly: true })).close();
  const changed = await openDisk({ path: top });
  await changed.write([sectorsOf([4], memory)], 0);
  await changed.close();
  await assert.rejects(openDisk({ path: second }), { code: 'ZAZEN_DISK_BACKING' });
  await writeFile(base, 'other');
  await assert.rejects(openDisk({ path: top }), { code: 'ZAZEN_DISK_BACKING' });
  const loop = join(folder, 'loop.layer');
  await (await Layer.create(loop, { sizeBytes: 4096, backing: { kind: 'raw', path: 'loop.layer', sizeBytes: 0, modifiedNanos: 0n } })).close();
  await assert.rejects(openDisk({ path: loop }), { code: 'ZAZEN_DISK_BACKING' });
  await assert.rejects(openDisk({ path: join(folder, 'none') }), { code: 'ZAZEN_DISK_MISSING' });
  await assert.rejects(openDisk({ path: folder, format: 'raw' }), { code: 'ZAZEN_DISK_UNREADABLE' });
  await assert.rejects(openDisk({ path: base, format: 'layer' }), { code: 'ZAZEN_DISK_FORMAT' });
  // A guest has made its raw disk look like a layer.
  const forged = join(folder, 'forged.img');
  await writeFile(forged, await readFile(second));
  await assert.rejects(openDisk({ path: forged }), { code: 'ZAZEN_DISK_FORMAT' });
  await (await openDisk({ path: forged, format: 'raw' })).close();
});

test('one writer at a time', async (t) => {
  const path = await rawFile(await testFolder(t), DISK_BYTES);
  const disk = await openDisk({ path, format: 'raw' });
  await assert.rejects(openDisk({ path, format: 'raw' }), { code: 'ZAZEN_DISK_LOCKED' });
  await disk.close();
  await writeFile(`${path}.lock`, 'pid:[1] 1 1\n');
  await assert.rejects(openDisk({ path, format: 'raw' }), { code: 'ZAZEN_DISK_LOCKED' }, 'who is in another namespace may live');
  await writeFile(`${path}.lock`, `${readlinkSync('/proc/self/ns/pid')} 4194304 1\n`);
  const many = await Promise.allSettled(Array.from({ length: 4 }, () => openDisk({ path, format: 'raw' })));
  const opened = many.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  assert.equal(opened.length, 1, 'a dead one\'s lock is taken by one only');
  await opened[0]!.close();
});
