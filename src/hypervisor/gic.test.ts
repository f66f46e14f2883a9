import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sysreg } from '../a64/system-registers.ts';
import { GICD, GICR, affinityOfVcpu, mpidrOfVcpu, vcpuOfAffinity } from '../abi/gic.ts';
import { InterruptRig, gicd, gicr, sgiFrame } from './test-interrupts.ts';

const PPI = 27;
const SPI = 40;
const SPURIOUS = 1023;
const EDGE = 2;

function enabled(vcpus = 1): InterruptRig {
  const rig = new InterruptRig(vcpus);
  rig.enable();
  rig.store(gicd(GICD.ISENABLER + 4), 0xffff_ffff);
  return rig;
}
function setPriority(rig: InterruptRig, intid: number, priority: number): void {
  rig.store(intid < 32 ? sgiFrame(0, GICD.IPRIORITYR + intid) : gicd(GICD.IPRIORITYR + intid), priority, 1);
}
function setEdge(rig: InterruptRig, intid: number): void {
  const frame = intid < 32 ? sgiFrame(0, GICD.ICFGR) : gicd(GICD.ICFGR);
  rig.store(frame + 4 * (intid >> 4), EDGE << (2 * (intid & 15)));
}

test('a level-sensitive interrupt is signalled while its line is high and it is not being handled', () => {
  const rig = enabled();
  rig.raise(PPI);
  assert.equal(rig.irq(), true);
  assert.equal(rig.kicked(), true, 'the vCPU is taken out of emitted code');
  assert.deepEqual(rig.woken, [rig.vcpus[0]]);
  assert.equal(rig.acknowledge(), PPI);
  assert.equal(rig.irq(), false, 'active: not signalled again');
  rig.end(PPI);
  assert.equal(rig.irq(), true, 'the line is still high');
  assert.equal(rig.acknowledge(), PPI);
  rig.raise(PPI, false);
  rig.end(PPI);
  assert.equal(rig.irq(), false);
  assert.equal(rig.acknowledge(), SPURIOUS);
});

test('a level-sensitive interrupt whose line falls before it is acknowledged was nothing', () => {
  const rig = enabled();
  rig.raise(PPI);
  rig.raise(PPI, false);
  assert.equal(rig.irq(), false);
  assert.equal(rig.acknowledge(), SPURIOUS);
});

test('an edge stays pending until acknowledged, and a second one while active comes afterwards', () => {
  for (const intid of [PPI, SPI]) {
    const rig = enabled();
    setEdge(rig, intid);
    rig.raise(intid);
    rig.raise(intid, false);
    assert.equal(rig.irq(), true);
    assert.equal(rig.acknowledge(), intid);
    assert.equal(rig.acknowledge(), SPURIOUS);
    rig.raise(intid);
    assert.equal(rig.irq(), false, 'pending and active');
    rig.end(intid);
    assert.equal(rig.acknowledge(), intid);
    rig.end(intid);
    assert.equal(rig.irq(), false, 'a line that stays high is no edge');
  }
});

test('a source whose line falls unseen is asked before its interrupt is deactivated', () => {
  const rig = enabled();
  let line = true;
  rig.sampled = (vcpu, intid) => rig.gic.setInterruptLevel(vcpu, intid, line);
  rig.raise(31);
  assert.equal(rig.acknowledge(), 31);
  line = false;
  rig.end(31);
  assert.equal(rig.irq(), false);
});

test('nothing is signalled unless distributor, redistributor, interrupt and CPU interface let it', () => {
  const gates: readonly [name: string, close: (rig: InterruptRig) => void, open: (rig: InterruptRig) => void][] = [
    ['GICD_CTLR.EnableGrp1', r => r.store(gicd(GICD.CTLR), 0), r => r.store(gicd(GICD.CTLR), 2)],
    ['GICR_WAKER', r => r.store(gicr(0, GICR.WAKER), 2), r => r.store(gicr(0, GICR.WAKER), 0)],
    ['ISENABLER',
      r => r.store(sgiFrame(0, GICD.ICENABLER), 1 << PPI), r => r.store(sgiFrame(0, GICD.ISENABLER), 1 << PPI)],
    ['PMR', r => r.write(0, sysreg.ICC_PMR_EL1, 0), r => r.write(0, sysreg.ICC_PMR_EL1, 0xf0)],
    ['IGRPEN1', r => r.write(0, sysreg.ICC_IGRPEN1_EL1, 0), r => r.write(0, sysreg.ICC_IGRPEN1_EL1, 1)],
  ];
  for (const [name, close, open] of gates) {
    const rig = enabled();
    close(rig);
    rig.raise(PPI);
    assert.equal(rig.irq(), false, name);
    assert.equal(rig.acknowledge(), SPURIOUS, name);
    open(rig);
    assert.equal(rig.irq(), true, name);
    close(rig);
    assert.equal(rig.irq(), false, name);
  }
});

