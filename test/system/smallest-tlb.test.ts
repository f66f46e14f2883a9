// Accesses and TLB maintenance with the smallest TLB that there can be: the page behind another one takes the only other
// place, and every third page puts one out. With one place, an access across two pages would find the second's entry.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

for (const file of ['accesses', 'tlb-and-code']) {
  test(`${file} with two TLB entries`, async () => {
    // As the child of a test it would report in another form.
    const { NODE_TEST_CONTEXT: _, ...environment } = process.env;
    const args = ['--test', join(import.meta.dirname, `${file}.test.ts`)];
    const { stdout } = await promisify(execFile)(process.execPath, args,
      { env: { ...environment, ZAZEN_TUNING: 'tlbEntries=2,frameCacheEntries=1' }, maxBuffer: 2 ** 26 });
    const count = (what: string): number => Number(new RegExp(`^. ${what} (\\d+)$`, 'm').exec(stdout)?.[1]);
    assert.equal(count('fail'), 0);
    assert(count('pass') > 20, `${count('pass')} tests`);
  });
}
