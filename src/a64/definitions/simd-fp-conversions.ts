// Advanced SIMD conversions (Arm ARM C4.1.96): between floating-point and integers (two-register miscellaneous) or
// fixed point (shift by immediate), vector and scalar; and between floating-point formats.

import { i64x2 } from '../../wasm/vector.ts';
import type { I32, V128 } from '../../wasm/types.ts';
import {
  convertHalf, fromInteger, fromIntegers, singlesToDoubles, toInteger, toIntegers, toSingle,
} from '../fp-convert-inline.ts';
import type { IntegerSide } from '../fp-convert-inline.ts';
import { highHalf, joinLow, scalarDouble, scalarShape, scalarSingle, vectorShape } from '../fp-shape.ts';
import type { Shape } from '../fp-shape.ts';
import type { Machine } from '../machine.ts';
import { imm, vr } from '../operand.ts';
import type { VReg } from '../operand.ts';
import { group } from '../row.ts';
import type { RoundingName } from '../soft-float.ts';

const { name, rows, inst } = group('simd-fp-conversions');

const side = (s: Shape, unsigned: boolean, fractionBits?: I32): IntegerSide =>
  ({ bits: s.size, unsigned, fractionBits });

/** Both registers hold lanes of the shape. */
function convertToInteger(m: Machine, s: Shape, d: VReg, n: VReg, to: IntegerSide, rounding: RoundingName): void {
  if (s.vector) return s.write(m, d, toIntegers(m, s, s.read(m, n), to, rounding));
  const integer = toInteger(m, s, s.read(m, n), to, rounding);
  if (integer.type === 'i64') m.setD(d, integer);
  else m.setS(d, integer as I32);
}
function convertFromInteger(m: Machine, s: Shape, d: VReg, n: VReg, from: IntegerSide): void {
  if (s.vector) return s.write(m, d, fromIntegers(m, s, m.q(n), from));
  s.write(m, d, fromInteger(m, s, from.bits === 64 ? m.d(n) : m.s(n), from));
}

const toIntegerRows = [
  ['FCVTN', '0', '11010', 'nearest'], ['FCVTM', '0', '11011', 'negative'], ['FCVTA', '0', '11100', 'tiesAway'],
  ['FCVTP', '1', '11010', 'positive'], ['FCVTZ', '1', '11011', 'zero'],
] as const;
for (const [suffix, u] of [['S', '0'], ['U', '1']] as const) {
  const unsigned = u === '1';
  for (const [op, a, opcode, rounding] of toIntegerRows) {
    inst(`${op}${suffix} (vector)`, `0 Q ${u} 01110 ${a} sz 10000 ${opcode} 10 Rn:5 Rd:5`, {
      fp: true, statics: ['Q', 'sz'],
      when: f => f.Q === 1 || f.sz === 0,
      operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
      meaning: (m, o, { Q, sz }) => {
        const s = vectorShape(sz, Q);
        convertToInteger(m, s, o.d, o.n, side(s, unsigned), rounding);
      },
    });
    inst(`${op}${suffix} (SIMD scalar)`, `01 ${u} 11110 ${a} sz 10000 ${opcode} 10 Rn:5 Rd:5`, {
      fp: true, statics: ['sz'],
      operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
      meaning: (m, o, { sz }) => {
        const s = scalarShape(sz);
        convertToInteger(m, s, o.d, o.n, side(s, unsigned), rounding);
      },
    });
  }
}

for (const [op, u] of [['SCVTF', '0'], ['UCVTF', '1']] as const) {
  inst(`${op} (vector)`, `0 Q ${u} 01110 0 sz 10000 11101 10 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz'],
    when: f => f.Q === 1 || f.sz === 0,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o, { Q, sz }) => {
      const s = vectorShape(sz, Q);
      convertFromInteger(m, s, o.d, o.n, side(s, u === '1'));
    },
  });
  inst(`${op} (SIMD scalar)`, `01 ${u} 11110 0 sz 10000 11101 10 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      convertFromInteger(m, s, o.d, o.n, side(s, u === '1'));
    },
  });
}

