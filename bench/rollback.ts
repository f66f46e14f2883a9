// Rolling a busy guest back that has dirtied some tens of pages since the checkpoint, and a thousand, again and again
// to the same one. What is checked: the guest's checksums, and the host's account of its memory.
//
// The guest runs until the host's statistics say that it owns so many frames more than at the checkpoint: pages that it
// has written to, and the tables above them. That is the number of pages reported; the guest may write to one more
// until it stands still.
//
// In the same run, of the same guest in QEMU: snapshot-load, which reads the whole snapshot however little was dirtied,
// from a qcow2 file that is in the page cache. And, as the physical limit, copying so many pages.

import { setTimeout as sleep } from 'node:timers/promises';
import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import { BusyGuest, GUEST_CMDLINE, busyCommand, untilRounds, verifyRounds } from './busy-guest.ts';
import { pageCopyMicros } from './page-copy.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import type { QemuPause } from './peers/qemu-monitor.ts';
import type { Benchmark } from './run.ts';
import { settled } from './settled.ts';
import { round, summarizeFields } from './statistics.ts';

const MEMORY_MIB = 128;
const ROUND_BYTES = 4_000_000;
/** What the guest may have dirtied in one go before we look is more than this. */
const CASES = { few: { pages: 50, rollbacks: 200 }, many: { pages: 1000, rollbacks: 30 } };
const WARM_UP = 50;
const SNAPSHOT_LOADS = 5;
const PERIOD_MILLIS = 20;

interface Sample {
  readonly dirtiedPages: number;
  readonly stopMicros: number;
  readonly downtimeMicros: number;
  readonly totalMicros: number;
}

async function measureZazen() {
  await using host = await Host.start();
  const guest = await BusyGuest.start(host, `${MEMORY_MIB}MiB`, ROUND_BYTES);
  await settled(host);
  // It dirties hundreds of pages before somebody looks what it has owned.
  await guest.domain.pause();
  await using checkpoint = await guest.domain.checkpoint();
  const ownedBytes = guest.domain.stats().residentBytes;
  await guest.domain.unpause();
  const dirtied = (): number => (guest.domain.stats().residentBytes - ownedBytes) / FRAME_BYTES;
  const rollBack = async (pages: number): Promise<Sample> => {
    // What the last one has replaced is given back behind it.
    while (host.stats().releasingBytes !== 0) await sleep(1);
    while (dirtied() < pages) await new Promise(setImmediate);
    const dirtiedPages = dirtied();
    const { stopMicros, downtimeMicros, totalMicros } = await guest.domain.rollback(checkpoint);
    return { dirtiedPages, stopMicros, downtimeMicros, totalMicros };
  };
  const measure = async ({ pages, rollbacks }: { pages: number; rollbacks: number }) => {
    const samples: Sample[] = [];
    for (let i = 0; i < rollbacks; i++) samples.push(await rollBack(pages));
    return summarizeFields(samples);
  };
  for (let i = 0; i < WARM_UP; i++) await rollBack(CASES.few.pages);
  const cases = { few: await measure(CASES.few), many: await measure(CASES.many) };
  guest.forget();
  await guest.untilRounds(4);
  const rounds = guest.verify();
  assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
  return { ...cases, rounds };
}

function measureQemu(log: (line: string) => void) {
  return withQemu(log, async start => {
    await using qemu = await start(await debianGuest(MEMORY_MIB, busyCommand(ROUND_BYTES), GUEST_CMDLINE));
    await untilRounds(qemu, 2);
    await qemu.addSnapshotFile();
    await qemu.saveSnapshot('base');
    const loads: QemuPause[] = [];
    for (let i = 0; i < SNAPSHOT_LOADS; i++) {
      await sleep(PERIOD_MILLIS);
      loads.push(await qemu.loadSnapshot('base'));
    }
    const lastLoad = qemu.output.length;
    await untilRounds(qemu, 4, lastLoad);
    return { snapshotLoad: summarizeFields(loads), rounds: verifyRounds(qemu.output.slice(lastLoad), ROUND_BYTES) };
  });
}

const benchmark: Benchmark = {
  name: 'rollback',
  description: `rollbacks of a busy ${MEMORY_MIB} MiB guest to one checkpoint, against QEMU TCG`,
  async run({ log }) {
    const zazen = await measureZazen();
    const qemu = await measureQemu(log);
    const report = (name: keyof typeof CASES) => {
      const { totalMicros, dirtiedPages } = zazen[name];
      const copied = pageCopyMicros(dirtiedPages.median);
      const timesQemu = typeof qemu === 'string' ? undefined
        : round(qemu.snapshotLoad.downtimeMicros.median / totalMicros.median);
      log(`${round(totalMicros.median)} µs with ${dirtiedPages.median} pages dirtied, p99 ${round(totalMicros.p99)}, `
        + `at most ${round(totalMicros.max)}; the pages copied in ${round(copied.median)}`
        + (timesQemu === undefined ? '' : `; QEMU is down ${timesQemu} times as long`));
      return {
        ...zazen[name], pageCopyMicros: copied, timesPageCopy: round(totalMicros.median / copied.median),
        timesFasterThanQemu: timesQemu,
      };
    };
    const cases = { few: report('few'), many: report('many') };
    return { ...cases, qemu, rounds: zazen.rounds, checked: 'checksums that the guests compute, audit' };
  },
};
export default benchmark;
