// A guest's memory with what readers of its kernel need: 2 MiB of RAM, mapped by page tables in it at the place where a
// kernel's image could be, and a VMCOREINFO that says so.
//
//   page 0 root table, page 1, page 2 ─► block of 2 MiB: all of RAM; the rest is the test's

import type { GuestPages } from './guest-memory.ts';
import { GuestMemory } from './guest-memory.ts';
import { Vmcoreinfo } from './vmcoreinfo.ts';

export const RAM = 0x4000_0000;
const RAM_BYTES = 2 ** 21;
const VIRTUAL = 0xffff_8000_0820_0000n;

export interface TestKernel {
  readonly bytes: Buffer;
  readonly pages: GuestPages;
  /** Kernel address of an offset in RAM. */
  at(offset: number): bigint;
  /** With the lines that say where the page tables are. */
  note(lines: readonly string[]): Uint8Array;
  open(lines: readonly string[]): { memory: GuestMemory; info: Vmcoreinfo };
}

export function makeKernel(): TestKernel {
  const bytes = Buffer.alloc(RAM_BYTES);
  const index = (level: number) => Number((VIRTUAL >> BigInt(12 + 9 * (3 - level))) & 511n);
  bytes.writeBigUInt64LE(BigInt(RAM + 0x1000) | 3n, 8 * index(0));
  bytes.writeBigUInt64LE(BigInt(RAM + 0x2000) | 3n, 0x1000 + 8 * index(1));
  bytes.writeBigUInt64LE(BigInt(RAM) | 0x701n, 0x2000 + 8 * index(2));
  const pages: GuestPages = {
    path: 'test.core',
    banks: [{ guestAddress: RAM, sizeBytes: RAM_BYTES }],
    read: (gfn, count) => Uint8Array.from(bytes.subarray(gfn * 4096 - RAM, (gfn + count) * 4096 - RAM)),
  };
  const note = (lines: readonly string[]): Uint8Array => Buffer.from(['OSRELEASE=6.1.0-test', 'PAGESIZE=4096',
    `SYMBOL(swapper_pg_dir)=${VIRTUAL.toString(16)}`, `SYMBOL(_stext)=${VIRTUAL.toString(16)}`, 'NUMBER(VA_BITS)=48',
    `NUMBER(kimage_voffset)=0x${(VIRTUAL - BigInt(RAM)).toString(16)}`, ...lines, ''].join('\n'));
  return {
    bytes, pages, note,
    at: (offset) => VIRTUAL + BigInt(offset),
    open(lines) {
      const info = new Vmcoreinfo(pages.path, note(lines));
      return { info, memory: new GuestMemory(pages, info) };
    },
  };
}
