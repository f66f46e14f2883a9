// Advanced SIMD copy, permute, extract and table lookup (Arm ARM C4.1.96).

import { i32, i64 } from '../../wasm/scalar.ts';
import type { I32, V128 } from '../../wasm/types.ts';
import { i16x8, i32x4, i64x2, i8x16, v128 } from '../../wasm/vector.ts';
import type { Machine } from '../machine.ts';
import { imm, vr, xd, xr } from '../operand.ts';
import type { Reg, VReg } from '../operand.ts';
import { group } from '../row.ts';
import { bytesOfPair, elementMask, splatElement } from '../simd/element.ts';
import { ALL, threeVectors, vectorAllowed, vectorLanes } from '../simd/forms.ts';
import type { Bits3 } from '../simd/forms.ts';
import { Lanes, scalarWidth, shuffleElements, splatConstant, vectorWidth, writeVector } from '../simd/lanes.ts';
import type { Size } from '../simd/lanes.ts';

const { name, rows, inst } = group('simd-permute-copy');

// ---- copy. The lowest one in imm5 tells the lane's size, what stands above it the lane.

const imm5Patterns = ['index:4 1', 'index:3 10', 'index:2 100', 'index 1000'] as const;
const sizeLetters = 'BHSD';

function splatRegister(m: Machine, size: Size, r: Reg): V128 {
  if (size === 3) return i64x2.splat(m.x(r));
  return ([i8x16, i16x8, i32x4] as const)[size]!.splat(m.w(r));
}

/** Lane `index` of the register becomes that of `value`, the others stay. */
function insert(m: Machine, size: Size, d: VReg, index: I32, value: V128): void {
  m.setQ(d, v128.bitselect(value, m.q(d), elementMask(size, index)));
}

for (const size of ALL) {
  const imm5 = imm5Patterns[size]!;
  const letter = sizeLetters[size]!;
  const hasVector = (f: { Q: number }) => size < 3 || f.Q === 1;

  inst(`DUP (element, ${letter})`, `0 Q 0 01110000 ${imm5} 0 0000 1 Rn:5 Rd:5`, {
    statics: ['Q'], fp: true,
    when: hasVector,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), index: imm(f.index) }),
    meaning: (m, o, s) => writeVector(m, o.d, vectorWidth(s.Q), splatElement(m, size, m.q(o.n), m.imm(o.index))),
  });
  inst(`DUP (scalar, ${letter})`, `01 0 11110000 ${imm5} 0 0000 1 Rn:5 Rd:5`, {
    fp: true,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), index: imm(f.index) }),
    meaning: (m, o) => writeVector(m, o.d, scalarWidth(size), splatElement(m, size, m.q(o.n), m.imm(o.index))),
  });
  inst(`DUP (general, ${letter})`, `0 Q 0 01110000 ${imm5} 0 0001 1 Rn:5 Rd:5`, {
    statics: ['Q'], fp: true,
    when: hasVector,
    operands: f => ({ d: vr(f.Rd), n: xr(f.Rn) }),
    meaning: (m, o, s) => writeVector(m, o.d, vectorWidth(s.Q), splatRegister(m, size, o.n)),
  });
  inst(`INS (general, ${letter})`, `0 1 0 01110000 ${imm5} 0 0011 1 Rn:5 Rd:5`, {
    fp: true,
    operands: f => ({ d: vr(f.Rd), n: xr(f.Rn), index: imm(f.index) }),
    meaning: (m, o) => insert(m, size, o.d, m.imm(o.index), splatRegister(m, size, o.n)),
  });
  inst(`UMOV (${letter})`, `0 Q 0 01110000 ${imm5} 0 0111 1 Rn:5 Rd:5`, {
    fp: true,
    when: f => f.Q === (size === 3 ? 1 : 0),
    operands: f => ({ d: xd(f.Rd), n: vr(f.Rn), index: imm(f.index) }),
    meaning: (m, o) => {
      const lanes = splatElement(m, size, m.q(o.n), m.imm(o.index));
      if (size === 3) m.setX(o.d, i64x2.extract(lanes, 0));
      else if (size === 2) m.setW(o.d, i32x4.extract(lanes, 0));
      else m.setW(o.d, (size === 1 ? i16x8 : i8x16).extractU(lanes, 0));
    },
  });
  if (size === 3) continue;
  inst(`SMOV (${letter})`, `0 Q 0 01110000 ${imm5} 0 0101 1 Rn:5 Rd:5`, {
    statics: ['Q'], fp: true,
    when: f => size < 2 || f.Q === 1,
    operands: f => ({ d: xd(f.Rd), n: vr(f.Rn), index: imm(f.index) }),
    meaning: (m, o, s) => {
      const lanes = splatElement(m, size, m.q(o.n), m.imm(o.index));
      const value = size === 2 ? i32x4.extract(lanes, 0) : (size === 1 ? i16x8 : i8x16).extractS(lanes, 0);
      if (s.Q === 1) m.setX(o.d, i64.extendI32S(value));
      else m.setW(o.d, value);
    },
  });
}

