// Guests with two vCPUs, of Zazen and of QEMU with a thread for each: the same work once, and twice at the same time. What
// is compared is how much longer two take than one (1: they do not get in each other's way; 2: no gain from the second
// CPU), and how long they take. A machine that has no two cores free shows nothing.
//
//   ZAZEN_BENCH_ROUNDS=n   instead of three

import { availableParallelism } from 'node:os';
import { assert } from '../src/base/assert.ts';
import { prepareGuest } from '../src/guest/initramfs.ts';
import { Host } from '../src/host/index.ts';
import { withQemu } from './peers/qemu-guest.ts';
import { WorkingGuest } from './peers/working-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const ROUNDS = Number(process.env['ZAZEN_BENCH_ROUNDS'] ?? 3);
const MEMORY_MIB = 256;
const CPUS = 2;

/** By name: what one of them does, and what that prints. */
const works: Readonly<Record<string, { readonly script: string; readonly output: RegExp }>> = {
  digest: { script: 'head -c 6000000 /dev/zero | sha256sum', output: /^[0-9a-f]{64} {2}-$/ },
  awk: { script: "awk 'BEGIN { for (i = 0; i < 60000; i++) s = (s * 31 + i) % 65521; print s }'", output: /^\d+$/ },
  processes: { script: 'i=0; while [ $i -lt 60 ]; do /bin/true; i=$((i + 1)); done; echo $i', output: /^60$/ },
  pipes: { script: 'head -c 4000000 /dev/zero | cat | cat | wc -c', output: /^4000000$/ },
};
const jobs = (script: string, count: number): string =>
  `${Array.from({ length: count }, () => `(${script}) &`).join('\n')}\nwait`;

const benchmark: Benchmark = {
  name: 'smp',
  description: `the same work once and twice at a time on ${CPUS} vCPUs, against QEMU with a thread for each`,
  async run({ log }) {
    const { kernelPath, initramfsPath } = await prepareGuest({ log });
    await using host = await Host.start({ memory: '1GiB', pcpus: CPUS });
    const guestOptions = { kernelPath, initramfsPath, memoryMib: MEMORY_MIB, cpus: CPUS };
    const zazen = await WorkingGuest.inZazen(host, guestOptions);

    const millis: Record<string, Record<'zazen' | 'qemu', [number[], number[]]>> = {};
    const prepare = async (guest: WorkingGuest): Promise<void> => {
      for (const [name, { script }] of Object.entries(works)) {
        for (let count = 1; count <= CPUS; count++) await guest.keep(`${name}${count}`, jobs(script, count));
        // Code that is compiled the first time would count against the one.
        await guest.run(`${name}${CPUS}`);
      }
    };
    const measure = async (guests: readonly WorkingGuest[]): Promise<void> => {
      for (let number = 0; number < ROUNDS; number++) {
        for (const [name, { output: wanted }] of Object.entries(works)) {
          const samples = millis[name] ??= { zazen: [[], []], qemu: [[], []] };
          for (const guest of guests) {
            for (let count = 1; count <= CPUS; count++) {
              const { millis: took, output } = await guest.run(`${name}${count}`);
              const lines = output.split('\n').slice(1).filter(line => line !== '');
              assert(lines.length === count && lines.every(line => wanted.test(line)), `${name} in ${guest.who} printed ${output}`);
              samples[guest.who][count - 1]!.push(took);
              log(`${name}, ${count} at a time in ${guest.who}: ${round(took)} ms`);
            }
          }
        }
      }
    };
    await prepare(zazen);
    const peer = await withQemu(log, async start => {
      const theirs = await WorkingGuest.inQemu(start, guestOptions);
      await prepare(theirs);
      await measure([zazen, theirs]);
    });
    if (typeof peer === 'string') await measure([zazen]);

    const describe = ([one, two]: [number[], number[]]) => one.length === 0 ? undefined : {
      oneMillis: summarize(one), twoMillis: summarize(two),
      twoOverOne: round(summarize(two.map((millisOfTwo, i) => millisOfTwo / one[i]!)).median),
    };
    return {
      processors: availableParallelism(),
      ...Object.fromEntries(Object.entries(millis).map(([name, { zazen: mine, qemu }]) => {
        const [zazenResult, qemuResult] = [describe(mine)!, describe(qemu)];
        log(`${name}: two take ${zazenResult.twoOverOne} times as long as one${qemuResult === undefined ? ''
          : `, in QEMU ${qemuResult.twoOverOne}; two against QEMU's ${round(qemuResult.twoMillis.median / zazenResult.twoMillis.median)}`}`);
        return [name, { zazen: zazenResult, ...(qemuResult === undefined ? {} : { qemu: qemuResult }) }];
      })),
      ...(typeof peer === 'string' ? { qemu: peer } : {}),
    };
  },
};
export default benchmark;
