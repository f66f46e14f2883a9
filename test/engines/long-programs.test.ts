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
import { SeededRandom } from '../../src/base/random.ts';
import { qemuUserPath } from '../differential/qemu-user.ts';
import { CODE_ADDRESS, DATA_ADDRESS, DATA_BYTES, longProgram } from './long-programs.ts';
import { ProgramRunner } from './program-runner.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 7);
const PROGRAMS = Number(process.env['ZAZEN_PROGRAMS'] ?? 12);
const PIECES = 24;
console.log(`seed ${SEED} (ZAZEN_SEED), ${PROGRAMS} programs (ZAZEN_PROGRAMS)`);

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

function runners(random: SeededRandom): readonly (readonly [name: string, ProgramRunner])[] {
  const short = (): number => 1 + random.below(60);
  return [
    ['compiled', new ProgramRunner({ regions: { quantumMin: 20, quantumMax: 200, hotSamples: 1, followCallsAfter: 0 } })],
    ['compiled, 8 regions of at most 5 instructions kept, i64 memory',
      new ProgramRunner({ addressType: 'i64', regions: { quantumMin: 15, quantumMax: 200, hotSamples: 1, regionMax: 5, regionCountMax: 8 } })],
    ['compiled, short slices, no TLB entry outlives one', new ProgramRunner({ regions: { quantumMin: 10, quantumMax: 200, hotSamples: 1, followCallsAfter: 100 } }, short, true)],
    ['interpreted, short slices, no TLB entry outlives one, i64 memory', new ProgramRunner({ addressType: 'i64' }, short, true)],
  ];
}

for (const faults of [false, true]) {
  test(`long programs ${faults ? 'with faults end alike on all engines' : 'end alike on all engines and in qemu-aarch64'}`, async () => {
    const random = new SeededRandom(SEED + Number(faults));
    const interpreter = new ProgramRunner({});
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
