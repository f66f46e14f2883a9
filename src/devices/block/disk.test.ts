import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { PATIENCE_MILLIS } from '../../../test/patience.ts';
import { LaneTable } from '../../lanes/lane.ts';
import { BlockFile } from './block-file.ts';
import { Disk } from './disk.ts';
import type { DiskState } from './disk.ts';
import { Layer } from './layer.ts';
import { openDisk } from './open-disk.ts';
import { TestBorrower } from './test-borrower.ts';
import { pageMemory, rawFile, sectorsOf, seed, tagsOf, testFolder } from './test-disks.ts';

const runs = Number(process.env['ZAZEN_TEST_RUNS'] ?? 40);
/** Two clusters and a piece, and no whole granule at the end. */
const SECTORS = 299;

const readMemory = pageMemory(SECTORS * 512);
/** Two writes may be under way at once. */
const writeMemory = [pageMemory(SECTORS * 512), pageMemory(SECTORS * 512)];

async function tagsIn(disk: Disk, borrower?: TestBorrower): Promise<number[]> {
  const bytes = readMemory.subarray(0, disk.sizeBytes);
  // As much of it as one that is only lent in whole pages can be asked for.
  const pages = bytes.length - bytes.length % 4096;
  const isRead = borrower?.read(bytes.subarray(0, pages), 0) === true;
  await disk.read([isRead ? bytes.subarray(pages) : bytes], isRead ? pages : 0);
  return tagsOf(bytes);
}

/** A disk with what must be on it, and what may be found after a kill: for each sector, any tag since the last flush. */
class Model {
  tags: number[] = Array.from({ length: SECTORS }, () => 0);
  may: Set<number>[] = this.tags.map((tag) => new Set([tag]));

  set(from: number, tags: readonly number[]): void {
    tags.forEach((tag, i) => {
      this.tags[from + i] = tag;
      this.may[from + i]!.add(tag);
    });
  }
  flushed(): void {
    this.may = this.tags.map((tag) => new Set([tag]));
  }
}

/** The pages that a place begins in, but for the last of the disk, which is none. */
function inPages({ from, count }: { from: number; count: number }): { from: number; count: number } {
  const end = SECTORS - SECTORS % 8;
  const start = Math.min(from - from % 8, end - 8);
  return { from: start, count: Math.min(Math.ceil(count / 8) * 8, end - start) };
}

interface Kept {
  readonly state: DiskState;
  readonly tags: number[];
}

const place = fc.record({ from: fc.nat({ max: SECTORS - 1 }), count: fc.integer({ min: 1, max: 140 }) });
const action = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('write' as const), place, other: place, by: fc.constantFrom('host', 'lane', 'lane in pages') }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('discard' as const), place }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('flush' as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('freeze' as const) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom('restore', 'release', 'fork', 'adopt'), which: fc.nat({ max: 9 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom('reopen' as const, 'kill' as const) }) },
);

