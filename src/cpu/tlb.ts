// Filling and flushing the TLBs in a vCPU record (layout: abi/vcpu.ts). Only the thread that runs the vCPU does it.

import {
  BLOCK_BITS, BLOCK_REACH, LINE_BYTES, TLB_BYTES, TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, VICTIM_BYTES, tlbCoverage,
  tlbCoverageOffset, tlbOffsets, vcpuRecord, victimsOf, victimsOffset,
} from '../abi/vcpu.ts';
import { linesInUse, useLine } from './lines-in-use.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
const coverage = (field: keyof typeof tlbCoverage.at): number => tlbCoverageOffset + tlbCoverage.at[field];
/** log2 of the largest block: level 0 has none. */
const LARGE_BLOCK_REACH = 30;
const ENTRY_WORDS = TLB_ENTRY_BYTES / 4;
/** As in SPSR. */
const PAN_BIT = 1 << 22;
/** TCR_EL1: the ASID is that of TTBR1_EL1; high word: it has sixteen bits. */
export const TCR_A1 = 1 << 22;
export const TCR_AS = 1 << 4;
const LINE_WORDS = LINE_BYTES / 4;

/**
 * Where entries may be, as places of words: the lines in use of some TLBs, then all lines of their victims.
 * @param first offset of the first of TLBs that lie side by side
 * @param isEmptied none of the lines is in use from now on
 */
function linesOf(vcpu: VcpuState, first: number, count: number, isEmptied = false): number[] {
  const lines = linesInUse(vcpu, first, count * TLB_BYTES, isEmptied);
  const victims = (vcpu.address + victimsOf(first)) / 4;
  for (let i = 0; i < count * VICTIM_BYTES / 4; i += LINE_WORDS) lines.push(victims + i);
  return lines;
}
const ALL = [tlbOffsets[0].read, 6] as const;

function emptyLine(u32: Uint32Array, line: number): void {
  for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) u32[index] = TLB_INVALID_TAG;
}

/** Where an entry is put. */
function placeFor(vcpu: VcpuState, tlbOffset: number, low: number): number {
  const index = entryIndex(vcpu, tlbOffset, low);
  if (useLine(vcpu, index)) emptyLine(vcpu.u32, index & -LINE_WORDS);
  return index;
}
function entryIndex(vcpu: VcpuState, tlbOffset: number, low: number): number {
  return (vcpu.address + tlbOffset) / 4 + ((low >>> 12) & (TLB_ENTRIES - 1)) * ENTRY_WORDS;
}

/** Read and write entries: host address = virtual address + (frame address - page address). */
export function fillDataTlb(vcpu: VcpuState, tlbOffset: number, low: number, high: number, mfn: number): void {
  const { u32 } = vcpu;
  const index = placeFor(vcpu, tlbOffset, low);
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
  const index = placeFor(vcpu, tlbOffset, low);
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

/** The frame that a read or write TLB has for a page, or 0; not among its victims. */
export function probeDataTlb(vcpu: VcpuState, tlbOffset: number, low: number, high: number): number {
  const { u32 } = vcpu;
  const index = entryIndex(vcpu, tlbOffset, low);
  const pageLow = (low & ~0xfff) >>> 0;
  if (u32[index] !== pageLow || u32[index + 1] !== high >>> 0) return 0;
  const hostLow = pageLow + u32[index + 2]!;
  const carry = hostLow >= 0x1_0000_0000 ? 1 : 0;
  return (hostLow >>> 12) + ((u32[index + 1]! + u32[index + 3]! + carry) >>> 0) * 0x10_0000;
}

/** Pages that a direct branch may go to. */
const NEIGHBOURS_REACH = 1 << 15;

/**
 * What the exec TLB in use has of the pages that direct branches reach from an address.
 * @returns how many pages away each is, and the address of its records, in turn
 */
export function execNeighbours(vcpu: VcpuState, va: bigint): Int32Array {
  const { u32 } = vcpu;
  const [low, high] = [Number(va >> 12n & 0xf_ffffn), Number(va >> 32n)];
  const found: number[] = [];
  for (const line of linesInUse(vcpu, tlbOffsets[vcpu.el as 0 | 1].exec, TLB_BYTES)) {
    for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) {
      if ((u32[index]! & TLB_INVALID_TAG) !== 0) continue;
      const distance = (u32[index + 1]! - high) * 0x10_0000 + ((u32[index]! >>> 12) - low);
      if (distance !== 0 && Math.abs(distance) < NEIGHBOURS_REACH) found.push(distance, u32[index + 2]!);
    }
  }
  return new Int32Array(found);
}

