import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DOMAIN } from '../abi/domain-record.ts';
import { setTimeout as delay } from 'node:timers/promises';
import { FEW, MANY, isWarmingUp, smallMachine, warmUp, warmUpForCheckpoints } from './warm-up.ts';

test('the verbs run on a machine without pCPUs, any number of times', async () => {
  // Its own timers keep no process alive.
  const alive = setInterval(() => {}, 1000);
  try {
    for (const howOften of [FEW, MANY]) assert.equal(await warmUp(howOften), undefined);
  } finally {
    clearInterval(alive);
  }
});

test('what is run in advance is the rollback that a guest gets: in place', async () => {
  const { core, domain } = smallMachine();
  const root = (): number => core.thread.hypercalls.domains.record(domain.id).get(DOMAIN.at.p2mRoot);
  const checkpoint = await domain.checkpoint();
  const before = root();
  await domain.rollback(checkpoint);
  assert.equal(root(), before);
  await checkpoint.destroy();
  await domain.destroy();
  await core.close();
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

test('it is known whether something is still being run in advance', async () => {
  assert.equal(isWarmingUp(), false);
  warmUpForCheckpoints();
  assert.equal(isWarmingUp(), true);
  while (isWarmingUp()) await delay(10);
  warmUpForCheckpoints();
  assert.equal(isWarmingUp(), false, 'once in a process');
});
