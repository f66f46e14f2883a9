// Exceptions and changes of address space in emitted code against those in TypeScript: over random states they leave the same
// vCPU record, or leave everything as it was and ask TypeScript.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { sysreg } from '../a64/system-registers.ts';
import { RECORD_BYTES, SP_SLOT } from '../a64/operand.ts';
import { DAIF_CLR, trapNames } from '../a64/slow.ts';
import type { TrapName } from '../a64/slow.ts';
import {
  TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, VCPU_BYTES, VICTIM_ENTRIES, tlbCoverage, tlbCoverageOffset, tlbOffsets,
  vcpuRecord, victimsOf, xOffset,
} from '../abi/vcpu.ts';
import { SeededRandom } from '../base/random.ts';
import type { Callable } from '../wasm/function.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { trapSignature } from './emitted-calls.ts';
import { emitTraps } from './emitted-traps.ts';
import { emitWalk } from './emitted-walk.ts';
import { SCTLR_SPAN, exceptionClass, faultStatus, syndrome } from './exceptions.ts';
import { handlerSignature, interpreterLayout } from './handlers.ts';
import { useLine } from './lines-in-use.ts';
import { GUEST_BASE, createTestMachine } from './test-machine.ts';
import { fillExecTlb, flushAll, updateAsid } from './tlb.ts';
import { TrapHandlers } from './traps.ts';

const at = vcpuRecord.at;
const coverage = (field: keyof typeof tlbCoverage.at): number => tlbCoverageOffset + tlbCoverage.at[field];
const SEED = 11;
const PAGE = BigInt(GUEST_BASE);
/** Not in the exec TLB. */
const ELSEWHERE = BigInt(GUEST_BASE + 0x5000);
const TCR_A1 = 1n << 22n;
const TCR_AS = 1n << 36n;
const ISS_WNR = 1 << 6;

type Trap = (vcpu: number, a: number, b: number, c: number, d: number) => void;
interface Emitted extends Record<'svc' | 'eret' | 'msr' | 'msrImmediate', Trap> {
  dataAbort(vcpu: number, va: bigint, status: number, isWrite: number): number;
  instructionAbort(vcpu: number, va: bigint, status: number): number;
}

function createRig() {
  const m = createTestMachine();
  const { machine, engine, vcpu } = m;
  const module = new ModuleBuilder(handlerSignature, { addressType: 'i32', minPages: 1, maxPages: machine.parameters.sizeBytes / 65536 });
  const imports = Object.fromEntries(trapNames.map(name => [name, module.importFunction(name, trapSignature)])) as Record<TrapName, Callable>;
  const { traps, dataAbort, instructionAbort } = emitTraps(module, imports, emitWalk(module, interpreterLayout(machine)).fillExec);
  for (const name of ['svc', 'eret', 'msr', 'msrImmediate'] as const) module.export(name, traps[name]);
  module.export('dataAbort', dataAbort);
  module.export('instructionAbort', instructionAbort);
  /** How often emitted code has asked TypeScript. */
  const asked = { count: 0 };
  const counting = Object.fromEntries(trapNames.map(name => [name, () => { asked.count++; }]));
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory: machine.memory, ...counting } });
  const slot = engine.decodeCache.slotFor(machine.firstFrame);
  const bytes = machine.u8.subarray(vcpu.address, vcpu.address + VCPU_BYTES);
  return { vcpu, engine, slot, bytes, asked, emitted: exports as unknown as Emitted, handlers: new TrapHandlers(engine).table() };
}
type Rig = ReturnType<typeof createRig>;

