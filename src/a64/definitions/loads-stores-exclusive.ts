// Load-acquire, store-release and exclusives (Arm ARM C4.1.96).
//
// The exclusive monitor is in the vCPU record: the host address that was loaded from, and what was loaded. A store
// exclusive succeeds if it goes to the same host address and finds the same value there, which one compare-and-exchange
// decides. (A value that changed and changed back goes unnoticed, which the loops that use exclusives cannot tell.)
// Wasm has no 16-byte compare-and-exchange, so pairs of 64-bit registers do it under a lock of the machine.

import { vcpuRecord } from '../../abi/vcpu.ts';
import { atomicCmpxchg, i32, i64 } from '../../wasm/scalar.ts';
import type { Address, I32, I64 } from '../../wasm/types.ts';
import type { AccessSize, Machine } from '../machine.ts';
import { xd, xr, xsp } from '../operand.ts';
import type { Reg } from '../operand.ts';
import { pairCompareAndSwap, widened } from '../pair-atomics.ts';
import { group } from '../row.ts';

const { name, rows, inst } = group('loads-stores-exclusive', { accessesMemory: true });
const { exclusiveAddress, exclusiveValueLow, exclusiveValueHigh } = vcpuRecord.at;

const atomicLoads = [i64.atomicLoad8U, i64.atomicLoad16U, i64.atomicLoad32U, i64.atomicLoad] as const;
const SIZES = [['B', '00'], ['H', '01'], ['W', '10'], ['X', '11']] as const;
/** B and H are part of the mnemonic, W and X are registers. */
const nameOf = (mnemonic: string, size: string): string => mnemonic + ('BH'.includes(size) ? size : ` ${size}`);

// ---- ordered. Every ordered access is sequentially consistent: at least as strong as each of these asks for.

SIZES.forEach(([letter, size], log2) => {
  const sizeBytes = (1 << log2) as AccessSize;
  for (const [mnemonic, o0] of [['LDLAR', '0'], ['LDAR', '1']] as const) {
    inst(nameOf(mnemonic, letter), `${size} 001000 1 1 0 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
      operands: f => ({ t: xd(f.Rt), n: xsp(f.Rn) }),
      meaning: (m, o) => m.setX(o.t, m.load(sizeBytes, m.x(o.n), { ordered: true })),
    });
  }
  for (const [mnemonic, o0] of [['STLLR', '0'], ['STLR', '1']] as const) {
    inst(nameOf(mnemonic, letter), `${size} 001000 1 0 0 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
      operands: f => ({ t: xr(f.Rt), n: xsp(f.Rn) }),
      meaning: (m, o) => m.store(sizeBytes, m.x(o.n), m.x(o.t), { ordered: true }),
    });
  }
  inst(nameOf('LDAPR', letter), `${size} 111 0 00 1 0 1 11111 1100 00 Rn:5 Rt:5`, {
    operands: f => ({ t: xd(f.Rt), n: xsp(f.Rn) }),
    meaning: (m, o) => m.setX(o.t, m.load(sizeBytes, m.x(o.n), { ordered: true })),
  });
});

// ---- exclusive, one register

/** Sets the monitor. */
function loadExclusive(m: Machine, va: I64, log2: number): I64 {
  const host = m.hostAddress(va, log2, 'read');
  const value = m.f.let(atomicLoads[log2]!(host));
  m.writeState64(exclusiveAddress, widened(host));
  m.writeState64(exclusiveValueLow, value);
  return value;
}

/** Runs `exchange` (1 if it stored) if the monitor has the address, and clears it. Gives the status: 0 for success. */
function storeExclusive(m: Machine, host: Address, exchange: () => I32): I32 {
  const status = m.f.local('i32');
  m.f.set(status, i32.const(1));
  m.f.if(i64.eq(m.readState64(exclusiveAddress), widened(host)), () => m.f.set(status, i32.eqz(exchange())));
  m.writeState64(exclusiveAddress, i64.const(-1n));
  return status;
}

