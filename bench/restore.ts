// Restore of a 400 MiB guest that prints a counter all the time, by the shell alone: lazy and eager from an image that
// the host does not know, lazy without reading ahead, and once more from an image that it has; against QEMU, whose way
// starts with a process. Measured from the call until `restore` has returned, until the guest has retired an instruction,
// and until its first line after that. The same once in each of some new processes, whose hosts have never run a guest;
// there also from the start of the process. What is checked: the counter goes on from where it was saved, without a gap or a
// repetition, and the memory is accounted for. Then how fast a guest is in its first second, and how much is compiled for it:
// a fork, a guest restored in the host that has run it before, and one restored in a new host.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { text as textOf } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { compileCacheFolder } from '../src/base/cache-folder.ts';
import { Host } from '../src/host/index.ts';
import type { Domain, RestoreOptions } from '../src/host/index.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import { TAIL_CHARS, counterIn, measureRestore, measureSpeed } from './restored-guest.ts';
import type { Sample, SavedAt, Speed } from './restored-guest.ts';
import type { Benchmark } from './run.ts';
import { settled } from './settled.ts';
import { round, summarize, summarizeFields } from './statistics.ts';

const RUNS = 15;
const QEMU_RUNS = 5;
const FRESH_RUNS = 5;
const SPEED_RUNS = 5;
const MEMORY_MIB = 400;
/** Nothing but the shell itself: no process is started, and nobody sleeps. */
const COMMAND = 'i=0; while :; do i=$((i+1)); echo tick-$i-; done';
const MARK = 'tick-1000-';
/** A paused guest has said everything when nothing has come for so long. */
const QUIET_MILLIS = 5;
/** Runs so long between one save and the next: a save leaves its TLBs empty. */
const RUN_MILLIS = 20;

interface FreshSample extends Sample {
  /** From the start of the process until its guest's first line. */
  readonly processMillis: number;
}

const ways: Readonly<Record<string, RestoreOptions>> = {
  lazy: {}, withoutReadAhead: { readAhead: false }, eager: { lazy: false },
};

const sleep = (millis: number): Promise<void> => new Promise(resolve => { setTimeout(resolve, millis); });

async function measureZazen(folder: string) {
  const path = join(folder, 'guest.core');
  await using host = await Host.start();
  const source = await host.create({ exec: COMMAND, memory: `${MEMORY_MIB}MiB`, cmdline: 'quiet', name: 'source' });
  let text = '';
  let heardMillis = 0;
  source.exec!.output.setEncoding('utf8').on('data', (chunk: string) => {
    text = text.slice(-TAIL_CHARS) + chunk;
    heardMillis = performance.now();
  });
  while (!text.includes(MARK)) await sleep(1);
  await settled(host);
  const samples: Record<string, Sample[]> = {};
  const note = (way: string, sample: Sample): void => { (samples[way] ??= []).push(sample); };
  /** A new file, of which the host knows nothing. */
  const saveAnew = async (): Promise<SavedAt> => {
    await source.unpause();
    await sleep(RUN_MILLIS);
    await source.pause();
    while (performance.now() - heardMillis < QUIET_MILLIS) await sleep(1);
    const saved = { counter: counterIn(text), instructionsRetired: source.stats().instructionsRetired };
    await source.save(path);
    return saved;
  };
  let image: unknown;
  for (let run = 0; run < RUNS; run++) {
    for (const [way, options] of Object.entries(ways)) {
      const saved = await saveAnew();
      const { domain, sample } = await measureRestore(host, path, saved, options);
      note(way, sample);
      if (way === 'lazy') {
        await domain.load();
        image = domain.stats().image;
        await domain.destroy();
        const again = await measureRestore(host, path, saved, options);
        note('again', again.sample);
        await again.domain.destroy();
      } else await domain.destroy();
    }
  }
  const saved = await saveAnew();
  const speed = await measureSpeeds(host, source, path);
  assert((await host.audit()).problems.length === 0, 'frames are lost');
  return { samples, image, speed, fresh: await measureFresh(path, saved) };
}

