// Every class of exception, from EL0 and EL1: syndrome, fault address, return address, saved state, vector; and ERET.

import assert from 'node:assert/strict';
import { systemRegister } from '../../src/a64/system-registers.ts';
import { vcpuRecord, xOffset } from '../../src/abi/vcpu.ts';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { DATA, PAN, PROGRAM, USER_DATA, VECTORS, ec, fault, sctlr, systemTest, vector } from './guest.ts';
import type { Guest } from './guest.ts';

const at = vcpuRecord.at;
const IL_BIT = 1 << 25;
const NZCV = 0xa000_0000;
const DAIF_ALL = 0x3c0;
const SPSR_EL1H = 5;
const SPSR_EL1T = 4;
const SPSR_IL = 1 << 20;
/** COND = always and its valid bit, as A64 instructions report it. */
const COND_ALWAYS = 0x1e << 20;

interface Case {
  readonly name: string;
  readonly write: (a: Assembler) => void;
  readonly ec: number;
  readonly iss: number;
  /** Where ELR_EL1 points, from the instruction. */
  readonly after?: bigint;
  readonly prepare?: (g: Guest) => void;
}
const fpOff = (fpen: bigint) => (g: Guest): void => {
  g.vcpu.set64(at.cpacrEl1, fpen << 20n);
  g.vcpu.updateFpTrap();
};
/** ISS of a trapped MRS or MSR. */
const systemIss = (op0: number, op1: number, crn: number, crm: number, op2: number, rt: number,
  isRead: boolean): number =>
  (op0 << 20) | (op2 << 17) | (op1 << 14) | (crn << 10) | (rt << 5) | (crm << 1) | Number(isRead);

const atBoth: readonly Case[] = [
  { name: 'UDF', write: a => a.udf(), ec: ec.unknown, iss: 0 },
  { name: 'SVC', write: a => a.svc(0xabcd), ec: ec.svc, iss: 0xabcd, after: 4n },
  { name: 'BRK', write: a => a.brk(0x1234), ec: ec.brk, iss: 0x1234 },
  { name: 'HLT', write: a => a.emit('HLT', { imm16: 1 }), ec: ec.unknown, iss: 0 },
  { name: 'SMC', write: a => a.emit('SMC', { imm16: 0 }), ec: ec.unknown, iss: 0 },
  { name: 'an unknown system register', write: a => a.mrs(3, systemRegister(3, 3, 15, 1, 1)), ec: ec.unknown, iss: 0 },
  { name: 'an unknown SYS operation', write: a => a.emit('SYS', { op1: 3, CRn: 7, CRm: 15, op2: 7, Rt: 0 }),
    ec: ec.unknown, iss: 0,
    prepare: g => g.vcpu.set64(at.sctlrEl1, g.vcpu.get64(at.sctlrEl1) | sctlr.UCI) },
  { name: 'FP with FPEN = 0', write: a => a.ldr(0, 1, 0, 'Q'), ec: ec.fpAccess, iss: COND_ALWAYS, prepare: fpOff(0n) },
  { name: 'FP with FPEN = 2', write: a => a.emit('MRS FPCR', { Rt: 0 }), ec: ec.fpAccess, iss: COND_ALWAYS,
    prepare: fpOff(2n) },
];
const atEl0: readonly Case[] = [
  { name: 'HVC at EL0', write: a => a.hvc(1), ec: ec.unknown, iss: 0 },
  { name: 'ERET at EL0', write: a => a.eret(), ec: ec.unknown, iss: 0 },
  { name: 'TLBI at EL0', write: a => a.sys('TLBI VMALLE1'), ec: ec.unknown, iss: 0 },
  { name: 'MSR of an EL1 register at EL0', write: a => a.msr('VBAR_EL1', 0), ec: ec.unknown, iss: 0 },
  { name: 'MRS of SP_EL0 at EL0', write: a => a.mrs(0, 'SP_EL0'), ec: ec.unknown, iss: 0 },
  { name: 'MRS of ELR_EL1 at EL0', write: a => a.mrs(0, 'ELR_EL1'), ec: ec.unknown, iss: 0 },
  { name: 'MSR SPSel at EL0', write: a => a.msrImmediate('SPSel', 1), ec: ec.unknown, iss: 0 },
  { name: 'MSR PAN at EL0', write: a => a.msrImmediate('PAN', 1), ec: ec.unknown, iss: 0 },
  { name: 'FP with FPEN = 1', write: a => a.ldr(0, 1, 0, 'D'), ec: ec.fpAccess, iss: COND_ALWAYS, prepare: fpOff(1n) },
  { name: 'WFI', write: a => a.wfi(), ec: ec.wfx, iss: COND_ALWAYS },
  { name: 'WFE', write: a => a.wfe(), ec: ec.wfx, iss: COND_ALWAYS | 1 },
  { name: 'MRS CTR_EL0', write: a => a.mrs(5, 'CTR_EL0'), ec: ec.systemRegister,
    iss: systemIss(3, 3, 0, 0, 1, 5, true) },
  { name: 'MRS DAIF', write: a => a.mrs(7, 'DAIF'), ec: ec.systemRegister, iss: systemIss(3, 3, 4, 2, 1, 7, true) },
  { name: 'MSR DAIF', write: a => a.msr('DAIF', 7), ec: ec.systemRegister, iss: systemIss(3, 3, 4, 2, 1, 7, false) },
  { name: 'MSR DAIFSet', write: a => a.msrImmediate('DAIFSet', 3), ec: ec.systemRegister,
    iss: systemIss(0, 3, 4, 3, 6, 31, false) },
  { name: 'MSR DAIFClr', write: a => a.msrImmediate('DAIFClr', 2), ec: ec.systemRegister,
    iss: systemIss(0, 3, 4, 2, 7, 31, false) },
  { name: 'MRS CNTVCT_EL0', write: a => a.mrs(2, 'CNTVCT_EL0'), ec: ec.systemRegister,
    iss: systemIss(3, 3, 14, 0, 2, 2, true) },
  { name: 'IC IVAU', write: a => a.sys('IC IVAU', 4), ec: ec.systemRegister, iss: systemIss(1, 3, 7, 5, 1, 4, false) },
  { name: 'DC CVAU', write: a => a.sys('DC CVAU', 4), ec: ec.systemRegister, iss: systemIss(1, 3, 7, 11, 1, 4, false) },
];

