// What starts Zazen's programs, of a checkout or of a release (release/pack.ts): with the Node that this package pins, whatever
// Node runs this file. Standard streams, signals and the exit status pass through. Plain JavaScript that an old Node understands.

import { spawn } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import * as nodeModule from 'node:module';
import { availableParallelism, constants, homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

/** V8's threads that compile and collect garbage beside the program, as Node has them by itself. */
const V8_THREADS_MAX = 4;
/**
 * What the main thread's heap may become, as that of its workers (src/host/worker-thread.ts): V8 counts machine memories as parts
 * of it, and would collect garbage again and again while a host and its first guest are made.
 */
const HEAP_MAX_MIB = 40_960;

const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));

/** A release has JavaScript in bundles in place of the sources (release/bundle.ts), and one program. */
const isCheckout = existsSync(pathOf('../src'));
const fileOf = (program) => pathOf(isCheckout ? `../src/${program}.ts` : '../dist/js/zazen.js');
const INSTALL = isCheckout ? 'npm ci' : 'npm install zazen';

/**
 * @param program file of the program among the sources, without its suffix
 * @param words its arguments
 * @param runsGuests whether it runs guests in its own process. V8 then gets no more threads than there are cores, since they keep a
 * vCPU from its core, and is told that memory is no reason to collect garbage (docs/performance.md)
 */
export function launch(program, words, runsGuests) {
  const suffix = process.platform === 'win32' ? '.exe' : '';
  // Its own place in a checkout; beside this package when that is a dependency of another one.
  const node = ['../node_modules/node/bin/node', '../../node/bin/node'].map((path) => pathOf(path) + suffix)
    .find((path) => existsSync(path));
  if (node === undefined) {
    console.error(`zazen: its Node is not installed; run: ${INSTALL}  (the install scripts of the package node must be allowed to run)`);
    process.exit(1);
  }
  // As src/base/cache-folder.ts has it: with the compile cache on from the start, Node reads no TypeScript at all.
  const { env } = process;
  const cache = env.ZAZEN_CACHE_DIR || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'zazen');
  const compileCache = env.NODE_COMPILE_CACHE || join(cache, 'node');
  // It is that Node already, as npx and npm's scripts have it: then this process is the program.
  if (!runsGuests && realpathSync(node) === realpathSync(process.execPath)) {
    nodeModule.enableCompileCache(compileCache);
    import(pathToFileURL(fileOf(program)).href);
    return;
  }
  const v8Threads = Math.min(V8_THREADS_MAX, availableParallelism());
  const options = runsGuests ? [`--v8-pool-size=${v8Threads}`, `--max-old-space-size=${HEAP_MAX_MIB}`] : [];
  const child = spawn(node, [...options, fileOf(program), ...words], {
    stdio: 'inherit', env: { ...env, NODE_COMPILE_CACHE: compileCache },
  });
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT']) process.on(name, () => child.kill(name));
  child.on('error', (error) => {
    console.error(`zazen: cannot run ${node}: ${error.message}; run: ${INSTALL}`);
    process.exit(1);
  });
  child.on('exit', (code, signal) => {
    process.exit(signal === null ? code : 128 + constants.signals[signal]);
  });
}
