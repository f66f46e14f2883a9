// Entry of the worker thread that compiles hot code for all pCPUs.

import { enableCompileCache } from 'node:module';
import { workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';

export interface TranslatorWorkerData {
  readonly memory: WebAssembly.Memory;
  /** To the pCPUs' threads: records come in, parcels go out. */
  readonly ports: readonly MessagePort[];
}

enableCompileCache();
const { runTranslator } = await import('./translator-loop.ts');
runTranslator(workerData);
