// What tests wait for, on machines of any speed.

import assert from 'node:assert/strict';
import type { Domain } from '../src/host/index.ts';
import { PATIENCE_MILLIS } from './patience.ts';

/** Looks every few milliseconds. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + PATIENCE_MILLIS;
  while (!condition()) {
    assert.ok(performance.now() < deadline, `waited in vain until ${what}`);
    await new Promise(resolve => setTimeout(resolve, 2));
  }
}

/**
 * Unpauses guests that have stalled, now and as often as they do it while `work` goes on: a vCPU that found no frame a moment
 * before there were some may say so only then.
 */
export async function whileGoingOn<T>(guests: readonly Domain[], work: () => Promise<T>): Promise<T> {
  const subscriptions = guests.map(guest => guest.events({ history: false }));
  for (const [index, guest] of guests.entries()) {
    void (async () => {
      for await (const { type } of subscriptions[index]!) if (type === 'stalled') await guest.unpause();
    })();
    if (guest.state === 'paused') await guest.unpause();
  }
  try {
    return await work();
  } finally {
    for (const subscription of subscriptions) void subscription.return();
  }
}
