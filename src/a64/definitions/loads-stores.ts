// Loads and stores of one register (Arm ARM C4.1.96): general, and SIMD&FP by B, H, S, D and Q; and prefetch.
//
// Each kind of access (below: its encoding, size, and what it does with the value) meets each addressing form. When a
// form writes the base register, that happens after the access, which may fault, and before the loaded register is
// written. (Both being the same register is CONSTRAINED UNPREDICTABLE; here the loaded value stays.)

import { i32, i64 } from '../../wasm/scalar.ts';
import type { I64, V128 } from '../../wasm/types.ts';
import type { AccessOptions, AccessSize, Machine } from '../machine.ts';
import { imm, vr, xd, xr, xsp } from '../operand.ts';
import type { Reg, VReg } from '../operand.ts';
import { group, signed } from '../row.ts';

const { name, rows, inst } = group('loads-stores', { accessesMemory: true });

type Bits2 = '00' | '01' | '10' | '11';
/** Does the access; what is left to do after the base register is written comes back as a function. */
type Access<R> = (m: Machine, t: R, va: I64, options?: AccessOptions) => () => void;

interface Kind<R> {
  readonly mnemonic: string;
  /** Tells kinds of the same mnemonic apart: the register's letter. */
  readonly register: string;
  readonly size: Bits2;
  readonly opc: Bits2;
  readonly log2: 0 | 1 | 2 | 3 | 4;
  readonly access: Access<R>;
  readonly isStore: boolean;
}

const nothing = (): void => {};
const byteCount = (log2: number): AccessSize => (1 << log2) as AccessSize;

function load(mnemonic: string, log2: 0 | 1 | 2 | 3, opc: Bits2, extend: (value: I64) => I64, to32 = false): Kind<Reg> {
  return {
    mnemonic, register: log2 === 3 || (opc === '10') ? 'X' : 'W', size: sizeField(log2), opc, log2, isStore: false,
    access: (m, t, va, options) => {
      const value = m.load(byteCount(log2), va, options);
      return () => to32 ? m.setW(t, i32.wrapI64(extend(value))) : m.setX(t, extend(value));
    },
  };
}
function store(mnemonic: string, log2: 0 | 1 | 2 | 3): Kind<Reg> {
  return {
    mnemonic, register: log2 === 3 ? 'X' : 'W', size: sizeField(log2), opc: '00', log2, isStore: true,
    access: (m, t, va, options) => {
      m.store(byteCount(log2), va, m.x(t), options);
      return nothing;
    },
  };
}
function sizeField(log2: number): Bits2 {
  return (['00', '01', '10', '11'] as const)[log2 & 3]!;
}

const unsigned = (value: I64): I64 => value;
const general: readonly Kind<Reg>[] = [
  store('STRB', 0), load('LDRB', 0, '01', unsigned),
  load('LDRSB', 0, '10', i64.extend8S), load('LDRSB', 0, '11', i64.extend8S, true),
  store('STRH', 1), load('LDRH', 1, '01', unsigned),
  load('LDRSH', 1, '10', i64.extend16S), load('LDRSH', 1, '11', i64.extend16S, true),
  store('STR', 2), load('LDR', 2, '01', unsigned), load('LDRSW', 2, '10', i64.extend32S),
  store('STR', 3), load('LDR', 3, '01', unsigned),
];

function vectorLoad(register: string, log2: 0 | 1 | 2 | 3 | 4): Kind<VReg> {
  return {
    mnemonic: 'LDR', register, size: sizeField(log2), opc: log2 === 4 ? '11' : '01', log2, isStore: false,
    access: (m, t, va) => {
      if (log2 === 4) {
        const value: V128 = m.load128(va);
        return () => m.setQ(t, value);
      }
      const value = m.load(byteCount(log2), va);
      return () => m.setD(t, value);
    },
  };
}
function vectorStore(register: string, log2: 0 | 1 | 2 | 3 | 4): Kind<VReg> {
  return {
    mnemonic: 'STR', register, size: sizeField(log2), opc: log2 === 4 ? '10' : '00', log2, isStore: true,
    access: (m, t, va) => {
      if (log2 === 4) m.store128(va, m.q(t));
      else m.store(byteCount(log2), va, m.d(t));
      return nothing;
    },
  };
}
const vector: readonly Kind<VReg>[] = (['B', 'H', 'S', 'D', 'Q'] as const)
  .flatMap((register, log2) => [vectorStore(register, log2 as 0), vectorLoad(register, log2 as 0)]);

// ---- addressing forms