/** A vCPU in code, at an instruction of the page that both exec TLBs have. */
function randomState({ vcpu, slot }: Rig, random: SeededRandom): void {
  const one = (sides: number): boolean => random.u32() % sides === 0;
  const wide = (): bigint => BigInt(random.u32()) << 32n | BigInt(random.u32());
  flushAll(vcpu);
  for (const { exec } of tlbOffsets) fillExecTlb(vcpu, exec, GUEST_BASE, 0, slot);
  vcpu.set32(at.record, 0);
  vcpu.set64(at.sctlrEl1, BigInt(one(2) ? SCTLR_SPAN : 0) | BigInt(random.u32() % 4) << 3n);
  vcpu.set64(at.cpacrEl1, BigInt(random.u32() % 4) << 20n);
  for (const offset of [at.spEl0, at.spEl1, xOffset(SP_SLOT), at.flagN, at.farEl1, at.esrEl1]) vcpu.set64(offset, wide());
  vcpu.set64(at.flagZ, one(2) ? 0n : wide());
  vcpu.set32(at.flagC, random.u32() & 1);
  vcpu.set32(at.flagV, random.u32());
  const el = random.u32() & 1;
  vcpu.enterEl(el, el & random.u32());
  vcpu.set64(xOffset(SP_SLOT), wide());
  vcpu.set32(at.daif, random.u32() & 0x3c0);
  vcpu.set32(at.pan, one(2) ? 1 << 22 : 0);
  vcpu.set32(at.pstateRest, one(4) ? 1 << 21 : 0);
  vcpu.set32(at.irqLine, one(4) ? 1 : 0);
  vcpu.set32(at.pending, one(8) ? 1 : 0);
  vcpu.set32(at.charged, random.u32() % 5);
  vcpu.set32(at.abort, 0);
  vcpu.set64(at.exclusiveAddress, wide());
  vcpu.set64(at.vbarEl1, PAGE | 0x800n);
  vcpu.set64(at.elrEl1, PAGE | BigInt(random.u32() & 0xffc));
  const mode = [0, 4, 5, random.u32() & 0x1f][random.u32() % 4]!;
  vcpu.set64(at.spsrEl1, BigInt(((random.u32() & 0xf04003c0) | mode | (one(8) ? 1 << 20 : 0)) >>> 0));
  if (one(4)) vcpu.set32(coverage('userEntriesAtEl1'), 1);
  const place = 16 * (random.u32() % 1024);
  vcpu.set64(at.pcBase, PAGE - BigInt(slot >>> 2));
  vcpu.set32(at.record, slot + place);
  vcpu.set32(at.fuel, slot + place + RECORD_BYTES * (2 + random.u32() % 1000));
}

/** What differs between two copies of the record. */
function difference(a: Uint8Array, b: Uint8Array): string {
  if (Buffer.compare(a, b) === 0) return '';
  const offsets = [...a.keys()].filter(offset => a[offset] !== b[offset]);
  const names = Object.entries(at).toSorted(([, one], [, other]) => other - one);
  return [...new Set(offsets.map(offset => names.find(([, start]) => start <= offset)?.[0] ?? offset))].join();
}

interface Case {
  readonly name: string;
  /** @returns false if nothing was done */
  readonly emitted: (rig: Rig) => boolean;
  readonly inTypeScript: (rig: Rig) => void;
}
const trap = (name: 'svc' | 'eret' | 'msrImmediate', argument = 0, immediate = 0): Case => ({
  name: immediate === 0 ? name : `${name}, ${immediate}`,
  emitted: rig => {
    const before = rig.asked.count;
    rig.emitted[name](rig.vcpu.address, argument, immediate, 0, 0);
    return rig.asked.count === before;
  },
  inTypeScript: rig => rig.handlers[name](rig.vcpu.address, argument, immediate, 0, 0),
});
const VA = 0xffff_8000_1234_5678n;
const cases: readonly Case[] = [
  trap('svc', 0xabcd), trap('eret'), trap('msrImmediate', DAIF_CLR, 2), trap('msrImmediate', DAIF_CLR, 13),
  ...[false, true].map(isWrite => ({
    name: `data abort${isWrite ? ' of a write' : ''}`,
    emitted: ({ emitted, vcpu }: Rig) => emitted.dataAbort(vcpu.address, VA, faultStatus.translation + 3, Number(isWrite)) !== 0,
    inTypeScript: ({ vcpu, engine }: Rig) => {
      vcpu.set32(at.abort, 1);
      vcpu.set64(at.farEl1, VA);
      vcpu.set32(at.tlbMisses, vcpu.get32(at.tlbMisses) + 1);
      const ec = vcpu.el === 0 ? exceptionClass.dataAbortLower : exceptionClass.dataAbort;
      engine.fault(vcpu, syndrome(ec, faultStatus.translation + 3 | (isWrite ? ISS_WNR : 0)));
    },
  })),
];

