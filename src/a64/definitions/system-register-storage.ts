// Moves to and from the system registers that are plain storage or constant and often used, as rows of their own: they cost a load
// and a store instead of a trap. Anything out of the ordinary (wrong exception level) goes to the trap all the same.

import { vcpuRecord } from '../../abi/vcpu.ts';
import { i32, i64 } from '../../wasm/scalar.ts';
import type { I32 } from '../../wasm/types.ts';
import type { Machine } from '../machine.ts';
import { xd, xr } from '../operand.ts';
import { group } from '../row.ts';
import { constantSystemRegisters, sysreg } from '../system-registers.ts';

const at = vcpuRecord.at;
const CNTKCTL_EL0VCTEN = 2;
const { name, rows, inst } = group('system-register-storage');

type Access = 'el0' | 'el1';
interface Storage {
  readonly register: keyof typeof sysreg;
  readonly offset: number;
  /** 32-bit fields of PSTATE are read zero-extended. */
  readonly bits: 32 | 64;
  readonly read?: Access;
  readonly write?: Access;
  /** Bits that a write keeps; all unless given. */
  readonly kept?: bigint;
}

const storage: readonly Storage[] = [
  { register: 'TPIDR_EL0', offset: at.tpidrEl0, bits: 64, read: 'el0', write: 'el0' },
  { register: 'TPIDRRO_EL0', offset: at.tpidrroEl0, bits: 64, read: 'el0', write: 'el1' },
  { register: 'TPIDR_EL1', offset: at.tpidrEl1, bits: 64, read: 'el1', write: 'el1' },
  { register: 'ELR_EL1', offset: at.elrEl1, bits: 64, read: 'el1', write: 'el1' },
  { register: 'SPSR_EL1', offset: at.spsrEl1, bits: 64, read: 'el1', write: 'el1', kept: 0xffff_ffffn },
  { register: 'ESR_EL1', offset: at.esrEl1, bits: 64, read: 'el1' },
  { register: 'FAR_EL1', offset: at.farEl1, bits: 64, read: 'el1' },
  { register: 'TTBR0_EL1', offset: at.ttbr0El1, bits: 64, read: 'el1' },
  { register: 'TTBR1_EL1', offset: at.ttbr1El1, bits: 64, read: 'el1' },
  { register: 'DAIF', offset: at.daif, bits: 32, read: 'el1' },
  { register: 'CONTEXTIDR_EL1', offset: at.contextidrEl1, bits: 64, read: 'el1', write: 'el1' },
];

const bit = (value: number, count: number): string => value.toString(2).padStart(count, '0');
/** `L` and the encoding as pattern tokens: 1101010100 L 1 o0 op1 CRn CRm op2 Rt. */
function pattern(encoding: number, isRead: boolean): '0 Rt:5' {
  return `1101010100 ${isRead ? 1 : 0} ${bit(encoding, 16)} Rt:5` as '0 Rt:5';
}
const denied = (m: Machine, access: Access): I32 =>
  access === 'el0' ? i32.const(0) : i32.eqz(m.readState32(at.el));
const EL_DEPENDS = 'its value or the access depends on the exception level; tests of the system registers cover it';

for (const { register, offset, bits, read, write, kept = -1n } of storage) {
  const encoding = sysreg[register];
  if (read) {
    inst(`MRS ${register}`, pattern(encoding, true), {
      operands: f => ({ t: xd(f.Rt) }),
      undifferentiable: read === 'el1' ? EL_DEPENDS : undefined,
      meaning: (m, o) => {
        m.trapIf(denied(m, read), 'mrs', i32.const(encoding), m.slotOffset(o.t));
        m.setX(o.t, bits === 64 ? m.readState64(offset) : i64.extendI32U(m.readState32(offset)));
      },
    });
  }
  if (write) {
    inst(`MSR ${register}`, pattern(encoding, false), {
      operands: f => ({ t: xr(f.Rt) }),
      undifferentiable: write === 'el1' ? EL_DEPENDS : undefined,
      meaning: (m, o) => {
        m.trapIf(denied(m, write), 'msr', i32.const(encoding), m.slotOffset(o.t));
        m.writeState64(offset, i64.and(m.x(o.t), i64.const(kept)));
      },
    });
  }
}

// Linux reads these before each clearing of a page, each maintenance of caches and at each change of address space. At EL0 the
// value, or whether it can be read, depends on SCTLR_EL1.
for (const register of ['CTR_EL0', 'DCZID_EL0', 'MIDR_EL1'] as const) {
  inst(`MRS ${register}`, pattern(sysreg[register], true), {
    operands: f => ({ t: xd(f.Rt) }),
    undifferentiable: EL_DEPENDS,
    meaning: (m, o) => {
      m.trapIf(denied(m, 'el1'), 'mrs', i32.const(sysreg[register]), m.slotOffset(o.t));
      m.setX(o.t, i64.const(constantSystemRegisters[register]));
    },
  });
}

// Linux reads the counter some ten times for each packet; EL0 may, if CNTKCTL_EL1 says so.
inst('MRS CNTVCT_EL0', pattern(sysreg.CNTVCT_EL0, true), {
  operands: f => ({ t: xd(f.Rt) }),
  undifferentiable: 'its value is the time',
  meaning: (m, o) => {
    const allowed = i32.or(m.readState32(at.el), i32.and(m.readState32(at.cntkctlEl1), i32.const(CNTKCTL_EL0VCTEN)));
    m.trapIf(i32.eqz(allowed), 'mrs', i32.const(sysreg.CNTVCT_EL0), m.slotOffset(o.t));
    m.compute('counter');
    m.setX(o.t, m.scratch(0));
  },
});

// SP_EL0 is storage while SP_EL1 is the stack pointer in use, which is when Linux keeps the current task there.
const spNotSelected = (m: Machine): I32 =>
  i32.or(i32.eqz(m.readState32(at.el)), i32.eqz(m.readState32(at.spSel)));
inst('MRS SP_EL0', pattern(sysreg.SP_EL0, true), {
  operands: f => ({ t: xd(f.Rt) }),
  undifferentiable: EL_DEPENDS,
  meaning: (m, o) => {
    m.trapIf(spNotSelected(m), 'undefined');
    m.setX(o.t, m.readState64(at.spEl0));
  },
});
inst('MSR SP_EL0', pattern(sysreg.SP_EL0, false), {
  operands: f => ({ t: xr(f.Rt) }),
  undifferentiable: EL_DEPENDS,
  meaning: (m, o) => {
    m.trapIf(spNotSelected(m), 'undefined');
    m.writeState64(at.spEl0, m.x(o.t));
  },
});

/** Unmasking with an interrupt waiting goes through the trap, which takes it. */
const DAIF_BITS = 0x3c0;
const IRQ_MASKED = 0x80;
inst('MSR DAIF', pattern(sysreg.DAIF, false), {
  operands: f => ({ t: xr(f.Rt) }),
  undifferentiable: EL_DEPENDS,
  meaning: (m, o) => {
    const daif = m.f.let(i32.and(m.w(o.t), i32.const(DAIF_BITS)));
    const takesInterrupt = i32.and(m.readState32(at.irqLine), i32.eqz(i32.and(daif, i32.const(IRQ_MASKED))));
    m.trapIf(i32.or(i32.eqz(m.readState32(at.el)), takesInterrupt), 'msr', i32.const(sysreg.DAIF), m.slotOffset(o.t));
    m.writeState32(at.daif, daif);
  },
});

export default { name, rows };
