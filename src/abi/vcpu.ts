// The vCPU record: everything a virtual CPU is, in machine memory, so that emitted code and any pCPU's TypeScript work
// on the same state and a vCPU can move between pCPUs by handing over its address.
//
//   0 ┌──────────────────────────────┐
//     │ general registers, flags,    │
//     │ execution state, V0–V31,     │
//     │ system registers             │
//  4K ├──────────────────────────────┤
//     │ TLBs for EL0: read│write│exec│  1024 entries of 16 bytes each
//     │ TLBs for EL1: read│write│exec│
//     │ stage two: read│write        │  512 entries of 8 bytes each: guest frame, machine frame
//     ├──────────────────────────────┤
//     │ lines in use                 │  a bit for each 64 bytes of these
//     │ what the TLBs cover, requests│
//     │ victims of the TLBs          │  8 entries of 16 bytes for each, in the same order
//     └──────────────────────────────┘

import { tuning } from '../base/tuning.ts';
import { array, struct, u128, u32, u64 } from './struct.ts';

export const TLB_ENTRY_BYTES = 16;
/** A power of two, and not 1: pages beside each other never have the same place. */
export const TLB_ENTRIES = tuning.tlbEntries ?? 1024;

/**
 * TLBs and the caches of stage 2 are emptied by their lines in use: since they were empty, something has been put into no
 * others. A whole number of words of such bits belongs to each of them. A line of TLB entries that is not in use is empty
 * or, before its first use, zero. Of a TLB the first and the last entry must not be zero even then: they are compared to page 0,
 * the last one for accesses that cross from the last page of the address space into the first.
 */
export const LINE_BYTES = 64;
const placeOf = (entries: number, entryBytes: number): number => Math.max(entries * entryBytes, 32 * LINE_BYTES);
/** Of one TLB. */
export const TLB_BYTES = placeOf(TLB_ENTRIES, TLB_ENTRY_BYTES);

/**
 * TLB entry. `tag` is the page's virtual address, or TLB_INVALID_TAG. Read and write: `target` + virtual address =
 * host address (modulo 2^32 or 2^64). Exec: `target` is the address of the page's decoded records.
 */
export const tlbEntry = struct('tlb_entry', { tag: u64, target: u64 }, { sizeBytes: TLB_ENTRY_BYTES });
/**
 * Equals no page address and no page address with alignment bits below 16. An entry is empty whenever this bit of its tag is
 * set.
 */
export const TLB_INVALID_TAG = 0x800;

export const vcpuRecord = struct('vcpu', {
  /** X0–X30, then SP, a slot that reads as zero, a slot that takes discarded results (a64/operand.ts). */
  x: array(u64, 34),
  /** Operands and results of slow paths. */
  scratch: array(u64, 8),
  v: array(u128, 32),

  // Condition flags, not normalised: N is bit 63 of flagN, Z is flagZ === 0, C is flagC (0 or 1), V is bit 31 of flagV.
  flagN: u64, flagZ: u64, flagC: u32, flagV: u32,
  fpcr: u32, fpsr: u32,

  // ---- execution
  /** PC = pcBase + (record address >> 2), while code of the current page runs. */
  pcBase: u64,
  /** Record to go on with; 0: leave emitted code. */
  record: u32,
  /** Sixteen times the instructions left, plus the address of the current record: constant along straight lines. */
  fuel: u32,
  /** Non-zero when someone wants the vCPU to leave emitted code at the next branch: PENDING. By any thread, atomically. */
  pending: u32,
  /** Non-zero after a slow access that ended in an exception: `record` holds where to go on. */
  abort: u32,
  /** Addresses of the current exception level's TLBs. */
  tlbRead: u32, tlbWrite: u32, tlbExec: u32,
  /** Non-zero: SIMD&FP instructions are trapped at the current exception level. */
  fpTrap: u32,
  /** Bits that must be clear in an SP that memory is accessed by, at the current exception level. */
  spAlignmentMask: u32,

  // ---- PSTATE and banked registers
  el: u32, spSel: u32,
  /** D, A, I, F in bits 9 … 6, as in SPSR. */
  daif: u32,
  /** As in SPSR: bit 22. */
  pan: u32,
  /** As in SPSR: bits 23 (UAO), 20 (IL), 21 (SS). */
  pstateRest: u32,
  /** IRQ line from the interrupt controller, as last evaluated. */
  irqLine: u32,
  /** The pCPU that ran the vCPU last, plus 1. */
  lastPcpu: u32,
  /** How often others have wanted TLB entries gone, and how many of that were obeyed: cpu/tlb-requests.ts. */
  tlbFlushRequest: u32, tlbFlushDone: u32,
  /** Non-zero while a pCPU runs the vCPU's code or its slow paths. */
  running: u32,
  spEl0: u64, spEl1: u64,
  elrEl1: u64, spsrEl1: u64, esrEl1: u64, farEl1: u64, vbarEl1: u64,

  /** Host address of the exclusive monitor; all ones: open. */
  exclusiveAddress: u64, exclusiveValueLow: u64, exclusiveValueHigh: u64,

  // ---- system registers
  sctlrEl1: u64, actlrEl1: u64, cpacrEl1: u64,
  ttbr0El1: u64, ttbr1El1: u64, tcrEl1: u64, mairEl1: u64, amairEl1: u64, contextidrEl1: u64,
  afsr0El1: u64, afsr1El1: u64, parEl1: u64,
  tpidrEl0: u64, tpidrroEl0: u64, tpidrEl1: u64,
  csselrEl1: u64, cntkctlEl1: u64,
  mdscrEl1: u64, mdccintEl1: u64, oslarEl1: u64, osdlrEl1: u64,
  dbgbvr: array(u64, 16), dbgbcr: array(u64, 16), dbgwvr: array(u64, 16), dbgwcr: array(u64, 16),
  pmcrEl0: u64, pmuserenrEl0: u64,
  mpidrEl1: u64,
  cntvCtl: u64, cntvCval: u64, cntpCtl: u64, cntpCval: u64,

  // ---- counts
  instructionsRetired: u64,
  /** Accesses to system registers that this CPU does not have. */
  unknownSystemRegisters: u64,
  /** Modulo 2^32. */
  hypercalls: u32,
  /** Times that emitted code found no entry in a TLB, modulo 2^32. */
  tlbMisses: u32,
  /** What the pCPU that runs it is doing for it now, one of ACTIVITY: for whoever looks from time to time. */
  activity: u32,
  /** Exceptions of this run that cost fuel though they retired nothing, so that a guest cannot raise them for ever. */
  charged: u32,
}, { padTo: 4096 });

