// SP alignment: where SCTLR_EL1.SA (EL1) or SA0 (EL0) is set, an access whose base register is SP faults unless SP is a
// multiple of 16 (Arm ARM: CheckSPAlignment), before anything is accessed or written back.

import assert from 'node:assert/strict';
import test from 'node:test';
import { vcpuRecord, xOffset } from '../../src/abi/vcpu.ts';
import { GUEST_BASE, createTestMachine, exceptionClassOf } from '../../src/cpu/test-machine.ts';

const at = vcpuRecord.at;
const SA = 1n << 3n;
const SA0 = 1n << 4n;
const SP_ALIGNMENT = 0x26;
const STACK = GUEST_BASE + 0x8000;
const VECTORS = GUEST_BASE + 0x1000;
const HVC_STOP = 0xd4000842;
/** Each with SP as base: ldr x0, [sp]; stp x0, x1, [sp, #-16]!; ldr q0, [sp, #16]; ldxr x0, [sp]; ldadd x1, x0, [sp]. */
const ACCESSES = [0xf94003e0, 0xa9bf07e0, 0x3dc007e0, 0xc85f7fe0, 0xf82103e0];
/** Without an access by SP: add x0, sp, #1; prfm pldl1keep, [sp]; ldr x0, [x2]. */
const OTHERS = [0x910007e0, 0xf98003e0, 0xf9400040];

/** Runs one instruction, then HVC. @returns the exception class, or undefined if none was taken */
function run(word: number, el: 0 | 1, sctlr: bigint, sp: number): number | undefined {
  const machine = createTestMachine();
  const { vcpu, engine, host } = machine;
  machine.load(GUEST_BASE, [word, el === 1 ? HVC_STOP : 0xd4000001]);
  for (let vector = 0; vector < 16; vector++) machine.load(VECTORS + 0x80 * vector, [HVC_STOP]);
  vcpu.set64(at.vbarEl1, BigInt(VECTORS));
  vcpu.set64(at.sctlrEl1, sctlr);
  vcpu.set64(at.cpacrEl1, 3n << 20n);
  vcpu.set64(at.spEl0, BigInt(sp));
  vcpu.set64(at.spEl1, BigInt(sp));
  vcpu.enterEl(el, el);
  vcpu.setX(2, BigInt(STACK));
  vcpu.set64(at.pcBase, BigInt(GUEST_BASE));
  while (engine.run(vcpu, 1000) === 'slice');
  assert.equal(host.hypercalls.length, 1);
  if (vcpu.get64(at.elrEl1) !== BigInt(GUEST_BASE)) return undefined;
  assert.equal(vcpu.get64(el === 0 ? at.spEl0 : xOffset(31)), BigInt(sp), 'SP is not written back');
  return exceptionClassOf(vcpu);
}

test('a misaligned SP faults as base register where it is checked, and only there', () => {
  for (const el of [0, 1] as const) {
    const checked = el === 0 ? SA0 : SA;
    for (const word of ACCESSES) {
      assert.equal(run(word, el, checked, STACK + 8), SP_ALIGNMENT, word.toString(16));
      assert.equal(run(word, el, checked, STACK), undefined, 'an aligned one');
      assert.equal(run(word, el, el === 0 ? SA : SA0, STACK + 8), undefined, 'the check of the other level');
    }
    for (const word of OTHERS) assert.equal(run(word, el, checked, STACK + 8), undefined, word.toString(16));
  }
});
