// Hot code becomes regions, in one thread: found by sampling, compiled once for equal pages, given up when there are too
// many, gone when the code changes; and results and counts of instructions stay those of the interpreter.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FIRST_REGION } from '../../abi/decode-cache.ts';
import { Assembler } from '../../a64/test-assembler.ts';
import { vcpuRecord } from '../../abi/vcpu.ts';
import { GUEST_BASE, createTestMachine, runToHypercall } from '../test-machine.ts';
import type { TestMachine, TestVcpu } from '../test-machine.ts';

const LOOPS = 20_000;
const PAGE = 4096;

/** x1 += constant, in a loop that counts x0 down. */
function loop(constant: number): number[] {
  return new Assembler().nop().label('again').add(1, 1, constant).subs(0, 0, 1).bCond('ne', 'again').hvc(0).words();
}
const sum = (constant: number): bigint => BigInt(constant) * BigInt(LOOPS);
const RETIRED = BigInt(3 * LOOPS + 2);

function run(m: TestVcpu, address: number, instructions = 10_000, afterSlice?: () => void): { result: bigint; retired: bigint } {
  m.vcpu.setX(0, BigInt(LOOPS));
  m.vcpu.setX(1, 0n);
  const retired = runToHypercall(m, address, { instructions, slicesMax: 2000, ...(afterSlice && { afterSlice }) });
  return { result: m.vcpu.x(1), retired };
}

/** The handler or region of the loop's first instruction. */
function handlerAt({ engine, machine }: TestMachine, address: number): number {
  const offset = address - GUEST_BASE;
  const slot = engine.decodeCache.slotFor(machine.firstFrame + Math.floor(offset / PAGE));
  return machine.u16[(slot + (offset % PAGE) * 4 + 16) / 2]!;
}

test('a loop that runs long is compiled, with the same result and count', () => {
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  m.load(GUEST_BASE, loop(3));
  assert.deepEqual(run(m, GUEST_BASE), { result: sum(3), retired: RETIRED });
  assert.ok(handlerAt(m, GUEST_BASE) >= FIRST_REGION, 'the loop is a region');
  assert.deepEqual(run(m, GUEST_BASE), { result: sum(3), retired: RETIRED });
});

test('a loop in runs that are shorter than the time between two samples is compiled', () => {
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  const code = new Assembler().nop().label('again').add(1, 1, 3).subs(0, 0, 1).bCond('ne', 'again').mov(0, 20).emit('WFI').b('again');
  m.load(GUEST_BASE, code.words());
  m.vcpu.setX(0, 20n);
  m.vcpu.setX(1, 0n);
  m.vcpu.set64(vcpuRecord.at.pcBase, BigInt(GUEST_BASE));
  const RUNS = 1000;
  for (let runs = 0; runs < RUNS; runs++) assert.equal(m.engine.run(m.vcpu, 100_000), 'wfi');
  assert.equal(m.vcpu.x(1), BigInt(RUNS * 20 * 3));
  assert.equal(m.vcpu.get64(vcpuRecord.at.instructionsRetired), BigInt(RUNS * (20 * 3 + 3)));
  assert.ok(handlerAt(m, GUEST_BASE) >= FIRST_REGION, 'the loop is a region');
});

/** Places of regions, in instructions from the start of the memory. */
function regionsBelow({ engine, machine }: TestMachine, count: number): number[] {
  const slot = engine.decodeCache.slotFor(machine.firstFrame);
  return Array.from({ length: count }, (_, index) => index).filter(index => machine.u16[(slot + index * 16) / 2]! >= FIRST_REGION);
}

test('what comes behind a trap is compiled', () => {
  const m = createTestMachine({ regions: { quantumMin: 500, quantumMax: 1000 } });
  const MRS_CNTFRQ = 0xd53be003;
  const code = new Assembler().nop().label('again').word(MRS_CNTFRQ).add(1, 1, 3).add(1, 1, 4).subs(0, 0, 1).bCond('ne', 'again').hvc(0);
  m.load(GUEST_BASE, code.words());
  assert.equal(run(m, GUEST_BASE, 1000).result, sum(7));
  assert.ok(regionsBelow(m, 7).includes(2), `regions at ${regionsBelow(m, 7)}`);
});

test('where a region ends for its size, the next one begins', () => {
  const m = createTestMachine({ regions: { quantumMin: 500, quantumMax: 1000, regionMax: 6 } });
  const code = new Assembler().nop().label('again');
  for (let i = 0; i < 18; i++) code.add(1, 1, 1);
  m.load(GUEST_BASE, code.subs(0, 0, 1).bCond('ne', 'again').hvc(0).words());
  assert.equal(run(m, GUEST_BASE, 1000).result, sum(18));
  const found = regionsBelow(m, 21);
  assert.deepEqual([1, 7, 13, 19].filter(index => !found.includes(index)), [], `regions at ${found}`);
});

test('equal code in another page is not compiled again', () => {
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  for (let page = 0; page < 4; page++) m.load(GUEST_BASE + page * PAGE, loop(7));
  run(m, GUEST_BASE);
  const { regionCount } = m.translator!;
  for (let page = 1; page < 4; page++) {
    assert.equal(run(m, GUEST_BASE + page * PAGE).result, sum(7));
    assert.equal(handlerAt(m, GUEST_BASE + page * PAGE), handlerAt(m, GUEST_BASE));
  }
  assert.equal(m.translator!.regionCount, regionCount);
});

