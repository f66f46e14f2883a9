// The ELF shell of an image: the head block (ELF header, program headers, superblock) and the notes. Writing takes what
// is right; reading takes any bytes and gives undefined, or names what is wrong, for those that are not an image.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { array, struct, u16, u32, u64, u8 } from '../abi/struct.ts';
import { assert } from '../base/assert.ts';
import type { Digest } from './checksum.ts';
import {
  BANKS_MAX, BLOCK_BYTES, HOT_PAGES_MAX, HOT_PAGES_VERSION, IMAGE_MAGIC, findBankFault, findWindowFault, layoutImage,
} from './format.ts';
import type { Bank, KernelWindow, VcpuRegisters } from './format.ts';

const EHDR = struct('Elf64_Ehdr', {
  ident: array(u8, 16), type: u16, machine: u16, version: u32, entry: u64, phoff: u64, shoff: u64, flags: u32,
  ehsize: u16, phentsize: u16, phnum: u16, shentsize: u16, shnum: u16, shstrndx: u16,
}, { sizeBytes: 64 });
const PHDR = struct('Elf64_Phdr', {
  type: u32, flags: u32, offset: u64, vaddr: u64, paddr: u64, filesz: u64, memsz: u64, align: u64,
}, { sizeBytes: 56 });
const ELF_IDENT = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]; // class 64, little-endian, version 1, System V
const ET_CORE = 4;
const EM_AARCH64 = 183;
const PT_LOAD = 1;
const PT_NOTE = 4;
const PF_RWX = 7;

const SUPERBLOCK = struct('superblock', {
  magic: array(u8, 8), version: u32, pageBytes: u32, fileBytes: u64, notesOffset: u64, notesBytes: u64,
  notesDigestLow: u32, notesDigestHigh: u32, headDigestLow: u32, headDigestHigh: u32,
}, { sizeBytes: 56 });
/** The superblock ends with the head, far behind the last program header. */
const SUPERBLOCK_OFFSET = BLOCK_BYTES - SUPERBLOCK.sizeBytes;
assert(EHDR.sizeBytes + (BANKS_MAX + 2) * PHDR.sizeBytes <= SUPERBLOCK_OFFSET, 'no room for the program headers');