/** Defines all forms of one kind; `target` makes the operand of the register that is moved. */
function forms<R extends Reg | VReg>(kind: Kind<R>, V: '0' | '1', target: (n: number) => R): void {
  const { mnemonic, register, size, opc, log2, access } = kind;
  const fp = V === '1';
  const rowName = (form: string, prefix = 'R'): string => `${mnemonic.replace('R', prefix)} ${register} (${form})`;

  inst(rowName('unsigned offset'), `${size} 111 ${V} 01 ${opc} imm12:12 Rn:5 Rt:5`, {
    operands: f => ({ t: target(f.Rt), n: xsp(f.Rn), i: imm(f.imm12 << log2) }),
    fp,
    meaning: (m, o) => access(m, o.t, i64.add(m.x(o.n), m.imm64(o.i)))(),
  });
  inst(rowName('unscaled', 'UR'), `${size} 111 ${V} 00 ${opc} 0 imm9:9 00 Rn:5 Rt:5`, {
    operands: f => ({ t: target(f.Rt), n: xsp(f.Rn), i: imm(signed(f.imm9, 9)) }),
    fp,
    meaning: (m, o) => access(m, o.t, i64.add(m.x(o.n), m.imm64(o.i)))(),
  });
  inst(rowName('post-index'), `${size} 111 ${V} 00 ${opc} 0 imm9:9 01 Rn:5 Rt:5`, {
    operands: f => ({ t: target(f.Rt), n: xsp(f.Rn), i: imm(signed(f.imm9, 9)) }),
    fp,
    meaning: (m, o) => {
      const base = m.f.let(m.x(o.n));
      const finish = access(m, o.t, base);
      m.setX(o.n, i64.add(base, m.imm64(o.i)));
      finish();
    },
  });
  inst(rowName('pre-index'), `${size} 111 ${V} 00 ${opc} 0 imm9:9 11 Rn:5 Rt:5`, {
    operands: f => ({ t: target(f.Rt), n: xsp(f.Rn), i: imm(signed(f.imm9, 9)) }),
    fp,
    meaning: (m, o) => {
      const va = m.f.let(i64.add(m.x(o.n), m.imm64(o.i)));
      const finish = access(m, o.t, va);
      m.setX(o.n, va);
      finish();
    },
  });
  inst(rowName('register'), `${size} 111 ${V} 00 ${opc} 1 Rm:5 option:3 S 10 Rn:5 Rt:5`, {
    statics: ['option', 'S'],
    when: f => (f.option & 2) !== 0,
    operands: f => ({ t: target(f.Rt), n: xsp(f.Rn), m: xr(f.Rm) }),
    fp,
    meaning: (m, o, s) => {
      const offset = i64.shl(indexValue(m, o.m, s.option), i64.const(s.S ? log2 : 0));
      access(m, o.t, i64.add(m.x(o.n), offset))();
    },
  });
  if (V === '1') return;
  inst(rowName('unprivileged', 'TR'), `${size} 111 0 00 ${opc} 0 imm9:9 10 Rn:5 Rt:5`, {
    operands: f => ({ t: target(f.Rt), n: xsp(f.Rn), i: imm(signed(f.imm9, 9)) }),
    meaning: (m, o) => access(m, o.t, i64.add(m.x(o.n), m.imm64(o.i)), { unprivileged: true })(),
  });
}

/** The index register: option 2 is UXTW, 6 SXTW, 3 and 7 take all 64 bits. */
function indexValue(m: Machine, register: Reg, option: number): I64 {
  if (option & 1) return m.x(register);
  return option === 2 ? i64.extendI32U(m.w(register)) : i64.extendI32S(m.w(register));
}

for (const kind of general) forms(kind, '0', kind.isStore ? xr : xd);
for (const kind of vector) forms(kind, '1', vr);

// ---- literal

for (const [opc, mnemonic, register] of [['00', 'LDR', 'W'], ['01', 'LDR', 'X'], ['10', 'LDRSW', 'X']] as const) {
  const kind = general.find(k => k.mnemonic === mnemonic && k.register === register)!;
  inst(`${mnemonic} ${register} (literal)`, `${opc} 011 0 00 imm19:19 Rt:5`, {
    operands: f => ({ t: xd(f.Rt), i: imm(signed(f.imm19, 19) << 2) }),
    meaning: (m, o) => kind.access(m, o.t, i64.add(m.pc(), m.imm64(o.i)))(),
  });
}
for (const [opc, register] of [['00', 'S'], ['01', 'D'], ['10', 'Q']] as const) {
  const kind = vector.find(k => !k.isStore && k.register === register)!;
  inst(`LDR ${register} (literal)`, `${opc} 011 1 00 imm19:19 Rt:5`, {
    operands: f => ({ t: vr(f.Rt), i: imm(signed(f.imm19, 19) << 2) }),
    fp: true,
    meaning: (m, o) => kind.access(m, o.t, i64.add(m.pc(), m.imm64(o.i)))(),
  });
}

// ---- prefetch: a hint that never faults

inst('PRFM (unsigned offset)', '11 111 0 01 10 imm12:12 Rn:5 Rt:5', { operands: () => ({}), meaning: nothing });
inst('PRFUM', '11 111 0 00 10 0 imm9:9 00 Rn:5 Rt:5', { operands: () => ({}), meaning: nothing });
inst('PRFM (register)', '11 111 0 00 10 1 Rm:5 option:3 S 10 Rn:5 Rt:5', {
  when: f => (f.option & 2) !== 0,
  operands: () => ({}),
  meaning: nothing,
});
inst('PRFM (literal)', '11 011 0 00 imm19:19 Rt:5', { operands: () => ({}), meaning: nothing });

export default { name, rows };
