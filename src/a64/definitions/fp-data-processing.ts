// Scalar floating-point data processing, comparison, selection and moves (Arm ARM C4.1.96: floating-point
// data-processing with 1, 2, 3 sources, compare, conditional compare, conditional select, immediate; and FMOV between
// register files). Half precision is only converted, never computed with.

import { select } from '../../wasm/scalar.ts';
import type { F64 } from '../../wasm/types.ts';
import { i64x2 } from '../../wasm/vector.ts';
import { binary, compareFlags, multiplyAdd, roundIntegral, squareRoot } from '../fp-inline.ts';
import type { BinaryOperation } from '../fp-inline.ts';
import { scalarShape } from '../fp-shape.ts';
import type { Shape, Value } from '../fp-shape.ts';
import type { Machine } from '../machine.ts';
import { imm, imm64, vr, xd, xr } from '../operand.ts';
import { group } from '../row.ts';
import { expandFpImmediate } from '../fp-immediate.ts';

const { name, rows, inst } = group('fp-data-processing');

// ---- one source

type UnaryMeaning = (m: Machine, s: Shape, a: Value) => Value;
const unaries: readonly (readonly [string, '000001' | '000010' | '000011' | '001000' | '001001' | '001010' | '001011' |
  '001100' | '001110' | '001111', UnaryMeaning])[] = [
  ['FABS', '000001', (_, s, a) => s.abs(a)],
  ['FNEG', '000010', (_, s, a) => s.neg(a)],
  ['FSQRT', '000011', squareRoot],
  ['FRINTN', '001000', (m, s, a) => roundIntegral(m, s, a, 'nearest', false)],
  ['FRINTP', '001001', (m, s, a) => roundIntegral(m, s, a, 'positive', false)],
  ['FRINTM', '001010', (m, s, a) => roundIntegral(m, s, a, 'negative', false)],
  ['FRINTZ', '001011', (m, s, a) => roundIntegral(m, s, a, 'zero', false)],
  ['FRINTA', '001100', (m, s, a) => roundIntegral(m, s, a, 'tiesAway', false)],
  ['FRINTX', '001110', (m, s, a) => roundIntegral(m, s, a, 'dynamic', true)],
  ['FRINTI', '001111', (m, s, a) => roundIntegral(m, s, a, 'dynamic', false)],
];
for (const [op, opcode, meaning] of unaries) {
  inst(`${op} (scalar)`, `00011110 0 sz 1 ${opcode} 10000 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      s.write(m, o.d, meaning(m, s, s.read(m, o.n)));
    },
  });
}

// ---- two sources

const binaries = [
  ['FMUL', '0000', 'mul'], ['FDIV', '0001', 'div'], ['FADD', '0010', 'add'], ['FSUB', '0011', 'sub'],
  ['FMAX', '0100', 'max'], ['FMIN', '0101', 'min'], ['FMAXNM', '0110', 'maxNum'], ['FMINNM', '0111', 'minNum'],
  ['FNMUL', '1000', 'mul'],
] as const satisfies readonly (readonly [string, string, BinaryOperation])[];
for (const [op, opcode, operation] of binaries) {
  inst(`${op} (scalar)`, `00011110 0 sz 1 Rm:5 ${opcode} 10 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      const result = binary(m, s, operation, s.read(m, o.n), s.read(m, o.r));
      // FNMUL negates after rounding, a NaN too.
      s.write(m, o.d, op === 'FNMUL' ? s.neg(result) : result);
    },
  });
}

// ---- three sources: operands are negated before the fused operation

