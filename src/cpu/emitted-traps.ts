// Exceptions to EL1 and the return from them in emitted code: the ordinary cases of what traps.ts, exceptions.ts and engine.ts
// do, without a call into TypeScript. A system call or a page fault costs a guest's kernel a few hundred instructions, so what
// surrounds them counts.
//
//   SVC, ERET, MSR DAIFClr, MSR TTBR<n>_EL1:  the handler has saved record and fuel ─► trap here ─► resume
//   aborts that a walk has found:              slow access, jump                    ─► here      ─► resume
//
// Whatever is not ordinary is left alone, with nothing done, and TypeScript decides: an illegal return, an interrupt that a
// return unmasks, TLB entries that PSTATE.PAN makes void, code at the target that the exec TLB cannot find.

import { sysreg } from '../a64/system-registers.ts';
import { DAIF_CLR, DAIF_SHIFT } from '../a64/slow.ts';
import type { TrapName } from '../a64/slow.ts';
import { RECORD_BYTES, SP_SLOT } from '../a64/operand.ts';
import {
  LINE_BYTES, TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_SET_BYTES, VICTIM_BYTES, linesInUseOffset, tlbCoverage, tlbCoverageOffset, tlbEntry,
  tlbOffsets, vcpuRecord, victimsOffset, xOffset,
} from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import type { Callable, FunctionBuilder } from '../wasm/function.ts';
import type { ModuleBuilder } from '../wasm/module.ts';
import { i32, i64 } from '../wasm/scalar.ts';
import type { I32, I64 } from '../wasm/types.ts';
import { trapSignature } from './emitted-calls.ts';
import { FAULT_ANSWERS, emitCount, emitEmptyLine } from './emitted-walk.ts';
import {
  DAIF_ALL, PSTATE_PAN, SCTLR_SPAN, SPSR_IL, exceptionClass, irqVector, syndrome, vectorOffset,
} from './exceptions.ts';
import { TCR_A1, TCR_AS } from './tlb.ts';

const at = vcpuRecord.at;
const coverage = (field: keyof typeof tlbCoverage.at): number => tlbCoverageOffset + tlbCoverage.at[field];
const IRQ_MASKED = 0x80;
const ISS_WNR = 1 << 6;
const VBAR_BASE = ~0x7ffn;
const NZCV_SHIFT = 28;
const ASID_SHIFT = 48n;

assert(at.spEl1 === at.spEl0 + 8, 'the banked stack pointers lie side by side');
assert(at.ttbr1El1 === at.ttbr0El1 + 8, 'the translation table registers lie side by side');

export interface EmittedTraps {
  /** Those that emitted code calls; all others are the imports themselves. Record and fuel are in the vCPU record. */
  readonly traps: Readonly<Record<TrapName, Callable>>;
  /** (vCPU, va, status, is write) → 1: the data abort is taken, and `abort` is set. Likewise. */
  readonly dataAbort: Callable;
  /** (vCPU, va, status) → 1: what branches to the address has retired, and the instruction abort is taken. Likewise. */
  readonly instructionAbort: Callable;
}

/** @param imports the traps in TypeScript */
export function emitTraps(module: ModuleBuilder, imports: Readonly<Record<TrapName, Callable>>, fillExec: Callable): EmittedTraps {
  const enter = emitEnter(module, fillExec);
  const take = emitTake(module, enter);
  return {
    traps: {
      ...imports,
      svc: emitSvc(module, take, imports.svc),
      eret: emitEret(module, enter, imports.eret),
      msrImmediate: emitUnmask(module, take, imports.msrImmediate),
      msr: emitMsr(module, imports.msr),
    },
    dataAbort: emitDataAbort(module, take),
    instructionAbort: emitInstructionAbort(module, take),
  };
}

function giveUpIf(f: FunctionBuilder, condition: I32): void {
  f.if(condition, () => f.return(i32.const(0)), undefined, 'unlikely');
}

const bits = (value: I32, shift: number, mask: number): I32 => i32.and(i32.shrU(value, i32.const(shift)), i32.const(mask));

/** Fuel left, as `fuel` in the vCPU record is outside of code, when the current instruction has been paid for. */
const leftBehind = (vcpu: I32): I32 =>
  i32.sub(i32.sub(i32.load(vcpu, at.fuel), i32.load(vcpu, at.record)), i32.const(RECORD_BYTES));
const pcOf = (vcpu: I32): I64 =>
  i64.add(i64.load(vcpu, at.pcBase), i64.extendI32U(i32.shrU(i32.load(vcpu, at.record), i32.const(2))));

