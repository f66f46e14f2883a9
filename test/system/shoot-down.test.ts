// TLB invalidation between vCPUs that run at the same time: one moves a page back and forth between two frames and spoils
// the one that it has just left until the other, which reads the page all the time, has read it. That must never see it.
//
//   DATA    ┌──────────────┐
//     + 0   │ level 1      │ of address space 1: this memory one to one, and at PAGE_VA the page
//   + 4K    │ level 2, 3   │
//   + 12K   │ level 1–3    │ of address space 2: the same, but PAGE_VA always leads to OTHER
//   + 24K   │ words        │ STARTED: the reader reads
//   FREE    │ FIRST, SECOND│ the frames of the page
//           │ OTHER        │
//           └──────────────┘

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { Assembler, SysOperation } from '../../src/a64/test-assembler.ts';
import { Host } from '../../src/host/index.ts';
import { PSCI } from '../../src/hypervisor/psci.ts';
import { hostMemory } from '../host-memory.ts';
import { BASE, DATA, FREE, MEMORY, bareMetalImage, fresh, powerOff, repeat, spin } from '../bare-metal.ts';

const PAGE_VA = 0x8000_0000n;
const [FIRST, SECOND, OTHER] = [FREE, FREE + 0x1000, FREE + 0x2000];
const READINGS = DATA + 0x6000;
const [GOOD, SPOILT, ELSEWHERE] = [0x600d, 0xbad, 0xe15e];
const NOT_GLOBAL = 1n << 11n;
const TCR = 25n | 25n << 16n | 2n << 32n | 1n << 36n;
const MMU_ON = 0x1005n;
const BLOCK = 0x401n;
const TABLE = 3n;
const PAGE = 0x403n;
const ROUNDS = 150;
const READS = 20;

const ttbr = (space: 1 | 2, asid: number): bigint => BigInt(DATA + (space - 1) * 0x3000) | BigInt(asid) << 48n;
const argument = (asid: number): bigint => PAGE_VA >> 12n | BigInt(asid) << 48n;

interface Case {
  /** Of the page that moves. */
  readonly attributes: bigint;
  /** In turns; all of them by vCPU 0, in address space 1 under ASID 1. */
  readonly operations: readonly { readonly operation: SysOperation; readonly argument: bigint }[];
  /** Under which the reader is in address space 1. */
  readonly readerAsid: number;
  /** Whether the reader goes to address space 2 and back all the time. */
  readonly switches?: boolean;
}
const byAddress = (operation: SysOperation, asid = 1) => ({ operation, argument: argument(asid) });
const byAsid = { operation: 'TLBI ASIDE1IS', argument: 1n << 48n } as const;

const cases: Readonly<Record<string, Case>> = {
  'of the address space that both are in': {
    attributes: NOT_GLOBAL, operations: [byAddress('TLBI VALE1IS'), byAddress('TLBI VAE1IS'), byAsid], readerAsid: 1,
  },
  'of an address space that the reader leaves and comes back to': {
    attributes: NOT_GLOBAL, operations: [byAddress('TLBI VALE1IS'), byAsid], readerAsid: 1, switches: true,
  },
  'of a page that belongs to all address spaces, under an ASID that the reader has not': {
    attributes: 0n, operations: [byAddress('TLBI VALE1IS'), byAddress('TLBI VAE1IS')], readerAsid: 2,
  },
  'of every address space': {
    attributes: NOT_GLOBAL, readerAsid: 2,
    operations: [byAddress('TLBI VAALE1IS', 0), byAddress('TLBI VAAE1IS', 0), { operation: 'TLBI VMALLE1IS', argument: 0n }],
  },
};

function tables(attributes: bigint): Uint8Array {
  const words = new BigUint64Array(0x7000 / 8);
  for (const [space, frame, bits] of [[0, FIRST, attributes], [1, OTHER, NOT_GLOBAL]] as const) {
    const at = space * 0x3000;
    words[at / 8 + 1] = BigInt(BASE) | BLOCK | NOT_GLOBAL;
    words[at / 8 + 2] = BigInt(DATA + at + 0x1000) | TABLE;
    words[(at + 0x1000) / 8] = BigInt(DATA + at + 0x2000) | TABLE;
    words[(at + 0x2000) / 8] = BigInt(frame) | PAGE | bits;
  }
  return new Uint8Array(words.buffer);
}