/** Whether code that was compiled before is found again: by a fork, and by a guest whose pages come from a file. */
async function measureSpeeds(host: Host, source: Domain, path: string) {
  const speeds: Record<'fork' | 'restored', Speed[]> = { fork: [], restored: [] };
  for (let run = 0; run < SPEED_RUNS; run++) {
    await using checkpoint = await source.checkpoint();
    const [fork] = await checkpoint.fork([{ paused: true }]);
    speeds.fork.push(await measureSpeed(host, fork!));
    speeds.restored.push(await measureSpeed(host, await host.restore(path, { name: 'restored', paused: true })));
  }
  return { fork: summarizeFields(speeds.fork), restored: summarizeFields(speeds.restored) };
}

/** Each in a process of its own. */
async function measureFresh(path: string, saved: SavedAt) {
  const samples: FreshSample[] = [];
  const speeds: Speed[] = [];
  for (let run = 0; run < FRESH_RUNS; run++) {
    const start = performance.now();
    const program = fileURLToPath(new URL('./fresh-restore.ts', import.meta.url));
    // As the launcher has it: with the compile cache on from the start, Node reads no TypeScript at all.
    const env = { ...process.env, NODE_COMPILE_CACHE: compileCacheFolder() };
    const child = spawn(process.execPath, [program, path, JSON.stringify(saved)], { env, stdio: ['ignore', 'pipe', 'inherit'] });
    const lines = textOf(child.stdout);
    const spoken = new Promise<number>(resolve => child.stdout.once('data', () => resolve(performance.now() - start)));
    const [said, processMillis] = await Promise.all([lines, spoken]);
    const [sample, speed] = said.split('\n');
    samples.push({ ...JSON.parse(sample!) as Sample, processMillis });
    speeds.push(JSON.parse(speed!) as Speed);
  }
  return { samples, speed: summarizeFields(speeds) };
}

async function measureQemu(log: (line: string) => void) {
  const setup = await debianGuest(MEMORY_MIB, COMMAND);
  return withQemu(log, async (start, folder) => {
    const path = join(folder, 'qemu.state');
    const firstOutput: number[] = [];
    for (let run = 0; run < QEMU_RUNS; run++) {
      const source = await start(setup);
      await source.until(MARK);
      await source.save(path);
      await source.end();
      const began = performance.now();
      const target = await start(setup, path);
      await target.resume();
      await target.until('tick-');
      firstOutput.push(performance.now() - began);
      await target.end();
    }
    return summarize(firstOutput);
  });
}

const summaries = (samples: readonly Sample[]) => ({
  restoreMillis: summarize(samples.map(({ restoreMillis }) => restoreMillis)),
  firstInstructionMillis: summarize(samples.map(({ firstInstructionMillis }) => firstInstructionMillis)),
  firstOutputMillis: summarize(samples.map(({ firstOutputMillis }) => firstOutputMillis)),
  touchRequests: summarize(samples.map(({ touchRequests }) => touchRequests)).median,
});

const benchmark: Benchmark = {
  name: 'restore',
  description: `restore of a running ${MEMORY_MIB} MiB guest, lazy and eager, against QEMU TCG`,
  async run({ log }) {
    // Beside the project: temporary folders may lie in memory.
    const folder = mkdtempSync(join(process.cwd(), '.cache-bench-'));
    try {
      const { samples, image, speed: found, fresh } = await measureZazen(folder);
      const speed = { ...found, newHost: fresh.speed };
      const zazen = Object.fromEntries(Object.entries(samples).map(([way, list]) => [way, summaries(list)]));
      const freshProcess = {
        ...summaries(fresh.samples), processMillis: summarize(fresh.samples.map(({ processMillis }) => processMillis)),
      };
      const firstOutputMillis = await measureQemu(log);
      if (typeof firstOutputMillis === 'string') return { zazen, freshProcess, speed, image, qemu: firstOutputMillis };
      const ratio = (way: string): number => round(firstOutputMillis.median / zazen[way]!.firstOutputMillis.median);
      return {
        zazen, freshProcess, speed, image, qemu: { firstOutputMillis },
        timesFasterThanQemu: { lazy: ratio('lazy'), again: ratio('again'), eager: ratio('eager') },
      };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};
export default benchmark;
