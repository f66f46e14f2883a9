// Waiting for another thread that is about to finish: a few pauses first, then short sleeps, because the thread we
// wait for may itself be waiting for a core. A browser's main thread may not sleep; it goes on spinning. Nobody waits for a
// thread that has failed (base/failure.ts), or for himself.

import { threadId } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { assertNoneFailed } from '../base/failure.ts';

const nothing = new Int32Array(new SharedArrayBuffer(4));

function maySleep(): boolean {
  try {
    Atomics.wait(nothing, 0, 1, 0);
    return true;
  } catch {
    return false;
  }
}

export const canSleep = maySleep();
const PAUSES = 256;
const SLEEP_MILLIS = 0.05;

/** @param attempt how often the caller has looked already, from 0 */
export function backOff(attempt: number): void {
  if (attempt < PAUSES || !canSleep) return Atomics.pause();
  assertNoneFailed();
  nap(SLEEP_MILLIS);
}

/** Gives the core away for a while; of a thread that may sleep. */
export function nap(millis: number): void {
  Atomics.wait(nothing, 0, 0, millis);
}

/** What a lock has in it that this thread holds. */
const MINE = threadId + 1;
/** How many locks this thread holds, and the bells to be rung when it is none. */
let held = 0;
const bells: { readonly words: Int32Array; readonly index: number }[] = [];

/** Takes the lock at words[index]: 0 free, else who holds it. Not re-entrant. */
export function spinLock(words: Uint32Array, index: number): void {
  held++;
  for (let attempt = 0; ; attempt++) {
    const holder = Atomics.compareExchange(words, index, 0, MINE);
    if (holder === 0) return;
    assert(holder !== MINE, 'a thread waits for a lock that it holds itself');
    backOff(attempt);
  }
}

/** Between two tasks of a thread: an error may have been caught by somebody who knows nothing of the lock. */
export function assertNoLockHeld(): void {
  assert(held === 0, 'an error has left a lock held');
}

export function spinUnlock(words: Uint32Array, index: number): void {
  Atomics.store(words, index, 0);
  if (--held > 0) return;
  for (let bell = bells.pop(); bell !== undefined; bell = bells.pop()) Atomics.notify(bell.words, bell.index);
}

/**
 * Counts words[index] up and wakes who sleeps on it; not before this thread holds no lock: what somebody who has just
 * been woken does first is to take the lock under which he was, and he may be woken on the very core that holds it.
 */
export function ringBell(words: Int32Array, index: number): void {
  Atomics.add(words, index, 1);
  if (held === 0) Atomics.notify(words, index);
  else bells.push({ words, index });
}
