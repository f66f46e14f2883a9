// Timers and the interrupt controller as a guest without an operating system uses them, on the whole machine: a program
// that powers off if everything is as it should be, and resets where something is not.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import type { Assembler, SystemRegisterName } from '../../src/a64/test-assembler.ts';
import { Host } from '../../src/host/index.ts';
import { PSCI } from '../../src/hypervisor/psci.ts';
import { hostMemory } from '../host-memory.ts';
import { MEMORY, bareMetalImage, fresh, powerOff } from '../bare-metal.ts';

const GICD = 0x0300_1000;
const GICR = 0x0302_0000;
/** The frame of a redistributor for SGIs and PPIs. */
const GICR_SGI = GICR + 0x1_0000;
const [ISENABLER, ICENABLER, ISPENDR, ICPENDR, IPRIORITYR] = [0x100, 0x180, 0x200, 0x280, 0x400] as const;
const [VIRTUAL_TIMER, PHYSICAL_TIMER, SGI, OTHER_SGI, SPI, SPURIOUS] = [27, 30, 5, 6, 40, 1023] as const;
const IRQ_MASKED = 0x80;
const ALL_PRIORITIES = 0xff;

function write(a: Assembler, address: number, value: number): void {
  a.mov(1, address).mov(2, value).str(2, 1, 0, 'W');
}
function setRegister(a: Assembler, register: SystemRegisterName, value: number): void {
  a.mov(2, value).msr(register, 2).isb();
}
/** Acknowledges; resets unless it is this interrupt. */
function expect(a: Assembler, intid: number): void {
  a.mrs(0, 'ICC_IAR1_EL1').cmp(0, intid).bCond('ne', 'wrong');
}
/** Ends an interrupt that `expect` has acknowledged. */
function end(a: Assembler, intid: number): void {
  setRegister(a, 'ICC_EOIR1_EL1', intid);
}
function sendToSelf(a: Assembler, intid: number): void {
  a.mov(2, intid * 2 ** 24 + 1).msr('ICC_SGI1R_EL1', 2).isb();
}
const bit = (intid: number): number => 2 ** (intid % 32);

function setUp(a: Assembler): void {
  write(a, GICD, 0x12); // affinity routing, Group 1
  write(a, GICR + 0x14, 0); // awake
  write(a, GICR_SGI + ISENABLER, bit(SGI) + bit(OTHER_SGI) + bit(VIRTUAL_TIMER) + bit(PHYSICAL_TIMER));
  setRegister(a, 'ICC_PMR_EL1', ALL_PRIORITIES);
  setRegister(a, 'ICC_IGRPEN1_EL1', 1);
}

/** The line is up while the timer is due, and WFI ends although interrupts are masked. */
function timer(control: SystemRegisterName, value: SystemRegisterName, intid: number) {
  return (a: Assembler): void => {
    const wait = fresh('wait');
    expect(a, SPURIOUS);
    setRegister(a, value, 20_000);
    setRegister(a, control, 1);
    a.label(wait).emit('WFI');
    a.mrs(3, control).cmp(3, 5).bCond('ne', wait); // enabled, and its condition is met
    expect(a, intid);
    end(a, intid);
    expect(a, intid); // the line has not fallen
    setRegister(a, control, 0);
    end(a, intid);
    expect(a, SPURIOUS);
    setRegister(a, control, 3); // due again, but masked
    expect(a, SPURIOUS);
    setRegister(a, control, 0);
  };
}

const programs: Readonly<Record<string, (a: Assembler) => void>> = {
  'the virtual timer': timer('CNTV_CTL_EL0', 'CNTV_TVAL_EL0', VIRTUAL_TIMER),
  'the physical timer': timer('CNTP_CTL_EL0', 'CNTP_TVAL_EL0', PHYSICAL_TIMER),
  'a software-generated interrupt, twice': a => {
    sendToSelf(a, SGI);
    expect(a, SGI);
    sendToSelf(a, SGI);
    expect(a, SPURIOUS); // it is active: the second one waits
    end(a, SGI);
    expect(a, SGI);
    end(a, SGI);
    expect(a, SPURIOUS);
  },
  'the priority mask': a => {
    setRegister(a, 'ICC_PMR_EL1', 0);
    sendToSelf(a, SGI);
    expect(a, SPURIOUS);
    setRegister(a, 'ICC_PMR_EL1', ALL_PRIORITIES);
    expect(a, SGI);
    end(a, SGI);
  },
  'a higher priority goes first, and preempts': a => {
    write(a, GICR_SGI + IPRIORITYR + 4, 0x0040_8000); // SGI 5: 0x80, SGI 6: 0x40
    sendToSelf(a, SGI);
    sendToSelf(a, OTHER_SGI);
    expect(a, OTHER_SGI);
    expect(a, SPURIOUS); // the other is lower than what is active
    end(a, OTHER_SGI);
    expect(a, SGI);
    sendToSelf(a, OTHER_SGI);
    expect(a, OTHER_SGI);
    end(a, OTHER_SGI);
    end(a, SGI);
    expect(a, SPURIOUS);
  },
  'a shared interrupt: pending, disabled, cleared': a => {
    write(a, GICD + ISENABLER + 4, bit(SPI));
    write(a, GICD + ISPENDR + 4, bit(SPI));
    write(a, GICD + ICENABLER + 4, bit(SPI));
    expect(a, SPURIOUS);
    write(a, GICD + ISENABLER + 4, bit(SPI));
    expect(a, SPI);
    end(a, SPI);
    write(a, GICD + ISPENDR + 4, bit(SPI));
    write(a, GICD + ICPENDR + 4, bit(SPI));
    expect(a, SPURIOUS);
  },
  'the group disabled': a => {
    setRegister(a, 'ICC_IGRPEN1_EL1', 0);
    sendToSelf(a, SGI);
    expect(a, SPURIOUS);
    setRegister(a, 'ICC_IGRPEN1_EL1', 1);
    expect(a, SGI);
    end(a, SGI);
  },
  'unmasking takes what is pending': a => {
    sendToSelf(a, SGI);
    // The vector comes back with interrupts masked.
    a.mov(2, 0).msr('DAIF', 2).nop();
    a.mrs(3, 'DAIF').cmp(3, IRQ_MASKED).bCond('ne', 'wrong');
    expect(a, SGI);
    end(a, SGI);
  },
};

test('timers and interrupts, from a guest without an operating system', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-interrupts-'));
  await using host = await Host.start({ memory: hostMemory('512MiB') });
  try {
    for (const [name, program] of Object.entries(programs)) {
      await t.test(name, async () => {
        const kernel = join(folder, 'kernel');
        writeFileSync(kernel, bareMetalImage({ code: a => {
          setUp(a);
          program(a);
          powerOff(a);
          a.label('wrong').mov(0, PSCI.SYSTEM_RESET).hvc(0);
        } }));
        await using domain = await host.create({ kernel, initrd: 'none', memory: MEMORY });
        assert.equal(await domain.waitForShutdown(), 'poweroff');
      });
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
