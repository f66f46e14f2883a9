// What a change costs or saves in guest code, against another checkout, on a machine that does much else: the same boot in
// both, instruction for instruction, in virtual time and in one thread (test/engines/deterministic-guest.ts), in turns of a few
// milliseconds. Each tree has two guests that count, made in the order A B B A, behind one that warms its code up. The
// processor time of this thread counts: guest code and the translator. V8 compiles equal modules once, and so for those that
// do not count. A checkout against itself, at a load of 15 on two cores: 0.97 to 1.01. Who comes second
// may be faster by a hundredth, so try both orders.
//
//   git worktree add ../before HEAD~1 && ln -s "$PWD/node_modules" ../before/node_modules
//   node bench/two-trees.ts ../before . [millions of instructions, 300] [interpreted]

import { join, resolve } from 'node:path';

const SLICE_INSTRUCTIONS = 500_000;
const TURN_INSTRUCTIONS = 2_000_000;
const MEMORY_BYTES = 2 ** 30;
const SEED = 26;
const PARTS = 4;

/** Of a checkout, which need not be this one. */
interface SomeGuest {
  readonly retired: number;
  run(instructions: number): void;
  settle(spins: boolean): Promise<boolean>;
}

const [before = '..', after = '.', millions = '300', engine = 'compiled'] = process.argv.slice(2);
const trees = [resolve(before), resolve(after)] as const;

async function createGuest(tree: string): Promise<SomeGuest> {
  const { DeterministicGuest } = await import(join(tree, 'test/engines/deterministic-guest.ts'));
  const options = { memoryBytes: MEMORY_BYTES, seed: SEED, regions: engine === 'interpreted' ? undefined : {} };
  return await DeterministicGuest.create({ name: 'two-trees', cmdline: 'quiet cryptomgr.notests' }, options) as SomeGuest;
}

const nowMicros = (): number => {
  const { user, system } = process.threadCpuUsage();
  return user + system;
};

/** The first of each tree does not count, and comes first in each turn. */
const guests: { readonly tree: 0 | 1; readonly guest: SomeGuest; readonly micros: number[] }[] = [];
for (const tree of [0, 1, 0, 1, 1, 0] as const) guests.push({ tree, guest: await createGuest(trees[tree]), micros: [] });
let goesOn = true;
for (let turn = 1; goesOn && turn * TURN_INSTRUCTIONS <= Number(millions) * 1e6; turn++) {
  for (const { guest, micros } of guests) {
    const start = nowMicros();
    while (goesOn && guest.retired < turn * TURN_INSTRUCTIONS) {
      guest.run(Math.min(SLICE_INSTRUCTIONS, turn * TURN_INSTRUCTIONS - guest.retired));
      goesOn = await guest.settle(false);
    }
    micros.push(nowMicros() - start);
  }
}

const sum = (values: readonly number[]): number => values.reduce((all, each) => all + each, 0);
const counted = guests.slice(trees.length);
const timeOf = (tree: 0 | 1, from = 0, to = 1): number => sum(counted.filter(each => each.tree === tree)
  .map(({ micros }) => sum(micros.slice(Math.floor(micros.length * from), Math.floor(micros.length * to)))));
const ratio = (from?: number, to?: number): string => (timeOf(1, from, to) / timeOf(0, from, to)).toFixed(3);
console.log(`${trees[1]} to ${trees[0]}, ${engine}: ${ratio()} of the time; by quarters ${
  Array.from({ length: PARTS }, (_, part) => ratio(part / PARTS, (part + 1) / PARTS)).join(', ')}`);
process.exit(0);
