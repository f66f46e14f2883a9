// Entry of the thread that looks after the rings of disks.

import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { runDiskThread } from './disk-loop.ts';

assert(parentPort !== null, 'this file is the entry of a worker');
parentPort.postMessage('ready');
runDiskThread(workerData);
