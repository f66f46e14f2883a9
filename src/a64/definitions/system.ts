// System instructions (Arm ARM C4.1.94): hints, barriers, moves to and from system registers, and maintenance.
//
// Traps get the register's or operation's encoding as sixteen bits, op0:op1:CRn:CRm:op2, and the offset of the general
// register in the vCPU record, which they read or write themselves. Registers that are read often have rows of their
// own elsewhere, with more fixed bits; the rows here take the rest.

import { vcpuRecord } from '../../abi/vcpu.ts';
import { i32, i64 } from '../../wasm/scalar.ts';
import { v128 } from '../../wasm/vector.ts';
import { imm, xd, xr } from '../operand.ts';
import { group } from '../row.ts';
import { DAIF_CLR, DAIF_SET, DAIF_SHIFT } from '../slow.ts';

const { name, rows, inst } = group('system');

// ---- hints: what this CPU does not have (PAC*, AUT*, BTI, ESB, …) is a NOP by architecture

inst('HINT', '1101010100 0 00 011 0010 CRm:4 op2:3 11111', {
  operands: () => ({}),
  meaning: () => {},
});
for (const [op, op2, trap] of [['YIELD', '001', 'yield'], ['WFE', '010', 'wfe'], ['WFI', '011', 'wfi']] as const) {
  inst(op, `1101010100 0 00 011 0010 0000 ${op2} 11111`, {
    operands: () => ({}),
    ends: true,
    meaning: m => m.trap(trap),
  });
}

// ---- barriers

inst('CLREX', '1101010100 0 00 011 0011 CRm:4 010 11111', {
  operands: () => ({}),
  meaning: m => m.writeState64(vcpuRecord.at.exclusiveAddress, i64.const(-1n)),
});
// Maintenance operations are complete when their trap returns, so DSB has nothing more to wait for than DMB. The low bits
// of CRm say what is ordered: 01 loads with what follows, 10 stores with stores, others everything.
for (const [op, op2] of [['DSB', '100'], ['DMB', '101']] as const) {
  inst(op, `1101010100 0 00 011 0011 CRm:4 ${op2} 11111`, {
    statics: ['CRm'],
    operands: () => ({}),
    meaning: (m, _, s) => m.fence((['full', 'loads', 'stores', 'full'] as const)[s.CRm & 3]!),
  });
}
// What it would synchronise, is: system registers change in the trap that writes them, and code when it is invalidated.
inst('ISB', '1101010100 0 00 011 0011 CRm:4 110 11111', { operands: () => ({}), meaning: () => {} });

// ---- PSTATE fields

// Arguments of the trap: op1:op2, the immediate.
inst('MSR (immediate)', '1101010100 0 00 op1:3 0100 CRm:4 op2:3 11111', {
  operands: f => ({ field: imm((f.op1 << 3) | f.op2 | (f.CRm << 8)) }),
  ends: true,
  undifferentiable: 'needs EL1',
  meaning: (m, o) => {
    const packed = m.f.let(m.imm(o.field));
    m.trap('msrImmediate', i32.and(packed, i32.const(0xff)), i32.shrU(packed, i32.const(8)));
  },
});
inst('MSR DAIFSet', '1101010100 0 00 011 0100 CRm:4 110 11111', {
  operands: f => ({ i: imm(f.CRm) }),
  undifferentiable: 'needs EL1',
  meaning: (m, o) => {
    const bits = m.f.let(m.imm(o.i));
    m.trapIf(i32.eqz(m.readState32(vcpuRecord.at.el)), 'msrImmediate', i32.const(DAIF_SET), bits);
    const daif = m.readState32(vcpuRecord.at.daif);
    m.writeState32(vcpuRecord.at.daif, i32.or(daif, i32.shl(bits, i32.const(DAIF_SHIFT))));
  },
});
// Unmasking with an interrupt waiting goes through the trap, which takes it. One that comes later makes itself known.
inst('MSR DAIFClr', '1101010100 0 00 011 0100 CRm:4 111 11111', {
  operands: f => ({ i: imm(f.CRm) }),
  undifferentiable: 'needs EL1',
  meaning: (m, o) => {
    const bits = m.f.let(m.imm(o.i));
    const slow = i32.or(i32.eqz(m.readState32(vcpuRecord.at.el)), m.readState32(vcpuRecord.at.irqLine));
    m.trapIf(slow, 'msrImmediate', i32.const(DAIF_CLR), bits);
    const kept = i32.xor(i32.shl(bits, i32.const(DAIF_SHIFT)), i32.const(-1));
    m.writeState32(vcpuRecord.at.daif, i32.and(m.readState32(vcpuRecord.at.daif), kept));
  },
});

