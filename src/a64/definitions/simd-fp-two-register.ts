// Advanced SIMD floating-point with one vector operand (Arm ARM C4.1.96: two-register miscellaneous, scalar pairwise,
// across lanes), but for conversions, which are in simd-fp-conversions.ts.

import type { V128 } from '../../wasm/types.ts';
import { f32x4, f64x2, i8x16 } from '../../wasm/vector.ts';
import { binary, compareMask, roundIntegral, squareRoot, unaryExact } from '../fp-inline.ts';
import { reciprocalEstimate, reciprocalSquareRootEstimate } from '../fp-estimate-inline.ts';
import { scalarShape, scalarSingle, vectorShape } from '../fp-shape.ts';
import type { Shape, Value } from '../fp-shape.ts';
import type { Machine } from '../machine.ts';
import { vr } from '../operand.ts';
import { group } from '../row.ts';

const { name, rows, inst } = group('simd-fp-two-register');

type Meaning = (m: Machine, s: Shape, n: Value) => Value;
const zero = (s: Shape): Value => s.const(0);
const twoRegister: readonly (readonly [string, '0' | '1', '0' | '1',
  '01100' | '01101' | '01110' | '01111' | '11000' | '11001' | '11101' | '11111', Meaning,
  forms?: 'and scalar' | 'only scalar'])[] = [
  ['FABS', '0', '1', '01111', (_, s, n) => s.abs(n)],
  ['FNEG', '1', '1', '01111', (_, s, n) => s.neg(n)],
  ['FSQRT', '1', '1', '11111', squareRoot],
  ['FRINTN', '0', '0', '11000', (m, s, n) => roundIntegral(m, s, n, 'nearest', false)],
  ['FRINTM', '0', '0', '11001', (m, s, n) => roundIntegral(m, s, n, 'negative', false)],
  ['FRINTP', '0', '1', '11000', (m, s, n) => roundIntegral(m, s, n, 'positive', false)],
  ['FRINTZ', '0', '1', '11001', (m, s, n) => roundIntegral(m, s, n, 'zero', false)],
  ['FRINTA', '1', '0', '11000', (m, s, n) => roundIntegral(m, s, n, 'tiesAway', false)],
  ['FRINTX', '1', '0', '11001', (m, s, n) => roundIntegral(m, s, n, 'dynamic', true)],
  ['FRINTI', '1', '1', '11001', (m, s, n) => roundIntegral(m, s, n, 'dynamic', false)],
  ['FCMGT (zero)', '0', '1', '01100', (m, s, n) => compareMask(m, s, 'GT', n, zero(s)), 'and scalar'],
  ['FCMEQ (zero)', '0', '1', '01101', (m, s, n) => compareMask(m, s, 'EQ', n, zero(s)), 'and scalar'],
  ['FCMLT (zero)', '0', '1', '01110', (m, s, n) => compareMask(m, s, 'GT', zero(s), n), 'and scalar'],
  ['FCMGE (zero)', '1', '1', '01100', (m, s, n) => compareMask(m, s, 'GE', n, zero(s)), 'and scalar'],
  ['FCMLE (zero)', '1', '1', '01101', (m, s, n) => compareMask(m, s, 'GE', zero(s), n), 'and scalar'],
  ['FRECPE', '0', '1', '11101', reciprocalEstimate, 'and scalar'],
  ['FRSQRTE', '1', '1', '11101', reciprocalSquareRootEstimate, 'and scalar'],
  ['FRECPX', '0', '1', '11111', (m, s, n) => unaryExact(m, s, 'recpX', n), 'only scalar'],
];
for (const [op, u, a, opcode, meaning, forms] of twoRegister) {
  if (forms !== 'only scalar') {
    inst(`${op} (vector)`, `0 Q ${u} 01110 ${a} sz 10000 ${opcode} 10 Rn:5 Rd:5`, {
      fp: true, statics: ['Q', 'sz'],
      when: f => f.Q === 1 || f.sz === 0,
      operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
      meaning: (m, o, { Q, sz }) => {
        const s = vectorShape(sz, Q);
        s.write(m, o.d, meaning(m, s, s.read(m, o.n)));
      },
    });
  }
  if (forms === undefined) continue;
  inst(`${op} (scalar)`, `01 ${u} 11110 ${a} sz 10000 ${opcode} 10 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      s.write(m, o.d, meaning(m, s, s.read(m, o.n)));
    },
  });
}

const integerEstimates = [
  ['URECPE', '0', 'unsignedRecipEstimate'], ['URSQRTE', '1', 'unsignedRSqrtEstimate'],
] as const;
for (const [op, u, operation] of integerEstimates) {
  inst(op, `0 Q ${u} 01110 10 10000 11100 10 Rn:5 Rd:5`, {
    fp: true, statics: ['Q'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o, { Q }) => {
      const s = vectorShape(0, Q);
      s.write(m, o.d, unaryExact(m, s, operation, s.read(m, o.n)));
    },
  });
}

// ---- reductions

const pairs = [
  ['FMAXNMP', '0', '01100', 'maxNum'], ['FMINNMP', '1', '01100', 'minNum'], ['FADDP', '0', '01101', 'add'],
  ['FMAXP', '0', '01111', 'max'], ['FMINP', '1', '01111', 'min'],
] as const;
for (const [op, a, opcode, operation] of pairs) {
  inst(`${op} (scalar)`, `01 1 11110 ${a} sz 11000 ${opcode} 10 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      const lane = (k: number): Value => sz ? f64x2.extract(m.q(o.n), k) : f32x4.extract(m.q(o.n), k);
      s.write(m, o.d, binary(m, s, operation, lane(0), lane(1)));
    },
  });
}

const across = [
  ['FMAXNMV', '0', '01100', 'maxNum'], ['FMINNMV', '1', '01100', 'minNum'],
  ['FMAXV', '0', '01111', 'max'], ['FMINV', '1', '01111', 'min'],
] as const;
for (const [op, a, opcode, operation] of across) {
  inst(op, `0 1 1 01110 ${a} 0 11000 ${opcode} 10 Rn:5 Rd:5`, {
    fp: true,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn) }),
    // A tree, as the manual reduces: (lane 0, lane 1) and (lane 2, lane 3), then the two results.
    meaning: (m, o) => {
      const n = m.f.let(m.q(o.n));
      const halves = binary(m, vectorShape(0, 0), operation, gather(n, 0, 2), gather(n, 1, 3)) as V128;
      scalarSingle.write(m, o.d,
        binary(m, scalarSingle, operation, f32x4.extract(halves, 0), f32x4.extract(halves, 1)));
    },
  });
}

/** Two single lanes, moved to lanes 0 and 1. */
function gather(n: V128, first: number, second: number): V128 {
  const bytes = [first, second].flatMap(lane => [0, 1, 2, 3].map(k => 4 * lane + k));
  return i8x16.shuffle(n, n, [...bytes, ...bytes]);
}

export default { name, rows };
