// Entry of the worker thread that compiles hot code for all pCPUs.

import { parentPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { importOwnQuickly } from '../base/own-imports.ts';

export interface TranslatorWorkerData {
  readonly memory: WebAssembly.Memory;
  /** To the pCPUs' threads: records come in, parcels go out. */
  readonly ports: readonly MessagePort[];
}

assert(parentPort !== null, 'this file is the entry of a worker');
importOwnQuickly();
const { runTranslator } = await import('./translator-loop.ts');
runTranslator(workerData, parentPort);
