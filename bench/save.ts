// Save, dump and restore of a running 400 MiB guest against QEMU: the same kernel, initramfs and workload, which prints
// a counter all the time. Restore is measured to the first line that the guest prints afterwards; what is checked: the
// counter goes on from where it was saved, and every byte of the last image. Page cache growth is what the kernel says of
// the whole machine, less what the host has meanwhile written into its store of compiled regions, whose files are to be in
// the page cache: that is of the guest's boot, and comes when the host gets to it, during a save or not.
//
// After each save and dump, the physical limit in the same folder: the same bytes to the same places of a new file, out
// of memory that lies as it is to be written, with as many requests in flight, then fsync. Saves and dumps of ours are
// durable under their names when they are over, and replace a file; the limit has no name to give and replaces nothing;
// QEMU's are in the page cache and may be lost (`syncMillis` is what durability costs of ours).

import { constants, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import * as nodeFiles from 'node:fs/promises';
import { join } from 'node:path';
import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { regionStoreFolder } from '../src/base/cache-folder.ts';
import { Host } from '../src/host/index.ts';
import type { Domain, SaveStats } from '../src/host/index.ts';
import { DirectFile, REQUEST_BYTES, RequestQueue } from '../src/image/direct-file.ts';
import { BLOCK_BYTES, BRIDGE_PAGES } from '../src/image/format.ts';
import { openImage } from '../src/image/image.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import type { Benchmark } from './run.ts';
import { settled } from './settled.ts';
import { round, summarize } from './statistics.ts';

const RUNS = 15;
const RESTORES = 7;
const QEMU_RUNS = 5;
const MEMORY_MIB = 400;
const COMMAND = 'i=0; while :; do i=$((i+1)); echo tick-$i-; usleep 5000; done';
const MARK = 'tick-100-';

type Samples = Record<string, number[]>;

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const start = performance.now();
  await work();
  return performance.now() - start;
};
const note = (samples: Samples, name: string, value: number): void => { (samples[name] ??= []).push(value); };
/** Of the last whole line. */
const counterIn = (text: string): number => Number(/.*tick-(\d+)-/s.exec(text)?.[1] ?? Number.NaN);
const cachedMib = (): number => Number(/^Cached:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'))![1]) / 1024;
function regionStoreMib(): number {
  const folder = regionStoreFolder();
  const names = folder === undefined ? [] : readdirSync(folder);
  return names.reduce((sum, name) => sum + statSync(join(folder!, name)).size, 0) / 2 ** 20;
}
/** Of the page cache, all but what is in the store of regions. */
const otherCachedMib = (): number => cachedMib() - regionStoreMib();

interface Extent {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** Where an image has its pages, over gaps as short as its writer goes over, in pieces of a request's size. */
async function extentsOf(path: string): Promise<Extent[]> {
  await using image = await openImage(path);
  const { map } = image.pages;
  const stretches: { page: number; end: number }[] = [];
  for (const { gfn, count, state } of map.stretches()) {
    const page = map.pageOf(gfn);
    const last = stretches.at(-1);
    if (state !== 'stored') continue;
    if (last !== undefined && page - last.end <= BRIDGE_PAGES) last.end = page + count;
    else stretches.push({ page, end: page + count });
  }
  return stretches.flatMap(({ page, end }) => {
    const pieces: Extent[] = [];
    for (let at = page * FRAME_BYTES; at < end * FRAME_BYTES; at += REQUEST_BYTES) {
      pieces.push({ offset: BLOCK_BYTES + at, sizeBytes: Math.min(REQUEST_BYTES, end * FRAME_BYTES - at) });
    }
    return pieces;
  });
}

/** The limit. @returns milliseconds */
async function writeBare(folder: string, extents: readonly Extent[], source: Uint8Array): Promise<number> {
  const path = join(folder, 'bare');
  const start = performance.now();
  const file = await DirectFile.open(nodeFiles, path, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR);
  const queue = new RequestQueue();
  let from = 0;
  for (const { offset, sizeBytes } of extents) {
    const part = source.subarray(from, from + sizeBytes);
    from += sizeBytes;
    await queue.add(() => file.write([part], offset));
  }
  await queue.settle();
  await file.handle.sync();
  const millis = performance.now() - start;
  assert(file.isDirect, 'the page cache was used');
  await file.close();
  rmSync(path);
  return millis;
}

async function measureSaves(domain: Domain, folder: string, samples: Samples) {
  const path = join(folder, 'zazen.core');
  await domain.save(path);
  const extents = await extentsOf(path);
  const bareBytes = extents.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  // Some more than now, for what the guest goes on to touch.
  const memory = new WebAssembly.Memory({ initial: Math.ceil(bareBytes / 65536), maximum: 65536, shared: true });
  const source = new Uint8Array(memory.buffer).fill(0x5a);
  await writeBare(folder, extents, source);
  const cachedBefore = otherCachedMib();
  let stats: SaveStats | undefined;
  for (let run = 0; run < RUNS; run++) {
    for (const verb of ['save', 'dumpCore'] as const) {
      const name = verb === 'save' ? 'save' : 'dump';
      const millis = await timed(async () => { stats = await domain[verb](path); });
      assert(stats!.direct, 'the page cache was used');
      const bare = await writeBare(folder, extents, source);
      note(samples, name, millis);
      note(samples, `${name}Sync`, stats!.syncMillis);
      note(samples, 'bareWrite', bare);
    }
    // What the guest itself takes of the processors meanwhile shows in the difference.
    await domain.pause();
    note(samples, 'savePaused', await timed(() => domain.save(path)));
    await domain.unpause();
  }
  const cacheGrowthMib = otherCachedMib() - cachedBefore;
  await using image = await openImage(path);
  assert((await image.verify()).problemCount === 0, 'the image is damaged');
  return { bytesWritten: stats!.bytesWritten, requests: stats!.requests, bareBytes, cacheGrowthMib };
}

/** Each on top of one whole image: changed pages found by comparing trees, and by checksums. */
async function measureIncrements(domain: Domain, folder: string, samples: Samples) {
  const [parent, path] = [join(folder, 'parent.core'), join(folder, 'child.core')];
  await using checkpoint = await domain.checkpoint();
  await checkpoint.save(parent);
  let pagesWritten = 0;
  for (let run = 0; run < RESTORES; run++) {
    note(samples, 'incrementByTree', await timed(async () => { ({ pagesWritten } = await domain.save(path, { parent })); }));
  }
  await checkpoint.destroy();
  for (let run = 0; run < RESTORES; run++) {
    note(samples, 'incrementByChecksum', await timed(() => domain.save(path, { parent })));
  }
  await using image = await openImage(path);
  assert((await image.verify()).problemCount === 0, 'the incremental image is damaged');
  return pagesWritten;
}

async function measureZazen(folder: string) {
  const path = join(folder, 'restore.core');
  await using host = await Host.start();
  const domain = await host.create({ exec: COMMAND, memory: `${MEMORY_MIB}MiB`, cmdline: 'quiet', name: 'bench' });
  let text = '';
  domain.exec!.output.setEncoding('utf8').on('data', (chunk: string) => { text += chunk; });
  while (!text.includes(MARK)) await new Promise(resolve => setTimeout(resolve, 1));
  await settled(host);
  const samples: Samples = {};
  const saves = await measureSaves(domain, folder, samples);
  const incrementPages = await measureIncrements(domain, folder, samples);
  for (let run = 0; run < RESTORES; run++) {
    await domain.save(path);
    const savedAt = counterIn(text);
    const start = performance.now();
    const restored = await host.restore(path, { name: `restored-${run}` });
    note(samples, 'restore', performance.now() - start);
    const stream = restored.attachConsole();
    let tail = '';
    await new Promise<void>(resolve => stream.setEncoding('utf8').on('data', (chunk: string) => {
      tail += chunk;
      // The console begins with what it had shown before; only a counter beyond that is news.
      if (counterIn(tail) > savedAt + 1) resolve();
    }));
    note(samples, 'firstOutput', performance.now() - start);
    assert(counterIn(tail) < savedAt + 50, 'the counter has jumped');
    stream.destroy();
    await restored.destroy();
  }
  return { samples, saves: { ...saves, incrementPages } };
}

async function measureQemu(log: (line: string) => void) {
  const setup = await debianGuest(MEMORY_MIB, COMMAND);
  return withQemu(log, async (start, folder) => {
    const path = join(folder, 'qemu.state');
    const samples: Samples = {};
    for (let run = 0; run < QEMU_RUNS; run++) {
      const source = await start(setup);
      await source.until(MARK);
      note(samples, 'dump', await timed(() => source.dump(join(folder, 'qemu.core'))));
      note(samples, 'save', await timed(() => source.save(path)));
      await source.end();
      const began = performance.now();
      const target = await start(setup, path);
      await target.resume();
      await target.until('tick-');
      note(samples, 'firstOutput', performance.now() - began);
      await target.end();
    }
    return { samples, savedBytes: statSync(path).size };
  });
}

const summaries = (samples: Samples) =>
  Object.fromEntries(Object.entries(samples).map(([name, values]) => [`${name}Millis`, summarize(values)]));
const medianOf = (samples: Samples, name: string): number => summarize(samples[name]!).median;

const benchmark: Benchmark = {
  name: 'save',
  description: `save, dump and restore of a running ${MEMORY_MIB} MiB guest, against a bare write and QEMU TCG`,
  async run({ log }) {
    // Beside the project: temporary folders may lie in memory.
    const folder = mkdtempSync(join(process.cwd(), '.cache-bench-'));
    try {
      const { samples, saves } = await measureZazen(folder);
      const bare = medianOf(samples, 'bareWrite');
      const result = {
        zazen: { ...summaries(samples), ...saves, cacheGrowthMib: round(saves.cacheGrowthMib) },
        timesBareWrite: round(medianOf(samples, 'save') / bare),
        dumpTimesBareWrite: round(medianOf(samples, 'dump') / bare),
      };
      const qemu = await measureQemu(log);
      if (typeof qemu === 'string') return { ...result, qemu };
      const ratio = (name: string): number => round(medianOf(qemu.samples, name) / medianOf(samples, name));
      return {
        ...result, qemu: { ...summaries(qemu.samples), savedBytes: qemu.savedBytes },
        timesFasterThanQemu: { save: ratio('save'), dump: ratio('dump'), restoreToFirstOutput: ratio('firstOutput') },
      };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};
export default benchmark;