/** One compare-and-exchange of the recorded value. */
function storeExclusiveValue(m: Machine, status: Reg, va: I64, value: I64, log2: number): void {
  const host = m.hostAddress(va, log2, 'write');
  const result = storeExclusive(m, host, () => {
    const expected = m.f.let(lowBytes(m.readState64(exclusiveValueLow), log2));
    return i64.eq(atomicCmpxchg[log2]!(host, expected, value), expected);
  });
  m.setW(status, result);
}

function lowBytes(value: I64, log2: number): I64 {
  return log2 === 3 ? value : i64.and(value, i64.const((1n << BigInt(8 << log2)) - 1n));
}

SIZES.forEach(([letter, size], log2) => {
  for (const [ordered, o0] of [['', '0'], ['A', '1']] as const) {
    inst(nameOf(`LD${ordered}XR`, letter), `${size} 001000 0 1 0 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
      operands: f => ({ t: xd(f.Rt), n: xsp(f.Rn) }),
      meaning: (m, o) => m.setX(o.t, loadExclusive(m, m.x(o.n), log2)),
    });
    inst(nameOf(`ST${ordered && 'L'}XR`, letter), `${size} 001000 0 0 0 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
      operands: f => ({ s: xd(f.Rs), t: xr(f.Rt), n: xsp(f.Rn) }),
      meaning: (m, o) => storeExclusiveValue(m, o.s, m.x(o.n), m.x(o.t), log2),
    });
  }
});

// ---- exclusive pairs

for (const [ordered, o0] of [['', '0'], ['A', '1']] as const) {
  inst(`LD${ordered}XP W`, `10 001000 0 1 1 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
    operands: f => ({ t: xd(f.Rt), t2: xd(f.Rt2), n: xsp(f.Rn) }),
    meaning: (m, o) => {
      const both = loadExclusive(m, m.x(o.n), 3);
      m.setW(o.t, i32.wrapI64(both));
      m.setX(o.t2, i64.shrU(both, i64.const(32)));
    },
  });
  inst(`ST${ordered && 'L'}XP W`, `10 001000 0 0 1 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
    operands: f => ({ s: xd(f.Rs), t: xr(f.Rt), t2: xr(f.Rt2), n: xsp(f.Rn) }),
    meaning: (m, o) => {
      const both = m.f.let(i64.or(i64.extendI32U(m.w(o.t)), i64.shl(m.x(o.t2), i64.const(32))));
      storeExclusiveValue(m, o.s, m.x(o.n), both, 3);
    },
  });
  inst(`LD${ordered}XP X`, `11 001000 0 1 1 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
    operands: f => ({ t: xd(f.Rt), t2: xd(f.Rt2), n: xsp(f.Rn) }),
    meaning: (m, o) => {
      // The halves may be torn against another CPU's store; then the store exclusive finds something else and fails.
      const host = m.hostAddress(m.x(o.n), 4, 'read');
      const low = m.f.let(i64.atomicLoad(host));
      const high = m.f.let(i64.atomicLoad(host, 8));
      m.writeState64(exclusiveAddress, widened(host));
      m.writeState64(exclusiveValueLow, low);
      m.writeState64(exclusiveValueHigh, high);
      m.setX(o.t, low);
      m.setX(o.t2, high);
    },
  });
  inst(`ST${ordered && 'L'}XP X`, `11 001000 0 0 1 Rs:5 ${o0} Rt2:5 Rn:5 Rt:5`, {
    operands: f => ({ s: xd(f.Rs), t: xr(f.Rt), t2: xr(f.Rt2), n: xsp(f.Rn) }),
    meaning: (m, o) => {
      const host = m.hostAddress(m.x(o.n), 4, 'write');
      const result = storeExclusive(m, host, () => {
        const low = m.f.let(m.readState64(exclusiveValueLow));
        const high = m.f.let(m.readState64(exclusiveValueHigh));
        const [oldLow, oldHigh] = pairCompareAndSwap(m, host, [low, high], [m.x(o.t), m.x(o.t2)]);
        return i32.and(i64.eq(oldLow, low), i64.eq(oldHigh, high));
      });
      m.setW(o.s, result);
    },
  });
}

export default { name, rows };
