// Advanced SIMD three same, integer, vector and scalar, and three same extra (Arm ARM C4.1.96).

import { v128 } from '../../wasm/vector.ts';
import type { V128 } from '../../wasm/types.ts';
import { group } from '../row.ts';
import {
  absoluteDifference, doublingHighHalf, halvingAdd, halvingSub, roundingHalvingAdd, saturatingAdd, saturatingSub,
} from '../simd/arithmetic.ts';
import {
  ALL, BYTE, DOUBLEWORD, HALF_AND_WORD, NONE, TO_WORD, binary, scalarAllowed, scalarLanes, signs, threeVectors,
  vectorAllowed, vectorLanes,
} from '../simd/forms.ts';
import type { BinaryOperation, Bit, Bits5 } from '../simd/forms.ts';
import { multiplyBytes } from '../simd/polynomial.ts';
import { shiftByRegister } from '../simd/shift.ts';
import type { Lanes, Size } from '../simd/lanes.ts';

const { name, rows, inst } = group('simd-three-same');

function threeSame(
  op: string, U: Bit, opcode: Bits5, sizes: { vector: readonly Size[]; scalar: readonly Size[] },
  operation: BinaryOperation,
): void {
  inst(`${op} (vector)`, `0 Q ${U} 01110 size:2 1 Rm:5 ${opcode} 1 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: vectorAllowed(sizes.vector),
    operands: threeVectors,
    meaning: (m, o, s) => binary(vectorLanes(m, s, s.size), o, operation),
  });
  if (sizes.scalar.length === 0) return;
  inst(`${op} (scalar)`, `01 ${U} 11110 size:2 1 Rm:5 ${opcode} 1 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(sizes.scalar),
    operands: threeVectors,
    meaning: (m, o, s) => binary(scalarLanes(m, s.size), o, operation),
  });
}

const vectorToWord = { vector: TO_WORD, scalar: NONE };
const allSizes = { vector: ALL, scalar: ALL };
const vectorAll = { vector: ALL, scalar: NONE };
const scalarDoubleword = { vector: ALL, scalar: DOUBLEWORD };

/** An operation on neighbouring lanes, over the lanes of both registers. */
const pairwise = (operation: (l: Lanes, even: V128, odd: V128) => V128): BinaryOperation => (l, n, m) =>
  operation(l, l.let(l.unzip(n, m, 0)), l.let(l.unzip(n, m, 1)));

for (const { sign, U } of signs) {
  threeSame(`${sign}HADD`, U, '00000', vectorToWord, (l, n, m) => halvingAdd(l, sign, n, m));
  threeSame(`${sign}QADD`, U, '00001', allSizes, (l, n, m) => saturatingAdd(l, sign, n, m));
  threeSame(`${sign}RHADD`, U, '00010', vectorToWord, (l, n, m) => roundingHalvingAdd(l, sign, n, m));
  threeSame(`${sign}HSUB`, U, '00100', vectorToWord, (l, n, m) => halvingSub(l, sign, n, m));
  threeSame(`${sign}QSUB`, U, '00101', allSizes, (l, n, m) => saturatingSub(l, sign, n, m));
  threeSame(sign === 'S' ? 'CMGT' : 'CMHI', U, '00110', scalarDoubleword, (l, n, m) => l.gt(sign, n, m));
  threeSame(sign === 'S' ? 'CMGE' : 'CMHS', U, '00111', scalarDoubleword, (l, n, m) => l.ge(sign, n, m));
  for (const [infix, opcode, sizes, options] of [
    ['', '01000', scalarDoubleword, { round: false, saturate: false }],
    ['Q', '01001', allSizes, { round: false, saturate: true }],
    ['R', '01010', scalarDoubleword, { round: true, saturate: false }],
    ['QR', '01011', allSizes, { round: true, saturate: true }],
  ] as const) {
    threeSame(`${sign}${infix}SHL`, U, opcode, sizes, (l, n, m) => shiftByRegister(l, sign, n, m, options));
  }
  threeSame(`${sign}MAX`, U, '01100', vectorToWord, (l, n, m) => l.max(sign, n, m));
  threeSame(`${sign}MIN`, U, '01101', vectorToWord, (l, n, m) => l.min(sign, n, m));
  threeSame(`${sign}ABD`, U, '01110', vectorToWord, (l, n, m) => absoluteDifference(l, sign, n, m));
  threeSame(`${sign}ABA`, U, '01111', vectorToWord, (l, n, m, d) => l.add(d, absoluteDifference(l, sign, n, m)));
  threeSame(`${sign}MAXP`, U, '10100', vectorToWord, pairwise((l, even, odd) => l.max(sign, even, odd)));
  threeSame(`${sign}MINP`, U, '10101', vectorToWord, pairwise((l, even, odd) => l.min(sign, even, odd)));
}

