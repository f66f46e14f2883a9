// The two engines agree: random lines run on the interpreter and as compiled regions, of usual size and of a few
// instructions only, from the same state must end in the same state, traps and faults included.
//
//   ZAZEN_SEED=n   other random numbers (every run prints its seed)
//   ZAZEN_LINES=n  lines for each kind of memory and size of regions (default 1000)

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { disassemble } from '../../src/a64/test-disassembler.ts';
import { operandsOf } from '../../src/a64/row.ts';
import type { Row } from '../../src/a64/row.ts';
import { decode, rows } from '../../src/a64/table.ts';
import { vOffset, vcpuRecord, xOffset } from '../../src/abi/vcpu.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine } from '../../src/cpu/test-machine.ts';
import { ForcedRegions } from '../../src/cpu/test-regions.ts';
import { SCRATCH_BYTES } from '../differential/cpu-state.ts';
import type { CpuState } from '../differential/cpu-state.ts';
import { randomState } from '../differential/random-state.ts';
import { VariantDeck, pieceOf } from './random-lines.ts';
import type { LinePlace } from './random-lines.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 20_26);
const LINES = Number(process.env['ZAZEN_LINES'] ?? 1000);
const PIECES = 8;
const VARIANTS_PER_ROW = 3;
const at = vcpuRecord.at;

const CODE = GUEST_BASE + 0x10_000;
const CODE_BYTES = 0x100;
const VECTORS = GUEST_BASE + 0x20_000;
const VECTORS_BYTES = 0x800;
const SCRATCH = GUEST_BASE + 0x30_000;
const place: LinePlace = { start: BigInt(CODE), endOffset: CODE_BYTES - 4, scratch: BigInt(SCRATCH) };
const NOP = 0xd503201f;

/** State that ends up the same, by name and offset in the vCPU record. */
const compared: readonly (readonly [string, number])[] = [
  ...Array.from({ length: 32 }, (_, n) => [n === 31 ? 'sp' : `x${n}`, xOffset(n)] as const),
  ...Array.from({ length: 64 }, (_, n) => [`v${n >> 1}${n & 1 ? ' high' : ''}`, vOffset(0) + 8 * n] as const),
  ...(['spEl0', 'spEl1', 'elrEl1', 'spsrEl1', 'esrEl1', 'farEl1', 'parEl1', 'exclusiveAddress', 'tpidrEl0',
    'tpidrroEl0',
    'tpidrEl1', 'contextidrEl1', 'unknownSystemRegisters'] as const).map(name => [name, at[name]] as const),
];
const compared32 = ['fpcr', 'fpsr', 'el', 'spSel', 'daif', 'pan', 'pstateRest'] as const;

function prepare(
  { vcpu, ram, load }: TestMachine, words: readonly number[], state: CpuState, el: number, fpen: bigint,
): void {
  load(CODE, words);
  // Lines reach what lies around it as well, and one that never ends has run on one machine only.
  ram.fill(0, SCRATCH - GUEST_BASE, SCRATCH + 0x10_000 - GUEST_BASE);
  ram.set(state.memory, SCRATCH - GUEST_BASE);
  for (const [, offset] of compared) vcpu.set64(offset, 0n);
  for (let n = 0; n < 31; n++) vcpu.setX(n, state.x[n]!);
  vcpu.u64.set(state.v, (vcpu.address + vOffset(0)) / 8);
  vcpu.setNzcv(state.nzcv);
  for (const name of compared32) vcpu.set32(at[name], 0);
  vcpu.set32(at.fpcr, state.fpcr);
  vcpu.set32(at.fpsr, state.fpsr);
  vcpu.set32(at.daif, 0x3c0);
  vcpu.set64(at.exclusiveAddress, 2n ** 64n - 1n);
  vcpu.set64(at.instructionsRetired, 0n);
  vcpu.set64(at.cpacrEl1, fpen << 20n);
  vcpu.set64(el === 0 ? at.spEl0 : at.spEl1, BigInt.asUintN(64, state.sp));
  vcpu.enterEl(el, el);
  vcpu.set64(at.vbarEl1, BigInt(VECTORS));
  vcpu.set64(at.pcBase, BigInt(CODE));
  vcpu.set32(at.record, 0);
}

function isInVectors({ vcpu }: TestMachine, beforeBytes = 0): boolean {
  const offset = Number(vcpu.get64(at.pcBase)) - beforeBytes - VECTORS;
  return offset >= 0 && offset < VECTORS_BYTES;
}

/** Until the HVC in a vector has been reached; the PC is left at it. */
function finish(m: TestMachine): boolean {
  for (let runs = 0; runs < 100; runs++) {
    m.engine.run(m.vcpu, 1000);
    if (!isInVectors(m, 4)) continue;
    m.vcpu.set64(at.pcBase, m.vcpu.get64(at.pcBase) - 4n);
    return true;
  }
  return false;
}

function differences(a: TestMachine, b: TestMachine): string[] {
  const lines: string[] = [];
  const compare = (name: string, want: bigint | number, got: bigint | number) => {
    if (want !== got) lines.push(`${name}: 0x${want.toString(16)} in the interpreter, 0x${got.toString(16)} here`);
  };
  for (const [name, offset] of [...compared, ['pc', at.pcBase] as const]) {
    compare(name, a.vcpu.get64(offset), b.vcpu.get64(offset));
  }
  for (const name of compared32) compare(name, a.vcpu.get32(at[name]), b.vcpu.get32(at[name]));
  compare('nzcv', a.vcpu.nzcv(), b.vcpu.nzcv());
  const start = SCRATCH - GUEST_BASE;
  const scratch = (m: TestMachine): Uint8Array => m.ram.subarray(start, start + SCRATCH_BYTES);
  const differing = Buffer.compare(scratch(a), scratch(b)) === 0 ? -1
    : scratch(a).findIndex((byte, i) => byte !== scratch(b)[i]);
  if (differing >= 0) lines.push(`memory differs from 0x${(SCRATCH + differing).toString(16)} on`);
  compare('instructions retired', a.vcpu.get64(at.instructionsRetired), b.vcpu.get64(at.instructionsRetired));
  return lines;
}