function enableMmu(a: Assembler, asid: number): void {
  a.mov(1, TCR).msr('TCR_EL1', 1).mov(1, 0xff).msr('MAIR_EL1', 1).mov(1, ttbr(1, asid)).msr('TTBR0_EL1', 1).isb();
  a.mov(1, MMU_ON).msr('SCTLR_EL1', 1).isb();
}
/** A guest that has seen what it must not ends otherwise than one that has not. */
function reset(a: Assembler): void {
  a.mov(0, PSCI.SYSTEM_RESET).hvc(0);
  spin(a);
}

function mover(a: Assembler, { attributes, operations }: Case): void {
  const descriptor = (frame: number): bigint => BigInt(frame) | PAGE | attributes;
  a.mov(6, GOOD).mov(7, SPOILT).mov(8, ELSEWHERE).mov(10, DATA + 0x2000);
  a.mov(11, descriptor(FIRST)).mov(12, descriptor(SECOND)).mov(14, FIRST).mov(15, SECOND).mov(9, OTHER);
  a.str(6, 14).str(8, 9);
  a.mov(0, PSCI.CPU_ON).mov(1, 1).adr(2, 'reader').mov(3, 0).hvc(0);
  enableMmu(a, 1);
  a.mov(5, READINGS);
  /** Until what the reader has read since then is of now. */
  const waitForReadings = (): void => {
    const wait = fresh('wait');
    a.ldr(4, 5).add(4, 4, 2).label(wait).ldr(3, 5).emit('SUBS (register)', { sf: 1, Rm: 4, Rn: 3, Rd: 31 }).bCond('lt', wait);
  };
  waitForReadings();
  const move = (register: number, frame: number, left: number, { operation, argument: value }: Case['operations'][number]): void => {
    a.mov(13, value).str(6, frame).str(register, 10).dsb().sys(operation, /VMALLE1/.test(operation) ? 31 : 13).dsb().isb().str(7, left);
    waitForReadings();
  };
  repeat(a, ROUNDS, () => {
    for (const one of operations) {
      move(12, 15, 14, one);
      move(11, 14, 15, one);
    }
  });
  powerOff(a);
}

function reader(a: Assembler, { readerAsid, switches }: Case): void {
  a.label('reader');
  enableMmu(a, readerAsid);
  a.mov(10, PAGE_VA).mov(11, READINGS).mov(12, ttbr(1, readerAsid)).mov(13, ttbr(2, 7)).mov(6, GOOD).mov(8, ELSEWHERE);
  const expect = (register: number): void => {
    for (let i = 0; i < READS; i++) a.ldr(0, 10).eorReg(0, 0, register).cbnz(0, 'stale');
  };
  a.label('read');
  a.ldr(1, 11).add(1, 1, 1).str(1, 11);
  expect(6);
  if (switches) {
    a.msr('TTBR0_EL1', 13).isb();
    expect(8);
    a.msr('TTBR0_EL1', 12).isb();
  }
  a.b('read').label('stale');
  reset(a);
}

const folder = mkdtempSync(join(tmpdir(), 'zazen-shoot-down-'));
const host = await Host.start({ memory: hostMemory('256MiB'), pcpus: 2 });
after(async () => {
  await host.close();
  rmSync(folder, { recursive: true });
});

for (const [name, one] of Object.entries(cases)) {
  test(`no vCPU reads through a translation that another has invalidated: ${name}`, async () => {
    const kernel = join(folder, 'kernel');
    const code = (a: Assembler): void => {
      mover(a, one);
      reader(a, one);
    };
    writeFileSync(kernel, bareMetalImage({ code, data: tables(one.attributes), onFault: reset }));
    const guest = await host.create({ kernel, initrd: 'none', memory: MEMORY, vcpus: 2, name: 'mover' });
    assert.equal(await guest.waitForShutdown(), 'poweroff');
    await guest.destroy();
  });
}
