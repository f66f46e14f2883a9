import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { P2M_KIND } from '../abi/machine-memory.ts';
import { Heap } from './heap.ts';
import { mappedStretches, p2mRanges } from './p2m-ranges.ts';
import type { P2mRange } from './p2m-ranges.ts';
import { P2m, entryKind, entryValue } from './p2m.ts';
import { assertAudit, createMachine, mark, seed } from './test-memory.ts';

const GFNS = 2 ** 18 + 1500;

/** What single lookups say, put together page by page. */
function rangesByLookup(p2m: P2m, root: number, base: number): P2mRange[] {
  const ranges: P2mRange[] = [];
  for (let gfn = 0; gfn < GFNS; gfn++) {
    const entry = p2m.lookup(root, gfn);
    const kind = entryKind(entry);
    if (kind !== P2M_KIND.frame && kind !== P2M_KIND.zero) continue;
    const mfn = kind === P2M_KIND.frame ? entryValue(entry) : 0;
    const isInBase = mfn !== 0 && base !== 0 && p2m.lookup(base, gfn) === entry;
    const last = ranges.at(-1);
    const goesOn = last !== undefined && last.gfn + last.count === gfn && last.isInBase === isInBase
      && (last.mfn === 0 ? mfn === 0 : mfn === last.mfn + last.count);
    if (goesOn) last.count++;
    else ranges.push({ gfn, count: 1, mfn, isInBase });
  }
  return ranges;
}

/** Whatever frames they are. */
function joined(ranges: readonly P2mRange[]): { gfn: number; count: number }[] {
  const stretches: { gfn: number; count: number }[] = [];
  for (const { gfn, count } of ranges) {
    const last = stretches.at(-1);
    if (last !== undefined && last.gfn + last.count === gfn) last.count += count;
    else stretches.push({ gfn, count });
  }
  return stretches;
}

test('ranges say what lookups do, and what a tree has in common with an older one', () => {
  const gfn = fc.oneof(fc.nat(1200), fc.integer({ min: 2 ** 18 - 4, max: GFNS - 1 }));
  fc.assert(fc.property(fc.array(gfn, { maxLength: 30 }), fc.array(gfn, { maxLength: 30 }), (before, after) => {
    const memory = createMachine();
    const heap = new Heap(memory, 0);
    const p2m = new P2m(heap);
    const root = p2m.create(1);
    assert.ok(p2m.mapZeroRange(root, 0, 1100) && p2m.mapZeroRange(root, 2 ** 18 - 2, 1000));
    const write = (pages: readonly number[]): void => {
      for (const page of pages) {
        const mfn = p2m.frameForWrite(root, page);
        if (mfn > 0) mark(memory, mfn, page);
      }
      p2m.releaseStale();
    };
    write(before);
    const base = p2m.share(root, 1);
    write(after);
    p2m.unmap(root, 7, 3);
    p2m.releaseStale();
    for (const [tree, other] of [[root, base], [base, root], [root, 0], [base, base]] as const) {
      const found = [...p2mRanges(memory, tree, other)].map((range) => ({ ...range }));
      assert.deepEqual(found, rangesByLookup(p2m, tree, other));
      assert.deepEqual(mappedStretches(memory, tree), joined(found));
    }
    assertAudit(heap, { roots: [root, base] });
  }), { seed, numRuns: 4 });
});
