import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  constants, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, statSync, writeFileSync,
} from 'node:fs';
import * as nodeFiles from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { SeededRandom } from '../base/random.ts';
import type { FileSystem } from './direct-file.ts';
import { IMAGE_VERSION } from './format.ts';
import { openImage } from './image.ts';
import {
  BASE, BASE_GFN, bankOf, fillFrame, frameOf, makeFolder, makeMachine, makeRequest, makeVcpu, readBack, runsOf,
} from './test-images.ts';
import { writeImage } from './writer.ts';
import type { PageRun } from './page-writer.ts';

const folder = makeFolder();

test('everything that was given comes back, and the file has holes for zero pages', async () => {
  const machine = makeMachine(64 * FRAME_BYTES);
  const path = join(folder, 'all.core');
  for (const mfn of [3, 4, 5, 9]) fillFrame(machine, mfn, mfn);
  const sections = [{ name: 'gic', bytes: Uint8Array.of(1, 2, 3) }, { name: 'store/tree', bytes: new Uint8Array(0) }];
  const vcpus = [makeVcpu(1, true), makeVcpu(2)];
  const vmcoreinfo = new TextEncoder().encode('OSRELEASE=6.1.0\n');
  const banks = [bankOf(1000), bankOf(2, BASE_GFN + 5000)];
  const progress: number[] = [];
  const written = await writeImage(makeRequest({
    path, machine, banks, vcpus, sections, vmcoreinfo, domain: { name: 'web', vcpus: 2, ok: true },
    // Frame 6 is all zero.
    pages: [{ gfn: BASE_GFN + 500, count: 4, mfn: 3 }, { gfn: BASE_GFN + 5001, count: 1, mfn: 9 }],
    wallMillis: () => 12345, onProgress: ({ pagesDone }) => progress.push(pagesDone),
  }));
  assert.deepEqual([written.pagesWritten, written.zeroPages, written.parentPages], [4, 998, 0]);
  assert.ok(written.bytesWritten < 10 * FRAME_BYTES);
  assert.deepEqual(progress, [504, 1002]);
  const { size, blocks, mode } = statSync(path);
  assert.deepEqual([size, mode & 0o777], [written.fileBytes, 0o600]);
  assert.ok(blocks * 512 < 16 * FRAME_BYTES, 'no holes');
  assert.deepEqual(readdirSync(folder).filter((name) => name.includes('all')), ['all.core']);

  await using image = await openImage(path);
  assert.deepEqual(image.banks, banks);
  assert.deepEqual(image.vcpus, vcpus);
  assert.deepEqual([...image.sections].map(([name, bytes]) => ({ name, bytes })), sections);
  assert.deepEqual(image.section('gic'), sections[0]!.bytes);
  assert.throws(() => image.section('none'), { code: 'ZAZEN_IMAGE_FORMAT' });
  assert.deepEqual(image.vmcoreinfo, vmcoreinfo);
  assert.deepEqual(image.header.domain, { name: 'web', vcpus: 2, ok: true });
  assert.deepEqual([image.header.createdMillis, image.version, image.storedPages], [12345, IMAGE_VERSION, 4]);
  assert.deepEqual(image.reference, written.reference);
  const states = [0, 500, 503, 1000, 5000, 5001].map((k) => image.pageState(BASE_GFN + k));
  assert.deepEqual(states, ['zero', 'stored', 'zero', undefined, 'zero', 'stored']);
  assert.deepEqual([...image.runs()].map(({ gfn, count }) => [gfn - BASE_GFN, count]), [[500, 3], [5001, 1]]);
  assert.deepEqual([...image.runs(BASE_GFN + 501, 1)].map(({ gfn, count }) => [gfn - BASE_GFN, count]), [[501, 1]]);
  const back = await readBack(image, machine, 20, BASE_GFN + 499, 5);
  const expected = Buffer.concat([Buffer.alloc(FRAME_BYTES), ...[3, 4, 5].map((mfn) => frameOf(machine, mfn)),
    Buffer.alloc(FRAME_BYTES)]);
  assert.ok(back.equals(expected));
  image.readPagesSync(machine, BASE_GFN + 5000, Uint32Array.of(41, 30));
  assert.ok(Buffer.from(frameOf(machine, 30)).equals(frameOf(machine, 9)));
  assert.ok(frameOf(machine, 41).every((byte) => byte === 0));
  const { problemCount, pagesChecked, bytesRead } = await image.verify();
  assert.deepEqual([problemCount, pagesChecked, bytesRead], [0, 1002, size]);
});

