// Entry of the thread that networks live in.

import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { failTogether } from '../base/failure.ts';
import { importOwnQuickly } from '../base/own-imports.ts';

assert(parentPort !== null, 'this file is the entry of a worker');
failTogether();
importOwnQuickly();
const { runNetworkThread } = await import('./network-loop.ts');
runNetworkThread(workerData, parentPort);
