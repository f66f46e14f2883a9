// Scalar floating-point conversions (Arm ARM C4.1.96: conversion between floating-point and integer, and fixed-point;
// FCVT of floating-point data-processing with 1 source).

import type { F32, I32 } from '../../wasm/types.ts';
import { i64x2 } from '../../wasm/vector.ts';
import { convertHalf, fromInteger, singleToDouble, toInteger, toSingle } from '../fp-convert-inline.ts';
import type { IntegerSide } from '../fp-convert-inline.ts';
import { scalarShape, scalarSingle, scalarDouble } from '../fp-shape.ts';
import { imm, vr, xd, xr } from '../operand.ts';
import { group } from '../row.ts';
import { width } from '../width.ts';

const { name, rows, inst } = group('fp-conversions');

const side = (sf: number, unsigned: boolean, fractionBits?: I32): IntegerSide =>
  ({ bits: sf ? 64 : 32, unsigned, fractionBits });

// ---- to integer: rounding mode and signedness are in the opcode

const toIntegerRows = [
  ['FCVTN', '00', '00', 'nearest'], ['FCVTP', '01', '00', 'positive'], ['FCVTM', '10', '00', 'negative'],
  ['FCVTZ', '11', '00', 'zero'], ['FCVTA', '00', '10', 'tiesAway'],
] as const;
for (const [op, rmode, opcode, rounding] of toIntegerRows) {
  for (const [suffix, u] of [['S', '0'], ['U', '1']] as const) {
    inst(`${op}${suffix} (scalar, integer)`, `sf 0 0 11110 0 sz 1 ${rmode} ${opcode} ${u} 000000 Rn:5 Rd:5`, {
      fp: true, statics: ['sf', 'sz'],
      operands: f => ({ d: xd(f.Rd), n: vr(f.Rn) }),
      meaning: (m, o, { sf, sz }) => {
        const s = scalarShape(sz);
        width(m, sf).write(o.d, toInteger(m, s, s.read(m, o.n), side(sf, u === '1'), rounding));
      },
    });
  }
}

for (const [op, u] of [['FCVTZS', '0'], ['FCVTZU', '1']] as const) {
  inst(`${op} (scalar, fixed-point)`, `sf 0 0 11110 0 sz 0 11 00 ${u} scale:6 Rn:5 Rd:5`, {
    fp: true, statics: ['sf', 'sz'],
    when: f => f.sf === 1 || f.scale >= 32,
    operands: f => ({ d: xd(f.Rd), n: vr(f.Rn), fbits: imm(64 - f.scale) }),
    meaning: (m, o, { sf, sz }) => {
      const s = scalarShape(sz);
      const fractionBits = m.f.let(m.imm(o.fbits));
      width(m, sf).write(o.d, toInteger(m, s, s.read(m, o.n), side(sf, u === '1', fractionBits), 'zero'));
    },
  });
}

// ---- from integer

for (const [op, u] of [['SCVTF', '0'], ['UCVTF', '1']] as const) {
  inst(`${op} (scalar, integer)`, `sf 0 0 11110 0 sz 1 00 01 ${u} 000000 Rn:5 Rd:5`, {
    fp: true, statics: ['sf', 'sz'],
    operands: f => ({ d: vr(f.Rd), n: xr(f.Rn) }),
    meaning: (m, o, { sf, sz }) => {
      const s = scalarShape(sz);
      s.write(m, o.d, fromInteger(m, s, width(m, sf).read(o.n), side(sf, u === '1')));
    },
  });
  inst(`${op} (scalar, fixed-point)`, `sf 0 0 11110 0 sz 0 00 01 ${u} scale:6 Rn:5 Rd:5`, {
    fp: true, statics: ['sf', 'sz'],
    when: f => f.sf === 1 || f.scale >= 32,
    operands: f => ({ d: vr(f.Rd), n: xr(f.Rn), fbits: imm(64 - f.scale) }),
    meaning: (m, o, { sf, sz }) => {
      const s = scalarShape(sz);
      const fractionBits = m.f.let(m.imm(o.fbits));
      s.write(m, o.d, fromInteger(m, s, width(m, sf).read(o.n), side(sf, u === '1', fractionBits)));
    },
  });
}

// ---- between formats

inst('FCVT (single to double)', '00011110 00 1 000101 10000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o) => scalarDouble.write(m, o.d, singleToDouble(m, scalarSingle.read(m, o.n) as F32)),
});
inst('FCVT (double to single)', '00011110 01 1 000100 10000 Rn:5 Rd:5', {
  fp: true,
  operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
  meaning: (m, o) => scalarSingle.write(m, o.d, toSingle(m, scalarSingle, scalarDouble.read(m, o.n), 'dynamic')),
});

// The exact path leaves zeros above the result, so that its low 64 bits can be written whatever the format.
const halfConversions = [
  ['single to half', '00', '11', 32, 16], ['double to half', '01', '11', 64, 16],
  ['half to single', '11', '00', 16, 32], ['half to double', '11', '01', 16, 64],
] as const;
for (const [what, ftype, opc, from, to] of halfConversions) {
  inst(`FCVT (${what})`, `00011110 ${ftype} 1 0001 ${opc} 10000 Rn:5 Rd:5`, {
    fp: true,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o) => m.setD(o.d, i64x2.extract(convertHalf(m, m.q(o.n), from, to, 1), 0)),
  });
}

export default { name, rows };