test('the highest priority comes first, the lowest number among equals; PMR masks its own priority and below', () => {
  const rig = enabled();
  for (const [intid, priority] of [[20, 0xa0], [21, 0x80], [SPI, 0x80], [SPI + 1, 0x40]] as const) {
    setPriority(rig, intid, priority);
    rig.raise(intid);
  }
  rig.write(0, sysreg.ICC_BPR1_EL1, 7);
  const order: number[] = [];
  for (let intid = rig.acknowledge(); intid !== SPURIOUS; intid = rig.acknowledge()) {
    order.push(intid);
    rig.raise(intid, false);
    rig.end(intid);
  }
  assert.deepEqual(order, [SPI + 1, 21, SPI, 20]);
  rig.raise(20);
  rig.write(0, sysreg.ICC_PMR_EL1, 0xa0);
  assert.equal(rig.irq(), false);
  assert.equal(rig.read(0, sysreg.ICC_HPPIR1_EL1), 20, 'still the highest pending');
  rig.write(0, sysreg.ICC_PMR_EL1, 0xa8);
  assert.equal(rig.irq(), true);
});

test('a higher group priority preempts, and running priorities nest', () => {
  const rig = enabled();
  setPriority(rig, 20, 0xa0);
  setPriority(rig, 21, 0x80);
  setPriority(rig, 22, 0x88);
  rig.raise(20);
  assert.equal(rig.acknowledge(), 20);
  assert.equal(rig.read(0, sysreg.ICC_RPR_EL1), 0xa0);
  rig.raise(22);
  assert.equal(rig.irq(), true);
  assert.equal(rig.acknowledge(), 22);
  assert.equal(rig.read(0, sysreg.ICC_AP1R0_EL1), (1 << 20) | (1 << 17));
  rig.write(0, sysreg.ICC_BPR1_EL1, 4);
  rig.raise(21);
  assert.equal(rig.irq(), false, '0x80 and 0x88 are of one group when bits 7-4 count');
  rig.write(0, sysreg.ICC_BPR1_EL1, 0);
  assert.equal(rig.read(0, sysreg.ICC_BPR1_EL1), 3, 'no finer than the five bits there are');
  assert.equal(rig.irq(), true);
  assert.equal(rig.acknowledge(), 21);
  for (const [intid, priority] of [[21, 0x88], [22, 0xa0], [20, 0xff]] as const) {
    rig.raise(intid, false);
    rig.end(intid);
    assert.equal(rig.read(0, sysreg.ICC_RPR_EL1), priority);
  }
});

test('ICC_CTLR.CBPR: the binary point of group 0 decides', () => {
  const rig = enabled();
  rig.write(0, sysreg.ICC_BPR0_EL1, 4);
  rig.write(0, sysreg.ICC_CTLR_EL1, 1);
  assert.equal(rig.read(0, sysreg.ICC_BPR1_EL1), 5);
  setPriority(rig, 20, 0x98);
  setPriority(rig, 21, 0x80);
  rig.raise(20);
  assert.equal(rig.acknowledge(), 20);
  rig.raise(21);
  assert.equal(rig.irq(), false, 'bits 7-5 are equal');
});

test('EOImode 1: priority drop and deactivation are apart', () => {
  const rig = enabled();
  rig.write(0, sysreg.ICC_CTLR_EL1, 2);
  assert.equal(rig.read(0, sysreg.ICC_CTLR_EL1), 0x402);
  rig.raise(PPI);
  rig.raise(26);
  assert.equal(rig.acknowledge(), 26);
  assert.equal(rig.irq(), false);
  rig.end(26);
  assert.equal(rig.read(0, sysreg.ICC_RPR_EL1), 0xff);
  assert.equal(rig.load(sgiFrame(0, GICD.ISACTIVER)), 1 << 26, 'still active');
  assert.equal(rig.acknowledge(), PPI, 'the next one comes');
  rig.end(PPI);
  rig.write(0, sysreg.ICC_DIR_EL1, 26);
  assert.equal(rig.acknowledge(), 26);
});

