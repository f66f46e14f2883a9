// Forks of a booted guest, up to a thousand that live at once in one host, paused: time and memory of each. Then a
// hundred that run (running-forks.ts). What is checked: some of them answer, and the host's account of its memory. A
// frame that was never used before counts twice, as a frame and as memory of the process: the sum of both is the most
// that a fork can have cost.
//
// QEMU has no fork. The nearest is a new process that starts from a file with the guest's state (which is in the page
// cache): from the start of the process until the guest has answered a command, against the same of a fork that runs at
// once. Its memory is what the process has to itself: the guest's RAM and QEMU's own heap, code and libraries not
// counted.

import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Checkpoint, Domain } from '../src/host/index.ts';
import { GUEST_CMDLINE, WAITING_COMMAND, aliveQuestion, checkAlive, waitingGuest } from './busy-guest.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import type { Benchmark } from './run.ts';
import { RUNNING_FORKS, measureRunning } from './running-forks.ts';
import { settled } from './settled.ts';
import { round, summarize, summarizeFields } from './statistics.ts';

const MEMORY_MIB = 128;
const FORKS = 1000;
const CHECKED = 10;
const ANSWERS = 20;
const QEMU_STARTS = 5;
const KIB = 1024;

const usedBytes = (host: Host): number => host.stats().memoryBytes - host.stats().freeBytes;

/** A thousand that are paused and live until the host is closed. */
async function forkPaused(host: Host, checkpoint: Checkpoint) {
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
  const frameKibEach = round((usedBytes(host) - usedBefore) / FORKS / KIB);
  const processKibEach = round((process.memoryUsage.rss() - residentBefore) / FORKS / KIB);
  const step = FORKS / CHECKED;
  for (let i = 0; i < FORKS; i += step) {
    await forks[i]!.unpause();
    await checkAlive(forks[i]!);
  }
  const ranKib = summarize(forks.filter((_, i) => i % step === 0).map(fork => fork.stats().residentBytes / KIB));
  return {
    micros: summarize(micros), frameKibEach, processKibEach, kibEach: round(frameKibEach + processKibEach),
    frameKibOfOneThatRan: ranKib.median, checked: CHECKED,
  };
}

/** One at a time, from the wish for it to its answer. */
async function forkAndAsk(checkpoint: Checkpoint) {
  const samples: number[] = [];
  for (let i = 0; i < ANSWERS; i++) {
    const start = performance.now();
    const [fork] = await checkpoint.fork(1);
    await checkAlive(fork!);
    samples.push(performance.now() - start);
    await fork!.destroy();
  }
  return summarize(samples);
}

async function measureZazen() {
  await using host = await Host.start();
  const origin = await waitingGuest(host, `${MEMORY_MIB}MiB`);
  await settled(host);
  const checkpoint = await origin.checkpoint();
  const answerMillis = await forkAndAsk(checkpoint);
  const paused = await forkPaused(host, checkpoint);
  assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
  return { paused, answerMillis };
}

function startFromFile(log: (line: string) => void) {
  return withQemu(log, async (start, folder) => {
    const path = join(folder, 'state');
    const guest = await debianGuest(MEMORY_MIB, `echo waiting; ${WAITING_COMMAND}`, GUEST_CMDLINE);
    const ask = async (number: number, incoming?: string) => {
      const begin = performance.now();
      const qemu = await start(guest, incoming);
      if (incoming === undefined) await qemu.until('waiting');
      else await qemu.resume();
      const question = aliveQuestion(number);
      qemu.write(question.command);
      await qemu.until(question.answer);
      const answerMillis = performance.now() - begin;
      const ownKib = qemu.ownBytes / KIB;
      if (incoming === undefined) await qemu.save(path);
      await qemu.end();
      return { answerMillis, ownKib };
    };
    await ask(1);
    const samples: Awaited<ReturnType<typeof ask>>[] = [];
    for (let i = 0; i < QEMU_STARTS; i++) samples.push(await ask(i + 2, path));
    return summarizeFields(samples);
  });
}

const benchmark: Benchmark = {
  name: 'fork',
  description: `${FORKS} live forks of a booted ${MEMORY_MIB} MiB guest, ${RUNNING_FORKS} that run; against QEMU TCG`,
  async run({ log }) {
    const { paused, answerMillis } = await measureZazen();
    log(`${round(paused.micros.median)} µs each, p99 ${round(paused.micros.p99)}, at most ${round(paused.micros.max)}, `
      + `${paused.frameKibEach} KiB of frames, ${paused.processKibEach} KiB of process`);
    const qemu = await startFromFile(log);
    const timesFasterThanQemu = typeof qemu === 'string' ? undefined
      : round(qemu.answerMillis.median / answerMillis.median);
    log(`${round(answerMillis.median)} ms from the wish for a fork to its answer`
      + (timesFasterThanQemu === undefined ? '' : `; a QEMU from a file takes ${timesFasterThanQemu} times as long`));
    const running = await measureRunning(log);
    return { paused, answerMillis, qemu, timesFasterThanQemu, running, checked: 'answers of forks, audit' };
  },
};
export default benchmark;
