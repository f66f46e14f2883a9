// What the differential tests cannot see: instructions of EL1 that have a fast form.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { vcpuRecord } from '../../abi/vcpu.ts';
import { GUEST_BASE, createTestMachine, exceptionClassOf } from '../../cpu/test-machine.ts';

const at = vcpuRecord.at;
const HVC = 0xd4000002;
const daifSet = (bits: number): number => (0xd50340df | (bits << 8)) >>> 0;
const daifClr = (bits: number): number => (0xd50340ff | (bits << 8)) >>> 0;
const VECTORS = GUEST_BASE + 0x1000;
/** From the current exception level with its own stack pointer, and from the lower one. */
const IRQ_CURRENT = 0x280;
const SYNCHRONOUS_LOWER = 0x400;
const EC_SYSTEM_REGISTER = 0x18;
const SCTLR_UMA = 1n << 9n;
const CNTKCTL_EL0VCTEN = 2n;
const MSR_DAIF_X3 = 0xd51b4223;
const MRS_X3_CNTVCT = 0xd53be043;
const ENOUGH_INSTRUCTIONS = 100;

/** Interpreted; and compiled, whatever it is. */
const machines = [createTestMachine(), createTestMachine({ forced: {} })];
let { vcpu, engine, load } = machines[0]!;

/** Runs words at GUEST_BASE until an HVC, their own or that of a vector. */
function run(words: readonly number[], setUp: { el: 0 | 1; daif: number; irqLine?: number }): void {
  load(GUEST_BASE, [...words, HVC]);
  for (const vector of [IRQ_CURRENT, SYNCHRONOUS_LOWER]) load(VECTORS + vector, [HVC]);
  vcpu.enterEl(setUp.el, setUp.el);
  vcpu.set32(at.daif, setUp.daif);
  vcpu.set32(at.irqLine, setUp.irqLine ?? 0);
  vcpu.set64(at.vbarEl1, BigInt(VECTORS));
  vcpu.set64(at.pcBase, BigInt(GUEST_BASE));
  assert.equal(engine.run(vcpu, ENOUGH_INSTRUCTIONS), 'host');
}

test('MSR DAIFSet and DAIFClr change the bits they name', () => {
  for (let bits = 0; bits < 16; bits++) {
    for (const daif of [0, 0x3c0, 0x140, 0x280]) {
      run([daifSet(bits)], { el: 1, daif });
      assert.equal(vcpu.get32(at.daif), daif | (bits << 6));
      run([daifClr(bits)], { el: 1, daif });
      assert.equal(vcpu.get32(at.daif), daif & ~(bits << 6));
    }
  }
});

test('unmasking takes a waiting interrupt before the next instruction', () => {
  run([daifClr(2)], { el: 1, daif: 0x80, irqLine: 1 });
  assert.equal(vcpu.get64(at.elrEl1), BigInt(GUEST_BASE + 4));
  assert.equal(vcpu.get32(at.spsrEl1) & 0x3c0, 0);
});

test('a waiting interrupt stays masked when other bits are cleared', () => {
  vcpu.set64(at.elrEl1, 0n);
  run([daifClr(8)], { el: 1, daif: 0x280, irqLine: 1 });
  assert.equal(vcpu.get32(at.daif), 0x80);
  assert.equal(vcpu.get64(at.elrEl1), 0n);
});

test('MSR DAIF takes a waiting interrupt only if it unmasks it', () => {
  for (const machine of machines) {
    ({ vcpu, engine, load } = machine);
    vcpu.set64(at.elrEl1, 0n);
    vcpu.setX(3, 0x180n);
    run([MSR_DAIF_X3], { el: 1, daif: 0x3c0, irqLine: 1 });
    assert.deepEqual([vcpu.get32(at.daif), vcpu.get64(at.elrEl1)], [0x180, 0n]);
    vcpu.setX(3, 0x140n);
    run([MSR_DAIF_X3], { el: 1, daif: 0x3c0, irqLine: 1 });
    assert.deepEqual([vcpu.get32(at.spsrEl1) & 0x3c0, vcpu.get64(at.elrEl1)], [0x140, BigInt(GUEST_BASE + 4)]);
  }
});

test('MRS CNTVCT_EL0: 64 bits of the counter; at EL0 only with CNTKCTL_EL1.EL0VCTEN', () => {
  for (const machine of machines) {
    ({ vcpu, engine, load } = machine);
    machine.host.counter = 0x12_fedc_ba98;
    vcpu.set64(at.cntkctlEl1, 0n);
    run([MRS_X3_CNTVCT], { el: 1, daif: 0 });
    assert.equal(vcpu.x(3), 0x12_fedc_ba98n);
    machine.host.counter++;
    run([MRS_X3_CNTVCT], { el: 0, daif: 0 });
    assert.deepEqual([exceptionClassOf(vcpu), vcpu.x(3)], [EC_SYSTEM_REGISTER, 0x12_fedc_ba98n]);
    vcpu.set64(at.cntkctlEl1, CNTKCTL_EL0VCTEN);
    run([MRS_X3_CNTVCT], { el: 0, daif: 0 });
    assert.equal(vcpu.x(3), 0x12_fedc_ba99n);
  }
});

test('at EL0 both are trapped unless SCTLR_EL1.UMA allows them', () => {
  for (const word of [daifSet(2), daifClr(2)]) {
    vcpu.set64(at.sctlrEl1, 0n);
    run([word], { el: 0, daif: 0 });
    assert.equal(exceptionClassOf(vcpu), EC_SYSTEM_REGISTER);
    assert.equal(vcpu.get64(at.elrEl1), BigInt(GUEST_BASE));
  }
  vcpu.set64(at.sctlrEl1, SCTLR_UMA);
  run([daifSet(2)], { el: 0, daif: 0 });
  assert.equal(vcpu.get32(at.spsrEl1) & 0x3c0, 0x80);
  run([daifClr(2)], { el: 0, daif: 0x80 });
  assert.equal(vcpu.get32(at.spsrEl1) & 0x3c0, 0);
});
