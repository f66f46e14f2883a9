// The physical limit of whatever has to keep or put back pages: copying so many of them from one place in memory to
// another, with the instruction that the product copies with. Scattered over 128 MiB each time as a guest's are, so
// they do not all come from the caches.

import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { SeededRandom } from '../src/base/random.ts';
import { frameOperations } from '../src/memory/frame-operations.ts';
import { summarize } from './statistics.ts';
import type { Summary } from './statistics.ts';

const AREA_FRAMES = 2 ** 15;
const WASM_PAGE_BYTES = 65536;
const ROUNDS = 30;
const WARM_UP = 10;

/** @returns microseconds for all of the pages */
export function pageCopyMicros(pages: number): Summary {
  const size = 2 * AREA_FRAMES * FRAME_BYTES / WASM_PAGE_BYTES;
  const memory = new WebAssembly.Memory({ initial: size, maximum: size, shared: true });
  // Pages that nobody wrote to would all be one page of the operating system's.
  new Uint8Array(memory.buffer).fill(1);
  const operations = frameOperations(memory, 'i32');
  const random = new SeededRandom(1);
  const samples: number[] = [];
  for (let count = -WARM_UP; count < ROUNDS; count++) {
    const frames = Array.from({ length: pages }, () => random.below(AREA_FRAMES));
    const start = performance.now();
    for (const frame of frames) operations.copy(AREA_FRAMES + frame, frame);
    if (count >= 0) samples.push((performance.now() - start) * 1000);
  }
  return summarize(samples);
}
