// Accesses near others, and by the stack pointer, end in compiled regions as in the interpreter: random lines of loads and stores by
// a few bases that stand at the very ends of the guest's memory, where a byte too far is a fault, with and without the
// stack pointer aligned. Regions look where in its page an access is no more often than they have to (src/cpu/jit/region-machine.ts).
//
//   ZAZEN_SEED=n   other random numbers (every run prints its seed)

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { disassemble } from '../../src/a64/test-disassembler.ts';
import { vOffset, vcpuRecord, xOffset } from '../../src/abi/vcpu.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine } from '../../src/cpu/test-machine.ts';
import { ForcedRegions } from '../../src/cpu/test-regions.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 20_26);
const LINES = 1500;
const LINE_INSTRUCTIONS = 12;
const at = vcpuRecord.at;
const CODE = GUEST_BASE + 0x10_000;
const VECTORS = GUEST_BASE + 0x20_000;
const HVC_STOP = 0xd4000842;
const SP_CHECKED = 1n << 3n;
const SP = 31;
const BASES = [0, 1, SP];
/** Around a base, and now and then farther than a region expects an access in the same page. */
const REACHES = [16, 16, 32, 32, 64, 64, 256, 520];
const FILLED_BYTES = 0x2000;

/** Loads and stores by an unsigned offset: opcode, and bytes that the offset counts in. */
const SCALED = [[0xf9400000, 8], [0xf9000000, 8], [0xb9400000, 4], [0x39400000, 1], [0x39000000, 1], [0x3dc00000, 16], [0x3d800000, 16]] as const;
const UNSCALED = [0xf8400000, 0xf8000000, 0x78400000] as const;
const WRITE_BACK = [0xf8400c00, 0xf8400400, 0xf8000c00, 0xf8000400] as const;
const PAIRS = [0xa9400000, 0xa9000000, 0xa9c00000, 0xa8c00000, 0xa9800000, 0xa8800000] as const;

function randomInstruction(random: SeededRandom): number {
  const pick = <T>(from: readonly T[]): T => from[random.below(from.length)]!;
  const rn = pick(BASES) << 5;
  const data = (): number => 2 + random.below(6);
  const distance = random.below(2 * pick(REACHES)) - pick(REACHES);
  const simm9 = (Math.max(-256, Math.min(255, distance)) & 0x1ff) << 12;
  switch (random.below(7)) {
    case 0: case 1: {
      const [opcode, bytes] = pick(SCALED);
      return opcode | Math.floor(Math.abs(distance) / bytes) << 10 | rn | data();
    }
    case 2: return pick(UNSCALED) | simm9 | rn | data();
    case 3: return pick(WRITE_BACK) | simm9 | rn | data();
    case 4: case 5: {
      const first = data();
      const second = first === 7 ? 2 : first + 1;
      return pick(PAIRS) | (Math.max(-64, Math.min(63, distance >> 3)) & 0x7f) << 15 | second << 10 | rn | first;
    }
    default: {
      // A base moves: by itself, or to where another one is; the stack pointer mostly by what keeps it aligned.
      const amount = random.below(8) === 0 ? random.below(64) : 16 * random.below(4);
      return (random.below(2) === 0 ? 0x91000000 : 0xd1000000) | amount << 10 | rn | (random.below(8) === 0 ? pick(BASES) : rn >> 5);
    }
  }
}