test('random sparse memories and chains of increments come back, i32 and i64', async () => {
  const frames = 256;
  const pages = 96;
  for (const addressType of ['i32', 'i64'] as const) {
    const machine = makeMachine(4 * frames * FRAME_BYTES, addressType);
    for (let mfn = 1; mfn < frames; mfn++) fillFrame(machine, mfn, mfn);
    // Per page and image of the chain: unchanged, zero, a frame (0 is all zero), or the frame after the last page's.
    const change = fc.oneof({ weight: 3, arbitrary: fc.constant('same' as const) }, fc.constant('zero' as const),
      fc.nat(frames - 1), fc.constant('next' as const));
    const chain = fc.array(fc.array(change, { minLength: pages, maxLength: pages }), { minLength: 1, maxLength: 4 });
    await fc.assert(fc.asyncProperty(chain, fc.array(fc.nat(pages - 1), { maxLength: 8 }), async (steps, probes) => {
      const memory = Array.from({ length: pages }, () => 0); // which frame's contents each page has
      const banks = [bankOf(40), bankOf(pages - 40, BASE_GFN + 100)];
      const gfnOf = (page: number) => BASE_GFN + (page < 40 ? page : page + 60);
      const paths: string[] = [];
      let parent: Awaited<ReturnType<typeof writeImage>>['reference'] | undefined;
      for (const [k, changes] of steps.entries()) {
        const runs = changes.flatMap((step, page): PageRun[] => {
          const place = { gfn: gfnOf(page), count: 1 };
          if (step === 'same') return parent === undefined ? [] : [{ ...place, mfn: 'parent' }];
          const last = page === 0 ? 0 : memory[page - 1]!;
          memory[page] = step === 'zero' ? 0 : step === 'next' ? (last + 1) % frames : step;
          return step === 'zero' ? [] : [{ ...place, mfn: memory[page]! }];
        });
        const path = join(folder, `chain-${k}.core`);
        paths.push(path);
        parent = (await writeImage(makeRequest({ path, machine, banks, pages: runs, parent }))).reference;
      }
      await using image = await openImage(paths.at(-1)!);
      for (const [first, end] of [[0, 40], [40, pages]] as const) {
        const back = await readBack(image, machine, frames, gfnOf(first), end - first);
        const expected = memory.slice(first, end).map((mfn) => frameOf(machine, mfn));
        assert.ok(back.equals(Buffer.concat(expected)));
      }
      for (const page of probes) { // into scattered frames
        const count = Math.min(5, (page < 40 ? 40 : pages) - page);
        const mfns = Uint32Array.from({ length: count }, (_, k) => 2 * frames + ((7 * k) % 5) * 3);
        image.readPagesSync(machine, gfnOf(page), mfns);
        mfns.forEach((mfn, k) => {
          assert.ok(Buffer.from(frameOf(machine, mfn)).equals(frameOf(machine, memory[page + k]!)));
        });
      }
      const stored = new Set([...image.runs()].flatMap(({ gfn, count }) =>
        Array.from({ length: count }, (_, k) => gfn + k)));
      for (let page = 0; page < pages; page++) assert.equal(stored.has(gfnOf(page)), memory[page] !== 0);
      assert.equal((await image.verify()).problemCount, 0);
    }), { numRuns: 10 });
  }
});

