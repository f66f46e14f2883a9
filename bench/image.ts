// Image writing and reading against the bare O_DIRECT write and read of the same bytes, in the same run and folder: a
// guest of 400 MiB of which 64 MiB are not zero, in pieces as a booted kernel leaves them; and how much the host's page
// cache grows meanwhile. Everything that is read back is compared.

import { constants, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { tmpdir } from 'node:os';
import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { SeededRandom } from '../src/base/random.ts';
import { openImage } from '../src/image/image.ts';
import { writeImage } from '../src/image/writer.ts';
import type { PageRun } from '../src/image/page-writer.ts';
import { round, summarize } from './statistics.ts';
import type { Benchmark } from './run.ts';

const GUEST_PAGES = 400 * 256;
const STORED_PAGES = 64 * 256;
const RUNS = 15;
const REQUEST_BYTES = 4 * 2 ** 20;
const MIB = 2 ** 20;

function makeGuest() {
  const memory = new WebAssembly.Memory({ initial: 4096, maximum: 4096, shared: true }); // 256 MiB
  const u8 = new Uint8Array(memory.buffer);
  const random = new SeededRandom(1);
  const words = new Uint32Array(memory.buffer, 0, STORED_PAGES * FRAME_BYTES / 4);
  for (let i = 0; i < words.length; i++) words[i] = random.u32();
  // As in a guest of Debian's kernel after boot: some hundred runs, with nine gaps of ten shorter than 16 pages.
  const pages: PageRun[] = [];
  let gfn = 0x40000;
  for (let mfn = 0; mfn < STORED_PAGES;) {
    const count = Math.min(1 + random.below(200), STORED_PAGES - mfn);
    pages.push({ gfn, count, mfn });
    mfn += count;
    gfn += count + 1 + (random.below(10) === 0 ? random.below(4000) : random.below(8));
  }
  assert(gfn < 0x40000 + GUEST_PAGES, 'the pages do not fit the guest');
  return { machine: { memory, u8, parameters: { addressType: 'i32' as const, sizeBytes: u8.length } }, pages };
}

/** Bytes in the host's page cache. */
function cachedBytes(): number {
  return Number(/^Cached: +(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'latin1'))![1]) * 1024;
}

async function bareWrite(path: string, u8: Uint8Array): Promise<{ writeMillis: number; millis: number }> {
  const start = performance.now();
  const file = await open(path, constants.O_CREAT | constants.O_TRUNC | constants.O_RDWR | constants.O_DIRECT);
  for (let at = 0; at < STORED_PAGES * FRAME_BYTES; at += REQUEST_BYTES) {
    await file.write(u8.subarray(at, at + REQUEST_BYTES), 0, REQUEST_BYTES, at);
  }
  const writeMillis = performance.now() - start;
  await file.sync();
  const millis = performance.now() - start;
  await file.close();
  return { writeMillis, millis };
}

async function bareRead(path: string, u8: Uint8Array): Promise<number> {
  const file = await open(path, constants.O_RDONLY | constants.O_DIRECT);
  const start = performance.now();
  for (let at = 0; at < STORED_PAGES * FRAME_BYTES; at += REQUEST_BYTES) {
    await file.read(u8.subarray(128 * MIB + at), 0, REQUEST_BYTES, at);
  }
  const millis = performance.now() - start;
  await file.close();
  return millis;
}

const benchmark: Benchmark = {
  name: 'image',
  description: 'image of 400 MiB, 64 MiB not zero: write, open, read, verify, against bare direct I/O',
  async run({ log }) {
    const folder = mkdtempSync(join(tmpdir(), 'zazen-bench-image-'));
    const { machine, pages } = makeGuest();
    const samples: Record<string, number[]> = {};
    const note = (name: string, value: number) => (samples[name] ??= []).push(value);
    try {
      for (let run = 0; run < RUNS; run++) {
        const bare = await bareWrite(join(folder, 'bare'), machine.u8);
        const before = cachedBytes();
        const path = join(folder, `image-${run}`);
        const written = await writeImage({
          path, machine, pages, banks: [{ guestAddress: 0x40000 * FRAME_BYTES, sizeBytes: GUEST_PAGES * FRAME_BYTES }],
          domain: { name: 'bench' }, vcpus: [], sections: [{ name: 'state', bytes: new Uint8Array(100_000) }],
        });
        note('cacheGrowthMiB', (cachedBytes() - before) / MIB);
        assert(written.pagesWritten === STORED_PAGES, 'wrong number of pages');
        note('writeMillis', written.writeMillis);
        note('syncMillis', written.syncMillis);
        note('saveMillis', written.millis);
        note('bareWriteMillis', bare.writeMillis);
        note('bareWriteAndSyncMillis', bare.millis);
        note('saveToBare', written.millis / bare.millis);
        note('bareReadMillis', await bareRead(join(folder, 'bare'), machine.u8));
        await readAndCompare(path, machine, pages, note);
        rmSync(path);
        if (run === 0) log(`${written.requests} requests, direct: ${written.direct}`);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
    return Object.fromEntries(Object.entries(samples).map(([name, values]) => {
      const { median, p99, max } = summarize(values);
      return [name, { median: round(median), p99: round(p99), max: round(max) }];
    }));
  },
};

async function readAndCompare(
  path: string, machine: ReturnType<typeof makeGuest>['machine'], pages: readonly PageRun[],
  note: (name: string, value: number) => void,
): Promise<void> {
  const target = 128 * 256; // frames of the upper half
  machine.u8.fill(0, target * FRAME_BYTES);
  let start = performance.now();
  await using image = await openImage(path);
  note('openMillis', performance.now() - start);
  start = performance.now();
  let mfn = target;
  const reads: Promise<void>[] = [];
  for (const { gfn, count } of image.runs()) {
    const first = mfn;
    reads.push(image.readPages(machine, gfn, Uint32Array.from({ length: count }, (_, k) => first + k)));
    mfn += count;
  }
  await Promise.all(reads);
  note('readMillis', performance.now() - start);
  const half = STORED_PAGES * FRAME_BYTES;
  const [written, read] = [0, target * FRAME_BYTES].map((at) => Buffer.from(machine.memory.buffer, at, half));
  assert(written!.equals(read!), 'read something else than was written');
  assert(pages.reduce((sum, { count }) => sum + count, 0) === mfn - target, 'another number of pages');
  start = performance.now();
  image.readPagesSync(machine, pages[0]!.gfn, Uint32Array.of(target));
  note('readOnePageMillis', performance.now() - start);
  start = performance.now();
  assert((await image.verify()).problemCount === 0, 'the image is damaged');
  note('verifyMillis', performance.now() - start);
}

export default benchmark;
