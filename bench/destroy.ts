// Destroying a domain: how long `destroy()` takes while the guest runs, from 64 MiB to 3 GiB of touched memory, and
// when the host has given back and scrubbed all of it. In the same run, QEMU with the same guest in it: from the
// command `quit` to the end of the process, within which the kernel frees the memory. Then the scrubber alone against
// `fill` of the same frames, which is the physical limit, and what an allocation costs while a pCPU scrubs against one
// on a host with nothing to do. What is checked: every frame is accounted for, none is missing, and frames that were
// scrubbed are zero.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { systemClock } from '../src/base/clock.ts';
import { systemRandom } from '../src/base/random.ts';
import { HostCore } from '../src/host/host-core.ts';
import { Host } from '../src/host/index.ts';
import { FREE, bareMetalImage, fresh, spin } from '../test/bare-metal.ts';
import { withQemu } from './peers/qemu-guest.ts';
import type { StartQemu } from './peers/qemu-guest.ts';
import type { Benchmark } from './run.ts';
import { measureScrubbing } from './scrubbing.ts';
import { settled } from './settled.ts';
import { round, summarize, summarizeFields } from './statistics.ts';
import type { Summary } from './statistics.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const RUNS: readonly (readonly [sizeMib: number, runs: number])[] = [[64, 15], [400, 10], [1024, 8], [3072, 5]];
const WARM_UP = 20;
/**
 * Every guest is let run for so long before it is destroyed. A large one writes to its memory for most of a second first,
 * in which the host's thread loses to others what it had in caches; what is compared is sizes.
 */
const RUN_ON_MILLIS = 250;
/** What of its memory the guest leaves alone. */
const UNTOUCHED_MIB = 16;
const QEMU_RUNS = 3;
const ALLOCATIONS = 20_000;
const ALLOCATION_ROUNDS = 8;

const QEMU_UART_DATA = 0x0900_0000;
const TOUCHED = '!';

/** Writes to each page, then spins: it is in emitted code when it is destroyed. In QEMU it says when it has written. */
function touchImage(sizeMib: number, isQemu = false): Uint8Array {
  return bareMetalImage({ code: a => {
    const again = fresh('again');
    a.mov(1, FREE).mov(2, (sizeMib - UNTOUCHED_MIB) * 256).label(again).str(1, 1);
    a.add(1, 1, 4095).add(1, 1, 1).subs(2, 2, 1).bCond('ne', again);
    if (isQemu) a.mov(1, QEMU_UART_DATA).mov(2, TOUCHED.charCodeAt(0)).str(2, 1);
    spin(a);
  } });
}

interface Destroyed {
  readonly destroyMillis: number;
  readonly releasedMillis: number;
  readonly cleanMillis: number;
}

async function destroyOne(host: Host, kernel: string, sizeMib: number, runOnMillis = RUN_ON_MILLIS): Promise<Destroyed> {
  const domain = await host.create({ kernel, initrd: 'none', memory: sizeMib * MIB });
  while (domain.stats().residentBytes < (sizeMib - UNTOUCHED_MIB) * MIB) await sleep(2);
  await sleep(runOnMillis);
  const start = performance.now();
  await domain.destroy();
  const destroyMillis = performance.now() - start;
  let stats = host.stats();
  for (; stats.releasingBytes !== 0; stats = host.stats()) await sleep(1);
  const releasedMillis = performance.now() - start;
  for (; stats.dirtyBytes + stats.scrubbingBytes !== 0; stats = host.stats()) await sleep(1);
  return { destroyMillis, releasedMillis, cleanMillis: performance.now() - start };
}

/** Milliseconds from `quit` to the end of a QEMU whose guest has touched its memory. */
async function quitQemu(start: StartQemu, kernelPath: string, sizeMib: number): Promise<Summary> {
  const samples: number[] = [];
  for (let run = 0; run < QEMU_RUNS; run++) {
    const qemu = await start({ kernelPath, cmdline: '', memoryMib: sizeMib });
    await qemu.until(TOUCHED);
    assert(qemu.ownBytes > (sizeMib - UNTOUCHED_MIB) * MIB, 'QEMU has less memory than its guest has written to');
    samples.push(await qemu.quit());
  }
  return summarize(samples);
}

async function measureSize(host: Host, kernel: string, sizeMib: number, runs: number) {
  const { freeBytes } = host.stats();
  const samples: Destroyed[] = [];
  // The first ones compile our code.
  const warmUp = sizeMib === RUNS[0]![0] ? WARM_UP : 1;
  for (let run = 0; run < warmUp; run++) await destroyOne(host, kernel, sizeMib, 0);
  for (let run = 0; run < runs; run++) samples.push(await destroyOne(host, kernel, sizeMib));
  assert(Math.abs(freeBytes - host.stats().freeBytes) < MIB, 'frames are missing after destroy');
  const fields = summarizeFields(samples);
  return { ...fields, backgroundGibPerSecond: round(sizeMib / 1024 / (fields.cleanMillis.median / 1000)) };
}

async function destroyAll(log: (line: string) => void) {
  const directory = mkdtempSync(join(tmpdir(), 'zazen-bench-'));
  const kernelOf = (sizeMib: number): string => join(directory, `touch-${sizeMib}`);
  const sizes: Record<string, unknown> = {};
  const medians: number[] = [];
  try {
    const peers = await withQemu(log, async start => {
      const quits: Record<number, Summary> = {};
      for (const [sizeMib] of RUNS) {
        writeFileSync(kernelOf(sizeMib), touchImage(sizeMib, true));
        quits[sizeMib] = await quitQemu(start, kernelOf(sizeMib), sizeMib);
      }
      return quits;
    });
    await using host = await Host.start({ memory: '4GiB' });
    await settled(host);
    for (const [sizeMib, runs] of RUNS) {
      writeFileSync(kernelOf(sizeMib), touchImage(sizeMib));
      const zazen = await measureSize(host, kernelOf(sizeMib), sizeMib, runs);
      const { median, max } = zazen.destroyMillis;
      const qemu = typeof peers === 'string' ? undefined : peers[sizeMib]!;
      const timesFasterThanQemu = qemu && round(qemu.median / median);
      medians.push(median);
      sizes[`${sizeMib} MiB`] = { ...zazen, qemuQuitMillis: qemu ?? peers, timesFasterThanQemu };
      log(`${sizeMib} MiB: destroy ${round(median)} ms, at most ${round(max)}, `
        + `all clean after ${round(zazen.cleanMillis.median)} ms`
        + (qemu === undefined ? '' : `; QEMU ends after ${round(qemu.median)} ms`));
    }
    assert((await host.audit()).problems.length === 0, 'the audit found something');
  } finally {
    rmSync(directory, { recursive: true });
  }
  const largestToSmallest = round(medians.at(-1)! / medians[0]!);
  return { sizes, medianMillisMax: round(Math.max(...medians)), largestToSmallest };
}

/** Times of single allocations in this thread, while the one pCPU scrubs or sleeps. */
async function allocationTimes(): Promise<Record<string, unknown>> {
  const core = new HostCore({
    memoryBytes: 2 * GIB, pcpus: 1, clock: systemClock, random: systemRandom, log: () => {},
  });
  core.startWorkers();
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
    const scrub = measureScrubbing();
    log(`scrubbing is ${scrub.scrubToFill} of fill`);
    const allocation = await allocationTimes();
    log(`allocation p99 during scrubbing is ${allocation['p99Ratio']} of idle`);
    const checked = 'audit after destroy, free bytes as before, scrubbed frames zero';
    return { ...destroy, scrub, allocation, checked };
  },
};
export default benchmark;
