// The allocator's metadata at a terabyte: frame table and free lists for 2^28 frames, without the frames (4 GiB of
// records; nothing is scrubbed). Time per frame to make the heap, to allocate, to free, and to take and give back blocks
// as the scrubber does, near the bottom of an almost empty heap, after much of it was allocated, and scattered over all of
// it. What is checked: no frame comes twice, and after all is freed the heap has as many frames as at the start.

import { FRAME_BYTES, HEAP_ORDER_MAX } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { SeededRandom } from '../src/base/random.ts';
import { Heap } from '../src/memory/heap.ts';
import type { MachineMemory } from '../src/memory/machine-memory.ts';
import type { Benchmark } from './run.ts';
import { round } from './statistics.ts';

const TIB = 2 ** 40;
const GIB = 2 ** 30;
const RECORD_BYTES = 16;
const HEAP_BYTES = 2 ** 20;
const WASM_PAGE_BYTES = 65536;
const BATCH = 1_000_000;
/** Blocks of 2 MiB that are taken so that frames come from all over the heap. */
const SCATTERED = 2048;

/** What Heap uses of a machine memory, for frames that do not exist. */
function metadataOnly(sizeBytes: number): MachineMemory {
  const frameEnd = sizeBytes / FRAME_BYTES;
  const pages = (frameEnd * RECORD_BYTES + HEAP_BYTES) / WASM_PAGE_BYTES;
  const memory = new WebAssembly.Memory({
    initial: BigInt(pages), maximum: BigInt(pages), shared: true, address: 'i64',
  });
  const regions: Record<string, { offsetBytes: number }> = {
    heap: { offsetBytes: 0 }, frameTable: { offsetBytes: HEAP_BYTES },
  };
  return {
    u32: new Uint32Array(memory.buffer), firstFrame: 2 ** HEAP_ORDER_MAX, frameEnd, parameters: { domainCount: 16 },
    region: (name: string) => regions[name]!, zeroFrame: () => {},
  } as unknown as MachineMemory;
}

function measure(sizeBytes: number): Record<string, unknown> {
  const machine = metadataOnly(sizeBytes);
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
    if (blocks.length * 2 ** HEAP_ORDER_MAX > total / 2) break;
  }
  const frames: number[] = [];
  for (let i = 0; i < SCATTERED; i++) {
    const index = random.below(blocks.length);
    const block = blocks[index]!;
    blocks[index] = blocks.at(-1)!;
    blocks.pop();
    for (let j = 0; j < 2 ** HEAP_ORDER_MAX; j++) frames.push(block + j);
  }
  timed('free, scattered over half of it', frames.length, () => {
    for (const mfn of frames) heap.releaseLater(mfn);
    heap.flushReleases();
  });
  timed('scrub (lists only), scattered', frames.length, () => { while (heap.scrubStep() !== 0); });
  timed('free half of the heap', blocks.length * 2 ** HEAP_ORDER_MAX, () => {
    for (const block of blocks) for (let j = 0; j < 2 ** HEAP_ORDER_MAX; j++) heap.releaseLater(block + j);
    heap.flushReleases();
  });
  const { clean, cached, dirty, used } = heap.stats();
  assert(used === 0 && clean + cached + dirty === total, 'frames are missing');
  return { sizeGib: sizeBytes / GIB, frames: total, metadataGib: round(total * RECORD_BYTES / GIB), nanosPerFrame };
}

const benchmark: Benchmark = {
  name: 'heap',
  description: 'the allocator\'s metadata for 16 GiB and for 1 TiB of frames that do not exist',
  async run({ log }) {
    const results = [16 * GIB, TIB].map(sizeBytes => {
      const result = measure(sizeBytes);
      log(`${result['sizeGib']} GiB: ${JSON.stringify(result['nanosPerFrame'])}`);
      return result;
    });
    return { results, checked: 'no frame twice, none missing' };
  },
};
export default benchmark;
