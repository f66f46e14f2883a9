// A guest that runs while its memory is still in a file: it finds everything as it was, whatever is done with it
// meanwhile, and waits for the operator when the file is lost or altered. The background reader is left out (`readAhead:
// false`), so that what is not touched stays unread for as long as a test needs.

import assert from 'node:assert/strict';
import { copyFile, mkdtemp, open, rename, rm, stat, truncate, unlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after, afterEach } from 'node:test';
import { Host } from '../../src/host/index.ts';
import type { Domain, DomainEvent, RestoreOptions } from '../../src/host/index.ts';
import { HOT_PAGES_MAX, layoutImage } from '../../src/image/format.ts';
import { openImage } from '../../src/image/image.ts';
import { whileGoingOn } from '../waiting.ts';
import { hostMemory } from '../host-memory.ts';
import { TEST_PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT, collect, limited, testHost } from './guests.ts';
import { ask } from './shell.ts';

const FILE_BYTES = 8_000_000;
const PAGE_BYTES = 4096;
const LIMIT = { timeout: TEST_PATIENCE_MILLIS };

const folder = await mkdtemp(join(tmpdir(), 'zazen-lazy-'));
after(() => rm(folder, { recursive: true }));
/** Of all tests but those that need one of their own: what it has compiled for a guest it has for the next. */
const common = await testHost({ memory: '1GiB' });
afterEach(async () => {
  for (const domain of common.domains()) await domain.destroy();
});
/** What every test restores: a guest with a shell, a variable in it, and a file of random bytes in memory. */
const original = join(folder, 'guest.core');
const sum = await (async () => {
  const domain = await common.create({ name: 'saved', memory: '192MiB', vcpus: 2, cmdline: FAST_BOOT });
  await limited(domain, () => collect(domain.attachConsole()).until(/root@saved:~# /));
  const output = await ask(domain, `x=42; head -c ${FILE_BYTES} /dev/urandom > /tmp/f; md5sum /tmp/f`);
  assert.match(output, /^[0-9a-f]{32} /);
  await domain.save(original);
  await domain.destroy();
  return output;
})();

/** A file of its own: of what one test has read, no other finds anything in memory. */
async function copied(name: string): Promise<string> {
  const path = join(folder, `${name}.core`);
  await copyFile(original, path);
  return path;
}

async function restored(path: string, options: RestoreOptions = {}, host = common): Promise<Domain> {
  return host.restore(path, { readAhead: false, ...options });
}

async function assertAudited(host = common): Promise<void> {
  assert.deepEqual((await host.audit()).problems, []);
}

async function eventOf(domain: Domain, type: DomainEvent['type'], count = 1): Promise<DomainEvent> {
  let seen = 0;
  for await (const event of domain.events()) if (event.type === type && ++seen === count) return event;
  throw new Error(`the domain went without ${type}`);
}

test('what a guest needs at once is in memory before it runs', LIMIT, async () => {
  const domain = await restored(await copied('paused'), { paused: true });
  const { pagesDone, touchedPages } = domain.stats().image!;
  assert(pagesDone > 50 && touchedPages === 0, `${pagesDone} pages, of which ${touchedPages} were touched`);
  await assertAudited();
});

test('hot pages whose second copies were altered come from their first places', LIMIT, async () => {
  const path = await copied('cold');
  await using image = await openImage(path);
  const { hotOffset } = layoutImage(image.banks);
  await using file = await open(path, 'r+');
  for (let i = 0; i < image.hotGfns.length; i++) await file.write(Buffer.from('x'), 0, 1, hotOffset + i * PAGE_BYTES + 7);
  const domain = await restored(path, { paused: true });
  const { pagesDone } = domain.stats().image!;
  assert(pagesDone < image.hotGfns.length, `${pagesDone} pages`);
  await domain.unpause();
  assert.equal(await ask(domain, 'echo $x'), '42\n');
  assert(domain.stats().image!.touchRequests > 0);
  await assertAudited();
});

test('memory is what it was, touched or read in the background, and each page is read once', LIMIT, async () => {
  const domain = await restored(await copied('each-once'));
  assert.equal(await ask(domain, 'echo $x'), '42\n');
  const before = domain.stats().image!;
  assert(before.touchedPages > 50 && before.pagesDone < before.pageCount / 2, JSON.stringify(before));
  assert(before.workingSetPages > 200, 'what the guest used was recorded');
  assert(!before.isComplete);
  await assertAudited();
  assert.equal(await ask(domain, 'md5sum /tmp/f'), sum);
  assert(domain.stats().image!.touchedPages > FILE_BYTES / PAGE_BYTES);
  await Promise.all([domain.load(), assertAudited()]);
  const { isComplete, pagesDone, pageCount, bytesRead } = domain.stats().image!;
  assert.deepEqual([isComplete, pagesDone], [true, pageCount]);
  assert(bytesRead < 1.05 * pageCount * PAGE_BYTES, 'threads that meet read a page twice, others do not');
  assert.equal(await ask(domain, 'md5sum /tmp/f; echo $x'), `${sum}42\n`);
  await assertAudited();
  // The background reader alone, with a guest that stands still, and with one that works.
  for (const paused of [true, false]) {
    const other = await common.restore(await copied(`again-${paused}`), { name: `other-${paused}`, paused });
    if (!paused) assert.equal(await ask(other, 'md5sum /tmp/f'), sum);
    await other.load();
    assert(other.stats().image!.isComplete);
    await other.destroy();
  }
  await assertAudited();
});

test('every verb is legal while pages are in the file', LIMIT, async () => {
  const domain = await restored(await copied('verbs'));
  {
    await using checkpoint = await domain.checkpoint();
    assert.equal(await ask(domain, 'x=7; echo changed > /tmp/f; cat /tmp/f'), 'changed\n');
    const [fork] = await checkpoint.fork([{ name: 'fork' }]);
    assert.equal(await ask(fork!, 'echo $x; md5sum /tmp/f'), `42\n${sum}`);
    await using ofFork = await fork!.checkpoint();
    const [forkOfFork] = await ofFork.fork(1);
    await fork!.destroy();
    await domain.rollback(checkpoint);
    assert.equal(await ask(domain, 'echo $x'), '42\n');
    await domain.pause();
    await domain.unpause();
    assert.equal(await ask(domain, 'md5sum /tmp/f'), sum);
    assert.equal(await ask(forkOfFork!, 'echo $x; md5sum /tmp/f'), `42\n${sum}`);
    await forkOfFork!.destroy();
  }
  await assertAudited();
  await domain.destroy();
  // Saved onto the very file that it is being read from, and dumped.
  const path = await copied('same');
  const again = await restored(path);
  await again.save(path);
  await again.dumpCore(join(folder, 'dump.core'));
  assert.equal(await ask(again, 'echo $x'), '42\n');
  await again.destroy();
  for (const saved of [path, join(folder, 'dump.core')]) {
    await using image = await openImage(saved);
    assert.equal((await image.verify()).problemCount, 0);
    const last = await restored(saved);
    assert.equal(await ask(last, 'echo $x; md5sum /tmp/f'), `42\n${sum}`);
    await last.destroy();
  }
  // Destroyed before it has read anything, and together with its host.
  await using host = await Host.start({ memory: hostMemory('1GiB') });
  await (await restored(original, { readAhead: true }, host)).destroy();
  await assertAudited(host);
  await restored(original, { readAhead: true }, host);
});

test('ten domains from one image share its pages', LIMIT, async () => {
  await using host = await Host.start({ memory: hostMemory('1GiB') });
  const used = () => host.stats().memoryBytes - host.stats().freeBytes;
  const one = await restored(original, { name: 'd0' }, host);
  assert.equal(await ask(one, 'md5sum /tmp/f'), sum);
  const usedByOne = used();
  const others = await Promise.all(Array.from({ length: 9 }, (_, i) => restored(original, { name: `d${i + 1}` }, host)));
  const { bytesRead } = one.stats().image!;
  for (const domain of others) assert.equal(await ask(domain, 'md5sum /tmp/f; echo $x'), `${sum}42\n`);
  assert(used() - usedByOne < 9 * FILE_BYTES / 4, 'nine more cost what they changed');
  assert(one.stats().image!.bytesRead - bytesRead < FILE_BYTES / 4, 'what one has read, nobody reads again');
  await one.destroy();
  assert.equal(await ask(others[0]!, 'md5sum /tmp/f'), sum);
  await others[0]!.load();
  await assertAudited(host);
  for (const domain of others) await domain.destroy();
  await assertAudited(host);
});

test('an altered file stops the guest, naming file and page; put right, it goes on', LIMIT, async () => {
  const path = await copied('altered');
  const domain = await restored(path, { name: 'victim' });
  const bystander = await restored(await copied('bystander'), { name: 'bystander' });
  assert.equal(await ask(domain, 'echo $x'), '42\n');
  const offsets = await storedOffsets(path);
  const flip = async (): Promise<void> => {
    await using file = await open(path, 'r+');
    const byte = Buffer.alloc(1);
    for (const offset of offsets) {
      await file.read(byte, 0, 1, offset + 1234);
      byte[0]! ^= 0x10;
      await file.write(byte, 0, 1, offset + 1234);
    }
  };
  await flip();
  const asked = ask(domain, 'md5sum /tmp/f');
  const stalled = await limited(domain, () => eventOf(domain, 'stalled'));
  assert(stalled.type === 'stalled' && stalled.code === 'ZAZEN_IMAGE_CHECKSUM', JSON.stringify(stalled));
  assert.match(stalled.message, new RegExp(`altered\\.core: page \\d+ is not what was written`));
  assert.equal(domain.state, 'paused');
  await assert.rejects(domain.load(), { code: 'ZAZEN_IMAGE_CHECKSUM' });
  await assert.rejects(domain.save(join(folder, 'never.core')), { code: 'ZAZEN_IMAGE_CHECKSUM' });
  assert.equal(await ask(bystander, 'md5sum /tmp/f'), sum);
  await assertAudited();
  // Unpaused too early, it stops again.
  await domain.unpause();
  await limited(domain, () => eventOf(domain, 'stalled', 2));
  await flip();
  await domain.unpause();
  assert.equal(await asked, sum);
  await domain.load();
  await assertAudited();
});

test('a file cut short stops the guest; the same image in a new file lets it go on', LIMIT, async () => {
  const path = await copied('cut');
  const domain = await restored(path);
  await truncate(path, PAGE_BYTES);
  const asked = ask(domain, 'md5sum /tmp/f');
  const stalled = await limited(domain, () => eventOf(domain, 'stalled'));
  assert(stalled.type === 'stalled' && stalled.code === 'ZAZEN_IMAGE_TRUNCATED', JSON.stringify(stalled));
  assert.match(stalled.message, /cut\.core: is cut short before page \d+/);
  await rename(await copied('whole'), path);
  await domain.unpause();
  assert.equal(await asked, sum);
  // A file that nobody finds any more is there for who has it open.
  await unlink(path);
  await domain.load();
  assert.equal(await ask(domain, 'md5sum /tmp/f'), sum);
  await domain.destroy();
  await assertAudited();
});

test('out of frames while loading: guests stall, and go on when there is room', LIMIT, async () => {
  await using host = await Host.start({ memory: '208MiB' });
  const domain = await restored(original, {}, host);
  const hog = await restored(original, { name: 'hog' }, host);
  const filled = ask(hog, 'mount -t tmpfs none /dev/shm; dd if=/dev/zero of=/dev/shm/x bs=1M count=120')
    .catch((error: Error) => error);
  const asked = ask(domain, 'md5sum /tmp/f');
  await limited(hog, () => eventOf(hog, 'stalled'));
  await assertAudited(host);
  await hog.destroy();
  assert.equal(await whileGoingOn([domain], () => asked), sum);
  assert.ok(await filled instanceof Error);
  await assertAudited(host);
});

test('eager: all is read before the guest runs, and what is wrong is said at once', LIMIT, async () => {
  const progress: number[] = [];
  const domain = await common.restore(await copied('whole-first'), {
    lazy: false, onProgress: ({ pagesDone, pageCount }) => progress.push(pagesDone / pageCount),
  });
  assert.deepEqual(progress, progress.toSorted((a, b) => a - b));
  assert.equal(progress.at(-1), 1);
  const stats = domain.stats().image!;
  assert.deepEqual([stats.isComplete, stats.touchedPages < 100], [true, true]);
  assert.equal(await ask(domain, 'echo $x; md5sum /tmp/f'), `42\n${sum}`);
  const path = await copied('eager');
  await truncate(path, (await stat(path)).size - PAGE_BYTES);
  await assert.rejects(common.restore(path, { name: 'no', lazy: false }), { code: 'ZAZEN_IMAGE_TRUNCATED' });
  await copyFile(original, path);
  await using file = await open(path, 'r+');
  // More than can be stored a second time, from where they are taken.
  const altered = (await storedOffsets(path)).filter((_, i) => i % 4 === 3);
  assert(altered.length > HOT_PAGES_MAX);
  for (const offset of altered) await file.write(Buffer.from('x'), 0, 1, offset + 99);
  await assert.rejects(common.restore(path, { name: 'no', lazy: false }), { code: 'ZAZEN_IMAGE_CHECKSUM' });
  await assertAudited();
});

/** Where the stored pages lie in a file. */
async function storedOffsets(path: string): Promise<number[]> {
  await using image = await openImage(path);
  const { bankOffsets } = layoutImage(image.banks);
  return [...image.runs()].flatMap(({ gfn, count }) => {
    const bank = image.banks.findIndex(({ guestAddress, sizeBytes }) =>
      gfn * PAGE_BYTES >= guestAddress && gfn * PAGE_BYTES < guestAddress + sizeBytes);
    const first = bankOffsets[bank]! + gfn * PAGE_BYTES - image.banks[bank]!.guestAddress;
    return Array.from({ length: count }, (_, i) => first + i * PAGE_BYTES);
  });
}
