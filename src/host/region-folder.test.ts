// The files of the store: what was written is read again and found; damaged, foreign and forbidden ones are as good as none;
// and it does not grow beyond its bound.

import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { RegionStore } from '../cpu/jit/region-store.ts';
import type { StoredRegion } from '../cpu/jit/region-store.ts';
import { RegionFolder } from './region-folder.ts';
import type { RegionFolderLimits } from './region-folder.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const parent = mkdtempSync(join(tmpdir(), 'zazen-regions-'));
after(() => rmSync(parent, { recursive: true }));
let folders = 0;
const newPath = (): string => join(parent, `${++folders}`);
const VERSION = new Uint8Array(32).fill(7);
const CODE_BYTES = 100;

/** Of region n: one of three instructions at n, n + 1 and n + 4. */
const wordsOf = (n: number): number[] => [n + 1, 0xffff_fff0, Math.imul(n, 0x9e37_79b1) >>> 0];
const codeOf = (n: number): Uint8Array => new Uint8Array(CODE_BYTES).fill(n).fill(n >>> 8, 1, 2);
function pageOf(n: number): Uint32Array {
  const page = new Uint32Array(1024);
  wordsOf(n).forEach((word, i) => { page[n + [0, 1, 4][i]!] = word; });
  return page;
}
class FreshStore extends RegionStore {
  readonly #fresh: StoredRegion[];
  constructor(numbers: readonly number[]) {
    super();
    this.#fresh = numbers.map(n => ({
      entry: n, indices: [n, n + 1, n + 4], words: Uint32Array.from(wordsOf(n)), followsCalls: n % 3 === 0,
      body: () => ({ bytes: codeOf(n), unlikely: [n, 2] }),
    }));
  }
  override takeFresh(): readonly StoredRegion[] { return this.#fresh.splice(0); }
}

function open(path: string, version = VERSION, limits?: RegionFolderLimits): RegionFolder {
  const folder = RegionFolder.open(path, version, limits);
  assert.ok(folder !== undefined);
  return folder;
}
const save = (path: string, numbers: readonly number[], limits?: RegionFolderLimits): number | undefined =>
  open(path, VERSION, limits).save(new FreshStore(numbers));
function load(path: string, version = VERSION): RegionStore {
  const store = new RegionStore();
  open(path, version).load(store);
  return store;
}
/** Those of the numbers that are there with the code that they were written with; any other code fails. */
function present(store: RegionStore, numbers: readonly number[]): number[] {
  return numbers.filter(n => {
    const region = store.find(n, pageOf(n));
    const body = region && store.take(region);
    if (body === undefined) return false;
    assert.equal(region!.followsCalls, n % 3 === 0);
    assert.deepEqual({ bytes: new Uint8Array(body.bytes), unlikely: body.unlikely }, { bytes: codeOf(n), unlikely: [n, 2] });
    return true;
  });
}
const upTo = (count: number): number[] => Array.from({ length: count }, (_, n) => n);
const filesIn = (path: string): string[] => readdirSync(path).map(name => join(path, name));

test('what one has saved another one finds', () => {
  const path = newPath();
  assert.equal(load(path).size, 0);
  assert.equal(save(path, [1, 2, 3]), 3);
  assert.equal(save(path, [4]), 1);
  assert.equal(save(path, []), 0);
  const store = load(path);
  assert.equal(store.size, 4);
  assert.deepEqual(present(store, upTo(6)), [1, 2, 3, 4]);
  assert.equal(filesIn(path).length, 2);
});

test('another version finds nothing, and leaves the files alone', () => {
  const path = newPath();
  save(path, [1]);
  assert.equal(load(path, new Uint8Array(32).fill(8)).size, 0);
  assert.deepEqual(present(load(path), [1]), [1]);
});

test('whichever bit is flipped and wherever a file ends, no code is found that was not written', () => {
  const path = newPath();
  save(path, [1, 2, 300]);
  const [file] = filesIn(path) as [string];
  const bytes = readFileSync(file);
  let damaged = 0;
  fc.assert(fc.property(fc.nat(8 * bytes.length - 1), bit => {
    const changed = Buffer.from(bytes);
    changed[bit >>> 3]! ^= 1 << (bit & 7);
    writeFileSync(file, changed, { mode: 0o600 });
    const found = present(load(path), [1, 2, 300]).length;
    assert.ok(found < 3, `the flipped bit ${bit} is not seen`);
    damaged++;
  }), { seed, numRuns: 200 });
  fc.assert(fc.property(fc.nat(bytes.length - 1), length => {
    writeFileSync(file, bytes, { mode: 0o600 });
    truncateSync(file, length);
    assert.ok(present(load(path), [1, 2, 300]).length < 3);
  }), { seed, numRuns: 100 });
  assert.equal(damaged, 200);
});

test('a folder of which others may have something, or that is none, is refused', () => {
  const [open755, file, link] = [newPath(), newPath(), newPath()];
  mkdirSync(open755, { mode: 0o755 });
  writeFileSync(file, '');
  symlinkSync(newPath(), link);
  for (const path of [open755, file, link, '/dev/null/regions']) assert.equal(RegionFolder.open(path, VERSION), undefined, path);
  chmodSync(open755, 0o700);
  assert.equal(save(open755, [1]), 1);
});

test('a file that is a link is not read', () => {
  const [path, elsewhere] = [newPath(), newPath()];
  save(elsewhere, [1]);
  save(path, [2]);
  const [theirs] = filesIn(elsewhere) as [string];
  symlinkSync(theirs, join(path, theirs.slice(theirs.lastIndexOf('/') + 1)));
  assert.deepEqual(present(load(path), [1, 2]), [2]);
});

