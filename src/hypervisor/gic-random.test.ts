// Guests that access every register at random: nothing throws, and what the controller signals stays consistent.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { sysreg, systemRegister } from '../a64/system-registers.ts';
import { InterruptRig, gicd, gicr } from './test-interrupts.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const VCPUS = 2;

type Step = (rig: InterruptRig) => void;

const value = fc.oneof(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.integer({ min: 0, max: 255 }));
const vcpu = fc.integer({ min: 0, max: VCPUS - 1 });
const address = fc.oneof(
  fc.integer({ min: 0, max: 0xfff }).map(gicd),
  fc.integer({ min: 0x6000, max: 0x7fff }).map(gicd),
  fc.integer({ min: 0xffc0, max: 0xffff }).map(gicd),
  fc.tuple(vcpu, fc.integer({ min: 0, max: 0x30 })).map(([index, offset]) => gicr(index, offset)),
  fc.tuple(vcpu, fc.integer({ min: 0x1_0000, max: 0x1_1000 })).map(([index, offset]) => gicr(index, offset)),
  fc.integer({ min: 0, max: VCPUS * 0x2_0000 - 1 }).map(offset => gicr(0, offset)),
);
const size = fc.constantFrom(1, 2, 4, 8);
const encoding = fc.oneof(
  fc.constantFrom(...Object.entries(sysreg).filter(([name]) => name.startsWith('ICC_')).map(([, e]) => e)),
  fc.tuple(fc.constantFrom(8, 9, 11, 12), fc.integer({ min: 0, max: 7 }))
    .map(([crm, op2]) => systemRegister(3, 0, 12, crm, op2)),
);
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.tuple(address, size, vcpu).map(([a, s, v]): Step => rig => void rig.registers.load(rig.vcpus[v]!, a, s)),
  fc.tuple(address, size, vcpu, value).map(([a, s, v, x]): Step => rig => rig.store(a, x, s, v)),
  fc.tuple(encoding, vcpu).map(([e, v]): Step => rig => void rig.cpu.read(rig.vcpus[v]!, e)),
  fc.tuple(encoding, vcpu, value, value)
    .map(([e, v, low, high]): Step => rig => void rig.cpu.write(rig.vcpus[v]!, e, low, high)),
  fc.tuple(fc.integer({ min: 16, max: 255 }), vcpu, fc.boolean())
    .map(([n, v, level]): Step => rig => rig.raise(n, level, v)),
);

test('random accesses never throw; the IRQ line says what an acknowledge would find', () => {
  fc.assert(fc.property(fc.array(step, { maxLength: 120 }), steps => {
    const rig = new InterruptRig(VCPUS, machine);
    rig.enable();
    for (const doStep of steps) doStep(rig);
    for (let index = 0; index < VCPUS; index++) {
      const line = rig.irq(index);
      const highest = rig.read(index, sysreg.ICC_HPPIR1_EL1);
      const intid = rig.acknowledge(index);
      assert.equal(intid !== 1023, line);
      if (line) assert.equal(intid, highest);
    }
  }), { seed, numRuns: 400 });
});

/** One for all runs: reserving a machine costs more than a run, and each rig starts from reset. */
const { machine } = new InterruptRig(VCPUS);

test('every interrupt raised is handled once, whatever the order of priorities', () => {
  const interrupts = fc.uniqueArray(fc.tuple(fc.integer({ min: 16, max: 255 }), fc.integer({ min: 0, max: 30 })),
    { maxLength: 40, selector: ([intid]) => intid });
  fc.assert(fc.property(interrupts, list => {
    const rig = new InterruptRig(1, machine);
    rig.enable();
    for (let word = 1; word < 8; word++) rig.store(gicd(0x100 + 4 * word), 0xffff_ffff);
    for (const [intid, priority] of list) {
      rig.store(intid < 32 ? gicr(0, 0x1_0400 + intid) : gicd(0x400 + intid), priority * 8, 1);
      rig.raise(intid);
    }
    const seen: [number, number][] = [];
    const priorities = new Map(list);
    for (let intid = rig.acknowledge(); intid !== 1023; intid = rig.acknowledge()) {
      seen.push([intid, priorities.get(intid)!]);
      rig.raise(intid, false);
      rig.end(intid);
    }
    assert.deepEqual(seen, list.toSorted(([a, p], [b, q]) => p - q || a - b));
    assert.equal(rig.irq(), false);
  }), { seed, numRuns: 200 });
});
