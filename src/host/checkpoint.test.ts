// How a checkpoint and a rollback stop a domain, call by call; what they do with it is tested in lifecycle/ and test/guest/.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SCHEDULER } from '../abi/scheduler.ts';
import { ZazenError } from '../base/errors.ts';
import { smallMachine } from './warm-up.ts';

const STEPS = [
  'findOnCores', 'beginBriefStop', 'pauseDomain', 'waitUntilStopped', 'unpauseDomain', 'endBriefStop', 'ranOnAt',
] as const;

test('a domain is stopped briefly, for a checkpoint with its vCPUs on cores, and says how long by when they ran on', async t => {
  const { core, domain } = smallMachine();
  const { scheduling, hypercalls: { grants }, machine } = core.thread;
  const calls: string[] = [];
  for (const step of STEPS) {
    const original = scheduling[step] as (...args: unknown[]) => unknown;
    t.mock.method(scheduling, step, (...args: unknown[]) => {
      calls.push(step);
      const result = original.apply(scheduling, args);
      // As if a pCPU had noted it 1 ms after the domain was asked to stop.
      return step === 'ranOnAt' ? args[1] as number + 1e6 : result;
    });
  }
  const checkpoint = await domain.checkpoint();
  assert.deepEqual(calls.splice(0), STEPS);
  assert.equal(Math.round(checkpoint.stats.downtimeMicros), 1000);
  const { downtimeMicros } = await domain.rollback(checkpoint);
  assert.deepEqual(calls.splice(0), STEPS.slice(1));
  assert.equal(Math.round(downtimeMicros), 1000);
  // It ends whatever happens.
  t.mock.method(grants, 'whileUnused', () => 'busy');
  await assert.rejects(domain.rollback(checkpoint), (error: unknown) =>
    error instanceof ZazenError && error.code === 'ZAZEN_DOMAIN_BUSY');
  assert.equal(calls.at(-1), 'endBriefStop');
  assert.equal(machine.u32[(machine.region('scheduler').offsetBytes + SCHEDULER.at.briefStops) / 4], 0);
  await checkpoint.destroy();
  await domain.destroy();
  await core.close();
});
