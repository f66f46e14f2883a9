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
import { GUEST_CMDLINE } from './busy-guest.ts';
import { packages, programs } from './compute-programs.ts';
import type { Program } from './compute-programs.ts';
import { withQemu } from './peers/qemu-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const ROUNDS = Number(process.env['ZAZEN_BENCH_ROUNDS'] ?? 3);
const MEMORY_MIB = 640;

/** Takes one line for each step: a name, to be run; or a name and a script in base64, to be kept under it. */
export const COMMAND = `cd /tmp; export LC_ALL=C; echo @ready; while read -r name script; do
if [ -n "$script" ]; then echo "$script" | base64 -d >"$name.sh"; echo "@kept $name"
else sh "$name.sh" >"$name.out" 2>&1; echo "@done $name $?"; cat "$name.out"; echo "@end $name"; fi; done`;

/** A guest that waits for lines. */
export interface Console {
  readonly who: 'zazen' | 'qemu';
  write(text: string): void;
  /** Resolves when a text has come, counted from the last time. @returns what came until then */
  until(text: string): Promise<string>;
}

export interface Ran {
  readonly millis: number;
  readonly output: string;
}

export async function keep(console: Console, name: string, script: string): Promise<void> {
  console.write(`${name} ${Buffer.from(script).toString('base64')}\n`);
  await console.until(`@kept ${name}`);
}

export async function run(console: Console, name: string): Promise<Ran> {
  const start = performance.now();
  console.write(`${name}\n`);
  await console.until(`@done ${name} `);
  const millis = performance.now() - start;
  const output = (await console.until(`@end ${name}`)).replaceAll('\r', '');
  assert(output.startsWith('0\n'), `${console.who} ran ${name} with status ${output}`);
  return { millis, output };
}

/** `until` over text that is fed to it. */
export function reader(): { feed(text: string): void; end(): void; until(text: string): Promise<string> } {
  let rest = '';
  let isEnded = false;
  let wake = (): void => {};
  return {
    feed: text => { rest += text; wake(); },
    end: () => { isEnded = true; wake(); },
    until: async wanted => {
      for (let at = rest.indexOf(wanted); ; at = rest.indexOf(wanted)) {
        if (at >= 0) {
          const before = rest.slice(0, at);
          rest = rest.slice(at + wanted.length);
          return before;
        }
        assert(!isEnded, `the guest ended without ${wanted}: ${rest.slice(-500)}`);
        await new Promise<void>(resolve => { wake = resolve; });
      }
    },
  };
}

async function prepare(console: Console, chosen: readonly Program[]): Promise<void> {
  // What is written before somebody reads is lost when the terminal is set up.
  await console.until('@ready');
  for (const { name, prepare: first, script } of chosen) {
    await keep(console, name, script);
    if (first === undefined) continue;
    await keep(console, `prepare-${name}`, first);
    await run(console, `prepare-${name}`);
  }
}

function chosenPrograms(): readonly Program[] {
  const wanted = process.env['ZAZEN_BENCH_PROGRAMS']?.split(',');
  return wanted === undefined ? programs : programs.filter(({ name }) => wanted.includes(name));
}

const geometricMean = (values: readonly number[]): number =>
  Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);

const benchmark: Benchmark = {
  name: 'compute',
  description: `real programs in a guest of ${MEMORY_MIB} MiB, against QEMU TCG`,
  async run({ log }) {
    const chosen = chosenPrograms();
    const tree = await fetchPackages(packages, { withDependencies: true, log });
    const { kernelPath, initramfsPath } = await prepareGuest({ trees: [tree], log });
    await using host = await Host.start({ memory: '1GiB', pcpus: 1 });
    const domain = await host.create({ initrd: initramfsPath, memory: `${MEMORY_MIB}MiB`, cmdline: GUEST_CMDLINE, exec: COMMAND });
    const exec = domain.exec!;
    const ours = reader();
    exec.output.setEncoding('utf8').on('data', ours.feed).on('end', ours.end);
    const zazen: Console = { who: 'zazen', write: text => { exec.input.write(text); }, until: ours.until };
    await prepare(zazen, chosen);

    const millis: Record<string, Record<'zazen' | 'qemu', number[]>> = {};
    const outputs = new Map<string, string>();
    const measure = async (consoles: readonly Console[]): Promise<void> => {
      for (let number = 1; number <= ROUNDS; number++) {
        for (const { name } of chosen) {
          const samples = millis[name] ??= { zazen: [], qemu: [] };
          for (const console of consoles) {
            const ran = await run(console, name);
            samples[console.who].push(ran.millis);
            const known = outputs.get(name);
            if (known === undefined) outputs.set(name, ran.output);
            else assert(known === ran.output, `${name} in ${console.who} printed\n${ran.output}instead of\n${known}`);
          }
          const [mine, theirs] = [samples.zazen.at(-1)!, samples.qemu.at(-1)];
          log(`${name}: ${round(mine)} ms${theirs === undefined ? '' : `, qemu ${round(theirs)} ms: ${round(theirs / mine)}`}`);
        }
      }
    };
    const peer = await withQemu(log, async start => {
      const word = `zazen.exec=${Buffer.from(COMMAND).toString('base64')}`;
      const qemu = await start({ kernelPath, initramfsPath, memoryMib: MEMORY_MIB, cmdline: `${GUEST_CMDLINE} ${word}` });
      let shown = 0;
      const theirs: Console = {
        who: 'qemu', write: text => qemu.write(text),
        until: async text => {
          await qemu.until(text, shown);
          const at = qemu.output.indexOf(text, shown);
          const before = qemu.output.slice(shown, at);
          shown = at + text.length;
          return before;
        },
      };
      await prepare(theirs, chosen);
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