test('large and scattered memories are split into requests', async () => {
  const pages = 5000;
  const machine = makeMachine(2 * pages * FRAME_BYTES);
  for (let mfn = 0; mfn < pages; mfn++) machine.u8[mfn * FRAME_BYTES] = 1 + (mfn % 255);
  const path = join(folder, 'large.core');
  const frameAt = (k: number) => k < 2500 ? k : k ^ 1; // then no two neighbours follow each other
  const runs = [{ gfn: BASE_GFN, count: 2500, mfn: 0 }, ...runsOf(Array.from({ length: pages - 2500 }, (_, k) =>
    frameAt(2500 + k)), BASE_GFN + 2500)];
  const progress: number[] = [];
  const written = await writeImage(makeRequest({
    path, machine, banks: [bankOf(pages)], pages: runs, onProgress: ({ pagesDone }) => progress.push(pagesDone),
  }));
  assert.equal(written.pagesWritten, pages);
  assert.equal(written.requests, 7 + 2); // 64 pages, 256, 1024 each, notes, head
  assert.deepEqual(progress, [64, 320, 1344, 2368, 3392, 4416, 5000]);
  await using image = await openImage(path);
  const back = await readBack(image, machine, pages, BASE_GFN, pages);
  for (let k = 0; k < pages; k++) assert.equal(back[k * FRAME_BYTES], 1 + (frameAt(k) % 255));
});

test('progress is told about a hundred times, in however many pieces the pages lie', async () => {
  const machine = makeMachine(65536);
  fillFrame(machine, 1, 1);
  const pages = Array.from({ length: 20_000 }, (_, k) => k % 20 === 0 ? 1 : undefined); // no gap is bridged
  const progress: number[] = [];
  const { requests } = await writeImage(makeRequest({
    path: join(folder, 'progress.core'), machine, banks: [bankOf(pages.length)], pages: runsOf(pages),
    onProgress: ({ pagesDone }) => progress.push(pagesDone),
  }));
  assert.equal(requests, 1000 + 2);
  assert.ok(progress.length >= 90 && progress.length <= 110, String(progress.length));
  assert.deepEqual([progress.at(-1), progress], [pages.length, progress.toSorted((a, b) => a - b)]);
});

test('pages above 4 GiB of a 64-bit machine are written and read', async () => {
  const machine = makeMachine(2 ** 32 + 2 ** 20, 'i64');
  const mfn = 2 ** 20 + 3;
  fillFrame(machine, mfn, 1);
  const path = join(folder, 'high.core');
  await writeImage(makeRequest({ path, machine, banks: [bankOf(4)], pages: runsOf([undefined, mfn]) }));
  await using image = await openImage(path);
  const back = await readBack(image, machine, mfn + 10, BASE_GFN + 1, 1);
  assert.ok(back.equals(frameOf(machine, mfn)));
});

/** An image of 12 pages: some stored, some zero. */
async function makeSmall(path: string, mfns: readonly (number | 'parent' | undefined)[] = [1, undefined, 2, 1]) {
  const machine = makeMachine(16 * FRAME_BYTES);
  fillFrame(machine, 1, 1);
  machine.u8[2 * FRAME_BYTES + 5] = 1;
  const sections = [{ name: 'state', bytes: Uint8Array.of(1, 2, 3) }];
  const request = makeRequest({
    path, machine, banks: [bankOf(mfns.length)], pages: runsOf(mfns), sections, vcpus: [makeVcpu(1)],
  });
  return { request, written: await writeImage(request) };
}

/** Opens and verifies; undefined if all is well, else the code of the error or 'problem'. */
async function judge(path: string, files?: FileSystem): Promise<string | undefined> {
  try {
    await using image = await openImage(path, { files });
    return (await image.verify()).problemCount > 0 ? 'problem' : undefined;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    assert.match(String(code), /^ZAZEN_IMAGE_/, String(error));
    assert.ok(message.includes(path), message);
    return code;
  }
}

/** Every name is a file with these contents. */
function memoryFiles(bytes: Buffer): FileSystem {
  const stat = async () => ({ size: bytes.length, dev: 1, ino: 1, isFile: () => true });
  const readv = async (buffers: readonly Uint8Array[], position: number) => {
    let at = position;
    for (const buffer of buffers) {
      const part = bytes.subarray(at, at + buffer.length);
      buffer.set(part);
      at += part.length;
    }
    return { bytesRead: at - position, buffers };
  };
  const open = async () => ({ stat, readv, close: async () => {} });
  return { ...nodeFiles, open: open as unknown as FileSystem['open'] };
}

