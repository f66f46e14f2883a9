// The interrupt controller in the guest's physical memory: one distributor and a redistributor for each vCPU (Arm IHI
// 0069, chapter 12). Registers are words: a doubleword is two of them, and a byte is a part of one that may be
// written only where the architecture says so (priorities). What is reserved reads as zero and ignores writes.

import {
  GICD, GICD_CTLR, GICR, GICR_WAKER, GIC_DOMAIN, GIC_FIRST_SPI, GIC_INTIDS, GIC_VCPU, GIC_WORDS, affinityOfVcpu,
} from '../abi/gic.ts';
import { scratchOffset } from '../abi/vcpu.ts';
import {
  GUEST_GICV3_GICD_BASE, GUEST_GICV3_GICD_SIZE, GUEST_GICV3_GICR0_BASE, GUEST_GICV3_GICR_STRIDE,
} from '../abi/xen.ts';
import { PRIORITY_MASK } from './gic.ts';
import type { Gic, IntidBits } from './gic.ts';

const D = GIC_DOMAIN.at;
const V = GIC_VCPU.at;
const FRAME_BYTES = 0x1_0000;
/** ITLinesNumber; 10 bits of INTID; no 1-of-N routing, no LPIs, one security state. */
const TYPER = (GIC_WORDS - 1) | (9 << 19) | (1 << 25);
/** Product 'Z', implementer Arm. */
const IIDR = 0x5a00_043b;
/** From 0xffd0: PIDR4-7, PIDR0-3, CIDR0-3. PIDR2 says architecture 3. */
const IDENTIFICATION = [0x04, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
const TYPER_LAST = 0x10;
const EVEN_BITS = 0x5555_5555;
/** SGIs cannot be anything but edge-triggered. */
const SGI_WORD_OF_ICFGR = 0;

/** Registers with one bit for each interrupt: what they act on, and how a write does. */
const BIT_REGISTERS: readonly (readonly [offset: number, field: IntidBits, set: boolean])[] = [
  [GICD.ISENABLER, 'enabled', true], [GICD.ICENABLER, 'enabled', false],
  [GICD.ISPENDR, 'pending', true], [GICD.ICPENDR, 'pending', false],
  [GICD.ISACTIVER, 'active', true], [GICD.ICACTIVER, 'active', false],
];

/** The interrupts 32 × word … of a vCPU (word 0) or its domain that a register offset is about. */
type WordFilter = (word: number) => boolean;
const ofRedistributor: WordFilter = word => word === 0;
const ofDistributor: WordFilter = word => word > 0 && word < GIC_WORDS;

export class GicRegisters {
  readonly #gic: Gic;

  constructor(gic: Gic) {
    this.#gic = gic;
  }

  /**
   * A load by a vCPU; the value goes to scratch words 0 and 1 of its record, zero-extended.
   * @param sizeBytes 1, 2, 4 or 8
   * @returns false if the address is not the interrupt controller's
   */
  load(vcpuAddress: number, physicalAddress: number, sizeBytes: number): boolean {
    const { machine } = this.#gic;
    const domain = this.#gic.domainOf(vcpuAddress);
    if (!this.#contains(domain, physicalAddress)) return false;
    const wordAddress = physicalAddress - (physicalAddress % 4);
    this.#gic.lock(domain);
    const word = this.#loadWord(domain, wordAddress);
    const high = sizeBytes === 8 ? this.#loadWord(domain, wordAddress + 4) : 0;
    this.#gic.unlock(domain);
    const index = (vcpuAddress + scratchOffset(0)) >>> 2;
    const shifted = word >>> (8 * (physicalAddress % 4));
    machine.u32[index] = sizeBytes >= 4 ? word : shifted & (2 ** (8 * sizeBytes) - 1);
    machine.u32[index + 1] = high;
    return true;
  }

  /** A store by a vCPU of scratch words 0 and 1 of its record. @returns as `load` */
  store(vcpuAddress: number, physicalAddress: number, sizeBytes: number): boolean {
    const gic = this.#gic;
    const domain = gic.domainOf(vcpuAddress);
    if (!this.#contains(domain, physicalAddress)) return false;
    const low = gic.get(vcpuAddress + scratchOffset(0));
    gic.lock(domain);
    if (sizeBytes < 4) this.#storeByte(domain, physicalAddress, sizeBytes, low);
    else {
      const wordAddress = physicalAddress - (physicalAddress % 4);
      this.#storeWord(domain, wordAddress, low);
      if (sizeBytes === 8) this.#storeWord(domain, wordAddress + 4, gic.get(vcpuAddress + scratchOffset(0) + 4));
    }
    gic.evaluateAll(domain);
    gic.unlock(domain);
    return true;
  }

  #contains(domain: number, address: number): boolean {
    if (address >= GUEST_GICV3_GICD_BASE && address < GUEST_GICV3_GICD_BASE + GUEST_GICV3_GICD_SIZE) return true;
    const end = GUEST_GICV3_GICR0_BASE + this.#gic.get(domain + D.vcpuCount) * GUEST_GICV3_GICR_STRIDE;
    return address >= GUEST_GICV3_GICR0_BASE && address < end;
  }
  /** The vCPU whose redistributor has the address, by its index. */
  #redistributor(address: number): number {
    return Math.floor((address - GUEST_GICV3_GICR0_BASE) / GUEST_GICV3_GICR_STRIDE);
  }
  #vcpuAddress(domain: number, index: number): number {
    return this.#gic.get(domain + D.vcpus + 4 * index);
  }
  #isDistributor(address: number): boolean {
    return address < GUEST_GICV3_GICR0_BASE;
  }

  // ---- words

  #loadWord(domain: number, address: number): number {
    if (this.#isDistributor(address)) return this.#loadDistributor(domain, address - GUEST_GICV3_GICD_BASE);
    const index = this.#redistributor(address);
    if (index >= this.#gic.get(domain + D.vcpuCount)) return 0;
    const offset = (address - GUEST_GICV3_GICR0_BASE) % GUEST_GICV3_GICR_STRIDE;
    const vcpuAddress = this.#vcpuAddress(domain, index);
    if (offset >= FRAME_BYTES) return this.#loadInterrupts(vcpuAddress, offset - FRAME_BYTES, ofRedistributor);
    return this.#loadRedistributor(domain, index, offset);
  }

  #storeWord(domain: number, address: number, value: number): void {
    if (this.#isDistributor(address)) return this.#storeDistributor(domain, address - GUEST_GICV3_GICD_BASE, value);
    const index = this.#redistributor(address);
    if (index >= this.#gic.get(domain + D.vcpuCount)) return;
    const offset = (address - GUEST_GICV3_GICR0_BASE) % GUEST_GICV3_GICR_STRIDE;
    const vcpuAddress = this.#vcpuAddress(domain, index);
    if (offset >= FRAME_BYTES) this.#storeInterrupts(vcpuAddress, offset - FRAME_BYTES, value, ofRedistributor);
    else if (offset === GICR.WAKER) {
      const asleep = (value & GICR_WAKER.processorSleep) !== 0;
      const waker = asleep ? GICR_WAKER.processorSleep | GICR_WAKER.childrenAsleep : 0;
      this.#gic.set(this.#gic.vcpuAt(vcpuAddress) + V.waker, waker);
    }
  }

  #loadRedistributor(domain: number, index: number, offset: number): number {
    const isLast = index === this.#gic.get(domain + D.vcpuCount) - 1;
    switch (offset) {
      case GICR.IIDR: return IIDR;
      case GICR.TYPER: return (index << 8) | (isLast ? TYPER_LAST : 0);
      case GICR.TYPER + 4: return affinityOfVcpu(index);
      case GICR.WAKER: return this.#gic.get(this.#gic.vcpuAt(this.#vcpuAddress(domain, index)) + V.waker);
      default: return IDENTIFICATION[(offset - GICD.IDENTIFICATION) / 4] ?? 0;
    }
  }

  #loadDistributor(domain: number, offset: number): number {
    switch (offset) {
      case GICD.CTLR: return this.#gic.get(domain + D.ctlr);
      case GICD.TYPER: return TYPER;
      case GICD.IIDR: return IIDR;
    }
    if (offset >= GICD.IDENTIFICATION) return IDENTIFICATION[(offset - GICD.IDENTIFICATION) / 4] ?? 0;
    const intid = routedIntid(offset);
    if (intid !== 0) return offset % 8 === 0 ? this.#gic.get(domain + D.router + 4 * intid) : 0;
    return this.#loadInterrupts(this.#vcpuAddress(domain, 0), offset, ofDistributor);
  }

  #storeDistributor(domain: number, offset: number, value: number): void {
    if (offset === GICD.CTLR) {
      const enables = value & (GICD_CTLR.enableGrp0 | GICD_CTLR.enableGrp1);
      return this.#gic.set(domain + D.ctlr, GICD_CTLR.are | GICD_CTLR.ds | enables);
    }
    const intid = routedIntid(offset);
    if (intid === 0) return this.#storeInterrupts(this.#vcpuAddress(domain, 0), offset, value, ofDistributor);
    // The upper half is Aff3, which no vCPU has.
    if (offset % 8 === 0) this.#gic.routeSpi(domain, intid, value & 0x00ff_ffff);
  }

  // ---- registers that the distributor and the second frame of a redistributor have in common

  #loadInterrupts(vcpuAddress: number, offset: number, filter: WordFilter): number {
    const gic = this.#gic;
    if (offset >= GICD.IPRIORITYR && offset < GICD.ITARGETSR) {
      const intid = offset - GICD.IPRIORITYR;
      return filter(intid >>> 5) ? gic.get(gic.priorityAt(vcpuAddress, intid)) : 0;
    }
    if (offset >= GICD.ICFGR && offset < GICD.IGRPMODR) return this.#loadTriggers(vcpuAddress, offset, filter);
    const word = (offset & 0x7f) >>> 2;
    if (offset < GICD.IGROUPR || offset >= GICD.IPRIORITYR || !filter(word)) return 0;
    if (offset < GICD.ISENABLER) return 0xffff_ffff;
    const field = bitRegister(offset)[1];
    return field === 'pending' ? gic.pendingBits(vcpuAddress, word) : gic.get(gic.bitsAt(field, vcpuAddress, word));
  }

  #storeInterrupts(vcpuAddress: number, offset: number, value: number, filter: WordFilter): void {
    const gic = this.#gic;
    if (offset >= GICD.IPRIORITYR && offset < GICD.ITARGETSR) {
      const intid = offset - GICD.IPRIORITYR;
      if (filter(intid >>> 5)) gic.set(gic.priorityAt(vcpuAddress, intid), value & (PRIORITY_MASK * 0x0101_0101));
      return;
    }
    if (offset >= GICD.ICFGR && offset < GICD.IGRPMODR) return this.#storeTriggers(vcpuAddress, offset, value, filter);
    const word = (offset & 0x7f) >>> 2;
    if (offset < GICD.ISENABLER || offset >= GICD.IPRIORITYR || !filter(word)) return;
    const [, field, sets] = bitRegister(offset);
    const at = gic.bitsAt(field, vcpuAddress, word);
    gic.set(at, sets ? gic.get(at) | value : gic.get(at) & ~value);
  }

  /** ICFGR: two bits for each of 16 interrupts, the upper one says edge-triggered. */
  #loadTriggers(vcpuAddress: number, offset: number, filter: WordFilter): number {
    const index = (offset - GICD.ICFGR) >>> 2;
    if (!filter(index >>> 1)) return 0;
    const edges = this.#gic.get(this.#gic.bitsAt('edge', vcpuAddress, index >>> 1)) >>> (16 * (index & 1));
    return (spread(edges & 0xffff) << 1) >>> 0;
  }

  #storeTriggers(vcpuAddress: number, offset: number, value: number, filter: WordFilter): void {
    const index = (offset - GICD.ICFGR) >>> 2;
    if (!filter(index >>> 1) || index === SGI_WORD_OF_ICFGR) return;
    const at = this.#gic.bitsAt('edge', vcpuAddress, index >>> 1);
    const shift = 16 * (index & 1);
    this.#gic.set(at, (this.#gic.get(at) & ~(0xffff << shift)) | (gather(value >>> 1) << shift));
  }

  /** Bytes of IPRIORITYR are registers of their own; other registers have no parts. */
  #storeByte(domain: number, address: number, sizeBytes: number, value: number): void {
    const frame = this.#isDistributor(address) ? address - GUEST_GICV3_GICD_BASE
      : ((address - GUEST_GICV3_GICR0_BASE) % GUEST_GICV3_GICR_STRIDE) - FRAME_BYTES;
    const intid = frame - GICD.IPRIORITYR;
    if (sizeBytes !== 1 || intid < 0 || intid >= GIC_INTIDS) return;
    const isShared = intid >= GIC_FIRST_SPI;
    if (isShared !== this.#isDistributor(address)) return;
    const owner = this.#vcpuAddress(domain, isShared ? 0 : this.#redistributor(address));
    this.#gic.machine.u8[this.#gic.priorityAt(owner, intid)] = value & PRIORITY_MASK;
  }
}

function bitRegister(offset: number): (typeof BIT_REGISTERS)[number] {
  return BIT_REGISTERS[(offset - GICD.ISENABLER) >>> 7]!;
}

/** The SPI whose IROUTER a distributor offset is in, or 0. */
function routedIntid(offset: number): number {
  const intid = (offset - GICD.IROUTER) >> 3;
  return intid >= GIC_FIRST_SPI && intid < GIC_INTIDS ? intid : 0;
}

/** Bit n of 16 to bit 2n. */
function spread(bits: number): number {
  bits = (bits | (bits << 8)) & 0x00ff_00ff;
  bits = (bits | (bits << 4)) & 0x0f0f_0f0f;
  bits = (bits | (bits << 2)) & 0x3333_3333;
  return (bits | (bits << 1)) & EVEN_BITS;
}

/** Bit 2n to bit n. */
function gather(bits: number): number {
  bits &= EVEN_BITS;
  bits = (bits | (bits >>> 1)) & 0x3333_3333;
  bits = (bits | (bits >>> 2)) & 0x0f0f_0f0f;
  bits = (bits | (bits >>> 4)) & 0x00ff_00ff;
  return (bits | (bits >>> 8)) & 0xffff;
}
