// Advanced SIMD modified immediate (Arm ARM C4.1.96).

import { i64x2, v128 } from '../../wasm/vector.ts';
import { imm64, vr } from '../operand.ts';
import { group } from '../row.ts';
import { vectorWidth, writeVector } from '../simd/lanes.ts';

const { name, rows, inst } = group('simd-modified-immediate');

/** `value` (unsigned, `bits` wide) repeated over 64 bits. */
function replicate(value: bigint, bits: number): bigint {
  let result = 0n;
  for (let at = 0; at < 64; at += bits) result |= value << BigInt(at);
  return result;
}

/** The eight bits as sign, inverted and repeated top bit of the exponent, rest of the exponent and fraction. */
function floatImmediate(imm8: number, bits: 32 | 64): bigint {
  const repeats = bits === 32 ? 5 : 8;
  const exponentTop = imm8 & 0x40 ? (1 << repeats) - 1 : 1 << repeats;
  const top = (imm8 >> 7) << (repeats + 1) | exponentTop; // sign and 1 + repeats bits
  return BigInt(top << 6 | (imm8 & 0x3f)) << BigInt(bits - 8 - repeats);
}

/** AdvSIMDExpandImm (Arm ARM shared pseudocode), without the inversion that MVNI and BIC add. */
function expandImmediate(cmode: number, op: number, imm8: number): bigint {
  const byte = BigInt(imm8);
  if (cmode < 8) return replicate(byte << BigInt(8 * (cmode >> 1)), 32);
  if (cmode < 12) return replicate(byte << BigInt(8 * ((cmode >> 1) & 1)), 16);
  if (cmode === 12) return replicate(byte << 8n | 0xffn, 32);
  if (cmode === 13) return replicate(byte << 16n | 0xffffn, 32);
  if (cmode === 14 && op === 0) return replicate(byte, 8);
  if (cmode === 14) {
    let mask = 0n;
    for (let bit = 0; bit < 8; bit++) if (imm8 >> bit & 1) mask |= 0xffn << BigInt(8 * bit);
    return mask;
  }
  return op === 0 ? replicate(floatImmediate(imm8, 32), 32) : floatImmediate(imm8, 64);
}

interface ImmediateFields { cmode: number; abc: number; defgh: number; Rd: number }
const operands = (op: number, invert: boolean) => (f: ImmediateFields) => {
  const value = expandImmediate(f.cmode, op, f.abc << 5 | f.defgh);
  return { d: vr(f.Rd), i: imm64(invert ? ~value : value) };
};

/** Odd cmodes below 12 are ORR and BIC. */
const isMove = (cmode: number): boolean => cmode >= 12 || (cmode & 1) === 0;

for (const [op, opBit, exists] of [
  ['MOVI', '0', (cmode: number) => isMove(cmode) && cmode < 15],
  ['MVNI', '1', (cmode: number) => isMove(cmode) && cmode < 14],
] as const) {
  inst(op, `0 Q ${opBit} 0111100000 abc:3 cmode:4 01 defgh:5 Rd:5`, {
    statics: ['Q'], fp: true,
    when: f => exists(f.cmode),
    operands: operands(Number(opBit), op === 'MVNI'),
    meaning: (m, o, s) => writeVector(m, o.d, vectorWidth(s.Q), i64x2.splat(m.imm64(o.i))),
  });
}
inst('MOVI (64-bit)', '0 Q 1 0111100000 abc:3 cmode:4 01 defgh:5 Rd:5', {
  statics: ['Q'], fp: true,
  when: f => f.cmode === 14,
  operands: operands(1, false),
  meaning: (m, o, s) => writeVector(m, o.d, vectorWidth(s.Q), i64x2.splat(m.imm64(o.i))),
});
inst('FMOV (vector, immediate)', '0 Q op 0111100000 abc:3 1111 01 defgh:5 Rd:5', {
  statics: ['Q'], fp: true,
  when: f => f.op === 0 || f.Q === 1,
  operands: f => operands(f.op, false)({ ...f, cmode: 15 }),
  meaning: (m, o, s) => writeVector(m, o.d, vectorWidth(s.Q), i64x2.splat(m.imm64(o.i))),
});

inst('ORR (vector, immediate)', '0 Q 0 0111100000 abc:3 cmode:4 01 defgh:5 Rd:5', {
  statics: ['Q'], fp: true,
  when: f => !isMove(f.cmode),
  operands: operands(0, false),
  meaning: (m, o, s) =>
    writeVector(m, o.d, vectorWidth(s.Q), v128.or(m.q(o.d), i64x2.splat(m.imm64(o.i)))),
});
inst('BIC (vector, immediate)', '0 Q 1 0111100000 abc:3 cmode:4 01 defgh:5 Rd:5', {
  statics: ['Q'], fp: true,
  when: f => !isMove(f.cmode),
  operands: operands(1, true),
  meaning: (m, o, s) =>
    writeVector(m, o.d, vectorWidth(s.Q), v128.and(m.q(o.d), i64x2.splat(m.imm64(o.i)))),
});

export default { name, rows };