// The source's index stands in imm4, with as many unused bits below as imm5 has.
for (const size of ALL) {
  inst(`INS (element, ${sizeLetters[size]!})`, `0 1 1 01110000 ${imm5Patterns[size]!} 0 imm4:4 1 Rn:5 Rd:5`, {
    fp: true,
    // Two lane numbers in one immediate: the destination's in bits 3 … 0, the source's above.
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), lanes: imm(f.imm4 >> size << 4 | f.index) }),
    meaning: (m, o) => {
      const lanes = m.f.let(m.imm(o.lanes));
      const value = splatElement(m, size, m.q(o.n), i32.shrU(lanes, i32.const(4)));
      insert(m, size, o.d, i32.and(lanes, i32.const(15)), value);
    },
  });
}

// ---- permute

/** `element(lane, count)` numbers the source of a result lane; `count` and up are the second register's. */
function permute(op: string, opcode: Bits3, element: (lane: number, count: number) => number): void {
  inst(op, `0 Q 001110 size:2 0 Rm:5 0 ${opcode} 10 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: vectorAllowed(ALL),
    operands: threeVectors,
    meaning: (m, o, s) => {
      const l = vectorLanes(m, s, s.size);
      const count = l.width / l.bits;
      const inSecond = 16 >> s.size;
      l.write(o.d, shuffleElements(s.size, m.q(o.n), m.q(o.m), lane => {
        const from = element(lane % count, count);
        return from < count ? from : inSecond + from - count;
      }));
    },
  });
}
for (const part of [0, 1]) {
  permute(`UZP${part + 1}`, part ? '101' : '001', lane => 2 * lane + part);
  permute(`TRN${part + 1}`, part ? '110' : '010', (lane, count) => (lane & ~1) + part + (lane & 1) * count);
  permute(`ZIP${part + 1}`, part ? '111' : '011', (lane, count) =>
    (lane >> 1) + part * count / 2 + (lane & 1) * count);
}

// ---- extract

inst('EXT', '0 Q 101110 00 0 Rm:5 0 imm4:4 0 Rn:5 Rd:5', {
  statics: ['Q'], fp: true,
  when: f => f.Q === 1 || f.imm4 < 8,
  operands: f => ({ ...threeVectors(f), first: imm(f.imm4) }),
  meaning: (m, o, s) => {
    const first = m.f.let(m.imm(o.first));
    if (s.Q === 1) return m.setQ(o.d, bytesOfPair(m.q(o.n), m.q(o.m), first));
    const pair = m.f.let(i64x2.replace(m.q(o.n), 1, m.d(o.m)));
    m.setD(o.d, i64x2.extract(bytesOfPair(pair, pair, first), 0));
  },
});

// ---- table lookup, in one to four registers that follow each other

type TableOperands = { d: VReg; m: VReg } & { [table: `n${number}`]: VReg };

for (const length of [1, 2, 3, 4]) {
  const operands = (f: { Rd: number; Rn: number; Rm: number }): TableOperands =>
    Array.from({ length }, (_, k) => k).reduce<TableOperands>(
      (o, k) => ({ ...o, [`n${k}`]: vr((f.Rn + k) % 32) }), { d: vr(f.Rd), m: vr(f.Rm) });
  const len = (['00', '01', '10', '11'] as const)[length - 1]!;
  for (const [op, opBit] of [['TBL', '0'], ['TBX', '1']] as const) {
    inst(`${op} (${length})`, `0 Q 001110 00 0 Rm:5 0 ${len} ${opBit} 00 Rn:5 Rd:5`, {
      statics: ['Q'], fp: true,
      operands,
      meaning: (m, o, s) => {
        const l = new Lanes(m, 0, vectorWidth(s.Q));
        const indices = l.let(m.q(o.m));
        // A swizzle gives zero for indices beyond its 16 bytes, also for those that have wrapped below zero.
        let found = i8x16.swizzle(m.q(o.n0!), indices);
        for (let k = 1; k < length; k++) {
          const within = l.sub(indices, splatConstant(0, BigInt(16 * k)));
          found = v128.or(found, i8x16.swizzle(m.q(o[`n${k}`]!), within));
        }
        if (op === 'TBL') return l.write(o.d, found);
        const outside = l.ge('U', indices, splatConstant(0, BigInt(16 * length)));
        l.write(o.d, v128.bitselect(m.q(o.d), found, outside));
      },
    });
  }
}

export default { name, rows };
