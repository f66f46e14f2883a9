// Random straight lines of instructions from the whole table, each with what it needs to do something: a base register
// that points into memory, a branch target inside the line, a sane exception return. (Rows are looked at by name here,
// in the generator; the back ends know none.)

import { Assembler } from '../../src/a64/test-assembler.ts';
import { encode, fieldsOf } from '../../src/a64/row.ts';
import type { Fields, Row } from '../../src/a64/row.ts';
import { decode, rows } from '../../src/a64/table.ts';
import { systemRegisters } from '../../src/cpu/system-registers.ts';
import type { SeededRandom } from '../../src/base/random.ts';
import { MEMORY_GROUPS, existingVariants, randomCase } from '../differential/instruction-cases.ts';
import { SCRATCH_ADDRESS } from '../differential/qemu-oracle.ts';

/** Words that a row is turned into, most often one. */
export interface Piece {
  readonly row: Row;
  readonly words: readonly number[];
}

interface Variant {
  readonly row: Row;
  readonly statics: Fields;
}

export interface LinePlace {
  readonly start: bigint;
  readonly endOffset: number;
  readonly scratch: bigint;
}

const LAST_OFFSETS = 4;

/** Every variant of every row in random order, and again: so that each comes up equally often. */
export class VariantDeck {
  readonly #all: Variant[] = [];
  #left: Variant[] = [];
  readonly #random: SeededRandom;

  /** @param perRow variants taken of each row at most: some have dozens that differ by a condition or bit number */
  constructor(random: SeededRandom, perRow: number) {
    this.#random = random;
    for (const row of rows) {
      const variants = existingVariants(row);
      for (let i = 0; i < Math.min(perRow, variants.length); i++) {
        const taken = variants.splice(random.below(variants.length), 1)[0]!;
        this.#all.push({ row, statics: taken });
      }
    }
  }
  get size(): number {
    return this.#all.length;
  }
  next(): Variant {
    if (this.#left.length === 0) this.#left = [...this.#all];
    const at = this.#random.below(this.#left.length);
    const last = this.#left.pop()!;
    if (at === this.#left.length) return last;
    const taken = this.#left[at]!;
    this.#left[at] = last;
    return taken;
  }
}

/** Words for one variant that will stand at `offset` in the line, or undefined if this draw cannot be used. */
export function pieceOf(
  { row, statics }: Variant, offset: number, place: LinePlace, random: SeededRandom,
): Piece | undefined {
  const made = randomCase(row, statics, random);
  if (!made) return undefined;
  const f = fieldsOf(row, made.word);
  const a = new Assembler(place.start + BigInt(offset));
  const exit = place.start + BigInt(place.endOffset);
  if (row.branch !== undefined) {
    const field = [...row.fields.keys()].find(name => name.startsWith('imm'))!;
    const { bits } = row.fields.get(field)!;
    const words = Math.min(1 + random.below(LAST_OFFSETS), (place.endOffset - offset) / 4);
    return { row, words: [encode(row, { ...f, [field]: words & (2 ** bits - 1) })] };
  }
  if (row.group === 'branches' && f['Rn'] !== undefined) {
    return { row, words: a.mov(f['Rn'], exit).word(made.word).words() };
  }
  if (row.name === 'ERET') {
    const spsr = (BigInt(random.below(16)) << 28n) | random.pick([0n, 4n, 5n]);
    a.mov(1, exit).msr('ELR_EL1', 1).mov(1, spsr).msr('SPSR_EL1', 1);
  } else if (row.name === 'DC ZVA') {
    a.mov(f['Rt']!, moved(made.state.x[f['Rt']!] ?? 0n, place));
  } else if (MEMORY_GROUPS.has(row.group) && f['Rn'] !== undefined && random.below(16) !== 0) {
    prelude(a, f, made.state, place, random);
    return { row, words: a.word(...made.words).words() };
  }
  if (!isHarmless(made.word)) return undefined;
  return { row, words: a.word(made.word).words() };
}

const moved = (address: bigint, place: LinePlace): bigint =>
  BigInt.asUintN(64, address - SCRATCH_ADDRESS + place.scratch);

function prelude(
  a: Assembler, f: Fields, state: { x: BigUint64Array; sp: bigint }, place: LinePlace, random: SeededRandom,
): void {
  const index = f['option'] === undefined ? undefined : f['Rm'];
  const base = f['Rn']!;
  if (base === 31) {
    const helper = index === 0 ? 1 : random.below(31) === index ? (index! + 1) % 31 : 0;
    a.mov(helper, moved(state.sp, place)).movSp(31, helper);
  } else {
    a.mov(base, moved(state.x[base]!, place));
  }
  if (index !== undefined && index !== 31) a.mov(index, state.x[index]!);
}

/** Not a write to a system register that would change how the line itself is fetched or where exceptions go. */
function isHarmless(word: number): boolean {
  const { row, fields: f } = decode(word)!;
  if (row.name !== 'MSR (register)') return true;
  const encoding = ((2 + f['o0']!) << 14) | (f['op1']! << 11) | (f['CRn']! << 7) | (f['CRm']! << 3) | f['op2']!;
  return systemRegisters.get(encoding)?.write === undefined;
}
