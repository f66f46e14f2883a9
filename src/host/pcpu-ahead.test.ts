import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { beginPcpuAhead, takePcpuThread } from './pcpu-ahead.ts';

test('a thread that was begun ahead becomes the first pCPU that somebody starts, and no other', async () => {
  beginPcpuAhead();
  beginPcpuAhead();
  const [other, first, next] = [takePcpuThread(1), takePcpuThread(0), takePcpuThread(0)];
  // Threads have numbers in the order in which they began.
  assert.deepEqual([other, first, next].map(({ threadId }) => threadId - first.threadId), [1, 0, 2]);
  await Promise.all([other, first, next].map((worker) => worker.terminate()));
});

test('a program that begins it and starts no host ends by itself', async () => {
  const file = fileURLToPath(new URL('./pcpu-ahead.ts', import.meta.url));
  const child = spawn(process.execPath, ['--input-type=module', '-e', `(await import(${JSON.stringify(file)})).beginPcpuAhead();`],
    { stdio: 'inherit' });
  assert.deepEqual(await once(child, 'exit'), [0, null]);
});
