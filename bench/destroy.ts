// Destroying a domain: how long `destroy()` takes while the guest runs, from 64 MiB to 3 GiB of touched memory, and when
// the host has given back and scrubbed all of it. Then the scrubber alone against `fill` of the same frames, and what an
// allocation costs while a pCPU scrubs against one on a host with nothing to do. What is checked: every frame is
// accounted for, none is missing, and frames that were scrubbed are zero.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { FRAME_BYTES, FRAME_WORDS } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { systemClock } from '../src/base/clock.ts';
import { systemRandom } from '../src/base/random.ts';
import { HostCore } from '../src/host/host-core.ts';
import { Host } from '../src/host/index.ts';
import { Heap } from '../src/memory/heap.ts';
import { MachineMemory } from '../src/memory/machine-memory.ts';
import { FREE, bareMetalImage, fresh, spin } from '../test/hostile/bare-metal.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const RUNS: readonly (readonly [sizeMib: number, runs: number])[] = [[64, 30], [400, 15], [1024, 8], [3072, 5]];
const WARM_UP = 20;
/** What of its memory the guest leaves alone. */
const UNTOUCHED_MIB = 16;
const SCRUB_ROUNDS = 5;
const SCRUB_BYTES = GIB;
const ALLOCATIONS = 20_000;
const ALLOCATION_ROUNDS = 8;

/** Writes to each page, then spins: it is in emitted code when it is destroyed. */
function touchImage(sizeMib: number): Uint8Array {
  return bareMetalImage({ code: a => {
    const again = fresh('again');
    a.mov(1, FREE).mov(2, (sizeMib - UNTOUCHED_MIB) * 256).label(again).str(1, 1);
    a.add(1, 1, 4095).add(1, 1, 1).subs(2, 2, 1).bCond('ne', again);
    spin(a);
  } });
}

interface Destroyed {
  readonly destroyMillis: number;
  readonly releasedMillis: number;
  readonly cleanMillis: number;
}

async function destroyOne(host: Host, kernel: string, sizeMib: number): Promise<Destroyed> {
  const domain = await host.create({ kernel, initrd: 'none', memory: sizeMib * MIB });
  while (domain.stats().residentBytes < (sizeMib - UNTOUCHED_MIB) * MIB) await sleep(2);
  const start = performance.now();
  await domain.destroy();
  const destroyMillis = performance.now() - start;
  let stats = host.stats();
  for (; stats.releasingBytes !== 0; stats = host.stats()) await sleep(1);
  const releasedMillis = performance.now() - start;
  for (; stats.dirtyBytes + stats.scrubbingBytes !== 0; stats = host.stats()) await sleep(1);
  return { destroyMillis, releasedMillis, cleanMillis: performance.now() - start };
}

async function destroyAll(log: (line: string) => void): Promise<Record<string, unknown>> {
  const directory = mkdtempSync(join(tmpdir(), 'zazen-bench-'));
  const results: Record<string, unknown> = {};
  await using host = await Host.start({ memory: '4GiB' });
  try {
    const { freeBytes } = host.stats();
    for (const [sizeMib, runs] of RUNS) {
      const kernel = join(directory, `touch-${sizeMib}`);
      writeFileSync(kernel, touchImage(sizeMib));
      const samples: Destroyed[] = [];
      // The first ones compile our code.
      const warmUp = sizeMib === RUNS[0]![0] ? WARM_UP : 1;
      for (let run = 0; run < runs + warmUp; run++) samples.push(await destroyOne(host, kernel, sizeMib));
      samples.splice(0, warmUp);
      const { freeBytes: freeAfter } = host.stats();
      assert(Math.abs(freeBytes - freeAfter) < MIB, 'frames are missing after destroy');
      const pick = (field: keyof Destroyed) => {
        const { median, p99, max } = summarize(samples.map(sample => sample[field]));
        return { median: round(median), p99: round(p99), max: round(max) };
      };
      const background = pick('cleanMillis');
      results[`${sizeMib} MiB`] = {
        destroyMillis: pick('destroyMillis'), releasedMillis: pick('releasedMillis'), cleanMillis: background,
        backgroundGibPerSecond: round(sizeMib / 1024 / (background.median / 1000)),
      };
      log(`${sizeMib} MiB: destroy ${pick('destroyMillis').median} ms, all clean after ${background.median} ms`);
    }
    assert((await host.audit()).problems.length === 0, 'the audit found something');
  } finally {
    rmSync(directory, { recursive: true });
  }
  return results;
}

