// Entry of a pCPU's worker thread.

import { parentPort, receiveMessageOnPort } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { failTogether } from '../base/failure.ts';
import { importOwnQuickly } from '../base/own-imports.ts';
import type { PCpuWorkerData } from './pcpu-loop.ts';

const LOOK_MILLIS = 1;

assert(parentPort !== null, 'this file is the entry of a worker');
failTogether();
importOwnQuickly();
const { runPcpu } = await import('./pcpu-loop.ts');
const data = nextMessage<PCpuWorkerData>(parentPort);
runPcpu(data, nextMessage<WebAssembly.Module>(data.interpreter), parentPort);

/**
 * Both have mostly come by now. Nobody listens to the ports: what else comes from the host, images, is taken from its port's
 * queue when it is needed (image-source.ts), and a listener that goes would leave it to nobody.
 */
function nextMessage<T>(port: MessagePort): T {
  const nothing = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    const received = receiveMessageOnPort(port);
    if (received !== undefined) return received.message as T;
    Atomics.wait(nothing, 0, 0, LOOK_MILLIS);
  }
}
