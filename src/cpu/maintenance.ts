// SYS instructions: cache maintenance (IC, DC), TLB invalidation (TLBI), address translation (AT).
//
// There are no caches to keep coherent but the decoded code, so of cache maintenance only IC does anything. DC by
// address still translates, because the guest may rely on the abort. (Where nothing aborts and no code is concerned, emitted
// code does it: emitted-walk.ts.)

import { systemRegister } from '../a64/system-registers.ts';
import { scratchOffset, vcpuRecord } from '../abi/vcpu.ts';
import type { Engine } from './engine.ts';
import { NO_FRAME } from './host.ts';
import { ANY_ASID, FORGET_STAGE_ONE, forgetAddress, forgetAsid } from './tlb-requests.ts';
import { asidOf, flushAddress, flushAll, flushAsid } from './tlb.ts';
import { ACCESS_READ, ACCESS_WRITE } from './translation.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
/** Of CTR_EL0.IminLine. */
const LINE_BYTES = 512;
export const SCTLR_UCI = 1 << 26;
const SCTLR_DZE = 1 << 14;

export type Outcome = 'done' | 'undefined' | 'trapped' | 'aborted';
/** @param low with `high`, the halves of the argument */
type Operation = (vcpu: VcpuState, low: number, high: number) => Outcome;

const sys = (op1: number, crn: number, crm: number, op2: number) => systemRegister(1, op1, crn, crm, op2);
const DC_ZVA = sys(3, 7, 4, 1);
/** Cache maintenance by virtual address. */
export const cacheOperation = {
  IC_IVAU: sys(3, 7, 5, 1), DC_CVAC: sys(3, 7, 10, 1), DC_CVAU: sys(3, 7, 11, 1), DC_CIVAC: sys(3, 7, 14, 1),
} as const;
const { IC_IVAU, DC_CVAC, DC_CVAU, DC_CIVAC } = cacheOperation;

export class Maintenance {
  readonly #engine: Engine;
  readonly #operations: ReadonlyMap<number, Operation>;

