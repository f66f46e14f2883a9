import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DOMAIN, HELD_FRAME } from '../../abi/domain-record.ts';
import {
  EMULATED, GUEST_PL011_BASE as BASE, GUEST_PL011_SPI as SPI, PL011, PL011_FR as FR, PL011_INT as INT,
} from '../../abi/emulated-devices.ts';
import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import { PCPU } from '../../abi/scheduler.ts';
import { XENCONS_INTERFACE, XENCONS_OUT_BYTES } from '../../abi/xen-console.ts';
import { EmulatedRig } from '../../hypervisor/test-emulated.ts';
import { Pl011, resetPl011 } from './registers.ts';

/** A port, and the host's end of its console page. */
function open() {
  const model = new Pl011();
  const rig = new EmulatedRig([model]);
  resetPl011(rig.frame);
  const page = rig.domain.get(DOMAIN.at.console + HELD_FRAME.at.mfn) * FRAME_BYTES;
  const { at } = XENCONS_INTERFACE;
  const index = (field: keyof typeof at): number => (page + at[field]) / 4;
  const { u8, u32 } = rig.machine;
  return {
    rig, model, u32, index,
    reg: (offset: number) => rig.load(BASE + offset),
    set: (offset: number, value: number) => rig.store(BASE + offset, value),
    moved: () => model.moved(rig.frame),
    take(): string {
      let text = '';
      for (; u32[index('out_cons')] !== u32[index('out_prod')]; u32[index('out_cons')]!++) {
        text += String.fromCharCode(u8[page + at.out + u32[index('out_cons')]! % XENCONS_OUT_BYTES]!);
      }
      model.moved(rig.frame);
      return text;
    },
    give(text: string): void {
      for (const byte of Buffer.from(text)) u8[page + at.in + (u32[index('in_prod')]!++ % 1024)] = byte;
      model.moved(rig.frame);
    },
  };
}

test('is found as a PL011 of revision 3, by byte, halfword and word', () => {
  const { rig } = open();
  const read = (sizeBytes: number) => Array.from({ length: 8 }, (_, i) => rig.load(BASE + PL011.IDENTIFICATION + 4 * i, sizeBytes));
  assert.deepEqual(read(4), [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
  for (const sizeBytes of [1, 2]) assert.deepEqual(read(sizeBytes), read(4));
  assert.equal(rig.load(BASE + PL011.CR), 0x300);
  assert.equal(rig.load(BASE + PL011.CR + 1, 1), 3);
  assert.equal(rig.load(BASE + PL011.CR, 8), 0x300 + 0x12 * 2 ** 32);
});

test('output is taken without a wait until the ring is full, and the interrupt comes when there is room again', () => {
  const { rig, reg, set, take } = open();
  set(PL011.IMSC, INT.tx);
  set(PL011.DR, 0x41);
  assert(rig.hostWasCalled());
  assert.equal(reg(PL011.MIS), INT.tx);
  assert(rig.line(SPI));
  set(PL011.ICR, INT.tx);
  assert(!rig.line(SPI));
  let sent = 1;
  for (; (reg(PL011.FR) & FR.txff) === 0; sent++) rig.store(BASE + PL011.DR, 0x42, 2);
  assert.equal(sent, XENCONS_OUT_BYTES);
  // No promise of a whole FIFO of room.
  assert.equal(reg(PL011.RIS) & INT.tx, 0);
  set(PL011.DR, 0x43);
  assert.equal(take(), `A${'B'.repeat(XENCONS_OUT_BYTES - 1)}`);
  assert.equal(reg(PL011.FR) & (FR.txff | FR.txfe | FR.busy), FR.txfe);
  assert(rig.line(SPI));
});

test('input: flags, time-out and level interrupts, and the host hears when all is taken', () => {
  const { rig, reg, set, give } = open();
  set(PL011.LCR_H, 0x70);
  set(PL011.IMSC, INT.rx | INT.rt);
  assert.equal(reg(PL011.FR) & FR.rxfe, FR.rxfe);
  assert.equal(reg(PL011.DR), 0);
  give('hello');
  assert.equal(reg(PL011.MIS), INT.rt);
  assert(rig.line(SPI));
  give('x'.repeat(40));
  assert.equal(reg(PL011.MIS), INT.rt | INT.rx);
  assert.equal(reg(PL011.FR) & FR.rxff, FR.rxff);
  // Cleared by the driver, and there again with the next byte that it leaves.
  set(PL011.ICR, INT.rt | INT.rx);
  assert(!rig.line(SPI));
  rig.hostWasCalled();
  let text = '';
  while ((reg(PL011.FR) & FR.rxfe) === 0) {
    text += String.fromCharCode(reg(PL011.DR));
    if (text.length === 1) assert(rig.line(SPI));
    assert.equal(rig.hostWasCalled(), text.length === 45);
  }
  assert.equal(text, `hello${'x'.repeat(40)}`);
  assert(!rig.line(SPI));
});

test('flow control: input waits while it is not requested', () => {
  const { rig, reg, set, give } = open();
  set(PL011.IMSC, INT.rx | INT.rt);
  set(PL011.CR, 0xc301);
  give('late');
  assert.equal(reg(PL011.FR) & FR.rxfe, FR.rxfe);
  assert(!rig.line(SPI));
  set(PL011.CR, 0xcb01);
  assert(rig.line(SPI));
  assert.equal(String.fromCharCode(reg(PL011.DR)), 'l');
});

test('an access allocates nothing in the machine, interrupts no pCPU, and calls the host only when there is something to say', () => {
  const { rig, reg, set } = open();
  const doorbell = (): number => rig.machine.u32[(rig.machine.pcpuAddress(0) + PCPU.at.doorbell) / 4]!;
  const rung = doorbell();
  rig.hostWasCalled();
  const { used } = rig.thread.heap.stats();
  for (let i = 0; i < 10_000; i++) {
    reg(PL011.FR);
    set(PL011.IMSC, i & 0x70);
  }
  assert(!rig.hostWasCalled());
  assert.equal(rig.frame.get(EMULATED.at.accesses), 20_000);
  assert.equal(rig.frame.get(EMULATED.at.hostCalls), 0);
  assert.equal(doorbell(), rung);
  assert.equal(rig.thread.heap.stats().used, used);
});

const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 60);

test('whatever guest and host write, registers answer and indices stay bounded', () => {
  const access = fc.record({
    offset: fc.oneof(fc.constantFrom(...Object.values(PL011)), fc.nat(0xfff)), size: fc.constantFrom(1, 2, 4, 8),
    value: fc.nat(0xffff_ffff), store: fc.boolean(),
  });
  const field = fc.constantFrom('in_cons' as const, 'in_prod' as const, 'out_cons' as const, 'out_prod' as const);
  const scribble = fc.record({ field, value: fc.oneof(fc.nat(4096), fc.nat(0xffff_ffff)) });
  fc.assert(fc.property(fc.array(fc.oneof(access, scribble), { maxLength: 200 }), (steps) => {
    const { rig, u32, index, moved } = open();
    for (const step of steps) {
      if ('field' in step) u32[index(step.field)] = step.value;
      else {
        const address = BASE + step.offset - step.offset % step.size;
        if (step.store) rig.store(address, step.value, step.size);
        else assert(rig.load(address, step.size) >= 0);
      }
      moved();
      assert.equal(rig.line(SPI), rig.load(BASE + PL011.MIS) !== 0);
    }
    rig.audit();
  }), { numRuns: RUNS });
});
