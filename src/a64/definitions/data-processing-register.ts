// Data processing -- register (Arm ARM C4.1.95), first part: logical and arithmetic operations on shifted, extended
// and plain registers, and the conditional ones. data-processing-sources.ts has the rest of the group.
//
// The assembler's everyday forms (no shift, `MOV`, `CMP`, `TST`) have rows of their own with more fixed bits, which the
// decoder prefers: an interpreter's handler for them does no shift and writes no register that nobody reads.

import { i32, i64 } from '../../wasm/scalar.ts';
import type { I32 } from '../../wasm/types.ts';
import type { Machine, Word } from '../machine.ts';
import { imm, xd, xr, xsp } from '../operand.ts';
import type { Imm, Reg } from '../operand.ts';
import { group } from '../row.ts';
import { width } from '../width.ts';
import type { Width } from '../width.ts';

const { name, rows, inst } = group('data-processing-register');

/** `n op m`, where the second operand is computed already. */
type Combine = (r: Width, n: Word, m: Word) => Word;
const SHIFTS = ['shl', 'shrS', 'rotr'] as const;

/** The shift field's order is LSL, LSR, ASR, ROR. */
function shifted(r: Width, value: Word, type: number, amount: Word): Word {
  return r[type === 1 ? 'shrU' : SHIFTS[type === 0 ? 0 : type - 1]!](value, amount);
}

// ---- logical (shifted register)

const logical: readonly (readonly [mnemonic: string, opc: '00' | '01' | '10' | '11', n: '0' | '1', Combine])[] = [
  ['AND', '00', '0', (r, n, m) => r.and(n, m)],
  ['BIC', '00', '1', (r, n, m) => r.and(n, r.not(m))],
  ['ORR', '01', '0', (r, n, m) => r.or(n, m)],
  ['ORN', '01', '1', (r, n, m) => r.or(n, r.not(m))],
  ['EOR', '10', '0', (r, n, m) => r.xor(n, m)],
  ['EON', '10', '1', (r, n, m) => r.xor(n, r.not(m))],
  ['ANDS', '11', '0', (r, n, m) => r.and(n, m)],
  ['BICS', '11', '1', (r, n, m) => r.and(n, r.not(m))],
];

for (const [op, opc, invert, combine] of logical) {
  const finish = (m: Machine, r: Width, d: Reg, result: Word): void => {
    if (opc !== '11') return r.write(d, result);
    const pinned = r.let(result);
    m.setFlags(r.logicFlags(pinned));
    r.write(d, pinned);
  };
  inst(`${op} (shifted register)`, `sf ${opc} 01010 shift:2 ${invert} Rm:5 imm6:6 Rn:5 Rd:5`, {
    statics: ['sf', 'shift'],
    when: f => f.sf === 1 || f.imm6 < 32,
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm), i: imm(f.imm6) }),
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      finish(m, r, o.d, combine(r, r.read(o.n), shifted(r, r.read(o.m), s.shift, r.imm(o.i))));
    },
  });
  inst(`${op} (register)`, `sf ${opc} 01010 00 ${invert} Rm:5 000000 Rn:5 Rd:5`, {
    statics: ['sf'],
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      finish(m, r, o.d, combine(r, r.read(o.n), r.read(o.m)));
    },
  });
}

