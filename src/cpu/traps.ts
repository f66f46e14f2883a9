// Instructions that end in TypeScript (a64/slow.ts: trapNames): exceptions, system registers, maintenance, waiting.

import { sysreg } from '../a64/system-registers.ts';
import { DAIF_CLR, DAIF_SET, DAIF_SHIFT } from '../a64/slow.ts';
import type { TrapName } from '../a64/slow.ts';
import { scratchOffset, vcpuRecord } from '../abi/vcpu.ts';
import type { EmittedCallHandlers } from './emitted-calls.ts';
import type { Engine } from './engine.ts';
import { exceptionClass, exceptionReturn, faultStatus, syndrome } from './exceptions.ts';
import { NO_FRAME } from './host.ts';
import { Maintenance } from './maintenance.ts';
import { selectSp, systemRegisters } from './system-registers.ts';
import { setPan } from './tlb.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
const SCTLR_NTWI = 1 << 16;
const SCTLR_NTWE = 1 << 18;
const SCTLR_UMA = 1 << 9;
const CNTKCTL_EL0PCTEN = 1;
const CNTKCTL_EL0VCTEN = 2;
const CNTKCTL_EL0VTEN = 0x100;
const CNTKCTL_EL0PTEN = 0x200;
const ISS_WFE = 1;
/** ISS of an access to SIMD&FP registers: condition "always", as for A64. */
const ISS_FP_ACCESS = 0x1e << 20;

type Handler = (vcpu: VcpuState, a: number, b: number) => void;

export class TrapHandlers {
  readonly #engine: Engine;
  readonly #maintenance: Maintenance;

  constructor(engine: Engine) {
    this.#engine = engine;
    this.#maintenance = new Maintenance(engine);
  }

  table(): EmittedCallHandlers['traps'] {
    const e = this.#engine;
    const handlers: Record<TrapName, Handler> = {
      undefined: vcpu => this.#undefined(vcpu),
      fpDisabled: vcpu => e.fault(vcpu, syndrome(exceptionClass.fpAccess, ISS_FP_ACCESS)),
      spAlignment: vcpu => e.fault(vcpu, syndrome(exceptionClass.spAlignment, 0)),
      svc: (vcpu, immediate) => e.fault(vcpu, syndrome(exceptionClass.svc64, immediate), 4n),
      hvc: (vcpu, immediate) => this.#hvc(vcpu, immediate),
      // There is no EL3.
      smc: vcpu => this.#undefined(vcpu),
      brk: (vcpu, immediate) => e.fault(vcpu, syndrome(exceptionClass.brk64, immediate)),
      // Halting debug is not enabled.
      hlt: vcpu => this.#undefined(vcpu),
      eret: vcpu => e.jump(vcpu, exceptionReturn(vcpu)),
      mrs: (vcpu, encoding, slot) => this.#mrs(vcpu, encoding, slot),
      msr: (vcpu, encoding, slot) => this.#msr(vcpu, encoding, slot),
      msrImmediate: (vcpu, field, immediate) => this.#msrImmediate(vcpu, field, immediate),
      sys: (vcpu, operation, slot) => this.#sys(vcpu, operation, slot),
      sysl: vcpu => this.#undefined(vcpu),
      wfi: vcpu => this.#wfi(vcpu),
      wfe: vcpu => this.#wait(vcpu, SCTLR_NTWE, ISS_WFE, () => this.#yield(vcpu)),
      yield: vcpu => this.#yield(vcpu),
    };
    return Object.fromEntries(Object.entries(handlers).map(([name, handler]) =>
      [name, (address: number, a: number, b: number) => handler(e.vcpu(address), a, b)])) as unknown as EmittedCallHandlers['traps'];
  }

