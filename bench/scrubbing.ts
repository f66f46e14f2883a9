// The scrubber against its physical limit: one GiB of frames that were written to, scrubbed, lists and all, and filled
// with zeros in one call of `fill`.

import { FRAME_BYTES, FRAME_WORDS } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { Heap } from '../src/memory/heap.ts';
import { MachineMemory } from '../src/memory/machine-memory.ts';
import { round, summarize } from './statistics.ts';

const GIB = 2 ** 30;
const SCRUB_ROUNDS = 5;

/** One thread. What is checked: frames that were scrubbed are zero. @returns medians */
export function measureScrubbing() {
  const machine = MachineMemory.create({ sizeBytes: 2 * GIB });
  Heap.initialize(machine);
  const heap = new Heap(machine, 0);
  const rates = { scrub: [] as number[], fill: [] as number[] };
  const frames = GIB / FRAME_BYTES;
  const timed = (samples: number[], work: () => void): void => {
    const start = performance.now();
    work();
    samples.push(1000 / (performance.now() - start));
  };
  for (let count = 0; count <= SCRUB_ROUNDS; count++) {
    const mfns: number[] = [];
    for (let i = 0; i < frames; i++) mfns.push(heap.allocate(0));
    const first = mfns.reduce((least, mfn) => Math.min(least, mfn));
    const area = machine.u8.subarray(first * FRAME_BYTES, first * FRAME_BYTES + GIB);
    for (const mfn of mfns) machine.u32.fill(0xdead, mfn * FRAME_WORDS, (mfn + 1) * FRAME_WORDS);
    for (const mfn of mfns) heap.releaseLater(mfn);
    heap.flushReleases();
    timed(rates.scrub, () => { while (heap.scrubStep() !== 0); });
    for (const mfn of mfns) {
      for (let i = 0; i < FRAME_WORDS; i++) assert(machine.u32[mfn * FRAME_WORDS + i] === 0, 'a frame is not zero');
    }
    timed(rates.fill, () => area.fill(0));
  }
  const gibPerSecond = Object.fromEntries(Object.entries(rates)
    .map(([name, samples]) => [name, round(summarize(samples.slice(1)).median)])) as Record<keyof typeof rates, number>;
  return { gibPerSecond, scrubToFill: round(gibPerSecond.scrub / gibPerSecond.fill) };
}
