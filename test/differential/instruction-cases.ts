// Test cases for the rows of the instruction table: instruction words with random fields, the code around them, and
// states in which they do something worth comparing. Loads and stores get a base register that makes their address lie
// in scratch memory; branches stand among instructions that mark the way taken; store exclusives follow a load.
//
// What the architecture leaves CONSTRAINED UNPREDICTABLE is left out, as two implementations may differ in it, and so
// are errors of the oracle (`isPredictable` names them).

import { encode, fieldsOf } from '../../src/a64/row.ts';
import type { Fields, Row } from '../../src/a64/row.ts';
import { decode } from '../../src/a64/table.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { SCRATCH_BYTES } from './cpu-state.ts';
import type { CpuState } from './cpu-state.ts';
import { MAX_WORDS, SCRATCH_ADDRESS } from './qemu-oracle.ts';
import { randomState } from './random-state.ts';

export interface InstructionCase {
  readonly row: Row;
  /** The instruction under test; `words` has it among others. */
  readonly word: number;
  readonly words: readonly number[];
  readonly state: CpuState;
}

export const MEMORY_GROUPS = new Set([
  'loads-stores', 'loads-stores-pair', 'loads-stores-structures', 'loads-stores-exclusive', 'atomics',
]);
/** How often random fields are drawn before a variant counts as one that does not exist. */
const ATTEMPTS = 600;

/** Every combination of a row's static fields, reserved ones among them. */
function variantsOf(row: Row): Fields[] {
  let variants: Record<string, number>[] = [{}];
  for (const name of row.statics) {
    const count = 1 << row.fields.get(name)!.bits;
    const values = Array.from({ length: count }, (_, value) => value);
    variants = variants.flatMap(variant => values.map(value => ({ ...variant, [name]: value })));
  }
  return variants;
}

/** The variants that some encoding has, the same ones at every call. */
export function existingVariants(row: Row): Fields[] {
  const random = new SeededRandom(1);
  return variantsOf(row).filter(statics => randomWord(row, statics, random) !== undefined);
}

/** A case of the row with these static fields, or undefined if no encoding has them. */
export function randomCase(row: Row, statics: Fields, random: SeededRandom): InstructionCase | undefined {
  const word = randomWord(row, statics, random);
  return word === undefined ? undefined : build(row, word, randomState(random), random);
}

function randomWord(row: Row, statics: Fields, random: SeededRandom): number | undefined {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const fields = { ...randomFields(row, random), ...statics };
    if (!row.when(fields) || !isPredictable(row, fields)) continue;
    const word = encode(row, fields);
    if (decode(word)?.row === row) return word; // else a row with more fixed bits has this encoding
  }
  return undefined;
}

function build(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  if (row.branch !== undefined) return directBranch(row, word, state, random);
  if (row.group === 'branches' && row.fields.has('Rn')) return indirectBranch(row, word, state, random);
  if (row.name.endsWith('(literal)')) return literal(row, word, state, random);
  if (row.name === 'DC ZVA') return zeroBlock(row, word, state, random);
  if (row.name === 'CLREX') return withExclusives(row, word, state, random);
  if (row.group === 'system-register-storage') return registerMove(row, word, state, random);
  if (MEMORY_GROUPS.has(row.group)) return memoryAccess(row, word, state, random);
  return { row, word, words: [word], state };
}

// ---- fields

function randomFields(row: Row, random: SeededRandom): Record<string, number> {
  // A few registers only, so that equal ones are common; 31 has a meaning of its own.
  const pool = Array.from({ length: 4 }, () => random.below(8) === 0 ? 31 : random.below(32));
  const fields: Record<string, number> = {};
  for (const [name, { bits }] of row.fields) {
    fields[name] = bits === 5 && /^R[a-z]/.test(name) ? random.pick([...pool, random.below(31)])
      : bits >= 6 && random.below(4) === 0 ? edgeField(bits, random)
      : random.u32() & (2 ** bits - 1);
  }
  return fields;
}

function edgeField(bits: number, random: SeededRandom): number {
  const all = 2 ** bits - 1;
  return random.pick([0, 1, all, all >> 1, (all >> 1) + 1, 1 << random.below(bits)]);
}

function isPredictable(row: Row, f: Fields): boolean {
  const isIn = (register: number | undefined, ...others: (number | undefined)[]): boolean => others.includes(register);
  switch (row.group) {
    case 'branches':
      return f.Rn !== 31; // a branch to address zero
    case 'loads-stores':
    case 'loads-stores-pair': {
      const isVector = row.fp;
      const writesBack = /p(re|ost)-index/.test(row.name);
      if (writesBack && !isVector && f.Rn !== 31 && isIn(f.Rn, f.Rt, f.Rt2)) return false;
      return !(row.name.startsWith('LD') && f.Rt2 !== undefined && f.Rt === f.Rt2);
    }
    case 'loads-stores-exclusive':
      if (/^LDA?XP/.test(row.name)) return f.Rt !== f.Rt2;
      if (!/^STL?X/.test(row.name)) return true;
      if (isIn(f.Rs, f.Rt) || (f.Rs === f.Rn && f.Rn !== 31)) return false;
      return !(/^STL?XP/.test(row.name) && f.Rs === f.Rt2);
    case 'atomics':
      // QEMU 7.2's helper takes SP for the second register of the pair X30, XZR; by the manual it is the zero register.
      return !(row.name === 'CASP X' && f.Rs === 30);
    default:
      return true;
  }
}

