// Runs the cases of the differential tests on Zazen's CPU, at EL0 with the MMU on and at the addresses that the oracle
// uses, so that results which depend on the PC can be compared as they are.
//
//   virtual                       physical (from GUEST_BASE)
//   0x1000_1000  scratch memory   SCRATCH       EL0 may read and write it
//   0x1020_0000  twice the same   SCRATCH       an access across the border of the two goes on at the start
//   0x2a00_0000  code, 2 MiB      CODE          EL0 may read and run it
//   0x3000_0000  vectors          VECTORS       EL1 may run it; each vector is HVC #0, which ends the case
//
// A case ends in SVC behind its words; any other exception is a fault.

import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine } from '../../src/cpu/test-machine.ts';
import { SP_SLOT } from '../../src/a64/operand.ts';
import { vOffset, vcpuRecord, xOffset } from '../../src/abi/vcpu.ts';
import { SCRATCH_BYTES, copyState } from './cpu-state.ts';
import type { CpuState } from './cpu-state.ts';
import { MAX_WORDS, SCRATCH_ADDRESS } from './qemu-oracle.ts';

const at = vcpuRecord.at;

export const CODE_ADDRESS = 0x2a00_0000n;
export const DOUBLE_ADDRESS = 0x1020_0000n;
const VECTORS_ADDRESS = 0x3000_0000n;
/** Offsets in guest memory. */
const TABLE_LEVEL_1 = 0x1000;
const TABLE_LEVEL_2 = 0x2000;
const TABLE_SCRATCH = 0x3000;
const TABLE_VECTORS = 0x4000;
const SCRATCH = 0x5000;
const VECTORS = 0x6000;
const TABLE_DOUBLE = 0x7000;
const CODE = 0x20_0000; // a block of 2 MiB

const PAGE = 3n;
const TABLE = 3n;
const BLOCK = 1n;
const ACCESSED = 1n << 10n;
const EL0_MAY_ACCESS = 1n << 6n;
const READ_ONLY = 1n << 7n;
const NOT_AT_EL0 = 1n << 54n;

const SCTLR_MMU = 1n;
/** EL0 may use DC ZVA, read CTR_EL0, WFI, WFE and maintain caches. */
const SCTLR_EL0 = (1n << 14n) | (1n << 15n) | (1n << 16n) | (1n << 18n) | (1n << 26n);
/** 39 bits in the lower half, none in the upper; top byte ignored, as the oracle does. */
const TCR = 25n | (1n << 23n) | (25n << 16n) | (1n << 37n);
const MAIR_NORMAL = 0xffn;
const CPACR_FP = 3n << 20n;

const NOP = 0xd503201f;
const SVC = 0xd4000001;
const HVC = 0xd4000002;
const EC_SVC = 0x15;
/** More than any case has. */
const INSTRUCTIONS = 1000;

export interface ZazenResult {
  state: CpuState;
  /** Present if the case ended otherwise than at its end. */
  fault?: { exceptionClass: number; esr: number; pc: bigint; address: bigint };
}

export class ZazenRunner {
  readonly #test: TestMachine;
  readonly #ram64: BigUint64Array;
  readonly #v: BigUint64Array;

  /** @param addressType of the machine memory */
  constructor(addressType: 'i32' | 'i64') {
    this.#test = createTestMachine({ addressType });
    const { ram, machine, vcpu } = this.#test;
    this.#ram64 = new BigUint64Array(ram.buffer, ram.byteOffset, CODE / 8);
    this.#v = machine.u64.subarray((vcpu.address + vOffset(0)) / 8, (vcpu.address + vOffset(32)) / 8);
    this.#writeTables();
    this.#test.load(GUEST_BASE + VECTORS, Array<number>(1024).fill(HVC));
    vcpu.set64(at.sctlrEl1, SCTLR_MMU | SCTLR_EL0);
    vcpu.set64(at.tcrEl1, TCR);
    vcpu.set64(at.mairEl1, MAIR_NORMAL);
    vcpu.set64(at.ttbr0El1, BigInt(GUEST_BASE + TABLE_LEVEL_1));
    vcpu.set64(at.vbarEl1, VECTORS_ADDRESS);
    vcpu.set64(at.cpacrEl1, CPACR_FP);
  }