for (const { name, emitted, inTypeScript } of cases) {
  test(`${name}: the same as in TypeScript, or nothing`, () => {
    const random = new SeededRandom(SEED);
    const rig = createRig();
    let done = 0;
    let left = 0;
    for (let round = 0; round < 1500; round++) {
      randomState(rig, random);
      const before = rig.bytes.slice();
      const isDone = emitted(rig);
      const actual = rig.bytes.slice();
      const what = `seed ${SEED}, round ${round}`;
      if (!isDone) {
        assert.equal(difference(actual, before), '', `${what}: nothing was to be done`);
        left++;
        continue;
      }
      rig.bytes.set(before);
      inTypeScript(rig);
      assert.equal(difference(actual, rig.bytes), '', what);
      done++;
    }
    assert.ok(done > 500 && left > 50, `${done} done, ${left} left`);
  });
}

test('an instruction abort: the branch has retired, and the vCPU is at the vector', () => {
  const rig = createRig();
  const { vcpu, emitted, slot } = rig;
  const random = new SeededRandom(SEED);
  const seen = [0, 0];
  for (let round = 0; round < 100; round++) {
    randomState(rig, random);
    vcpu.set32(at.pending, 0);
    vcpu.set32(coverage('userEntriesAtEl1'), 0);
    const { el } = vcpu;
    const [charged, left] = [vcpu.get32(at.charged), vcpu.get32(at.fuel) - vcpu.get32(at.record)];
    assert.equal(emitted.instructionAbort(vcpu.address, VA, faultStatus.permission + 2), 1);
    const ec = el === 0 ? exceptionClass.instructionAbortLower : exceptionClass.instructionAbort;
    assert.equal(vcpu.get32(at.esrEl1), syndrome(ec, faultStatus.permission + 2));
    assert.deepEqual([vcpu.get64(at.farEl1), vcpu.get64(at.elrEl1)], [VA, VA]);
    assert.equal(vcpu.get32(at.charged), charged);
    assert.equal(vcpu.get32(at.fuel) - vcpu.get32(at.record), left - RECORD_BYTES);
    assert.ok(vcpu.get32(at.record) >= slot + 4 * 0x800);
    assert.equal(vcpu.el, 1);
    seen[el]!++;
  }
  assert.ok(seen.every(count => count > 20));
});

test('where the code is not in the exec TLB, the vCPU is out of code before it, with the fuel that is left', () => {
  const rig = createRig();
  const { vcpu, emitted } = rig;
  for (const target of [ELSEWHERE, PAGE | 2n, PAGE | 1n << 60n]) {
    randomState(rig, new SeededRandom(SEED));
    vcpu.enterEl(1, 1);
    vcpu.set64(at.spsrEl1, 0n);
    vcpu.set32(at.irqLine, 0);
    vcpu.set64(at.elrEl1, target);
    const left = vcpu.get32(at.fuel) - vcpu.get32(at.record);
    emitted.eret(vcpu.address, 0, 0, 0, 0);
    assert.equal(rig.asked.count, 0);
    assert.deepEqual([vcpu.get32(at.record), vcpu.get64(at.pcBase), vcpu.get32(at.fuel), vcpu.el],
      [0, target, left - RECORD_BYTES, 0]);
  }
});

test('without fuel the vCPU is at the target all the same, so that it is seen there', () => {
  const rig = createRig();
  const { vcpu, emitted, slot } = rig;
  randomState(rig, new SeededRandom(SEED));
  vcpu.enterEl(1, 1);
  vcpu.set64(at.spsrEl1, 0n);
  for (const word of [at.irqLine, at.pending]) vcpu.set32(word, 0);
  vcpu.set64(at.elrEl1, PAGE | 0x40n);
  vcpu.set32(at.fuel, vcpu.get32(at.record) + RECORD_BYTES);
  emitted.eret(vcpu.address, 0, 0, 0, 0);
  assert.deepEqual([vcpu.get32(at.record), vcpu.get32(at.fuel)], [slot + 4 * 0x40, slot + 4 * 0x40]);
});

