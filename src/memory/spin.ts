// Waiting for another thread that is about to finish: a few pauses first, then short sleeps, because the thread we
// wait for may itself be waiting for a core. A browser's main thread may not sleep; it goes on spinning.

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
  if (attempt < PAUSES || !canSleep) Atomics.pause();
  else Atomics.wait(nothing, 0, 0, SLEEP_MILLIS);
}

/** Takes the lock at words[index]: 0 free, 1 held. Not re-entrant. */
export function spinLock(words: Uint32Array, index: number): void {
  for (let attempt = 0; Atomics.compareExchange(words, index, 0, 1) !== 0; attempt++) backOff(attempt);
}

export function spinUnlock(words: Uint32Array, index: number): void {
  Atomics.store(words, index, 0);
}