const fused = [
  ['FMADD', '0', '0', false, false], ['FMSUB', '0', '1', false, true],
  ['FNMADD', '1', '0', true, true], ['FNMSUB', '1', '1', true, false],
] as const;
for (const [op, o1, o0, negateAddend, negateProduct] of fused) {
  inst(op, `00011111 0 sz ${o1} Rm:5 ${o0} Ra:5 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm), a: vr(f.Ra) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      const addend = s.read(m, o.a);
      const n = s.read(m, o.n);
      s.write(m, o.d, multiplyAdd(m, s, negateAddend ? s.neg(addend) : addend, negateProduct ? s.neg(n) : n,
        s.read(m, o.r)));
    },
  });
}

// ---- comparison

for (const [op, e] of [['FCMP', '0'], ['FCMPE', '1']] as const) {
  inst(op, `00011110 0 sz 1 Rm:5 001000 Rn:5 ${e} 0 000`, {
    fp: true, statics: ['sz'],
    operands: f => ({ n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      m.setFlags({ kind: 'packed', nzcv: compareFlags(m, s, s.read(m, o.n), s.read(m, o.r), e === '1') });
    },
  });
  inst(`${op} (zero)`, `00011110 0 sz 1 xxxxx 001000 Rn:5 ${e} 1 000`, {
    fp: true, statics: ['sz'],
    operands: f => ({ n: vr(f.Rn) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      m.setFlags({ kind: 'packed', nzcv: compareFlags(m, s, s.read(m, o.n), s.const(0), e === '1') });
    },
  });
}

for (const [op, e] of [['FCCMP', '0'], ['FCCMPE', '1']] as const) {
  inst(op, `00011110 0 sz 1 Rm:5 cond:4 01 Rn:5 ${e} nzcv:4`, {
    fp: true, statics: ['sz', 'cond'],
    operands: f => ({ n: vr(f.Rn), r: vr(f.Rm), i: imm(f.nzcv) }),
    meaning: (m, o, { sz, cond }) => {
      const s = scalarShape(sz);
      const nzcv = m.f.local('i32');
      m.f.set(nzcv, m.imm(o.i));
      m.f.if(m.condition(cond),
        () => m.f.set(nzcv, compareFlags(m, s, s.read(m, o.n), s.read(m, o.r), e === '1')));
      m.setFlags({ kind: 'packed', nzcv });
    },
  });
}

inst('FCSEL', '00011110 0 sz 1 Rm:5 cond:4 11 Rn:5 Rd:5', {
  fp: true, statics: ['sz', 'cond'],
  operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
  meaning: (m, o, { sz, cond }) => {
    const s = scalarShape(sz);
    s.write(m, o.d, select(m.condition(cond), s.read(m, o.n) as F64, s.read(m, o.r) as F64));
  },
});

// ---- moves: bits, not numbers

inst('FMOV (register)', '00011110 0 sz 1 000000 10000 Rn:5 Rd:5', {
  fp: true, statics: ['sz'],
  operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o, { sz }) => sz ? m.setD(o.d, m.d(o.n)) : m.setS(o.d, m.s(o.n)),
});

inst('FMOV (scalar, immediate)', '00011110 0 sz 1 imm8:8 100 00000 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), i: imm64(expandFpImmediate(f.imm8, f.sz ? 64 : 32)) }),
  meaning: (m, o) => m.setD(o.d, m.imm64(o.i)),
});

inst('FMOV (32-bit to general)', '0 0011110 00 1 00 110 000000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: xd(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o) => m.setW(o.d, m.s(o.n)),
});
inst('FMOV (32-bit from general)', '0 0011110 00 1 00 111 000000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), n: xr(f.Rn) }),
  meaning: (m, o) => m.setS(o.d, m.w(o.n)),
});
inst('FMOV (64-bit to general)', '1 0011110 01 1 00 110 000000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: xd(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o) => m.setX(o.d, m.d(o.n)),
});
inst('FMOV (64-bit from general)', '1 0011110 01 1 00 111 000000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), n: xr(f.Rn) }),
  meaning: (m, o) => m.setD(o.d, m.x(o.n)),
});
inst('FMOV (top half to general)', '1 0011110 10 1 01 110 000000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: xd(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o) => m.setX(o.d, i64x2.extract(m.q(o.n), 1)),
});
inst('FMOV (top half from general)', '1 0011110 10 1 01 111 000000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), old: vr(f.Rd), n: xr(f.Rn) }),
  meaning: (m, o) => m.setQ(o.d, i64x2.replace(m.q(o.old), 1, m.x(o.n))),
});

export default { name, rows };