// ---- PSTATE

/** N, Z, C, V as in SPSR. */
function recordedNzcv(vcpu: I32): I32 {
  const n = i32.shl(i32.shrU(i32.load(vcpu, at.flagN + 4), i32.const(31)), i32.const(31));
  const z = i32.shl(i64.eqz(i64.load(vcpu, at.flagZ)), i32.const(30));
  const c = i32.shl(i32.load(vcpu, at.flagC), i32.const(29));
  const v = i32.shl(i32.shrU(i32.load(vcpu, at.flagV), i32.const(31)), i32.const(NZCV_SHIFT));
  return i32.or(i32.or(n, z), i32.or(c, v));
}
function restoreNzcv(f: FunctionBuilder, vcpu: I32, spsr: I32): void {
  f.do(i64.store(vcpu, i64.shl(i64.extendI32U(i32.and(spsr, i32.const(1 << 31))), i64.const(32)), at.flagN));
  f.do(i64.store(vcpu, i64.extendI32U(i32.eqz(bits(spsr, 30, 1))), at.flagZ));
  f.do(i32.store(vcpu, bits(spsr, 29, 1), at.flagC));
  f.do(i32.store(vcpu, i32.and(i32.shl(spsr, i32.const(3)), i32.const(1 << 31)), at.flagV));
}

const bankOf = (vcpu: I32, spSel: I32): I32 => i32.add(vcpu, i32.shl(spSel, i32.const(3)));

/** As `saveSp` in vcpu-state.ts. */
function saveSp(f: FunctionBuilder, vcpu: I32): void {
  f.do(i64.store(bankOf(vcpu, i32.load(vcpu, at.spSel)), i64.load(vcpu, xOffset(SP_SLOT)), at.spEl0));
}

/** As `enterEl` in vcpu-state.ts. @param el pinned or constant, as `spSel` */
function enterEl(f: FunctionBuilder, vcpu: I32, el: I32, spSel: I32): void {
  f.do(i32.store(vcpu, el, at.el));
  f.do(i32.store(vcpu, spSel, at.spSel));
  f.do(i64.store(vcpu, i64.load(bankOf(vcpu, spSel), at.spEl0), xOffset(SP_SLOT)));
  const set = f.let(i32.add(vcpu, i32.mul(el, i32.const(TLB_SET_BYTES))));
  for (const [field, tlb] of [['tlbRead', 'read'], ['tlbWrite', 'write'], ['tlbExec', 'exec']] as const) {
    f.do(i32.store(vcpu, i32.add(set, i32.const(tlbOffsets[0][tlb])), at[field]));
  }
  // CPACR_EL1.FPEN: 0b01 traps EL0, 0b11 neither, else both.
  const fpen = f.let(bits(i32.load(vcpu, at.cpacrEl1), 20, 3));
  const isOff = i32.or(i32.eqz(i32.and(fpen, i32.const(1))), i32.eqz(i32.or(el, bits(fpen, 1, 1))));
  f.do(i32.store(vcpu, isOff, at.fpTrap));
  // SCTLR_EL1.SA and SA0: bits 3 and 4.
  const isChecked = i32.and(i32.shrU(i32.load(vcpu, at.sctlrEl1), i32.sub(i32.const(4), el)), i32.const(1));
  f.do(i32.store(vcpu, i32.mul(isChecked, i32.const(15)), at.spAlignmentMask));
}

// ---- the way into code

/**
 * (vCPU, va, fuel left): to an address, from out of code. Where its code is not in the exec TLB, or the run is to end, the
 * vCPU stays out of code before it.
 */