test('a changed byte anywhere and every truncation are found', async () => {
  const path = join(folder, 'flip.core');
  await makeSmall(path);
  const good = readFileSync(path);
  assert.equal(await judge(path), undefined);
  const random = new SeededRandom(3);
  const bytes = Buffer.from(good);
  const files = memoryFiles(bytes);
  assert.equal(await judge(path, files), undefined);
  for (let offset = 0; offset < bytes.length; offset++) {
    const bit = 1 << random.below(8);
    bytes[offset]! ^= bit;
    assert.notEqual(await judge(path, files), undefined, `${bit} in byte ${offset}`);
    bytes[offset]! ^= bit;
  }
  const notesOffset = 5 * FRAME_BYTES;
  for (const size of [0, 1, 100, 4095, 4096, 4097, 3 * FRAME_BYTES, notesOffset, good.length - 1, good.length + 1]) {
    writeFileSync(path, Buffer.concat([good, Buffer.alloc(1)]).subarray(0, size));
    assert.match((await judge(path))!, size < FRAME_BYTES || size > good.length ? /FORMAT/ : /TRUNCATED/);
  }
});

test('every bit of a few words of every kind of area is checked', async () => {
  const path = join(folder, 'bits.core');
  await makeSmall(path);
  const bytes = readFileSync(path);
  const files = memoryFiles(bytes);
  // ELF header, superblock, a stored page, a hole, notes, padding behind the notes
  for (const start of [16, 4096 - 56, 4096 + 8, 2 * 4096, 5 * 4096, bytes.length - 8]) {
    for (let bit = 0; bit < 64; bit++) {
      const offset = start + (bit >> 3);
      bytes[offset]! ^= 1 << (bit & 7);
      assert.notEqual(await judge(path, files), undefined, `bit ${bit & 7} of byte ${offset}`);
      bytes[offset]! ^= 1 << (bit & 7);
    }
  }
});

test('a page read from an altered file is refused, by file and page', async () => {
  const path = join(folder, 'altered.core');
  const { request: { machine } } = await makeSmall(path);
  await using image = await openImage(path);
  const handle = await nodeFiles.open(path, 'r+');
  await handle.write(Uint8Array.of(1), 0, 1, 3 * FRAME_BYTES + 100);
  const message = `image ${path}: page ${BASE_GFN + 2} is not what was written`;
  const expected = { code: 'ZAZEN_IMAGE_CHECKSUM', message };
  await assert.rejects(image.readPages(machine, BASE_GFN, Uint32Array.of(4, 5, 6, 7)), expected);
  assert.throws(() => image.readPagesSync(machine, BASE_GFN + 2, Uint32Array.of(4)), expected);
  await image.readPages(machine, BASE_GFN + 3, Uint32Array.of(4)); // the others are as good as before
  assert.deepEqual((await image.verify()).problems.map(({ gfn }) => gfn), [BASE_GFN + 2]);
  await handle.write(Uint8Array.of(1), 0, 1, 2 * FRAME_BYTES); // the place of a zero page
  await assert.rejects(image.readPages(machine, BASE_GFN, Uint32Array.of(4, 5, 6)),
    { message: `image ${path}: page ${BASE_GFN + 1} is not what was written` });
  await image.readPages(machine, BASE_GFN + 1, Uint32Array.of(4)); // nothing is read for it alone
  assert.ok(frameOf(machine, 4).every((byte) => byte === 0));
  await handle.truncate(3 * FRAME_BYTES);
  await handle.close();
  await assert.rejects(image.readPages(machine, BASE_GFN + 2, Uint32Array.of(4)), { code: 'ZAZEN_IMAGE_TRUNCATED' });
  await assert.rejects(image.verify(), { code: 'ZAZEN_IMAGE_TRUNCATED' });
});