const COUNTER = 26;
const LOOPS = 5;
const usesCounter = (word: number): boolean => {
  const found = decode(word);
  return found !== undefined
    && Object.values(operandsOf(found.row, found.fields)).some(({ kind, value }) => kind === 'x' && value === COUNTER);
};

/** A line in which control also goes back: some pieces stand in loops, one in another, which are run a few times. */
function randomLoop(deck: VariantDeck, random: SeededRandom, used: Map<Row, number>): number[] {
  const words = new Assembler().mov(COUNTER, BigInt(LOOPS)).words();
  const starts: number[] = [];
  while (words.length < place.endOffset / 4 - 6) {
    const choice = random.below(8);
    if (choice === 0 && starts.length < 3) starts.push(words.length);
    else if (choice === 1 && starts.length > 0) {
      const start = random.below(3) === 0 ? starts[random.below(starts.length)]! : starts.pop()!;
      const back = start - words.length - 1;
      // sub x26, x26, #1; cbnz x26
      words.push(0xd1000400 | (COUNTER << 5) | COUNTER, (0xb5000000 | ((back & 0x7ffff) << 5) | COUNTER) >>> 0);
    } else {
      const piece = pieceOf(deck.next(), 4 * words.length, place, random);
      if (!piece || piece.words.some(usesCounter) || words.length + piece.words.length >= place.endOffset / 4 - 2) continue;
      words.push(...piece.words);
      used.set(piece.row, (used.get(piece.row) ?? 0) + 1);
    }
  }
  while (words.length < place.endOffset / 4) words.push(NOP);
  return [...words.map(word => word >>> 0), ...new Assembler().svc(0).words()];
}

function randomLine(deck: VariantDeck, random: SeededRandom, used: Map<Row, number>): number[] {
  const words: number[] = [];
  for (let pieces = 0; pieces < PIECES;) {
    const variant = deck.next();
    const piece = pieceOf(variant, 4 * words.length, place, random);
    if (!piece) continue;
    if (words.length + piece.words.length >= place.endOffset / 4) break;
    words.push(...piece.words);
    used.set(piece.row, (used.get(piece.row) ?? 0) + 1);
    pieces++;
  }
  while (words.length < place.endOffset / 4) words.push(NOP);
  return [...words, ...new Assembler().svc(0).words()];
}

const cases = [['i32', undefined], ['i64', undefined], ['i32', 3]] as const;
cases.forEach(([addressType, regionMax], number) => {
  const size = regionMax === undefined ? 'regions' : `regions of ${regionMax} instructions`;
  test(`random lines from the whole table end as in the interpreter: ${size}, ${addressType} memory`, () => {
    const seed = SEED + number;
    console.log(`seed ${seed} (ZAZEN_SEED=${SEED}), ${LINES} lines (ZAZEN_LINES)`);
    const random = new SeededRandom(seed);
    const deck = new VariantDeck(random, VARIANTS_PER_ROW);
    const interpreter = createTestMachine({ addressType });
    const compiled = createTestMachine({ addressType });
    const regions = new ForcedRegions(compiled.machine, regionMax === undefined ? {} : { regionMax });
    regions.serve(compiled.engine);
    const hvc = new Assembler().hvc(0).words()[0]!;
    for (const m of [interpreter, compiled]) m.load(VECTORS, Array<number>(VECTORS_BYTES / 4).fill(hvc));
    const used = new Map<Row, number>();
    for (let line = 0; line < LINES; line++) {
      const words = (line % 2 === 0 ? randomLine : randomLoop)(deck, random, used);
      const state = randomState(random);
      const el = random.below(2);
      const fpen = random.below(24) === 0 ? BigInt(random.below(3)) : 3n;
      for (const m of [interpreter, compiled]) prepare(m, words, state, el, fpen);
      regions.compile(entries(random, compiled));
      if (!finish(interpreter)) continue; // an endless loop: a jump past the count
      assert.ok(finish(compiled), `seed ${seed}, line ${line}: the compiled code does not come to an end`);
      const found = differences(interpreter, compiled);
      assert.ok(found.length === 0, [`seed ${seed}, line ${line} at EL${el}:`,
        ...words.map((word, i) => [word, place.start + BigInt(4 * i)] as const).filter(([word]) => word !== NOP)
          .map(([word, pc]) => `  ${pc.toString(16)}  ${disassemble(word, pc)}`), ...found].join('\n'));
    }
    assert.ok(regions.regionCount > LINES, 'every line had regions');
    if (LINES * PIECES > 3 * deck.size) {
      const unused = rows.filter(row => !used.has(row)).map(row => row.name);
      assert.deepEqual(unused, [], 'every row has come up');
    }
  });
});

/** The start of the line, and now and then other places in it. */
function entries(random: SeededRandom, { machine }: TestMachine): { mfn: number; offsetInPage: number }[] {
  const offsets = new Set([0, ...Array.from({ length: random.below(4) }, () => 4 * random.below(CODE_BYTES / 4))]);
  const mfn = machine.firstFrame + (CODE - GUEST_BASE) / 4096;
  return [...offsets].map(offset => ({ mfn, offsetInPage: (CODE & 0xfff) + offset }));
}
