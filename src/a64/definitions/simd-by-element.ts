// Advanced SIMD vector x indexed element and scalar x indexed element, integer (Arm ARM C4.1.96).

import { imm, vr } from '../operand.ts';
import { group } from '../row.ts';
import { doublingHighHalf } from '../simd/arithmetic.ts';
import { splatElement } from '../simd/element.ts';
import { HALF_AND_WORD, scalarAllowed, scalarLanes, vectorLanes } from '../simd/forms.ts';
import type { BinaryOperation, Bit, Bits4 } from '../simd/forms.ts';
import type { Machine } from '../machine.ts';
import { scalarWidth } from '../simd/lanes.ts';
import type { Lanes } from '../simd/lanes.ts';
import { longMultiplies, longOperation } from '../simd/long.ts';

const { name, rows, inst } = group('simd-by-element');

/** Halfwords are taken from V0 to V15 with an index of three bits, words from any register with one of two. */
const operands = (f: { size: number; L: number; M: number; H: number; Rm: number; Rn: number; Rd: number }) => ({
  d: vr(f.Rd), n: vr(f.Rn),
  m: vr(f.size === 1 ? f.Rm : f.M << 4 | f.Rm),
  index: imm(f.size === 1 ? f.H << 2 | f.L << 1 | f.M : f.H << 1 | f.L),
});
type Operands = ReturnType<typeof operands>;

const element = (m: Machine, o: Operands, size: number) => m.f.let(splatElement(m, size, m.q(o.m), m.imm(o.index)));

function sameSize(l: Lanes, o: Operands, operation: BinaryOperation): void {
  const { m } = l;
  const second = element(m, o, l.size);
  l.write(o.d, operation(l, m.f.let(m.q(o.n)), second, m.q(o.d)));
}

function byElement(op: string, U: Bit, opcode: Bits4, forms: { scalar: boolean }, operation: BinaryOperation): void {
  inst(`${op} (by element)`, `0 Q ${U} 01111 size:2 L M Rm:4 ${opcode} H 0 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: scalarAllowed(HALF_AND_WORD),
    operands,
    meaning: (m, o, s) => sameSize(vectorLanes(m, s, s.size), o, operation),
  });
  if (!forms.scalar) return;
  inst(`${op} (scalar, by element)`, `01 ${U} 11111 size:2 L M Rm:4 ${opcode} H 0 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(HALF_AND_WORD),
    operands,
    meaning: (m, o, s) => sameSize(scalarLanes(m, s.size), o, operation),
  });
}

byElement('MUL', '0', '1000', { scalar: false }, (l, n, m) => l.mul(n, m));
byElement('MLA', '1', '0000', { scalar: false }, (l, n, m, d) => l.add(d, l.mul(n, m)));
byElement('MLS', '1', '0100', { scalar: false }, (l, n, m, d) => l.sub(d, l.mul(n, m)));
byElement('SQDMULH', '0', '1100', { scalar: true }, (l, n, m) => doublingHighHalf(l, n, m, { round: false }));
byElement('SQRDMULH', '0', '1101', { scalar: true }, (l, n, m) => doublingHighHalf(l, n, m, { round: true }));
for (const [op, opcode, accumulate] of [['SQRDMLAH', '1101', 'add'], ['SQRDMLSH', '1111', 'sub']] as const) {
  byElement(op, '1', opcode, { scalar: true }, (l, n, m, d) =>
    doublingHighHalf(l, n, m, { round: true, accumulate, accumulator: l.let(d) }));
}

for (const { op, U, elementOpcode: opcode, saturates, operation } of longMultiplies) {
  inst(`${op} (by element)`, `0 Q ${U} 01111 size:2 L M Rm:4 ${opcode} H 0 Rn:5 Rd:5`, {
    statics: ['Q', 'size'], fp: true,
    when: scalarAllowed(HALF_AND_WORD),
    operands,
    meaning: (m, o, s) =>
      longOperation(m, o, s.size, { upper: s.Q === 1, width: 128 }, operation, element(m, o, s.size)),
  });
  if (!saturates) continue;
  inst(`${op} (scalar, by element)`, `01 ${U} 11111 size:2 L M Rm:4 ${opcode} H 0 Rn:5 Rd:5`, {
    statics: ['size'], fp: true,
    when: scalarAllowed(HALF_AND_WORD),
    operands,
    meaning: (m, o, s) => longOperation(m, o, s.size, { upper: false, width: scalarWidth(s.size + 1) }, operation,
      element(m, o, s.size)),
  });
}

export default { name, rows };
