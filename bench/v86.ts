// Programs in a guest of Zazen and in one of v86, in turn: the same scripts, with Debian's packages of the same versions for
// arm64 and for i386, on Debian's kernels for them. Both boot once and wait for work on their consoles; a program's time
// is that of the outside. What is checked: status and output of every run, which must be the same on both sides.
//
//   ZAZEN_BENCH_PROGRAMS=a,b   only these programs
//   ZAZEN_BENCH_ROUNDS=n       instead of three

import { assert } from '../src/base/assert.ts';
import { prepareGuest } from '../src/guest/initramfs.ts';
import { fetchPackages } from '../src/guest/packages.ts';
import { Host } from '../src/host/index.ts';
import { GUEST_CMDLINE } from './busy-guest.ts';
import { packages as allPackages, programs } from './compute-programs.ts';
import type { Program } from './compute-programs.ts';
import { geometricMean } from './compute.ts';
import { fetchV86Guest, findV86, V86Process, v86Missing } from './peers/v86.ts';
import { WorkingGuest } from './peers/working-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const ROUNDS = Number(process.env['ZAZEN_BENCH_ROUNDS'] ?? 3);
const MEMORY_MIB = 512;

/** Without the compiler, which makes something else on each architecture. */
const packages = allPackages.filter(name => name !== 'cpp-12');

function replaced(text: string | undefined, part: string, by: string): string {
  assert(text !== undefined && text.includes(part), `the program has no ${part} any more`);
  return text.replace(part, by);
}
/** Where what a program does or prints depends on the architecture: what it does instead. */
const adapted: Readonly<Record<string, (program: Program) => Program>> = {
  // A file that is the same for both.
  gzip: one => ({ ...one, prepare: replaced(one.prepare, '/usr/bin/lua5.4', '/usr/lib/python3.11/[a-c]*.py') }),
  // The decoder has instructions of each architecture, which round differently.
  'floating-point': one => ({ ...one, script: replaced(one.script, /lame [^;]*--decode.*$/s.exec(one.script)?.[0] ?? '', '') }),
  // i386 calculates with more digits than it keeps.
  python: one => ({ ...one, prepare: replaced(one.prepare, 'print(bodies(500)', 'print(["%.9g" % x for x in bodies(500)]') }),
};
export const comparable = programs.filter(({ name }) => name !== 'compiler').map(one => adapted[one.name]?.(one) ?? one);
/** What a program is, as far as it says so itself. */
const VERSIONS = {
  name: 'versions',
  script: `openssl version; python3 --version; sqlite3 --version; lua5.4 -v
    for p in bc lame zstd /usr/bin/xz /bin/gzip /bin/sed /usr/bin/sort; do $p --version </dev/null 2>&1 | head -n1; done | sed 's/(*[36][24]-*bits*)*//'`,
};

const benchmark: Benchmark = {
  name: 'v86',
  description: `real programs in a guest of ${MEMORY_MIB} MiB, against v86`,
  async run({ log }) {
    const found = findV86();
    if (found === undefined) {
      log(v86Missing);
      return { v86: v86Missing };
    }
    const chosen = comparable.filter(({ name }) => process.env['ZAZEN_BENCH_PROGRAMS']?.split(',').includes(name) ?? true);
    const tree = await fetchPackages(packages, { withDependencies: true, log });
    const { initramfsPath } = await prepareGuest({ trees: [tree], log });
    const files = await fetchV86Guest(packages, log);

    await using stack = new AsyncDisposableStack();
    const v86 = await WorkingGuest.over('v86', ({ feed, end }, word) => {
      const cmdline = `console=ttyS0 ${GUEST_CMDLINE} ${word}`;
      const peer = stack.use(new V86Process({ ...found, ...files, memoryMib: MEMORY_MIB, cmdline }, feed, end));
      return text => peer.write(text);
    });
    await v86.prepare([VERSIONS, ...chosen]);
    log('v86 is ready');

    await using host = await Host.start({ memory: '1GiB', pcpus: 1 });
    const zazen = await WorkingGuest.inZazen(host, { initramfsPath, memoryMib: MEMORY_MIB });
    await zazen.prepare([VERSIONS, ...chosen]);

    const same = async (name: string): Promise<{ mine: number; their: number }> => {
      const mine = await zazen.run(name);
      const their = await v86.run(name);
      assert(mine.output === their.output, `${name} printed\n${mine.output}and in v86\n${their.output}`);
      return { mine: mine.millis, their: their.millis };
    };
    await same(VERSIONS.name);
    const millis: Record<string, { zazen: number[]; v86: number[] }> = {};
    for (let number = 1; number <= ROUNDS; number++) {
      for (const { name } of chosen) {
        const { mine, their } = await same(name);
        const samples = millis[name] ??= { zazen: [], v86: [] };
        samples.zazen.push(mine);
        samples.v86.push(their);
        log(`${name}: ${round(mine)} ms, v86 ${round(their)} ms: ${round(their / mine)}`);
      }
    }
    const timesV86 = Object.fromEntries(Object.entries(millis).map(([name, samples]) =>
      [name, round(summarize(samples.v86.map((their, i) => their / samples.zazen[i]!)).median)]));
    return {
      programs: Object.fromEntries(Object.entries(millis).map(([name, samples]) =>
        [name, { zazenMillis: summarize(samples.zazen), v86Millis: summarize(samples.v86) }])),
      timesV86, slowest: Math.min(...Object.values(timesV86)), geometricMean: round(geometricMean(Object.values(timesV86))),
    };
  },
};
export default benchmark;