inst('MOV (register)', 'sf 01 01010 00 0 Rm:5 000000 11111 Rd:5', {
  statics: ['sf'],
  operands: f => ({ d: xd(f.Rd), m: xr(f.Rm) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    r.write(o.d, r.read(o.m));
  },
});
inst('TST (register)', 'sf 11 01010 00 0 Rm:5 000000 Rn:5 11111', {
  statics: ['sf'],
  operands: f => ({ n: xr(f.Rn), m: xr(f.Rm) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    m.setFlags(r.logicFlags(r.let(r.and(r.read(o.n), r.read(o.m)))));
  },
});

// ---- add and subtract (shifted and extended register)

function addSub(m: Machine, r: Width, kind: 'add' | 'sub', setFlags: boolean, d: Reg, n: Word, operand: Word): void {
  if (!setFlags) return r.write(d, r[kind](n, operand));
  const a = r.let(n);
  const b = r.let(operand);
  const result = r.let(r[kind](a, b));
  m.setFlags(r.flags(kind, a, b, result));
  r.write(d, result);
}

/** The extension of the second operand by the option field: UXTB, UXTH, UXTW, UXTX, SXTB, SXTH, SXTW, SXTX. */
function extended(m: Machine, sf: number, register: Reg, option: number): Word {
  const log2 = option & 3;
  const isSigned = option >= 4;
  if (!sf) {
    const value = m.w(register);
    if (log2 >= 2) return value;
    if (!isSigned) return i32.and(value, i32.const(log2 === 0 ? 0xff : 0xffff));
    return log2 === 0 ? i32.extend8S(value) : i32.extend16S(value);
  }
  if (log2 === 2 && !isSigned) return i64.extendI32U(m.w(register));
  const value = m.x(register);
  if (log2 === 3) return value;
  if (!isSigned) return i64.and(value, i64.const(log2 === 0 ? 0xff : 0xffff));
  return log2 === 0 ? i64.extend8S(value) : log2 === 1 ? i64.extend16S(value) : i64.extend32S(value);
}

for (const [op, bit, kind] of [['ADD', '0', 'add'], ['SUB', '1', 'sub']] as const) {
  for (const [suffix, flagBit] of [['', '0'], ['S', '1']] as const) {
    const setFlags = flagBit === '1';
    inst(`${op}${suffix} (shifted register)`, `sf ${bit} ${flagBit} 01011 shift:2 0 Rm:5 imm6:6 Rn:5 Rd:5`, {
      statics: ['sf', 'shift'],
      when: f => f.shift < 3 && (f.sf === 1 || f.imm6 < 32),
      operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm), i: imm(f.imm6) }),
      meaning: (m, o, s) => {
        const r = width(m, s.sf);
        addSub(m, r, kind, setFlags, o.d, r.read(o.n), shifted(r, r.read(o.m), s.shift, r.imm(o.i)));
      },
    });
    inst(`${op}${suffix} (register)`, `sf ${bit} ${flagBit} 01011 00 0 Rm:5 000000 Rn:5 Rd:5`, {
      statics: ['sf'],
      operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
      meaning: (m, o, s) => {
        const r = width(m, s.sf);
        addSub(m, r, kind, setFlags, o.d, r.read(o.n), r.read(o.m));
      },
    });
    inst(`${op}${suffix} (extended register)`, `sf ${bit} ${flagBit} 01011 00 1 Rm:5 option:3 imm3:3 Rn:5 Rd:5`, {
      statics: ['sf', 'option'],
      when: f => f.imm3 <= 4,
      operands: f => ({ d: setFlags ? xd(f.Rd) : xsp(f.Rd), n: xsp(f.Rn), m: xr(f.Rm), i: imm(f.imm3) }),
      meaning: (m, o, s) => {
        const r = width(m, s.sf);
        addSub(m, r, kind, setFlags, o.d, r.read(o.n), r.shl(extended(m, s.sf, o.m, s.option), r.imm(o.i)));
      },
    });
  }
}

