// Advanced SIMD floating-point with two vector operands of the same shape (Arm ARM C4.1.96: three same), the scalar
// forms of it, and its by-element forms.

import type { V128 } from '../../wasm/types.ts';
import { f32x4, f64x2, i8x16 } from '../../wasm/vector.ts';
import { binary, compareMask, multiplyAdd } from '../fp-inline.ts';
import type { BinaryOperation } from '../fp-inline.ts';
import { joinLow, scalarShape, vectorShape } from '../fp-shape.ts';
import type { Shape, Value } from '../fp-shape.ts';
import type { Machine } from '../machine.ts';
import { vr } from '../operand.ts';
import type { VReg } from '../operand.ts';
import { group } from '../row.ts';

const { name, rows, inst } = group('simd-fp-three-same');

type Meaning = (m: Machine, s: Shape, n: Value, r: Value) => Value;
const plain = (operation: BinaryOperation): Meaning => (m, s, n, r) => binary(m, s, operation, n, r);
const absolute = (relation: 'GE' | 'GT'): Meaning => (m, s, n, r) => compareMask(m, s, relation, s.abs(n), s.abs(r));
const compare = (relation: 'EQ' | 'GE' | 'GT'): Meaning => (m, s, n, r) => compareMask(m, s, relation, n, r);
const difference: Meaning = (m, s, n, r) => s.abs(binary(m, s, 'sub', n, r));

// ---- lane by lane

const lanewise: readonly (readonly [string, '0' | '1', '0' | '1',
  '11000' | '11010' | '11011' | '11100' | '11101' | '11110' | '11111', Meaning, scalar?: 'scalar'])[] = [
  ['FMAXNM', '0', '0', '11000', plain('maxNum')], ['FMINNM', '0', '1', '11000', plain('minNum')],
  ['FADD', '0', '0', '11010', plain('add')], ['FSUB', '0', '1', '11010', plain('sub')],
  ['FABD', '1', '1', '11010', difference, 'scalar'],
  ['FMULX', '0', '0', '11011', plain('mulX'), 'scalar'], ['FMUL', '1', '0', '11011', plain('mul')],
  ['FCMEQ', '0', '0', '11100', compare('EQ'), 'scalar'], ['FCMGE', '1', '0', '11100', compare('GE'), 'scalar'],
  ['FCMGT', '1', '1', '11100', compare('GT'), 'scalar'],
  ['FACGE', '1', '0', '11101', absolute('GE'), 'scalar'], ['FACGT', '1', '1', '11101', absolute('GT'), 'scalar'],
  ['FMAX', '0', '0', '11110', plain('max')], ['FMIN', '0', '1', '11110', plain('min')],
  ['FRECPS', '0', '0', '11111', plain('recipStepFused'), 'scalar'],
  ['FRSQRTS', '0', '1', '11111', plain('rSqrtStepFused'), 'scalar'],
  ['FDIV', '1', '0', '11111', plain('div')],
];
for (const [op, u, a, opcode, meaning, scalar] of lanewise) {
  inst(`${op} (vector)`, `0 Q ${u} 01110 ${a} sz 1 Rm:5 ${opcode} 1 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz'],
    when: f => f.Q === 1 || f.sz === 0,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { Q, sz }) => {
      const s = vectorShape(sz, Q);
      s.write(m, o.d, meaning(m, s, s.read(m, o.n), s.read(m, o.r)));
    },
  });
  if (!scalar) continue;
  inst(`${op} (scalar)`, `01 ${u} 11110 ${a} sz 1 Rm:5 ${opcode} 1 Rn:5 Rd:5`, {
    fp: true, statics: ['sz'],
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { sz }) => {
      const s = scalarShape(sz);
      s.write(m, o.d, meaning(m, s, s.read(m, o.n), s.read(m, o.r)));
    },
  });
}

for (const [op, a] of [['FMLA', '0'], ['FMLS', '1']] as const) {
  inst(`${op} (vector)`, `0 Q 0 01110 ${a} sz 1 Rm:5 11001 1 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz'],
    when: f => f.Q === 1 || f.sz === 0,
    operands: f => ({ d: vr(f.Rd), old: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { Q, sz }) => accumulate(m, vectorShape(sz, Q), op, o, vectorShape(sz, Q).read(m, o.r)),
  });
}

/** The first factor is negated for FMLS, a NaN too. */
function accumulate(m: Machine, s: Shape, op: 'FMLA' | 'FMLS', o: { d: VReg; old: VReg; n: VReg }, r: Value): void {
  const n = s.read(m, o.n);
  s.write(m, o.d, multiplyAdd(m, s, s.read(m, o.old), op === 'FMLS' ? s.neg(n) : n, r));
}

