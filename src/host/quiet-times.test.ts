import assert from 'node:assert/strict';
import { test } from 'node:test';
import { QuietTimes } from './quiet-times.ts';

const MILLIS = 1e6;

test('guests are at rest when one has run and then hardly any does', () => {
  const times = new QuietTimes();
  const looks = [
    // [at, run until now, at rest]
    [500, 0, false], [1000, 0, false],
    [1500, 10 * MILLIS, false],
    [2000, 460 * MILLIS, false], [2500, 500 * MILLIS, false],
    [3000, 520 * MILLIS, true], [3500, 1400 * MILLIS, false], [4000, 1400 * MILLIS, true],
  ] as const;
  for (const [at, busy, isAtRest] of looks) assert.equal(times.look(at, busy), isAtRest, `at ${at}`);
});

test('a late look is about all the time since the last one', () => {
  const times = new QuietTimes();
  times.look(500, 400 * MILLIS);
  assert(!times.look(2500, 520 * MILLIS));
  assert(times.look(6500, 640 * MILLIS));
});
