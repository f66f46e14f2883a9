// `npm run bench`: every benchmark, or `npm run bench -- NAME [--json]` one of them. A benchmark checks its own results
// and throws when one is wrong, so that a wrong result cannot be fast.

import { parseArgs } from 'node:util';

export interface Benchmark {
  readonly name: string;
  readonly description: string;
  /** @returns a JSON-able result; progress goes to standard error through `log` */
  run(options: { log: (line: string) => void; type?: string }): Promise<unknown>;
}

const benchmarks: readonly { name: string; load: () => Promise<{ default: Benchmark }> }[] = [
  { name: 'boot', load: () => import('./boot.ts') },
  { name: 'checkpoint', load: () => import('./checkpoint.ts') },
  { name: 'fork', load: () => import('./fork.ts') },
  { name: 'hypercall', load: () => import('./hypercall.ts') },
  { name: 'image', load: () => import('./image.ts') },
  { name: 'rollback', load: () => import('./rollback.ts') },
  { name: 'save', load: () => import('./save.ts') },
  { name: 'interpreter', load: () => import('./interpreter.ts') },
  { name: 'destroy', load: () => import('./destroy.ts') },
  { name: 'heap', load: () => import('./heap.ts') },
];

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { json: { type: 'boolean' }, type: { type: 'string' }, help: { type: 'boolean' } },
  });
  const names = benchmarks.map(benchmark => benchmark.name);
  if (values.help) {
    console.log(`npm run bench -- [NAME] [--json]\nbenchmarks: ${names.join(', ')}`);
    return 0;
  }
  const unknown = positionals.find(name => !names.includes(name));
  if (unknown !== undefined) {
    console.error(`bench: no benchmark is called ${unknown}; there are: ${names.join(', ')}`);
    return 2;
  }
  const results: Record<string, unknown> = {};
  for (const { name, load } of benchmarks) {
    if (positionals.length > 0 && !positionals.includes(name)) continue;
    const { default: benchmark } = await load();
    console.error(`${name}: ${benchmark.description}`);
    results[name] = await benchmark.run({ log: line => console.error(`  ${line}`), type: values.type });
    if (!values.json) console.log(JSON.stringify(results[name], undefined, 2));
  }
  if (values.json) console.log(JSON.stringify(results, undefined, 2));
  return 0;
}

process.exitCode = await main();
