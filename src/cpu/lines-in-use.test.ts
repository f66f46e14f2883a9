// Emptying a vCPU's TLBs and caches goes through the lines in use. What is put into them, in whatever way, and whatever is
// emptied, no entry may be left that is not in such a line.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  FRAME_CACHE_ENTRIES, FRAME_CACHE_ENTRY_BYTES, LINE_BYTES, TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, TLB_SET_BYTES, VCPU_BYTES,
  frameCacheOffsets, linesInUseOffset, linesOffset, tlbOffsets,
} from '../abi/vcpu.ts';
import { linesInUse, useLine } from './lines-in-use.ts';
import { execNeighbours, fillDataTlb, fillExecTlb, flushAddress, flushAll, flushFrame, flushNotGlobal, noteFill, setPan } from './tlb.ts';
import { VcpuState } from './vcpu-state.ts';

/** Memory that was never used lies behind and before it. */
function freshVcpu(): VcpuState {
  const buffer = new SharedArrayBuffer(3 * VCPU_BYTES);
  return new VcpuState({ u32: new Uint32Array(buffer), u64: new BigUint64Array(buffer) }, VCPU_BYTES);
}

test('lines are named by what is in them, once, in whole TLBs and caches alike', () => {
  const vcpu = freshVcpu();
  const count = (linesInUseOffset - linesOffset) / LINE_BYTES;
  fc.assert(fc.property(fc.uniqueArray(fc.nat(count - 1), { maxLength: 300 }), fc.nat(LINE_BYTES / 4 - 1), (lines, word) => {
    const places = lines.map(line => (vcpu.address + linesOffset + line * LINE_BYTES) / 4);
    for (const place of places) {
      assert.equal(useLine(vcpu, place + word), true);
      assert.equal(useLine(vcpu, place), false);
    }
    const found = linesInUse(vcpu, linesOffset, linesInUseOffset - linesOffset);
    assert.deepEqual(found.toSorted((a, b) => a - b), places.toSorted((a, b) => a - b));
    // Those of one TLB, which are then in use no more.
    const tlb = linesInUse(vcpu, tlbOffsets[0].write, TLB_SET_BYTES / 3, true);
    const [first, end] = [tlbOffsets[0].write, tlbOffsets[0].exec].map(offset => (vcpu.address + offset) / 4);
    assert.deepEqual(tlb.toSorted((a, b) => a - b), places.filter(place => place >= first! && place < end!).toSorted((a, b) => a - b));
    assert.equal(linesInUse(vcpu, linesOffset, linesInUseOffset - linesOffset, true).length, places.length - tlb.length);
    assert.deepEqual(linesInUse(vcpu, linesOffset, linesInUseOffset - linesOffset), []);
  }));
});

const TLBS = tlbOffsets.flatMap(({ read, write, exec }) => [read, write, exec]);

/** Pages and the TLBs that they are in. What is zero is nobody's entry, but in the places that page 0 is looked for in. */
function entries(vcpu: VcpuState): string[] {
  const found: string[] = [];
  for (const tlb of TLBS) {
    for (let i = 0; i < TLB_ENTRIES; i++) {
      const tag = vcpu.get64(tlb + i * TLB_ENTRY_BYTES);
      if ((tag & BigInt(TLB_INVALID_TAG)) === 0n && ([0, TLB_ENTRIES - 1].includes(i) || tag !== 0n)) found.push(`${tlb} ${tag.toString(16)}`);
    }
  }
  return found.toSorted();
}
function knownFrames(vcpu: VcpuState): number {
  let count = 0;
  for (let i = 0; i < 2 * FRAME_CACHE_ENTRIES; i++) count += Number(vcpu.get32(frameCacheOffsets.read + i * FRAME_CACHE_ENTRY_BYTES + 4) !== 0);
  return count;
}

const fill = fc.record({ tlb: fc.nat(5), page: fc.nat(3 * TLB_ENTRIES), upper: fc.boolean(), mfn: fc.integer({ min: 16, max: 40 }) });
const step = fc.oneof(
  { weight: 8, arbitrary: fill },
  { weight: 1, arbitrary: fc.constantFrom('all', 'asid', 'pan', 'address', 'frame', 'stage 2') },
);

test('memory that was never used has no entries, and what is emptied has none of those that it must not have', () => {
  fc.assert(fc.property(fc.array(step, { maxLength: 200 }), steps => {
    const vcpu = freshVcpu();
    flushAll(vcpu);
    assert.deepEqual(entries(vcpu), []);
    let model = new Map<string, { tlb: number; page: number; upper: boolean; mfn: number }>();
    const keep = (isKept: (entry: { tlb: number; page: number; upper: boolean; mfn: number }) => boolean): void => {
      model = new Map([...model].filter(([, entry]) => isKept(entry)));
    };
    let frames = new Map<number, number>();
    for (const what of steps) {
      if (typeof what !== 'string') {
        const { tlb, page, upper, mfn } = what;
        const [low, high] = [page * 4096, upper ? 0xffff_8000 : 0];
        const isExec = tlb % 3 === 2;
        noteFill(vcpu, low, high, 12, upper, tlb < 3 ? 0 : 1, false);
        if (isExec) fillExecTlb(vcpu, TLBS[tlb]!, low, high, mfn * 4096);
        else fillDataTlb(vcpu, TLBS[tlb]!, low, high, mfn);
        model.set(`${tlb} ${page % TLB_ENTRIES}`, what);
        vcpu.readFrames.set(page, mfn);
        frames.set(page % FRAME_CACHE_ENTRIES, mfn);
      } else if (what === 'all') {
        flushAll(vcpu);
        keep(() => false);
      } else if (what === 'asid') {
        flushNotGlobal(vcpu);
        keep(({ upper }) => upper);
      } else if (what === 'pan') {
        noteFill(vcpu, 0, 0, 12, false, 1, true);
        setPan(vcpu, true);
        keep(({ tlb }) => tlb !== 3 && tlb !== 4);
      } else if (what === 'address') {
        flushAddress(vcpu, 5 * 4096, 0);
        keep(({ page }) => page % TLB_ENTRIES !== 5 % TLB_ENTRIES);
      } else if (what === 'frame') {
        flushFrame(vcpu, 20, 20 * 4096);
        vcpu.readFrames.drop(20);
        keep(({ tlb, mfn }) => mfn !== 20 || tlb % 3 === 1);
        frames = new Map([...frames].filter(([, mfn]) => mfn !== 20));
      } else {
        vcpu.readFrames.clear();
        frames.clear();
      }
      assert.deepEqual(entries(vcpu), [...model.values()].map(({ tlb, page, upper }) =>
        `${TLBS[tlb]} ${(BigInt(page * 4096) + (upper ? 0xffff_8000_0000_0000n : 0n)).toString(16)}`).toSorted());
      assert.equal(knownFrames(vcpu), frames.size);
    }
    // What is told of the exec TLB in use is of its entries only.
    vcpu.enterEl(1, 1);
    const near = [...model.values()].filter(({ tlb, upper, page }) => tlb === 5 && !upper && page !== 7);
    assert.equal(execNeighbours(vcpu, 7n << 12n).length, 2 * near.length);
  }), { numRuns: 60 });
});
