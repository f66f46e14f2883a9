// A host says when it has done what it puts off at its start.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { Host } from './host.ts';

test('a host settles, also without a guest, and has all its threads then', async () => {
  await using host = await Host.start({ memory: '256MiB', pcpus: 2 });
  assert.equal(host.stats().isSettled, false);
  while (!host.stats().isSettled) await delay(20);
});
