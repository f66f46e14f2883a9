// Entry of a pCPU's worker thread.

import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { failTogether } from '../base/failure.ts';
import { importOwnQuickly } from '../base/own-imports.ts';

const LOOK_MILLIS = 1;

assert(parentPort !== null, 'this file is the entry of a worker');
failTogether();
importOwnQuickly();
const { runPcpu } = await import('./pcpu-loop.ts');
runPcpu(workerData, firstMessage(parentPort), parentPort);

/**
 * The interpreter, which mostly has come by now. Nobody listens to the port: what else comes, images, is taken from its queue when it
 * is needed (image-source.ts), and a listener that goes would leave it to nobody.
 */
function firstMessage(port: MessagePort): WebAssembly.Module {
  const nothing = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    const received = receiveMessageOnPort(port);
    if (received !== undefined) return received.message as WebAssembly.Module;
    Atomics.wait(nothing, 0, 0, LOOK_MILLIS);
  }
}
