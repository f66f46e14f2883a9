import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assertNoLockHeld, ringBell, spinLock, spinUnlock } from './spin.ts';

test('a bell counts at once, and wakes nobody while its thread holds a lock', async () => {
  const memory = new SharedArrayBuffer(16);
  const [locks, bells] = [new Uint32Array(memory), new Int32Array(memory)];
  const [LOCK_A, LOCK_B, BELL, OTHER_BELL] = [0, 1, 2, 3];
  const woken: number[] = [];
  const sleep = (bell: number): Promise<unknown> => {
    const wait = Atomics.waitAsync(bells, bell, bells[bell]!);
    assert.ok(wait.async);
    return wait.value.then(() => woken.push(bell));
  };
  const turn = () => new Promise(resolve => setImmediate(resolve));
  let sleepers = [sleep(BELL), sleep(OTHER_BELL)];
  spinLock(locks, LOCK_A);
  spinLock(locks, LOCK_B);
  ringBell(bells, BELL);
  ringBell(bells, OTHER_BELL);
  assert.deepEqual([bells[BELL], bells[OTHER_BELL]], [1, 1]);
  spinUnlock(locks, LOCK_B);
  await turn();
  assert.deepEqual(woken, []);
  spinUnlock(locks, LOCK_A);
  assertNoLockHeld();
  await Promise.all(sleepers);
  assert.deepEqual(woken.sort(), [BELL, OTHER_BELL]);
  sleepers = [sleep(BELL)];
  ringBell(bells, BELL);
  await Promise.all(sleepers);
  assert.deepEqual([bells[BELL], woken.length], [2, 3]);
});

test('a thread does not wait for itself', () => {
  const locks = new Uint32Array(new SharedArrayBuffer(4));
  spinLock(locks, 0);
  assert.throws(() => spinLock(locks, 0), /a lock that it holds itself/);
  assert.throws(assertNoLockHeld, /left a lock held/);
});
