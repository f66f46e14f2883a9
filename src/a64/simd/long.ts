// Operations whose result lanes have twice the operands' size, and their encodings as three different and by element.

import type { V128 } from '../../wasm/types.ts';
import type { Machine } from '../machine.ts';
import { saturatingAdd, saturatingDoublingProduct, saturatingSub } from './arithmetic.ts';
import { signs } from './forms.ts';
import type { Bit, Bits4, ThreeVectors } from './forms.ts';
import { Lanes } from './lanes.ts';
import type { Size } from './lanes.ts';

/** `n` and `m` are pinned, the old destination `d` is not; `upper` chooses the operands' upper halves. */
export type LongOperation = (l: Lanes, wide: Lanes, n: V128, m: V128, d: V128, upper: boolean) => V128;

/** `width` is that of the result. `second` stands for the register m in forms by element; it is pinned. */
export function longOperation(
  m: Machine, o: ThreeVectors, size: Size, form: { upper: boolean; width: number }, operation: LongOperation,
  second = m.f.let(m.q(o.m)),
): void {
  const wide = new Lanes(m, size + 1, form.width);
  const n = m.f.let(m.q(o.n));
  wide.write(o.d, operation(wide.resized(size), wide, n, second, m.q(o.d), form.upper));
}

/** The first operand has the result's size. */
export function wideOperation(
  m: Machine, o: ThreeVectors, size: Size, operation: (l: Lanes, wide: Lanes, n: V128, second: V128) => V128,
): void {
  const wide = new Lanes(m, size + 1, 128);
  wide.write(o.d, operation(wide.resized(size), wide, m.q(o.n), m.q(o.m)));
}

interface LongMultiply {
  op: string;
  U: Bit;
  /** As three different, and by element. */
  vectorOpcode: Bits4;
  elementOpcode: Bits4;
  /** Lanes of 16 and 32 bits only; has scalar forms. */
  saturates: boolean;
  operation: LongOperation;
}

export const longMultiplies: LongMultiply[] = [];

for (const { sign, U } of signs) {
  const product: LongOperation = (l, _wide, n, m, _d, upper) => l.mulWide(sign, n, m, upper);
  longMultiplies.push(
    { op: `${sign}MULL`, U, vectorOpcode: '1100', elementOpcode: '1010', saturates: false, operation: product },
    {
      op: `${sign}MLAL`, U, vectorOpcode: '1000', elementOpcode: '0010', saturates: false,
      operation: (l, wide, n, m, d, upper) => wide.add(d, product(l, wide, n, m, d, upper)),
    },
    {
      op: `${sign}MLSL`, U, vectorOpcode: '1010', elementOpcode: '0110', saturates: false,
      operation: (l, wide, n, m, d, upper) => wide.sub(d, product(l, wide, n, m, d, upper)),
    },
  );
}

/** The doubled product saturates first, then the sum or difference does. */
const accumulated = (combine: typeof saturatingAdd): LongOperation => (l, wide, n, m, d, upper) =>
  combine(wide, 'S', wide.let(d), wide.let(saturatingDoublingProduct(l, wide, n, m, upper)));

longMultiplies.push(
  {
    op: 'SQDMULL', U: '0', vectorOpcode: '1101', elementOpcode: '1011', saturates: true,
    operation: (l, wide, n, m, _d, upper) => saturatingDoublingProduct(l, wide, n, m, upper),
  },
  {
    op: 'SQDMLAL', U: '0', vectorOpcode: '1001', elementOpcode: '0011', saturates: true,
    operation: accumulated(saturatingAdd),
  },
  {
    op: 'SQDMLSL', U: '0', vectorOpcode: '1011', elementOpcode: '0111', saturates: true,
    operation: accumulated(saturatingSub),
  },
);
