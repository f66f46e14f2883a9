import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseTuning } from './tuning.ts';

test('sizes by name; what is none is refused', () => {
  assert.deepEqual(parseTuning(''), {});
  assert.deepEqual(parseTuning('tlbEntries=4,sliceInstructions=500'), { tlbEntries: 4, sliceInstructions: 500 });
  for (const text of ['tlbEntries', 'tlbEntries=', 'tlbEntries=0', 'tlbEntries=-4', 'tlbEntries=4.5', 'pages=4', 'tlbEntries=99999999999']) {
    assert.throws(() => parseTuning(text), { code: 'ZAZEN_TUNING' }, text);
  }
});

test('tables have a power of two, and a TLB two entries at least: an access may lie across two pages', () => {
  assert.deepEqual(parseTuning('tlbEntries=2,frameCacheEntries=1'), { tlbEntries: 2, frameCacheEntries: 1 });
  for (const text of ['tlbEntries=1', 'tlbEntries=3', 'tlbEntries=12', 'frameCacheEntries=6']) {
    assert.throws(() => parseTuning(text), { code: 'ZAZEN_TUNING', message: new RegExp(text) }, text);
  }
});