  constructor(engine: Engine) {
    this.#engine = engine;
    const nothing: Operation = () => 'done';
    const byAddress: Operation = (vcpu, low, high) => this.#translated(vcpu, low, high, ACCESS_READ) ? 'done' : 'aborted';
    this.#operations = new Map<number, Operation>([
      [sys(0, 7, 1, 0), vcpu => this.#invalidateAllCode(vcpu)], // IC IALLUIS
      [sys(0, 7, 5, 0), vcpu => this.#invalidateAllCode(vcpu)], // IC IALLU
      [IC_IVAU, (vcpu, low, high) => this.#invalidateCode(vcpu, low, high)],
      [sys(0, 7, 6, 1), (vcpu, low, high) => this.#translated(vcpu, low, high, ACCESS_WRITE) ? 'done' : 'aborted'], // DC IVAC
      [DC_CVAC, byAddress], [DC_CVAU, byAddress], [DC_CIVAC, byAddress],
      [sys(0, 7, 6, 2), nothing], [sys(0, 7, 10, 2), nothing], [sys(0, 7, 14, 2), nothing], // DC ISW, CSW, CISW
      [sys(0, 7, 8, 0), (vcpu, low, high) => this.#translate(vcpu, low, high, 1, ACCESS_READ)], // AT S1E1R
      [sys(0, 7, 8, 1), (vcpu, low, high) => this.#translate(vcpu, low, high, 1, ACCESS_WRITE)],
      [sys(0, 7, 8, 2), (vcpu, low, high) => this.#translate(vcpu, low, high, 0, ACCESS_READ)], // AT S1E0R
      [sys(0, 7, 8, 3), (vcpu, low, high) => this.#translate(vcpu, low, high, 0, ACCESS_WRITE)],
    ]);
  }

  /** `aborted`: the address is in scratch word 0, the status in the translation (which may be NO_FRAME). */
  perform(vcpu: VcpuState, operation: number, low: number, high: number): Outcome {
    if (vcpu.el === 0) {
      const op1 = (operation >>> 11) & 7;
      if (op1 !== 3) return 'undefined';
      const enable = operation === DC_ZVA ? SCTLR_DZE : SCTLR_UCI;
      if ((vcpu.get32(at.sctlrEl1) & enable) === 0) return 'trapped';
    }
    const known = this.#operations.get(operation);
    if (known) return known(vcpu, low, high);
    return this.#tlbi(vcpu, operation, low, high);
  }

  #translated(vcpu: VcpuState, low: number, high: number, access: 0 | 1): boolean {
    vcpu.setHalves(scratchOffset(0), low, high);
    return this.#engine.translation.translateIgnoringPan(vcpu, low, high, access, vcpu.el);
  }

  #invalidateCode(vcpu: VcpuState, low: number, high: number): Outcome {
    if (!this.#translated(vcpu, low, high, ACCESS_READ)) return 'aborted';
    const { host, stageTwo, translation, decodeCache } = this.#engine;
    const mfn = stageTwo.frameForRead(vcpu, translation.guestFrame);
    // One that is not there has no code.
    if (mfn > 0) {
      decodeCache.invalidateLine(mfn, low & 0xfff, LINE_BYTES, action => host.whileOthersStopped(vcpu, action));
    }
    return 'done';
  }
  #invalidateAllCode(vcpu: VcpuState): Outcome {
    this.#engine.host.flushDecodeCache(vcpu);
    return 'done';
  }

  /** PAR_EL1: bit 0 says fault, with the status above; else the physical address and memory attributes. */
  #translate(vcpu: VcpuState, low: number, high: number, el: number, access: 0 | 1): Outcome {
    const { translation } = this.#engine;
    if (!translation.translateIgnoringPan(vcpu, low, high, access, el)) {
      if (translation.status === NO_FRAME) return 'aborted';
      vcpu.set64(at.parEl1, BigInt((translation.status << 1) | 1 | 0x800));
    } else {
      const attributes = translation.device ? 0n : 0xffn << 56n;
      vcpu.set64(at.parEl1, (BigInt(translation.guestFrame) << 12n) | 0x800n | attributes);
    }
    return 'done';
  }

  // TLBI: op1 = 0, CRn = 8; CRm = 3 is inner shareable (all vCPUs of the domain), 7 this one.
  #tlbi(vcpu: VcpuState, operation: number, low: number, high: number): Outcome {
    const crm = (operation >>> 3) & 15;
    const op2 = operation & 7;
    if (operation !== sys(0, 8, crm, op2) || (crm !== 3 && crm !== 7) || op2 === 4 || op2 === 6) return 'undefined';
    const field = asidOf(vcpu, high >>> 16);
    if (op2 === 0) { // VMALLE1
      flushAll(vcpu);
      if (crm === 3) this.#engine.host.broadcastTlbInvalidate(vcpu, FORGET_STAGE_ONE, ANY_ASID);
    } else if (op2 === 2) { // ASIDE1
      flushAsid(vcpu, field);
      if (crm === 3) this.#engine.host.broadcastTlbInvalidate(vcpu, forgetAsid(field), field);
    } else { // VAE1, VAAE1, VALE1, VAALE1: the entries of an address, in whatever address space; a superset is allowed.
      // 44 bits are VA[55:12], of which the highest is extended.
      const addressLow = (low << 12) >>> 0;
      const addressHigh = (high << 20 | low >>> 20 << 8) >> 8;
      flushAddress(vcpu, addressLow, addressHigh);
      const asid = op2 === 3 || op2 === 7 ? ANY_ASID : field;
      if (crm === 3) this.#engine.host.broadcastTlbInvalidate(vcpu, forgetAddress(addressLow, addressHigh), asid);
    }
    return 'done';
  }
}
