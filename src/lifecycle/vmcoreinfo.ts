// Finds the note in which the guest's kernel describes itself (image/guest-kernel/vmcoreinfo.ts draws it) in frozen
// memory, without the guest's help: it starts a page, early in RAM as it is allocated early, so a look at the first
// words of each page finds it.
//
// Any process of the guest can write such a page, and none can know where the kernel's page tables lie. So the note
// whose tables are those that a vCPU uses is taken, wherever it is, and only if there is none such the first that looks
// right.

import { FRAME_BYTES, FRAME_WORDS, P2M_ENTRIES, P2M_KIND, P2M_LEVEL_BITS } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { ZazenError } from '../base/errors.ts';
import { findWindowFault } from '../image/format.ts';
import type { Bank, KernelWindow } from '../image/format.ts';
import { VMCOREINFO_TEXT_OFFSET, Vmcoreinfo, vmcoreinfoBytesAt } from '../image/guest-kernel/vmcoreinfo.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { p2mRanges } from '../memory/p2m-ranges.ts';
import { entryKind, entryValue } from '../memory/p2m.ts';

const PAGE_MASK = BigInt(FRAME_BYTES - 1);
const ADDRESS_MASK = 0xffff_ffff_f000n;
/** The kernel's tables for EL0 lie next to those for EL1, page by page of at most 64 KiB. */
const TABLE_DISTANCE_MAX = 4n * 65536n;
/** No kernel's image is larger. */
const IMAGE_BYTES_MAX = 2n ** 27n;
/** A guest full of notes does not make a save slow. */
const CANDIDATES_MAX = 256;

export interface KernelNotes {
  /** The note's text, at most `VMCOREINFO_BYTES_MAX` bytes. */
  readonly vmcoreinfo?: Uint8Array;
  readonly kernelWindow?: KernelWindow;
}

/** A guest that does not run: of a checkpoint, or paused. */
export interface StillGuest {
  /** Of its p2m. */
  readonly root: number;
  /** `registers`: its vCPU records. */
  readonly state: { readonly domid: number; readonly vcpus: readonly { readonly registers: Uint8Array }[] };
}

/** @param banks all memory of the guest */
export function findVmcoreinfo(machine: MachineMemory, frozen: StillGuest, banks: readonly Bank[]): KernelNotes {
  const found = searchNote(machine, frozen);
  if (found === undefined) return {};
  return { vmcoreinfo: found.text, kernelWindow: kernelWindowOf(found.info, banks) };
}

interface FoundNote {
  readonly text: Uint8Array;
  readonly info: Vmcoreinfo;
}

function searchNote(machine: MachineMemory, frozen: StillGuest): FoundNote | undefined {
  const tables = frozen.state.vcpus.map(({ registers }) =>
    new DataView(registers.buffer, registers.byteOffset).getBigUint64(vcpuRecord.at.ttbr1El1, true) & ADDRESS_MASK);
  const places = placesOf(machine);
  const { domid } = frozen.state;
  let first: FoundNote | undefined;
  let candidates = 0;
  for (const { gfn, sizeBytes } of notes(machine, frozen.root, places.get(domid))) {
    if (candidates++ === CANDIDATES_MAX) break;
    const text = readFrozen(machine, frozen.root, gfn * FRAME_BYTES + VMCOREINFO_TEXT_OFFSET, sizeBytes);
    const info = text === undefined ? undefined : Vmcoreinfo.parse('', text);
    if (text === undefined || info === undefined) continue;
    if (isOfTables(info, tables)) {
      places.set(domid, gfn);
      return { text, info };
    }
    first ??= { text, info };
  }
  return first;
}

/** By domain: the page that the note was found in last, so that a save after the first one does not search. */
const knownPlaces = new WeakMap<MachineMemory, Map<number, number>>();

function placesOf(machine: MachineMemory): Map<number, number> {
  const places = knownPlaces.get(machine) ?? new Map<number, number>();
  knownPlaces.set(machine, places);
  return places;
}

