// Branches and exception generation (Arm ARM C4.1.94). Hints, barriers and system instructions stand in system.ts.

import { i32, i64 } from '../../wasm/scalar.ts';
import type { TrapName } from '../slow.ts';
import { imm, xd, xr } from '../operand.ts';
import { group, signed } from '../row.ts';
import { width } from '../width.ts';

const { name, rows, inst } = group('branches');

inst('B', '0 00101 imm26:26', {
  operands: f => ({ i: imm(signed(f.imm26, 26) << 2) }),
  branch: 'i',
  ends: true,
  meaning: (m, o) => m.branch(o.i),
});
inst('BL', '1 00101 imm26:26', {
  operands: f => ({ link: xd(30), i: imm(signed(f.imm26, 26) << 2) }),
  branch: 'i',
  ends: true,
  meaning: (m, o) => {
    m.setX(o.link, i64.add(m.pc(), i64.const(4)));
    m.branch(o.i);
  },
});

inst('B.cond', '0101010 0 imm19:19 0 cond:4', {
  statics: ['cond'],
  operands: f => ({ i: imm(signed(f.imm19, 19) << 2) }),
  branch: 'i',
  meaning: (m, o, s) => m.branchIf(m.condition(s.cond), o.i),
});

for (const [op, bit] of [['CBZ', '0'], ['CBNZ', '1']] as const) {
  inst(op, `sf 011010 ${bit} imm19:19 Rt:5`, {
    statics: ['sf'],
    operands: f => ({ t: xr(f.Rt), i: imm(signed(f.imm19, 19) << 2) }),
    branch: 'i',
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      m.branchIf(bit === '0' ? r.eqz(r.read(o.t)) : r.ne(r.read(o.t), r.const(0)), o.i);
    },
  });
}

// The bit number is specialised for: beside the offset there is no room for it in a record.
for (const [op, bit] of [['TBZ', '0'], ['TBNZ', '1']] as const) {
  inst(op, `b5 011011 ${bit} b40:5 imm14:14 Rt:5`, {
    statics: ['b5', 'b40'],
    operands: f => ({ t: xr(f.Rt), i: imm(signed(f.imm14, 14) << 2) }),
    branch: 'i',
    meaning: (m, o, s) => {
      const isSet = s.b5
        ? i32.wrapI64(i64.and(i64.shrU(m.x(o.t), i64.const(32 + s.b40)), i64.const(1)))
        : i32.and(m.w(o.t), i32.const(1 << s.b40));
      m.branchIf(bit === '0' ? i32.eqz(isSet) : isSet, o.i);
    },
  });
}

inst('BR', '1101011 0 0 00 11111 0000 0 0 Rn:5 00000', {
  operands: f => ({ n: xr(f.Rn) }),
  ends: true,
  meaning: (m, o) => m.branchTo(m.x(o.n)),
});
inst('BLR', '1101011 0 0 01 11111 0000 0 0 Rn:5 00000', {
  operands: f => ({ n: xr(f.Rn), link: xd(30) }),
  ends: true,
  meaning: (m, o) => {
    const target = m.f.let(m.x(o.n)); // before the link register is written: BLR X30
    m.setX(o.link, i64.add(m.pc(), i64.const(4)));
    m.branchTo(target);
  },
});
inst('RET', '1101011 0 0 10 11111 0000 0 0 Rn:5 00000', {
  operands: f => ({ n: xr(f.Rn) }),
  ends: true,
  meaning: (m, o) => m.branchTo(m.x(o.n)),
});
inst('ERET', '1101011 0 100 11111 0000 0 0 11111 00000', {
  operands: () => ({}),
  ends: true,
  undifferentiable: 'needs EL1',
  meaning: m => {
    m.requireEl1();
    m.trap('eret');
  },
});

// ---- exception generation. The trap gets the 16-bit comment field; what HLT does is its trap's to say.

type Opc = '000' | '001' | '010';
const exceptions: readonly (readonly [string, TrapName, Opc, LL: '00' | '01' | '10' | '11', needsEl1: boolean])[] = [
  ['SVC', 'svc', '000', '01', false],
  ['HVC', 'hvc', '000', '10', true],
  ['SMC', 'smc', '000', '11', true],
  ['BRK', 'brk', '001', '00', false],
  ['HLT', 'hlt', '010', '00', false],
];
for (const [op, trap, opc, LL, needsEl1] of exceptions) {
  inst(op, `11010100 ${opc} imm16:16 000 ${LL}`, {
    operands: f => ({ i: imm(f.imm16) }),
    ends: true,
    undifferentiable: 'an exception, which the oracle takes as a signal or a system call',
    meaning: (m, o) => {
      if (needsEl1) m.requireEl1();
      m.trap(trap, m.imm(o.i));
    },
  });
}

export default { name, rows };