test('what is no image is refused: garbage, other files, newer versions', async () => {
  const path = join(folder, 'garbage.core');
  await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 9000 }), async (bytes) => {
    writeFileSync(path, bytes);
    assert.equal(await judge(path), 'ZAZEN_IMAGE_FORMAT');
  }), { numRuns: 30 });
  assert.equal(await judge(folder), 'ZAZEN_IMAGE_FORMAT');
  assert.equal(await judge('/dev/zero'), 'ZAZEN_IMAGE_FORMAT');
  assert.equal(await judge(join(folder, 'none')), 'ZAZEN_IMAGE_OPEN');
  await makeSmall(path);
  const bytes = readFileSync(path);
  bytes.writeUInt32LE(IMAGE_VERSION + 1, 4096 - 56 + 8);
  writeFileSync(path, bytes);
  assert.equal(await judge(path), 'ZAZEN_IMAGE_VERSION');
});

test('chains: a missing, replaced, circular or too long one is refused; folders can be moved', async () => {
  const home = join(folder, 'chain');
  mkdirSync(home);
  const [a, b] = [join(home, 'a.core'), join(home, 'b.core')];
  const base = await makeSmall(a);
  const write = (path: string, parent: typeof base.written.reference) => writeImage({
    ...base.request, path, parent, pages: runsOf(['parent', 1, 'parent', undefined]),
  });
  const child = await write(b, base.written.reference);
  assert.equal(child.parentPages, 2);
  assert.equal(await judge(b), undefined);
  {
    await using alone = await openImage(b, { parents: false });
    assert.throws(() => [...alone.runs()], { code: 'ZAZEN_IMAGE_PARENT' });
    assert.equal(alone.header.parent!.path, 'a.core');
  }
  const moved = join(folder, 'moved');
  renameSync(home, moved);
  assert.equal(await judge(join(moved, 'b.core')), undefined);
  renameSync(moved, home);
  await assert.rejects(write(a, base.written.reference), { code: 'ZAZEN_IMAGE_CREATE' });
  renameSync(a, `${a}.away`);
  assert.equal(await judge(b), 'ZAZEN_IMAGE_PARENT');
  await makeSmall(a); // the same contents, but not the same image
  assert.equal(await judge(b), 'ZAZEN_IMAGE_PARENT');
  await write(a, { ...child.reference, path: b }); // now b's parent refers to b
  assert.equal(await judge(a), 'ZAZEN_IMAGE_PARENT');
  renameSync(`${a}.away`, a);
  assert.equal(await judge(b), undefined);
  let parent = base.written.reference;
  for (let k = 1; k < 64; k++) parent = (await write(join(home, `${k}.core`), parent)).reference;
  assert.equal(await judge(join(home, '63.core')), undefined);
  await write(join(home, '64.core'), parent);
  assert.equal(await judge(join(home, '64.core')), 'ZAZEN_IMAGE_PARENT');
});

test('a parent with less memory than the child looks for is refused', async () => {
  const [a, b] = [join(folder, 'less-a.core'), join(folder, 'less-b.core')];
  const base = await makeSmall(a);
  await writeImage({ ...base.request, path: b, parent: base.written.reference, banks: [bankOf(9)],
    pages: runsOf([1, undefined, 'parent', 1, 'parent']) });
  assert.equal(await judge(b), 'ZAZEN_IMAGE_PARENT');
});

/** The file system, with `deny` asked before each operation. */
function failing(deny: (operation: string) => Error | undefined, log: string[] = []): FileSystem {
  const guard = <A extends unknown[], R>(name: string, work: (...args: A) => Promise<R>) =>
    async (...args: A): Promise<R> => {
      log.push(name);
      const error = deny(name);
      if (error !== undefined) throw error;
      return work(...args);
    };
  const open = async (...args: Parameters<typeof nodeFiles.open>) => {
    const handle = await nodeFiles.open(...args);
    for (const name of ['writev', 'readv', 'truncate', 'sync', 'stat'] as const) {
      const own = handle[name].bind(handle) as (...args: unknown[]) => Promise<unknown>;
      Object.assign(handle, { [name]: guard(name, own) });
    }
    return handle;
  };
  return {
    open: guard('open', open) as typeof nodeFiles.open, rename: guard('rename', nodeFiles.rename),
    unlink: guard('unlink', nodeFiles.unlink), readdir: nodeFiles.readdir, stat: nodeFiles.stat,
  };
}

const fault = (code: string) => Object.assign(new Error(code), { code, syscall: 'injected' });

