import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { sysreg } from '../a64/system-registers.ts';
import { VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { NANOS_PER_TICK, TIMER_HERTZ } from './timer.ts';
import { InterruptRig } from './test-interrupts.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const ENABLE = 1;
const IMASK = 2;
const ISTATUS = 4;

class TimerRig extends InterruptRig {
  get vcpu(): number { return this.vcpus[0]!; }
  readTimer(encoding: number): bigint {
    const vcpu = new VcpuState(this.machine, this.vcpu);
    assert.ok(this.timers.read(vcpu, encoding, vcpuRecord.at.scratch));
    return vcpu.get64(vcpuRecord.at.scratch);
  }
  writeTimer(encoding: number, value: bigint): void {
    const high = Number(BigInt.asUintN(64, value) >> 32n);
    assert.ok(this.timers.write(this.vcpu, encoding, Number(value & 0xffff_ffffn), high));
  }
  pass(ticks: number): void {
    this.clock.nanos += ticks * NANOS_PER_TICK;
    this.timers.update(this.vcpu, this.clock.nanos);
  }
}

function rigWithTimers(): TimerRig {
  const rig = new TimerRig(1);
  rig.enable();
  return rig;
}

test('the counter runs at 62.5 MHz from the domain\'s time, and stands still while that is stopped', () => {
  const rig = rigWithTimers();
  assert.equal(rig.readTimer(sysreg.CNTFRQ_EL0), BigInt(TIMER_HERTZ));
  assert.equal(rig.readTimer(sysreg.CNTVCT_EL0), 0n);
  rig.clock.nanos += 1e9;
  assert.equal(rig.readTimer(sysreg.CNTVCT_EL0), BigInt(TIMER_HERTZ));
  assert.equal(rig.readTimer(sysreg.CNTPCT_EL0), BigInt(TIMER_HERTZ));
  rig.timers.stopTime(rig.domid);
  rig.timers.stopTime(rig.domid);
  rig.clock.nanos += 5e9;
  assert.equal(rig.readTimer(sysreg.CNTVCT_EL0), BigInt(TIMER_HERTZ));
  assert.equal(rig.timers.time(rig.domid), 1e9);
  rig.timers.startTime(rig.domid);
  rig.timers.startTime(rig.domid);
  rig.clock.nanos += 32;
  assert.equal(rig.readTimer(sysreg.CNTVCT_EL0), BigInt(TIMER_HERTZ) + 2n);
  rig.timers.setTime(rig.domid, 3200);
  assert.equal(rig.readTimer(sysreg.CNTVCT_EL0), 200n);
});

test('each timer raises its own interrupt at its comparator, and masking or disabling lowers it', () => {
  const timers = [
    { ctl: sysreg.CNTV_CTL_EL0, cval: sysreg.CNTV_CVAL_EL0, tval: sysreg.CNTV_TVAL_EL0, intid: 27 },
    { ctl: sysreg.CNTP_CTL_EL0, cval: sysreg.CNTP_CVAL_EL0, tval: sysreg.CNTP_TVAL_EL0, intid: 30 },
  ];
  for (const { ctl, cval, tval, intid } of timers) {
    const rig = rigWithTimers();
    rig.writeTimer(cval, 1000n);
    rig.writeTimer(ctl, BigInt(ENABLE));
    assert.equal(rig.timers.nextDeadlineNanos(rig.vcpu), 1e9 + 1000 * NANOS_PER_TICK);
    rig.pass(999);
    assert.equal(rig.irq(), false);
    assert.equal(rig.readTimer(ctl), BigInt(ENABLE));
    assert.equal(rig.readTimer(tval), 1n);
    rig.pass(1);
    assert.equal(rig.irq(), true);
    assert.equal(rig.readTimer(ctl), BigInt(ENABLE | ISTATUS));
    assert.equal(rig.timers.nextDeadlineNanos(rig.vcpu), Infinity, 'it is up already');
    assert.equal(rig.acknowledge(), intid);
    rig.writeTimer(ctl, BigInt(ENABLE | IMASK));
    assert.equal(rig.readTimer(ctl), BigInt(ENABLE | IMASK | ISTATUS));
    rig.end(intid);
    assert.equal(rig.irq(), false);
    rig.pass(9);
    assert.equal(rig.readTimer(tval), 0xffff_fff7n, 'nine ticks ago');
    rig.writeTimer(tval, 50n);
    assert.equal(rig.readTimer(cval), 1059n);
    rig.writeTimer(ctl, BigInt(ENABLE));
    rig.pass(50);
    assert.equal(rig.irq(), true);
    rig.writeTimer(ctl, 0n);
    assert.equal(rig.irq(), false);
  }
});

test('a comparator in the past fires at once; one at the end of time never', () => {
  const rig = rigWithTimers();
  rig.pass(100);
  rig.writeTimer(sysreg.CNTV_TVAL_EL0, 0xffff_fff0n);
  assert.equal(rig.readTimer(sysreg.CNTV_CVAL_EL0), 84n);
  rig.writeTimer(sysreg.CNTV_CTL_EL0, 1n);
  assert.equal(rig.irq(), true);
  rig.writeTimer(sysreg.CNTV_CVAL_EL0, 0xffff_ffff_ffff_ffffn);
  assert.equal(rig.irq(), false);
  assert.equal(rig.readTimer(sysreg.CNTV_CVAL_EL0), 0xffff_ffff_ffff_ffffn);
  rig.pass(2 ** 40);
  assert.equal(rig.irq(), false);
  rig.timers.setTime(rig.domid, 0);
  rig.writeTimer(sysreg.CNTP_TVAL_EL0, 0xffff_ffffn);
  assert.equal(rig.readTimer(sysreg.CNTP_CVAL_EL0), 0xffff_ffff_ffff_ffffn, 'modulo 2^64');
});

test('a deadline before the planned end of the slice takes the vCPU out of emitted code', () => {
  const rig = rigWithTimers();
  rig.kicked();
  rig.scheduling.setNanos(rig.vcpu, VCPU_SCHEDULE.at.sliceEnd, rig.clock.nanos + 1e6);
  rig.writeTimer(sysreg.CNTV_CVAL_EL0, 1_000_000n);
  rig.writeTimer(sysreg.CNTV_CTL_EL0, 1n);
  assert.equal(rig.kicked(), false, '16 ms is after the slice');
  rig.writeTimer(sysreg.CNTV_TVAL_EL0, 100n);
  assert.equal(rig.kicked(), true);
});

test('registers that are not the timers\', and writes to counters, are refused', () => {
  const rig = rigWithTimers();
  assert.equal(rig.timers.read(new VcpuState(rig.machine, rig.vcpu), sysreg.CNTKCTL_EL1, vcpuRecord.at.scratch), false);
  for (const encoding of [sysreg.CNTVCT_EL0, sysreg.CNTPCT_EL0, sysreg.CNTFRQ_EL0, sysreg.CNTKCTL_EL1]) {
    assert.equal(rig.timers.write(rig.vcpu, encoding, 1, 0), false);
  }
});

test('power-on turns both timers off', () => {
  const rig = rigWithTimers();
  rig.writeTimer(sysreg.CNTV_CTL_EL0, 1n);
  assert.equal(rig.irq(), true);
  rig.timers.reset(rig.vcpu);
  assert.equal(rig.irq(), false);
  assert.equal(rig.timers.nextDeadlineNanos(rig.vcpu), Infinity);
});

test('at any time and for any registers, the line is what the architecture says', () => {
  const u64 = fc.oneof(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.bigInt({ min: 0n, max: 5000n }));
  const rig = rigWithTimers();
  fc.assert(fc.property(u64, fc.integer({ min: 0, max: 7 }), fc.integer({ min: 0, max: 5000 }), (cval, ctl, ticks) => {
    rig.timers.setTime(rig.domid, 0);
    rig.writeTimer(sysreg.CNTV_CVAL_EL0, cval);
    rig.writeTimer(sysreg.CNTV_CTL_EL0, BigInt(ctl));
    const deadline = rig.timers.nextDeadlineNanos(rig.vcpu);
    rig.pass(ticks);
    const due = (ctl & ENABLE) !== 0 && BigInt(ticks) >= cval;
    assert.equal(rig.irq(), due && (ctl & IMASK) === 0);
    assert.equal(Number(rig.readTimer(sysreg.CNTV_CTL_EL0)), (ctl & 3) | (due ? ISTATUS : 0));
    assert.equal(rig.readTimer(sysreg.CNTV_TVAL_EL0), BigInt.asUintN(32, cval - BigInt(ticks)));
    if (due && ticks > 0 && cval > 0n && (ctl & IMASK) === 0) assert.ok(deadline <= rig.clock.nanos);
  }), { seed, numRuns: 500 });
});
