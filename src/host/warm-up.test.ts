import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FEW, MANY, smallMachine, warmUp } from './warm-up.ts';

test('the verbs run on a machine without pCPUs, any number of times', async () => {
  // Its own timers keep no process alive.
  const alive = setInterval(() => {}, 1000);
  try {
    for (const howOften of [FEW, MANY]) assert.equal(await warmUp(howOften), undefined);
  } finally {
    clearInterval(alive);
  }
});

test('the host hears of each checkpoint that somebody asks for', async () => {
  const { core, domain } = smallMachine();
  let heard = 0;
  core.onCheckpoint = () => { heard++; };
  for (const expected of [1, 2]) {
    const checkpoint = await domain.checkpoint();
    assert.equal(heard, expected);
    await checkpoint.destroy();
  }
  await domain.destroy();
  await core.close();
});
