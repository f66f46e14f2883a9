// Frames in any order as pieces of memory, as few as there can be.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import type { PageMemory } from './checksum.ts';

/** Stretches of consecutive frames. */
export function* frameStretches(mfns: Uint32Array): Generator<{ start: number; mfn: number; count: number }> {
  for (let start = 0; start < mfns.length;) {
    let end = start + 1;
    while (end < mfns.length && mfns[end] === mfns[end - 1]! + 1) end++;
    yield { start, mfn: mfns[start]!, count: end - start };
    start = end;
  }
}

/** For one request that reads pages into frames: the fewer the stretches, the better. */
export function buffersOf(machine: PageMemory, { mfns }: { readonly mfns: Uint32Array }): Uint8Array[] {
  return [...frameStretches(mfns)].map(({ mfn, count }) =>
    machine.u8.subarray(mfn * FRAME_BYTES, (mfn + count) * FRAME_BYTES));
}