test('a save that fails at any step leaves the name as it was and nothing else', async () => {
  for (const before of [false, true]) {
    const home = join(folder, `steps-${before}`);
    mkdirSync(home);
    const path = join(home, 'guest.core');
    if (before) await makeSmall(path);
    const { request } = await makeSmall(join(folder, 'template.core'));
    const old = before ? readFileSync(path) : undefined;
    const log: string[] = [];
    await writeImage({ ...request, path: join(folder, 'counted.core'), files: failing(() => undefined, log) });
    assert.ok(log.length >= 10, log.join());
    const lastStep = log.indexOf('rename'); // after it, the new file has its name
    const failingAt = (step: number) => {
      let count = 0;
      return failing(() => count++ === step ? fault('EIO') : undefined);
    };
    // The one before it only saves time.
    await writeImage({ ...request, path: join(folder, 'counted.core'), files: failingAt(lastStep - 1) });
    for (let step = 0; step < log.length; step++) {
      if (step === lastStep - 1) continue;
      const files = failingAt(step);
      const kind = step === 0 ? 'ZAZEN_IMAGE_CREATE' : 'ZAZEN_IMAGE_WRITE';
      await assert.rejects(writeImage({ ...request, path, files }), { code: kind }, log[step]!);
      if (step <= lastStep) {
        assert.equal(existsSync(path), before, log[step]!);
        if (before) assert.ok(readFileSync(path).equals(old!));
      } else {
        assert.equal(await judge(path), undefined);
      }
      assert.deepEqual(readdirSync(home), existsSync(path) ? ['guest.core'] : [], log[step]!);
    }
  }
});

test('notes and head are on their way before the pages are written', async () => {
  const { request } = await makeSmall(join(folder, 'template.core'));
  const headWritten = Promise.withResolvers<void>();
  const open = async (...args: Parameters<typeof nodeFiles.open>) => {
    const handle = await nodeFiles.open(...args);
    const writev = async (buffers: NodeJS.ArrayBufferView[], offset: number) => {
      // The pages, which come first and lie between head and notes, wait for the head.
      if (offset === FRAME_BYTES) await headWritten.promise;
      if (offset === 0) headWritten.resolve();
      return nodeFilesWritev(buffers, offset);
    };
    const nodeFilesWritev = handle.writev.bind(handle);
    return Object.assign(handle, { writev });
  };
  const path = join(folder, 'beside.core');
  await writeImage({ ...request, path, files: { ...nodeFiles, open: open as typeof nodeFiles.open } });
  assert.equal(await judge(path), undefined);
});

test('a file that is replaced is held until the name of the new one is durable', async () => {
  const path = join(folder, 'replaced.core');
  const { request } = await makeSmall(path);
  const log: string[] = [];
  const closed = Promise.withResolvers<void>();
  const open = async (...args: Parameters<typeof nodeFiles.open>) => {
    const handle = await nodeFiles.open(...args);
    const name = args[0] === path ? 'old' : args[0] === folder ? 'folder' : 'new';
    const [sync, close] = [handle.sync.bind(handle), handle.close.bind(handle)];
    return Object.assign(handle, {
      sync: async () => { await sync(); log.push(`${name} durable`); },
      close: async () => {
        log.push(`${name} closed`);
        await close();
        if (name === 'old') closed.resolve();
      },
    });
  };
  await writeImage({ ...request, path, files: { ...nodeFiles, open: open as typeof nodeFiles.open } });
  await closed.promise;
  const inOrder = ['new durable', 'folder durable', 'old closed'];
  assert.deepEqual(log.filter((line) => inOrder.includes(line)), inOrder);
});

