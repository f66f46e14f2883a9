// Advanced SIMD across lanes, integer (Arm ARM C4.1.96): all lanes of a register folded into one.

import type { V128 } from '../../wasm/types.ts';
import { group } from '../row.ts';
import { pairwiseLongAdd, reduce } from '../simd/arithmetic.ts';
import { TO_WORD, signs, twoVectors, vectorLanes } from '../simd/forms.ts';
import type { Bit, Bits5 } from '../simd/forms.ts';
import { scalarWidth, writeVector } from '../simd/lanes.ts';
import type { Lanes, Size } from '../simd/lanes.ts';

const { name, rows, inst } = group('simd-across-lanes');

/** `resultSize` is the result's size less the lanes'. */
function acrossLanes(
  op: string, U: Bit, opcode: Bits5, resultSize: Size, fold: (l: Lanes, n: V128) => V128,
): void {
  inst(op, `0 Q ${U} 01110 size:2 11000 ${opcode} 10 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: f => TO_WORD.includes(f.size) && (f.size < 2 || f.Q === 1), // two words are added by ADDP
    operands: twoVectors,
    meaning: (m, o, s) => {
      const l = vectorLanes(m, s, s.size);
      writeVector(m, o.d, scalarWidth(s.size + resultSize), fold(l, l.let(m.q(o.n))));
    },
  });
}

for (const { sign, U } of signs) {
  acrossLanes(`${sign}ADDLV`, U, '00011', 1, (l, n) => {
    const wide = l.resized(l.size + 1);
    return reduce(wide, pairwiseLongAdd(wide, sign, n), (a, b) => wide.add(a, b));
  });
  acrossLanes(`${sign}MAXV`, U, '01010', 0, (l, n) => reduce(l, n, (a, b) => l.max(sign, a, b)));
  acrossLanes(`${sign}MINV`, U, '11010', 0, (l, n) => reduce(l, n, (a, b) => l.min(sign, a, b)));
}
acrossLanes('ADDV', '0', '11011', 0, (l, n) => reduce(l, n, (a, b) => l.add(a, b)));

export default { name, rows };
