// How far a run is decoded: to what ends it, to a branch, behind which nobody may ever get, and not over what stands in a
// record already.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../a64/test-assembler.ts';
import { FIRST_REGION, HANDLER_DECODE } from '../abi/decode-cache.ts';
import type { CodePage } from './decode-cache.ts';
import { GUEST_BASE, createTestMachine } from './test-machine.ts';

test('a record that has been decoded, or made a region\'s, since its number was read is not decoded anew', () => {
  const m = createTestMachine();
  m.load(GUEST_BASE, new Assembler().add(1, 1, 3).add(1, 1, 4).hvc(0).words());
  const { decodeCache } = m.engine;
  const slot = decodeCache.slotFor(m.machine.firstFrame);
  const handler = (index: number): number => m.machine.u16[(slot + index * 16) / 2]!;
  assert.equal(handler(0), HANDLER_DECODE);
  decodeCache.decodeRun(slot);
  const decoded = handler(0);
  assert.notEqual(decoded, HANDLER_DECODE);
  assert.equal(handler(1), decoded, 'to the end of the run');
  const REGION = FIRST_REGION + 5;
  m.machine.u16[slot / 2] = REGION;
  decodeCache.decodeRun(slot);
  assert.equal(handler(0), REGION);
});

test('a run ends at branches: what is decoded has been reached, but for what follows in a straight line', () => {
  const m = createTestMachine();
  m.load(GUEST_BASE, new Assembler().add(1, 1, 3).cbz(1, 'end').add(1, 1, 4).label('end').hvc(0).add(1, 1, 5).words());
  const { decodeCache } = m.engine;
  const { firstFrame } = m.machine;
  const decoded = (): number => decodeCache.decodedIn(firstFrame)![0]!;
  const slot = decodeCache.slotFor(firstFrame);
  decodeCache.decodeRun(slot);
  assert.equal(decoded(), 0b00011);
  decodeCache.decodeRun(slot + 3 * 16);
  assert.equal(decoded(), 0b01011);
});

test('a region of what stood in a line before it was invalidated does not come', () => {
  const m = createTestMachine();
  m.load(GUEST_BASE, new Assembler().add(1, 1, 3).add(1, 1, 4).hvc(0).words());
  const { decodeCache } = m.engine;
  const { firstFrame } = m.machine;
  const slot = decodeCache.slotFor(firstFrame);
  const REGION = FIRST_REGION + 5;
  const handler = (): number => m.machine.u16[slot / 2]!;
  const enter = (page: CodePage): boolean => decodeCache.enterRegion(page, [0, 1, 2], REGION, []);
  assert.equal(enter(decodeCache.pageOf(slot)!), true);
  assert.equal(handler(), REGION);
  // Of any line of the page, and whether or not its instructions have been decoded.
  for (const offset of [0, 64, 4032]) {
    const asked = decodeCache.pageOf(slot)!;
    decodeCache.invalidateLine(firstFrame, offset, 64, (action) => action());
    assert.equal(enter(asked), false, `${offset}`);
    assert.equal(enter(decodeCache.pageOf(slot)!), true);
  }
});