// ---- pairwise: the lanes of n, then those of m, two at a time

const evenWords = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27];
const evenDoubles = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];

/** The even (or odd) lanes of n followed by those of r. */
function alternate(s: Shape, n: V128, r: V128, odd: boolean): V128 {
  const bytes = s.size === 64 ? evenDoubles : evenWords;
  const lanes = odd ? bytes.map(k => k + s.size / 8) : bytes;
  // In a 64-bit vector the second operand's lanes follow at once.
  return s.lanes === 2 && s.size === 32
    ? i8x16.shuffle(joinLow(n, r), r, lanes) : i8x16.shuffle(n, r, lanes);
}

const pairwise = [
  ['FMAXNMP', '0', '11000', 'maxNum'], ['FMINNMP', '1', '11000', 'minNum'], ['FADDP', '0', '11010', 'add'],
  ['FMAXP', '0', '11110', 'max'], ['FMINP', '1', '11110', 'min'],
] as const;
for (const [op, a, opcode, operation] of pairwise) {
  inst(`${op} (vector)`, `0 Q 1 01110 ${a} sz 1 Rm:5 ${opcode} 1 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz'],
    when: f => f.Q === 1 || f.sz === 0,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { Q, sz }) => {
      const s = vectorShape(sz, Q);
      const n = m.f.let(m.q(o.n));
      const r = m.f.let(m.q(o.r));
      s.write(m, o.d, binary(m, s, operation, alternate(s, n, r, false), alternate(s, n, r, true)));
    },
  });
}

// ---- by element: one lane of m for all. Singles: index H:L and a register of 32; doubles: index H, and L is 0.

function element(m: Machine, s: Shape, r: VReg, high: number, low: number): Value {
  const lane = s.size === 64 ? f64x2.extract(m.q(r), high) : f32x4.extract(m.q(r), 2 * high + low);
  if (!s.vector) return lane;
  return lane.type === 'f64' ? f64x2.splat(lane) : f32x4.splat(lane as ReturnType<typeof f32x4.extract>);
}

const byElement = [['FMUL', '0', '1001', 'mul'], ['FMULX', '1', '1001', 'mulX']] as const;
for (const [op, u, opcode, operation] of byElement) {
  inst(`${op} (by element)`, `0 Q ${u} 01111 1 sz L Rm:5 ${opcode} H 0 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz', 'H', 'L'],
    when: f => f.sz === 0 || (f.Q === 1 && f.L === 0),
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { Q, sz, H, L }) => {
      const s = vectorShape(sz, Q);
      s.write(m, o.d, binary(m, s, operation, s.read(m, o.n), element(m, s, o.r, H, L)));
    },
  });
  inst(`${op} (scalar, by element)`, `01 ${u} 11111 1 sz L Rm:5 ${opcode} H 0 Rn:5 Rd:5`, {
    fp: true, statics: ['sz', 'H', 'L'],
    when: f => f.sz === 0 || f.L === 0,
    operands: f => ({ d: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { sz, H, L }) => {
      const s = scalarShape(sz);
      s.write(m, o.d, binary(m, s, operation, s.read(m, o.n), element(m, s, o.r, H, L)));
    },
  });
}

for (const [op, opcode] of [['FMLA', '0001'], ['FMLS', '0101']] as const) {
  inst(`${op} (by element)`, `0 Q 0 01111 1 sz L Rm:5 ${opcode} H 0 Rn:5 Rd:5`, {
    fp: true, statics: ['Q', 'sz', 'H', 'L'],
    when: f => f.sz === 0 || (f.Q === 1 && f.L === 0),
    operands: f => ({ d: vr(f.Rd), old: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { Q, sz, H, L }) => {
      const s = vectorShape(sz, Q);
      accumulate(m, s, op, o, element(m, s, o.r, H, L));
    },
  });
  inst(`${op} (scalar, by element)`, `01 0 11111 1 sz L Rm:5 ${opcode} H 0 Rn:5 Rd:5`, {
    fp: true, statics: ['sz', 'H', 'L'],
    when: f => f.sz === 0 || f.L === 0,
    operands: f => ({ d: vr(f.Rd), old: vr(f.Rd), n: vr(f.Rn), r: vr(f.Rm) }),
    meaning: (m, o, { sz, H, L }) => {
      const s = scalarShape(sz);
      accumulate(m, s, op, o, element(m, s, o.r, H, L));
    },
  });
}

export default { name, rows };