/** From the line's start until it, or an exception, has come to an end. */
function run(m: TestMachine, bases: readonly number[], isChecked: boolean): void {
  const { vcpu, engine, ram } = m;
  ram.fill(0x5a, 0, FILLED_BYTES);
  ram.fill(0xa5, ram.length - FILLED_BYTES);
  for (let n = 0; n < 31; n++) vcpu.setX(n, BigInt(n) * 0x1111_1111n);
  for (let n = 0; n < 16; n++) vcpu.set64(vOffset(0) + 8 * n, BigInt(n) * 0x2222_2222n);
  vcpu.setX(0, BigInt(bases[0]!));
  vcpu.setX(1, BigInt(bases[1]!));
  vcpu.set64(at.spEl1, BigInt(bases[2]!));
  vcpu.set64(at.sctlrEl1, isChecked ? SP_CHECKED : 0n);
  for (const name of ['esrEl1', 'farEl1', 'elrEl1', 'instructionsRetired'] as const) vcpu.set64(at[name], 0n);
  vcpu.set32(at.daif, 0x3c0);
  vcpu.set64(at.vbarEl1, BigInt(VECTORS));
  vcpu.set64(at.cpacrEl1, 3n << 20n);
  vcpu.enterEl(1, 1);
  vcpu.set64(at.pcBase, BigInt(CODE));
  vcpu.set32(at.record, 0);
  const before = m.host.hypercalls.length;
  while (m.host.hypercalls.length === before) engine.run(vcpu, 1000);
}

function stateOf({ vcpu, ram }: TestMachine): Record<string, unknown> {
  const registers = Object.fromEntries(Array.from({ length: 32 }, (_, n) => [`x${n}`, vcpu.get64(xOffset(n))]));
  const vectors = Object.fromEntries(Array.from({ length: 16 }, (_, n) => [`v${n}`, vcpu.get64(vOffset(0) + 8 * n)]));
  const rest = Object.fromEntries((['esrEl1', 'farEl1', 'elrEl1', 'instructionsRetired'] as const).map(name => [name, vcpu.get64(at[name])]));
  const ends = [ram.subarray(0, FILLED_BYTES), ram.subarray(ram.length - FILLED_BYTES)];
  return { ...registers, ...vectors, ...rest, memory: ends.map(end => Buffer.from(end).toString('base64')) };
}

test('random accesses at the ends of memory, and by a stack pointer that may be misaligned', () => {
  console.log(`seed ${SEED} (ZAZEN_SEED)`);
  const random = new SeededRandom(SEED);
  const [interpreter, compiled] = [createTestMachine(), createTestMachine()];
  const regions = new ForcedRegions(compiled.machine, {});
  regions.serve(compiled.engine);
  for (const m of [interpreter, compiled]) for (let vector = 0; vector < 16; vector++) m.load(VECTORS + 0x80 * vector, [HVC_STOP]);
  const end = GUEST_BASE + interpreter.ram.length;
  let faults = 0;
  for (let line = 0; line < LINES; line++) {
    const words = Array.from({ length: LINE_INSTRUCTIONS }, () => randomInstruction(random) >>> 0);
    const reach = [64, 256, 1024][random.below(3)]!;
    // Aligned mostly, so that lines come far.
    const bases = BASES.map(() => (random.below(2) === 0 ? GUEST_BASE + random.below(reach) : end - random.below(reach)) & (random.below(8) === 0 ? -1 : -16))
      .map(base => base >>> 0);
    const isChecked = random.below(4) !== 0;
    for (const m of [interpreter, compiled]) m.load(CODE, [...words, HVC_STOP]);
    run(interpreter, bases, isChecked);
    regions.compile([{ mfn: compiled.machine.firstFrame + (CODE - GUEST_BASE) / 4096, offsetInPage: 0 }]);
    run(compiled, bases, isChecked);
    const want = stateOf(interpreter);
    if (want['elrEl1'] !== 0n) faults++;
    assert.deepEqual(stateOf(compiled), want, [`seed ${SEED}, line ${line}, bases ${bases.map(base => base.toString(16)).join(' ')}:`,
      ...words.map((word, i) => `  ${disassemble(word, BigInt(CODE + 4 * i))}`)].join('\n'));
  }
  assert.ok(regions.regionCount > LINES * 0.9, 'lines had regions');
  console.log(`${faults} of ${LINES} lines ended in a fault`);
  assert.ok(faults > LINES / 4 && faults < LINES * 0.9, 'some lines end in a fault, and some do not');
});
