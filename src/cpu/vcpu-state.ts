// A vCPU record as seen from TypeScript: 32-bit fields, and 64-bit fields as halves or, off the hot paths, as BigInt.

import { frameCacheOffsets, tlbOffsets, vcpuRecord, xOffset } from '../abi/vcpu.ts';
import { FrameCache } from './stage-two.ts';

const at = vcpuRecord.at;

export class VcpuState {
  /** Byte address of the record in the machine memory. */
  readonly address: number;
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  /** What the host has said of guest frames (stage-two.ts). */
  readonly readFrames: FrameCache;
  readonly writeFrames: FrameCache;

  constructor(views: { u32: Uint32Array; u64: BigUint64Array }, address: number) {
    this.address = address;
    this.u32 = views.u32;
    this.u64 = views.u64;
    this.readFrames = new FrameCache(this, frameCacheOffsets.read);
    this.writeFrames = new FrameCache(this, frameCacheOffsets.write);
  }

  get32(offset: number): number {
    return this.u32[(this.address + offset) >>> 2]!;
  }
  set32(offset: number, value: number): void {
    this.u32[(this.address + offset) >>> 2] = value;
  }
  get64(offset: number): bigint {
    return this.u64[(this.address + offset) / 8]!;
  }
  set64(offset: number, value: bigint): void {
    this.u64[(this.address + offset) / 8] = value;
  }
  /** Writes a 64-bit field from its halves. */
  setHalves(offset: number, low: number, high: number): void {
    const index = (this.address + offset) >>> 2;
    this.u32[index] = low;
    this.u32[index + 1] = high;
  }
  /** A 64-bit field as a double: exact below 2^53. */
  getDouble(offset: number): number {
    const index = (this.address + offset) >>> 2;
    return this.u32[index + 1]! * 0x1_0000_0000 + this.u32[index]!;
  }
  setDouble(offset: number, value: number): void {
    this.setHalves(offset, value >>> 0, Math.floor(value / 0x1_0000_0000));
  }
  copy64(to: number, from: number): void {
    this.setHalves(to, this.get32(from), this.get32(from + 4));
  }

  x(n: number): bigint {
    return this.get64(xOffset(n));
  }
  setX(n: number, value: bigint): void {
    this.set64(xOffset(n), BigInt.asUintN(64, value));
  }

  get el(): number {
    return this.get32(at.el);
  }

  /** Address of the instruction whose record is current. */
  pc(): bigint {
    return BigInt.asUintN(64, this.get64(at.pcBase) + BigInt(this.get32(at.record) >>> 2));
  }

  /** N, Z, C, V in bits 31 … 28, as in SPSR. */
  nzcv(): number {
    const n = this.get32(at.flagN + 4) >>> 31;
    const z = Number(this.get32(at.flagZ) === 0 && this.get32(at.flagZ + 4) === 0);
    const v = this.get32(at.flagV) >>> 31;
    return ((n << 31) | (z << 30) | (this.get32(at.flagC) << 29) | (v << 28)) >>> 0;
  }
  setNzcv(spsr: number): void {
    this.setHalves(at.flagN, 0, spsr & 0x8000_0000);
    this.setHalves(at.flagZ, Number((spsr & 0x4000_0000) === 0), 0);
    this.set32(at.flagC, (spsr >>> 29) & 1);
    this.set32(at.flagV, (spsr << 3) & 0x8000_0000);
  }

  /** Makes an exception level current: stack pointer bank and TLBs. The stack pointer in use must have been saved. */
  enterEl(el: number, spSel: number): void {
    this.set32(at.el, el);
    this.set32(at.spSel, spSel);
    this.copy64(xOffset(31), spSel === 0 ? at.spEl0 : at.spEl1);
    const tlb = tlbOffsets[el as 0 | 1];
    this.set32(at.tlbRead, this.address + tlb.read);
    this.set32(at.tlbWrite, this.address + tlb.write);
    this.set32(at.tlbExec, this.address + tlb.exec);
    this.updateFpTrap();
    this.updateSpAlignment();
  }
  /** Saves the stack pointer in use to its bank. */
  saveSp(): void {
    this.copy64(this.get32(at.spSel) === 0 ? at.spEl0 : at.spEl1, xOffset(31));
  }

  /** SCTLR_EL1.SA and SA0: bits 3 and 4. */
  updateSpAlignment(): void {
    const isChecked = (this.get32(at.sctlrEl1) >>> (this.el === 0 ? 4 : 3)) & 1;
    this.set32(at.spAlignmentMask, isChecked ? 15 : 0);
  }

  /** CPACR_EL1.FPEN: 0b01 traps EL0, 0b11 neither, else both. */
  updateFpTrap(): void {
    const fpen = (this.get32(at.cpacrEl1) >>> 20) & 3;
    this.set32(at.fpTrap, Number(!(fpen === 3 || (fpen === 1 && this.el === 1))));
  }
}