function emitEnter(module: ModuleBuilder, fillExec: Callable): Callable {
  const f = module.function({ params: ['i32', 'i64', 'i32'], results: [] });
  const vcpu = f.param(0, 'i32');
  const va = f.param(1, 'i64');
  const left = f.param(2, 'i32');
  const entry = f.local('i32');
  f.set(entry, i32.const(0));
  // With no fuel left it is still told where it stops, or what is only reached in this way would never be found hot.
  f.if(i32.eqz(i32.atomicLoad(vcpu, at.pending)), () => {
    const index = i32.and(i32.shrU(i32.wrapI64(va), i32.const(8)), i32.const((TLB_ENTRIES - 1) * TLB_ENTRY_BYTES));
    f.set(entry, i32.add(index, i32.load(vcpu, at.tlbExec)));
    f.if(i64.ne(i64.load(entry, tlbEntry.at.tag), i64.and(va, i64.const(~0xffcn))),
      () => f.set(entry, f.callExpr('i32', fillExec, vcpu, va)), undefined, 'unlikely');
  });
  f.if(i32.leU(entry, i32.const(FAULT_ANSWERS)), () => {
    f.do(i64.store(vcpu, va, at.pcBase));
    f.do(i32.store(vcpu, i32.const(0), at.record));
    f.do(i32.store(vcpu, left, at.fuel));
    f.return();
  }, undefined, 'unlikely');
  const slot = f.let(i32.load(entry, tlbEntry.at.target));
  const record = f.let(i32.add(slot, i32.shl(i32.and(i32.wrapI64(va), i32.const(0xffc)), i32.const(2))));
  f.do(i64.store(vcpu, i64.sub(i64.and(va, i64.const(~0xfffn)), i64.extendI32U(i32.shrU(slot, i32.const(2)))), at.pcBase));
  f.do(i32.store(vcpu, record, at.record));
  f.do(i32.store(vcpu, i32.add(left, record), at.fuel));
  return f;
}

// ---- taking an exception

/**
 * (vCPU, ESR, return address, fuel left, 0 or `irqVector`) → 1: it is taken, as by `takeException` in exceptions.ts; 0: nothing
 * is done. For an interrupt there is no ESR.
 */