for (const el of [0, 1] as const) {
  systemTest(`instructions that end in an exception at EL${el}`, g => {
    const freshSctlr = g.vcpu.get64(at.sctlrEl1);
    for (const { name, write, ec: wanted, iss, after = 0n, prepare } of [...atBoth, ...(el === 0 ? atEl0 : [])]) {
      g.vcpu.set64(at.sctlrEl1, freshSctlr);
      fpOff(3n)(g);
      g.vcpu.set64(at.farEl1, 0x1234_5678n);
      prepare?.(g);
      g.program(a => write(a.nop()));
      g.enter(el).vcpu.setNzcv(NZCV);
      const taken = g.runToException();
      assert.deepEqual([taken.ec, taken.iss], [wanted, iss], name);
      assert.ok(taken.esr & IL_BIT, name);
      assert.equal(taken.vector, el === 0 ? vector.lower : vector.current, name);
      assert.equal(taken.elr, PROGRAM + 4n + after, name);
      assert.equal(taken.spsr >>> 0, (NZCV | (el === 0 ? 0 : SPSR_EL1H | DAIF_ALL)) >>> 0, name);
      assert.equal(taken.far, 0x1234_5678n, `${name} leaves FAR_EL1 alone`);
      assert.equal(g.vcpu.el, 1);
      assert.equal(g.vcpu.get32(at.daif), DAIF_ALL);
    }
  });
}

systemTest('unknown system registers are counted', g => {
  const before = g.vcpu.get64(at.unknownSystemRegisters);
  g.except(1, a => a.mrs(0, systemRegister(3, 0, 15, 3, 3)));
  g.except(1, a => a.msr(systemRegister(3, 0, 15, 3, 3), 0));
  assert.equal(g.vcpu.get64(at.unknownSystemRegisters), before + 2n);
});

systemTest('what SCTLR_EL1 and CPACR_EL1 allow at EL0 is not trapped', g => {
  g.vcpu.set64(at.sctlrEl1, sctlr.UCT | sctlr.UMA | sctlr.UCI | sctlr.DZE | sctlr.nTWE);
  g.vcpu.setX(4, DATA);
  g.complete(0, a => a.mrs(5, 'CTR_EL0').msrImmediate('DAIFSet', 2).mrs(6, 'DAIF').msrImmediate('DAIFClr', 2)
    .sys('IC IVAU', 4).sys('DC CVAU', 4).sys('DC ZVA', 4).mrs(7, 'DCZID_EL0').emit('MRS FPSR', { Rt: 8 }));
  assert.equal(g.vcpu.x(6), 0x80n);
  assert.equal(g.vcpu.x(7), 4n);
});

systemTest('HVC at EL1 goes to the host and on behind it', g => {
  g.program(a => a.mov(0, 1).hvc(7).mov(0, 2).hvc(8));
  assert.equal(g.enter(1).run(), 7);
  assert.equal(g.vcpu.x(0), 1n);
  assert.equal(g.run(), 8);
  assert.equal(g.vcpu.x(0), 2n);
});

