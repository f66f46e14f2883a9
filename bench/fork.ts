// Forks of a booted guest, up to a thousand that live at once in one host: time and memory of each. What is checked:
// some of them answer, and the host's account of its memory.

import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Domain } from '../src/host/index.ts';
import { checkAlive, waitingGuest } from './busy-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const FORKS = 1000;
const CHECKED = 10;
const KIB = 1024;

const usedBytes = (host: Host): number => host.stats().memoryBytes - host.stats().freeBytes;

const benchmark: Benchmark = {
  name: 'fork',
  description: `${FORKS} live forks of a booted 128 MiB guest`,
  async run({ log }) {
    await using host = await Host.start();
    const origin = await waitingGuest(host, '128MiB');
    const checkpoint = await origin.checkpoint();
    const [usedBefore, residentBefore] = [usedBytes(host), process.memoryUsage.rss()];
    const forks: Domain[] = [];
    const micros: number[] = [];
    for (let i = 0; i < FORKS; i++) {
      const start = performance.now();
      forks.push(...await checkpoint.fork([{ paused: true }]));
      micros.push((performance.now() - start) * 1000);
      // What the fork has set off gets its turn.
      await new Promise(setImmediate);
    }
    const frameKib = (usedBytes(host) - usedBefore) / FORKS / KIB;
    const processKib = (process.memoryUsage.rss() - residentBefore) / FORKS / KIB;
    const microsEach = round(summarize(micros).median);
    log(`${microsEach} µs each, ${round(frameKib)} KiB of frames, ${round(processKib)} KiB of process`);
    const step = FORKS / CHECKED;
    for (let i = 0; i < FORKS; i += step) {
      await forks[i]!.unpause();
      await checkAlive(forks[i]!);
    }
    const runningKib = summarize(forks.filter((_, i) => i % step === 0).map(fork => fork.stats().residentBytes / KIB));
    assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
    return {
      micros: summarize(micros), frameKibEach: round(frameKib), processKibEach: round(processKib),
      frameKibOfOneThatRan: runningKib.median, checked: CHECKED,
    };
  },
};
export default benchmark;
