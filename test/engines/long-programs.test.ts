// Random programs of thousands of instructions end alike in the interpreter, in compiled code, in compiled code of which
// little may be kept, in slices of any length with TLBs that are emptied all the time, and in qemu-aarch64. Those with
// faults in them are compared between the engines only.
//
//   ZAZEN_SEED=n        other programs (every run prints its seed)
//   ZAZEN_PROGRAMS=n    how many of each kind (default 12)

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine, TestMachineOptions } from '../../src/cpu/test-machine.ts';
import { qemuUserPath } from '../differential/qemu-user.ts';
import { CODE_ADDRESS, DATA_ADDRESS, DATA_BYTES, longProgram } from './long-programs.ts';

const at = vcpuRecord.at;
const SEED = Number(process.env['ZAZEN_SEED'] ?? 7);
const PROGRAMS = Number(process.env['ZAZEN_PROGRAMS'] ?? 12);
const PIECES = 24;
const VECTORS = GUEST_BASE + 0x8000;
const INSTRUCTIONS_MAX = 20_000_000;
console.log(`seed ${SEED} (ZAZEN_SEED), ${PROGRAMS} programs (ZAZEN_PROGRAMS)`);

interface Outcome {
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

class Runner {
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
}

/** An ELF executable with the program and its data, both writable and executable. */
function executable(words: readonly number[], data: Uint8Array): Uint8Array {
  const HEADER = 0x1000;
  const code = new Uint8Array(Uint32Array.from(words).buffer);
  const dataAt = HEADER + Math.ceil(code.length / 4096) * 4096;
  const file = new Uint8Array(dataAt + data.length);
  const view = new DataView(file.buffer);
  const put64 = (offset: number, value: number): void => view.setBigUint64(offset, BigInt(value), true);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 183, true);
  view.setUint32(20, 1, true);
  put64(24, CODE_ADDRESS);
  put64(32, 64);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 2, true);
  [[HEADER, CODE_ADDRESS, code], [dataAt, DATA_ADDRESS, data]].forEach(([offset, address, bytes], i) => {
    const header = 64 + 56 * i;
    view.setUint32(header, 1, true);
    view.setUint32(header + 4, 7, true);
    for (const [field, value] of [[8, offset], [16, address], [24, address], [32, (bytes as Uint8Array).length],
      [40, (bytes as Uint8Array).length], [48, 0x1000]] as [number, number][]) put64(header + field, value);
    file.set(bytes as Uint8Array, offset as number);
  });
  return file;
}

async function inQemu(qemu: string, words: readonly number[], data: Uint8Array): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'zazen-long-program-'));
  try {
    const path = join(directory, 'program');
    await writeFile(path, executable(words, data), { mode: 0o700 });
    const child = spawn(qemu, ['-cpu', 'neoverse-n1', path], { stdio: ['ignore', 'pipe', 'inherit'] });
    const chunks: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
    const status = await new Promise(resolve => { child.once('close', (code, signal) => resolve(signal ?? code)); });
    assert.equal(status, 0, 'QEMU ends the program as it ends itself');
    return Buffer.concat(chunks).toString('hex');
  } finally {
    await rm(directory, { recursive: true });
  }
}

function randomData(random: SeededRandom): Uint8Array {
  return Uint8Array.from({ length: DATA_BYTES }, () => random.below(4) === 0 ? random.pick([0, 0xff, 0x7f, 0x80]) : random.below(256));
}

function runners(random: SeededRandom): readonly (readonly [name: string, Runner])[] {
  const short = (): number => 1 + random.below(60);
  return [
    ['compiled', new Runner({ regions: { quantumMin: 20, hotSamples: 1 } })],
    ['compiled, 8 regions of at most 5 instructions kept, i64 memory',
      new Runner({ addressType: 'i64', regions: { quantumMin: 15, hotSamples: 1, regionMax: 5, regionCountMax: 8 } })],
    ['compiled, short slices, no TLB entry outlives one', new Runner({ regions: { quantumMin: 10, hotSamples: 1 } }, short, true)],
    ['interpreted, short slices, no TLB entry outlives one, i64 memory', new Runner({ addressType: 'i64' }, short, true)],
  ];
}

for (const faults of [false, true]) {
  test(`long programs ${faults ? 'with faults end alike on all engines' : 'end alike on all engines and in qemu-aarch64'}`, async () => {
    const random = new SeededRandom(SEED + Number(faults));
    const interpreter = new Runner({});
    const others = runners(random);
    const qemu = faults ? undefined : await qemuUserPath();
    let instructions = 0n;
    for (let number = 0; number < PROGRAMS; number++) {
      const words = longProgram(random, { pieces: PIECES, faults });
      const data = randomData(random);
      const expected = interpreter.run(words, data);
      instructions += expected.retired;
      for (const [name, runner] of others) {
        assert.deepEqual(runner.run(words, data), expected, `seed ${SEED}, program ${number}: ${name}`);
      }
      if (qemu !== undefined) assert.equal(await inQemu(qemu, words, data), expected.data, `seed ${SEED}, program ${number}: QEMU`);
      assert.equal(expected.exceptions > 1n, faults);
    }
    assert.ok(instructions > BigInt(PROGRAMS) * 5000n, `${instructions} instructions`);
    for (const [name, runner] of others.slice(0, 3)) assert.ok(runner.regionCount + runner.resets > 0, `${name}: nothing was compiled`);
    assert.ok(others[1]![1].resets > 0, 'regions were given up');
  });
}