/** Bits of `pending`: the slice is to end; or it may go on after a look at the IRQ line and at TLB requests. */
export const PENDING = { leave: 1, attend: 2 } as const;

/** Emitted code; TLB misses; decoding, and taking in compiled code; other calls from emitted code; emulated registers. */
export const ACTIVITY = { code: 0, memory: 1, decoding: 2, hypervisor: 3, devices: 4 } as const;

const tlbAt = (index: number) => vcpuRecord.sizeBytes + index * TLB_BYTES;
/** Offsets in the vCPU record of the TLBs of an exception level. */
export const tlbOffsets = [
  { read: tlbAt(0), write: tlbAt(1), exec: tlbAt(2) },
  { read: tlbAt(3), write: tlbAt(4), exec: tlbAt(5) },
] as const;
export const TLB_SET_BYTES = 3 * TLB_BYTES;

/** What stage 2 has said of guest frames, direct-mapped by their low bits; empty: machine frame 0. */
export const FRAME_CACHE_ENTRIES = tuning.frameCacheEntries ?? 512;
export const FRAME_CACHE_ENTRY_BYTES = 8;
export const FRAME_CACHE_BYTES = placeOf(FRAME_CACHE_ENTRIES, FRAME_CACHE_ENTRY_BYTES);
export const frameCacheOffsets = { read: tlbAt(6), write: tlbAt(6) + FRAME_CACHE_BYTES } as const;

/** From here on are the lines that have bits. */
export const linesOffset = tlbAt(0);
export const linesInUseOffset = tlbAt(6) + 2 * FRAME_CACHE_BYTES;
export const LINES = (linesInUseOffset - linesOffset) / LINE_BYTES;

export const TLB_REQUESTS = 16;

/** What TLB entries were made from since the TLBs were last emptied, for those who have to empty them in part. */
export const tlbCoverage = struct('tlb_coverage', {
  /** Some entry of the upper half belongs to one ASID only; then a change of ASID flushes both halves. */
  notGlobalInUpperHalf: u32,
  /** Some entry of the lower half may belong to all ASIDs. Set before the tables are read from which the first is made. */
  globalInLowerHalf: u32,
  /** The ASID that all other entries belong to: the current one. */
  asid: u32,
  /** EL1's read and write TLBs may have entries for pages that EL0 may access; never while PSTATE.PAN is set at EL1. */
  userEntriesAtEl1: u32,
  /** EL1's TLBs may have entries of the lower half. */
  lowerHalfAtEl1: u32,
  /** Address of the word that names the root of the domain's p2m, while a pCPU runs the vCPU; 0: there is none. */
  stageTwoRoot: u32,
  /** Some entry comes from a block descriptor of more than 2 MiB. */
  largeBlocks: u32,
  /** One bit for each block of 2 MiB from which an entry comes, by the low bits of its number (`blockNumber`). */
  blocks: array(u32, 128),
  /** What the latest requests to forget entries ask for: cpu/tlb-requests.ts. */
  requests: array(u64, TLB_REQUESTS),
});
/** log2 of how many bits `blocks` has, and of a block's size. */
export const BLOCK_BITS = 12;
export const BLOCK_REACH = 21;
export const tlbCoverageOffset = linesInUseOffset + LINES / 8;

/**
 * For each TLB, in the order of the TLBs, the entries that others have put out of it last: pages of the same place in a
 * TLB that are used in turn do not have to be walked to each time. They are entries like those of the TLB itself, and
 * whatever empties it, or takes single entries out of it, does so here.
 */
export const VICTIM_ENTRIES = 8;
export const VICTIM_BYTES = VICTIM_ENTRIES * TLB_ENTRY_BYTES;
export const victimsOffset = Math.ceil((tlbCoverageOffset + tlbCoverage.sizeBytes) / LINE_BYTES) * LINE_BYTES;
/** Of the victims of the TLB at an offset of `tlbOffsets`. */
export const victimsOf = (tlbOffset: number): number => victimsOffset + (tlbOffset - tlbAt(0)) / TLB_BYTES * VICTIM_BYTES;
/** A word: where among the victims of its TLB the next one comes, in bytes. */
export const nextVictimOffset = victimsOffset + 6 * VICTIM_BYTES;
/** Whole frames. */
export const VCPU_BYTES = Math.ceil((nextVictimOffset + 4) / 4096) * 4096;

/** Offsets of single registers. */
export const xOffset = (slot: number): number => vcpuRecord.at.x + 8 * slot;
export const vOffset = (n: number): number => vcpuRecord.at.v + 16 * n;
export const scratchOffset = (index: number): number => vcpuRecord.at.scratch + 8 * index;
