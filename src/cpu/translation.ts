// Stage 1 translation (Arm ARM D8): 4 KiB granule, up to 48 bits of virtual address, block and page descriptors,
// hierarchical permissions, hardware access flag and dirty state, PAN, WXN, E0PD.
//
// `translate` makes no objects: it leaves its result in the fields below. Addresses travel as 32-bit halves, physical
// ones as doubles.

import { vcpuRecord } from '../abi/vcpu.ts';
import { faultStatus } from './exceptions.ts';
import { NO_FRAME } from './host.ts';
import type { StageTwo } from './stage-two.ts';
import { noteGlobalInLowerHalf } from './tlb.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
const TWO_32 = 0x1_0000_0000;
const TWO_48 = 2 ** 48;
/** Powers of two by exponent: computing them takes longer than all else in a walk. */
const POWER = Array.from({ length: 49 }, (_, exponent) => 2 ** exponent);

export const ACCESS_READ = 0;
export const ACCESS_WRITE = 1;
export const ACCESS_EXEC = 2;
export type Access = 0 | 1 | 2;

// Descriptor bits, low word.
const VALID = 1;
const TABLE_OR_PAGE = 2;
const AP1_EL0 = 1 << 6;
const AP2_READ_ONLY = 1 << 7;
const AF = 1 << 10;
const NOT_GLOBAL = 1 << 11;
// High word.
const DBM = 1 << 19;
const PXN = 1 << 21;
const UXN = 1 << 22;
const PXN_TABLE = 1 << 27;
const UXN_TABLE = 1 << 28;
const AP_TABLE_NO_EL0 = 1 << 29;
const AP_TABLE_READ_ONLY = 1 << 30;
// SCTLR_EL1.
const SCTLR_M = 1;
const SCTLR_WXN = 1 << 19;
// TCR_EL1, low word and high word.
const TCR_EPD0 = 1 << 7;
const TCR_EPD1 = 1 << 23;
const TCR_TBI0 = 1 << 5;
const TCR_HA = 1 << 7;
const TCR_HD = 1 << 8;
const TCR_IPS = 7;
const TCR_E0PD0 = 1 << 23;

/** Physical address bits by TCR_EL1.IPS, up to what ID_AA64MMFR0_EL1.PARange offers (40). */
const PHYSICAL_LIMITS = [32, 36, 40, 40, 40, 40, 40, 40].map(bits => 2 ** bits);

/** Not a fault: the descriptor changed between reading and updating it, or must be read after others were told of it. */
const CHANGED = -2;

export class Translation {
  readonly #u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #stageTwo: StageTwo;

  /** Physical address of the page, as a frame number. */
  guestFrame = 0;
  /** Device memory: no speculation, no misalignment, never in a TLB. */
  device = false;
  global = true;
  /** EL0 may access the page: what PSTATE.PAN keeps EL1 from. */
  user = false;
  /** log2 of the descriptor's reach: 12, 21, 30 or 39. */
  reach = 12;
  /** The address is of the upper half. */
  #upper = false;
  /** Fault status code when `translate` has returned false; NO_FRAME: no fault, a table cannot be had now. */
  status = 0;

  constructor(views: { u32: Uint32Array; i32: Int32Array }, stageTwo: StageTwo) {
    this.#u32 = views.u32;
    this.#i32 = views.i32;
    this.#stageTwo = stageTwo;
  }

