// An error of ours in any thread ends the process with that error: nobody waits for what the thread has left undone.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { PATIENCE_MILLIS } from '../patience.ts';

/** What whoever comes there is told at once, and the error that the process ends with. */
const CASES: Readonly<Record<string, readonly [told: string, end: RegExp]>> = {
  lock: ['another thread of this process has failed: RangeError: Invalid atomic access index', /RangeError[^]*at \S*\.take /],
  vcpu: ['another thread of this process has failed: RangeError: Invalid atomic access index', /RangeError[^]*at \S*\.take /],
  network: ['another thread of this process has failed: AssertionError: there is no such card', /there is no such card[^]*at /],
  main: ['caught', /AssertionError: an error has left a lock held\n/],
};

for (const [how, [told, end]] of Object.entries(CASES)) {
  test(`a thread fails and leaves something behind: ${how}`, () => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(import.meta.dirname, 'failure-child.ts'), how],
      { encoding: 'utf8', timeout: PATIENCE_MILLIS });
    assert.deepEqual([status, stdout], [1, `${told}\n`], stderr);
    assert.match(stderr, end);
  });
}
