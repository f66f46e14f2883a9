// Entry of a pCPU's worker thread. Loads the rest only when Node's compile cache is on, as the program's entry does.

import { enableCompileCache } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';

assert(parentPort !== null, 'this file is the entry of a worker');
const port = parentPort;
enableCompileCache();
const received = new Promise<WebAssembly.Module>(resolve => { port.once('message', resolve); });
const { runPcpu } = await import('./pcpu-loop.ts');
runPcpu(workerData, await received, port);
