// Atomic memory operations of FEAT_LSE (Arm ARM C4.1.96): LD<op>, SWP, CAS, CASP. ST<op> is LD<op> with register 31.
//
// The acquire and release bits make no difference: Wasm's atomics are all sequentially consistent.

import { atomicCmpxchg, atomicRmw, i32, i64, select } from '../../wasm/scalar.ts';
import type { Address, I32, I64 } from '../../wasm/types.ts';
import type { Machine } from '../machine.ts';
import { xd, xr, xsp } from '../operand.ts';
import { pairCompareAndSwap } from '../pair-atomics.ts';
import { group } from '../row.ts';

const { name, rows, inst } = group('atomics', { accessesMemory: true });

const atomicLoads = [i64.atomicLoad8U, i64.atomicLoad16U, i64.atomicLoad32U, i64.atomicLoad] as const;

function lowBytes(value: I64, log2: number): I64 {
  return log2 === 3 ? value : i64.and(value, i64.const((1n << BigInt(8 << log2)) - 1n));
}
function signExtended(value: I64, log2: number): I64 {
  return [i64.extend8S, i64.extend16S, i64.extend32S, (v: I64): I64 => v][log2]!(value);
}

/** What an operation leaves in memory and gives back: the old value, zero-extended. The operand is pinned. */
type Operation = (m: Machine, host: Address, operand: I64, log2: number) => I64;

const readModifyWrite = (op: keyof typeof atomicRmw, invert = false): Operation => (_, host, operand, log2) =>
  atomicRmw[op][log2]!(host, invert ? i64.xor(operand, i64.const(-1n)) : operand);

type Comparison = (old: I64, operand: I64) => I32;
/** A loop of compare-and-exchange; `keepsOld` compares the old value with the operand, both extended alike. */
const minMax = (isSigned: boolean, keepsOld: Comparison): Operation => (m, host, operand, log2) => {
  const { f } = m;
  const extend = isSigned ? signExtended : lowBytes;
  const value = f.let(extend(operand, log2));
  const old = f.local('i64');
  const seen = f.local('i64');
  f.set(seen, atomicLoads[log2]!(host));
  f.loop(again => {
    f.set(old, seen);
    const replacement = select(keepsOld(extend(old, log2), value), old, lowBytes(value, log2));
    f.set(seen, atomicCmpxchg[log2]!(host, old, replacement));
    f.brIf(again, i64.ne(seen, old));
  });
  return old;
};

const operations: readonly (readonly [mnemonic: string, o3: '0' | '1', opc: string, Operation])[] = [
  ['LDADD', '0', '000', readModifyWrite('add')],
  ['LDCLR', '0', '001', readModifyWrite('and', true)],
  ['LDEOR', '0', '010', readModifyWrite('xor')],
  ['LDSET', '0', '011', readModifyWrite('or')],
  ['LDSMAX', '0', '100', minMax(true, i64.geS)],
  ['LDSMIN', '0', '101', minMax(true, i64.leS)],
  ['LDUMAX', '0', '110', minMax(false, i64.geU)],
  ['LDUMIN', '0', '111', minMax(false, i64.leU)],
  ['SWP', '1', '000', readModifyWrite('xchg')],
];
for (const [op, o3, opc, operate] of operations) {
  inst(op, `size:2 111 0 00 A R 1 Rs:5 ${o3} ${opc as '000'} 00 Rn:5 Rt:5`, {
    statics: ['size'],
    operands: f => ({ s: xr(f.Rs), t: xd(f.Rt), n: xsp(f.Rn) }),
    meaning: (m, o, s) => {
      const host = m.hostAddress(m.x(o.n), s.size, 'write');
      m.setX(o.t, operate(m, host, m.f.let(m.x(o.s)), s.size));
    },
  });
}

inst('CAS', 'size:2 001000 1 L 1 Rs:5 o0 11111 Rn:5 Rt:5', {
  statics: ['size'],
  operands: f => ({ s: xr(f.Rs), old: xd(f.Rs), t: xr(f.Rt), n: xsp(f.Rn) }),
  meaning: (m, o, s) => {
    const host = m.hostAddress(m.x(o.n), s.size, 'write');
    const expected = lowBytes(m.x(o.s), s.size);
    m.setX(o.old, atomicCmpxchg[s.size]!(host, expected, lowBytes(m.x(o.t), s.size)));
  },
});

// Both pairs start at an even register; the second of one may be the zero register.
const evenPairs = (f: { Rs: number; Rt: number }): boolean => ((f.Rs | f.Rt) & 1) === 0;
inst('CASP W', '0 0 001000 0 L 1 Rs:5 o0 11111 Rn:5 Rt:5', {
  when: evenPairs,
  operands: f => ({
    s: xr(f.Rs), s2: xr(f.Rs | 1), old2: xd(f.Rs | 1), t: xr(f.Rt), t2: xr(f.Rt | 1), n: xsp(f.Rn),
  }),
  meaning: (m, o) => {
    const host = m.hostAddress(m.x(o.n), 3, 'write');
    const joined = (low: I32, high: I64): I64 => i64.or(i64.extendI32U(low), i64.shl(high, i64.const(32)));
    const expected = joined(m.w(o.s), m.x(o.s2));
    const old = m.f.let(atomicCmpxchg[3]!(host, expected, joined(m.w(o.t), m.x(o.t2))));
    m.setW(o.s, i32.wrapI64(old));
    m.setX(o.old2, i64.shrU(old, i64.const(32)));
  },
});
inst('CASP X', '0 1 001000 0 L 1 Rs:5 o0 11111 Rn:5 Rt:5', {
  when: evenPairs,
  operands: f => ({
    s: xr(f.Rs), s2: xr(f.Rs | 1), old2: xd(f.Rs | 1), t: xr(f.Rt), t2: xr(f.Rt | 1), n: xsp(f.Rn),
  }),
  meaning: (m, o) => {
    const host = m.hostAddress(m.x(o.n), 4, 'write');
    const expected: [I64, I64] = [m.f.let(m.x(o.s)), m.f.let(m.x(o.s2))];
    const [low, high] = pairCompareAndSwap(m, host, expected, [m.x(o.t), m.x(o.t2)]);
    m.setX(o.s, low);
    m.setX(o.old2, high);
  },
});

export default { name, rows };