test('a process killed in a save leaves the name as it was, and the next save cleans up', async () => {
  const home = join(folder, 'killed');
  mkdirSync(home);
  const path = join(home, 'guest.core');
  const { request } = await makeSmall(join(folder, 'template.core'));
  // The name that a process leaves that is dead by now, or whose pid another has got; and one of a living process.
  const names: string[] = [];
  await assert.rejects(writeImage({ ...request, path, files: { ...failing((name) => {
    if (name !== 'rename') return undefined;
    names.push(...readdirSync(home));
    return fault('EIO');
  }) } }));
  const [name] = names as [string];
  const [, namespace, pid, started] = /^\.guest\.core\.(\d+)-(\d+)-(\d+)-\d+\.partial$/.exec(name)!;
  assert.equal(Number(pid), process.pid);
  const dead = `.guest.core.${namespace}-4194303-5-1.partial`;
  const recycled = `.guest.core.${namespace}-${pid}-${Number(started) - 1}-1.partial`;
  const living = `.guest.core.${namespace}-${pid}-${started}-999.partial`;
  const other = `.other.core.${namespace}-4194303-5-1.partial`;
  for (const file of [dead, recycled, living, other]) writeFileSync(join(home, file), 'x');
  await writeImage({ ...request, path });
  assert.deepEqual(readdirSync(home).toSorted(), [living, other, 'guest.core'].toSorted());
});

test('no room, and abortion at any time, are told as what they are', async () => {
  const home = join(folder, 'room');
  mkdirSync(home);
  const path = join(home, 'guest.core');
  const { request } = await makeSmall(join(folder, 'template.core'));
  for (const code of ['ENOSPC', 'EDQUOT', 'EFBIG']) {
    const files = failing((name) => name === 'writev' ? fault(code) : undefined);
    await assert.rejects(writeImage({ ...request, path, files }), { code: 'ZAZEN_IMAGE_NO_SPACE' });
  }
  const log: string[] = [];
  await writeImage({ ...request, path: join(folder, 'counted.core'), files: failing(() => undefined, log) });
  for (let step = 0; step < log.indexOf('rename'); step++) {
    const controller = new AbortController();
    let count = 0;
    const files = failing(() => {
      if (count++ === step) controller.abort(new Error('enough'));
      return undefined;
    });
    const saving = writeImage({ ...request, path, files, signal: controller.signal });
    // From the last barrier on it is too late to stop.
    if (step < log.indexOf('sync')) await assert.rejects(saving, { message: 'enough' }, log[step]!);
    else await saving;
    assert.deepEqual(readdirSync(home), step < log.indexOf('sync') ? [] : ['guest.core']);
  }
  assert.equal(await judge(path), undefined);
});

test('what is no file is not replaced by one', async () => {
  const { request } = await makeSmall(join(folder, 'template.core'));
  for (const path of [folder, '/dev/null']) {
    await assert.rejects(writeImage({ ...request, path }), { code: 'ZAZEN_IMAGE_CREATE' });
  }
  assert.ok(statSync('/dev/null').isCharacterDevice());
  await assert.rejects(writeImage({ ...request, path: join(folder, 'none', 'x.core') }), { code: 'ZAZEN_IMAGE_CREATE' });
});

test('a process that is killed while it saves leaves the name as it was', async () => {
  const home = join(folder, 'sigkill');
  mkdirSync(home);
  const path = join(home, 'guest.core');
  const { request } = await makeSmall(path);
  const old = readFileSync(path);
  const beside = (name: string) => JSON.stringify(join(import.meta.dirname, name));
  const program = `
    import * as files from 'node:fs/promises';
    import { bankOf, makeMachine, makeRequest, fillFrame } from ${beside('test-images.ts')};
    import { writeImage } from ${beside('writer.ts')};
    const machine = makeMachine(1 << 20);
    fillFrame(machine, 1, 1);
    const die = () => process.kill(process.pid, 'SIGKILL');
    const operation = process.argv[2];
    const pages = function* () { yield { gfn: 0, count: 1, mfn: 1 }; if (operation === 'pages') die(); };
    await writeImage(makeRequest({ path: process.argv[1], machine, banks: [bankOf(2, 0)], pages: pages(), files: {
      ...files, open: async (...args) => {
        const handle = await files.open(...args);
        return operation === 'sync' ? Object.assign(handle, { sync: die }) : handle;
      }, rename: operation === 'rename' ? die : files.rename,
    } }));`;
  for (const operation of ['pages', 'sync', 'rename']) {
    const options = { encoding: 'utf8' } as const;
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', program, path, operation], options);
    assert.equal(child.signal, 'SIGKILL', child.stderr);
    assert.ok(readFileSync(path).equals(old));
    assert.equal(readdirSync(home).length, 2); // the next save removes it
  }
  await writeImage({ ...request, path });
  assert.deepEqual(readdirSync(home), ['guest.core']);
});