threeSame('ADD', '0', '10000', scalarDoubleword, (l, n, m) => l.add(n, m));
threeSame('SUB', '1', '10000', scalarDoubleword, (l, n, m) => l.sub(n, m));
threeSame('CMTST', '0', '10001', scalarDoubleword, (l, n, m) => l.ne(v128.and(n, m), l.zero));
threeSame('CMEQ', '1', '10001', scalarDoubleword, (l, n, m) => l.eq(n, m));
threeSame('MLA', '0', '10010', vectorToWord, (l, n, m, d) => l.add(d, l.mul(n, m)));
threeSame('MLS', '1', '10010', vectorToWord, (l, n, m, d) => l.sub(d, l.mul(n, m)));
threeSame('MUL', '0', '10011', vectorToWord, (l, n, m) => l.mul(n, m));
threeSame('PMUL', '1', '10011', { vector: BYTE, scalar: NONE }, (l, n, m) =>
  l.evens(multiplyBytes(l, n, m, false), multiplyBytes(l, n, m, true)));
threeSame('ADDP', '0', '10111', vectorAll, pairwise((l, even, odd) => l.add(even, odd)));

const halfAndWord = { vector: HALF_AND_WORD, scalar: HALF_AND_WORD };
threeSame('SQDMULH', '0', '10110', halfAndWord, (l, n, m) => doublingHighHalf(l, n, m, { round: false }));
threeSame('SQRDMULH', '1', '10110', halfAndWord, (l, n, m) => doublingHighHalf(l, n, m, { round: true }));

for (const [op, opcode, accumulate] of [['SQRDMLAH', '0000', 'add'], ['SQRDMLSH', '0001', 'sub']] as const) {
  const operation: BinaryOperation = (l, n, m, d) =>
    doublingHighHalf(l, n, m, { round: true, accumulate, accumulator: l.let(d) });
  inst(`${op} (vector)`, `0 Q 1 01110 size:2 0 Rm:5 1 ${opcode} 1 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: vectorAllowed(HALF_AND_WORD),
    operands: threeVectors,
    meaning: (m, o, s) => binary(vectorLanes(m, s, s.size), o, operation),
  });
  inst(`${op} (scalar)`, `01 1 11110 size:2 0 Rm:5 1 ${opcode} 1 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(HALF_AND_WORD),
    operands: threeVectors,
    meaning: (m, o, s) => binary(scalarLanes(m, s.size), o, operation),
  });
}

/** Bitwise operations: the size field is part of the opcode. */
function bitwise(op: string, U: Bit, size: `${Bit}${Bit}`, operation: (n: V128, m: V128, d: V128) => V128): void {
  inst(`${op} (vector)`, `0 Q ${U} 01110 ${size} 1 Rm:5 00011 1 Rn:5 Rd:5`, {
    statics: ['Q'], fp: true,
    operands: threeVectors,
    meaning: (m, o, s) => binary(vectorLanes(m, s, 0), o, (_, n, second, d) => operation(n, second, d)),
  });
}
bitwise('AND', '0', '00', (n, m) => v128.and(n, m));
bitwise('BIC', '0', '01', (n, m) => v128.andnot(n, m));
bitwise('ORR', '0', '10', (n, m) => v128.or(n, m));
bitwise('ORN', '0', '11', (n, m) => v128.or(n, v128.not(m)));
bitwise('EOR', '1', '00', (n, m) => v128.xor(n, m));
bitwise('BSL', '1', '01', (n, m, d) => v128.bitselect(n, m, d));
bitwise('BIT', '1', '10', (n, m, d) => v128.bitselect(n, d, m));
bitwise('BIF', '1', '11', (n, m, d) => v128.bitselect(d, n, m));

export default { name, rows };