test('ICC_DIR without EOImode 1, and the end of a special INTID, change nothing', () => {
  const rig = enabled();
  rig.raise(PPI);
  rig.acknowledge();
  rig.write(0, sysreg.ICC_DIR_EL1, PPI);
  rig.end(SPURIOUS);
  assert.equal(rig.load(sgiFrame(0, GICD.ISACTIVER)), 1 << PPI);
  assert.notEqual(rig.read(0, sysreg.ICC_RPR_EL1), 0xff);
});

test('SGIs: by list, to all others, and to nobody outside the domain', () => {
  const rig = enabled(18);
  assert.deepEqual([15, 16, 17].map(affinityOfVcpu), [0x0f, 0x100, 0x101]);
  assert.equal(mpidrOfVcpu(17), 0x8000_0101);
  assert.deepEqual([0x0f, 0x101, 0x10, 0x1_0000].map(vcpuOfAffinity), [15, 17, -1, -1]);
  rig.write(0, sysreg.ICC_SGI1R_EL1, (5 << 24) | 0b101);
  assert.deepEqual([0, 1, 2].map(i => rig.irq(i)), [true, false, true]);
  assert.equal(rig.acknowledge(2), 5);
  assert.equal(rig.acknowledge(0), 5);
  rig.end(5, 0);
  rig.end(5, 2);
  rig.write(3, sysreg.ICC_SGI1R_EL1, (6 << 24) | (1 << 16) | 0b10);
  assert.equal(rig.acknowledge(17), 6);
  rig.end(6, 17);
  rig.write(1, sysreg.ICC_SGI1R_EL1, 7 << 24, 1 << 8);
  assert.deepEqual(rig.vcpus.map((_, i) => rig.acknowledge(i)), rig.vcpus.map((_, i) => i === 1 ? SPURIOUS : 7));
  rig.vcpus.forEach((_, i) => rig.end(7, i));
  for (const high of [1, 1 << 12, 1 << 16]) rig.write(0, sysreg.ICC_SGI1R_EL1, 0x0f00_ffff, high);
  rig.write(0, sysreg.ICC_SGI1R_EL1, 0x0fff_ffff);
  rig.write(0, sysreg.ICC_SGI0R_EL1, 0x0f00_ffff);
  rig.write(0, sysreg.ICC_ASGI1R_EL1, 0x0f00_ffff);
  assert.ok(rig.vcpus.every((_, i) => !rig.irq(i)));
});

test('an SPI goes to the vCPU that its router names, and follows it', () => {
  const rig = enabled(2);
  rig.raise(SPI);
  assert.deepEqual([rig.irq(0), rig.irq(1)], [true, false]);
  rig.store(gicd(GICD.IROUTER + 8 * SPI), 1, 8);
  assert.deepEqual([rig.irq(0), rig.irq(1)], [false, true]);
  assert.equal(rig.load(gicd(GICD.IROUTER + 8 * SPI), 8), 1);
  assert.equal(rig.acknowledge(1), SPI);
  rig.store(gicd(GICD.IROUTER + 8 * SPI), 0, 8);
  assert.equal(rig.irq(0), false, 'active on the other vCPU');
  rig.end(SPI, 1);
  assert.deepEqual([rig.irq(0), rig.irq(1)], [true, false]);
  rig.store(gicd(GICD.IROUTER + 8 * SPI), 0x55, 8);
  assert.deepEqual([rig.irq(0), rig.irq(1)], [false, false], 'no such vCPU');
});

test('pending and active can be written, and a level line cannot be cleared', () => {
  const rig = enabled();
  rig.store(sgiFrame(0, GICD.ISPENDR), (1 << PPI) | (1 << 3));
  assert.equal(rig.load(sgiFrame(0, GICD.ICPENDR)), (1 << PPI) | (1 << 3));
  rig.store(sgiFrame(0, GICD.ICPENDR), 1 << 3);
  rig.raise(PPI);
  rig.store(sgiFrame(0, GICD.ICPENDR), 1 << PPI);
  assert.equal(rig.load(sgiFrame(0, GICD.ISPENDR)), 1 << PPI);
  rig.store(sgiFrame(0, GICD.ISACTIVER), 1 << PPI);
  assert.equal(rig.irq(), false);
  rig.store(sgiFrame(0, GICD.ICACTIVER), 1 << PPI);
  assert.equal(rig.irq(), true);
  rig.store(gicd(GICD.ISPENDR + 4), 1 << (SPI - 32));
  rig.raise(PPI, false);
  assert.equal(rig.acknowledge(), SPI);
});