test('a page with the content of one before gets all of its regions at once', () => {
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  const SECOND = 0x400;
  for (const start of [0, PAGE]) {
    m.load(GUEST_BASE + start, loop(3));
    m.load(GUEST_BASE + start + SECOND, loop(4));
  }
  run(m, GUEST_BASE);
  run(m, GUEST_BASE + SECOND);
  const { regionCount } = m.translator!;
  assert.equal(run(m, GUEST_BASE + PAGE).result, sum(3));
  assert.ok(handlerAt(m, GUEST_BASE + PAGE) >= FIRST_REGION);
  assert.equal(handlerAt(m, GUEST_BASE + PAGE + SECOND), handlerAt(m, GUEST_BASE + SECOND), 'not run yet, and compiled');
  assert.equal(run(m, GUEST_BASE + PAGE + SECOND).result, sum(4));
  assert.equal(m.translator!.regionCount, regionCount);
});

test('emitted code is bounded: all regions are given up at the bound, and what runs on is right', () => {
  const codeMaxBytes = 4096;
  const m = createTestMachine({ regions: { quantumMin: 100, hotSamples: 1, codeMaxBytes } });
  for (let page = 0; page < 12; page++) m.load(GUEST_BASE + page * PAGE, loop(page + 1));
  for (let round = 0; round < 3; round++) {
    for (let page = 0; page < 12; page++) {
      assert.deepEqual(run(m, GUEST_BASE + page * PAGE), { result: sum(page + 1), retired: RETIRED });
      assert.ok(m.translator!.codeBytes < codeMaxBytes, `${m.translator!.codeBytes} bytes of code`);
    }
  }
  assert.ok(m.translator!.resets > 2, `${m.translator!.resets} resets`);
});

test('another thread runs a region as soon as a record names it', () => {
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  const other = m.addVcpu(1);
  m.load(GUEST_BASE, loop(5));
  run(m, GUEST_BASE);
  assert.ok(handlerAt(m, GUEST_BASE) >= FIRST_REGION);
  assert.deepEqual(run(other, GUEST_BASE), { result: sum(5), retired: RETIRED });
});

test('with more regions than there may be all are given up, again and again, and code goes on right', () => {
  const m = createTestMachine({ regions: { quantumMin: 100, hotSamples: 1, regionCountMax: 3 } });
  const other = m.addVcpu(1);
  for (let page = 0; page < 12; page++) m.load(GUEST_BASE + page * PAGE, loop(page + 1));
  for (let round = 0; round < 3; round++) {
    for (let page = 0; page < 12; page++) {
      for (const vcpu of [m, other]) {
        assert.deepEqual(run(vcpu, GUEST_BASE + page * PAGE), { result: sum(page + 1), retired: RETIRED });
      }
    }
  }
  assert.ok(m.translator!.resets > 5, `${m.translator!.resets} resets`);
});

test('numbers of regions that were given up are not run as what they were, though code was invalidated meanwhile', () => {
  const m = createTestMachine({ regions: { quantumMin: 100, hotSamples: 1, regionCountMax: 3 } });
  const other = m.addVcpu(1);
  for (let page = 0; page < 12; page++) m.load(GUEST_BASE + page * PAGE, loop(page + 1));
  let slices = 0;
  const invalidate = (): void => { if (++slices % 7 === 0) m.engine.decodeCache.renew(); };
  for (let page = 0; page < 12; page++) {
    for (const [vcpu, where] of [[m, page], [other, (page + 11) % 12], [m, (page + 10) % 12]] as const) {
      assert.deepEqual(run(vcpu, GUEST_BASE + where * PAGE, 300, invalidate), { result: sum(where + 1), retired: RETIRED });
    }
  }
  assert.ok(m.translator!.resets > 2, `${m.translator!.resets} resets`);
});

test('code that has changed is not run from a region of before', () => {
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  for (const constant of [2, 3, 4, 5]) {
    m.load(GUEST_BASE, loop(constant));
    assert.equal(run(m, GUEST_BASE).result, sum(constant));
    assert.ok(handlerAt(m, GUEST_BASE) >= FIRST_REGION);
  }
});

test('one line that has changed ends the regions that lead through it, wherever in the page they begin', () => {
  const LINE_BYTES = 64;
  const m = createTestMachine({ regions: { quantumMin: 500 } });
  const body = 31;
  const constants = Array<number>(body).fill(3);
  const a = new Assembler().nop().label('again');
  for (const constant of constants) a.add(1, 1, constant);
  m.load(GUEST_BASE, a.subs(0, 0, 1).bCond('ne', 'again').hvc(0).words());
  const words = new Uint32Array(m.ram.buffer, m.ram.byteOffset, 64);
  const check = (): void => {
    const perLoop = constants.reduce((total, constant) => total + constant, 0);
    assert.deepEqual(run(m, GUEST_BASE), { result: sum(perLoop), retired: BigInt((body + 2) * LOOPS + 2) });
    assert.ok(handlerAt(m, GUEST_BASE) >= FIRST_REGION, 'the loop is a region');
  };
  check();
  // The first and last instructions of both lines; the loop begins in the first one.
  for (const index of [16, 31, 20, 15, 1]) {
    constants[index - 1] = 100 + index;
    words[index] = new Assembler().add(1, 1, 100 + index).words()[0]!;
    const offset = Math.floor(4 * index / LINE_BYTES) * LINE_BYTES;
    m.engine.decodeCache.invalidateLine(m.machine.firstFrame, offset, LINE_BYTES, (action) => action());
    check();
  }
});
