// The second part of `npm start` without a terminal: what can be done to a running guest, and how long each takes, beside
// the five complaints about another hypervisor that Zazen sets out to settle (numbers as their reporters measured them).

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { orAborted } from '../base/abort.ts';
import type { Checkpoint, Domain, Host } from '../host/types.ts';
import { formatColumns } from './table.ts';

const CHECKPOINTS = 100;
const FORKS = 10;
/** From the first line of input on it writes memory and says so, over and over. */
const WORKLOAD = 'read -r begin; i=0; while :; do i=$((i+1)); head -c 65536 /dev/urandom > /tmp/busy; echo "turn $i"; done';

const millis = (value: number): string => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;

async function timed<T>(work: () => Promise<T>): Promise<[result: T, millis: number]> {
  const start = performance.now();
  return [await work(), performance.now() - start];
}

/**
 * Resolves when the guest has put out another whole line. What is read first it has said before; the line after that may have been
 * on its way when a guest was saved, so it is the next one but one.
 */
async function nextOutput(domain: Domain): Promise<void> {
  const stream = domain.attachConsole();
  try {
    let text = '';
    let first = -1;
    for await (const chunk of stream) {
      text += String(chunk);
      const turn = Number(/.*turn (\d+)\r?\n/s.exec(text)?.[1] ?? -1);
      if (first < 0) first = turn;
      else if (turn > first + 1) return;
    }
  } finally {
    stream.destroy();
  }
}

const SETTLE_MAX_MILLIS = 5000;
const SETTLE_LOOK_MILLIS = 20;

/**
 * What a host puts off while its first guest boots would fall into what is measured, and the guest, which is at rest until then, has it begin.
 * @returns a row of the table
 */
async function settleRow(host: Host, domain: Domain, signal: AbortSignal): Promise<string[]> {
  await orAborted(domain.exec!.started, signal);
  const settle = async (): Promise<void> => {
    const latest = performance.now() + SETTLE_MAX_MILLIS;
    while (!host.stats().isSettled && performance.now() < latest) await delay(SETTLE_LOOK_MILLIS, undefined, { signal });
  };
  const [, waitedMillis] = await timed(async () => {
    await settle();
    // The first checkpoint has more of it run in advance.
    await using _ = await domain.checkpoint();
    await settle();
  });
  const how = host.stats().isSettled ? '' : ', and has not yet';
  return ['the host settles first', `${millis(waitedMillis)}${how}`, '-'];
}

/** Everything that it makes is gone when it returns or throws. @returns a table for people */
export async function lifeTour(host: Host, signal: AbortSignal): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-tour-'));
  try {
    await using domain = await host.create({ exec: WORKLOAD, name: 'tour', cmdline: 'quiet' }, { signal });
    domain.exec!.output.resume();
    const rows = [await settleRow(host, domain, signal)];
    domain.exec!.input.write('begin\n');
    await nextOutput(domain);
    rows.push(await checkpointRow(domain, signal));
    await using checkpoint = await domain.checkpoint();
    rows.push(...await fileRows(host, domain, join(folder, 'guest.core'), signal));
    rows.push(...await memoryRows(domain, checkpoint));
    const [, destroyMillis] = await timed(() => domain.destroy());
    rows.push(['destroy', millis(destroyMillis), '1 TB: 10 minutes (scrubbed before it returned)']);
    return formatColumns(['a running guest of 400 MiB', 'here', 'reported of another hypervisor'], rows, new Set());
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function checkpointRow(domain: Domain, signal: AbortSignal): Promise<string[]> {
  const downtimes: number[] = [];
  for (let i = 0; i < CHECKPOINTS; i++) {
    signal.throwIfAborted();
    await using checkpoint = await domain.checkpoint();
    downtimes.push(checkpoint.stats.downtimeMicros / 1000);
  }
  const text = `median ${millis(median(downtimes))}, longest ${millis(Math.max(...downtimes))}`;
  return [`${CHECKPOINTS} checkpoints, downtime`, text, 'median 4.9 to 134 ms for 128 MB'];
}

async function fileRows(host: Host, domain: Domain, path: string, signal: AbortSignal): Promise<string[][]> {
  const [saved, saveMillis] = await timed(() => domain.save(path, { signal }));
  const [, dumpMillis] = await timed(() => domain.dumpCore(path, { signal }));
  const [restored, restoreMillis] = await timed(() => host.restore(path, { name: 'tour-restored', signal }));
  const [, outputMillis] = await timed(() => nextOutput(restored));
  await restored.destroy();
  const how = saved.direct ? 'past the page cache' : 'through the page cache: no direct I/O there';
  return [
    [`save, ${(saved.bytesWritten / 2 ** 20).toFixed(0)} MiB`, `${millis(saveMillis)}, ${how}`, 'through the page cache: the host thrashes'],
    ['dump-core', millis(dumpMillis), 'likewise'],
    ['restore', `${millis(restoreMillis)}, output after ${millis(restoreMillis + outputMillis)}`, '2.7 to 9.2 s for 400 MB'],
  ];
}

async function memoryRows(domain: Domain, checkpoint: Checkpoint): Promise<string[][]> {
  const [forks, forkMillis] = await timed(() => checkpoint.fork(FORKS));
  for (const fork of forks) await nextOutput(fork);
  await Promise.all(forks.map((fork) => fork.destroy()));
  const [, rollbackMillis] = await timed(() => domain.rollback(checkpoint));
  await nextOutput(domain);
  return [
    [`fork of ${FORKS}`, `${millis(forkMillis)}, ${millis(forkMillis / FORKS)} each`, '-'],
    ['rollback', millis(rollbackMillis), '-'],
  ];
}
