// Creating guests: a stock Debian guest from the call to its first instruction, and ten and a hundred of them that wait
// for theirs, and with network cards. The first one of a host reads kernel and initramfs; all others share its frames. In the same run QEMU with
// the same files, from spawning the process until it says that the guest runs. What is checked: the last of a hundred
// boots and does its work, and the host's account of its memory.

import { FRAME_BYTES } from '../src/abi/machine-memory.ts';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Domain } from '../src/host/index.ts';
import { debianGuest, withQemu } from './peers/qemu-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';
import type { Summary } from './statistics.ts';

const MEMORY_MIB = 128;
const MEMORY = `${MEMORY_MIB}MiB`;
const WARM_UP = 20;
const RUNS = 100;
const QEMU_RUNS = 10;
/** As many as a guest may have at last. */
const CARD_COUNTS = [0, 1, 8];
const CARD_RUNS = 30;
const KIB = 1024;
const COMMAND = 'md5sum /init | cut -c1-32';

const usedBytes = (host: Host): number => host.stats().memoryBytes - host.stats().freeBytes;
const turn = (): Promise<void> => new Promise(resolve => { setImmediate(resolve); });

interface FirstInstruction {
  readonly create: Summary;
  readonly firstInstruction: Summary;
}

/** Milliseconds. One guest at a time; its first instruction is a few microseconds after a pCPU has taken it. */
async function measureOneByOne(host: Host, runs: number): Promise<FirstInstruction> {
  const created: number[] = [];
  const run: number[] = [];
  for (let i = 0; i < runs; i++) {
    const start = performance.now();
    const guest = await host.create({ memory: MEMORY });
    created.push(performance.now() - start);
    while (guest.stats().vcpus[0]!.state !== 'running') await turn();
    run.push(performance.now() - start);
    await guest.destroy();
  }
  return { create: summarize(created), firstInstruction: summarize(run) };
}

/** So many that live at once, asked for in one go. */
async function measureMany(host: Host, count: number) {
  const [usedBefore, residentBefore] = [usedBytes(host), process.memoryUsage.rss()];
  const start = performance.now();
  const guests = await Promise.all(Array.from({ length: count }, () => host.create({
    memory: MEMORY, paused: true, exec: COMMAND,
  })));
  const millis = performance.now() - start;
  const frameKib = (usedBytes(host) - usedBefore) / count / KIB;
  const processKib = (process.memoryUsage.rss() - residentBefore) / count / KIB;
  const bootedKib = await checkWorks(guests.at(-1)!) / KIB;
  assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
  await Promise.all(guests.map(guest => guest.destroy()));
  while (host.stats().releasingBytes > 0) await turn();
  return {
    count, millis: round(millis), millisEach: round(millis / count), frameKibEach: round(frameKib),
    processKibEach: round(processKib), frameKibOfOneThatBooted: round(bootedKib),
  };
}

/** Milliseconds to create a paused guest without and with network cards, in turn, and for one card more. */
async function measureCards(host: Host) {
  const millis = CARD_COUNTS.map((): number[] => []);
  for (let run = 0; run < CARD_RUNS; run++) {
    for (const [i, cards] of CARD_COUNTS.entries()) {
      const start = performance.now();
      const guest = await host.create({ memory: MEMORY, paused: true, nics: Array.from({ length: cards }, () => ({})) });
      millis[i]!.push(performance.now() - start);
      assert(guest.stats().nics.length === cards, 'there are cards missing');
      await guest.destroy();
    }
  }
  const [without, one, most] = millis.map(summarize) as [Summary, Summary, Summary];
  return { without, withOne: one, withMost: most, each: round((most.median - without.median) / CARD_COUNTS.at(-1)!) };
}

/** @returns bytes that it owns when it has run its command */
async function checkWorks(guest: Domain): Promise<number> {
  await guest.unpause();
  let output = '';
  for await (const text of guest.exec!.output.setEncoding('utf8')) output += text;
  const { status } = await guest.exec!.result;
  assert(status === 0 && /^[0-9a-f]{32}\n$/.test(output), `the guest answered ${JSON.stringify(output)}`);
  return guest.stats().residentBytes;
}

const benchmark: Benchmark = {
  name: 'create',
  description: `a ${MEMORY_MIB} MiB guest to its first instruction; with network cards; ten and a hundred of them; QEMU until it runs`,
  async run({ log }) {
    await using host = await Host.start();
    const start = performance.now();
    await (await host.create({ memory: MEMORY, paused: true })).destroy();
    const firstMillis = performance.now() - start;
    log(`first guest of the host: ${round(firstMillis)} ms, with reading the files`);
    await measureOneByOne(host, WARM_UP);
    const one = await measureOneByOne(host, RUNS);
    log(`then ${round(one.create.median)} ms, to the first instruction ${round(one.firstInstruction.median)} ms`);
    const cards = await measureCards(host);
    log(`without a network card ${round(cards.without.median)} ms, with one ${round(cards.withOne.median)} ms; ${cards.each} ms each`);
    const many = [await measureMany(host, 10), await measureMany(host, 100)];
    for (const { count, millis, frameKibEach } of many) log(`${count} at once: ${millis} ms, ${frameKibEach} KiB each`);
    const sharedKib = host.stats().cachedBytes / KIB;
    assert(sharedKib * KIB > FRAME_BYTES, 'nothing is shared');
    const qemu = await withQemu(log, async (startQemu) => {
      const guest = await debianGuest(MEMORY_MIB, COMMAND);
      const millis: number[] = [];
      const ownKib: number[] = [];
      for (let i = 0; i < QEMU_RUNS; i++) {
        const spawned = performance.now();
        const peer = await startQemu(guest);
        const { status } = await peer.command('query-status') as { status: string };
        millis.push(performance.now() - spawned);
        assert(status === 'running', `QEMU is ${status}`);
        ownKib.push(peer.ownBytes / KIB);
        await peer.end();
      }
      return { millis: summarize(millis), ownKib: summarize(ownKib).median };
    });
    return {
      firstMillis: round(firstMillis), ...one, cards, many, sharedKib, qemu,
      ratio: typeof qemu === 'string' ? undefined : round(qemu.millis.median / one.firstInstruction.median),
    };
  },
};
export default benchmark;
