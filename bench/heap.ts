// The allocator's metadata at a terabyte: the product's own heap, frame table and tear-down over the records of 2^28
// frames, of which only those exist that tables of guest memory lie in. Time per frame to make the heap, to allocate,
// to free, and to take and give back blocks as the scrubber does, near the bottom of an almost empty heap, after much
// of it was allocated, and scattered over all of it. Then domains that own all frames are destroyed: what the caller
// waits for, and the work behind. What is checked: no frame comes twice, and after all is freed the heap has as many as
// at the start.
//
//      0 ┌──────────────────┐
//        │ heap             │
//  2 MiB ├──────────────────┤ firstFrame
//        │ existing frames  │ for tables: 1/512 of all frames, and some
//        ├──────────────────┤
//        │ frame table      │ 16 bytes a frame, whether it exists or not
//        └──────────────────┘
//
// Nothing is scrubbed, as there is nothing: how long that would take is extrapolated from the speed of the scrubber on
// one GiB of real frames, and is no measurement.

import {
  FRAME_BYTES, FRAME_STATE, FRAME_WORDS, GFN_LIMIT, HEAP_ORDER_MAX, P2M_ENTRIES, P2M_KIND, P2M_VALUE_SHIFT,
} from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { SeededRandom } from '../src/base/random.ts';
import { Heap } from '../src/memory/heap.ts';
import type { MachineMemory } from '../src/memory/machine-memory.ts';
import { P2m } from '../src/memory/p2m.ts';
import type { Benchmark } from './run.ts';
import { measureScrubbing } from './scrubbing.ts';
import { round } from './statistics.ts';

const TIB = 2 ** 40;
const GIB = 2 ** 30;
const RECORD_BYTES = 16;
const WASM_PAGE_BYTES = 65536;
const BATCH = 1_000_000;
/** Blocks of 2 MiB that are taken so that frames come from all over the heap. */
const SCATTERED = 2048;
const BLOCK_FRAMES = 2 ** HEAP_ORDER_MAX;
/** Account of the domains that are destroyed. */
const OWNER = 1;

interface Metadata {
  readonly machine: MachineMemory;
  /** Frames below this one exist. */
  readonly existingEnd: number;
}

/** What the memory room uses of a machine memory, for frames that do not exist but for the lowest. */
function metadataOnly(sizeBytes: number): Metadata {
  const frameEnd = sizeBytes / FRAME_BYTES;
  const tables = Math.ceil(frameEnd / P2M_ENTRIES * (1 + 1 / P2M_ENTRIES)) + 2 * BLOCK_FRAMES;
  const existingEnd = BLOCK_FRAMES * (1 + Math.ceil(tables / BLOCK_FRAMES));
  const pages = (existingEnd * FRAME_BYTES + frameEnd * RECORD_BYTES) / WASM_PAGE_BYTES;
  const memory = new WebAssembly.Memory({
    initial: BigInt(pages), maximum: BigInt(pages), shared: true, address: 'i64',
  });
  const regions: Record<string, { offsetBytes: number }> = {
    heap: { offsetBytes: 0 }, frameTable: { offsetBytes: existingEnd * FRAME_BYTES },
  };
  const machine = {
    u32: new Uint32Array(memory.buffer), firstFrame: BLOCK_FRAMES, frameEnd, parameters: { domainCount: 16 },
    region: (name: string) => regions[name]!, zeroFrame: () => {},
  } as unknown as MachineMemory;
  return { machine, existingEnd };
}

/** All blocks of 2 MiB that are left, charged to OWNER. */
function takeBlocks(heap: Heap): number[] {
  const blocks: number[] = [];
  for (let mfn = heap.allocateBlock(OWNER, HEAP_ORDER_MAX, true); mfn !== 0;) {
    blocks.push(mfn);
    mfn = heap.allocateBlock(OWNER, HEAP_ORDER_MAX, true);
  }
  return blocks;
}

/** The p2m of as many domains as are needed to own all blocks: full trees, as guests' first writes would make them. */
function buildDomains(heap: Heap, { machine, existingEnd }: Metadata): { roots: number[]; frames: number } {
  const blocks = takeBlocks(heap);
  const tables = blocks.filter(mfn => mfn < existingEnd).flatMap(first =>
    Array.from({ length: BLOCK_FRAMES }, (_, i) => first + i));
  const newTable = (): number => {
    const mfn = tables.pop()!;
    heap.frames.setState(mfn, FRAME_STATE.table);
    machine.u32.fill(0, mfn * FRAME_WORDS, (mfn + 1) * FRAME_WORDS);
    return mfn;
  };
  const put = (table: number, index: number, kind: number, mfn: number): void => {
    machine.u32[table * FRAME_WORDS + 2 * index] = ((mfn << P2M_VALUE_SHIFT) | kind) >>> 0;
  };
  const [roots, middles] = [[] as number[], [] as number[]];
  const leaves = blocks.filter(mfn => mfn >= existingEnd);
  for (const [count, first] of leaves.entries()) {
    if (count % (GFN_LIMIT / P2M_ENTRIES) === 0) roots.push(newTable());
    if (count % P2M_ENTRIES === 0) {
      middles.push(newTable());
      put(roots.at(-1)!, (middles.length - 1) % P2M_ENTRIES, P2M_KIND.node, middles.at(-1)!);
    }
    const leaf = newTable();
    put(middles.at(-1)!, count % P2M_ENTRIES, P2M_KIND.node, leaf);
    for (let i = 0; i < P2M_ENTRIES; i++) put(leaf, i, P2M_KIND.frame, first + i);
  }
  for (const mfn of tables) heap.releaseLater(mfn);
  heap.flushReleases();
  return { roots, frames: leaves.length * BLOCK_FRAMES };
}