inst('CMP (register)', 'sf 1 1 01011 00 0 Rm:5 000000 Rn:5 11111', {
  statics: ['sf'],
  operands: f => ({ n: xr(f.Rn), m: xr(f.Rm) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    const a = r.let(r.read(o.n));
    const b = r.let(r.read(o.m));
    m.setFlags(r.flags('sub', a, b, r.let(r.sub(a, b))));
  },
});

// ---- add and subtract with carry

for (const [op, bit] of [['ADC', '0'], ['SBC', '1']] as const) {
  for (const [suffix, flagBit] of [['', '0'], ['S', '1']] as const) {
    inst(`${op}${suffix}`, `sf ${bit} ${flagBit} 11010000 Rm:5 000000 Rn:5 Rd:5`, {
      statics: ['sf'],
      operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
      meaning: (m, o, s) => {
        const r = width(m, s.sf);
        const carry = m.f.let(m.carry());
        const a = r.let(r.read(o.n));
        const b = r.let(bit === '1' ? r.not(r.read(o.m)) : r.read(o.m));
        const result = r.let(r.add(r.add(a, b), r.fromU32(carry)));
        if (flagBit === '1') m.setFlags(r.adcFlags(a, b, carry, result));
        r.write(o.d, result);
      },
    });
  }
}

// ---- conditional compare

/**
 * The flags of the comparison when the condition holds, else the immediate. They are put together here, and not left to
 * `setFlags` on two paths, so that an engine that keeps flags symbolically sees one source.
 */
function conditionalCompare(
  m: Machine, s: { sf: number; cond: number }, kind: 'add' | 'sub', n: Reg, operand: (r: Width) => Word, nzcv: I32,
): void {
  const r = width(m, s.sf);
  const a = r.let(r.read(n));
  const b = r.let(operand(r));
  const result = r.let(r[kind](a, b));
  const zero = r.const(0);
  const carry = kind === 'sub' ? r.geU(a, b) : r.ltU(result, a);
  const overflow = kind === 'sub'
    ? r.and(r.xor(a, b), r.xor(a, result))
    : r.and(r.xor(a, result), r.xor(b, result));
  const bit = (value: I32, place: number): I32 => i32.shl(value, i32.const(place));
  const flags = i32.or(
    i32.or(bit(r.ltS(result, zero), 3), bit(r.eqz(result), 2)),
    i32.or(bit(carry, 1), r.ltS(overflow, zero)),
  );
  const holds = m.f.let(m.condition(s.cond));
  m.setFlags({ kind: 'packed', nzcv: m.f.let(width(m, 0).select(holds, flags, nzcv) as I32) });
}

for (const [op, bit, kind] of [['CCMN', '0', 'add'], ['CCMP', '1', 'sub']] as const) {
  inst(`${op} (register)`, `sf ${bit} 1 11010010 Rm:5 cond:4 00 Rn:5 0 nzcv:4`, {
    statics: ['sf', 'cond'],
    operands: f => ({ n: xr(f.Rn), m: xr(f.Rm), nzcv: imm(f.nzcv) }),
    meaning: (m, o, s) => conditionalCompare(m, s, kind, o.n, r => r.read(o.m), m.imm(o.nzcv)),
  });
  // The record has room for one immediate: the operand stands above the flags.
  inst(`${op} (immediate)`, `sf ${bit} 1 11010010 imm5:5 cond:4 10 Rn:5 0 nzcv:4`, {
    statics: ['sf', 'cond'],
    operands: f => ({ n: xr(f.Rn), packed: imm((f.imm5 << 4) | f.nzcv) }),
    meaning: (m, o, s) => conditionalCompare(m, s, kind, o.n,
      r => r.fromU32(i32.shrU(m.imm(o.packed), i32.const(4))), lowNibble(m, o.packed)),
  });
}

function lowNibble(m: Machine, i: Imm): I32 {
  return i32.and(m.imm(i), i32.const(15));
}

// ---- conditional select

const selects: readonly (readonly [string, '0' | '1', '00' | '01', (r: Width, value: Word) => Word])[] = [
  ['CSEL', '0', '00', (_, value) => value],
  ['CSINC', '0', '01', (r, value) => r.add(value, r.const(1))],
  ['CSINV', '1', '00', (r, value) => r.not(value)],
  ['CSNEG', '1', '01', (r, value) => r.sub(r.const(0), value)],
];
for (const [op, bit, op2, otherwise] of selects) {
  inst(op, `sf ${bit} 0 11010100 Rm:5 cond:4 ${op2} Rn:5 Rd:5`, {
    statics: ['sf', 'cond'],
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      r.write(o.d, r.select(m.condition(s.cond), r.read(o.n), otherwise(r, r.read(o.m))));
    },
  });
}

export default { name, rows };
