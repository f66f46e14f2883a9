// Entry of a pCPU's worker thread.

import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { runPcpu } from './pcpu-loop.ts';

assert(parentPort !== null, 'this file is the entry of a worker');
const port = parentPort;
const received = new Promise<WebAssembly.Module>(resolve => { port.once('message', resolve); });
runPcpu(workerData, await received, port);