export interface Head {
  readonly banks: readonly Bank[];
  /** Not in images of version 1. */
  readonly kernelWindow?: KernelWindow | undefined;
  /** Number of pages stored twice. */
  readonly hotPages: number;
  /** Before padding to a whole block. */
  readonly notesBytes: number;
  readonly notesDigest: Digest;
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Fills a zeroed block, all but the head's own digest. */
export function encodeHead(block: Uint8Array, head: Head, version: number, fileBytes: number): void {
  const { banks, kernelWindow, hotPages } = head;
  const { bankOffsets, notesOffset } = layoutImage(banks, hotPages);
  const view = viewOf(block);
  block.set(ELF_IDENT);
  view.setUint16(EHDR.at.type, ET_CORE, true);
  view.setUint16(EHDR.at.machine, EM_AARCH64, true);
  view.setUint32(EHDR.at.version, 1, true);
  view.setUint32(EHDR.at.phoff, EHDR.sizeBytes, true);
  view.setUint16(EHDR.at.ehsize, EHDR.sizeBytes, true);
  view.setUint16(EHDR.at.phentsize, PHDR.sizeBytes, true);
  view.setUint16(EHDR.at.phnum, banks.length + (kernelWindow === undefined ? 1 : 2), true);
  const segment = (index: number, fields: Partial<Record<keyof typeof PHDR.at, number | bigint>>): void => {
    const base = EHDR.sizeBytes + index * PHDR.sizeBytes;
    const { type = 0, flags = 0, ...wide } = fields;
    view.setUint32(base + PHDR.at.type, Number(type), true);
    view.setUint32(base + PHDR.at.flags, Number(flags), true);
    for (const [field, value] of Object.entries(wide)) {
      view.setBigUint64(base + PHDR.at[field as keyof typeof PHDR.at], BigInt(value), true);
    }
  };
  segment(0, { type: PT_NOTE, offset: notesOffset, filesz: head.notesBytes, align: 4 });
  const load = (index: number, offset: number, vaddr: number | bigint, paddr: number, sizeBytes: number): void =>
    segment(index, {
      type: PT_LOAD, flags: PF_RWX, offset, vaddr, paddr, filesz: sizeBytes, memsz: sizeBytes, align: FRAME_BYTES,
    });
  banks.forEach(({ guestAddress, sizeBytes }, i) => {
    load(i + 1, bankOffsets[i]!, guestAddress, guestAddress, sizeBytes);
  });
  if (kernelWindow !== undefined) {
    const { virtualAddress, guestAddress, sizeBytes } = kernelWindow;
    const bank = banks.findLastIndex((one) => one.guestAddress <= guestAddress);
    const offset = bankOffsets[bank]! + guestAddress - banks[bank]!.guestAddress;
    load(banks.length + 1, offset, virtualAddress, guestAddress, sizeBytes);
  }
  const at = (field: keyof typeof SUPERBLOCK.at) => SUPERBLOCK_OFFSET + SUPERBLOCK.at[field];
  block.set(new TextEncoder().encode(IMAGE_MAGIC), at('magic'));
  view.setUint32(at('version'), version, true);
  view.setUint32(at('pageBytes'), FRAME_BYTES, true);
  view.setBigUint64(at('fileBytes'), BigInt(fileBytes), true);
  view.setBigUint64(at('notesOffset'), BigInt(notesOffset), true);
  view.setBigUint64(at('notesBytes'), BigInt(head.notesBytes), true);
  view.setUint32(at('notesDigestLow'), head.notesDigest.low, true);
  view.setUint32(at('notesDigestHigh'), head.notesDigest.high, true);
}

/** The digest of the head is taken while its own field is zero. */
export function setHeadDigest(block: Uint8Array, digest: Digest): void {
  const view = viewOf(block);
  view.setUint32(SUPERBLOCK_OFFSET + SUPERBLOCK.at.headDigestLow, digest.low, true);
  view.setUint32(SUPERBLOCK_OFFSET + SUPERBLOCK.at.headDigestHigh, digest.high, true);
}

export interface Superblock {
  readonly version: number;
  readonly fileBytes: number;
  readonly notesOffset: number;
  readonly notesBytes: number;
  readonly notesDigest: Digest;
  readonly headDigest: Digest;
}

/** Undefined if the block is not the head of an image at all. */
export function decodeSuperblock(block: Uint8Array): Superblock | undefined {
  const view = viewOf(block);
  const at = (field: keyof typeof SUPERBLOCK.at) => SUPERBLOCK_OFFSET + SUPERBLOCK.at[field];
  const magic = new TextDecoder('latin1').decode(block.slice(at('magic'), at('version')));
  if (magic !== IMAGE_MAGIC || ELF_IDENT.some((byte, i) => block[i] !== byte)) return undefined;
  const word = (field: keyof typeof SUPERBLOCK.at) => view.getUint32(at(field), true);
  const wide = (field: keyof typeof SUPERBLOCK.at) => Number(view.getBigUint64(at(field), true));
  return {
    version: word('version'),
    fileBytes: wide('fileBytes'),
    notesOffset: wide('notesOffset'),
    notesBytes: wide('notesBytes'),
    notesDigest: { low: word('notesDigestLow'), high: word('notesDigestHigh') },
    headDigest: { low: word('headDigestLow'), high: word('headDigestHigh') },
  };
}

/**
 * The banks, and the window to the kernel, that the program headers of a head name, and how many pages are stored twice.
 * The head is right if it is, bit for bit, the one that the writer makes of what was read: so nothing in it goes
 * unchecked.
 */
export function decodeBanks(block: Uint8Array, superblock: Superblock): {
  banks: readonly Bank[]; hotPages: number; kernelWindow?: KernelWindow | undefined; fault?: string;
} {
  const { version, fileBytes, notesOffset, notesBytes, notesDigest, headDigest } = superblock;
  const faulty = (fault: string) => ({ banks: [], hotPages: 0, fault });
  const view = viewOf(block);
  const segments = view.getUint16(EHDR.at.phnum, true);
  if (segments < 1 || segments > BANKS_MAX + 2) return faulty('its number of segments is out of range');
  const loads = Array.from({ length: segments - 1 }, (_, i) => {
    const base = EHDR.sizeBytes + (i + 1) * PHDR.sizeBytes;
    const wide = (field: 'vaddr' | 'paddr' | 'filesz') => view.getBigUint64(base + PHDR.at[field], true);
    return { virtualAddress: wide('vaddr'), guestAddress: Number(wide('paddr')), sizeBytes: Number(wide('filesz')) };
  });
  const last = loads.at(-1);
  const hasWindow = version >= 2 && last !== undefined && last.virtualAddress !== BigInt(last.guestAddress);
  const kernelWindow = hasWindow ? loads.pop() : undefined;
  const banks = loads.map(({ guestAddress, sizeBytes }) => ({ guestAddress, sizeBytes }));
  const fault = findBankFault(banks) ?? (kernelWindow && findWindowFault(kernelWindow, banks));
  if (fault !== undefined) return faulty(fault);
  const hotPages = (notesOffset - layoutImage(banks).hotOffset) / FRAME_BYTES;
  if (!(hotPages >= 0 && hotPages <= (version < HOT_PAGES_VERSION ? 0 : HOT_PAGES_MAX))) {
    return faulty('its number of hot pages is out of range');
  }
  const again = new Uint8Array(BLOCK_BYTES);
  encodeHead(again, { banks, kernelWindow, hotPages, notesBytes, notesDigest }, version, fileBytes);
  setHeadDigest(again, headDigest);
  const isRight = Buffer.compare(again, block) === 0;
  return isRight ? { banks, hotPages, kernelWindow } : faulty('its head contradicts itself');
}

export interface Note {
  readonly name: string;
  readonly type: number;
  readonly bytes: Uint8Array;
}

const alignNote = (bytes: number) => Math.ceil(bytes / 4) * 4;
const NOTE_HEADER_BYTES = 12;

export function encodeNotes(notes: readonly Note[]): Uint8Array {
  const size = notes.reduce((sum, { name, bytes }) =>
    sum + NOTE_HEADER_BYTES + alignNote(name.length + 1) + alignNote(bytes.length), 0);
  const out = new Uint8Array(size);
  const view = viewOf(out);
  let at = 0;
  for (const { name, type, bytes } of notes) {
    view.setUint32(at, name.length + 1, true);
    view.setUint32(at + 4, bytes.length, true);
    view.setUint32(at + 8, type, true);
    out.set(new TextEncoder().encode(name), at + NOTE_HEADER_BYTES);
    at += NOTE_HEADER_BYTES + alignNote(name.length + 1);
    out.set(bytes, at);
    at += alignNote(bytes.length);
  }
  return out;
}

/** Undefined where a note runs over the end. The notes' bytes are views. */
export function decodeNotes(area: Uint8Array, countMax: number): Note[] | undefined {
  const view = viewOf(area);
  const notes: Note[] = [];
  for (let at = 0; at < area.length;) {
    if (at + NOTE_HEADER_BYTES > area.length || notes.length === countMax) return undefined;
    const nameBytes = view.getUint32(at, true);
    const start = at + NOTE_HEADER_BYTES + alignNote(nameBytes);
    const sizeBytes = view.getUint32(at + 4, true);
    if (nameBytes === 0 || nameBytes > 64 || start + alignNote(sizeBytes) > area.length) return undefined;
    const nameAt = at + NOTE_HEADER_BYTES;
    const name = new TextDecoder('latin1').decode(area.subarray(nameAt, nameAt + nameBytes - 1));
    notes.push({ name, type: view.getUint32(at + 8, true), bytes: area.subarray(start, start + sizeBytes) });
    at = start + alignNote(sizeBytes);
  }
  return notes;
}

// ---- Notes that every debugger of Linux core files knows; structures as in Linux's arm64 <asm/ptrace.h> and elfcore.h

const NT_PRSTATUS = 1;
const NT_FPREGSET = 2;
const ELF_PRSTATUS = struct('elf_prstatus', {
  siginfo: array(u32, 3), cursig: u16, sigpend: u64, sighold: u64, pid: u32, ppid: u32, pgrp: u32, sid: u32,
  times: array(u64, 8), x: array(u64, 31), sp: u64, pc: u64, pstate: u64, fpvalid: u32,
}, { sizeBytes: 392 });
const USER_FPSIMD_STATE = struct('user_fpsimd_state', {
  v: array(u8, 512), fpsr: u32, fpcr: u32, reserved: array(u32, 2),
}, { sizeBytes: 528 });

/** vCPU n appears to debuggers as thread n + 1. */
export function encodeVcpu(vcpu: VcpuRegisters, index: number): Note[] {
  const bytes = new Uint8Array(ELF_PRSTATUS.sizeBytes);
  const view = viewOf(bytes);
  const { at } = ELF_PRSTATUS;
  assert(vcpu.x.length === 31, 'a vCPU has 31 general registers');
  view.setUint32(at.pid, index + 1, true);
  for (let n = 0; n < 31; n++) view.setBigUint64(at.x + 8 * n, vcpu.x[n]!, true);
  view.setBigUint64(at.sp, vcpu.sp, true);
  view.setBigUint64(at.pc, vcpu.pc, true);
  view.setBigUint64(at.pstate, vcpu.pstate, true);
  view.setUint32(at.fpvalid, vcpu.fp === undefined ? 0 : 1, true);
  const notes = [{ name: 'CORE', type: NT_PRSTATUS, bytes }];
  if (vcpu.fp !== undefined) {
    assert(vcpu.fp.v.length === 512, 'V0–V31 are 512 bytes');
    const fp = new Uint8Array(USER_FPSIMD_STATE.sizeBytes);
    fp.set(vcpu.fp.v);
    viewOf(fp).setUint32(USER_FPSIMD_STATE.at.fpsr, vcpu.fp.fpsr, true);
    viewOf(fp).setUint32(USER_FPSIMD_STATE.at.fpcr, vcpu.fp.fpcr, true);
    notes.push({ name: 'CORE', type: NT_FPREGSET, bytes: fp });
  }
  return notes;
}

/** The registers of all vCPUs; undefined where a note has another size. */
export function decodeVcpus(notes: readonly Note[]): VcpuRegisters[] | undefined {
  const vcpus: VcpuRegisters[] = [];
  for (const { name, type, bytes } of notes) {
    if (name !== 'CORE') continue;
    const view = viewOf(bytes);
    if (type === NT_PRSTATUS) {
      if (bytes.length !== ELF_PRSTATUS.sizeBytes) return undefined;
      const { at } = ELF_PRSTATUS;
      const wide = (offset: number) => view.getBigUint64(offset, true);
      const x = Array.from({ length: 31 }, (_, n) => wide(at.x + 8 * n));
      vcpus.push({ x, sp: wide(at.sp), pc: wide(at.pc), pstate: wide(at.pstate) });
    } else if (type === NT_FPREGSET) {
      const last = vcpus.pop();
      if (last === undefined || bytes.length !== USER_FPSIMD_STATE.sizeBytes) return undefined;
      const word = (offset: number) => view.getUint32(offset, true);
      const { at } = USER_FPSIMD_STATE;
      vcpus.push({ ...last, fp: { v: bytes.slice(0, 512), fpsr: word(at.fpsr), fpcr: word(at.fpcr) } });
    }
  }
  return vcpus;
}
