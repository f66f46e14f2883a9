// `npm run bench`: every benchmark, or `npm run bench -- NAME... [--json]` some of them, and at the end what they say
// of the goals. A benchmark checks its own results and throws when one is wrong, so that a wrong result cannot be fast;
// the others run all the same. Each begins with an empty store of compiled regions (own-store.ts). Progress goes to standard error, results to standard output: tables, or with --json one
// document, an object with the result of each benchmark under its name and the goals under `goals`.
//
// Exit status: 0; 1 when a benchmark failed (a goal that is missed is no failure); 2 for wrong usage.

import { parseArgs } from 'node:util';
import { judge } from './goals.ts';
import { withOwnStore } from './own-store.ts';
import { formatGoals, formatResult } from './report.ts';

export interface Benchmark {
  readonly name: string;
  readonly description: string;
  /** @returns a JSON-able result; progress goes to standard error through `log` */
  run(options: { log: (line: string) => void }): Promise<unknown>;
}

const benchmarks: readonly { name: string; load: () => Promise<{ default: Benchmark }> }[] = [
  { name: 'block', load: () => import('./block.ts') },
  { name: 'boot', load: () => import('./boot.ts') },
  { name: 'checkpoint', load: () => import('./checkpoint.ts') },
  { name: 'compute', load: () => import('./compute.ts') },
  { name: 'emulated-access', load: () => import('./emulated-access.ts') },
  { name: 'fork', load: () => import('./fork.ts') },
  { name: 'hypercall', load: () => import('./hypercall.ts') },
  { name: 'image', load: () => import('./image.ts') },
  { name: 'net', load: () => import('./net.ts') },
  { name: 'restore', load: () => import('./restore.ts') },
  { name: 'rollback', load: () => import('./rollback.ts') },
  { name: 'save', load: () => import('./save.ts') },
  { name: 'smp', load: () => import('./smp.ts') },
  { name: 'suspend', load: () => import('./suspend.ts') },
  { name: 'v86', load: () => import('./v86.ts') },
  { name: 'interpreter', load: () => import('./interpreter.ts') },
  { name: 'create', load: () => import('./create.ts') },
  { name: 'destroy', load: () => import('./destroy.ts') },
  { name: 'heap', load: () => import('./heap.ts') },
];
const names = benchmarks.map(({ name }) => name);

const HELP = `usage: npm run bench -- [NAME]... [--json]

Runs the benchmarks that are named, or all of them, and compares what they measured with the goals.
With qemu-system-aarch64 installed, most run the same guest in QEMU TCG as well.

benchmarks: ${names.join(', ')}
`;

function usageError(message: string): number {
  console.error(`bench: ${message}; there are: ${names.join(', ')}`);
  return 2;
}

function readArguments(words: string[]) {
  const options = { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } as const;
  return parseArgs({ args: words, allowPositionals: true, options });
}

async function main(words: string[]): Promise<number> {
  let given: ReturnType<typeof readArguments>;
  try {
    given = readArguments(words);
  } catch (error) {
    return usageError((error as Error).message.split('. ')[0]!);
  }
  const { values: { json, help }, positionals } = given;
  if (help === true) {
    process.stdout.write(HELP);
    return 0;
  }
  const unknown = positionals.find(name => !names.includes(name));
  if (unknown !== undefined) return usageError(`no benchmark is called "${unknown}"`);

  const chosen = benchmarks.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
  const results: Record<string, unknown> = {};
  let failures = 0;
  for (const { name, load } of chosen) {
    try {
      const { default: benchmark } = await load();
      console.error(`${name}: ${benchmark.description}`);
      results[name] = await withOwnStore(() => benchmark.run({ log: line => console.error(`  ${line}`) }));
    } catch (error) {
      console.error(error);
      failures++;
      results[name] = { failed: String(error) };
    }
    if (json !== true) process.stdout.write(`\n${name}\n${formatResult(results[name])}\n`);
  }
  const goals = judge(results);
  if (json === true) console.log(JSON.stringify({ ...results, goals }, undefined, 2));
  else if (goals.length > 0) process.stdout.write(`${formatGoals(goals)}`);
  return failures > 0 ? 1 : 0;
}

process.exitCode = await main(process.argv.slice(2));