test('MSR TTBR0_EL1 and TTBR1_EL1: the same as in TypeScript, or nothing', () => {
  const random = new SeededRandom(SEED);
  const rig = createRig();
  const { vcpu, emitted, handlers, bytes, asked } = rig;
  const one = (sides: number): boolean => random.u32() % sides === 0;
  let [done, left, emptied] = [0, 0, 0];
  for (let round = 0; round < 1000; round++) {
    randomState(rig, random);
    // As EL1 runs no code of the lower half.
    flushAll(vcpu);
    vcpu.enterEl(one(16) ? 0 : 1, 1);
    vcpu.set32(at.irqLine, 0);
    vcpu.set64(at.tcrEl1, (one(2) ? TCR_A1 : 0n) | (one(2) ? TCR_AS : 0n));
    for (const offset of [at.ttbr0El1, at.ttbr1El1]) vcpu.set64(offset, BigInt(random.u32() % 3) << 55n | 0x1000n);
    updateAsid(vcpu);
    vcpu.set32(coverage('globalInLowerHalf'), random.u32() % 2);
    if (one(8)) vcpu.set32(coverage('notGlobalInUpperHalf'), 1);
    if (one(8)) vcpu.set32(coverage('lowerHalfAtEl1'), 1);
    for (const [el, { read, write, exec }] of tlbOffsets.entries()) {
      for (const tlb of [read, write, exec]) {
        for (let i = 0; i < 4; i++) {
          const place = tlb + TLB_ENTRY_BYTES * (random.u32() % TLB_ENTRIES);
          useLine(vcpu, (vcpu.address + place) / 4);
          vcpu.set64(place, el === 0 ? 0x3000n : 0xffff_8000_0000_3000n);
          vcpu.set64(victimsOf(tlb) + TLB_ENTRY_BYTES * (random.u32() % VICTIM_ENTRIES), el === 0 ? 0x3000n : 0xffff_8000_0000_4000n);
        }
      }
    }
    vcpu.setX(3, BigInt(random.u32() % 5) << 54n | 0x2000n);
    const encoding = one(2) ? sysreg.TTBR0_EL1 : sysreg.TTBR1_EL1;
    const before = bytes.slice();
    const askedBefore = asked.count;
    emitted.msr(vcpu.address, encoding, xOffset(3), 0, 0);
    if (asked.count !== askedBefore) {
      assert.equal(difference(bytes, before), '', `round ${round}: nothing was to be done`);
      left++;
      continue;
    }
    const actual = withoutEmpty(rig);
    bytes.set(before);
    const entries = withoutEmpty(rig).length;
    handlers.msr(vcpu.address, encoding, xOffset(3), 0, 0);
    assert.deepEqual(actual, withoutEmpty(rig), `seed ${SEED}, round ${round}`);
    if (actual.length < entries) emptied++;
    done++;
  }
  assert.ok(done > 500 && left > 50 && emptied > 100, `${done} done, ${emptied} emptied, ${left} left`);
  emitted.msr(vcpu.address, sysreg.VBAR_EL1, xOffset(3), 0, 0);
  assert.ok(asked.count > left, 'other registers are not for emitted code');
});

/** What a record says, and the entries of its TLBs that are not empty, in lines in use or not. */
function withoutEmpty({ vcpu, bytes }: Rig): readonly string[] {
  const digest = (from: number, sizeBytes: number): string =>
    createHash('sha256').update(bytes.subarray(from, from + sizeBytes)).digest('hex');
  const found = [`record ${digest(0, vcpuRecord.sizeBytes)}`, `coverage ${digest(tlbCoverageOffset, tlbCoverage.sizeBytes)}`];
  for (const tlb of tlbOffsets.flatMap(({ read, write, exec }) => [read, write, exec])) {
    for (const [from, count] of [[tlb, TLB_ENTRIES], [victimsOf(tlb), VICTIM_ENTRIES]] as const) {
      for (let i = 0; i < count; i++) {
        const tag = vcpu.get64(from + TLB_ENTRY_BYTES * i);
        if (tag !== 0n && (tag & BigInt(TLB_INVALID_TAG)) === 0n) found.push(`${from} ${i} ${tag.toString(16)}`);
      }
    }
  }
  return found;
}