export function flushAll(vcpu: VcpuState): void {
  const { u32 } = vcpu;
  for (const line of linesOf(vcpu, ...ALL, true)) emptyLine(u32, line);
  // In memory that was never used these would be entries of page 0, for it and for what crosses into it from the last page.
  for (const set of tlbOffsets) {
    for (const tlb of [set.read, set.write, set.exec]) {
      vcpu.set32(tlb, TLB_INVALID_TAG);
      vcpu.set32(tlb + (TLB_ENTRIES - 1) * TLB_ENTRY_BYTES, TLB_INVALID_TAG);
    }
  }
  vcpu.set32(coverage('notGlobalInUpperHalf'), 0);
  vcpu.set32(coverage('globalInLowerHalf'), 0);
  vcpu.set32(coverage('userEntriesAtEl1'), 0);
  vcpu.set32(coverage('lowerHalfAtEl1'), 0);
  const blocks = (vcpu.address + coverage('largeBlocks')) / 4;
  u32.fill(0, blocks, blocks + 1 + (1 << BLOCK_BITS) / 32);
}

function flushLowerHalf(vcpu: VcpuState): void {
  const { u32 } = vcpu;
  const tlbs = vcpu.get32(coverage('lowerHalfAtEl1')) === 0 ? 3 : 6;
  for (const line of linesOf(vcpu, tlbOffsets[0].read, tlbs)) {
    for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) {
      if (!isUpper(u32[index + 1]!)) u32[index] = TLB_INVALID_TAG;
    }
  }
}

/** PSTATE.PAN, by whatever changes it. The entries that EL1 must no longer use go. */
export function setPan(vcpu: VcpuState, set: boolean): void {
  vcpu.set32(at.pan, set ? PAN_BIT : 0);
  if (!set || vcpu.get32(coverage('userEntriesAtEl1')) === 0) return;
  vcpu.set32(coverage('userEntriesAtEl1'), 0);
  for (const line of linesOf(vcpu, tlbOffsets[1].read, 2, true)) emptyLine(vcpu.u32, line);
}

/** Where a block's bit is: its word in `blocks`, and its place there. */
const blockNumber = (low: number, high: number): number => (high & 0xffff) * 0x800 + (low >>> BLOCK_REACH);
const blockWord = (number: number): number => coverage('blocks') + ((number >>> 3) & ((1 << BLOCK_BITS) / 8 - 4));
const blockBit = (number: number): number => 1 << (number & 31);
const isUpper = (high: number): boolean => (high & 0x0080_0000) !== 0;

/**
 * Remembers, for later invalidation, what kind of translation an entry is made from.
 * @param reach log2 of the descriptor's reach
 * @param el whose entry it is
 * @param user for data that EL0 may access
 */
export function noteFill(
  vcpu: VcpuState, low: number, high: number, reach: number, global: boolean, el: number, user: boolean,
): void {
  const upper = isUpper(high);
  if (upper && !global) vcpu.set32(coverage('notGlobalInUpperHalf'), 1);
  if (!upper && el === 1) vcpu.set32(coverage('lowerHalfAtEl1'), 1);
  if (user && el === 1) vcpu.set32(coverage('userEntriesAtEl1'), 1);
  if (reach < BLOCK_REACH) return;
  // Such a block's entries go together. Kernels map by blocks what they never unmap, so most invalidations miss them all.
  if (reach > BLOCK_REACH) return vcpu.set32(coverage('largeBlocks'), 1);
  const number = blockNumber(low, high);
  const word = blockWord(number);
  vcpu.set32(word, vcpu.get32(word) | blockBit(number));
}

