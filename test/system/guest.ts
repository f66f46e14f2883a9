// What the system-level tests of the CPU share: a test machine with exception vectors that stop the run and tell what
// happened, page tables that a test builds descriptor by descriptor, and a way to run assembled programs at EL0 and
// EL1.
//
//   offset from GUEST_BASE
//   0x00_0000  programs (mapped one to one, read-only, executable at both levels)
//   0x01_0000  vectors: in each of the sixteen HVC #(0x1000 + offset in the table), ERET
//   0x10_0000  data pages, for the tests to map as they like
//   0x80_0000  page tables, taken one by one

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine, TestMachineOptions } from '../../src/cpu/test-machine.ts';
import type { VcpuState } from '../../src/cpu/vcpu-state.ts';
import type { ExitReason } from '../../src/cpu/host.ts';

const at = vcpuRecord.at;

export const PROGRAM = BigInt(GUEST_BASE);
export const VECTORS = BigInt(GUEST_BASE + 0x1_0000);
/** Physical address of the first data page. */
export const DATA = BigInt(GUEST_BASE + 0x10_0000);
const UPPER_START = 0xffff_ff80_4000_0000n;
const TABLES = GUEST_BASE + 0x80_0000;
const VECTOR_CALL = 0x1000;
const PAGE_MASK = 0xfffn;

/** Vector offsets (Arm ARM D1.4): from the current level with SP_EL0 or SP_EL1, from EL0. */
export const vector = { currentSp0: 0, current: 0x200, lower: 0x400, irq: 0x80 } as const;

/** Bits of descriptors. */
export const pte = {
  valid: 1n, table: 3n, page: 3n, block: 1n,
  /** Attribute index 1: device memory; 0 is normal memory. */
  device: 1n << 2n,
  /** AP[1]: EL0 may access; AP[2]: read-only. */
  user: 1n << 6n, readOnly: 1n << 7n,
  accessed: 1n << 10n, notGlobal: 1n << 11n,
  dirtyManaged: 1n << 51n, contiguous: 1n << 52n, pxn: 1n << 53n, uxn: 1n << 54n,
  tablePxn: 1n << 59n, tableUxn: 1n << 60n, tableNoUser: 1n << 61n, tableReadOnly: 1n << 62n,
} as const;
/** A page that EL1 alone uses, for data. */
export const KERNEL_DATA = pte.accessed | pte.pxn | pte.uxn;
/** A page that both levels use, for data. */
export const USER_DATA = KERNEL_DATA | pte.user;
const CODE = pte.accessed | pte.user | pte.readOnly;

export const sctlr = { M: 1n, A: 2n, UMA: 1n << 9n, UCT: 1n << 15n, nTWI: 1n << 16n, nTWE: 1n << 18n, WXN: 1n << 19n,
  SPAN: 1n << 23n, UCI: 1n << 26n, DZE: 1n << 14n } as const;
export const tcr = {
  t0sz: (n: number) => BigInt(n), t1sz: (n: number) => BigInt(n) << 16n,
  EPD0: 1n << 7n, A1: 1n << 22n, EPD1: 1n << 23n, ips: (n: number) => BigInt(n) << 32n,
  TBI0: 1n << 37n, TBI1: 1n << 38n, HA: 1n << 39n, HD: 1n << 40n, E0PD0: 1n << 55n, E0PD1: 1n << 56n,
} as const;
/** PARange: 40 bits. */
const TCR_DEFAULT = tcr.t0sz(25) | tcr.t1sz(25) | tcr.ips(2);
export const PAN = 1 << 22;

/** ESR_EL1.EC. */
export const ec = {
  unknown: 0x00, wfx: 0x01, fpAccess: 0x07, illegalState: 0x0e, svc: 0x15, systemRegister: 0x18,
  instructionAbortLower: 0x20, instructionAbort: 0x21, pcAlignment: 0x22, dataAbortLower: 0x24, dataAbort: 0x25,
    brk: 0x3c,
} as const;
/** Fault status with a level in the low bits. */
export const fault = {
  addressSize: (level: number) => level, translation: (level: number) => 4 + level,
  accessFlag: (level: number) => 8 + level,
  permission: (level: number) => 12 + level, external: 0x10, alignment: 0x21,
} as const;
export const WNR = 1 << 6;

export interface TakenException {
  /** Offset in the vector table. */
  readonly vector: number;
  readonly ec: number;
  readonly iss: number;
  readonly esr: number;
  readonly far: bigint;
  readonly elr: bigint;
  readonly spsr: number;
}

/** Translation tables of one half of the address space. */
export class PageTables {
  readonly root: bigint;
  readonly #guest: Guest;
  readonly #startLevel: number;

  constructor(guest: Guest, inputBits: number) {
    this.#guest = guest;
    this.#startLevel = 4 - Math.ceil((inputBits - 12) / 9);
    this.root = guest.takeTable();
  }