  #fail(status: number, level = 0): false {
    this.status = status + level;
    return false;
  }

  /** @returns false with `status` set when the access faults. */
  translate(vcpu: VcpuState, low: number, high: number, access: Access, el: number): boolean {
    low >>>= 0;
    if ((vcpu.get32(at.sctlrEl1) & SCTLR_M) === 0) return this.#flat(low, high);
    const upper = (high >>> 23) & 1;
    this.#upper = upper !== 0;
    const tcrLow = vcpu.get32(at.tcrEl1);
    const tcrHigh = vcpu.get32(at.tcrEl1 + 4);
    const inputBits = 64 - ((upper ? tcrLow >>> 16 : tcrLow) & 0x3f);
    const sign = upper ? 0xff : 0;
    const tagIgnored = (tcrHigh & (TCR_TBI0 << upper)) !== 0;
    if (inputBits > 48 || inputBits < 25) return this.#fail(faultStatus.translation);
    let offset = (high & 0xffff) * TWO_32 + low;
    if (upper) offset -= TWO_48 - POWER[inputBits]!;
    if (((high >>> 16) & 0xff) !== sign || (!tagIgnored && high >>> 24 !== sign) || offset < 0 || offset >= POWER[inputBits]!) {
      return this.#fail(faultStatus.translation);
    }
    if (tcrLow & (upper ? TCR_EPD1 : TCR_EPD0)) return this.#fail(faultStatus.translation);
    if (el === 0 && tcrHigh & (TCR_E0PD0 << upper)) return this.#fail(faultStatus.translation);
    const ttbr = upper ? at.ttbr1El1 : at.ttbr0El1;
    // A table has at least 64 bytes and is aligned; lower bits would let a descriptor lie across two frames.
    const table = (vcpu.get32(ttbr + 4) & 0xffff) * TWO_32 + ((vcpu.get32(ttbr) & 0xffff_ffc0) >>> 0);
    for (;;) {
      if (this.#walk(vcpu, table, offset, inputBits, tcrHigh, access, el)) return true;
      if (this.status !== CHANGED) return false;
    }
  }

  /** As for address translation, cache maintenance and a hypervisor's accesses, to which PSTATE.PAN does not apply. */
  translateIgnoringPan(vcpu: VcpuState, low: number, high: number, access: Access, el: number): boolean {
    const pan = vcpu.get32(at.pan);
    vcpu.set32(at.pan, 0);
    const allowed = this.translate(vcpu, low, high, access, el);
    vcpu.set32(at.pan, pan);
    return allowed;
  }

  /** The MMU is off: addresses are physical, and everything is allowed. */
  #flat(low: number, high: number): boolean {
    if (high >= PHYSICAL_LIMITS[2]! / TWO_32 || high < 0) return this.#fail(faultStatus.addressSize);
    this.guestFrame = high * 0x10_0000 + (low >>> 12);
    this.device = false;
    this.global = true;
    this.user = false;
    this.reach = 12;
    return true;
  }

  #walk(vcpu: VcpuState, table: number, offset: number, inputBits: number, tcrHigh: number, access: Access, el: number): boolean {
    let tableHigh = 0;
    const limit = PHYSICAL_LIMITS[tcrHigh & TCR_IPS]!;
    if (table >= limit) return this.#fail(faultStatus.addressSize);
    for (let level = 4 - Math.ceil((inputBits - 12) / 9); ; level++) {
      const shift = 39 - 9 * level;
      const entryAddress = table + (Math.floor(offset / POWER[shift]!) % 512) * 8;
      const mfn = this.#stageTwo.frameForRead(vcpu, Math.floor(entryAddress / 4096));
      if (mfn < 0) return this.#fail(NO_FRAME);
      if (mfn === 0) return this.#fail(faultStatus.externalAbortOnWalk, level);
      const index = mfn * 1024 + (entryAddress % 4096) / 4;
      const low = Atomics.load(this.#i32, index);
      if ((low & VALID) === 0) return this.#fail(faultStatus.translation, level);
      const high = this.#u32[index + 1]!;
      // A descriptor is read as a whole: another vCPU may have replaced it meanwhile.
      if (Atomics.load(this.#i32, index) !== low) return this.#fail(CHANGED);
      if (low & TABLE_OR_PAGE) {
        if (level === 3) return this.#leaf(vcpu, entryAddress, low, high, tableHigh, offset, level, tcrHigh, access, el);
        tableHigh |= high;
        table = (high & 0xffff) * TWO_32 + ((low & 0xffff_f000) >>> 0);
        if (table >= limit) return this.#fail(faultStatus.addressSize, level);
        continue;
      }
      if (level === 0 || level === 3) return this.#fail(faultStatus.translation, level);
      return this.#leaf(vcpu, entryAddress, low, high, tableHigh, offset, level, tcrHigh, access, el);
    }
  }

  #leaf(vcpu: VcpuState, entryAddress: number, low: number, high: number, tableHigh: number, offset: number,
    level: number, tcrHigh: number, access: Access, el: number): boolean {
    let updated = low;
    if ((high & 0xffff) * TWO_32 + (low >>> 0) >= PHYSICAL_LIMITS[tcrHigh & TCR_IPS]!) {
      return this.#fail(faultStatus.addressSize, level);
    }
    if ((low & AF) === 0) {
      if ((tcrHigh & TCR_HA) === 0) return this.#fail(faultStatus.accessFlag, level);
      updated |= AF;
    }
    const tableReadOnly = (tableHigh & AP_TABLE_READ_ONLY) !== 0;
    const managesDirty = (tcrHigh & (TCR_HA | TCR_HD)) === (TCR_HA | TCR_HD);
    if (access === ACCESS_WRITE && low & AP2_READ_ONLY && high & DBM && managesDirty && !tableReadOnly) {
      updated &= ~AP2_READ_ONLY;
    }
    const el0 = (low & AP1_EL0) !== 0 && (tableHigh & AP_TABLE_NO_EL0) === 0;
    const writable = (updated & AP2_READ_ONLY) === 0 && !tableReadOnly;
    if (!permitted(vcpu, access, el, el0, writable, high, tableHigh)) return this.#fail(faultStatus.permission, level);
    if (updated !== low && !this.#updateDescriptor(vcpu, entryAddress, low, updated)) return this.#fail(CHANGED);
    const reach = 39 - 9 * level;
    const base = Math.floor((high & 0xffff) * 0x10_0000 + (low >>> 12));
    const inBlock = Math.floor((offset % POWER[reach]!) / 4096);
    this.guestFrame = base - (base % POWER[reach - 12]!) + inBlock;
    const attributes = (vcpu.get32(at.mairEl1 + (low & 0x10 ? 4 : 0)) >>> (8 * ((low >>> 2) & 3))) & 0xff;
    this.device = attributes < 0x10;
    this.global = (low & NOT_GLOBAL) === 0;
    if (this.global && !this.#upper && noteGlobalInLowerHalf(vcpu)) return this.#fail(CHANGED);
    this.user = el0;
    this.reach = reach;
    return true;
  }

  /** @returns false if the descriptor is no longer what the walk has read. */
  #updateDescriptor(vcpu: VcpuState, entryAddress: number, low: number, updated: number): boolean {
    const mfn = this.#stageTwo.frameForWrite(vcpu, Math.floor(entryAddress / 4096));
    // Out of frames: leave the descriptor as it is; the access itself will run into the same shortage.
    if (mfn <= 0) return true;
    const index = mfn * 1024 + (entryAddress % 4096) / 4;
    return Atomics.compareExchange(this.#i32, index, low | 0, updated | 0) === (low | 0);
  }
}

function permitted(vcpu: VcpuState, access: Access, el: number, el0: boolean, writable: boolean, high: number,
  tableHigh: number): boolean {
  if (access !== ACCESS_EXEC) {
    if (access === ACCESS_WRITE && !writable) return false;
    return el === 0 ? el0 : !(el0 && vcpu.get32(at.pan) !== 0);
  }
  const wxn = (vcpu.get32(at.sctlrEl1) & SCTLR_WXN) !== 0;
  if (el === 0) {
    if (high & UXN || tableHigh & UXN_TABLE) return false;
    return !(wxn && el0 && writable);
  }
  // What EL0 can write, EL1 never executes.
  return (high & PXN) === 0 && (tableHigh & PXN_TABLE) === 0 && !(el0 && writable) && !(wxn && writable);
}
