// Boots the same kernel and initramfs in Zazen and in QEMU TCG in turn: time from nothing (for Zazen: an importing
// process; for QEMU: a process start) to the first line of init, until the guest has powered off, instructions, MIPS.
// Zazen boots twice in each round: as for the first time ever, with an empty store of compiled regions, and then with what that
// boot has left in it, as every later boot of a user. The same once more with emulated devices (type hvm). Then the cost of an
// idle guest. What is checked: the guest's command says where it runs, and has computed something.

import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import { initReached } from '../src/guest/init-script.ts';
import { withOwnStore } from './own-store.ts';
import { debianGuest } from './peers/qemu-guest.ts';
import { bootQemu, findQemu, qemuMissing } from './peers/qemu.ts';
import type { QemuBoot } from './peers/qemu.ts';
import type { Benchmark } from './run.ts';
import { round, summarize, summarizeFields } from './statistics.ts';

const RUNS = 3;
const MEMORY_MIB = 400;
const IDLE_MILLIS = 5000;
const COMMAND = 'cat /sys/hypervisor/type 2>/dev/null; echo answer-$((6*7))';
const ANSWER = 'answer-42';

interface ZazenBoot {
  readonly bootMillis: number;
  readonly totalMillis: number;
  readonly hostStartMillis: number;
  readonly instructions: number;
  readonly mips: number;
  readonly guestTouchedMib: number;
  readonly processResidentMib: number;
  /** Regions that former boots have left and this one has made use of. */
  readonly foundRegions: number;
}

/** The first words say where it runs. */
const WORDS = { pvh: 'xen\n', hvm: '' };

async function bootZazen(type: 'pvh' | 'hvm'): Promise<ZazenBoot> {
  const start = performance.now();
  await using host = await Host.start();
  const hostStartMillis = performance.now() - start;
  const domain = await host.create({ type, exec: COMMAND, memory: `${MEMORY_MIB}MiB`, cmdline: 'quiet' });
  const command = domain.exec!;
  let bootMillis: number | undefined;
  let log = '';
  command.log.setEncoding('utf8').on('data', (text: string) => {
    log += text;
    if (bootMillis === undefined && log.includes(initReached)) bootMillis = performance.now() - start;
  });
  let output = '';
  command.output.setEncoding('utf8').on('data', (text: string) => { output += text; });
  const { status } = await command.result;
  assert(await domain.waitForShutdown() === 'poweroff', 'the guest did not power off');
  assert(status === 0 && output === `${WORDS[type]}${ANSWER}\n`, 'the guest did not say where it runs');
  const totalMillis = performance.now() - start;
  const { instructionsRetired, runMillis, residentBytes } = domain.stats();
  return {
    bootMillis: bootMillis!, totalMillis, hostStartMillis, instructions: instructionsRetired,
    mips: instructionsRetired / runMillis / 1000, guestTouchedMib: residentBytes / 2 ** 20,
    processResidentMib: process.memoryUsage.rss() / 2 ** 20, foundRegions: host.stats().codeCache.foundRegions,
  };
}

interface Round {
  readonly firstEver: ZazenBoot;
  readonly withStore: ZazenBoot;
  readonly hvm: ZazenBoot;
  readonly storeMib: number;
}

const bootRound = (): Promise<Round> => withOwnStore(async folder => {
  const firstEver = await bootZazen('pvh');
  const storeBytes = readdirSync(folder).filter(name => name.endsWith('.regions')).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
  assert(firstEver.foundRegions === 0 && storeBytes > 0, 'the store was not empty, or is');
  const withStore = await bootZazen('pvh');
  assert(withStore.foundRegions > 0, 'nothing of the store was made use of');
  return { firstEver, withStore, hvm: await bootZazen('hvm'), storeMib: storeBytes / 2 ** 20 };
});

/** Share of one core that the process uses while a guest sits at its shell prompt. */
async function idleShare(): Promise<number> {
  await using host = await Host.start();
  const domain = await host.create({ memory: `${MEMORY_MIB}MiB`, cmdline: 'quiet' });
  await new Promise<void>(resolve => {
    let text = '';
    domain.console.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      if (text.includes('root@')) resolve();
    });
  });
  await sleep(2000);
  const before = process.cpuUsage();
  await sleep(IDLE_MILLIS);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000 / IDLE_MILLIS;
}

const benchmark: Benchmark = {
  name: 'boot',
  description: `stock Debian kernel to init, ${MEMORY_MIB} MiB, against QEMU TCG`,
  async run({ log }) {
    const guest = await debianGuest(MEMORY_MIB, COMMAND, 'quiet', log);
    const qemu = findQemu();
    if (qemu === undefined) log(qemuMissing);
    const rounds: Round[] = [];
    const peer: Omit<QemuBoot, 'output'>[] = [];
    for (let run = 0; run < RUNS; run++) {
      const last = await bootRound();
      rounds.push(last);
      log(`zazen ${round(last.withStore.bootMillis)} ms to init, ${round(last.withStore.mips)} MIPS; for the first time ${round(last.firstEver.bootMillis)} ms; `
        + `with emulated devices ${round(last.hvm.bootMillis)} ms`);
      if (qemu === undefined) continue;
      const { output, ...times } = await bootQemu(qemu, { ...guest, marker: initReached });
      assert(output.includes(ANSWER), 'the guest in QEMU did not get to its command');
      peer.push(times);
      log(`qemu ${round(peer.at(-1)!.bootMillis)} ms to init`);
    }
    const zazen = rounds.map(({ withStore }) => withStore);
    const hvm = rounds.map(one => one.hvm);
    const boot = summarize(zazen.map(one => one.bootMillis));
    const first = summarize(rounds.map(({ firstEver }) => firstEver.bootMillis));
    const idle = await withOwnStore(idleShare);
    const last = zazen.at(-1)!;
    const toQemu = (millis: number): number | undefined =>
      qemu === undefined ? undefined : round(millis / summarize(peer.map(one => one.bootMillis)).median);
    return {
      zazen: {
        bootMillis: boot, totalMillis: summarize(zazen.map(one => one.totalMillis)),
        hostStartMillis: round(last.hostStartMillis), instructions: last.instructions,
        mips: round(summarize(zazen.map(one => one.mips)).median),
        guestTouchedMib: round(last.guestTouchedMib), processResidentMib: round(last.processResidentMib),
        idleCoreShare: round(idle), foundRegions: last.foundRegions, storeMib: round(rounds.at(-1)!.storeMib),
      },
      firstEver: {
        bootMillis: first, totalMillis: summarize(rounds.map(({ firstEver }) => firstEver.totalMillis)),
        mips: round(summarize(rounds.map(({ firstEver }) => firstEver.mips)).median),
      },
      hvm: {
        bootMillis: summarize(hvm.map(one => one.bootMillis)), totalMillis: summarize(hvm.map(one => one.totalMillis)),
        // Of each round, so that a round in which the machine was slow counts as no more than one.
        toParavirtual: round(summarize(hvm.map((one, i) => one.bootMillis / zazen[i]!.bootMillis)).median),
        instructionsToParavirtual: round(hvm.at(-1)!.instructions / last.instructions),
      },
      qemu: qemu === undefined ? qemuMissing : summarizeFields(peer),
      ratio: toQemu(boot.median), firstEverRatio: toQemu(first.median),
    };
  },
};
export default benchmark;
