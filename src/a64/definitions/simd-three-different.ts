// Advanced SIMD three different, vector and scalar (Arm ARM C4.1.96): results of twice or half the operands' size.

import { i64x2, v128FromI64 } from '../../wasm/vector.ts';
import { group } from '../row.ts';
import { absoluteDifference } from '../simd/arithmetic.ts';
import { BYTE, DOUBLEWORD, HALF_AND_WORD, TO_WORD, scalarAllowed, signs, threeVectors } from '../simd/forms.ts';
import type { Bit, Bits4 } from '../simd/forms.ts';
import { Lanes, scalarWidth, writeHalf } from '../simd/lanes.ts';
import type { Size } from '../simd/lanes.ts';
import { longMultiplies, longOperation, wideOperation } from '../simd/long.ts';
import type { LongOperation } from '../simd/long.ts';
import { multiplyBytes, multiplyWords } from '../simd/polynomial.ts';

const { name, rows, inst } = group('simd-three-different');

/** Q chooses the operands' upper halves (the forms with a name in 2). */
function threeDifferent(op: string, U: Bit, opcode: Bits4, sizes: readonly Size[], operation: LongOperation): void {
  inst(op, `0 Q ${U} 01110 size:2 1 Rm:5 ${opcode} 00 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: scalarAllowed(sizes),
    operands: threeVectors,
    meaning: (m, o, s) => longOperation(m, o, s.size, { upper: s.Q === 1, width: 128 }, operation),
  });
}

for (const { sign, U } of signs) {
  for (const [op, kind, longOpcode, wideOpcode] of [
    ['ADD', 'add', '0000', '0001'], ['SUB', 'sub', '0010', '0011'],
  ] as const) {
    threeDifferent(`${sign}${op}L`, U, longOpcode, TO_WORD, (l, wide, n, m, _d, upper) =>
      wide[kind](l.widen(sign, n, upper), l.widen(sign, m, upper)));
    inst(`${sign}${op}W`, `0 Q ${U} 01110 size:2 1 Rm:5 ${wideOpcode} 00 Rn:5 Rd:5`, {
      statics: ['Q', 'size'], fp: true,
      when: scalarAllowed(TO_WORD),
      operands: threeVectors,
      meaning: (m, o, s) => wideOperation(m, o, s.size, (l, wide, n, second) =>
        wide[kind](n, l.widen(sign, second, s.Q === 1))),
    });
  }
  const difference: LongOperation = (l, wide, n, m, _d, upper) =>
    absoluteDifference(wide, sign, wide.let(l.widen(sign, n, upper)), wide.let(l.widen(sign, m, upper)));
  threeDifferent(`${sign}ABDL`, U, '0111', TO_WORD, difference);
  threeDifferent(`${sign}ABAL`, U, '0101', TO_WORD, (l, wide, n, m, d, upper) =>
    wide.add(d, difference(l, wide, n, m, d, upper)));
}

for (const [op, kind, opcode] of [['ADDHN', 'add', '0100'], ['SUBHN', 'sub', '0110']] as const) {
  for (const [prefix, U] of [['', '0'], ['R', '1']] as const) {
    inst(`${prefix}${op}`, `0 Q ${U} 01110 size:2 1 Rm:5 ${opcode} 00 Rn:5 Rd:5`, {
      statics: ['Q', 'size'], fp: true,
      when: scalarAllowed(TO_WORD),
      operands: threeVectors,
      meaning: (m, o, s) => {
        const narrow = new Lanes(m, s.size, 128);
        const wide = narrow.resized(s.size + 1);
        const exact = wide[kind](m.q(o.n), m.q(o.m));
        const rounded = prefix === 'R' ? wide.add(exact, wide.constant(1n << BigInt(narrow.bits - 1))) : exact;
        writeHalf(m, o.d, s.Q === 1, narrow.odds(rounded, narrow.zero));
      },
    });
  }
}

for (const { op, U, vectorOpcode: opcode, saturates, operation } of longMultiplies) {
  threeDifferent(op, U, opcode, saturates ? HALF_AND_WORD : TO_WORD, operation);
  if (!saturates) continue;
  inst(`${op} (scalar)`, `01 0 11110 size:2 1 Rm:5 ${opcode} 00 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(HALF_AND_WORD),
    operands: threeVectors,
    meaning: (m, o, s) =>
      longOperation(m, o, s.size, { upper: false, width: scalarWidth(s.size + 1) }, operation),
  });
}

threeDifferent('PMULL (bytes)', '0', '1110', BYTE, (l, _wide, n, m, _d, upper) => multiplyBytes(l, n, m, upper));
inst('PMULL (doubleword)', '0 Q 0 01110 size:2 1 Rm:5 1110 00 Rn:5 Rd:5', {
  statics: ['Q'], fp: true,
  when: scalarAllowed(DOUBLEWORD),
  operands: threeVectors,
  meaning: (m, o, s) => {
    const word = (r: typeof o.n) => m.f.let(s.Q === 1 ? i64x2.extract(m.q(r), 1) : m.d(r));
    const [low, high] = multiplyWords(m.f, word(o.n), word(o.m));
    m.setQ(o.d, i64x2.replace(v128FromI64(low), 1, high));
  },
});

export default { name, rows };
