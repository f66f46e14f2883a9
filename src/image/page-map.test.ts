// The page map against a plain list of states, for maps of any size and mixture.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { SeededRandom } from '../base/random.ts';
import { PageMap } from './page-map.ts';

const SIZES = [1, 3, 4, 15, 16, 17, 255, 256, 257, 511, 1000, 4096, 5000];
const STATES = ['zero', 'stored', 'parent'] as const;

test('states, ranks and stretches of maps of one and of two banks', () => {
  const random = new SeededRandom(7);
  const numberBelow = (limit: number): number => random.u32() % limit;
  for (const size of SIZES) {
    for (const longest of [1, 40, 900]) {
      const first = 1 + numberBelow(size);
      const counts = [first, size - first].filter((count) => count > 0);
      const banks = counts.map((count, i) => ({ guestAddress: (1 + i * 2 ** 20) * FRAME_BYTES, sizeBytes: count * FRAME_BYTES }));
      const gfns = counts.flatMap((count, i) => Array.from({ length: count }, (_, page) => 1 + i * 2 ** 20 + page));
      const states: (typeof STATES)[number][] = [];
      while (states.length < size) {
        const state = STATES[numberBelow(STATES.length)]!;
        for (let left = 1 + numberBelow(longest); left > 0 && states.length < size; left--) states.push(state);
      }
      const written = new PageMap(banks);
      states.forEach((state, page) => { if (state !== 'zero') written.mark(gfns[page]!, state); });
      const map = new PageMap(banks, written.bytes.slice());
      assert.ok(map.isWellFormed());
      let rank = 0;
      states.forEach((state, page) => {
        assert.equal(map.state(gfns[page]!), state);
        assert.equal(map.rank(page), rank, `rank of page ${page} of ${size}`);
        if (state === 'stored') rank++;
      });
      assert.equal(map.rank(size), rank);
      for (let i = 0; i < 50; i++) {
        const page = numberBelow(size);
        const count = 1 + numberBelow(Math.min(size - page, longest));
        const isOneBank = gfns[page + count - 1] === gfns[page]! + count - 1;
        const areStored = isOneBank && states.slice(page, page + count).every((state) => state === 'stored');
        assert.equal(map.areStored(gfns[page]!, count), areStored, `${count} pages from ${page} of ${size}`);
      }
      const listed = Array.from(map.stretches()).flatMap(({ gfn, count, state }) => Array.from({ length: count }, (_, i) => [gfn + i, state]));
      assert.deepEqual(listed, gfns.map((gfn, page) => [gfn, states[page]]));
    }
  }
});

test('a state that there is none of, and anything behind the last page, is told', () => {
  const banks = [{ guestAddress: 0, sizeBytes: 70 * FRAME_BYTES }];
  for (let page = 0; page < 72; page++) {
    const bytes = new Uint8Array(PageMap.sizeBytes(70));
    bytes[page >>> 2]! |= (page < 70 ? 3 : 1) << (2 * (page & 3));
    assert.equal(new PageMap(banks, bytes).isWellFormed(), false, `page ${page}`);
  }
});