  #writeTables(): void {
    const entry = (table: number, index: bigint, offset: number, bits: bigint): void => {
      this.#ram64[table / 8 + Number(index & 511n)] = BigInt(GUEST_BASE + offset) | bits;
    };
    entry(TABLE_LEVEL_1, 0n, TABLE_LEVEL_2, TABLE);
    entry(TABLE_LEVEL_2, SCRATCH_ADDRESS >> 21n, TABLE_SCRATCH, TABLE);
    entry(TABLE_LEVEL_2, VECTORS_ADDRESS >> 21n, TABLE_VECTORS, TABLE);
    entry(TABLE_LEVEL_2, CODE_ADDRESS >> 21n, CODE, BLOCK | ACCESSED | EL0_MAY_ACCESS | READ_ONLY);
    entry(TABLE_LEVEL_2, DOUBLE_ADDRESS >> 21n, TABLE_DOUBLE, TABLE);
    const data = PAGE | ACCESSED | EL0_MAY_ACCESS | NOT_AT_EL0;
    entry(TABLE_SCRATCH, SCRATCH_ADDRESS >> 12n, SCRATCH, data);
    for (const page of [0n, 1n]) entry(TABLE_DOUBLE, (DOUBLE_ADDRESS >> 12n) + page, SCRATCH, data);
    entry(TABLE_VECTORS, VECTORS_ADDRESS >> 12n, VECTORS, PAGE | ACCESSED | READ_ONLY | NOT_AT_EL0);
  }

  /** @param codeAddress where the first word runs, inside the 2 MiB of code */
  run(words: readonly number[], state: CpuState, codeAddress: bigint): ZazenResult {
    const { vcpu, engine, ram } = this.#test;
    const code = [...words, ...Array<number>(MAX_WORDS - words.length).fill(NOP), SVC];
    this.#test.load(GUEST_BASE + CODE + Number(codeAddress - CODE_ADDRESS), code);
    ram.set(state.memory, SCRATCH);
    this.#setRegisters(state);
    vcpu.set64(at.pcBase, codeAddress);
    while (engine.run(vcpu, INSTRUCTIONS) !== 'host' && vcpu.el === 0); // hints come back early
    const result: ZazenResult = { state: this.#readState(state) };
    const esr = vcpu.get32(at.esrEl1);
    const pc = vcpu.get64(at.elrEl1);
    const end = codeAddress + BigInt(4 * code.length);
    if (esr >>> 26 !== EC_SVC || pc !== end) {
      result.fault = { exceptionClass: esr >>> 26, esr, pc, address: vcpu.get64(at.farEl1) };
    }
    return result;
  }

  #setRegisters(state: CpuState): void {
    const { vcpu } = this.#test;
    for (let n = 0; n < 31; n++) vcpu.setX(n, state.x[n]!);
    vcpu.set64(at.spEl0, state.sp);
    vcpu.enterEl(0, 0);
    vcpu.setNzcv(state.nzcv);
    vcpu.set32(at.fpcr, state.fpcr);
    vcpu.set32(at.fpsr, state.fpsr);
    vcpu.set64(at.exclusiveAddress, 0xffff_ffff_ffff_ffffn);
    this.#v.set(state.v);
  }

  /** After an exception, which has put SP and the flags aside. */
  #readState(before: CpuState): CpuState {
    const { vcpu, ram } = this.#test;
    const state = copyState(before);
    for (let n = 0; n < 31; n++) state.x[n] = vcpu.x(n);
    state.sp = vcpu.el === 0 ? vcpu.get64(xOffset(SP_SLOT)) : vcpu.get64(at.spEl0);
    state.nzcv = (vcpu.el === 0 ? vcpu.nzcv() : vcpu.get32(at.spsrEl1) & 0xf000_0000) >>> 0;
    state.fpcr = vcpu.get32(at.fpcr);
    state.fpsr = vcpu.get32(at.fpsr);
    state.v.set(this.#v);
    state.memory.set(ram.subarray(SCRATCH, SCRATCH + SCRATCH_BYTES));
    return state;
  }
}
