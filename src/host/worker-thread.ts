// How the host starts its threads.

import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { WorkerOptions } from 'node:worker_threads';
import { compileCacheFolder } from '../base/cache-folder.ts';

/**
 * V8 counts the whole machine memory as what each of its threads uses, and collects garbage again and again when that is more
 * than half of what a thread may use: 16 GiB at most, so this is more than twice that. Nobody reserves it.
 */
const HEAP_MAX_MIB = 40_960;

/** What sources end with: `.ts` in a checkout, `.js` in a release. */
const SUFFIX = extname(import.meta.url);

/**
 * A thread whose entry is a file of this folder, named as in a checkout. Node's compile cache is on before it reads that file, by its
 * environment: Node would otherwise load what it strips types with, in each thread, for the entry alone.
 */
export function startWorker(entry: URL, options: Pick<WorkerOptions, 'workerData' | 'name' | 'transferList'>): Worker {
  const env = { ...process.env, NODE_COMPILE_CACHE: compileCacheFolder() };
  // What this process was started with need not suit a worker: `--input-type`, or the options of the test runner.
  const file = entry.href.replace(/\.ts$/, SUFFIX);
  return new Worker(new URL(file), { ...options, env, execArgv: [], resourceLimits: { maxOldGenerationSizeMb: HEAP_MAX_MIB } });
}
