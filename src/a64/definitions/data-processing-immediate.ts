// Data processing -- immediate (Arm ARM C4.1.93).

import { i32, i64 } from '../../wasm/scalar.ts';
import type { Machine } from '../machine.ts';
import { imm, imm64, xd, xr, xsp } from '../operand.ts';
import type { Imm, Reg } from '../operand.ts';
import { group, signed } from '../row.ts';
import { width } from '../width.ts';
import { decodeBitMasks } from '../bit-masks.ts';

const { name, rows, inst } = group('data-processing-immediate');

inst('ADR', '0 immlo:2 10000 immhi:19 Rd:5', {
  operands: f => ({ d: xd(f.Rd), i: imm((signed(f.immhi, 19) << 2) | f.immlo) }),
  meaning: (m, o) => m.setX(o.d, i64.add(m.pc(), m.imm64(o.i))),
});

inst('ADRP', '1 immlo:2 10000 immhi:19 Rd:5', {
  operands: f => ({ d: xd(f.Rd), i: imm((signed(f.immhi, 19) << 2) | f.immlo) }),
  meaning: (m, o) => m.setX(o.d,
    i64.add(i64.and(m.pc(), i64.const(~0xfffn)), i64.shl(m.imm64(o.i), i64.const(12)))),
});

const addSubImmediate = (kind: 'add' | 'sub', setFlags: boolean) =>
  (m: Machine, o: { d: Reg; n: Reg; i: Imm }, s: { sf: number }): void => {
    const r = width(m, s.sf);
    if (!setFlags) return r.write(o.d, r[kind](r.read(o.n), r.imm(o.i)));
    const a = r.let(r.read(o.n));
    const b = r.let(r.imm(o.i));
    const result = r.let(r[kind](a, b));
    m.setFlags(r.flags(kind, a, b, result));
    r.write(o.d, result);
  };

inst('ADD (immediate)', 'sf 0 0 100010 sh imm12:12 Rn:5 Rd:5', {
  statics: ['sf'],
  operands: f => ({ d: xsp(f.Rd), n: xsp(f.Rn), i: imm(f.imm12 << (12 * f.sh)) }),
  meaning: addSubImmediate('add', false),
});
inst('ADDS (immediate)', 'sf 0 1 100010 sh imm12:12 Rn:5 Rd:5', {
  statics: ['sf'],
  operands: f => ({ d: xd(f.Rd), n: xsp(f.Rn), i: imm(f.imm12 << (12 * f.sh)) }),
  meaning: addSubImmediate('add', true),
});
inst('SUB (immediate)', 'sf 1 0 100010 sh imm12:12 Rn:5 Rd:5', {
  statics: ['sf'],
  operands: f => ({ d: xsp(f.Rd), n: xsp(f.Rn), i: imm(f.imm12 << (12 * f.sh)) }),
  meaning: addSubImmediate('sub', false),
});
inst('SUBS (immediate)', 'sf 1 1 100010 sh imm12:12 Rn:5 Rd:5', {
  statics: ['sf'],
  operands: f => ({ d: xd(f.Rd), n: xsp(f.Rn), i: imm(f.imm12 << (12 * f.sh)) }),
  meaning: addSubImmediate('sub', true),
});

for (const [op, opc] of [['AND', '00'], ['ORR', '01'], ['EOR', '10'], ['ANDS', '11']] as const) {
  inst(`${op} (immediate)`, `sf ${opc} 100100 N immr:6 imms:6 Rn:5 Rd:5`, {
    statics: ['sf'],
    when: f => (f.sf === 1 || f.N === 0) && decodeBitMasks(f.N, f.imms, f.immr) !== undefined,
    operands: f => ({
      d: op === 'ANDS' ? xd(f.Rd) : xsp(f.Rd), n: xr(f.Rn),
      i: imm64(decodeBitMasks(f.N, f.imms, f.immr) ?? 0n),
    }),
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      const result = r[op === 'ORR' ? 'or' : op === 'EOR' ? 'xor' : 'and'](r.read(o.n), r.imm(o.i));
      if (op !== 'ANDS') return r.write(o.d, result);
      const pinned = r.let(result);
      m.setFlags(r.logicFlags(pinned));
      r.write(o.d, pinned);
    },
  });
}

