// The instruction table's row: one per instruction (or group of instructions that differ by fields alone).
//
//   inst('ADD (immediate)', 'sf 0 0 100010 sh imm12:12 Rn:5 Rd:5', {
//     statics: ['sf'],
//     operands: f => ({ d: xsp(f.Rd), n: xsp(f.Rn), i: imm(f.imm12 << (12 * f.sh)) }),
//     meaning: (m, o, s) => …,
//   })
//
// The pattern is the encoding diagram of the Arm ARM, bit 31 first: runs of 0, 1 and x (either), NAME for a field of
// one bit, NAME:n for one of n bits. `statics` are fields whose value the meaning is specialised for: each combination
// becomes a handler of its own. All other fields reach the meaning as operands only.

import { assert } from '../base/assert.ts';
import type { Machine } from './machine.ts';
import { placeOperands } from './operand.ts';
import type { Operands } from './operand.ts';

type Token<T extends string> = T extends `${infer N}:${number}` ? N : T extends `${'0' | '1' | 'x'}${string}` ? never : T;
export type FieldNames<P extends string> = P extends `${infer A} ${infer B}` ? Token<A> | FieldNames<B> : Token<P>;
export type Fields<N extends string = string> = Readonly<Record<N, number>>;

interface Field {
  readonly shift: number;
  readonly bits: number;
}

export interface Definition<N extends string, S extends N, O extends Operands> {
  statics?: readonly S[];
  /** Encodings for which this is false belong to a row further down or are UNDEFINED. */
  when?: (f: Fields<N>) => boolean;
  /** The keys and kinds must not depend on any field. */
  operands: (f: Fields<N>) => O;
  meaning: (m: Machine, o: O, s: Fields<S>) => void;
  /** The operand (a byte offset from this instruction) that a direct branch goes to. */
  branch?: keyof O & string;
  /** Uses SIMD&FP registers: checked against CPACR_EL1.FPEN before anything else. */
  fp?: boolean;
  /** Execution never goes on with the next instruction. */
  ends?: boolean;
  /** Why the differential test against another implementation leaves it out. */
  undifferentiable?: string;
}

export interface Row {
  readonly name: string;
  /** Encoding group: the file of definitions it stands in. */
  readonly group: string;
  readonly pattern: string;
  readonly mask: number;
  readonly bits: number;
  readonly fields: ReadonlyMap<string, Field>;
  readonly statics: readonly string[];
  readonly when: (f: Fields) => boolean;
  readonly operands: (f: Fields) => Operands;
  readonly meaning: (m: Machine, o: Operands, s: Fields) => void;
  readonly branch: string | undefined;
  readonly fp: boolean;
  readonly ends: boolean;
  readonly undifferentiable: string | undefined;
  /** Accesses memory through Rn (operand `n`): where that is SP, it has to be aligned to 16 bytes. */
  readonly spBase: boolean;
}

export interface Group {
  readonly name: string;
  readonly rows: Row[];
}

const zeroFields = (fields: ReadonlyMap<string, Field>): Fields => Object.fromEntries([...fields.keys()].map(field => [field, 0]));

/**
 * A group of rows: `const { rows, inst } = group('data-processing-immediate')`.
 * @param options.accessesMemory through the base register Rn, those of its rows that have it as operand `n`
 */
export function group(name: string, { accessesMemory = false }: { accessesMemory?: boolean } = {}) {
  const rows: Row[] = [];
  function inst<P extends string, S extends FieldNames<P>, O extends Operands>(
    rowName: string, pattern: P, definition: Definition<FieldNames<P>, S, O>,
  ): void {
    const { mask, bits, fields } = parsePattern(pattern);
    rows.push({
      name: rowName, group: name, pattern, mask, bits, fields,
      statics: definition.statics ?? [],
      when: (definition.when ?? (() => true)) as Row['when'],
      operands: definition.operands as Row['operands'],
      meaning: definition.meaning as unknown as Row['meaning'],
      branch: definition.branch,
      fp: definition.fp ?? false,
      ends: definition.ends ?? false,
      undifferentiable: definition.undifferentiable,
      spBase: accessesMemory && 'n' in definition.operands(zeroFields(fields) as Fields<FieldNames<P>>),
    });
  }
  return { name, rows, inst };
}

/** A thousand patterns, each once, in code that V8 has just read: so one loop over the characters, and nothing made that is not kept. */
function parsePattern(pattern: string): { mask: number; bits: number; fields: Map<string, Field> } {
  const fields = new Map<string, Field>();
  let mask = 0;
  let bits = 0;
  let at = 32;
  for (let i = 0; i < pattern.length; i++) {
    const c = pattern[i]!;
    if (c === ' ') continue;
    if (c === '0' || c === '1' || c === 'x') {
      at--;
      if (c !== 'x') mask |= 1 << at;
      if (c === '1') bits |= 1 << at;
      continue;
    }
    const space = pattern.indexOf(' ', i);
    const end = space < 0 ? pattern.length : space;
    const colon = pattern.indexOf(':', i);
    const hasWidth = colon >= 0 && colon < end;
    const name = pattern.slice(i, hasWidth ? colon : end);
    const fieldBits = hasWidth ? Number(pattern.slice(colon + 1, end)) : 1;
    at -= fieldBits;
    assert(!fields.has(name), 'a field name stands twice in an instruction pattern');
    fields.set(name, { shift: at, bits: fieldBits });
    i = end;
  }
  assert(at === 0, 'an instruction pattern has not 32 bits');
  return { mask: mask >>> 0, bits: bits >>> 0, fields };
}

export function fieldsOf(row: Row, word: number): Fields {
  const values: Record<string, number> = {};
  for (const [name, field] of row.fields) values[name] = (word >>> field.shift) & ((1 << field.bits) - 1);
  return values;
}

/** The operands of an instruction word, with their places in an interpreter record. */
export function operandsOf(row: Row, f: Fields): Operands {
  const operands = row.operands(f);
  placeOperands(operands);
  return operands;
}

/** The instruction word for given field values (missing ones are 0): the assembler of tests. */
export function encode(row: Row, values: Readonly<Record<string, number>>): number {
  let word = row.bits;
  for (const name in values) {
    const field = row.fields.get(name);
    assert(field !== undefined, 'the instruction has no such field');
    const value = values[name]!;
    word |= (value & ((1 << field.bits) - 1)) << field.shift;
  }
  return word >>> 0;
}

/** Sign-extends the low `bits` bits of a field. */
export function signed(value: number, bits: number): number {
  return (value << (32 - bits)) >> (32 - bits);
}