systemTest('instruction and data aborts without translation', g => {
  for (const el of [0, 1] as const) {
    const outside = 0x9000_0000n;
    const fetched = g.except(el, a => a.mov(3, outside).br(3));
    assert.deepEqual([fetched.ec, fetched.iss], [el === 0 ? ec.instructionAbortLower : ec.instructionAbort,
      fault.external]);
    assert.deepEqual([fetched.far, fetched.elr], [outside, outside]);
    const loaded = g.except(el, a => a.mov(3, outside).ldr(4, 3, 8));
    assert.deepEqual([loaded.ec, loaded.iss], [el === 0 ? ec.dataAbortLower : ec.dataAbort, fault.external]);
    assert.equal(loaded.far, outside + 8n);
    const stored = g.except(el, a => a.mov(3, outside).str(4, 3, 8));
    assert.equal(stored.iss, fault.external | 0x40);
    // Beyond the 40 bits of physical addresses.
    const tooLarge = g.except(el, a => a.mov(3, 1n << 40n).ldr(4, 3));
    assert.equal(tooLarge.iss, fault.addressSize(0));
  }
});

systemTest('a misaligned PC', g => {
  for (const el of [0, 1] as const) {
    for (const low of [1n, 2n, 3n]) {
      const taken = g.except(el, a => a.mov(3, PROGRAM + 0x40n + low).br(3));
      const place = el === 0 ? vector.lower : vector.current;
      assert.deepEqual([taken.ec, taken.iss, taken.vector], [ec.pcAlignment, 0, place]);
      assert.deepEqual([taken.far, taken.elr], [PROGRAM + 0x40n + low, PROGRAM + 0x40n + low]);
    }
  }
});

systemTest('ERET to EL0 and back, with both stack pointers', g => {
  g.program(a => {
    a.mov(0, 0x1110n).movSp(31, 0).mov(0, 0x2220n).msr('SP_EL0', 0);
    a.adr(0, 'user').msr('ELR_EL1', 0).mov(0, 0x6000_0000n).msr('SPSR_EL1', 0).eret();
    a.label('user').movSp(1, 31).add(31, 31, 16).emit('MRS NZCV', { Rt: 2 }).svc(3);
  });
  const taken = g.enter(1).runToException();
  assert.deepEqual([taken.ec, taken.iss, taken.vector], [ec.svc, 3, vector.lower]);
  assert.equal(taken.spsr, 0x6000_0000);
  assert.equal(g.vcpu.x(1), 0x2220n, 'EL0 has SP_EL0');
  assert.equal(g.vcpu.x(2), 0x6000_0000n);
  assert.equal(g.vcpu.get64(xOffset(31)), 0x1110n, 'EL1 has its own again');
  assert.equal(g.vcpu.get64(at.spEl0), 0x2230n);
  // Back once more: behind the SVC is the end of the program.
  g.m.load(Number(taken.elr), [0xd4000001]);
  assert.equal(g.runToException().elr, taken.elr + 4n);
});

systemTest('exceptions from EL1 with SP_EL0 take the first vectors', g => {
  const taken = g.except(1, a => a.mov(0, 0x4440n).msr('SP_EL0', 0).msrImmediate('SPSel', 0).movSp(1, 31)
    .mrs(2, 'SPSEL').svc(0));
  assert.equal(taken.vector, vector.currentSp0);
  assert.equal(taken.spsr & 0xf, SPSR_EL1T);
  assert.equal(g.vcpu.x(1), 0x4440n);
  assert.equal(g.vcpu.x(2), 0n);
  assert.equal(g.vcpu.get32(at.spSel), 1, 'the handler has SP_EL1');
  const own = g.except(1, a => a.msrImmediate('SPSel', 0).mrs(0, 'SP_EL0'));
  assert.equal(own.ec, ec.unknown, 'SP_EL0 by name while it is the stack pointer');
});

systemTest('an illegal exception return sets PSTATE.IL, and the next instruction is an Illegal State exception', g => {
  for (const spsr of [0x10n, 1n, 8n, 9n, 0xdn]) {
    const program = g.program(a => {
      a.adr(0, 'target').msr('ELR_EL1', 0).mov(0, spsr | 0x9000_0000n).msr('SPSR_EL1', 0).eret().label('target')
        .mov(9, 1).svc(0);
    });
    const taken = g.enter(1).runToException();
    assert.deepEqual([taken.ec, taken.iss, taken.vector], [ec.illegalState, 0, vector.current],
      `SPSR 0x${spsr.toString(16)}`);
    assert.equal(taken.elr, program.addressOf('target'));
    assert.ok(taken.spsr & SPSR_IL);
    assert.equal(taken.spsr & 0x1f, SPSR_EL1H, 'it stayed at EL1');
    assert.equal(taken.spsr >>> 28, 9);
  }
  // With IL in SPSR a legal return does the same at EL0.
  const taken = g.except(1, a => {
    a.adr(0, 'target').msr('ELR_EL1', 0).mov(0, SPSR_IL).msr('SPSR_EL1', 0).eret().label('target').svc(0);
  });
  assert.deepEqual([taken.ec, taken.vector, taken.spsr], [ec.illegalState, vector.lower, SPSR_IL]);
});