test('a folder that cannot be written to is read, and nothing is said', () => {
  const path = newPath();
  save(path, [1]);
  chmodSync(path, 0o500);
  assert.deepEqual(present(load(path), [1]), [1]);
  // Modes do not keep root from writing; in this folder nobody makes a file.
  assert.equal(save(process.getuid!() === 0 ? '/proc/self/fd' : path, [2]), undefined);
  chmodSync(path, 0o700);
});

test('a folder that goes away is as good as none', () => {
  const path = newPath();
  const folder = open(path);
  rmSync(path, { recursive: true });
  assert.equal(folder.save(new FreshStore([1])), undefined);
  assert.equal(folder.save(new FreshStore([])), 0);
});

test('many files become one, each region once; and what was found before can still be read', () => {
  const path = newPath();
  for (const n of upTo(4)) save(path, [n, 100], { packsMax: 3 });
  const before = load(path);
  assert.equal(filesIn(path).length, 1);
  save(path, [4], { packsMax: 3 });
  for (const n of [5, 6, 7]) save(path, [n], { packsMax: 3 });
  assert.deepEqual(present(before, [0, 1, 2, 3, 100]), [0, 1, 2, 3, 100]);
  const joined = load(path);
  assert.equal(joined.size, 9);
  assert.deepEqual(present(joined, [...upTo(8), 100]), [...upTo(8), 100]);
});

test('two who join files at the same time lose nothing', () => {
  const path = newPath();
  for (const n of upTo(3)) save(path, [n]);
  const [one, other] = [open(path, VERSION, { packsMax: 2 }), open(path, VERSION, { packsMax: 2 })];
  const stores = [new RegionStore(), new RegionStore()] as const;
  one.load(stores[0]);
  other.load(stores[1]);
  one.save(new FreshStore([10]));
  other.save(new FreshStore([11]));
  assert.deepEqual(present(load(path), [0, 1, 2, 10, 11]), [0, 1, 2, 10, 11]);
});

test('it stays within its bound: what was not used for longest goes', () => {
  const path = newPath();
  save(path, upTo(100));
  const sizeBytes = readFileSync(filesIn(path)[0]!).length;
  const limits = { totalMaxBytes: sizeBytes + 200, keptBytes: sizeBytes / 2 };
  assert.equal(save(path, [200, 201, 202], limits), 3);
  const store = load(path);
  assert.ok(store.size >= 40 && store.size <= 55, `${store.size} are left`);
  assert.equal(filesIn(path).length, 1);
  assert.ok(readFileSync(filesIn(path)[0]!).length <= limits.keptBytes + 1000);
});

test('what other versions have left goes when there is no room, or after a month; what nobody finished, after an hour', () => {
  const path = newPath();
  const other = new Uint8Array(32).fill(9);
  open(path, other).save(new FreshStore(upTo(50)));
  const [foreign] = filesIn(path) as [string];
  const abandoned = join(path, 'x.regions.new');
  writeFileSync(abandoned, '');
  save(path, [1]);
  assert.deepEqual(filesIn(path).length, 3);
  const twoHoursAgo = new Date(Date.now() - 7_200_000);
  for (const file of [foreign, abandoned]) utimesSync(file, twoHoursAgo, twoHoursAgo);
  save(path, [2]);
  assert.ok(filesIn(path).includes(foreign) && !filesIn(path).includes(abandoned));
  save(path, [3], { totalMaxBytes: 1000 });
  assert.ok(!filesIn(path).includes(foreign));
  assert.deepEqual(present(load(path), [1, 2, 3]), [1, 2, 3]);
});

test('a whole file is made once, and again when anything about it is not as it was', async () => {
  const path = newPath();
  const content = new Uint8Array(codeOf(5));
  let made = 0;
  const fileOf = async (version = VERSION, name = 'thing'): Promise<Uint8Array> => open(path, version).file(name, async () => {
    made++;
    return content;
  });
  for (let i = 0; i < 3; i++) assert.deepEqual([new Uint8Array(await fileOf()), made], [content, 1]);
  const [file] = filesIn(path) as [string];
  const bytes = readFileSync(file);
  await fc.assert(fc.asyncProperty(fc.nat(8 * bytes.length - 1), fc.nat(bytes.length - 1), async (bit, length) => {
    const changed = Buffer.from(bytes);
    changed[bit >>> 3]! ^= 1 << (bit & 7);
    for (const wrong of [changed, bytes.subarray(0, length)]) {
      const before = made;
      writeFileSync(file, wrong);
      assert.deepEqual([new Uint8Array(await fileOf()), made], [content, before + 1]);
      assert.deepEqual(readFileSync(file), bytes);
    }
  }), { seed, numRuns: 50 });
  // As another emitter or under another name, it is another one; and a link is none.
  const elsewhere = newPath();
  writeFileSync(elsewhere, bytes, { mode: 0o600 });
  for (const [version, name] of [[new Uint8Array(32).fill(8), 'thing'], [VERSION, 'other']] as const) {
    const before = made;
    await fileOf(version, name);
    assert.equal(made, before + 1);
  }
  rmSync(file);
  symlinkSync(elsewhere, file);
  const before = made;
  await fileOf();
  assert.equal(made, before + 1);
  // Regions of the same folder are not disturbed by it.
  save(path, [1, 2]);
  assert.deepEqual(present(load(path), [1, 2]), [1, 2]);
});