function emitTake(module: ModuleBuilder, enter: Callable): Callable {
  const f = module.function({ params: ['i32', 'i32', 'i64', 'i32', 'i32'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const spans = f.let(i32.and(i32.load(vcpu, at.sctlrEl1), i32.const(SCTLR_SPAN)));
  giveUpIf(f, i32.and(i32.eqz(spans), i32.load(vcpu, coverage('userEntriesAtEl1'))));
  const el = f.let(i32.load(vcpu, at.el));
  const spSel = f.let(i32.load(vcpu, at.spSel));
  // EL0t is 0, EL1t and EL1h 4 and 5.
  const mode = i32.mul(el, i32.or(spSel, i32.const(4)));
  const saved = i32.or(i32.or(recordedNzcv(vcpu), i32.load(vcpu, at.daif)),
    i32.or(i32.or(i32.load(vcpu, at.pan), i32.load(vcpu, at.pstateRest)), mode));
  f.do(i64.store(vcpu, i64.extendI32U(saved), at.spsrEl1));
  f.do(i64.store(vcpu, f.param(2, 'i64'), at.elrEl1));
  const kind = f.param(4, 'i32');
  f.if(i32.eqz(kind), () => f.do(i64.store(vcpu, i64.extendI32U(f.param(1, 'i32')), at.esrEl1)));
  saveSp(f, vcpu);
  enterEl(f, vcpu, i32.const(1), i32.const(1));
  f.do(i32.store(vcpu, i32.const(DAIF_ALL), at.daif));
  f.do(i32.store(vcpu, i32.const(0), at.pstateRest));
  f.if(i32.eqz(spans), () => f.do(i32.store(vcpu, i32.const(PSTATE_PAN), at.pan)));
  const { currentSp0, current, lower } = vectorOffset;
  assert(currentSp0 === 0, 'the first vectors are those of SP_EL0');
  const offset = f.local('i32');
  f.if(el, () => f.set(offset, i32.mul(spSel, i32.const(current))), () => f.set(offset, i32.const(lower)));
  const vector = i64.add(i64.and(i64.load(vcpu, at.vbarEl1), i64.const(VBAR_BASE)), i64.extendI32U(i32.add(offset, kind)));
  f.call(enter, vcpu, vector, f.param(3, 'i32'));
  f.push(i32.const(1));
  return f;
}

function emitSvc(module: ModuleBuilder, take: Callable, inTypeScript: Callable): Callable {
  const f = module.function(trapSignature);
  const vcpu = f.param(0, 'i32');
  const esr = i32.or(f.param(1, 'i32'), i32.const(syndrome(exceptionClass.svc64, 0) | 0));
  const next = i64.add(pcOf(vcpu), i64.const(4));
  f.if(i32.eqz(f.callExpr('i32', take, vcpu, esr, next, leftBehind(vcpu), i32.const(0))), () => passOn(f, inTypeScript), undefined, 'unlikely');
  return f;
}
function passOn(f: FunctionBuilder, trap: Callable): void {
  f.call(trap, ...trapSignature.params.map((_, i) => f.param(i, 'i32')));
}

/** MSR DAIFClr while there is an interrupt: if it is unmasked by that, it is taken. */
function emitUnmask(module: ModuleBuilder, take: Callable, inTypeScript: Callable): Callable {
  const f = module.function(trapSignature);
  const vcpu = f.param(0, 'i32');
  const isOrdinary = i32.and(i32.eq(f.param(1, 'i32'), i32.const(DAIF_CLR)), i32.load(vcpu, at.el));
  f.if(i32.eqz(isOrdinary), () => {
    passOn(f, inTypeScript);
    f.return();
  }, undefined, 'unlikely');
  const before = f.let(i32.load(vcpu, at.daif));
  const daif = f.let(i32.and(before, i32.xor(i32.shl(f.param(2, 'i32'), i32.const(DAIF_SHIFT)), i32.const(-1))));
  f.do(i32.store(vcpu, daif, at.daif));
  const isDue = i32.and(i32.ne(i32.load(vcpu, at.irqLine), i32.const(0)), i32.eqz(i32.and(daif, i32.const(IRQ_MASKED))));
  f.if(isDue, () => {
    const next = i64.add(pcOf(vcpu), i64.const(4));
    const taken = f.callExpr('i32', take, vcpu, i32.const(0), next, leftBehind(vcpu), i32.const(irqVector));
    f.if(i32.eqz(taken), () => {
      f.do(i32.store(vcpu, before, at.daif));
      passOn(f, inTypeScript);
    }, undefined, 'unlikely');
  }, () => f.do(i32.store(vcpu, i32.add(i32.load(vcpu, at.record), i32.const(RECORD_BYTES)), at.record)));
  return f;
}

/** The exception class from EL0 is one less than that from EL1. */
const abortSyndrome = (vcpu: I32, classAtEl0: number, iss: I32): I32 =>
  i32.or(i32.add(i32.const(syndrome(classAtEl0, 0) | 0), i32.shl(i32.load(vcpu, at.el), i32.const(26))), iss);

function emitDataAbort(module: ModuleBuilder, take: Callable): Callable {
  const f = module.function({ params: ['i32', 'i64', 'i32', 'i32'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const iss = i32.or(f.param(2, 'i32'), i32.mul(f.param(3, 'i32'), i32.const(ISS_WNR)));
  const esr = abortSyndrome(vcpu, exceptionClass.dataAbortLower, iss);
  giveUpIf(f, i32.eqz(f.callExpr('i32', take, vcpu, esr, pcOf(vcpu), leftBehind(vcpu), i32.const(0))));
  // Nothing was retired for the fuel.
  f.do(i32.store(vcpu, i32.add(i32.load(vcpu, at.charged), i32.const(1)), at.charged));
  f.do(i64.store(vcpu, f.param(1, 'i64'), at.farEl1));
  emitCount(f, vcpu);
  f.do(i32.store(vcpu, i32.const(1), at.abort));
  f.push(i32.const(1));
  return f;
}

function emitInstructionAbort(module: ModuleBuilder, take: Callable): Callable {
  const f = module.function({ params: ['i32', 'i64', 'i32'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const va = f.param(1, 'i64');
  const esr = abortSyndrome(vcpu, exceptionClass.instructionAbortLower, f.param(2, 'i32'));
  giveUpIf(f, i32.eqz(f.callExpr('i32', take, vcpu, esr, va, leftBehind(vcpu), i32.const(0))));
  f.do(i64.store(vcpu, va, at.farEl1));
  emitCount(f, vcpu);
  f.push(i32.const(1));
  return f;
}

// ---- returning from one

/** As `exceptionReturn` in exceptions.ts. */
function emitEret(module: ModuleBuilder, enter: Callable, inTypeScript: Callable): Callable {
  const f = module.function(trapSignature);
  const vcpu = f.param(0, 'i32');
  const spsr = f.let(i32.load(vcpu, at.spsrEl1));
  const mode = f.let(i32.and(spsr, i32.const(0x1f)));
  const isLegal = i32.or(i32.eqz(mode), i32.eq(i32.and(mode, i32.const(0x1e)), i32.const(4)));
  const unmasks = i32.and(i32.ne(i32.load(vcpu, at.irqLine), i32.const(0)), i32.eqz(i32.and(spsr, i32.const(IRQ_MASKED))));
  const voids = i32.and(bits(spsr, Math.log2(PSTATE_PAN), 1), i32.load(vcpu, coverage('userEntriesAtEl1')));
  f.if(i32.or(i32.or(i32.eqz(isLegal), i32.and(spsr, i32.const(SPSR_IL))), i32.or(unmasks, voids)), () => {
    passOn(f, inTypeScript);
    f.return();
  }, undefined, 'unlikely');
  saveSp(f, vcpu);
  restoreNzcv(f, vcpu, spsr);
  f.do(i32.store(vcpu, i32.and(spsr, i32.const(DAIF_ALL)), at.daif));
  f.do(i32.store(vcpu, i32.and(spsr, i32.const(PSTATE_PAN)), at.pan));
  f.do(i32.store(vcpu, i32.const(0), at.pstateRest));
  enterEl(f, vcpu, f.let(bits(mode, 2, 1)), f.let(i32.and(mode, i32.const(1))));
  f.do(i64.store(vcpu, i64.const(-1n), at.exclusiveAddress));
  f.call(enter, vcpu, i64.load(vcpu, at.elrEl1), leftBehind(vcpu));
  return f;
}

// ---- another address space

/** The lines in use of EL0's TLBs, which have the first bits, and their victims. */
function emitEmptyEl0(f: FunctionBuilder, vcpu: I32): void {
  const reach = 32 * LINE_BYTES;
  const word = f.local('i32');
  const first = f.local('i32');
  const left = f.local('i32');
  f.set(word, vcpu);
  f.set(first, i32.add(vcpu, i32.const(tlbOffsets[0].read)));
  const end = f.let(i32.add(first, i32.const(TLB_SET_BYTES)));
  f.loop(nextWord => {
    f.set(left, i32.load(word, linesInUseOffset));
    f.if(left, () => {
      f.do(i32.store(word, i32.const(0), linesInUseOffset));
      f.loop(nextLine => {
        emitEmptyLine(f, f.let(i32.add(first, i32.shl(i32.ctz(left), i32.const(Math.log2(LINE_BYTES))))));
        f.set(left, i32.and(left, i32.sub(left, i32.const(1))));
        f.if(left, () => f.br(nextLine));
      });
    });
    f.set(word, i32.add(word, i32.const(4)));
    f.set(first, i32.add(first, i32.const(reach)));
    f.if(i32.ne(first, end), () => f.br(nextWord));
  });
  for (let offset = 0; offset < 3 * VICTIM_BYTES; offset += LINE_BYTES) {
    emitEmptyLine(f, f.let(i32.add(vcpu, i32.const(victimsOffset + offset))));
  }
}

/** MSR TTBR0_EL1 and TTBR1_EL1, as `updateAsid` in tlb.ts where EL0's TLBs have all that goes with a change of ASID. */
function emitMsr(module: ModuleBuilder, inTypeScript: Callable): Callable {
  const f = module.function(trapSignature);
  const vcpu = f.param(0, 'i32');
  const encoding = f.param(1, 'i32');
  const isTtbr1 = f.let(i32.eq(encoding, i32.const(sysreg.TTBR1_EL1)));
  const isTtbr = i32.or(isTtbr1, i32.eq(encoding, i32.const(sysreg.TTBR0_EL1)));
  const elsewhere = i32.or(i32.load(vcpu, coverage('notGlobalInUpperHalf')), i32.load(vcpu, coverage('lowerHalfAtEl1')));
  f.if(i32.or(i32.eqz(i32.and(isTtbr, i32.load(vcpu, at.el))), elsewhere), () => {
    passOn(f, inTypeScript);
    f.return();
  });
  const value = f.let(i64.load(i32.add(vcpu, f.param(2, 'i32'))));
  f.do(i64.store(i32.add(vcpu, i32.shl(isTtbr1, i32.const(3))), value, at.ttbr0El1));
  const tcr = f.let(i64.load(vcpu, at.tcrEl1));
  const selected = i32.and(i32.wrapI64(i64.shrU(tcr, i64.const(Math.log2(TCR_A1)))), i32.const(1));
  f.if(i32.eq(selected, isTtbr1), () => {
    const sixteen = bits(i32.wrapI64(i64.shrU(tcr, i64.const(32))), Math.log2(TCR_AS), 1);
    const mask = i32.or(i32.const(0xff), i32.mul(sixteen, i32.const(0xff00)));
    const asid = f.let(i32.and(i32.wrapI64(i64.shrU(value, i64.const(ASID_SHIFT))), mask));
    f.if(i32.ne(asid, i32.load(vcpu, coverage('asid'))), () => {
      emitEmptyEl0(f, vcpu);
      f.do(i32.store(vcpu, i32.const(0), coverage('globalInLowerHalf')));
      f.do(i32.atomicStore(vcpu, asid, coverage('asid')));
    });
  });
  f.do(i32.store(vcpu, i32.add(i32.load(vcpu, at.record), i32.const(RECORD_BYTES)), at.record));
  return f;
}