  /** Maps with a leaf at a level (3: 4 KiB, 2: 2 MiB, 1: 1 GiB); `tableBits` go into the descriptors of new tables. */
  map(va: bigint, pa: bigint, bits: bigint, level = 3, tableBits = 0n): this {
    this.setEntry(va, level, pa | bits | (level === 3 ? pte.page : pte.block), tableBits);
    return this;
  }
  /** The descriptor of an address at a level, with tables down to it. */
  setEntry(va: bigint, level: number, descriptor: bigint, tableBits = 0n): void {
    this.#guest.write64(this.entryAddress(va, level, tableBits), descriptor);
  }
  entry(va: bigint, level: number): bigint {
    return this.#guest.read64(this.entryAddress(va, level));
  }
  /** Physical address of that descriptor. */
  entryAddress(va: bigint, level: number, tableBits = 0n): bigint {
    let table = this.root;
    for (let current = this.#startLevel; ; current++) {
      const address = table + 8n * ((va >> BigInt(39 - 9 * current)) & 511n);
      if (current === level) return address;
      if ((this.#guest.read64(address) & 3n) !== pte.table) {
        this.#guest.write64(address, this.#guest.takeTable() | pte.table | tableBits);
      }
      table = this.#guest.read64(address) & 0xffff_ffff_f000n;
    }
  }
}

export class Guest {
  readonly m: TestMachine;
  readonly vcpu: VcpuState;
  /** TTBR0 and TTBR1. */
  lower: PageTables;
  upper: PageTables;
  #nextTable = TABLES;

  constructor(options: TestMachineOptions = {}) {
    this.m = createTestMachine(options);
    this.vcpu = this.m.vcpu;
    const vectors = new Assembler(VECTORS);
    for (let offset = 0; offset < 0x800; offset += 0x80) vectors.padTo(offset).hvc(VECTOR_CALL + offset).eret();
    this.m.load(Number(VECTORS), vectors.words());
    this.lower = new PageTables(this, 39);
    this.upper = new PageTables(this, 39);
    this.vcpu.set64(at.vbarEl1, VECTORS);
    this.vcpu.set64(at.sctlrEl1, sctlr.SPAN);
    this.vcpu.set64(at.cpacrEl1, 3n << 20n);
    this.vcpu.updateFpTrap();
  }