/** @param guess a page to look at first */
function* notes(
  machine: MachineMemory, root: number, guess: number | undefined,
): Generator<{ gfn: number; sizeBytes: number }> {
  const mfnOfGuess = guess === undefined ? undefined : frozenFrame(machine, root, guess);
  if (guess !== undefined && mfnOfGuess !== undefined) {
    const sizeBytes = vmcoreinfoBytesAt(machine.u32, mfnOfGuess * FRAME_WORDS);
    if (sizeBytes !== 0) yield { gfn: guess, sizeBytes };
  }
  for (const { gfn, count, mfn } of p2mRanges(machine, root)) {
    if (mfn === 0) continue;
    for (let i = 0; i < count; i++) {
      const sizeBytes = vmcoreinfoBytesAt(machine.u32, (mfn + i) * FRAME_WORDS);
      if (sizeBytes !== 0) yield { gfn: gfn + i, sizeBytes };
    }
  }
}

function isOfTables(info: Vmcoreinfo, tables: readonly bigint[]): boolean {
  if (!info.has('SYMBOL(swapper_pg_dir)') || !info.has('NUMBER(kimage_voffset)')) return false;
  try {
    const swapper = (info.symbol('swapper_pg_dir') - info.number('kimage_voffset')) & ADDRESS_MASK;
    return tables.some((table) => table <= swapper && swapper - table <= TABLE_DISTANCE_MAX);
  } catch (error) {
    if (error instanceof ZazenError) return false; // values that are no numbers
    throw error;
  }
}

/**
 * From the kernel's first instruction to the last of its variables that the note names, among them its page tables.
 * (What was needed only for booting lies in between, and has been given back: a reader that looks there by an address
 * of that time sees what is there now.)
 */
function kernelWindowOf(info: Vmcoreinfo, banks: readonly Bank[]): KernelWindow | undefined {
  try {
    const start = info.symbol('_stext') & ~PAGE_MASK;
    const inside = info.symbols().filter((address) => address >= start && address - start < IMAGE_BYTES_MAX);
    const end = inside.reduce((last, address) => (address > last ? address : last), start) + BigInt(FRAME_BYTES);
    const guestAddress = Number(BigInt.asUintN(64, start - info.number('kimage_voffset')));
    const window = { virtualAddress: start, guestAddress, sizeBytes: Number((end & ~PAGE_MASK) - start) };
    return findWindowFault(window, banks) === undefined ? window : undefined;
  } catch (error) {
    if (error instanceof ZazenError) return undefined; // values that are no numbers
    throw error;
  }
}

/** A copy of frozen guest memory; undefined if a page of it is not in a frame. */
function readFrozen(machine: MachineMemory, root: number, address: number, sizeBytes: number): Uint8Array | undefined {
  const out = new Uint8Array(sizeBytes);
  for (let done = 0; done < sizeBytes;) {
    const inPage = (address + done) % FRAME_BYTES;
    const mfn = frozenFrame(machine, root, (address + done - inPage) / FRAME_BYTES);
    if (mfn === undefined) return undefined;
    const at = mfn * FRAME_BYTES + inPage;
    const part = machine.u8.subarray(at, at + Math.min(sizeBytes - done, FRAME_BYTES - inPage));
    out.set(part, done);
    done += part.length;
  }
  return out;
}

/** Where a page of a tree that nobody changes lies; undefined if it is nowhere, zero or not in memory. */
function frozenFrame(machine: MachineMemory, root: number, gfn: number): number | undefined {
  let node = root;
  for (let level = 2; ; level--) {
    const index = Math.floor(gfn / 2 ** (level * P2M_LEVEL_BITS)) % P2M_ENTRIES;
    const entry = machine.u32[node * FRAME_WORDS + 2 * index]!;
    if (entryKind(entry) === P2M_KIND.frame) return entryValue(entry);
    if (entryKind(entry) !== P2M_KIND.node) return undefined;
    node = entryValue(entry);
  }
}