/** @param scrubGibPerSecond of one thread, on real frames */
function destroyDomains(heap: Heap, metadata: Metadata, scrubGibPerSecond: number) {
  const { roots, frames } = buildDomains(heap, metadata);
  const p2m = new P2m(heap);
  const before = heap.stats();
  const start = performance.now();
  for (const root of roots) p2m.release(root);
  const detachMicros = (performance.now() - start) * 1000;
  heap.tearDown.finish();
  const giveBackMillis = performance.now() - start;
  while (heap.scrubStep() !== 0);
  const listsMillis = performance.now() - start - giveBackMillis;
  const { used, total } = heap.stats();
  assert(before.used > 0.9 * total && used === 0, 'frames are missing after destroy');
  const gib = frames * FRAME_BYTES / GIB;
  return {
    domains: roots.length, gib: round(gib), detachMicros: round(detachMicros),
    giveBackSeconds: round(giveBackMillis / 1000), giveBackNanosPerFrame: round(giveBackMillis * 1e6 / frames),
    scrubSecondsExtrapolated: round(gib / scrubGibPerSecond + listsMillis / 1000),
  };
}

function measure(sizeBytes: number, scrubGibEachSecond: number) {
  const metadata = metadataOnly(sizeBytes);
  const { machine } = metadata;
  const nanosPerFrame: Record<string, number> = {};
  const timed = (name: string, frames: number, work: () => void): void => {
    const start = performance.now();
    work();
    nanosPerFrame[name] = round((performance.now() - start) * 1e6 / frames);
  };
  timed('initialize', machine.frameEnd, () => Heap.initialize(machine));
  const heap = new Heap(machine, 0);
  const { total } = heap.stats();
  const seen = new Uint8Array(machine.frameEnd);
  const taken: number[] = [];
  const allocate = (count: number): void => {
    for (let i = 0; i < count; i++) {
      const mfn = heap.allocate(1);
      assert(mfn !== 0 && seen[mfn] === 0, 'a frame came twice, or none');
      seen[mfn] = 1;
      taken.push(mfn);
    }
  };
  const free = (): void => {
    for (const mfn of taken) {
      seen[mfn] = 0;
      heap.releaseLater(mfn);
    }
    heap.flushReleases();
    taken.length = 0;
  };
  for (const state of ['cold', 'warm']) {
    timed(`allocate, ${state}`, BATCH, () => allocate(BATCH));
    timed(`free, ${state}`, BATCH, () => free());
    timed(`scrub (lists only), ${state}`, BATCH, () => { while (heap.scrubStep() !== 0); });
  }
  const random = new SeededRandom(1);
  const blocks: number[] = [];
  for (let mfn = heap.allocateBlock(1, HEAP_ORDER_MAX); mfn !== 0; mfn = heap.allocateBlock(1, HEAP_ORDER_MAX)) {
    blocks.push(mfn);
    if (blocks.length * BLOCK_FRAMES > total / 2) break;
  }
  const frames: number[] = [];
  for (let i = 0; i < SCATTERED; i++) {
    const index = random.below(blocks.length);
    const block = blocks[index]!;
    blocks[index] = blocks.at(-1)!;
    blocks.pop();
    for (let j = 0; j < BLOCK_FRAMES; j++) frames.push(block + j);
  }
  timed('free, scattered over half of it', frames.length, () => {
    for (const mfn of frames) heap.releaseLater(mfn);
    heap.flushReleases();
  });
  timed('scrub (lists only), scattered', frames.length, () => { while (heap.scrubStep() !== 0); });
  for (const block of blocks) for (let j = 0; j < BLOCK_FRAMES; j++) heap.releaseLater(block + j);
  heap.flushReleases();
  while (heap.scrubStep() !== 0);
  const destroy = destroyDomains(heap, metadata, scrubGibEachSecond);
  const { clean, cached, dirty, used } = heap.stats();
  assert(used === 0 && clean + cached + dirty === total, 'frames are missing');
  const metadataGib = round(total * RECORD_BYTES / GIB);
  return { sizeGib: sizeBytes / GIB, frames: total, metadataGib, nanosPerFrame, destroy };
}

const benchmark: Benchmark = {
  name: 'heap',
  description: 'the allocator\'s metadata for 16 GiB and for 1 TiB of frames that do not exist',
  async run({ log }) {
    const { scrub } = measureScrubbing().gibPerSecond;
    log(`scrubbing: ${scrub} GiB/s, one thread on real frames`);
    const results = [16 * GIB, TIB].map(sizeBytes => {
      const result = measure(sizeBytes, scrub);
      const { destroy } = result;
      log(`${result.sizeGib} GiB, ns a frame: ${JSON.stringify(result.nanosPerFrame)}`);
      log(`  destroyed: ${destroy.detachMicros} µs, given back in ${destroy.giveBackSeconds} s; `
        + `scrubbed in ${destroy.scrubSecondsExtrapolated} s of one core, extrapolated`);
      return result;
    });
    const [small, large] = results as [typeof results[0], typeof results[0]];
    const largeToSmall = Object.fromEntries(Object.entries(large.nanosPerFrame)
      .map(([name, nanos]) => [name, round(nanos / small.nanosPerFrame[name]!)]));
    return { scrubGibPerSecond: scrub, small, large, largeToSmall, checked: 'no frame twice, none missing' };
  },
};
export default benchmark;
