// Forks of a booted guest that run from the start, each guest at its prompt and waking for its timers: what a fork
// costs among them, how busy they keep the host, when they answer. Part of the benchmark `fork`. What is checked: some
// of them answer, all are still there, all can be destroyed, and the host's account of its memory.

import { setTimeout as sleep } from 'node:timers/promises';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Domain } from '../src/host/index.ts';
import { checkAlive, waitingGuest } from './busy-guest.ts';
import { round, summarize } from './statistics.ts';

/** A thousand keep two cores busy with nothing but their timers; a few hundred do where the cores are not all ours. */
export const RUNNING_FORKS = 100;
const CHECKED = 10;
const KIB = 1024;
/** How long the forks are left alone before they are asked. */
const REST_MILLIS = 5000;

const usedBytes = (host: Host): number => host.stats().memoryBytes - host.stats().freeBytes;
const busyMillis = (host: Host): number => host.stats().pcpus.reduce((sum, pcpu) => sum + pcpu.busyMillis, 0);

export async function measureRunning(log: (line: string) => void) {
  await using host = await Host.start();
  const origin = await waitingGuest(host, '128MiB');
  const checkpoint = await origin.checkpoint();
  const usedBefore = usedBytes(host);
  const forks: Domain[] = [];
  const micros: number[] = [];
  for (let i = 0; i < RUNNING_FORKS; i++) {
    const begin = performance.now();
    forks.push(...await checkpoint.fork());
    micros.push((performance.now() - begin) * 1000);
    // What the fork has set off gets its turn.
    await new Promise(setImmediate);
  }
  log(`running: ${round(summarize(micros).median)} µs each`);
  const [busyBefore, restStart] = [busyMillis(host), performance.now()];
  await sleep(REST_MILLIS);
  const busyPcpus = (busyMillis(host) - busyBefore) / (performance.now() - restStart);
  const frameKib = (usedBytes(host) - usedBefore) / RUNNING_FORKS / KIB;
  log(`${round(busyPcpus)} pCPUs busy with ${RUNNING_FORKS} guests at their prompts, `
    + `${round(frameKib)} KiB of frames each`);
  const answerMillis: number[] = [];
  for (let i = 0; i < RUNNING_FORKS; i += RUNNING_FORKS / CHECKED) {
    const start = performance.now();
    await checkAlive(forks[i]!);
    answerMillis.push(performance.now() - start);
  }
  assert(forks.every(fork => fork.state === 'running'), 'a fork has stopped');
  const destroyMicros: number[] = [];
  for (const fork of forks) {
    const start = performance.now();
    await fork.destroy();
    destroyMicros.push((performance.now() - start) * 1000);
  }
  await checkpoint.destroy();
  assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
  const { median: destroyMedian } = summarize(destroyMicros);
  log(`the first answers after ${round(answerMillis[0]!)} ms; destroyed in ${round(destroyMedian)} µs each`);
  return {
    forks: RUNNING_FORKS, micros: summarize(micros), busyPcpus: round(busyPcpus), frameKibEach: round(frameKib),
    answerMillis: summarize(answerMillis), destroyMicros: summarize(destroyMicros), checked: CHECKED,
  };
}