/** One thread, one GiB of frames that were written: scrubbed, and filled with zeros in one call. */
function scrubAlone(): Record<string, unknown> {
  const machine = MachineMemory.create({ sizeBytes: 2 * GIB });
  Heap.initialize(machine);
  const heap = new Heap(machine, 0);
  const rates = { scrub: [] as number[], fill: [] as number[] };
  const frames = SCRUB_BYTES / FRAME_BYTES;
  const timed = (samples: number[], work: () => void): void => {
    const start = performance.now();
    work();
    samples.push(SCRUB_BYTES / GIB / ((performance.now() - start) / 1000));
  };
  for (let count = 0; count <= SCRUB_ROUNDS; count++) {
    const mfns: number[] = [];
    for (let i = 0; i < frames; i++) mfns.push(heap.allocate(0));
    const first = mfns.reduce((least, mfn) => Math.min(least, mfn));
    const area = machine.u8.subarray(first * FRAME_BYTES, first * FRAME_BYTES + SCRUB_BYTES);
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

/** Times of single allocations in this thread, while the one pCPU scrubs or sleeps. */
async function allocationTimes(): Promise<Record<string, unknown>> {
  const core = new HostCore({
    memoryBytes: 2 * GIB, pcpus: 1, clock: systemClock, random: systemRandom, log: () => {},
  });
  await core.startWorkers();
  const { heap, scheduling } = core.thread;
  const idle: number[] = [];
  const scrubbing: number[] = [];
  /** @param keepGoing false ends it early */
  const allocate = (samples: number[], keepGoing: () => boolean): number[] => {
    const mfns: number[] = [];
    for (let i = 0; i < ALLOCATIONS && (i % 64 !== 0 || keepGoing()); i++) {
      const start = process.hrtime.bigint();
      const mfn = heap.allocate(0);
      samples.push(Number(process.hrtime.bigint() - start));
      mfns.push(mfn);
    }
    return mfns;
  };
  const untilClean = async () => {
    scheduling.wakeIdlePcpus();
    while (heap.hasIdleWork || heap.stats().scrubbing !== 0) await sleep(1);
  };
  const drop = (mfns: readonly number[]): void => {
    for (const mfn of mfns) heap.releaseLater(mfn);
    heap.flushReleases();
  };
  for (let count = 0; count <= ALLOCATION_ROUNDS; count++) {
    if (count === 1) idle.length = scrubbing.length = 0;
    await untilClean();
    const kept = allocate(idle, () => true);
    const load: number[] = [];
    for (let i = 0; i < GIB / FRAME_BYTES; i++) load.push(heap.allocate(0, true));
    drop(load);
    scheduling.wakeIdlePcpus();
    while (heap.stats().scrubbing === 0 && heap.hasIdleWork);
    kept.push(...allocate(scrubbing, () => heap.hasIdleWork));
    drop(kept);
  }
  await untilClean();
  assert(core.audit().problems.length === 0, 'the audit found something');
  await core.close();
  const [idleNanos, scrubbingNanos] = [summarize(idle), summarize(scrubbing)];
  return { idleNanos, scrubbingNanos, p99Ratio: round(scrubbingNanos.p99 / idleNanos.p99) };
}

const benchmark: Benchmark = {
  name: 'destroy',
  description: 'destroy of 64 MiB to 3 GiB, scrubbing against fill, allocation meanwhile',
  async run({ log }) {
    const destroy = await destroyAll(log);
    const scrub = scrubAlone();
    log(`scrubbing is ${scrub['scrubToFill']} of fill`);
    const allocation = await allocationTimes();
    log(`allocation p99 during scrubbing is ${allocation['p99Ratio']} of idle`);
    return { destroy, scrub, allocation, checked: 'audit after destroy, free bytes as before, scrubbed frames zero' };
  },
};
export default benchmark;