systemTest('IRQ: taken at once when unmasked, at the vector for the level it came from', g => {
  g.vcpu.set32(at.irqLine, 1);
  const taken = g.except(1, a => a.mov(0, 1).msrImmediate('DAIFClr', 2).mov(0, 2).svc(0));
  assert.equal(taken.vector, vector.current + vector.irq);
  assert.equal(g.vcpu.x(0), 1n, 'before the next instruction');
  assert.equal(taken.elr, PROGRAM + 8n);
  assert.equal(taken.spsr & DAIF_ALL, 0x340);
  const atEl0Taken = g.except(0, a => a.mov(0, 3).svc(0));
  assert.equal(atEl0Taken.vector, vector.lower + vector.irq);
  assert.equal(atEl0Taken.elr, PROGRAM);
  const byEret = g.except(1, a => a.adr(0, 'user').msr('ELR_EL1', 0).msr('SPSR_EL1', 31).eret().label('user').svc(0));
  assert.equal(byEret.vector, vector.lower + vector.irq, 'ERET unmasks');
  g.vcpu.set32(at.irqLine, 0);
});

systemTest('an exception sets PAN unless SCTLR_EL1.SPAN says otherwise, and ERET brings the old one back', g => {
  for (const span of [true, false]) {
    g.vcpu.set64(at.sctlrEl1, span ? sctlr.SPAN : 0n);
    g.vcpu.set32(at.pan, 0);
    const taken = g.except(1, a => a.svc(0).mrs(0, 'PAN').hvc(0));
    assert.equal(taken.spsr & PAN, 0);
    assert.equal(g.vcpu.get32(at.pan), span ? 0 : PAN);
    assert.equal(g.run(), 0);
    assert.equal(g.vcpu.x(0), 0n);
  }
});

systemTest('exceptions that raise themselves for ever cost fuel: the run comes back', g => {
  const reaches = (words: (a: Assembler) => void, prepare?: () => void): void => {
    g.program(words);
    g.enter(1);
    prepare?.();
    assert.equal(g.m.engine.run(g.vcpu, 1000), 'slice');
  };
  const itself = PROGRAM + 0x800n;
  g.vcpu.set64(at.vbarEl1, itself);
  reaches(a => a.padTo(0xa00).udf());
  reaches(a => a.padTo(0xa00).svc(0));
  reaches(a => a.padTo(0xa00).brk(0), () => g.vcpu.set64(at.pcBase, itself));
  reaches(a => a.mov(0, 0x9000_0000n).msr('VBAR_EL1', 0).svc(0));
  reaches(a => a.adr(0, 'self').msr('ELR_EL1', 0).mov(0, 5).msr('SPSR_EL1', 0).label('self').eret());
  reaches(a => a.adr(0, 'self').msr('ELR_EL1', 0).mov(0, 9).msr('SPSR_EL1', 0).label('self').eret().padTo(0xa00)
    .eret());
});

systemTest('WFI at EL1 waits, or goes on when an interrupt is pending though masked', g => {
  g.program(a => a.wfi().mov(0, 9).hvc(0));
  g.enter(1);
  assert.equal(g.m.engine.run(g.vcpu, 100), 'wfi');
  assert.equal(g.run(), 0);
  assert.equal(g.vcpu.x(0), 9n);
  g.vcpu.set32(at.irqLine, 1);
  assert.equal(g.enter(1).run(), 0);
});

systemTest('vectors follow VBAR_EL1', g => {
  g.enableMmu();
  g.lower.map(DATA, VECTORS, USER_DATA & ~(1n << 53n) & ~(1n << 54n) | 1n << 7n);
  g.flush();
  const taken = g.except(1, a => a.mov(0, DATA + 0x7ffn).msr('VBAR_EL1', 0).mrs(1, 'VBAR_EL1').svc(0));
  assert.equal(taken.vector, vector.current);
  assert.equal(g.vcpu.x(1), DATA, 'the low eleven bits are not kept');
  assert.equal(g.vcpu.get64(at.pcBase), DATA + 0x204n);
});
