// Loads and stores of register pairs (Arm ARM C4.1.96). A pair is one access where the machine has one of twice the
// size; the order of faults and writes is as in loads-stores.ts.

import { i64 } from '../../wasm/scalar.ts';
import type { I64 } from '../../wasm/types.ts';
import type { Machine } from '../machine.ts';
import { imm, vr, xd, xr, xsp } from '../operand.ts';
import type { Reg, VReg } from '../operand.ts';
import { group, signed } from '../row.ts';

const { name, rows, inst } = group('loads-stores-pair', { accessesMemory: true });

interface Pair<R> {
  readonly mnemonic: string;
  readonly register: string;
  readonly opc: '00' | '01' | '10';
  readonly L: '0' | '1';
  readonly log2: number;
  /** LDPSW has no non-temporal form. */
  readonly nonTemporal: boolean;
  /** Does the access; what is left to do after the base register is written comes back as a function. */
  readonly access: (m: Machine, first: R, second: R, va: I64) => () => void;
}

const nothing = (): void => {};

function generalLoad(mnemonic: string, register: string, opc: '00' | '01' | '10', extend: (v: I64) => I64): Pair<Reg> {
  const log2 = opc === '10' ? 3 : 2;
  return {
    mnemonic, register, opc, L: '1', log2, nonTemporal: mnemonic === 'LDP',
    access: (m, first, second, va) => {
      const [low, high] = m.loadPair(opc === '10' ? 8 : 4, va);
      return () => {
        m.setX(first, extend(low));
        m.setX(second, extend(high));
      };
    },
  };
}
function generalStore(register: string, opc: '00' | '10'): Pair<Reg> {
  return {
    mnemonic: 'STP', register, opc, L: '0', log2: opc === '10' ? 3 : 2, nonTemporal: true,
    access: (m, first, second, va) => {
      m.storePair(opc === '10' ? 8 : 4, va, m.x(first), m.x(second));
      return nothing;
    },
  };
}

const unsigned = (value: I64): I64 => value;
const generalLoads = [
  generalLoad('LDP', 'W', '00', unsigned), generalLoad('LDP', 'X', '10', unsigned),
  generalLoad('LDPSW', 'X', '01', i64.extend32S),
];
const generalStores = [generalStore('W', '00'), generalStore('X', '10')];

const second16 = (va: I64): I64 => i64.add(va, i64.const(16));
const vectorPairs: readonly Pair<VReg>[] = ([['S', '00', 4], ['D', '01', 8]] as const)
  .flatMap(([register, opc, size]): Pair<VReg>[] => [{
    mnemonic: 'STP', register, opc, L: '0', log2: Math.log2(size), nonTemporal: true,
    access: (m, first, second, va) => {
      m.storePair(size, va, m.d(first), m.d(second));
      return nothing;
    },
  }, {
    mnemonic: 'LDP', register, opc, L: '1', log2: Math.log2(size), nonTemporal: true,
    access: (m, first, second, va) => {
      const [low, high] = m.loadPair(size, va);
      return () => {
        m.setD(first, low);
        m.setD(second, high);
      };
    },
  }]);
const quadPairs: readonly Pair<VReg>[] = [{
  mnemonic: 'STP', register: 'Q', opc: '10', L: '0', log2: 4, nonTemporal: true,
  access: (m, first, second, va) => {
    const address = m.f.let(va);
    m.store128(address, m.q(first));
    m.store128(second16(address), m.q(second));
    return nothing;
  },
}, {
  mnemonic: 'LDP', register: 'Q', opc: '10', L: '1', log2: 4, nonTemporal: true,
  access: (m, first, second, va) => {
    const address = m.f.let(va);
    const low = m.load128(address);
    const high = m.load128(second16(address));
    return () => {
      m.setQ(first, low);
      m.setQ(second, high);
    };
  },
}];

function forms<R extends Reg | VReg>(pair: Pair<R>, V: '0' | '1', target: (n: number) => R): void {
  const { mnemonic, register, opc, L, log2, access } = pair;
  const fp = V === '1';
  type F = { imm7: number; Rt2: number; Rn: number; Rt: number };
  const operands = (f: F) => ({
    t: target(f.Rt), t2: target(f.Rt2), n: xsp(f.Rn), i: imm(signed(f.imm7, 7) << log2),
  });
  const atOffset = (rowName: string, mode: '000' | '010'): void =>
    inst(rowName, `${opc} 101 ${V} ${mode} ${L} imm7:7 Rt2:5 Rn:5 Rt:5`, {
      operands,
      fp,
      meaning: (m, o) => access(m, o.t, o.t2, i64.add(m.x(o.n), m.imm64(o.i)))(),
    });
  atOffset(`${mnemonic} ${register} (signed offset)`, '010');
  if (pair.nonTemporal) atOffset(`${mnemonic.replace('P', 'NP')} ${register}`, '000');
  inst(`${mnemonic} ${register} (post-index)`, `${opc} 101 ${V} 001 ${L} imm7:7 Rt2:5 Rn:5 Rt:5`, {
    operands,
    fp,
    meaning: (m, o) => {
      const base = m.f.let(m.x(o.n));
      const finish = access(m, o.t, o.t2, base);
      m.setX(o.n, i64.add(base, m.imm64(o.i)));
      finish();
    },
  });
  inst(`${mnemonic} ${register} (pre-index)`, `${opc} 101 ${V} 011 ${L} imm7:7 Rt2:5 Rn:5 Rt:5`, {
    operands,
    fp,
    meaning: (m, o) => {
      const va = m.f.let(i64.add(m.x(o.n), m.imm64(o.i)));
      const finish = access(m, o.t, o.t2, va);
      m.setX(o.n, va);
      finish();
    },
  });
}

for (const pair of generalLoads) forms(pair, '0', xd);
for (const pair of generalStores) forms(pair, '0', xr);
for (const pair of vectorPairs) forms(pair, '1', vr);
for (const pair of quadPairs) forms(pair, '1', vr);

export default { name, rows };