/** All entries of the current ASID. Those of the upper half stay that are global. */
export function flushNotGlobal(vcpu: VcpuState): void {
  if (vcpu.get32(coverage('notGlobalInUpperHalf')) !== 0) return flushAll(vcpu);
  flushLowerHalf(vcpu);
  vcpu.set32(coverage('globalInLowerHalf'), 0);
  vcpu.set32(coverage('lowerHalfAtEl1'), 0);
}
export function flushAsid(vcpu: VcpuState, asid: number): void {
  if (asid === vcpu.get32(coverage('asid'))) flushNotGlobal(vcpu);
}

/** After a change of what says which ASID is current. Entries of another one go, then it is told to others. */
export function updateAsid(vcpu: VcpuState): void {
  const asid = currentAsid(vcpu);
  if (asid === vcpu.get32(coverage('asid'))) return;
  flushNotGlobal(vcpu);
  Atomics.store(vcpu.u32, (vcpu.address + coverage('asid')) / 4, asid);
}
function currentAsid(vcpu: VcpuState): number {
  const ttbr = (vcpu.get32(at.tcrEl1) & TCR_A1) === 0 ? at.ttbr0El1 : at.ttbr1El1;
  return asidOf(vcpu, vcpu.get32(ttbr + 4) >>> 16);
}
/** @param field sixteen bits, of which fewer may count */
export function asidOf(vcpu: VcpuState, field: number): number {
  return (vcpu.get32(at.tcrEl1 + 4) & TCR_AS) === 0 ? field & 0xff : field;
}
/** Before the tables are read for a global entry of the lower half. @returns false if it is known already */
export function noteGlobalInLowerHalf(vcpu: VcpuState): boolean {
  if (vcpu.get32(coverage('globalInLowerHalf')) !== 0) return false;
  Atomics.store(vcpu.u32, (vcpu.address + coverage('globalInLowerHalf')) / 4, 1);
  return true;
}

/** The entries of an address, and of the whole block if it may be one's; a tag byte is ignored. */
export function flushAddress(vcpu: VcpuState, low: number, high: number): void {
  const { u32 } = vcpu;
  const isLarge = vcpu.get32(coverage('largeBlocks')) !== 0;
  const number = blockNumber(low, high);
  if (!isLarge && (vcpu.get32(blockWord(number)) & blockBit(number)) === 0) {
    for (const set of tlbOffsets) {
      u32[entryIndex(vcpu, set.read, low)] = TLB_INVALID_TAG;
      u32[entryIndex(vcpu, set.write, low)] = TLB_INVALID_TAG;
      u32[entryIndex(vcpu, set.exec, low)] = TLB_INVALID_TAG;
    }
    const victims = (vcpu.address + victimsOffset) / 4;
    return flushMatching(u32, victims, victims + 6 * VICTIM_BYTES / 4, low, high, ~0xfff);
  }
  const mask = isLarge ? -1 << LARGE_BLOCK_REACH : -1 << BLOCK_REACH;
  for (const line of linesOf(vcpu, ...ALL)) flushMatching(u32, line, line + LINE_WORDS, low, high, mask);
}

/** Of some entries those that have the same address as far as the mask says. */
function flushMatching(u32: Uint32Array, from: number, end: number, low: number, high: number, lowMask: number): void {
  for (let index = from; index < end; index += ENTRY_WORDS) {
    if (((u32[index]! ^ low) & lowMask) === 0 && ((u32[index + 1]! ^ high) & 0xffff) === 0) u32[index] = TLB_INVALID_TAG;
  }
}

/**
 * All entries that lead to a frame; none of them is a write entry.
 * @param slot of the frame's decoded records, 0: it has none
 */
export function flushFrame(vcpu: VcpuState, mfn: number, slot: number): void {
  const { u32 } = vcpu;
  const host = (mfn * 4096) | 0;
  for (const { read, exec } of tlbOffsets) {
    for (const line of linesOf(vcpu, read, 1)) {
      for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) {
        if (((u32[index]! + u32[index + 2]!) | 0) === host) u32[index] = TLB_INVALID_TAG;
      }
    }
    if (slot === 0) continue;
    for (const line of linesOf(vcpu, exec, 1)) {
      for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) if (u32[index + 2] === slot) u32[index] = TLB_INVALID_TAG;
    }
  }
}
