import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rows } from '../a64/table.ts';
import { CodeAhead, SlotsAhead, WarmDecoding, firstOf } from './warm-decoding.ts';

test('an instruction of each row is decoded, a row in each step, and then there is nothing to do', () => {
  const words: number[] = [];
  const warming = new WarmDecoding({ learn: (word) => { words.push(word); } });
  for (const row of rows) {
    assert(warming.isWaiting);
    const before = words.length;
    assert(warming.step());
    const fresh = words.slice(before);
    assert(fresh.length > 0 && fresh.every((word) => ((word & row.mask) >>> 0) === row.bits), row.name);
  }
  assert(!warming.isWaiting && !warming.step());
});

test('of several works, the first that has something to do is done', () => {
  const done: string[] = [];
  const work = (name: string, pieces: number) => ({
    get isWaiting() { return pieces > 0; },
    step: () => { done.push(...(pieces > 0 ? [name] : [])); return pieces-- > 0; },
  });
  const both = firstOf(work('a', 2), work('b', 1));
  for (let i = 0; i < 3; i++) assert(both.isWaiting && both.step());
  assert(!both.isWaiting && !both.step());
  assert.deepEqual(done, ['a', 'a', 'b']);
});

test('a slot is touched in each step for as long as the cache wants it', () => {
  let wanted = 3;
  const ahead = new SlotsAhead({ get wantsTouching() { return wanted > 0; }, touchAhead: () => { wanted--; } });
  for (let i = 0; i < 3; i++) assert(ahead.isWaiting && ahead.step());
  assert(!ahead.isWaiting && !ahead.step());
});

test('code is decoded ahead while the thread counts as in code', () => {
  const done: string[] = [];
  let pages = 2;
  const note = (what: string) => () => { done.push(what); };
  const work = new CodeAhead({
    get isWaiting() { return pages > 0; },
    step: () => { done.push('page'); return pages-- > 0; },
  }, { enterIdleWork: note('enter'), leave: note('leave') });
  for (let i = 0; i < 2; i++) assert(work.isWaiting && work.step());
  assert(!work.isWaiting && !work.step());
  assert.deepEqual(done, ['enter', 'page', 'leave', 'enter', 'page', 'leave']);
});