// ---- system registers

type Encoding = { op1: number; CRn: number; CRm: number; op2: number };
const encoding = (op0: number, f: Encoding): number =>
  (op0 << 14) | (f.op1 << 11) | (f.CRn << 7) | (f.CRm << 3) | f.op2;
const IMPLEMENTATION_WIDE = 'its registers differ from one CPU to another; tests of the system registers cover it';

inst('MRS', '1101010100 1 1 o0 op1:3 CRn:4 CRm:4 op2:3 Rt:5', {
  operands: f => ({ t: xd(f.Rt), register: imm(encoding(2 + f.o0, f)) }),
  ends: true,
  undifferentiable: IMPLEMENTATION_WIDE,
  meaning: (m, o) => m.trap('mrs', m.imm(o.register), m.slotOffset(o.t)),
});
inst('MSR (register)', '1101010100 0 1 o0 op1:3 CRn:4 CRm:4 op2:3 Rt:5', {
  operands: f => ({ t: xr(f.Rt), register: imm(encoding(2 + f.o0, f)) }),
  ends: true,
  undifferentiable: IMPLEMENTATION_WIDE,
  meaning: (m, o) => m.trap('msr', m.imm(o.register), m.slotOffset(o.t)),
});
inst('SYS', '1101010100 0 01 op1:3 CRn:4 CRm:4 op2:3 Rt:5', {
  operands: f => ({ t: xr(f.Rt), operation: imm(encoding(1, f)) }),
  ends: true,
  undifferentiable: IMPLEMENTATION_WIDE,
  meaning: (m, o) => m.trap('sys', m.imm(o.operation), m.slotOffset(o.t)),
});
inst('SYSL', '1101010100 1 01 op1:3 CRn:4 CRm:4 op2:3 Rt:5', {
  operands: f => ({ t: xd(f.Rt), operation: imm(encoding(1, f)) }),
  ends: true,
  undifferentiable: IMPLEMENTATION_WIDE,
  meaning: (m, o) => m.trap('sysl', m.imm(o.operation), m.slotOffset(o.t)),
});

const ZVA_BYTES = 64; // as DCZID_EL0 says
inst('DC ZVA', '1101010100 0 01 011 0111 0100 001 Rt:5', {
  operands: f => ({ t: xr(f.Rt) }),
  meaning: (m, o) => {
    const host = m.hostAddress(i64.and(m.x(o.t), i64.const(-ZVA_BYTES)), 4, 'write');
    for (let at = 0; at < ZVA_BYTES; at += 16) m.f.do(v128.store(host, v128.const(0n, 0n), at));
  },
});

const NZCV_SHIFT = 28;
inst('MRS NZCV', '1101010100 1 1 1 011 0100 0010 000 Rt:5', {
  operands: f => ({ t: xd(f.Rt) }),
  meaning: (m, o) => m.setW(o.t, i32.shl(m.nzcv(), i32.const(NZCV_SHIFT))),
});
inst('MSR NZCV', '1101010100 0 1 1 011 0100 0010 000 Rt:5', {
  operands: f => ({ t: xr(f.Rt) }),
  meaning: (m, o) => m.setFlags({ kind: 'packed', nzcv: m.f.let(i32.shrU(m.w(o.t), i32.const(NZCV_SHIFT))) }),
});

/** AHP, DN, FZ, RMode; and QC, IDC, IXC, UFC, OFC, DZC, IOC. The rest is RES0 here. */
const FPCR_BITS = 0x07c0_0000;
const FPSR_BITS = 0x0800_009f;
inst('MRS FPCR', '1101010100 1 1 1 011 0100 0100 000 Rt:5', {
  operands: f => ({ t: xd(f.Rt) }),
  fp: true,
  meaning: (m, o) => m.setW(o.t, m.fpcr()),
});
inst('MSR FPCR', '1101010100 0 1 1 011 0100 0100 000 Rt:5', {
  operands: f => ({ t: xr(f.Rt) }),
  fp: true,
  meaning: (m, o) => m.setFpcr(i32.and(m.w(o.t), i32.const(FPCR_BITS))),
});
inst('MRS FPSR', '1101010100 1 1 1 011 0100 0100 001 Rt:5', {
  operands: f => ({ t: xd(f.Rt) }),
  fp: true,
  meaning: (m, o) => m.setW(o.t, m.fpsr()),
});
inst('MSR FPSR', '1101010100 0 1 1 011 0100 0100 001 Rt:5', {
  operands: f => ({ t: xr(f.Rt) }),
  fp: true,
  meaning: (m, o) => m.setFpsr(i32.and(m.w(o.t), i32.const(FPSR_BITS))),
});

export default { name, rows };
