// Stage 1 translation in emitted code: the ordinary cases of what translation.ts does, on a TLB miss, without a call into
// TypeScript. A walk goes through the guest's tables and makes the TLB entry; stage 2 is what it was when it was last
// asked (stage-two.ts), or what the domain's p2m says (memory/p2m.ts). Whatever is not ordinary it leaves
// alone, with nothing done that it would not do as well: device memory, tagged addresses, the MMU off, frames to be made, read
// from an image or written for the first time. Then TypeScript walks, and decides.

import { SLOT_BYTES } from '../abi/decode-cache.ts';
import {
  FRAME, FRAME_MAPPING, FRAME_MAPPING_MASK, GFN_LIMIT, P2M_ENTRIES, P2M_KIND, P2M_KIND_MASK, P2M_LEVEL_BITS, P2M_READ_ONLY,
  P2M_VALUE_SHIFT,
} from '../abi/machine-memory.ts';
import {
  BLOCK_BITS, BLOCK_REACH, FRAME_CACHE_ENTRIES, FRAME_CACHE_ENTRY_BYTES, LINE_BYTES, TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG,
  VICTIM_BYTES, frameCacheOffsets, linesInUseOffset, linesOffset, nextVictimOffset, tlbCoverage, tlbCoverageOffset, tlbEntry, tlbOffsets,
  vcpuRecord, victimsOf,
} from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import type { Callable, FunctionBuilder } from '../wasm/function.ts';
import type { ModuleBuilder } from '../wasm/module.ts';
import { atomicCmpxchg, i32, i64 } from '../wasm/scalar.ts';
import type { Address, I32, I64 } from '../wasm/types.ts';
import { ACCESS_ALIGNED, ACCESS_UNPRIVILEGED } from './emitted-calls.ts';
import { faultStatus } from './exceptions.ts';
import { SCTLR_UCI, cacheOperation } from './maintenance.ts';
import { ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE } from './translation.ts';

const at = vcpuRecord.at;

/** Where in the machine memory a walk finds what is not in the vCPU record. */
export interface WalkLayout {
  /** Address of the frame table. */
  readonly frameTable: number;
  /** Address of the decode cache's first slot. */
  readonly codeSlots: number;
  /** Frames from here on are none. */
  readonly frameEnd: number;
}

export interface EmittedWalk {
  /**
   * (vcpu, va, size and flags, is write) → address of the entry that it has made for the page; 0; or 1 + the fault's status,
   * at most FAULT_ANSWERS, which no entry has as its address.
   */
  readonly fillData: Callable;
  /** (vcpu, va) → likewise in the exec TLB; for the current exception level. */
  readonly fillExec: Callable;
  /** (vcpu, SYS operation, its argument) → 1 if it has been done: cache maintenance by address, where it does nothing. */
  readonly maintain: Callable;
}

// Bits of SCTLR_EL1, TCR_EL1 (of its half for T0SZ or T1SZ) and descriptors: as in translation.ts.
const SCTLR_M = 1;
const SCTLR_A = 2;
const SCTLR_WXN = 1 << 19;
const TCR_EPD = 1 << 7;
const TCR_IPS_SHIFT = 32;
const TCR_E0PD0_SHIFT = 55;
const TCR_HA = 39;
const TCR_HD = 40;
/** TCR_EL1.IPS for the 40 bits of ID_AA64MMFR0_EL1: with fewer, there are addresses to refuse. */
const IPS_40 = 2;
const DESCRIPTOR_VALID = 1n;
const DESCRIPTOR_TABLE = 2n;
const AF = 10;
const NOT_GLOBAL = 11;
const DBM = 51;
const AP1_EL0 = 6;
const AP2_READ_ONLY = 7;
const PXN = 53;
const UXN = 54;
const PXN_TABLE = 59;
const UXN_TABLE = 60;
const AP_TABLE_NO_EL0 = 61;
const AP_TABLE_READ_ONLY = 62;
const ADDRESS_BITS = 0xffff_ffff_f000n;
const BEYOND_40_BITS = 0xff00_0000_0000n;
const MAIR_DEVICE_END = 0x10;

/** In a walk's answer, above the machine frame: EL0 may access the page. */
const ANSWER_USER = 32;
/** A fault: the low word is 1 + its status. */
const ANSWER_FAULT = 33;
/** The largest answer that tells of a fault. */
export const FAULT_ANSWERS = 0x40;

