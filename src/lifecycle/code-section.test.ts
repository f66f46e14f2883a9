// What is said of a guest's code comes back, page by page; and whatever is in its place does no harm.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AHEAD_PAGES_MAX, AHEAD_RUNS_MAX } from '../abi/decode-ahead.ts';
import { isRun, runsOf } from '../cpu/decode-ahead.ts';
import type { CodeRuns } from '../cpu/decode-ahead.ts';
import { codeSection, decodeCode } from './code-section.ts';

const SECTION = 'working-set/code';
const PAGE_BITS = fc.uint32Array({ minLength: 32, maxLength: 32 });
const read = (bytes: Uint8Array | undefined, hotGfns: readonly number[]): CodeRuns | undefined =>
  decodeCode({ sections: new Map(bytes === undefined ? [] : [[SECTION, bytes]]), hotGfns: Uint32Array.from(hotGfns) });
const ofPage = ({ ends, runs }: CodeRuns, page: number): number[] => [...runs.subarray(page === 0 ? 0 : ends[page - 1], ends[page])];

test('runs are those instructions that are decoded, and lie in their page', () => {
  fc.assert(fc.property(PAGE_BITS, (decoded) => {
    const found = new Uint32Array(32);
    for (const run of runsOf(decoded)) {
      assert(isRun(run));
      for (let index = run >>> 6; index <= (run >>> 6) + (run & 63); index++) {
        assert.equal((found[index >>> 5]! >>> (index & 31)) & 1, 0, 'said twice');
        found[index >>> 5]! |= 1 << (index & 31);
      }
    }
    assert.deepEqual(found, decoded);
  }), { examples: [[new Uint32Array(32).fill(0xffff_ffff)], [new Uint32Array(32)]] });
});

test('code of hot pages comes back by the order of the pages, whatever else has code', () => {
  fc.assert(fc.property(fc.uniqueArray(fc.nat(2 ** 27 - 1), { maxLength: 12 }), fc.array(PAGE_BITS, { maxLength: 14 }), (gfns, bits) => {
    const code = new Map(bits.map((decoded, i) => [gfns[i] ?? 2 ** 28 + i, decoded]));
    const { name, bytes } = codeSection(gfns, code);
    assert.equal(name, SECTION);
    assert.equal(bytes.length % 4, 0);
    // A page that was zero is no hot page in the end, and others move up.
    const hot = gfns.filter((_, i) => i % 3 !== 1);
    const found = read(bytes, hot);
    const expected = hot.map((gfn) => runsOf(code.get(gfn) ?? new Uint32Array(32)));
    if (expected.every((runs) => runs.length === 0)) assert.equal(found, undefined);
    else assert.deepEqual(hot.map((_, page) => ofPage(found!, page)), expected);
  }), { numRuns: 50 });
});

test('there is no more of it than there is room for', () => {
  // Every other instruction: 512 runs in each page.
  const decoded = new Uint32Array(32).fill(0x5555_5555);
  const gfns = Array.from({ length: 40 }, (_, i) => i);
  const found = read(codeSection(gfns, new Map(gfns.map((gfn) => [gfn, decoded]))).bytes, gfns)!;
  assert.equal(found.runs.length, AHEAD_RUNS_MAX);
  assert.equal(ofPage(found, 31).length, 512);
  assert.equal(ofPage(found, 32).length, 0);
  const many = Array.from({ length: AHEAD_PAGES_MAX + 1 }, (_, i) => i);
  assert.equal(read(codeSection([0], new Map([[0, decoded]])).bytes, many)!.ends.length, AHEAD_PAGES_MAX);
});

test('what makes no sense is overlooked', () => {
  const words = (...values: number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);
  const good = words(7, 1, 5 << 6);
  assert.deepEqual(ofPage(read(good, [7])!, 0), [5 << 6]);
  for (const [what, bytes] of Object.entries({
    'a half head': words(7), 'more runs than there are bytes': words(7, 3, 5 << 6), 'more than may be': words(7, 0xffff_ffff, 0),
    'a page twice': words(7, 1, 0, 7, 1, 0), 'a run across the end': words(7, 1, (1023 << 6) | 1), 'no whole words': good.subarray(0, 10),
  })) assert.equal(read(bytes, [7]), undefined, what);
  assert.equal(read(undefined, [7]), undefined);
  assert.equal(read(good, [8]), undefined);
  fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), fc.array(fc.nat(300), { maxLength: 5 }), (bytes, hot) => {
    const found = read(bytes, hot);
    if (found === undefined) return;
    assert(found.runs.every(isRun) && found.ends.at(-1) === found.runs.length);
  }));
});