test('a disk that is full, where this test may make one', async () => {
  const disk = join(folder, 'disk');
  mkdirSync(disk);
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', disk]).status !== 0) return;
  try {
    const machine = makeMachine(64 * FRAME_BYTES);
    machine.u8.fill(1);
    const path = join(disk, 'guest.core');
    const request = makeRequest({ path, machine, banks: [bankOf(64)], pages: [{ gfn: BASE_GFN, count: 64, mfn: 0 }] });
    await assert.rejects(writeImage(request), { code: 'ZAZEN_IMAGE_NO_SPACE' });
    assert.deepEqual(readdirSync(disk), []);
    await writeImage({ ...request, pages: [{ gfn: BASE_GFN, count: 8, mfn: 0 }] });
    assert.equal(await judge(path), undefined);
  } finally {
    spawnSync('umount', [disk]);
  }
});

test('a file system without direct I/O is written and read through the page cache', async () => {
  const path = join(folder, 'cached.core');
  const { request } = await makeSmall(path);
  let directOpens = 0;
  const refusesOpen: FileSystem = { ...nodeFiles, open: ((file: string, flags: number, mode: number) => {
    if ((flags & constants.O_DIRECT) === 0) return nodeFiles.open(file, flags, mode);
    directOpens++;
    return Promise.reject(fault('EINVAL'));
  }) as unknown as typeof nodeFiles.open };
  /** Takes the flag, then refuses every request until the file is opened without it. */
  const refusesRequests: FileSystem = { ...nodeFiles, open: (async (file: string, flags: number, mode: number) => {
    const handle = await nodeFiles.open(file, flags, mode);
    if ((flags & constants.O_DIRECT) === 0) return handle;
    directOpens++;
    const refuse = () => Promise.reject(fault('EINVAL'));
    return Object.assign(handle, { writev: refuse, readv: refuse });
  }) as unknown as typeof nodeFiles.open };
  for (const files of [refusesOpen, refusesRequests]) {
    directOpens = 0;
    const written = await writeImage({ ...request, path, files });
    assert.deepEqual([written.direct, directOpens], [false, 1]);
    await using image = await openImage(path, { files });
    assert.equal(image.direct, false);
    const back = await readBack(image, request.machine, 8, BASE_GFN, 1);
    assert.ok(back.equals(frameOf(request.machine, 1)));
    assert.equal((await image.verify()).problemCount, 0);
  }
  assert.equal(await judge(path), undefined);
});

test('a failing read is told with file and page', async () => {
  const path = join(folder, 'unreadable.core');
  const { request: { machine } } = await makeSmall(path);
  let isBroken = false;
  const files = failing((name) => isBroken && name === 'readv' ? fault('EIO') : undefined);
  await using image = await openImage(path, { files });
  isBroken = true;
  await assert.rejects(image.readPages(machine, BASE_GFN, Uint32Array.of(4)),
    { code: 'ZAZEN_IMAGE_READ', message: `image ${path}: page ${BASE_GFN} cannot be read (EIO)` });
  await assert.rejects(image.verify(), { code: 'ZAZEN_IMAGE_READ' });
  await assert.rejects(openImage(path, { files }), { code: 'ZAZEN_IMAGE_READ' });
});

test('the guest address of a page and its place in the file differ by a constant', async () => {
  const path = join(folder, 'places.core');
  const { request } = await makeSmall(path);
  const bytes = readFileSync(path);
  assert.ok(bytes.subarray(3 * FRAME_BYTES, 4 * FRAME_BYTES).equals(frameOf(request.machine, 2)));
  assert.equal(bytes.readBigUInt64LE(64 + 56 + 8), BigInt(FRAME_BYTES)); // p_offset of the first PT_LOAD
  assert.equal(bytes.readBigUInt64LE(64 + 56 + 16), BigInt(BASE)); // p_vaddr
});
