// Regions that go on in other pages, and into functions that they call: with the interpreter's results and counts, and only
// where what is there is what they were made for, however that changes.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../../a64/test-assembler.ts';
import { FIRST_REGION, HANDLER_UNDEFINED, SLOT_CONTENT } from '../../abi/decode-cache.ts';
import { TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, tlbOffsets } from '../../abi/vcpu.ts';
import { GUEST_BASE, createTestMachine, runToHypercall } from '../test-machine.ts';
import type { TestMachine, TestMachineOptions } from '../test-machine.ts';
import { flushAddress } from '../tlb.ts';
import { RegionClient } from './region-client.ts';
import type { HotPlace } from './region-parcels.ts';

const PAGE = 4096;
const LOOPS = 2000;
const [BORDER, FUNCTION, COPY, DATA] = [1, 5, 9, 20].map(page => GUEST_BASE + page * PAGE) as [number, number, number, number];
const START = BORDER - 16;

function call(from: number, to: number): number {
  return (0x9400_0000 | ((to - from) / 4 & 0x3ff_ffff)) >>> 0;
}
/** A loop that calls a function in another page twice and lies across the border of two pages. Of a round, and behind it. */
function caller(): number[] {
  return new Assembler(START).label('again').word(call(START, FUNCTION)).ldadd(6, 5, 4).word(call(START + 8, FUNCTION)).add(2, 2, 1)
    .subs(0, 0, 1).bCond('ne', 'again').hvc(0).words();
}
const OF_FUNCTION = 6;
const ROUND = 6 + 2 * OF_FUNCTION;
/** x1 += step, in a function that calls another. */
function callee(step: number): number[] {
  return new Assembler(FUNCTION).movReg(9, 30).bl('inner').movReg(30, 9).ret().label('inner').add(1, 1, step).ret().words();
}

function run(m: TestMachine, x1 = 0): { x1: number; x2: number; retired: number } {
  const { vcpu } = m;
  [LOOPS, x1, 0, 0, DATA, 0, 1].forEach((value, n) => vcpu.setX(n, BigInt(value)));
  const retired = runToHypercall(m, START, { instructions: 5000, slicesMax: 20 });
  return { x1: Number(vcpu.x(1)), x2: Number(vcpu.x(2)), retired: Number(retired) };
}
const done = (x1: number) => ({ x1, x2: LOOPS, retired: ROUND * LOOPS + 1 });
const steps = (step: number) => done(2 * LOOPS * step);

function slotOf({ engine, machine }: TestMachine, address: number): number {
  return engine.decodeCache.slotFor(machine.firstFrame + Math.floor((address - GUEST_BASE) / PAGE));
}
const recordOf = (m: TestMachine, address: number): number => slotOf(m, address) + (address % PAGE) * 4;
const contentOf = (m: TestMachine, address: number): bigint => m.machine.u64[(slotOf(m, address) + SLOT_CONTENT) / 8]!;

/** A machine on which the loop has become a region. */
function warm(options: TestMachineOptions = {}, followCallsAfter = 0, runsMax = 3): TestMachine {
  const m = createTestMachine({ ...options, regions: { quantumMin: 300, hotSamples: 1, followCallsAfter } });
  m.load(START, caller());
  for (const [address, step] of [[FUNCTION, 3], [COPY, 7]] as const) m.load(address, callee(step));
  for (let runs = 0; runs < runsMax; runs++) assert.deepEqual(run(m), steps(3));
  assert.ok(m.machine.u16[recordOf(m, START) / 2]! >= FIRST_REGION, 'the loop is a region');
  return m;
}

/** Whoever runs one of these in the interpreter gets an exception, and does not come to the end. */
function forbid(m: TestMachine, address: number, count: number): void {
  for (let i = 0; i < count; i++) m.machine.u16[recordOf(m, address + 4 * i) / 2] = HANDLER_UNDEFINED;
}
/** The function's page is another one from now on. */
function remap({ host, engine, vcpu }: TestMachine, to: number): void {
  const frameForRead = Object.getPrototypeOf(host).frameForRead.bind(host) as typeof host.frameForRead;
  host.frameForRead = (of, frame) => frameForRead(of, frame === FUNCTION / PAGE ? to / PAGE : frame);
  engine.flushTlb(vcpu);
}

for (const addressType of ['i32', 'i64'] as const) {
  test(`a loop over the border of a page, with calls into another, is not left: ${addressType} memory`, () => {
    const m = warm({ addressType });
    forbid(m, START + 4, 3);
    forbid(m, BORDER, 2);
    forbid(m, FUNCTION, OF_FUNCTION);
    assert.deepEqual(run(m), steps(3));
  });
}

test('calls are followed from what has been hot for long, not before', () => {
  const [soon, late] = [warm({}, 10_000, 30), warm({}, 100_000_000, 30)];
  assert.ok(soon.translator!.regionCount > late.translator!.regionCount, 'some regions were made anew');
  forbid(late, FUNCTION, OF_FUNCTION);
  assert.throws(() => run(late), /does not end/);
});

