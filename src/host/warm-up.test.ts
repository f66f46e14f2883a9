import assert from 'node:assert/strict';
import { test } from 'node:test';
import { warmUp } from './warm-up.ts';

test('the verbs run on a machine without pCPUs, any number of times', async () => {
  // Its own timers keep no process alive.
  const alive = setInterval(() => {}, 1000);
  try {
    for (let i = 0; i < 2; i++) assert.equal(await warmUp(), undefined);
  } finally {
    clearInterval(alive);
  }
});
