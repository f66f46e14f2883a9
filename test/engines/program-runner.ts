// Runs random programs (long-programs.ts) on a test machine, at EL0, and tells what they left behind.

import assert from 'node:assert/strict';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine, TestMachineOptions } from '../../src/cpu/test-machine.ts';
import { CODE_ADDRESS, DATA_ADDRESS, DATA_BYTES } from './long-programs.ts';

const at = vcpuRecord.at;
const VECTORS = GUEST_BASE + 0x8000;
const INSTRUCTIONS_MAX = 20_000_000;

export interface Outcome {
  /** Hexadecimal. */
  readonly data: string;
  readonly retired: bigint;
  /** Faults and calls on the way. */
  readonly exceptions: bigint;
}

const DATA_AT = DATA_ADDRESS - GUEST_BASE;
const EXIT_IMMEDIATE = 0x7777;
const EC_SVC = 0x15;

/** Exceptions: counted in TPIDR_EL1, and what faulted is left out; the program's last call stops. */
function loadVectors(m: TestMachine): void {
  const a = new Assembler(VECTORS);
  // From EL0. X29 is kept in a register that EL0 cannot write.
  a.padTo(0x400).msr('TPIDRRO_EL0', 29).mrs(29, 'TPIDR_EL1').add(29, 29, 1).msr('TPIDR_EL1', 29).mrs(29, 'ESR_EL1')
    .emit('UBFM', { sf: 1, N: 1, immr: 26, imms: 31, Rn: 29, Rd: 29 }).b('look').padTo(0x800);
  // Is it a call, and the last one?
  a.label('look').sub(29, 29, EC_SVC).cbnz(29, 'skip')
    .mrs(29, 'ESR_EL1').emit('UBFM', { sf: 1, N: 1, immr: 0, imms: 15, Rn: 29, Rd: 29 })
    .emit('SUB (immediate)', { sf: 1, sh: 1, imm12: EXIT_IMMEDIATE >>> 12, Rn: 29, Rd: 29 })
    .sub(29, 29, EXIT_IMMEDIATE & 0xfff).cbz(29, 'stop').b('return');
  a.label('skip').mrs(29, 'ELR_EL1').add(29, 29, 4).msr('ELR_EL1', 29);
  a.label('return').mrs(29, 'TPIDRRO_EL0').eret();
  a.label('stop').hvc(1);
  m.load(VECTORS, a.words());
}

export class ProgramRunner {
  readonly #m: TestMachine;
  readonly #slice: () => number;
  readonly #flushes: boolean;

  constructor(options: TestMachineOptions, slice: () => number = () => 1_000_000, flushes = false) {
    this.#m = createTestMachine(options);
    this.#slice = slice;
    this.#flushes = flushes;
    loadVectors(this.#m);
  }

  run(words: readonly number[], data: Uint8Array): Outcome {
    const { vcpu, engine, ram, host } = this.#m;
    this.#m.load(CODE_ADDRESS, words);
    ram.set(data, DATA_AT);
    for (let n = 0; n < 32; n++) vcpu.setX(n, 0n);
    for (const offset of [at.instructionsRetired, at.tpidrEl1, at.tpidrroEl0]) vcpu.set64(offset, 0n);
    vcpu.setNzcv(0);
    vcpu.set32(at.fpcr, 0);
    vcpu.set32(at.fpsr, 0);
    vcpu.set32(at.daif, 0x3c0);
    vcpu.set64(at.exclusiveAddress, 2n ** 64n - 1n);
    // UCI, UCT: cache maintenance and CTR_EL0 are for EL0 as well.
    vcpu.set64(at.sctlrEl1, (1n << 26n) | (1n << 15n));
    vcpu.set64(at.cpacrEl1, 3n << 20n);
    vcpu.set64(at.vbarEl1, BigInt(VECTORS));
    vcpu.enterEl(0, 0);
    vcpu.updateFpTrap();
    vcpu.set64(at.spEl0, 0n);
    vcpu.set32(at.record, 0);
    vcpu.set64(at.pcBase, BigInt(CODE_ADDRESS));
    const calls = host.hypercalls.length;
    while (host.hypercalls.length === calls) {
      engine.run(vcpu, this.#slice());
      if (this.#flushes) engine.flushTlb(vcpu);
      assert.ok(vcpu.get64(at.instructionsRetired) < INSTRUCTIONS_MAX, 'the program does not end');
    }
    return {
      data: Buffer.from(ram.subarray(DATA_AT, DATA_AT + DATA_BYTES)).toString('hex'),
      retired: vcpu.get64(at.instructionsRetired), exceptions: vcpu.get64(at.tpidrEl1),
    };
  }
  get regionCount(): number { return this.#m.translator?.regionCount ?? 0; }
  get resets(): number { return this.#m.translator?.resets ?? 0; }
  get emittedBytes(): number { return this.#m.translator?.codeBytes ?? 0; }
}
