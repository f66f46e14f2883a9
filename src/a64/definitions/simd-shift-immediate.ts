// Advanced SIMD shift by immediate, integer, vector and scalar (Arm ARM C4.1.96).
//
// immh:immb is the lane's size in bits plus a left shift's count, or twice the lane's size less a right shift's; its
// leading one tells the lane's size. Each size has rows of its own, whose field `shift` is what stands below that one.

import type { I32, V128 } from '../../wasm/types.ts';
import { v128 } from '../../wasm/vector.ts';
import type { Machine } from '../machine.ts';
import { imm } from '../operand.ts';
import type { Imm } from '../operand.ts';
import { group } from '../row.ts';
import { clampToHalf } from '../simd/arithmetic.ts';
import type { Narrowing } from '../simd/arithmetic.ts';
import { ALL, DOUBLEWORD, TO_WORD, scalarLanes, signs, twoVectors, vectorLanes } from '../simd/forms.ts';
import type { Bit, Bits5, TwoVectors } from '../simd/forms.ts';
import { Lanes, scalarWidth, writeHalf } from '../simd/lanes.ts';
import type { Size } from '../simd/lanes.ts';
import { insertedByLeftShift, insertedByRightShift, saturatingShiftLeft, shiftRight } from '../simd/shift.ts';

const { name, rows, inst } = group('simd-shift-immediate');

const sizePatterns = ['0001 shift:3', '001 shift:4', '01 shift:5', '1 shift:6'] as const;
const sizeLetters = 'BHSD';

interface ShiftFields { shift: number; Rn: number; Rd: number }
/** Left shifts are by 0 to the lane's size less one. */
const leftOperands = (f: ShiftFields) => ({ ...twoVectors(f), count: imm(f.shift) });
/** Right shifts are by 1 to the lane's size; the operand is one less. */
const rightOperands = (size: Size) => (f: ShiftFields) => ({ ...twoVectors(f), count: imm((8 << size) - 1 - f.shift) });
type ShiftOperands = TwoVectors & { count: Imm };

/** `n` and `count` are pinned; `count` is less one for right shifts. `d` is the old destination. */
type ShiftOperation = (l: Lanes, n: V128, count: I32, d: V128) => V128;

function shift(l: Lanes, o: ShiftOperands, operation: ShiftOperation): void {
  const { m } = l;
  l.write(o.d, operation(l, l.let(m.q(o.n)), m.f.let(m.imm(o.count)), m.q(o.d)));
}

function shiftRows(
  op: string, direction: 'left' | 'right', U: Bit, opcode: Bits5, scalar: readonly Size[], operation: ShiftOperation,
): void {
  for (const size of ALL) {
    const operands = direction === 'left' ? leftOperands : rightOperands(size);
    const pattern = sizePatterns[size]!;
    inst(`${op} (vector, ${sizeLetters[size]})`, `0 Q ${U} 011110 ${pattern} ${opcode} 1 Rn:5 Rd:5`, {
      statics: ['Q'], fp: true,
      when: f => size < 3 || f.Q === 1,
      operands,
      meaning: (m, o, s) => shift(vectorLanes(m, s, size), o, operation),
    });
    if (!scalar.includes(size)) continue;
    inst(`${op} (scalar, ${sizeLetters[size]})`, `01 ${U} 111110 ${pattern} ${opcode} 1 Rn:5 Rd:5`, {
      fp: true,
      operands,
      meaning: (m, o) => shift(scalarLanes(m, size), o, operation),
    });
  }
}

for (const { sign, U } of signs) {
  for (const [prefix, round] of [['', false], ['R', true]] as const) {
    const shifted: ShiftOperation = (l, n, count) => shiftRight(l, sign, n, count, round);
    shiftRows(`${sign}${prefix}SHR`, 'right', U, round ? '00100' : '00000', DOUBLEWORD, shifted);
    shiftRows(`${sign}${prefix}SRA`, 'right', U, round ? '00110' : '00010', DOUBLEWORD, (l, n, count, d) =>
      l.add(d, shifted(l, n, count, d)));
  }
  shiftRows(`${sign}QSHL`, 'left', U, '01110', ALL, (l, n, count) => saturatingShiftLeft(l, sign, n, count));
}
shiftRows('SQSHLU', 'left', '1', '01100', ALL, (l, n, count) => saturatingShiftLeft(l, 'SU', n, count));
shiftRows('SHL', 'left', '0', '01010', DOUBLEWORD, (l, n, count) => l.shl(n, count));
shiftRows('SLI', 'left', '1', '01010', DOUBLEWORD, (l, n, count, d) =>
  v128.bitselect(l.shl(n, count), d, insertedByLeftShift(l, count)));
shiftRows('SRI', 'right', '1', '01000', DOUBLEWORD, (l, n, count, d) =>
  v128.bitselect(shiftRight(l, 'U', n, count, false), d, insertedByRightShift(l, count)));

/** Right shift of lanes of twice the size, narrowed by truncation or saturation. Q writes the register's upper half. */
function narrowingRows(op: string, U: Bit, opcode: Bits5, saturation: Narrowing | undefined, round: boolean): void {
  const narrowed = (wide: Lanes, o: ShiftOperands): V128 => {
    const count = wide.m.imm(o.count);
    const shifted = wide.let(shiftRight(wide, saturation === 'UU' ? 'U' : 'S', wide.m.q(o.n), count, round));
    return saturation ? clampToHalf(wide, saturation, shifted) : shifted;
  };
  const vector = (m: Machine, o: ShiftOperands, size: Size, upper: boolean): void => {
    const l = new Lanes(m, size, 128);
    writeHalf(m, o.d, upper, l.evens(narrowed(l.resized(size + 1), o), l.zero));
  };
  for (const size of TO_WORD) {
    inst(`${op} (vector, ${sizeLetters[size]})`, `0 Q ${U} 011110 ${sizePatterns[size]!} ${opcode} 1 Rn:5 Rd:5`, {
      statics: ['Q'], fp: true,
      operands: rightOperands(size),
      meaning: (m, o, s) => vector(m, o, size, s.Q === 1),
    });
    if (!saturation) continue;
    inst(`${op} (scalar, ${sizeLetters[size]})`, `01 ${U} 111110 ${sizePatterns[size]!} ${opcode} 1 Rn:5 Rd:5`, {
      fp: true,
      operands: rightOperands(size),
      meaning: (m, o) => scalarLanes(m, size).write(o.d, narrowed(new Lanes(m, size + 1, scalarWidth(size + 1)), o)),
    });
  }
}
for (const [prefix, round] of [['', false], ['R', true]] as const) {
  narrowingRows(`${prefix}SHRN`, '0', round ? '10001' : '10000', undefined, round);
  narrowingRows(`SQ${prefix}SHRUN`, '1', round ? '10001' : '10000', 'SU', round);
  narrowingRows(`SQ${prefix}SHRN`, '0', round ? '10011' : '10010', 'SS', round);
  narrowingRows(`UQ${prefix}SHRN`, '1', round ? '10011' : '10010', 'UU', round);
}

for (const { sign, U } of signs) {
  for (const size of TO_WORD) {
    inst(`${sign}SHLL (${sizeLetters[size]})`, `0 Q ${U} 011110 ${sizePatterns[size]!} 10100 1 Rn:5 Rd:5`, {
      statics: ['Q'], fp: true,
      operands: leftOperands,
      meaning: (m, o, s) => {
        const l = new Lanes(m, size, 128);
        l.write(o.d, l.resized(size + 1).shl(l.widen(sign, m.q(o.n), s.Q === 1), m.imm(o.count)));
      },
    });
  }
}

export default { name, rows };