const bit = (value: I64, place: number): I32 => i32.and(i32.wrapI64(i64.shrU(value, i64.const(place))), i32.const(1));
const not = (flag: I32): I32 => i32.xor(flag, i32.const(1));
const coverage = (field: keyof typeof tlbCoverage.at): number => tlbCoverageOffset + tlbCoverage.at[field];

export function emitWalk(module: ModuleBuilder, layout: WalkLayout): EmittedWalk {
  const walk = emitTranslate(module, emitFindFrame(module, layout, 'read'), emitFindFrame(module, layout, 'write'));
  return {
    fillData: emitFillData(module, walk), fillExec: emitFillExec(module, walk, layout), maintain: emitMaintain(module, walk, layout),
  };
}

function giveUpIf(f: FunctionBuilder, condition: I32, answer: I32 | I64): void {
  f.if(condition, () => f.return(answer), undefined, 'unlikely');
}

/** Answers with a fault of a level, which follows from how many bits lie below a descriptor's. */
function faultIf(f: FunctionBuilder, condition: I32, status: number, shift: I64): void {
  const level = i64.divU(i64.sub(i64.const(39), shift), i64.const(9));
  const answer = (1n << BigInt(ANSWER_FAULT)) + BigInt(1 + status);
  f.if(condition, () => f.return(i64.add(level, i64.const(answer))), undefined, 'unlikely');
}

function byteOfFrame(module: ModuleBuilder, mfn: I32, offset: I32): Address {
  if (module.addressType === 'i32') return i32.add(i32.shl(mfn, i32.const(12)), offset);
  return i64.add(i64.shl(i64.extendI32U(mfn), i64.const(12)), i64.extendI32U(offset));
}

/** Where a guest frame's entry in the caches of stage 2 is: to this comes an offset of `frameCacheOffsets`. */
function cacheEntry(f: FunctionBuilder, vcpu: I32, gfn: I64, isWrite: I32): I32 {
  const mask = (FRAME_CACHE_ENTRIES - 1) * FRAME_CACHE_ENTRY_BYTES;
  const index = i32.and(i32.shl(i32.wrapI64(gfn), i32.const(Math.log2(FRAME_CACHE_ENTRY_BYTES))), i32.const(mask));
  return f.let(i32.add(i32.add(vcpu, index), i32.mul(isWrite, i32.const(frameCacheOffsets.write - frameCacheOffsets.read))));
}
/** The machine frame of a guest frame, by what stage 2 has said; 0: not known. An empty entry names frame 0. */
function knownFrame(f: FunctionBuilder, vcpu: I32, gfn: I64, isWrite: I32): I32 {
  const entry = cacheEntry(f, vcpu, gfn, isWrite);
  const isSame = i64.eq(i64.load32U(entry, frameCacheOffsets.read), gfn);
  return f.let(i32.mul(i32.load(entry, frameCacheOffsets.read + 4), isSame));
}

/**
 * (vcpu, guest frame) → the machine frame that it reads from by the p2m, or that it may be written in, remembered from then
 * on; 0: ask TypeScript. As `P2m.lookup` and `P2m.#exclusiveFrame`.
 */
