// Real programs in a guest of Zazen and in one of QEMU, in turn: the same kernel, initramfs and memory, both booted once
// and waiting for work on their consoles. A program's time is that of the outside: from the line that names it until
// the line that it has ended. What is checked: status and output of every run, which must be the same everywhere.
//
//   ZAZEN_BENCH_PROGRAMS=a,b   only these programs
//   ZAZEN_BENCH_ROUNDS=n       instead of three

import { assert } from '../src/base/assert.ts';
import { prepareGuest } from '../src/guest/initramfs.ts';
import { fetchPackages } from '../src/guest/packages.ts';
import { Host } from '../src/host/index.ts';
import { packages, programs } from './compute-programs.ts';
import type { Program } from './compute-programs.ts';
import { withQemu } from './peers/qemu-guest.ts';
import { WorkingGuest } from './peers/working-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const ROUNDS = Number(process.env['ZAZEN_BENCH_ROUNDS'] ?? 3);
const MEMORY_MIB = 640;

function chosenPrograms(): readonly Program[] {
  const wanted = process.env['ZAZEN_BENCH_PROGRAMS']?.split(',');
  return wanted === undefined ? programs : programs.filter(({ name }) => wanted.includes(name));
}

export const geometricMean = (values: readonly number[]): number =>
  Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);

const benchmark: Benchmark = {
  name: 'compute',
  description: `real programs in a guest of ${MEMORY_MIB} MiB, against QEMU TCG`,
  async run({ log }) {
    const chosen = chosenPrograms();
    const tree = await fetchPackages(packages, { withDependencies: true, log });
    const { kernelPath, initramfsPath } = await prepareGuest({ trees: [tree], log });
    await using host = await Host.start({ memory: '1GiB', pcpus: 1 });
    const zazen = await WorkingGuest.inZazen(host, { initramfsPath, memoryMib: MEMORY_MIB });
    await zazen.prepare(chosen);

    const millis: Record<string, Record<'zazen' | 'qemu', number[]>> = {};
    const outputs = new Map<string, string>();
    const measure = async (guests: readonly WorkingGuest[]): Promise<void> => {
      for (let number = 1; number <= ROUNDS; number++) {
        for (const { name } of chosen) {
          const samples = millis[name] ??= { zazen: [], qemu: [] };
          for (const guest of guests) {
            const ran = await guest.run(name);
            samples[guest.who].push(ran.millis);
            const known = outputs.get(name);
            if (known === undefined) outputs.set(name, ran.output);
            else assert(known === ran.output, `${name} in ${guest.who} printed\n${ran.output}instead of\n${known}`);
          }
          const [mine, theirs] = [samples.zazen.at(-1)!, samples.qemu.at(-1)];
          log(`${name}: ${round(mine)} ms${theirs === undefined ? '' : `, qemu ${round(theirs)} ms: ${round(theirs / mine)}`}`);
        }
      }
    };
    const peer = await withQemu(log, async start => {
      const theirs = await WorkingGuest.inQemu(start, { kernelPath, initramfsPath, memoryMib: MEMORY_MIB });
      await theirs.prepare(chosen);
      await measure([zazen, theirs]);
    });
    if (typeof peer === 'string') await measure([zazen]);

    const result = Object.fromEntries(Object.entries(millis).map(([name, { zazen: mine, qemu }]) => [name, {
      zazenMillis: summarize(mine), firstMillis: round(mine[0]!),
      ...(qemu.length === 0 ? {} : { qemuMillis: summarize(qemu) }),
    }]));
    if (typeof peer === 'string') return { programs: result, qemu: peer };
    const timesQemu = Object.fromEntries(Object.entries(millis).map(([name, { zazen: mine, qemu }]) =>
      [name, round(summarize(qemu.map((theirs, i) => theirs / mine[i]!)).median)]));
    const ratios = Object.values(timesQemu);
    return { programs: result, timesQemu, slowest: Math.min(...ratios), geometricMean: round(geometricMean(ratios)) };
  },
};
export default benchmark;
