// The threads of a process that runs guests stand or fall together. What one of them leaves undone when an error of ours ends
// it, a lock that it holds or a vCPU that it runs, others would wait for without end, the main thread among them, which then
// never hears of the error. So a thread says here what ends it, and whoever waits for another one looks.
//
// One piece of memory, which Node's environment data hands on to each thread:
//
//   0  length of the text, in bytes; 0: none has failed     4  non-zero: somebody writes the text     8  the text

import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';
import { unreachable } from './assert.ts';

const KEY = 'zazen: failure of a thread';
const TEXT_AT = 8;
const TEXT_MAX_BYTES = 4000;

function shareMemory(): SharedArrayBuffer {
  const inherited = getEnvironmentData(KEY) as SharedArrayBuffer | undefined;
  const buffer = inherited ?? new SharedArrayBuffer(TEXT_AT + TEXT_MAX_BYTES);
  if (inherited === undefined) setEnvironmentData(KEY, buffer as unknown as Parameters<typeof setEnvironmentData>[1]);
  return buffer;
}

const memory = shareMemory();
const words = new Int32Array(memory, 0, TEXT_AT / 4);
const text = new Uint8Array(memory, TEXT_AT);

/** From here on those who wait know of an error that ends this thread, a worker. The main thread gets the error itself as well. */
export function failTogether(): void {
  process.once('uncaughtExceptionMonitor', (error) => {
    // The first one counts: others may have failed for it.
    if (Atomics.compareExchange(words, 1, 0, 1) !== 0) return;
    const bytes = Buffer.from(error.stack ?? String(error)).subarray(0, TEXT_MAX_BYTES);
    text.set(bytes);
    Atomics.store(words, 0, bytes.length);
  });
}

/** By who waits for another thread, now and then. */
export function assertNoneFailed(): void {
  const length = Atomics.load(words, 0);
  if (length > 0) unreachable(`another thread of this process has failed: ${Buffer.from(text.subarray(0, length)).toString()}`);
}
