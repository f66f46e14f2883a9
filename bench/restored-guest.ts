// A restored guest of the benchmark `restore`: from the call until it is there, until it runs, and until it speaks.

import { assert } from '../src/base/assert.ts';
import type { Domain, Host, RestoreOptions } from '../src/host/index.ts';

/** Of what is said, so much is looked at: more than a console keeps. */
export const TAIL_CHARS = 2 ** 17;

export interface Sample {
  readonly restoreMillis: number;
  /** Until a vCPU has retired its first instruction. */
  readonly firstInstructionMillis: number;
  /** Until the first line that the guest had not written when it was saved. */
  readonly firstOutputMillis: number;
  /** Requests by the guest for pages that it touched, until then. */
  readonly touchRequests: number;
}

/** How fast a guest is from the moment it is let go, in million instructions a second, and what was compiled for it. */
export interface Speed {
  readonly firstTenthMips: number;
  readonly firstSecondMips: number;
  /** What it comes to. */
  readonly secondSecondMips: number;
  /** Regions compiled in the first second: others were found. */
  readonly regionsCompiled: number;
}

const SECOND_MILLIS = 1000;

/** @param domain paused; it is destroyed */
export async function measureSpeed(host: Host, domain: Domain): Promise<Speed> {
  const { regions } = host.stats().codeCache;
  const retired = domain.stats().instructionsRetired;
  const start = performance.now();
  const millionsAt = async (millis: number): Promise<{ seconds: number; millions: number }> => {
    await new Promise(resolve => { setTimeout(resolve, millis - (performance.now() - start)); });
    const millions = (domain.stats().instructionsRetired - retired) / 1e6;
    return { seconds: (performance.now() - start) / SECOND_MILLIS, millions };
  };
  await domain.unpause();
  const tenth = await millionsAt(SECOND_MILLIS / 10);
  const first = await millionsAt(SECOND_MILLIS);
  const regionsCompiled = host.stats().codeCache.regions - regions;
  const second = await millionsAt(2 * SECOND_MILLIS);
  await domain.destroy();
  return {
    firstTenthMips: tenth.millions / tenth.seconds, firstSecondMips: first.millions / first.seconds,
    secondSecondMips: (second.millions - first.millions) / (second.seconds - first.seconds), regionsCompiled,
  };
}

export interface SavedAt {
  readonly counter: number;
  readonly instructionsRetired: number;
}

/** Of the last whole line. */
export const counterIn = (text: string): number => Number(/.*tick-(\d+)-/s.exec(text)?.[1] ?? Number.NaN);

export async function measureRestore(
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