test('a disk is what was written to it by the host and the threads it is lent to, through states, forks, kills and the ends of layers', async (t) => {
  const done = { reads: 0, writesInLayers: 0 };
  const tally = ({ reads, writesInLayers }: TestBorrower): void => {
    done.reads += reads;
    done.writesInLayers += writesInLayers;
  };
  let number = 0;
  let nextTag = 1;
  await fc.assert(fc.asyncProperty(fc.constantFrom('raw', 'layer'), fc.array(action, { maxLength: 30, size: 'medium' }), async (format, actions) => {
    const folder = await testFolder(t);
    const path = format === 'raw' ? await rawFile(folder, SECTORS * 512) : join(folder, `disk${number++}.layer`);
    if (format === 'layer') await (await Layer.create(path, { sizeBytes: SECTORS * 512 })).close();
    const file = { path, format: format as 'raw' | 'layer' };
    const model = new Model();
    let disk = await openDisk(file);
    const { maps } = new LaneTable();
    let borrower = new TestBorrower((to) => disk.lend(to), maps);
    let isKilled = false;
    let kept: Kept[] = [];
    const fresh = (count: number): number[] => Array.from({ length: count }, () => nextTag++);
    const write = async (to: Disk, { from, count }: { from: number; count: number }, onto: Model, slot = 0, by?: TestBorrower): Promise<void> => {
      const tags = fresh(Math.min(count, SECTORS - from));
      onto.set(from, tags);
      const bytes = sectorsOf(tags, writeMemory[slot]!);
      if (by?.write(bytes, from * 512) === true) return;
      const cut = Math.floor(tags.length / 2) * 512;
      await to.write([bytes.subarray(0, cut), bytes.subarray(cut)].filter((piece) => piece.length > 0), from * 512);
    };
    const quiesced = async <T>(work: () => T): Promise<T> => {
      await disk.quiesce();
      borrower.takeBack();
      try {
        return work();
      } finally {
        disk.resume();
      }
    };
    const end = async (): Promise<void> => {
      for (const { state } of kept) state.release();
      kept = [];
      await disk.close();
      // A fork whose state the disk took over lets go of the disk when it has let go of that.
      while (existsSync(`${path}.lock`)) await turn();
    };
    for (const step of actions) {
      if (step.kind === 'write') {
        const apart = step.other.from >= step.place.from + step.place.count || step.place.from >= step.other.from + step.other.count;
        const by = step.by === 'host' ? undefined : borrower;
        const first = write(disk, step.by === 'lane in pages' ? inPages(step.place) : step.place, model, 0, by);
        await (apart && by === undefined ? Promise.all([first, write(disk, step.other, model, 1)]) : first);
      }
      if (step.kind === 'discard' && disk.canDiscard) {
        const { from, count } = step.place;
        await disk.discard(from * 512, Math.min(count, SECTORS - from) * 512);
        const first = Math.ceil(from / 8) * 8;
        const last = from + count >= SECTORS ? SECTORS : Math.floor((from + count) / 8) * 8;
        if (first < last) model.set(first, Array.from({ length: last - first }, () => 0));
      }
      if (step.kind === 'flush') {
        await disk.flush();
        model.flushed();
      }
      if (step.kind === 'freeze') kept.push({ state: await quiesced(() => disk.freeze()), tags: [...model.tags] });
      if ('which' in step && kept.length > 0) {
        const at = step.which % kept.length;
        const { state, tags } = kept[at]!;
        if (step.kind === 'restore') {
          await quiesced(() => disk.restore(state));
          model.set(0, tags);
        } else if (step.kind === 'release') {
          kept.splice(at, 1);
          state.release();
        } else {
          const fork = Disk.fork(state);
          const own = new Model();
          own.set(0, tags);
          assert.deepEqual(await tagsIn(fork), own.tags);
          const other = new TestBorrower((to) => fork.lend(to), maps);
          assert.deepEqual(await tagsIn(fork, other), own.tags);
          if (!fork.isReadOnly) await write(fork, { from: at * 7, count: 50 }, own);
          if (!fork.isReadOnly) await write(fork, inPages({ from: at * 9, count: 90 }), own, 0, other);
          assert.deepEqual(await tagsIn(fork, other), own.tags);
          tally(other);
          if (step.kind === 'adopt') other.takeBack();
          if (step.kind === 'adopt') {
            const foreign = fork.freeze();
            await quiesced(() => disk.restore(foreign));
            model.set(0, own.tags);
            foreign.release();
          }
          await fork.close();
        }
      }
      if (step.kind === 'reopen') {
        await end();
        assert.deepEqual((await readdir(folder)).filter((name) => !path.endsWith(name)), [], 'nothing is left beside the disk');
        disk = await openDisk(file);
        model.flushed();
      }
      if (step.kind === 'kill') {
        await disk.quiesce();
        await unlink(`${path}.lock`);
        isKilled = true;
        for (const { state } of kept) void state;
        kept = [];
        disk = await openDisk(file);
        tally(borrower);
        borrower = new TestBorrower((to) => disk.lend(to));
        const found = await tagsIn(disk);
        found.forEach((tag, i) => assert.ok(model.may[i]!.has(tag), `sector ${i}: found ${tag}, not one of ${[...model.may[i]!].join()}`));
        model.tags = found;
        model.flushed();
      }
      assert.deepEqual(await tagsIn(disk), model.tags);
      assert.deepEqual(await tagsIn(disk, borrower), model.tags);
    }
    tally(borrower);
    for (const { state, tags } of kept) {
      const fork = Disk.fork(state);
      assert.deepEqual(await tagsIn(fork), tags);
      await fork.close();
    }
    await end();
    assert.equal(maps.inUse === 0 || isKilled, true, 'no page of a map is left');
    const again = await openDisk({ ...file, isReadOnly: true });
    assert.deepEqual(await tagsIn(again), model.tags);
    await again.close();
    if (format === 'raw') assert.deepEqual(tagsOf(new Uint8Array(await readFile(path))), model.tags);
  }), { seed, numRuns: runs });
  assert.ok(done.reads > runs && done.writesInLayers > runs / 2, `the lane had its share: ${JSON.stringify(done)}`);
});

test('a state that goes while the layer on top of it is being made leaves no layer behind', async (t) => {
  const path = await rawFile(await testFolder(t), SECTORS * 512);
  const disk = await openDisk({ path, format: 'raw' });
  await disk.quiesce();
  const state = disk.freeze();
  disk.resume();
  const writing = disk.write([sectorsOf([1, 2, 3], writeMemory[0]!)], 0);
  await state.release();
  await writing;
  for (const start = Date.now(); disk.files().length > 1; await turn()) {
    assert.ok(Date.now() - start < PATIENCE_MILLIS, 'the layer is still there');
  }
  assert.deepEqual((await tagsIn(disk)).slice(0, 3), [1, 2, 3]);
  await disk.close();
});

test('a flush of a raw disk is over when its file has been, after what was written before', async (t) => {
  const path = await rawFile(await testFolder(t), SECTORS * 512);
  const disk = await openDisk({ path, format: 'raw' });
  const log: string[] = [];
  for (const name of ['write', 'sync'] as const) {
    const original = BlockFile.prototype[name] as (...args: unknown[]) => Promise<void>;
    t.mock.method(BlockFile.prototype, name, async function record(this: BlockFile, ...args: unknown[]) {
      await original.apply(this, args);
      if (this.path === path) log.push(name);
    });
  }
  await disk.write([sectorsOf([1, 2, 3], writeMemory[0]!)], 0);
  await disk.flush();
  assert.ok(log.includes('write') && log.lastIndexOf('write') < log.indexOf('sync'), log.join());
  t.mock.restoreAll();
  await disk.close();
});