function emitFindFrame(module: ModuleBuilder, { frameTable, frameEnd }: WalkLayout, access: 'read' | 'write'): Callable {
  const f = module.function({ params: ['i32', 'i64'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const gfn = f.param(1, 'i64');
  const giveUp = (condition: I32): void => giveUpIf(f, condition, i32.const(0));
  const isWrite = i32.const(access === 'write' ? 1 : 0);
  const known = knownFrame(f, vcpu, gfn, isWrite);
  f.if(known, () => f.return(known));
  const rootPlace = f.let(i32.load(vcpu, coverage('stageTwoRoot')));
  giveUp(i32.eqz(rootPlace));
  giveUp(i64.geU(gfn, i64.const(GFN_LIMIT)));
  const guest = f.let(i32.wrapI64(gfn));
  const root = f.let(i32.atomicLoad(rootPlace));
  const wordOf = (frame: I32, field: 'decode' | 'count'): I32 =>
    i32.atomicLoad(i32.mul(frame, i32.const(FRAME.sizeBytes)), frameTable + FRAME.at[field]);
  // Who reads need not care for a change that is going on: what it replaces is good until it ends.
  const sequence = (): I32 => access === 'write' ? wordOf(root, 'decode') : i32.or(wordOf(root, 'decode'), i32.const(1));
  const before = f.let(sequence());
  if (access === 'write') giveUp(i32.and(before, i32.const(1)));
  const mask = access === 'write' ? P2M_KIND_MASK | P2M_READ_ONLY : P2M_KIND_MASK;
  const frame = f.local('i32');
  f.set(frame, root);
  for (const level of [2, 1, 0]) {
    const index = i32.and(i32.shrU(guest, i32.const(level * P2M_LEVEL_BITS)), i32.const(P2M_ENTRIES - 1));
    const entry = f.let(i32.atomicLoad(byteOfFrame(module, frame, i32.shl(index, i32.const(3)))));
    giveUp(i32.ne(i32.and(entry, i32.const(mask)), i32.const(level === 0 ? P2M_KIND.frame : P2M_KIND.node)));
    f.set(frame, i32.shrU(entry, i32.const(P2M_VALUE_SHIFT)));
    // A node that was freed meanwhile may say anything.
    giveUp(i32.geU(frame, i32.const(frameEnd)));
    if (access === 'write') giveUp(i32.ne(i32.and(wordOf(frame, 'count'), i32.const(FRAME_MAPPING_MASK)), i32.const(FRAME_MAPPING)));
  }
  giveUp(i32.ne(sequence(), before));
  const place = cacheEntry(f, vcpu, gfn, isWrite);
  emitUseLine(f, vcpu, f.let(i32.add(place, i32.const(frameCacheOffsets.read))), () => {});
  f.do(i32.store(place, guest, frameCacheOffsets.read));
  f.do(i32.store(place, frame, frameCacheOffsets.read + 4));
  f.push(frame);
  return f;
}

/** (vcpu, va, el, access) → machine frame with ANSWER_USER, a fault with ANSWER_FAULT, or 0 */
function emitTranslate(module: ModuleBuilder, readFrame: Callable, writeFrame: Callable): Callable {
  assert(at.ttbr1El1 === at.ttbr0El1 + 8, 'the translation table registers lie side by side');
  const f = module.function({ params: ['i32', 'i64', 'i32', 'i32'], results: ['i64'] });
  const vcpu = f.param(0, 'i32');
  const va = f.param(1, 'i64');
  const el = f.param(2, 'i32');
  const access = f.param(3, 'i32');
  const giveUp = (condition: I32): void => giveUpIf(f, condition, i64.const(0));

  const sctlr = f.let(i32.load(vcpu, at.sctlrEl1));
  const tcr = f.let(i64.load(vcpu, at.tcrEl1));
  giveUp(i32.eqz(i32.and(sctlr, i32.const(SCTLR_M))));
  giveUp(i32.ltU(i32.and(i32.wrapI64(i64.shrU(tcr, i64.const(TCR_IPS_SHIFT))), i32.const(7)), i32.const(IPS_40)));
  const upper = f.let(bit(va, 55));
  const half = f.let(i32.wrapI64(i64.shrU(tcr, i64.extendI32U(i32.shl(upper, i32.const(4))))));
  giveUp(i32.and(half, i32.const(TCR_EPD)));
  const isEl0 = f.let(i32.eqz(el));
  giveUp(i32.and(isEl0, i32.wrapI64(i64.shrU(tcr, i64.extendI32U(i32.add(upper, i32.const(TCR_E0PD0_SHIFT)))))));
  const inputBits = f.let(i32.sub(i32.const(64), i32.and(half, i32.const(63))));
  giveUp(i32.gtU(i32.sub(inputBits, i32.const(25)), i32.const(48 - 25)));
  giveUp(i64.ne(i64.shrS(va, i64.extendI32U(inputBits)), i64.sub(i64.const(0), i64.extendI32U(upper))));
  const below = (bits: I64): I64 => i64.sub(i64.shl(i64.const(1), bits), i64.const(1));
  const offset = f.let(i64.and(va, below(i64.extendI32U(inputBits))));

  // Nine bits a level, the last of them above the twelve of the page.
  const levels = i32.divU(i32.sub(inputBits, i32.const(12 - 8)), i32.const(9));
  const shift = f.let(i64.extendI32U(i32.add(i32.mul(levels, i32.const(9)), i32.const(3))));
  const table = f.let(i64.and(i64.load(i32.add(vcpu, i32.shl(upper, i32.const(3))), at.ttbr0El1), i64.const(0xffff_ffff_ffc0n)));
  const descriptor = f.local('i64');
  const place = f.local('i64');
  /** All table descriptors on the way, for their permissions: at first, as every local, zero. */
  const tables = f.local('i64');
  f.loop(next => {
    f.set(place, i64.add(table, i64.shl(i64.and(i64.shrU(offset, shift), i64.const(511)), i64.const(3))));
    const frame = f.let(f.callExpr('i32', readFrame, vcpu, i64.shrU(place, i64.const(12))));
    giveUp(i32.eqz(frame));
    // As a whole: another vCPU may be writing it.
    f.set(descriptor, i64.atomicLoad(byteOfFrame(module, frame, i32.and(i32.wrapI64(place), i32.const(0xfff)))));
    faultIf(f, i64.eqz(i64.and(descriptor, i64.const(DESCRIPTOR_VALID))), faultStatus.translation, shift);
    const isLast = i64.eq(shift, i64.const(12));
    f.if(i32.wrapI64(i64.and(descriptor, i64.const(DESCRIPTOR_TABLE))), () => {
      f.if(i32.eqz(isLast), () => {
        f.set(tables, i64.or(tables, descriptor));
        f.set(table, i64.and(descriptor, i64.const(ADDRESS_BITS)));
        f.set(shift, i64.sub(shift, i64.const(9)));
        f.br(next);
      });
    }, () => giveUp(i32.or(isLast, i64.eq(shift, i64.const(39)))));
  });

  // Access flag and dirty state may be the hardware's to manage.
  giveUp(not(i32.or(bit(descriptor, AF), bit(tcr, TCR_HA))));
  giveUp(i64.ne(i64.and(descriptor, i64.const(BEYOND_40_BITS)), i64.const(0)));
  const refuse = (condition: I32): void => faultIf(f, condition, faultStatus.permission, shift);
  const user = f.let(i32.and(bit(descriptor, AP1_EL0), not(bit(tables, AP_TABLE_NO_EL0))));
  const isWrite = f.let(i32.eq(access, i32.const(ACCESS_WRITE)));
  const updated = f.let(i64.or(descriptor, i64.const(1n << BigInt(AF))));
  const managesDirty = i32.and(bit(tcr, TCR_HA), bit(tcr, TCR_HD));
  f.if(i32.and(i32.and(isWrite, bit(descriptor, DBM)), managesDirty), () => {
    f.set(updated, i64.and(updated, i64.const(~(1n << BigInt(AP2_READ_ONLY)))));
  });
  const readOnly = f.let(i32.or(bit(updated, AP2_READ_ONLY), bit(tables, AP_TABLE_READ_ONLY)));
  f.if(i32.eq(access, i32.const(ACCESS_EXEC)), () => {
    const writable = f.let(not(readOnly));
    const wxn = f.let(i32.and(writable, i32.ne(i32.and(sctlr, i32.const(SCTLR_WXN)), i32.const(0))));
    f.if(isEl0, () => {
      refuse(i32.or(bit(descriptor, UXN), bit(tables, UXN_TABLE)));
      refuse(i32.and(wxn, user));
    }, () => {
      refuse(i32.or(bit(descriptor, PXN), bit(tables, PXN_TABLE)));
      refuse(i32.or(wxn, i32.and(user, writable)));
    });
  }, () => {
    f.if(isEl0, () => refuse(i32.eqz(user)), () => f.if(user, () => refuse(i32.load(vcpu, at.pan))));
    refuse(i32.and(isWrite, readOnly));
  });
  f.if(i64.ne(updated, descriptor), () => {
    const frame = f.let(f.callExpr('i32', writeFrame, vcpu, i64.shrU(place, i64.const(12))));
    giveUp(i32.eqz(frame));
    const word = byteOfFrame(module, frame, i32.and(i32.wrapI64(place), i32.const(0xfff)));
    giveUp(i64.ne(atomicCmpxchg[3]!(word, descriptor, updated), descriptor));
  }, undefined, 'unlikely');
  const attributesAt = i64.shl(i64.and(i64.shrU(descriptor, i64.const(2)), i64.const(7)), i64.const(3));
  const attributes = i32.wrapI64(i64.and(i64.shrU(i64.load(vcpu, at.mairEl1), attributesAt), i64.const(0xff)));
  giveUp(i32.ltU(attributes, i32.const(MAIR_DEVICE_END)));

  // The first of its kind is to be told to others, and then read again.
  const isGlobal = not(bit(descriptor, NOT_GLOBAL));
  f.if(i32.and(isGlobal, i32.eqz(upper)), () => giveUp(i32.eqz(i32.load(vcpu, coverage('globalInLowerHalf')))));

  const inside = f.let(below(shift));
  const outside = i64.xor(inside, i64.const(-1n));
  const physical = i64.or(i64.and(i64.and(descriptor, i64.const(ADDRESS_BITS)), outside), i64.and(offset, inside));
  const gfn = f.let(i64.shrU(physical, i64.const(12)));
  const frame = f.local('i32');
  f.if(isWrite, () => f.set(frame, f.callExpr('i32', writeFrame, vcpu, gfn)),
    () => f.set(frame, f.callExpr('i32', readFrame, vcpu, gfn)));
  giveUp(i32.eqz(frame));
  emitNoteFill(f, vcpu, va, upper, el, bit(descriptor, NOT_GLOBAL), shift);
  f.push(i64.or(i64.extendI32U(frame), i64.shl(i64.extendI32U(user), i64.const(ANSWER_USER))));
  return f;
}

/** As `noteFill` in tlb.ts. */
function emitNoteFill(f: FunctionBuilder, vcpu: I32, va: I64, upper: I32, el: I32, notGlobal: I32, shift: I64): void {
  f.if(i32.and(not(upper), el), () => f.do(i32.store(vcpu, i32.const(1), coverage('lowerHalfAtEl1'))));
  f.if(i32.and(upper, notGlobal), () => f.do(i32.store(vcpu, i32.const(1), coverage('notGlobalInUpperHalf'))));
  f.if(i64.eq(shift, i64.const(BLOCK_REACH)), () => {
    const number = f.let(i32.wrapI64(i64.shrU(va, i64.const(BLOCK_REACH))));
    const inBitmap = i32.and(i32.shrU(number, i32.const(3)), i32.const((1 << BLOCK_BITS) / 8 - 4));
    const word = f.let(i32.add(vcpu, inBitmap));
    f.do(i32.store(word, i32.or(i32.load(word, coverage('blocks')), i32.shl(i32.const(1), number)), coverage('blocks')));
  });
  f.if(i64.gtU(shift, i64.const(BLOCK_REACH)), () => f.do(i32.store(vcpu, i32.const(1), coverage('largeBlocks'))));
}

/** A miss that is served in emitted code; those that are not count themselves (emitted-calls.ts). */
export function emitCount(f: FunctionBuilder, vcpu: I32): void {
  f.do(i32.store(vcpu, i32.add(i32.load(vcpu, at.tlbMisses), i32.const(1)), at.tlbMisses));
}

/** Not counted as a miss yet: that is for who takes the abort. */
function answerFault(f: FunctionBuilder, answer: I64): void {
  f.if(bit(answer, ANSWER_FAULT), () => f.return(i32.wrapI64(answer)), undefined, 'unlikely');
}

function entryOf(f: FunctionBuilder, tlb: I32, va: I64): I32 {
  const index = i32.and(i32.shrU(i32.wrapI64(va), i32.const(8)), i32.const((TLB_ENTRIES - 1) * TLB_ENTRY_BYTES));
  return f.let(i32.add(index, tlb));
}

/**
 * As `useLine` in lines-in-use.ts.
 * @param entry address of something in the line, pinned
 * @param atFirst emits what is done to a line that was not in use
 */
function emitUseLine(f: FunctionBuilder, vcpu: I32, entry: I32, atFirst: () => void): void {
  const line = f.let(i32.shrU(i32.sub(i32.sub(entry, vcpu), i32.const(linesOffset)), i32.const(Math.log2(LINE_BYTES))));
  const word = f.let(i32.add(vcpu, i32.shl(i32.shrU(line, i32.const(5)), i32.const(2))));
  const bits = f.let(i32.load(word, linesInUseOffset));
  const used = f.let(i32.or(bits, i32.shl(i32.const(1), line)));
  f.if(i32.ne(used, bits), () => {
    f.do(i32.store(word, used, linesInUseOffset));
    atFirst();
  }, undefined, 'unlikely');
}

/** For whatever the entry will be. */
function emitUseTlbLine(f: FunctionBuilder, vcpu: I32, entry: I32): void {
  emitUseLine(f, vcpu, entry, () => emitEmptyLine(f, f.let(i32.and(entry, i32.const(-LINE_BYTES)))));
}

/** @param line address of a line of TLB entries, pinned */
export function emitEmptyLine(f: FunctionBuilder, line: I32): void {
  for (let offset = 0; offset < LINE_BYTES; offset += TLB_ENTRY_BYTES) {
    f.do(i64.store(line, i64.const(TLB_INVALID_TAG), offset + tlbEntry.at.tag));
  }
}

/** If the page was put out of the TLB a short while ago, its entry changes places with the one that is there now, and is returned. */
function emitRecall(f: FunctionBuilder, victims: I32, entry: I32, page: I64): void {
  for (let offset = 0; offset < VICTIM_BYTES; offset += TLB_ENTRY_BYTES) {
    f.if(i64.eq(i64.load(victims, offset + tlbEntry.at.tag), page), () => {
      const target = f.let(i64.load(victims, offset + tlbEntry.at.target));
      f.do(i64.store(victims, i64.load(entry, tlbEntry.at.tag), offset + tlbEntry.at.tag));
      f.do(i64.store(victims, i64.load(entry, tlbEntry.at.target), offset + tlbEntry.at.target));
      f.do(i64.store(entry, page, tlbEntry.at.tag));
      f.do(i64.store(entry, target, tlbEntry.at.target));
      f.return(entry);
    });
  }
}

/** Keeps what is about to be put out of the TLB. */
function emitKeep(f: FunctionBuilder, vcpu: I32, victims: I32, entry: I32, page: I64): void {
  const tag = f.let(i64.load(entry, tlbEntry.at.tag));
  const isNone = i32.and(i32.wrapI64(tag), i32.const(TLB_INVALID_TAG));
  f.if(i32.eqz(i32.or(isNone, i64.eq(tag, page))), () => {
    const place = f.let(i32.load(vcpu, nextVictimOffset));
    const victim = f.let(i32.add(victims, place));
    f.do(i64.store(victim, tag, tlbEntry.at.tag));
    f.do(i64.store(victim, i64.load(entry, tlbEntry.at.target), tlbEntry.at.target));
    f.do(i32.store(vcpu, i32.and(i32.add(place, i32.const(TLB_ENTRY_BYTES)), i32.const(VICTIM_BYTES - 1)), nextVictimOffset));
  });
}

function emitFillData(module: ModuleBuilder, walk: Callable): Callable {
  const distance = tlbOffsets[0].write - tlbOffsets[0].read;
  const f = module.function({ params: ['i32', 'i64', 'i32', 'i32'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const va = f.param(1, 'i64');
  const sizeAndFlags = f.param(2, 'i32');
  const isWrite = f.param(3, 'i32');
  const giveUp = (condition: I32): void => giveUpIf(f, condition, i32.const(0));
  // Emitted code does not look at SCTLR_EL1.A: while it is set, accesses stay on the slow path.
  giveUp(i32.and(i32.load(vcpu, at.sctlrEl1), i32.const(SCTLR_A)));
  const size = f.let(i32.and(sizeAndFlags, i32.const(0xff)));
  const low = f.let(i32.wrapI64(va));
  giveUp(i32.gtU(i32.add(i32.and(low, i32.const(0xfff)), size), i32.const(4096)));
  f.if(i32.and(sizeAndFlags, i32.const(ACCESS_ALIGNED)), () => giveUp(i32.and(low, i32.sub(size, i32.const(1)))));
  const el = f.let(i32.load(vcpu, at.el));
  f.if(i32.and(sizeAndFlags, i32.const(ACCESS_UNPRIVILEGED)), () => f.set(el, i32.const(0)));
  const set = i32.add(i32.mul(el, i32.const(tlbOffsets[1].read - tlbOffsets[0].read)), i32.const(tlbOffsets[0].read));
  const entry = entryOf(f, i32.add(i32.add(vcpu, set), i32.mul(isWrite, i32.const(distance))), va);
  const page = f.let(i64.and(va, i64.const(~0xfffn)));
  const [first, ofWrite, ofEl1] = [tlbOffsets[0].read, tlbOffsets[0].write, tlbOffsets[1].read].map(victimsOf) as [number, number, number];
  const victims = f.let(i32.add(i32.add(vcpu, i32.const(first)),
    i32.add(i32.mul(el, i32.const(ofEl1 - first)), i32.mul(isWrite, i32.const(ofWrite - first)))));
  emitUseTlbLine(f, vcpu, entry);
  emitRecall(f, victims, entry, page);
  const answer = f.let(f.callExpr('i64', walk, vcpu, va, el, isWrite));
  giveUp(i64.eqz(answer));
  answerFault(f, answer);
  const user = bit(answer, ANSWER_USER);
  f.if(i32.and(el, user), () => f.do(i32.store(vcpu, i32.const(1), coverage('userEntriesAtEl1'))));
  emitKeep(f, vcpu, victims, entry, page);
  const host = i64.shl(i64.and(answer, i64.const(0xffff_ffffn)), i64.const(12));
  f.do(i64.store(entry, i64.sub(host, page), tlbEntry.at.target));
  f.do(i64.store(entry, page, tlbEntry.at.tag));
  emitCount(f, vcpu);
  f.push(entry);
  return f;
}

function emitFillExec(module: ModuleBuilder, walk: Callable, { frameTable, codeSlots }: WalkLayout): Callable {
  const f = module.function({ params: ['i32', 'i64'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const va = f.param(1, 'i64');
  const giveUp = (condition: I32): void => giveUpIf(f, condition, i32.const(0));
  giveUp(i32.and(i32.wrapI64(va), i32.const(3)));
  const entry = entryOf(f, i32.load(vcpu, at.tlbExec), va);
  const page = f.let(i64.and(va, i64.const(~0xfffn)));
  const el = f.let(i32.load(vcpu, at.el));
  const [ofEl0, ofEl1] = tlbOffsets.map(({ exec }) => victimsOf(exec)) as [number, number];
  const victims = f.let(i32.add(i32.add(vcpu, i32.const(ofEl0)), i32.mul(el, i32.const(ofEl1 - ofEl0))));
  emitUseTlbLine(f, vcpu, entry);
  emitRecall(f, victims, entry, page);
  const answer = f.let(f.callExpr('i64', walk, vcpu, va, el, i32.const(ACCESS_EXEC)));
  giveUp(i64.eqz(answer));
  answerFault(f, answer);
  const frame = i32.mul(i32.wrapI64(answer), i32.const(FRAME.sizeBytes));
  const number = f.let(i32.atomicLoad(frame, frameTable + FRAME.at.decode));
  giveUp(i32.eqz(number));
  const slot = i32.add(i32.mul(i32.sub(number, i32.const(1)), i32.const(SLOT_BYTES)), i32.const(codeSlots));
  emitKeep(f, vcpu, victims, entry, page);
  f.do(i32.store(entry, slot, tlbEntry.at.target));
  f.do(i64.store(entry, page, tlbEntry.at.tag));
  emitCount(f, vcpu);
  f.push(entry);
  return f;
}

/** What an IC IVAU has to tell is only told of pages of which there are decoded instructions. */
function emitMaintain(module: ModuleBuilder, walk: Callable, { frameTable }: WalkLayout): Callable {
  const f = module.function({ params: ['i32', 'i32', 'i64'], results: ['i32'] });
  const vcpu = f.param(0, 'i32');
  const operation = f.param(1, 'i32');
  const va = f.param(2, 'i64');
  const giveUp = (condition: I32): void => giveUpIf(f, condition, i32.const(0));
  const isIt = (code: number): I32 => i32.eq(operation, i32.const(code));
  const isIvau = f.let(isIt(cacheOperation.IC_IVAU));
  const { DC_CVAC, DC_CVAU, DC_CIVAC } = cacheOperation;
  giveUp(i32.eqz(i32.or(i32.or(isIvau, isIt(DC_CVAU)), i32.or(isIt(DC_CVAC), isIt(DC_CIVAC)))));
  const el = f.let(i32.load(vcpu, at.el));
  f.if(i32.eqz(el), () => giveUp(i32.eqz(i32.and(i32.load(vcpu, at.sctlrEl1), i32.const(SCTLR_UCI)))));
  const answer = f.let(f.callExpr('i64', walk, vcpu, va, el, i32.const(ACCESS_READ)));
  giveUp(i64.eqz(answer));
  // What PSTATE.PAN refuses to an access, it does not refuse here.
  giveUp(bit(answer, ANSWER_FAULT));
  const decoded = i32.atomicLoad(i32.mul(i32.wrapI64(answer), i32.const(FRAME.sizeBytes)), frameTable + FRAME.at.decode);
  f.push(i32.eqz(i32.and(isIvau, i32.ne(decoded, i32.const(0)))));
  return f;
}
