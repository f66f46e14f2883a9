// The thread of the first pCPU, begun before this process has loaded the program that will want it: each of the two takes as
// long to load its code as the other, and on two cores they do so at the same time. For programs that are sure to start a
// host; imports next to nothing, so that it can be the first thing that they do.

// Where a thread would say what has ended it must be known before it begins.
import '../base/failure.ts';
import type { Worker } from 'node:worker_threads';
import { startWorker } from './worker-thread.ts';

let ahead: Worker | undefined;

/** It keeps no process from ending. */
export function beginPcpuAhead(): void {
  ahead ??= startPcpuThread(0);
  ahead.unref();
}

/** A thread that waits to be told what it is: `PCpuWorkerData`. */
export function takePcpuThread(pcpu: number): Worker {
  if (pcpu !== 0 || ahead === undefined) return startPcpuThread(pcpu);
  const worker = ahead;
  ahead = undefined;
  worker.ref();
  return worker;
}

const startPcpuThread = (pcpu: number): Worker =>
  startWorker(new URL('./pcpu-worker.ts', import.meta.url), { name: `pcpu${pcpu}` });
