import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GUEST_PL031_BASE as BASE, GUEST_PL031_SPI as SPI, PL031 } from '../../abi/emulated-devices.ts';
import { EmulatedRig } from '../../hypervisor/test-emulated.ts';
import { Pl031 } from './registers.ts';

function open() {
  const clock = { wall: 1_700_000_000_500, monotonicNanos: () => 0, wallMillis: () => clock.wall };
  const model = new Pl031(clock);
  const rig = new EmulatedRig([model], clock);
  return {
    clock, rig, reg: (offset: number) => rig.load(BASE + offset), set: (offset: number, value: number) => rig.store(BASE + offset, value),
    serve: () => model.serve(rig.frame),
  };
}

test('tells the Unix time, and can be set', () => {
  const { clock, rig, reg, set } = open();
  assert.equal(reg(PL031.DR), 1_700_000_000);
  assert.equal(reg(PL031.CR), 1);
  set(PL031.LR, 100);
  assert.deepEqual([reg(PL031.DR), reg(PL031.LR)], [100, 100]);
  clock.wall += 5000;
  assert.equal(reg(PL031.DR), 105);
  assert.deepEqual([0xfe0, 0xfe4, 0xff0].map((offset) => rig.load(BASE + offset)), [0x31, 0x10, 0x0d]);
});

test('the alarm comes when the counter is there, once, and not for a time that has passed', () => {
  const { clock, rig, reg, set, serve } = open();
  assert.equal(serve(), undefined);
  set(PL031.IMSC, 1);
  set(PL031.MR, 1_700_000_003);
  assert(rig.hostWasCalled());
  assert.equal(serve(), 2500);
  assert(!rig.line(SPI));
  clock.wall += 2500;
  assert.equal(serve(), undefined);
  assert.equal(reg(PL031.MIS), 1);
  assert(rig.line(SPI));
  set(PL031.ICR, 1);
  assert(!rig.line(SPI));
  set(PL031.MR, 1_600_000_000);
  assert.equal(serve(), undefined);
  set(PL031.IMSC, 0);
  set(PL031.MR, 1_700_000_004);
  clock.wall += 3000;
  serve();
  assert.deepEqual([reg(PL031.RIS), reg(PL031.MIS), rig.line(SPI)], [1, 0, false]);
});
