// The interrupt controller in system registers: ICC_*_EL1 of the vCPU that accesses them (Arm IHI 0069, chapter 12).
// Values go in and out as numbers; only ICC_SGI1R_EL1 uses more than 32 bits.

import { sysreg } from '../a64/system-registers.ts';
import { GIC_SPURIOUS, GIC_VCPU, ICC_CTLR } from '../abi/gic.ts';
import { BPR0_MIN, BPR1_MIN, PRIORITY_MASK } from './gic.ts';
import type { Gic } from './gic.ts';

const V = GIC_VCPU.at;
/** Five bits of priority; sixteen-bit INTIDs; no Aff3, no SEIs. */
const CTLR_FIXED = 4 << ICC_CTLR.priBitsShift;
/** System registers only, no bypass of IRQ and FIQ. */
const SRE = 7;
const INTID_MASK = 0xff_ffff;

export class GicCpuInterface {
  readonly #gic: Gic;

  constructor(gic: Gic) {
    this.#gic = gic;
  }

  /** @returns the value, or undefined when that is no readable register of the interface */
  read(vcpuAddress: number, encoding: number): number | undefined {
    const gic = this.#gic;
    const field = (name: keyof typeof V) => gic.get(gic.vcpuAt(vcpuAddress) + V[name]);
    switch (encoding) {
      case sysreg.ICC_IAR1_EL1: return gic.acknowledge(vcpuAddress);
      case sysreg.ICC_PMR_EL1: return field('pmr');
      case sysreg.ICC_RPR_EL1: return gic.runningPriority(vcpuAddress);
      case sysreg.ICC_HPPIR1_EL1: return gic.highestPending(vcpuAddress);
      case sysreg.ICC_BPR1_EL1: return this.#commonPoint(vcpuAddress) ? Math.min(field('bpr0') + 1, 7) : field('bpr1');
      case sysreg.ICC_CTLR_EL1: return CTLR_FIXED | field('ctlr');
      case sysreg.ICC_SRE_EL1: return SRE;
      case sysreg.ICC_IGRPEN1_EL1: return field('igrpen1');
      case sysreg.ICC_AP1R0_EL1: return field('ap1r0');
      // Group 0 has no interrupts.
      case sysreg.ICC_IAR0_EL1: case sysreg.ICC_HPPIR0_EL1: return GIC_SPURIOUS;
      case sysreg.ICC_BPR0_EL1: return field('bpr0');
      case sysreg.ICC_AP0R0_EL1: return field('ap0r0');
      case sysreg.ICC_IGRPEN0_EL1: return field('igrpen0');
      default: return undefined;
    }
  }

  /** @param low bits 0-31 of the value, @param high bits 32-63. @returns false: no such writable register */
  write(vcpuAddress: number, encoding: number, low: number, high: number): boolean {
    const gic = this.#gic;
    switch (encoding) {
      case sysreg.ICC_EOIR1_EL1: gic.endOfInterrupt(vcpuAddress, low & INTID_MASK); return true;
      case sysreg.ICC_DIR_EL1: gic.deactivate(vcpuAddress, low & INTID_MASK); return true;
      case sysreg.ICC_SGI1R_EL1: gic.sendSgi(vcpuAddress, low, high); return true;
      case sysreg.ICC_PMR_EL1: return this.#set(vcpuAddress, 'pmr', low & PRIORITY_MASK);
      case sysreg.ICC_BPR1_EL1:
        return this.#commonPoint(vcpuAddress) || this.#set(vcpuAddress, 'bpr1', Math.max(low & 7, BPR1_MIN));
      case sysreg.ICC_CTLR_EL1: return this.#set(vcpuAddress, 'ctlr', low & (ICC_CTLR.cbpr | ICC_CTLR.eoiMode));
      case sysreg.ICC_IGRPEN1_EL1: return this.#set(vcpuAddress, 'igrpen1', low & 1);
      case sysreg.ICC_AP1R0_EL1: return this.#set(vcpuAddress, 'ap1r0', low);
      case sysreg.ICC_BPR0_EL1: return this.#set(vcpuAddress, 'bpr0', Math.max(low & 7, BPR0_MIN));
      case sysreg.ICC_AP0R0_EL1: return this.#set(vcpuAddress, 'ap0r0', low);
      case sysreg.ICC_IGRPEN0_EL1: return this.#set(vcpuAddress, 'igrpen0', low & 1);
      // SGIs of other groups have no target here; there is no interrupt of Group 0 to end.
      case sysreg.ICC_SRE_EL1: case sysreg.ICC_EOIR0_EL1: case sysreg.ICC_SGI0R_EL1: case sysreg.ICC_ASGI1R_EL1:
        return true;
      default: return false;
    }
  }

  /** ICC_CTLR_EL1.CBPR: both groups use the binary point of Group 0. */
  #commonPoint(vcpuAddress: number): boolean {
    return (this.#gic.get(this.#gic.vcpuAt(vcpuAddress) + V.ctlr) & ICC_CTLR.cbpr) !== 0;
  }

  #set(vcpuAddress: number, field: keyof typeof V, value: number): true {
    const domain = this.#gic.domainOf(vcpuAddress);
    this.#gic.lock(domain);
    this.#gic.set(this.#gic.vcpuAt(vcpuAddress) + V[field], value);
    this.#gic.evaluate(vcpuAddress);
    this.#gic.unlock(domain);
    return true;
  }
}
