// Entry of the worker thread that compiles hot code for all pCPUs.

import { parentPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { failTogether } from '../base/failure.ts';
import { importOwnQuickly } from '../base/own-imports.ts';

/** The first guest boots; it has booted; or the host closes, and the thread ends. */
export type TranslatorOrder = 'boot' | 'booted' | 'close';

export interface TranslatorWorkerData {
  readonly memory: WebAssembly.Memory;
  /** To the pCPUs' threads: records come in, parcels go out. */
  readonly ports: readonly MessagePort[];
}

assert(parentPort !== null, 'this file is the entry of a worker');
failTogether();
importOwnQuickly();
const { runTranslator } = await import('./translator-loop.ts');
runTranslator(workerData, parentPort);