// ---- branches

const NOP = 0xd503201f;
const fit = (words: number[]): number[] => [...words, ...Array<number>(MAX_WORDS - words.length).fill(NOP)];

/** ADD Xmark, Xmark, #(1 << position): the sum tells which words ran. */
function marker(position: number, mark: number): number {
  return (0x91000000 | ((1 << position) << 10) | (mark << 5) | mark) >>> 0;
}
function markers(mark: number): number[] {
  return Array.from({ length: MAX_WORDS }, (_, position) => marker(position, mark));
}
const jump = (words: number): number => (0x14000000 | (words & 0x03ffffff)) >>> 0;

function directBranch(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  const field = [...row.fields.keys()].find(name => /^imm(14|19|26)$/.test(name))!;
  const fields = fieldsOf(row, word);
  const tested = fields.Rt ?? 31;
  if (tested !== 31 && random.below(2) === 0) state.x[tested] = random.pick([0n, 0n, 0xffffffff00000000n, 1n << 63n]);
  const words = markers(otherRegister([tested, 30], random));
  const isBackward = random.below(2) === 0;
  // Backward: a jump over the words before it, which end in a jump over the rest.
  const at = isBackward ? 4 : 0;
  const distance = isBackward ? -1 - random.below(3) : 1 + random.below(MAX_WORDS);
  if (isBackward) {
    words[0] = jump(at);
    words[at - 1] = jump(MAX_WORDS - (at - 1));
  }
  const { bits } = row.fields.get(field)!;
  words[at] = encode(row, { ...fields, [field]: distance & (2 ** bits - 1) });
  return { row, word: words[at], words, state };
}

function indirectBranch(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  if (random.below(3) === 0) word = encode(row, { Rn: 30 }); // where BLR both reads and writes
  const register = fieldsOf(row, word).Rn!;
  const words = markers(otherRegister([register, 30], random));
  const distance = 2 + random.below(MAX_WORDS - 1);
  words[0] = (0x10000000 | (distance << 5) | register) >>> 0; // ADR
  words[1] = word;
  return { row, word, words, state };
}

/** None of the given registers, and not 31. */
function otherRegister(registers: readonly (number | undefined)[], random: SeededRandom): number {
  for (;;) {
    const register = random.below(31);
    if (!registers.includes(register)) return register;
  }
}

// ---- system registers

const READS = 1 << 21;

/** A read comes after a write of the register, and a write before a read, where EL0 may do both. */
function registerMove(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  const other = (((word ^ READS) & ~31) | random.below(31)) >>> 0;
  const otherRow = decode(other)?.row;
  const isAllowed = otherRow?.group === row.group && otherRow.undifferentiable === undefined;
  return { row, word, words: !isAllowed ? [word] : word & READS ? [other, word] : [word, other], state };
}

// ---- memory

/** Room on both sides of an address: the largest access is 64 bytes. */
const MARGIN_BYTES = 64;

function randomTarget(alignBytes: number, random: SeededRandom): bigint {
  const inside = MARGIN_BYTES + random.below(SCRATCH_BYTES - 3 * MARGIN_BYTES);
  return SCRATCH_ADDRESS + BigInt(inside - (inside % alignBytes));
}

/** The offset that the instruction adds to its base register before the access. */
function addressOffset(row: Row, f: Fields, word: number, state: CpuState): bigint {
  if (/post-index/.test(row.name) || f.Rn === undefined) return 0n;
  if (f.option === undefined) {
    const offset = row.operands(f).i;
    return offset === undefined ? 0n : BigInt(offset.value);
  }
  const index = f.Rm === 31 ? 0n : state.x[f.Rm!]!;
  const extended = f.option === 2 ? BigInt.asUintN(32, index) : BigInt.asIntN(f.option === 6 ? 32 : 64, index);
  const isQuad = ((word >>> 26) & 1) === 1 && ((word >>> 23) & 1) === 1;
  const scale = isQuad ? 4 : word >>> 30;
  return extended << BigInt(f.S ? scale : 0);
}