  /** Physical address of an empty table. */
  takeTable(): bigint {
    const address = this.#nextTable;
    this.#nextTable += 4096;
    this.m.ram.fill(0, address - GUEST_BASE, address - GUEST_BASE + 4096);
    return BigInt(address);
  }
  #view(pa: bigint): DataView {
    return new DataView(this.m.ram.buffer, this.m.ram.byteOffset + Number(pa) - GUEST_BASE, 8);
  }
  read64(pa: bigint): bigint { return this.#view(pa).getBigUint64(0, true); }
  write64(pa: bigint, value: bigint): void { this.#view(pa).setBigUint64(0, value, true); }

  /** Turns the MMU on, with programs and vectors mapped one to one. */
  enableMmu(options: { sctlr?: bigint; tcr?: bigint; replaceTcr?: bigint; span?: boolean } = {}): this {
    for (let page = 0n; page < 17n; page++) this.lower.map(PROGRAM + (page << 12n), PROGRAM + (page << 12n), CODE);
    const { vcpu } = this;
    vcpu.set64(at.sctlrEl1, sctlr.M | (options.sctlr ?? 0n) | (options.span === false ? 0n : sctlr.SPAN));
    vcpu.set64(at.tcrEl1, options.replaceTcr ?? TCR_DEFAULT | (options.tcr ?? 0n));
    vcpu.set64(at.mairEl1, 0x00ffn);
    vcpu.set64(at.ttbr0El1, this.lower.root);
    vcpu.set64(at.ttbr1El1, this.upper.root);
    this.flush();
    return this;
  }
  /** The same with programs and vectors in the upper half, one to one from its start, to leave the lower half free. */
  enableMmuUpper(tcrBits: bigint): void {
    const { vcpu } = this;
    for (let page = 0n; page < 17n; page++) this.upper.map(UPPER_START + (page << 12n), PROGRAM + (page << 12n), CODE);
    vcpu.set64(at.sctlrEl1, sctlr.M | sctlr.SPAN);
    vcpu.set64(at.tcrEl1, tcrBits);
    vcpu.set64(at.mairEl1, 0x00ffn);
    vcpu.set64(at.ttbr0El1, this.lower.root);
    vcpu.set64(at.ttbr1El1, this.upper.root);
    vcpu.set64(at.vbarEl1, UPPER_START + VECTORS - PROGRAM);
    this.flush();
  }
  /** A load at EL1 by a program in the upper half: 'ok' or the fault status. */
  upperOutcome(va: bigint): 'ok' | number {
    this.vcpu.setX(1, va);
    this.program(a => a.ldr(0, 1).svc(0));
    const taken = this.enter(1, UPPER_START).runToException();
    if (taken.ec === ec.svc) return 'ok';
    assert.equal(taken.ec, ec.dataAbort);
    return taken.iss & 0x3f;
  }
  /** As TLBI VMALLE1 would. */
  flush(): void { this.m.engine.flushTlb(this.vcpu); }

  /** Loads a program at PROGRAM. */
  program(write: (a: Assembler) => void, address = PROGRAM): Assembler {
    const a = new Assembler(address);
    write(a);
    this.m.load(Number(address), a.words());
    return a;
  }

  /** Sets the PC and exception level, with interrupts masked at EL1. */
  enter(el: 0 | 1, pc = PROGRAM): this {
    const { vcpu } = this;
    vcpu.set32(at.record, 0);
    vcpu.enterEl(el, el);
    vcpu.set32(at.daif, el === 0 ? 0 : 0x3c0);
    vcpu.set64(at.pcBase, pc);
    return this;
  }

  /** Runs until the host is called: by an exception (its HVC number says which vector) or by the program's own HVC. */
  run(limit = 100_000): number {
    const reason: ExitReason = this.m.engine.run(this.vcpu, limit);
    assert.equal(reason, 'host', `the program goes on at 0x${this.vcpu.get64(at.pcBase).toString(16)}`);
    return this.m.host.hypercalls.at(-1)!;
  }
  /** Runs a program until an exception. */
  runToException(limit?: number): TakenException {
    const call = this.run(limit);
    assert.ok(call >= VECTOR_CALL, `HVC #${call} instead of an exception`);
    const { vcpu } = this;
    const esr = vcpu.get32(at.esrEl1);
    return {
      vector: call - VECTOR_CALL, esr, ec: esr >>> 26, iss: esr & 0x1ff_ffff,
      far: vcpu.get64(at.farEl1), elr: vcpu.get64(at.elrEl1), spsr: vcpu.get32(at.spsrEl1),
    };
  }
  /** Loads, enters and runs until an exception. */
  except(el: 0 | 1, write: (a: Assembler) => void): TakenException {
    this.program(write);
    return this.enter(el).runToException();
  }
  /** Loads, enters and runs at EL1 until the program's HVC #0, or at EL0 until its SVC #0. */
  complete(el: 0 | 1, write: (a: Assembler) => void): void {
    if (el === 0) {
      const taken = this.except(0, a => { write(a); a.svc(0); });
      assert.deepEqual([taken.ec, taken.iss], [ec.svc, 0],
        `ESR 0x${taken.esr.toString(16)}, FAR 0x${taken.far.toString(16)}`);
      return;
    }
    this.program(a => { write(a); a.hvc(0); });
    const call = this.enter(1).run();
    const esr = this.vcpu.get32(at.esrEl1).toString(16);
    assert.equal(call, 0, `an exception: ESR 0x${esr}, FAR 0x${this.vcpu.get64(at.farEl1).toString(16)}`);
  }
  get retired(): bigint { return this.vcpu.get64(at.instructionsRetired); }
}

export type AccessKind = 'load' | 'store' | 'ldtr' | 'sttr';

/** Makes an access of eight bytes: the data abort that it raises, or undefined. */
export function probe(g: Guest, el: 0 | 1, access: AccessKind, va: bigint): TakenException | undefined {
  g.vcpu.setX(1, va);
  g.program(a => {
    if (access === 'load') a.ldr(0, 1);
    else if (access === 'store') a.str(31, 1);
    else if (access === 'ldtr') a.ldtr(0, 1);
    else a.sttr(31, 1);
    a.svc(0);
  });
  const taken = g.enter(el).runToException();
  if (taken.ec === ec.svc) return undefined;
  assert.equal(taken.ec, el === 0 ? ec.dataAbortLower : ec.dataAbort);
  assert.equal(taken.far & ~PAGE_MASK, va & ~PAGE_MASK);
  assert.equal((taken.iss & WNR) !== 0, access === 'store' || access === 'sttr');
  return taken;
}
/** The same in a word: 'ok', or the fault status. */
export function outcome(g: Guest, el: 0 | 1, access: AccessKind, va: bigint): 'ok' | number {
  const taken = probe(g, el, access, va);
  return taken === undefined ? 'ok' : taken.iss & 0x3f;
}
/** Fetching from an address: 'ok' if the SVC there runs, or the fault status. */
export function fetchOutcome(g: Guest, el: 0 | 1, va: bigint): 'ok' | number {
  const taken = g.enter(el, va).runToException();
  if (taken.ec === ec.svc) return 'ok';
  assert.equal(taken.ec, el === 0 ? ec.instructionAbortLower : ec.instructionAbort);
  assert.equal(taken.far, va);
  assert.equal(taken.elr, va);
  return taken.iss & 0x3f;
}

const machines: readonly (readonly [name: string, TestMachineOptions])[] = [
  ['interpreted, i32 memory', { addressType: 'i32' }],
  ['interpreted, i64 memory', { addressType: 'i64' }],
  ['compiled, i32 memory', { addressType: 'i32', forced: { followsCalls: true } }],
  ['compiled in regions of one instruction, i64 memory', { addressType: 'i64', forced: { regionMax: 1, followsCalls: false } }],
];

/** One test on both engines, and machines with 32-bit and 64-bit memory. */
export function systemTest(name: string, body: (g: Guest) => void): void {
  for (const [machine, options] of machines) test(`${name} (${machine})`, () => body(new Guest(options)));
}
