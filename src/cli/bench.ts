// `zazen bench`: the benchmarks of a checkout, in a process of their own.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import type { Arguments } from './arguments.ts';
import type { Io } from './io.ts';
import { JSON_OPTION } from './verb.ts';
import type { Verb } from './verb.ts';

const PROGRAM = join(import.meta.dirname, '../../bench/run.ts');

export const benchVerb: Verb = {
  name: 'bench',
  summary: 'Run the benchmarks that are named, or all of them, and compare with the goals.',
  positionals: [{ name: 'NAME', optional: true, many: true }],
  options: { json: JSON_OPTION },
  run: runBenchmarks,
};

async function runBenchmarks({ positionals, switches }: Arguments, io: Io): Promise<number> {
  if (!existsSync(PROGRAM)) {
    throw new ZazenError('ZAZEN_BENCH_MISSING', 'this Zazen comes without its benchmarks',
      { hint: 'run it from a checkout of the source' });
  }
  io.signal.throwIfAborted();
  // With V8's options of this process, which are those that guests run with.
  const child = spawn(process.execPath, [...process.execArgv, PROGRAM, ...positionals, ...switches.has('json') ? ['--json'] : []],
    { stdio: ['ignore', 'pipe', 'pipe'] });
  const end = (): void => { child.kill(); };
  const forget = io.onExit(end);
  io.signal.addEventListener('abort', end);
  child.stdout.pipe(io.stdout, { end: false });
  child.stderr.pipe(io.stderr, { end: false });
  try {
    const [status] = await once(child, 'close') as [number | null];
    io.signal.throwIfAborted();
    return status ?? 1;
  } finally {
    io.signal.removeEventListener('abort', end);
    forget();
  }
}
