// The working set: which pages a guest was using when it was saved, so that a guest that is restored need not wait for them
// one by one. The pages that it needs at once are the image's hot pages, stored a second time, one after the other; the
// others are listed in a section, and are read before the rest of the image.
//
//   section "working-set":        gfn u32 │ count u32   for each stretch of pages, in the order of reading
//
//   1  pages that the hypervisor holds: of the console, the store, …  at the state that is saved           hot
//   2  what a rehearsal has touched (rehearsal.ts), in its order      from that state on                   hot
//   3  what the vCPUs' TLBs led to: code, data                        just before the guest was stopped    hot if 2 has few
//   4  page tables that lead to these, from TTBR0_EL1 and TTBR1_EL1   at the state that is saved           hot if 2 has few
//   5  the other page tables; code that has run since the decode cache was last emptied                    listed
//
// The hot ones are listed as well, and what of them the rehearsal has run is in a section of its own (code-section.ts). An
// incremental image has this section alone. A reader may overlook it, and believes it in nothing but the order.

import { FRAME_BYTES, P2M_ENTRIES } from '../abi/machine-memory.ts';
import { LINE_BYTES, TLB_BYTES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import { DecodeCache } from '../cpu/decode-cache.ts';
import { linesInUse } from '../cpu/lines-in-use.ts';
import type { Image } from '../image/image.ts';
import type { StateSection } from '../image/format.ts';
import type { PageFrame } from '../image/page-writer.ts';
import type { FrameTable } from '../memory/frame-table.ts';
import type { PageStretch } from '../memory/image-pages.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { p2mRanges } from '../memory/p2m-ranges.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { codeSection } from './code-section.ts';
import type { Rehearsed } from './rehearsal.ts';

const SECTION = 'working-set';
/** 32 MiB of guest memory. */
const PAGES_MAX = 8192;
const TABLES_MAX = 1024;
/** A guest that has touched fewer was waiting, or had no time: what it used before may tell more. */
const HOT_PAGES_ENOUGH = 200;
const STRETCH_BYTES = 8;
/** Pages that lie so near to each other are read in one request, with what is between them. */
const GAP_PAGES = 8;
/** Address bits of descriptors: 48. */
const ADDRESS_HIGH = 0xffff;

/**
 * MFNs of what vCPUs have in their TLBs: what they read, write and run. They may be running: what is read half-way in a
 * change is a wrong hint and no more.
 */
export function framesInTlbs(machine: MachineMemory, vcpuAddresses: readonly number[]): Set<number> {
  const { u32 } = machine;
  const cache = new DecodeCache(machine);
  const frames = new Set<number>();
  const hostFrame = (word: number): number => {
    const low = u32[word]! + u32[word + 2]!;
    const high = (u32[word + 1]! + u32[word + 3]! + (low >= 2 ** 32 ? 1 : 0)) >>> 0;
    // With 32-bit addresses the upper half means nothing.
    return Math.floor((low % 2 ** 32 + (machine.parameters.addressType === 'i64' ? high * 2 ** 32 : 0)) / FRAME_BYTES);
  };
  for (const address of vcpuAddresses) {
    for (const { read, write, exec } of tlbOffsets) {
      for (const tlb of [read, write, exec]) {
        for (const line of linesInUse({ address, u32 }, tlb, TLB_BYTES)) {
          for (let word = line; word < line + LINE_BYTES / 4; word += TLB_ENTRY_BYTES / 4) {
            if ((u32[word]! & TLB_INVALID_TAG) !== 0) continue;
            frames.add(tlb === exec ? cache.frameOfSlot(u32[word + 2]!) : hostFrame(word));
          }
        }
      }
    }
  }
  return frames;
}

/**
 * @param hot pages that a rehearsal has touched (rehearsal.ts), and what `framesInTlbs` found before the domain was stopped
 * @param withPages false for an image that is to hold only what has changed: the section alone
 */
export function workingSetOf(
  machine: MachineMemory, frames: FrameTable, frozen: FrozenDomain,
  hot: Rehearsed & { readonly inTlbs: ReadonlySet<number> }, withPages: boolean,
): { sections: StateSection[]; hotPages: PageFrame[] } {
  const mfns = mapOfFrames(machine, frozen.root);
  const held = frozen.state.held.flatMap(({ gfn, bytes }) => (bytes === undefined && mfns.has(gfn) ? [gfn] : []));
  const inTlbs: number[] = [];
  const haveRun: number[] = [];
  for (const [gfn, mfn] of mfns) {
    if (hot.inTlbs.has(mfn)) inTlbs.push(gfn);
    else if (frames.decode(mfn) !== 0) haveRun.push(gfn);
  }
  const tables = tablesOf(machine, frozen, mfns, new Set(inTlbs));
  const chosen = new Set<number>();
  const stretches: PageStretch[] = [];
  const choose = (gfns: readonly number[]): void => {
    const fresh = gfns.filter((gfn) => !chosen.has(gfn)).slice(0, PAGES_MAX - chosen.size);
    for (const gfn of fresh) chosen.add(gfn);
    stretches.push(...joined(fresh));
  };
  for (const gfns of [held, hot.touched.filter((gfn) => mfns.has(gfn))]) choose(gfns);
  if (chosen.size < HOT_PAGES_ENOUGH) for (const gfns of [inTlbs, tables.hot]) choose(gfns);
  const hotPages = inOrderOfPlacing(held, [...chosen]).map((gfn) => ({ gfn, mfn: mfns.get(gfn)! }));
  for (const gfns of [inTlbs, tables.hot, tables.other, haveRun]) choose(gfns);
  const bytes = new Uint8Array(stretches.length * STRETCH_BYTES);
  const view = new DataView(bytes.buffer);
  stretches.forEach(({ gfn, count }, i) => {
    view.setUint32(i * STRETCH_BYTES, gfn, true);
    view.setUint32(i * STRETCH_BYTES + 4, count, true);
  });
  if (!withPages) return { sections: [{ name: SECTION, bytes }], hotPages: [] };
  return { sections: [{ name: SECTION, bytes }, codeSection(hotPages.map(({ gfn }) => gfn), hot.code)], hotPages };
}

/**
 * Those first that lie in a node of the p2m with a page that the hypervisor holds: a domain that is made of the image has its
 * own copies of these nodes from the beginning, and gets into them only what is there by then.
 */
function inOrderOfPlacing(held: readonly number[], gfns: readonly number[]): number[] {
  const nodeOf = (gfn: number): number => Math.floor(gfn / P2M_ENTRIES);
  const nodes = new Set(held.map(nodeOf));
  const isEarly = (gfn: number): boolean => nodes.has(nodeOf(gfn));
  const isHeld = new Set(held);
  const others = gfns.filter((gfn) => !isHeld.has(gfn));
  return [...gfns.filter((gfn) => isHeld.has(gfn)), ...others.filter(isEarly), ...others.filter((gfn) => !isEarly(gfn))];
}

function mapOfFrames(machine: MachineMemory, root: number): Map<number, number> {
  const mfns = new Map<number, number>();
  for (const { gfn, count, mfn } of p2mRanges(machine, root)) {
    if (mfn === 0) continue;
    for (let i = 0; i < count; i++) mfns.set(gfn + i, mfn + i);
  }
  return mfns;
}

/**
 * GFNs of the stage 1 tables of all vCPUs, those that lead to hot pages apart; whatever the guest says there, each page
 * is looked at once.
 */
function tablesOf(
  machine: MachineMemory, { state }: FrozenDomain, mfns: ReadonlyMap<number, number>, hotGfns: ReadonlySet<number>,
): { hot: number[]; other: number[] } {
  /** Whether each leads to a hot page. */
  const tables = new Map<number, boolean>();
  const visit = (gfn: number, level: number): boolean => {
    const mfn = mfns.get(gfn);
    const known = tables.get(gfn);
    if (mfn === undefined || known !== undefined || tables.size >= TABLES_MAX) return known ?? false;
    tables.set(gfn, false);
    let isHot = false;
    for (let word = mfn * 1024; word < (mfn + 1) * 1024; word += 2) {
      const low = machine.u32[word]!;
      if ((low & 3) !== 3) continue;
      const target = (machine.u32[word + 1]! & ADDRESS_HIGH) * 2 ** 20 + (low >>> 12);
      // At level 3 these bits name a page.
      if (level === 3 ? hotGfns.has(target) : visit(target, level + 1)) isHot = true;
    }
    tables.set(gfn, isHot);
    return isHot;
  };
  for (const { registers } of state.vcpus) {
    const view = new DataView(registers.buffer, registers.byteOffset, registers.byteLength);
    const tcr = view.getUint32(vcpuRecord.at.tcrEl1, true);
    const halves = [[vcpuRecord.at.ttbr0El1, tcr & 0x3f], [vcpuRecord.at.ttbr1El1, (tcr >>> 16) & 0x3f]] as const;
    for (const [field, size] of halves) {
      const table = (view.getUint32(field + 4, true) & ADDRESS_HIGH) * 2 ** 20 + (view.getUint32(field, true) >>> 12);
      visit(table, 4 - Math.ceil((64 - size - 12) / 9));
    }
  }
  const gfns = [...tables.keys()];
  return { hot: gfns.filter((gfn) => tables.get(gfn)), other: gfns.filter((gfn) => !tables.get(gfn)) };
}

function joined(gfns: readonly number[]): PageStretch[] {
  const stretches: { gfn: number; count: number }[] = [];
  for (const gfn of gfns.toSorted((a, b) => a - b)) {
    const last = stretches.at(-1);
    if (last !== undefined && gfn - (last.gfn + last.count) <= GAP_PAGES) last.count = gfn + 1 - last.gfn;
    else stretches.push({ gfn, count: 1 });
  }
  return stretches;
}

/** @returns stretches that are stored, in the order in which they are to be read */
export function decodeWorkingSet(image: Image): PageStretch[] {
  const bytes = image.sections.get(SECTION);
  if (bytes === undefined || bytes.length % STRETCH_BYTES !== 0 || bytes.length > PAGES_MAX * STRETCH_BYTES) return [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const stretches: PageStretch[] = [];
  let pages = 0;
  for (let at = 0; at < bytes.length && pages < PAGES_MAX; at += STRETCH_BYTES) {
    const gfn = view.getUint32(at, true);
    const count = Math.min(view.getUint32(at + 4, true), PAGES_MAX - pages);
    // As nearly all are.
    if (count > 0 && image.areStored(gfn, count)) {
      stretches.push({ gfn, count });
      pages += count;
      continue;
    }
    for (const run of image.runs(gfn, count)) {
      stretches.push({ gfn: run.gfn, count: run.count });
      pages += run.count;
    }
  }
  return stretches;
}
