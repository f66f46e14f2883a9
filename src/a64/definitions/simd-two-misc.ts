// Advanced SIMD two-register miscellaneous, integer, vector and scalar, and scalar pairwise ADDP (Arm ARM C4.1.96).

import type { V128 } from '../../wasm/types.ts';
import { i64x2, i8x16, v128 } from '../../wasm/vector.ts';
import { i64 } from '../../wasm/scalar.ts';
import { group } from '../row.ts';
import {
  clampToHalf, countLeadingSigns, countLeadingZeros, pairwiseLongAdd, reverseBits, saturatingAccumulate,
  saturatingNegation,
} from '../simd/arithmetic.ts';
import {
  ALL, BYTE, DOUBLEWORD, HALF, NONE, TO_WORD, scalarAllowed, scalarLanes, signs, twoVectors, unary, vectorAllowed,
  vectorLanes,
} from '../simd/forms.ts';
import type { Bit, Bits5, UnaryOperation } from '../simd/forms.ts';
import { Lanes, scalarWidth, shuffleElements, writeHalf } from '../simd/lanes.ts';
import type { Size } from '../simd/lanes.ts';

const { name, rows, inst } = group('simd-two-misc');

function twoMisc(
  op: string, U: Bit, opcode: Bits5, sizes: { vector: readonly Size[]; scalar: readonly Size[] },
  operation: UnaryOperation,
): void {
  inst(`${op} (vector)`, `0 Q ${U} 01110 size:2 10000 ${opcode} 10 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: vectorAllowed(sizes.vector),
    operands: twoVectors,
    meaning: (m, o, s) => unary(vectorLanes(m, s, s.size), o, operation),
  });
  if (sizes.scalar.length === 0) return;
  inst(`${op} (scalar)`, `01 ${U} 11110 size:2 10000 ${opcode} 10 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(sizes.scalar),
    operands: twoVectors,
    meaning: (m, o, s) => unary(scalarLanes(m, s.size), o, operation),
  });
}

const vectorOnly = (vector: readonly Size[]) => ({ vector, scalar: NONE });
const allSizes = { vector: ALL, scalar: ALL };
const scalarDoubleword = { vector: ALL, scalar: DOUBLEWORD };

/** Reverses the order of the lanes in every container of `8 << container` bits. */
const reversed = (container: Size): UnaryOperation => (l, n) =>
  shuffleElements(l.size, n, n, lane => lane ^ ((1 << (container - l.size)) - 1));
twoMisc('REV64', '0', '00000', vectorOnly(TO_WORD), reversed(3));
twoMisc('REV32', '1', '00000', vectorOnly([0, 1]), reversed(2));
twoMisc('REV16', '0', '00001', vectorOnly(BYTE), reversed(1));

for (const { sign, U } of signs) {
  const longSum = (l: Lanes, n: V128) => pairwiseLongAdd(l.resized(l.size + 1), sign, n);
  twoMisc(`${sign}ADDLP`, U, '00010', vectorOnly(TO_WORD), longSum);
  twoMisc(`${sign}ADALP`, U, '00110', vectorOnly(TO_WORD), (l, n, d) => l.resized(l.size + 1).add(d, longSum(l, n)));
}

twoMisc('SUQADD', '0', '00011', allSizes, (l, n, d) => saturatingAccumulate(l, 'S', d, n));
twoMisc('USQADD', '1', '00011', allSizes, (l, n, d) => saturatingAccumulate(l, 'U', d, n));
twoMisc('SQABS', '0', '00111', allSizes, (l, n) => saturatingNegation(l, n, l.abs(n)));
twoMisc('SQNEG', '1', '00111', allSizes, (l, n) => saturatingNegation(l, n, l.neg(n)));
twoMisc('ABS', '0', '01011', scalarDoubleword, (l, n) => l.abs(n));
twoMisc('NEG', '1', '01011', scalarDoubleword, (l, n) => l.neg(n));

twoMisc('CLS', '0', '00100', vectorOnly(TO_WORD), (l, n) => countLeadingSigns(l, n));
twoMisc('CLZ', '1', '00100', vectorOnly(TO_WORD), (l, n) => countLeadingZeros(l, n));
twoMisc('CNT', '0', '00101', vectorOnly(BYTE), (_, n) => i8x16.popcnt(n));
// These work on bytes; the size field is part of the opcode.
twoMisc('NOT', '1', '00101', vectorOnly(BYTE), (_, n) => v128.not(n));
twoMisc('RBIT', '1', '00101', vectorOnly(HALF), (_, n) => reverseBits(n));

twoMisc('CMGT (zero)', '0', '01000', scalarDoubleword, (l, n) => l.gt('S', n, l.zero));
twoMisc('CMGE (zero)', '1', '01000', scalarDoubleword, (l, n) => l.ge('S', n, l.zero));
twoMisc('CMEQ (zero)', '0', '01001', scalarDoubleword, (l, n) => l.eq(n, l.zero));
twoMisc('CMLE (zero)', '1', '01001', scalarDoubleword, (l, n) => l.ge('S', l.zero, n));
twoMisc('CMLT (zero)', '0', '01010', scalarDoubleword, (l, n) => l.gt('S', l.zero, n));

/** `narrowed` gives lanes of twice the size whose low halves are the result. Q writes the register's upper half. */
function narrow(op: string, U: Bit, opcode: Bits5, scalar: boolean, narrowed: (wide: Lanes, n: V128) => V128): void {
  inst(`${op} (vector)`, `0 Q ${U} 01110 size:2 10000 ${opcode} 10 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: scalarAllowed(TO_WORD),
    operands: twoVectors,
    meaning: (m, o, s) => {
      const l = new Lanes(m, s.size, 128);
      const value = narrowed(l.resized(s.size + 1), l.let(m.q(o.n)));
      writeHalf(m, o.d, s.Q === 1, l.evens(value, l.zero));
    },
  });
  if (!scalar) return;
  inst(`${op} (scalar)`, `01 ${U} 11110 size:2 10000 ${opcode} 10 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(TO_WORD),
    operands: twoVectors,
    meaning: (m, o, s) => {
      const wide = new Lanes(m, s.size + 1, scalarWidth(s.size + 1));
      scalarLanes(m, s.size).write(o.d, narrowed(wide, wide.let(m.q(o.n))));
    },
  });
}
narrow('XTN', '0', '10010', false, (_, n) => n);
narrow('SQXTUN', '1', '10010', true, (wide, n) => clampToHalf(wide, 'SU', n));
narrow('SQXTN', '0', '10100', true, (wide, n) => clampToHalf(wide, 'SS', n));
narrow('UQXTN', '1', '10100', true, (wide, n) => clampToHalf(wide, 'UU', n));

inst('SHLL', '0 Q 1 01110 size:2 10000 10011 10 Rn:5 Rd:5', {
  statics: ['Q', 'size'], fp: true,
  when: scalarAllowed(TO_WORD),
  operands: twoVectors,
  meaning: (m, o, s) => {
    const l = new Lanes(m, s.size, 128);
    l.write(o.d, l.resized(s.size + 1).shl(l.widen('U', m.q(o.n), s.Q === 1), l.bits));
  },
});

inst('ADDP (scalar)', '01 0 11110 11 11000 11011 10 Rn:5 Rd:5', {
  fp: true,
  operands: twoVectors,
  meaning: (m, o) => m.setD(o.d, i64.add(m.d(o.n), i64x2.extract(m.q(o.n), 1))),
});

export default { name, rows };