function memoryAccess(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  const needsAlignment = row.group === 'loads-stores-exclusive' || row.group === 'atomics';
  const wanted = randomTarget(needsAlignment || random.below(4) === 0 ? 16 : 1, random);
  const pointed = pointAt(row, word, state, random, wanted);
  const f = fieldsOf(row, pointed.word);
  if (row.name.startsWith('CAS') && random.below(2) === 0) makeEqual(row, f, state, pointed.target);
  if (/^STL?X[RP]/.test(row.name)) return storeExclusive(row, pointed.word, f, state, random);
  return { row, word: pointed.word, words: [pointed.word], state };
}

/**
 * Sets the base register so that the access starts at `wanted`, or up to 15 bytes below it where the base is SP, which
 * stays aligned. The word's index register is replaced if it is the base as well.
 */
function pointAt(
  row: Row, word: number, state: CpuState, random: SeededRandom, wanted: bigint,
): { word: number; target: bigint } {
  const f = fieldsOf(row, word);
  if (f.option !== undefined && f.Rm === f.Rn && f.Rm !== 31) {
    return pointAt(row, encode(row, { ...f, Rm: otherRegister([f.Rn], random) }), state, random, wanted);
  }
  const offset = addressOffset(row, f, word, state);
  const base = BigInt.asUintN(64, wanted - offset);
  if (f.Rn === 31) state.sp = base & ~15n;
  else state.x[f.Rn!] = base;
  return { word, target: f.Rn === 31 ? BigInt.asUintN(64, state.sp + offset) : wanted };
}

/** Whether the row accesses memory at an address that `accessAt` can choose. */
export function hasBaseRegister(row: Row): boolean {
  return MEMORY_GROUPS.has(row.group) && row.fields.has('Rn') && !row.name.startsWith('PRF');
}

/** A case of such a row by itself that accesses memory from `wanted` on, or from the address given back. */
export function accessAt(
  row: Row, statics: Fields, random: SeededRandom, wanted: bigint,
): InstructionCase & { target: bigint } | undefined {
  const drawn = randomWord(row, statics, random);
  if (drawn === undefined) return undefined;
  const state = randomState(random);
  const { word, target } = pointAt(row, drawn, state, random, wanted);
  return { row, word, words: [word], state, target };
}

/** Puts what a compare-and-swap compares with into memory. */
function makeEqual(row: Row, f: Fields, state: CpuState, target: bigint): void {
  const view = new DataView(state.memory.buffer, state.memory.byteOffset);
  const at = Number(target - SCRATCH_ADDRESS);
  const register = (n: number): bigint => n === 31 ? 0n : state.x[n]!;
  view.setBigUint64(at, register(f.Rs!), true);
  if (row.name === 'CASP X') view.setBigUint64(at + 8, register(f.Rs! | 1), true);
  if (row.name === 'CASP W') view.setUint32(at + 4, Number(BigInt.asUintN(32, register(f.Rs! | 1))), true);
}

/** Mostly after a load exclusive of the same size and address, at times with a store in between. */
function storeExclusive(row: Row, word: number, f: Fields, state: CpuState, random: SeededRandom): InstructionCase {
  if (random.below(8) === 0) return { row, word, words: [word], state };
  const used = [f.Rs, f.Rt, f.Rt2, f.Rn];
  const first = otherRegister(used, random);
  const second = otherRegister([...used, first], random);
  const isPair = (word >>> 21) & 1;
  const load = ((word & 0xc0200000) | 0x085f0000 | ((isPair ? second : 31) << 10) | (f.Rn! << 5) | first) >>> 0;
  const store = (0xf9000000 | (f.Rn! << 5) | otherRegister(used, random)) >>> 0;
  return { row, word, words: random.below(5) === 0 ? [load, store, word] : [load, word], state };
}

/** A load exclusive, the instruction, a store exclusive to the same place. */
function withExclusives(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  const base = random.below(31);
  const loaded = otherRegister([base], random);
  const status = otherRegister([base, loaded], random);
  state.x[base] = randomTarget(16, random);
  const load = (0xc85f7c00 | (base << 5) | loaded) >>> 0;
  const store = (0xc8007c00 | (status << 16) | (base << 5) | loaded) >>> 0;
  return { row, word, words: [load, word, store], state };
}

function zeroBlock(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  const register = random.below(31);
  state.x[register] = randomTarget(1, random);
  const replaced = encode(row, { ...fieldsOf(row, word), Rt: register });
  return { row, word: replaced, words: [replaced], state };
}

/** Words that are loaded stand beside the instruction, jumped over. The widest load takes four. */
function literal(row: Row, word: number, state: CpuState, random: SeededRandom): InstructionCase {
  const isBackward = random.below(2) === 0;
  const words = fit([]).map(() => random.u32());
  const at = isBackward ? MAX_WORDS - 1 : 0;
  const firstData = isBackward ? 1 : 2;
  words[isBackward ? 0 : 1] = jump(isBackward ? at : MAX_WORDS - 1);
  const distance = firstData + random.below(3) - at;
  words[at] = encode(row, { ...fieldsOf(row, word), imm19: distance & 0x7ffff });
  return { row, word: words[at], words, state };
}