inst('MOVN', 'sf 00 100101 hw:2 imm16:16 Rd:5', {
  when: f => f.sf === 1 || f.hw < 2,
  operands: f => ({
    d: xd(f.Rd),
    i: imm64(BigInt.asUintN(f.sf ? 64 : 32, ~(BigInt(f.imm16) << BigInt(16 * f.hw)))),
  }),
  meaning: (m, o) => m.setX(o.d, m.imm64(o.i)),
});
inst('MOVZ', 'sf 10 100101 hw:2 imm16:16 Rd:5', {
  when: f => f.sf === 1 || f.hw < 2,
  operands: f => ({ d: xd(f.Rd), i: imm64(BigInt(f.imm16) << BigInt(16 * f.hw)) }),
  meaning: (m, o) => m.setX(o.d, m.imm64(o.i)),
});
inst('MOVK', 'sf 11 100101 hw:2 imm16:16 Rd:5', {
  statics: ['sf', 'hw'],
  when: f => f.sf === 1 || f.hw < 2,
  operands: f => ({ d: xd(f.Rd), old: xr(f.Rd), i: imm(f.imm16) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    const shift = 16 * s.hw;
    const kept = r.and(r.read(o.old), r.const(~(0xffffn << BigInt(shift))));
    r.write(o.d, r.or(kept, r.shl(r.imm(o.i), r.const(shift))));
  },
});

// Bit-field moves: UBFM and SBFM are a shift pair when the field is one piece, a rotate and masks in general. The masks
// are computed at decode, so the general form is all that is needed: result = (rotated & mask) | outside.
inst('UBFM', 'sf 10 100110 N immr:6 imms:6 Rn:5 Rd:5', {
  statics: ['sf'],
  when: f => f.N === f.sf && (f.sf === 1 || (f.immr < 32 && f.imms < 32)),
  operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), i: imm((f.immr << 6) | f.imms) }),
  meaning: (m, o, s) => bitfield(m, o, s.sf, 'shrU'),
});
inst('SBFM', 'sf 00 100110 N immr:6 imms:6 Rn:5 Rd:5', {
  statics: ['sf'],
  when: f => f.N === f.sf && (f.sf === 1 || (f.immr < 32 && f.imms < 32)),
  operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), i: imm((f.immr << 6) | f.imms) }),
  meaning: (m, o, s) => bitfield(m, o, s.sf, 'shrS'),
});

/**
 * The field's top bit (imms) is moved to the register's top by a left shift, then down to its place by a right shift
 * that fills with zeros or the sign: with imms >= immr the place is bit imms-immr, else bit width-immr+imms.
 */
function bitfield(m: Machine, o: { d: Reg; n: Reg; i: Imm }, sf: number, right: 'shrU' | 'shrS'): void {
  const r = width(m, sf);
  const top = r.bits - 1;
  const packed = m.f.let(m.imm(o.i));
  const immr = m.f.let(i32.shrU(packed, i32.const(6)));
  const imms = m.f.let(i32.and(packed, i32.const(63)));
  const left = r.fromU32(i32.sub(i32.const(top), imms));
  // Right shift: top - (imms - immr) when imms >= immr, else top - (width - immr + imms); equal modulo the width.
  const down = r.fromU32(i32.and(i32.sub(i32.add(i32.const(top), immr), imms), i32.const(top)));
  r.write(o.d, r[right](r.shl(r.read(o.n), left), down));
}

inst('BFM', 'sf 01 100110 N immr:6 imms:6 Rn:5 Rd:5', {
  statics: ['sf'],
  when: f => f.N === f.sf && (f.sf === 1 || (f.immr < 32 && f.imms < 32)),
  operands: f => ({ d: xd(f.Rd), old: xr(f.Rd), n: xr(f.Rn), i: imm((f.immr << 6) | f.imms) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    const top = i32.const(r.bits - 1);
    const packed = m.f.let(m.imm(o.i));
    const immr = m.f.let(i32.shrU(packed, i32.const(6)));
    const imms = m.f.let(i32.and(packed, i32.const(63)));
    // `field` has ones at the places that are written: the low imms+1 bits, rotated right by immr, and cut to the
    // field's own length when it is moved down (imms >= immr).
    const ones = r.let(r.shrU(r.const(-1), r.fromU32(i32.sub(top, imms))));
    const moved = r.let(r.rotr(r.read(o.n), r.fromU32(immr)));
    const field = r.let(r.select(i32.geU(imms, immr), r.shrU(ones, r.fromU32(immr)), r.rotr(ones, r.fromU32(immr))));
    r.write(o.d, r.or(r.and(r.read(o.old), r.not(field)), r.and(moved, field)));
  },
});

inst('EXTR', 'sf 00 100111 N 0 Rm:5 imms:6 Rn:5 Rd:5', {
  statics: ['sf'],
  when: f => f.N === f.sf && (f.sf === 1 || f.imms < 32),
  operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), r: xr(f.Rm), lsb: imm(f.imms) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    const lsb = m.f.let(m.imm(o.lsb));
    const low = r.shrU(r.read(o.r), r.fromU32(lsb));
    // Two left shifts, so that lsb = 0 takes nothing from the high register.
    const high = r.shl(r.shl(r.read(o.n), r.const(1)), r.fromU32(i32.sub(i32.const(r.bits - 1), lsb)));
    r.write(o.d, r.or(low, high));
  },
});

export default { name, rows };
