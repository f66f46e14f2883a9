// Restore of a 400 MiB guest that prints a counter all the time, by the shell alone: lazy and eager from an image that
// the host does not know, lazy without reading ahead, and once more from an image that it has; against QEMU, whose way
// starts with a process. Measured from the call until `restore` has returned, until the guest has retired an instruction,
// and until its first line after that. What is checked: the counter goes on from where it was saved, without a gap or a
// repetition, and the memory is accounted for.

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Domain, RestoreOptions } from '../src/host/index.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const RUNS = 15;
const QEMU_RUNS = 5;
const MEMORY_MIB = 400;
/** Nothing but the shell itself: no process is started, and nobody sleeps. */
const COMMAND = 'i=0; while :; do i=$((i+1)); echo tick-$i-; done';
const MARK = 'tick-1000-';
/** Of what is said, so much is looked at: more than a console keeps. */
const TAIL_CHARS = 2 ** 17;
/** A paused guest has said everything when nothing has come for so long. */
const QUIET_MILLIS = 5;
/** Runs so long between one save and the next: a save leaves its TLBs empty. */
const RUN_MILLIS = 20;

interface Sample {
  readonly restoreMillis: number;
  /** Until a vCPU has retired its first instruction. */
  readonly firstInstructionMillis: number;
  /** Until the first line that the guest had not written when it was saved. */
  readonly firstOutputMillis: number;
  /** Requests by the guest for pages that it touched, until then. */
  readonly touchRequests: number;
}

interface SavedAt {
  readonly counter: number;
  readonly instructionsRetired: number;
}

const ways: Readonly<Record<string, RestoreOptions>> = {
  lazy: {}, withoutReadAhead: { readAhead: false }, eager: { lazy: false },
};

const sleep = (millis: number): Promise<void> => new Promise(resolve => { setTimeout(resolve, millis); });

/** Of the last whole line. */
const counterIn = (text: string): number => Number(/.*tick-(\d+)-/s.exec(text)?.[1] ?? Number.NaN);

async function measure(
  host: Host, path: string, saved: SavedAt, options: RestoreOptions,
): Promise<{ domain: Domain; sample: Sample }> {
  const start = performance.now();
  const domain = await host.restore(path, { name: 'restored', ...options });
  const restoreMillis = performance.now() - start;
  const stream = domain.attachConsole();
  let text = '';
  const output = new Promise<number>(resolve => stream.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    // The console begins with what it had shown before; only a counter beyond that is news.
    if (counterIn(text.slice(-TAIL_CHARS)) > saved.counter) resolve(performance.now() - start);
  }));
  while (domain.stats().instructionsRetired <= saved.instructionsRetired) {
    await new Promise(resolve => setImmediate(resolve));
  }
  const firstInstructionMillis = performance.now() - start;
  const firstOutputMillis = await output;
  const { touchRequests } = domain.stats().image!;
  stream.destroy();
  const counters = Array.from(text.matchAll(/tick-(\d+)-/g), ([, counter]) => Number(counter));
  const news = counters.findIndex(counter => counter > saved.counter);
  assert(counters[news] === saved.counter + 1 && counters[news - 1] === saved.counter,
    'the counter does not go on where it was saved');
  return { domain, sample: { restoreMillis, firstInstructionMillis, firstOutputMillis, touchRequests } };
}

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
  const samples: Record<string, Sample[]> = {};
  const note = (way: string, sample: Sample): void => { (samples[way] ??= []).push(sample); };
  let image: unknown;
  for (let run = 0; run < RUNS; run++) {
    for (const [way, options] of Object.entries(ways)) {
      await source.unpause();
      await sleep(RUN_MILLIS);
      await source.pause();
      while (performance.now() - heardMillis < QUIET_MILLIS) await sleep(1);
      const saved = { counter: counterIn(text), instructionsRetired: source.stats().instructionsRetired };
      // A new file for each: nothing of it is known.
      await source.save(path);
      const { domain, sample } = await measure(host, path, saved, options);
      note(way, sample);
      if (way === 'lazy') {
        await domain.load();
        image = domain.stats().image;
        await domain.destroy();
        const again = await measure(host, path, saved, options);
        note('again', again.sample);
        await again.domain.destroy();
      } else await domain.destroy();
    }
  }
  assert((await host.audit()).problems.length === 0, 'frames are lost');
  return { samples, image };
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
      const { samples, image } = await measureZazen(folder);
      const zazen = Object.fromEntries(Object.entries(samples).map(([way, list]) => [way, summaries(list)]));
      const firstOutputMillis = await measureQemu(log);
      if (typeof firstOutputMillis === 'string') return { zazen, image, qemu: firstOutputMillis };
      const ratio = (way: string): number => round(firstOutputMillis.median / zazen[way]!.firstOutputMillis.median);
      return {
        zazen, image, qemu: { firstOutputMillis },
        timesFasterThanQemu: { lazy: ratio('lazy'), again: ratio('again'), eager: ratio('eager') },
      };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};
export default benchmark;
