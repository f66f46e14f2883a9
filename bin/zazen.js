#!/usr/bin/env node
// The checkout's launcher: runs src/cli/main.ts with the Node that this package pins, whatever Node runs this file.
// Standard streams, signals and the exit status pass through. Plain JavaScript that an old Node understands.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants, homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const main = pathOf('../src/cli/main.ts');
const suffix = process.platform === 'win32' ? '.exe' : '';
// Its own place in a checkout; beside this package when that is a dependency of another one.
const node = ['../node_modules/node/bin/node', '../../node/bin/node'].map((path) => pathOf(path) + suffix)
  .find((path) => existsSync(path));

if (node === undefined) {
  console.error('zazen: its Node is not installed; run: npm ci  (its install scripts must be allowed to run)');
  process.exit(1);
}

// As src/base/cache-folder.ts has it: with the compile cache on from the start, Node reads no TypeScript at all.
const { env } = process;
const cache = env.ZAZEN_CACHE_DIR || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'zazen');
// Verbs that run guests in this process, which are faster when V8 does not collect what calls what in emitted code
// (docs/performance.md). The others start sooner without: V8 does not take what Node brings compiled with other options.
const runsGuests = ['run', 'daemon', 'bench'].includes(process.argv[2]);
const options = runsGuests ? ['--no-wasm-inlining', '--no-wasm-inlining-call-indirect'] : [];
const child = spawn(node, [...options, main, ...process.argv.slice(2)], {
  stdio: 'inherit', env: { ...env, NODE_COMPILE_CACHE: env.NODE_COMPILE_CACHE || join(cache, 'node') },
});
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT']) process.on(name, () => child.kill(name));
child.on('error', (error) => {
  console.error(`zazen: cannot run ${node}: ${error.message}; run: npm ci`);
  process.exit(1);
});
child.on('exit', (code, signal) => {
  process.exit(signal === null ? code : 128 + constants.signals[signal]);
});