test('identification and fixed registers', () => {
  const rig = new InterruptRig(3);
  assert.equal(rig.load(gicd(GICD.CTLR)), 0x50);
  rig.store(gicd(GICD.CTLR), 0xffff_ffff);
  assert.equal(rig.load(gicd(GICD.CTLR)), 0x53);
  assert.equal(rig.load(gicd(GICD.TYPER)) & 0x1f, 7, '256 INTIDs');
  assert.equal(rig.load(gicd(GICD.PIDR2)) & 0xf0, 0x30, 'GICv3');
  assert.equal(rig.load(gicr(1, GICD.PIDR2)) & 0xf0, 0x30);
  assert.equal(rig.load(gicr(0, GICR.TYPER), 8), 0);
  assert.equal(rig.load(gicr(2, GICR.TYPER), 8), 2 * 2 ** 32 + 0x210, 'affinity, processor number, last');
  assert.equal(rig.load(gicr(0, GICR.WAKER)), 6);
  rig.store(gicr(0, GICR.WAKER), 0);
  assert.equal(rig.load(gicr(0, GICR.WAKER)), 0);
  assert.equal(rig.load(sgiFrame(0, GICD.IGROUPR)), 0xffff_ffff);
  assert.equal(rig.load(gicd(GICD.IGROUPR)), 0, 'word 0 is the redistributors\'');
  assert.equal(rig.load(gicd(GICD.IGROUPR + 4)), 0xffff_ffff);
  assert.equal(rig.load(sgiFrame(0, GICD.ICFGR)), 0xaaaa_aaaa);
  rig.store(sgiFrame(0, GICD.ICFGR), 0);
  assert.equal(rig.load(sgiFrame(0, GICD.ICFGR)), 0xaaaa_aaaa, 'SGIs are edges');
  rig.store(gicd(GICD.ICFGR + 12), 0x8000_000a);
  assert.equal(rig.load(gicd(GICD.ICFGR + 12)), 0x8000_000a);
  assert.equal(rig.load(gicd(GICD.ICFGR + 8)), 0);
  rig.store(gicd(GICD.IPRIORITYR + 40), 0xffff_ffff);
  assert.equal(rig.load(gicd(GICD.IPRIORITYR + 40)), 0xf8f8_f8f8);
  assert.equal(rig.load(gicd(GICD.IPRIORITYR + 41), 1), 0xf8);
  assert.equal(rig.load(gicd(GICD.IPRIORITYR + 41), 2), 0xf8f8);
  assert.equal(rig.read(0, sysreg.ICC_SRE_EL1), 7);
  assert.equal(rig.read(0, sysreg.ICC_IAR0_EL1), SPURIOUS);
  assert.equal(rig.read(0, sysreg.ICC_HPPIR0_EL1), SPURIOUS);
  rig.write(0, sysreg.ICC_PMR_EL1, 0xff);
  assert.equal(rig.read(0, sysreg.ICC_PMR_EL1), 0xf8);
  assert.equal(rig.cpu.read(rig.vcpus[0]!, sysreg.ICC_EOIR1_EL1), undefined, 'write-only');
  assert.equal(rig.cpu.write(rig.vcpus[0]!, sysreg.ICC_IAR1_EL1, 0, 0), false, 'read-only');
});

test('what is beside the frames, and beyond the last vCPU, is nobody\'s', () => {
  const rig = new InterruptRig(2);
  const vcpu = rig.vcpus[0]!;
  for (const address of [gicd(-4), gicd(0x1_0000), gicr(0, -4), gicr(2, 0), 0]) {
    assert.equal(rig.registers.load(vcpu, address, 4), false);
    assert.equal(rig.registers.store(vcpu, address, 4), false);
  }
});

test('domains do not see each other; power-on resets the CPU interface only', () => {
  const rig = enabled();
  const second = new InterruptRig(1, rig.machine, 2, 5);
  second.enable();
  rig.raise(PPI);
  assert.equal(second.irq(), false);
  second.raise(PPI);
  assert.equal(second.acknowledge(), PPI);
  assert.equal(rig.acknowledge(), PPI);
  second.gic.powerOn(second.vcpus[0]!);
  assert.equal(second.privateField('ap1r0'), 0);
  assert.equal(second.privateField('igrpen1'), 0);
  assert.equal(second.privateField('active'), 1 << PPI);
});