// ---- fixed point: sz:shift is immh:immb, twice the width less the fraction bits. immh is 1xxx for doubles and 01xx
// for singles, so that both have 64 - shift fraction bits.

const fixedPoint = [
  ['SCVTF', '0', '11100'], ['UCVTF', '1', '11100'], ['FCVTZS', '0', '11111'], ['FCVTZU', '1', '11111'],
] as const;
for (const [op, u, opcode] of fixedPoint) {
  const convert = (m: Machine, s: Shape, d: VReg, n: VReg, fbits: I32): void => {
    const fixed = side(s, u === '1', fbits);
    if (opcode === '11100') convertFromInteger(m, s, d, n, fixed);
    else convertToInteger(m, s, d, n, fixed, 'zero');
  };
  inst(`${op} (vector, fixed-point)`, `0 Q ${u} 011110 sz shift:6 ${opcode} 1 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz'],
    when: f => f.sz ? f.Q === 1 : f.shift >= 32,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), fbits: imm(64 - f.shift) }),
    meaning: (m, o, { Q, sz }) => convert(m, vectorShape(sz, Q), o.d, o.n, m.f.let(m.imm(o.fbits))),
  });
  inst(`${op} (SIMD scalar, fixed-point)`, `01 ${u} 111110 sz shift:6 ${opcode} 1 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    when: f => f.sz === 1 || f.shift >= 32,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), fbits: imm(64 - f.shift) }),
    meaning: (m, o, { sz }) => convert(m, scalarShape(sz), o.d, o.n, m.f.let(m.imm(o.fbits))),
  });
}

// ---- formats: the narrow side is the low half of a register, or with Q = 1 (the "2" forms) the high one

const narrowShape = vectorShape(0, 0);

/** Writes 64 bits (the low half of `value`): FCVTN zeroes the upper half, FCVTN2 keeps the lower one. */
function writeNarrow(m: Machine, upper: number, o: { d: VReg; old: VReg }, value: V128): void {
  if (upper) m.setQ(o.d, joinLow(m.q(o.old), value));
  else m.setD(o.d, i64x2.extract(value, 0));
}
const readNarrow = (m: Machine, upper: number, n: VReg): V128 => upper ? highHalf(m.q(n)) : m.q(n);

inst('FCVTN', '0 Q 0 01110 0 sz 10000 10110 10 Rn:5 Rd:5', {
  fp: true, statics: ['Q', 'sz'],
  operands: f => ({ d: vr(f.Rd), old: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o, { Q, sz }) => writeNarrow(m, Q, o, sz
    ? toSingle(m, narrowShape, m.q(o.n), 'dynamic') as V128 : convertHalf(m, m.q(o.n), 32, 16, 4)),
});
inst('FCVTL', '0 Q 0 01110 0 sz 10000 10111 10 Rn:5 Rd:5', {
  fp: true, statics: ['Q', 'sz'],
  operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o, { Q, sz }) => {
    const narrow = readNarrow(m, Q, o.n);
    m.setQ(o.d, sz ? singlesToDoubles(m, narrow) : convertHalf(m, narrow, 16, 32, 4));
  },
});
inst('FCVTXN (vector)', '0 Q 1 01110 0 1 10000 10110 10 Rn:5 Rd:5', {
  fp: true, statics: ['Q'],
  operands: f => ({ d: vr(f.Rd), old: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o, { Q }) => writeNarrow(m, Q, o, toSingle(m, narrowShape, m.q(o.n), 'odd') as V128),
});
inst('FCVTXN (scalar)', '01 1 11110 0 1 10000 10110 10 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o) => scalarSingle.write(m, o.d, toSingle(m, scalarSingle, scalarDouble.read(m, o.n), 'odd')),
});

export default { name, rows };