test('a place is asked for when it is hot, and once more when a region there has been', () => {
  const { machine } = createTestMachine();
  const asked: HotPlace[] = [];
  const client = new RegionClient(machine, { request: places => asked.push(...places), receive: () => undefined }, { quantumMin: 300, followCallsAfter: 2000 });
  const neighbours = new Int32Array([1, 2]);
  const [RECORD, OTHER] = [0x1000, 0x2000];
  const sample = (record: number, handler: number): void => {
    while (!client.passed(100));
    client.sample(record, handler, () => neighbours);
    client.send();
  };
  sample(RECORD, HANDLER_UNDEFINED);
  assert.deepEqual(asked, []);
  sample(RECORD, HANDLER_UNDEFINED);
  assert.deepEqual(asked.splice(0), [{ record: RECORD, neighbours, followsCalls: false }]);
  for (const record of [RECORD, OTHER]) sample(record, FIRST_REGION);
  assert.deepEqual(asked, []);
  for (let i = 0; i < 3; i++) sample(RECORD, FIRST_REGION);
  assert.deepEqual(asked, [{ record: RECORD, neighbours, followsCalls: true }]);
});

test('a function that has changed is not run as it was before', () => {
  const m = warm();
  for (const step of [5, 6, 8]) {
    m.load(FUNCTION, callee(step));
    assert.equal(contentOf(m, FUNCTION), 0n);
    for (let runs = 0; runs < 2; runs++) assert.deepEqual(run(m), steps(step));
  }
});

test('a page that is mapped elsewhere is run from there, and one of the same content without leaving the region', () => {
  const m = warm();
  remap(m, COPY);
  assert.deepEqual(run(m), steps(7));
  m.load(COPY, callee(3));
  for (let runs = 0; runs < 3; runs++) assert.deepEqual(run(m), steps(3));
  assert.equal(contentOf(m, COPY), contentOf(m, FUNCTION));
  forbid(m, COPY, OF_FUNCTION);
  assert.deepEqual(run(m), steps(3));
  remap(m, FUNCTION);
  assert.deepEqual(run(m), steps(3));
});

test('what an empty TLB entry holds beside its tag does not matter', () => {
  const m = warm();
  const { vcpu, machine } = m;
  const first = vcpu.address + tlbOffsets[vcpu.el as 0 | 1].exec;
  machine.u8.fill(0xf8, first, first + TLB_ENTRIES * TLB_ENTRY_BYTES);
  assert.ok((0xf8f8 & TLB_INVALID_TAG) !== 0);
  assert.deepEqual(run(m), steps(3));
});

test('a page that is mapped elsewhere in the middle of a region, while an access waits, is run from there at the next call', () => {
  const m = warm();
  const { host, vcpu } = m;
  const frameForWrite = host.frameForWrite.bind(host);
  let waits = 0;
  host.frameForWrite = (of, frame) => {
    if (frame === DATA / PAGE && waits++ === 0) remap(m, COPY);
    return frameForWrite(of, frame);
  };
  // Code stays in its TLB, so that the region has found the function when the access is made.
  vcpu.writeFrames.clear();
  flushAddress(vcpu, DATA, 0);
  assert.deepEqual(run(m), done(3 + 7 * (2 * LOOPS - 1)));
  assert.equal(waits, 1);
});

test('a return to somewhere else than where the call came from goes there', () => {
  const m = createTestMachine({ regions: { quantumMin: 300, hotSamples: 1, followCallsAfter: 0 } });
  // In every other round of the loop the function returns to another page, from where control comes back.
  m.load(START, new Assembler(START).label('again').word(call(START, FUNCTION)).add(2, 2, 1).subs(0, 0, 1).bCond('ne', 'again').hvc(0).words());
  m.load(FUNCTION, new Assembler(FUNCTION).tbnz(0, 0, 'usual').movReg(30, 4).label('usual').add(1, 1, 1).ret().words());
  const back = (0x1400_0000 | ((START + 8 - DATA - 4) / 4 & 0x3ff_ffff)) >>> 0;
  m.load(DATA, new Assembler(DATA).add(2, 2, 5).word(back).words());
  for (let runs = 0; runs < 4; runs++) {
    assert.deepEqual(run(m), { x1: LOOPS, x2: 6 * LOOPS / 2, retired: 16 * LOOPS / 2 + 1 });
  }
  assert.ok(m.machine.u16[recordOf(m, START) / 2]! >= FIRST_REGION, 'the loop is a region');
});

test('what is said to be in a page is not true any more as soon as any line of it changes', () => {
  const m = createTestMachine();
  const page = m.engine.decodeCache.pageOf(slotOf(m, FUNCTION))!;
  m.engine.decodeCache.enterRegion({ ...page, index: 3 }, [], FIRST_REGION, [{ page, content: 5n }]);
  assert.equal(contentOf(m, FUNCTION), 5n);
  // No record of that line has been decoded.
  m.engine.decodeCache.invalidateLine(page.mfn, 2048, 64, action => action());
  assert.equal(contentOf(m, FUNCTION), 0n);
  m.engine.decodeCache.enterRegion({ ...page, index: 3 }, [], FIRST_REGION, [{ page, content: 5n }]);
  assert.equal(contentOf(m, FUNCTION), 0n, 'known of before the change');
});