  #undefined(vcpu: VcpuState): void {
    this.#engine.fault(vcpu, syndrome(exceptionClass.unknown, 0));
  }

  #hvc(vcpu: VcpuState, immediate: number): void {
    const { host, data } = this.#engine;
    data.beginHypercall();
    const isServed = host.hvc(vcpu, immediate);
    if (data.mustRetry) return this.#engine.stopBefore(vcpu, 'noFrame');
    if (!isServed) return this.#undefined(vcpu);
    this.#engine.advance(vcpu);
  }

  // ---- system registers

  /** ISS of a trapped MRS or MSR (Arm ARM: EC 0x18). */
  #trapRegister(vcpu: VcpuState, encoding: number, slot: number, isRead: number): void {
    const rt = Math.min((slot - at.x) / 8, 31);
    const op0 = encoding >>> 14;
    const op1 = (encoding >>> 11) & 7;
    const crn = (encoding >>> 7) & 15;
    const crm = (encoding >>> 3) & 15;
    const iss = (op0 << 20) | ((encoding & 7) << 17) | (op1 << 14) | (crn << 10) | (rt << 5) | (crm << 1) | isRead;
    this.#engine.fault(vcpu, syndrome(exceptionClass.systemRegister, iss));
  }

  /** Whether EL0 may use a timer register, by CNTKCTL_EL1. */
  #timerAllowed(vcpu: VcpuState, encoding: number): boolean {
    if (vcpu.el !== 0) return true;
    const enabled = vcpu.get32(at.cntkctlEl1);
    if (encoding === sysreg.CNTFRQ_EL0) return (enabled & (CNTKCTL_EL0PCTEN | CNTKCTL_EL0VCTEN)) !== 0;
    if (encoding === sysreg.CNTPCT_EL0) return (enabled & CNTKCTL_EL0PCTEN) !== 0;
    if (encoding === sysreg.CNTVCT_EL0) return (enabled & CNTKCTL_EL0VCTEN) !== 0;
    return (enabled & (((encoding >>> 3) & 15) === 2 ? CNTKCTL_EL0PTEN : CNTKCTL_EL0VTEN)) !== 0;
  }
  /** Register encodings of the generic timer at EL0: op0 3, op1 3, CRn 14. */
  static #isTimer(encoding: number): boolean {
    return encoding >>> 7 === sysreg.CNTFRQ_EL0 >>> 7;
  }

  #mrs(vcpu: VcpuState, encoding: number, slot: number): void {
    const own = systemRegisters.get(encoding);
    if (own?.read) {
      if (vcpu.el === 0 && !own.readEl?.(vcpu)) {
        // Identification registers are UNDEFINED at EL0; the controllable ones are trapped.
        return own.readEl ? this.#trapRegister(vcpu, encoding, slot, 1) : this.#undefined(vcpu);
      }
      vcpu.set64(slot, own.read(vcpu));
      return this.#engine.advance(vcpu);
    }
    const isTimer = TrapHandlers.#isTimer(encoding);
    if (isTimer && !this.#timerAllowed(vcpu, encoding)) return this.#trapRegister(vcpu, encoding, slot, 1);
    if (!(isTimer || vcpu.el > 0) || !this.#engine.host.readSystemRegister(vcpu, encoding, slot)) {
      return this.#unknownRegister(vcpu);
    }
    this.#engine.advance(vcpu);
  }

  #msr(vcpu: VcpuState, encoding: number, slot: number): void {
    const own = systemRegisters.get(encoding);
    if (own?.write) {
      if (vcpu.el === 0 && !own.writeEl?.(vcpu)) {
        return own.writeEl ? this.#trapRegister(vcpu, encoding, slot, 0) : this.#undefined(vcpu);
      }
      own.write(vcpu, vcpu.get64(slot));
      return this.#afterUnmasking(vcpu);
    }
    const isTimer = TrapHandlers.#isTimer(encoding);
    if (isTimer && !this.#timerAllowed(vcpu, encoding)) return this.#trapRegister(vcpu, encoding, slot, 0);
    if (!(isTimer || vcpu.el > 0) || !this.#engine.host.writeSystemRegister(vcpu, encoding, slot)) {
      return this.#unknownRegister(vcpu);
    }
    this.#afterUnmasking(vcpu);
  }

  #unknownRegister(vcpu: VcpuState): void {
    vcpu.set64(at.unknownSystemRegisters, vcpu.get64(at.unknownSystemRegisters) + 1n);
    this.#undefined(vcpu);
  }

  /** The end of an instruction that may have unmasked interrupts. */
  #afterUnmasking(vcpu: VcpuState): void {
    const e = this.#engine;
    if (e.interruptDue(vcpu) && !e.exitRequested) e.jump(vcpu, BigInt.asUintN(64, vcpu.pc() + 4n));
    else e.advance(vcpu);
  }

  #msrImmediate(vcpu: VcpuState, field: number, immediate: number): void {
    const isDaif = field === DAIF_SET || field === DAIF_CLR;
    if (vcpu.el === 0 && isDaif && (vcpu.get32(at.sctlrEl1) & SCTLR_UMA) === 0) {
      const encoding = (3 << 11) | (4 << 7) | (immediate << 3) | (field & 7);
      return this.#trapRegister(vcpu, encoding, at.x + 8 * 31, 0);
    }
    if (vcpu.el === 0 && !isDaif) return this.#undefined(vcpu);
    switch (field) {
      case 0b000_100: setPan(vcpu, (immediate & 1) !== 0); break;
      case 0b000_101: selectSp(vcpu, immediate & 1); break;
      case DAIF_SET: vcpu.set32(at.daif, vcpu.get32(at.daif) | (immediate << DAIF_SHIFT)); break;
      case DAIF_CLR: vcpu.set32(at.daif, vcpu.get32(at.daif) & ~(immediate << DAIF_SHIFT)); break;
      default: return this.#undefined(vcpu);
    }
    this.#afterUnmasking(vcpu);
  }

  #sys(vcpu: VcpuState, operation: number, slot: number): void {
    const outcome = this.#maintenance.perform(vcpu, operation, vcpu.get32(slot), vcpu.get32(slot + 4));
    if (outcome === 'undefined') return this.#undefined(vcpu);
    if (outcome === 'trapped') return this.#trapRegister(vcpu, operation, slot, 0);
    if (outcome === 'aborted') return this.#cacheAbort(vcpu);
    this.#engine.advance(vcpu);
  }
  /** Cache maintenance by address aborts as a write with ISS.CM set; Maintenance has left FAR and the status. */
  #cacheAbort(vcpu: VcpuState): void {
    const { status } = this.#engine.translation;
    if (status === NO_FRAME) return this.#engine.stopBefore(vcpu, 'noFrame');
    const ec = vcpu.el === 0 ? exceptionClass.dataAbortLower : exceptionClass.dataAbort;
    vcpu.copy64(at.farEl1, scratchOffset(0));
    this.#engine.fault(vcpu, syndrome(ec, (1 << 8) | (1 << 6) | (status || faultStatus.translation)));
  }

  // ---- waiting

  #wait(vcpu: VcpuState, notTrapped: number, iss: number, wait: () => void): void {
    if (vcpu.el === 0 && (vcpu.get32(at.sctlrEl1) & notTrapped) === 0) {
      return this.#engine.fault(vcpu, syndrome(exceptionClass.wfxTrap, ISS_FP_ACCESS | iss));
    }
    wait();
  }
  #wfi(vcpu: VcpuState): void {
    this.#wait(vcpu, SCTLR_NTWI, 0, () => {
      if (Atomics.load(vcpu.u32, (vcpu.address + at.irqLine) / 4) === 0) this.#engine.requestExit('wfi');
      this.#engine.advance(vcpu);
    });
  }
  /** A vCPU that spins lets others run. */
  #yield(vcpu: VcpuState): void {
    this.#engine.requestExit('slice');
    this.#engine.advance(vcpu);
  }
}
