// Filling and flushing the TLBs in a vCPU record (layout: abi/vcpu.ts). Only the thread that runs the vCPU does it.

import { TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, TLB_SET_BYTES, tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import type { VcpuState } from './vcpu-state.ts';

const ENTRY_WORDS = TLB_ENTRY_BYTES / 4;
/** As in SPSR. */
const PAN_BIT = 1 << 22;
const ENTRIES_IN_ALL = 2 * TLB_SET_BYTES / TLB_ENTRY_BYTES;

function entryIndex(vcpu: VcpuState, tlbOffset: number, low: number): number {
  return (vcpu.address + tlbOffset) / 4 + ((low >>> 12) & (TLB_ENTRIES - 1)) * ENTRY_WORDS;
}

/** Read and write entries: host address = virtual address + (frame address - page address). */
export function fillDataTlb(vcpu: VcpuState, tlbOffset: number, low: number, high: number, mfn: number): void {
  const { u32 } = vcpu;
  const index = entryIndex(vcpu, tlbOffset, low);
  const pageLow = (low & ~0xfff) >>> 0;
  const host = mfn * 4096;
  const targetLow = host % 0x1_0000_0000 - pageLow;
  u32[index + 2] = targetLow;
  u32[index + 3] = Math.floor(host / 0x1_0000_0000) - (high >>> 0) - (targetLow < 0 ? 1 : 0);
  u32[index] = pageLow;
  u32[index + 1] = high;
}

export function fillExecTlb(vcpu: VcpuState, tlbOffset: number, low: number, high: number, slot: number): void {
  const { u32 } = vcpu;
  const index = entryIndex(vcpu, tlbOffset, low);
  u32[index + 2] = slot;
  u32[index] = low & ~0xfff;
  u32[index + 1] = high;
}

/** The slot of the page's decoded records, or 0. */
export function probeExecTlb(vcpu: VcpuState, tlbOffset: number, low: number, high: number): number {
  const { u32 } = vcpu;
  const index = entryIndex(vcpu, tlbOffset, low);
  if (u32[index] !== (low & ~0xfff) >>> 0 || u32[index + 1] !== high >>> 0) return 0;
  return u32[index + 2]!;
}

export function flushAll(vcpu: VcpuState): void {
  const { u32 } = vcpu;
  let index = (vcpu.address + tlbOffsets[0].read) / 4;
  for (let i = 0; i < ENTRIES_IN_ALL; i++, index += ENTRY_WORDS) {
    u32[index] = TLB_INVALID_TAG;
    u32[index + 1] = 0;
  }
}

/** All entries of one half of the address space. */
export function flushHalf(vcpu: VcpuState, upper: boolean): void {
  const { u32 } = vcpu;
  let index = (vcpu.address + tlbOffsets[0].read) / 4;
  for (let i = 0; i < ENTRIES_IN_ALL; i++, index += ENTRY_WORDS) {
    if (isUpper(u32[index + 1]!) === upper) u32[index] = TLB_INVALID_TAG;
  }
}

/** PSTATE.PAN, by whatever changes it. The entries that EL1 must no longer use go. */
export function setPan(vcpu: VcpuState, set: boolean): void {
  vcpu.set32(vcpuRecord.at.pan, set ? PAN_BIT : 0);
  if (!set || !vcpu.userEntriesAtEl1) return;
  vcpu.userEntriesAtEl1 = false;
  for (const offset of [tlbOffsets[1].read, tlbOffsets[1].write]) {
    const first = (vcpu.address + offset) / 4;
    for (let i = 0; i < TLB_ENTRIES; i++) vcpu.u32[first + i * ENTRY_WORDS] = TLB_INVALID_TAG;
  }
}

/**
 * Addresses, of one half of the address space, whose entries come from block descriptors: such a block's entries go
 * together. Kernels map by blocks what they never unmap, so most invalidations lie outside.
 */
export interface BlockWindow {
  /** Page numbers, within the half. */
  first: number;
  last: number;
  /** log2 of the largest block. */
  reach: number;
}
export const noBlocks = (): BlockWindow => ({ first: Infinity, last: -1, reach: 12 });

export function forget(window: BlockWindow): void {
  window.first = Infinity;
  window.last = -1;
  window.reach = 12;
}

const pageNumber = (low: number, high: number): number => (high & 0xffff) * 0x10_0000 + (low >>> 12);

/** An entry has been made from a block of 2^reach bytes. */
export function widen(window: BlockWindow, low: number, high: number, reach: number): void {
  const pages = 2 ** (reach - 12);
  const page = pageNumber(low, high);
  const first = page - page % pages;
  if (first < window.first) window.first = first;
  if (first + pages - 1 > window.last) window.last = first + pages - 1;
  if (reach > window.reach) window.reach = reach;
}

/** The entries of an address, and of the whole block if it may be one's; a tag byte is ignored. */
export function flushAddress(vcpu: VcpuState, low: number, high: number, blocks: BlockWindow): void {
  const { u32 } = vcpu;
  const page = pageNumber(low, high);
  if (page < blocks.first || page > blocks.last) {
    for (const set of tlbOffsets) {
      for (const offset of [set.read, set.write, set.exec]) u32[entryIndex(vcpu, offset, low)] = TLB_INVALID_TAG;
    }
    return;
  }
  const { reach } = blocks;
  const lowMask = reach >= 32 ? 0 : -1 << reach;
  const highMask = (reach > 32 ? -1 << (reach - 32) : -1) & 0xffff;
  let index = (vcpu.address + tlbOffsets[0].read) / 4;
  for (let i = 0; i < ENTRIES_IN_ALL; i++, index += ENTRY_WORDS) {
    if (((u32[index]! ^ low) & lowMask) === 0 && ((u32[index + 1]! ^ high) & highMask) === 0) u32[index] = TLB_INVALID_TAG;
  }
}

const isUpper = (high: number): boolean => (high & 0x0080_0000) !== 0;
