// Guests without an operating system, assembled and wrapped as an arm64 Image.
//
//   0x4000_0000 ┌──────────────┐
//               │ Image header │ 64 bytes, the first word branches to the program
//   0x4000_0800 │ vectors      │ 16 × 128 bytes: go on after the instruction that faulted; mask an interrupt
//   0x4000_1000 │ program      │ at EL1 with the MMU off
//   0x4040_0000 │ data         │ a table that the test has made, with its random numbers drawn on the host
//   0x4080_0000 │ free         │ up to MEMORY
//               └──────────────┘

import assert from 'node:assert/strict';
import { Assembler } from '../src/a64/test-assembler.ts';
import { HYPERVISOR, XEN_HYPERCALL_TAG } from '../src/abi/xen.ts';
import { PSCI } from '../src/hypervisor/psci.ts';

export const BASE = 0x4000_0000;
export const DATA = BASE + 0x40_0000;
export const FREE = BASE + 0x80_0000;
export const MEMORY = '40MiB';
const VECTORS = 0x800;
const PROGRAM = 0x1000;
const IRQ_MASKED = 0x80;
const IMAGE_MAGIC = 0x644d_5241;
const PAGE_SIZE_4K = 2;

export interface BareMetalProgram {
  /** The program; default: an endless loop. */
  code?: (a: Assembler) => void;
  /** Goes to DATA. */
  data?: Uint8Array;
  /** Instructions of each synchronous vector instead of going on after the faulting one; at most 32. */
  onFault?: (a: Assembler) => void;
}

/** The bytes of an Image with the program in it. Registers x24-x28 belong to the vectors. */
export function bareMetalImage({ code = spin, data, onFault = skip }: BareMetalProgram): Uint8Array {
  const a = new Assembler(BASE);
  a.b('start').padTo(64);
  for (let vector = 0; vector < 16; vector++) {
    a.padTo(VECTORS + 0x80 * vector);
    if (vector % 4 === 0) onFault(a);
    else maskInterrupts(a);
  }
  a.padTo(PROGRAM).label('start').mov(0, BASE + VECTORS).msr('VBAR_EL1', 0);
  // FP and SIMD are not trapped.
  a.mov(0, 3 << 20).msr('CPACR_EL1', 0).isb();
  code(a);
  const words = a.words();
  assert.ok(4 * words.length <= DATA - BASE, 'the program runs into its data');
  const bytes = new Uint8Array(data ? DATA - BASE + data.length : 4 * words.length);
  const view = new DataView(bytes.buffer);
  words.forEach((word, index) => view.setUint32(4 * index, word, true));
  bytes.fill(0, 4, 64);
  view.setBigUint64(0x10, BigInt(bytes.length), true);
  view.setUint32(0x18, PAGE_SIZE_4K, true);
  view.setUint32(0x38, IMAGE_MAGIC, true);
  if (data) bytes.set(data, DATA - BASE);
  return bytes;
}

function skip(a: Assembler): void {
  a.mrs(28, 'ELR_EL1').add(28, 28, 4).msr('ELR_EL1', 28).eret();
}
function maskInterrupts(a: Assembler): void {
  a.mrs(28, 'SPSR_EL1').mov(27, IRQ_MASKED).emit('ORR (register)', { sf: 1, Rm: 27, Rn: 28, Rd: 28 });
  a.msr('SPSR_EL1', 28).eret();
}

let labels = 0;
/** A name that no other label has. */
export const fresh = (name: string): string => `${name}-${labels++}`;

export function spin(a: Assembler): void {
  const here = fresh('spin');
  a.label(here).b(here);
}
/** PSCI SYSTEM_OFF. */
export function powerOff(a: Assembler): void {
  a.mov(0, PSCI.SYSTEM_OFF).hvc(0);
  spin(a);
}
/** Arguments in x0-x4; the result comes in x0. */
export function hypercall(a: Assembler, number: keyof typeof HYPERVISOR): void {
  a.mov(16, HYPERVISOR[number]).hvc(XEN_HYPERCALL_TAG);
}
/** Runs `body` for x20 = the address of each row at DATA, in a table of `rows` rows. It must leave x20 and x21 alone. */
export function forEachRow(a: Assembler, rows: number, rowBytes: number, body: () => void): void {
  const again = fresh('row');
  a.mov(20, DATA).mov(21, rows).label(again);
  body();
  a.add(20, 20, rowBytes).subs(21, 21, 1).bCond('ne', again);
}
/** Runs `body` so many times; it must leave x22 alone. */
export function repeat(a: Assembler, times: number, body: () => void): void {
  const again = fresh('again');
  a.mov(22, times).label(again);
  body();
  a.subs(22, 22, 1).bCond('ne', again);
}
export function forever(a: Assembler, body: () => void): void {
  const again = fresh('forever');
  a.label(again);
  body();
  a.b(again);
}
