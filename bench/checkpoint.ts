// Checkpoints of a guest that writes to its memory all the time: how long the guest stands still. Small and large guest
// in one run: the size must not matter. What is checked: the guest's checksums, and the host's account of its memory.
//
// In the same run, of the same guest in QEMU:
//   stop and cont   less than a checkpoint: nothing is kept. The least that any way of QEMU's could cost
//   snapshot-save   a checkpoint, into a qcow2 file by way of the page cache, not synced
// and, as the physical limit, copying the pages that were dirtied between two checkpoints.
//
// Of each checkpoint is noted how long the threads that it takes waited for a core meanwhile, and the longest ones are
// reported with that: on a machine with nothing else to do, what is left of them is our own.
//
//   ZAZEN_BENCH_CHECKPOINTS: how many (100), for a histogram of more

import { setTimeout as sleep } from 'node:timers/promises';
import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Domain } from '../src/host/index.ts';
import { BusyGuest, GUEST_CMDLINE, busyCommand, untilRounds, verifyRounds } from './busy-guest.ts';
import { pageCopyMicros } from './page-copy.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import type { QemuPause } from './peers/qemu-monitor.ts';
import { RunDelays } from './run-delay.ts';
import type { CoreUse } from './run-delay.ts';
import type { Benchmark } from './run.ts';
import { settled } from './settled.ts';
import { histogram, round, summarizeFields } from './statistics.ts';

const CHECKPOINTS = Number(process.env['ZAZEN_BENCH_CHECKPOINTS'] ?? 100);
const WARM_UP = 50;
const PERIOD_MILLIS = 20;
const ROUND_BYTES = 4_000_000;
const SNAPSHOTS = 5;
const SIZES_MIB = { small: 128, large: 3072 };
const HISTOGRAM_MICROS = [125, 150, 175, 200, 250, 300, 400, 600, 1000, 2000, 4000];
const LONGEST = 5;

interface Sample extends CoreUse {
  readonly stopMicros: number;
  readonly downtimeMicros: number;
  readonly dirtiedPages: number;
}

/**
 * What a domain owns at a checkpoint: every page that is written to afterwards is its own again, as are the tables above it.
 * A guest that runs has written to many before anybody can look.
 */
async function ownedWhenClean(domain: Domain): Promise<number> {
  await domain.pause();
  const checkpoint = await domain.checkpoint();
  const { residentBytes } = domain.stats();
  await checkpoint.destroy();
  await domain.unpause();
  return residentBytes;
}

async function measureZazen(memoryMib: number) {
  await using host = await Host.start({ memory: '4GiB' });
  const guest = await BusyGuest.start(host, `${memoryMib}MiB`, ROUND_BYTES);
  await settled(host);
  const cleanBytes = await ownedWhenClean(guest.domain);
  const samples: Sample[] = [];
  const delays = new RunDelays();
  for (let i = -WARM_UP; i < CHECKPOINTS; i++) {
    delays.begin();
    await using checkpoint = await guest.domain.checkpoint();
    const coreUse = delays.end();
    const { stopMicros, downtimeMicros } = checkpoint.stats;
    await sleep(PERIOD_MILLIS);
    const dirtiedPages = (guest.domain.stats().residentBytes - cleanBytes) / FRAME_BYTES;
    if (i >= 0) samples.push({ stopMicros, downtimeMicros, dirtiedPages, ...coreUse });
  }
  await guest.untilRounds(guest.rounds + 2);
  const rounds = guest.verify();
  assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
  const longest = samples.toSorted((a, b) => b.downtimeMicros - a.downtimeMicros).slice(0, LONGEST);
  const downtimes = histogram(samples.map(({ downtimeMicros }) => downtimeMicros), HISTOGRAM_MICROS);
  return { ...summarizeFields(samples), downtimes, longest, rounds };
}

function measureQemu(memoryMib: number, log: (line: string) => void) {
  return withQemu(log, async start => {
    await using qemu = await start(await debianGuest(memoryMib, busyCommand(ROUND_BYTES), GUEST_CMDLINE));
    await untilRounds(qemu, 2);
    const pauses: QemuPause[] = [];
    for (let i = 0; i < CHECKPOINTS; i++) {
      pauses.push(await qemu.pauseAndContinue());
      await sleep(PERIOD_MILLIS);
    }
    await qemu.addSnapshotFile();
    const snapshots: QemuPause[] = [];
    for (let i = 0; i < SNAPSHOTS; i++) {
      snapshots.push(await qemu.saveSnapshot(`snapshot-${i}`));
      await sleep(PERIOD_MILLIS);
    }
    await untilRounds(qemu, 2, qemu.output.length);
    const rounds = verifyRounds(qemu.output, ROUND_BYTES);
    return { pauseAndContinue: summarizeFields(pauses), snapshotSave: summarizeFields(snapshots), rounds };
  });
}

async function measure(memoryMib: number, log: (line: string) => void) {
  const zazen = await measureZazen(memoryMib);
  const copied = pageCopyMicros(Math.round(zazen.dirtiedPages.median));
  const qemu = await measureQemu(memoryMib, log);
  const { median, p99, max } = zazen.downtimeMicros;
  const timesQemu = (peer: { median: number }): number => round(peer.median / median);
  const ratios = typeof qemu === 'string' ? undefined : {
    stopAndCont: timesQemu(qemu.pauseAndContinue.downtimeMicros),
    snapshotSave: timesQemu(qemu.snapshotSave.downtimeMicros),
  };
  log(`${memoryMib} MiB: down ${round(median)} µs, p99 ${round(p99)}, at most ${round(max)}; `
    + `${Math.round(zazen.dirtiedPages.median)} pages dirtied between, copied in ${round(copied.median)}`
    + (ratios === undefined ? '' : `; QEMU is down ${ratios.stopAndCont} times as long for stop and cont, `
      + `${ratios.snapshotSave} for a snapshot`));
  return {
    zazen, qemu, pageCopyMicros: copied, timesFasterThanQemu: ratios, timesPageCopy: round(median / copied.median),
  };
}

const benchmark: Benchmark = {
  name: 'checkpoint',
  description: `${CHECKPOINTS} checkpoints of a busy guest, 128 MiB and 3 GiB, against QEMU TCG`,
  async run({ log }) {
    const small = await measure(SIZES_MIB.small, log);
    const large = await measure(SIZES_MIB.large, log);
    const largeToSmall = round(large.zazen.downtimeMicros.median / small.zazen.downtimeMicros.median);
    return { small, large, largeToSmall, checked: 'checksums that the guests compute, audit' };
  },
};
export default benchmark;
