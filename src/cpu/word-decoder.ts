// What a record of the decode cache gets of an instruction word. Most words differ from others of their kind in registers and
// in how far they branch, and in nothing else; so what is remembered is good for all words that are the same but for those:
//
//   word ─► bits 31–21 ─► which bits to leave out ─► the rest ─► its line, or decode
//
//     ┌──────┬───────────────┬────────────────┬───────┬──────────────────────┬───────────┐
//     │ rest │ handler │ far │ registers: 7×16│ flags │ imm, or branch shifts│ imm, high │   eight words of 32 bits
//     └──────┴───────────────┴────────────────┴───────┴──────────────────────┴───────────┘
//
// `far`: the handler where the target of a direct branch lies in another page. A register is an offset into the vCPU record, or
// says where in the word its number stands and what 31 means there.

import { HANDLER_UNDEFINED } from '../abi/decode-cache.ts';
import { vOffset, xOffset } from '../abi/vcpu.ts';
import { DISCARD_SLOT, RECORD_BYTES, RECORD_IMM, RECORD_IMM64, SP_SLOT, ZERO_SLOT } from '../a64/operand.ts';
import { fieldsOf, operandsOf } from '../a64/row.ts';
import type { Row } from '../a64/row.ts';
import { BUCKET_SHIFT, bucketOf, decode, handlerNumber } from '../a64/table.ts';

const PAGE_WORDS = 1024;
const LINE_BITS = 14;
const LINE_WORDS = 8;
const LINE = { rest: 0, handlers: 1, registers: 2, flags: 11, immediate: 6, high: 7 } as const;
/** The low three bits count registers. */
const FLAG_REGISTERS = 7;
const FLAG_KNOWN = 8;
const FLAG_ENDS = 0x10;
const FLAG_IMM = 0x20;
const FLAG_IMM64 = 0x40;
const FLAG_BRANCH = 0x80;
/** Where the base register, which is left out, is SP, the handler is the next one. */
const FLAG_SP_BASE = 0x100;

/** A register by its number in the word: this, what 31 means times 32, and where the number stands. */
const IN_WORD = 0x8000;
const REGISTER_MASK = 31;
const RN_SHIFT = 5;
/** What general register 31 means; the fourth is a register of SIMD&FP. */
const MEANINGS = [ZERO_SLOT, DISCARD_SLOT, SP_SLOT];
const SIMD_FP = 3;
/** Offsets of registers 0–31, for each of the four. */
const offsets = Uint16Array.from({ length: 4 * 32 }, (_, i) => {
  const [meaning, n] = [i >> 5, i & REGISTER_MASK];
  return meaning === SIMD_FP ? vOffset(n) : xOffset(n === 31 ? MEANINGS[meaning]! : n);
});
/** Numbers to try, of which none is another's neighbour, nor 30. */
const SOME_REGISTERS = [3, 7, 12, 18, 25];

/** What of a row's fields is a register's number, or a branch's distance, and nothing else. */
interface PlainFields {
  readonly mask: number;
  /** By the name of the operand. */
  readonly registers: ReadonlyMap<string, number>;
}
const NONE: PlainFields = { mask: 0, registers: new Map() };
const plainFields = new Map<Row, PlainFields>();

function plainOf(row: Row): PlainFields {
  let known = plainFields.get(row);
  if (known === undefined) plainFields.set(row, known = findPlainFields(row));
  return known;
}
/** Found by trying: the operands for some numbers of registers, and for 31. What is not as simple as that is not plain. */
function findPlainFields(row: Row): PlainFields {
  const names = [...row.fields.keys()].filter(name => isRegister(row, name));
  const zero = fieldsOf(row, row.bits);
  const some = { ...zero, ...Object.fromEntries(names.map((name, i) => [name, SOME_REGISTERS[i]!])) };
  const last = { ...zero, ...Object.fromEntries(names.map(name => [name, REGISTER_MASK])) };
  let isAsked = false;
  row.when(new Proxy(zero, { get: (target, name: string) => (isAsked ||= names.includes(name), target[name]) }));
  if (isAsked) return NONE;
  const [someOperands, lastOperands] = [row.operands(some), row.operands(last)];
  const registers = new Map<string, number>();
  for (const key in someOperands) {
    const [{ kind, value }, { value: atLast }] = [someOperands[key]!, lastOperands[key]!];
    if (value === atLast) continue;
    const name = names.find(each => some[each] === value);
    const meaning = kind === 'x' ? MEANINGS.indexOf(atLast as number) : kind === 'v' && atLast === REGISTER_MASK ? SIMD_FP : -1;
    if (name === undefined || meaning < 0) return NONE;
    registers.set(key, IN_WORD | (meaning << 5) | row.fields.get(name)!.shift);
  }
  let mask = row.branch === undefined ? 0 : maskOf(distanceField(row));
  for (const name of names) mask |= maskOf(row.fields.get(name)!);
  return { mask, registers };
}
function isRegister(row: Row, name: string): boolean {
  return name.startsWith('R') && row.fields.get(name)!.bits === 5 && !row.statics.includes(name);
}
function maskOf({ shift, bits }: { shift: number; bits: number }): number {
  return ((1 << bits) - 1) << shift;
}
/** Of a direct branch: how many instructions it is to the target. */
function distanceField(row: Row): { shift: number; bits: number } {
  return [...row.fields].find(([name]) => name.startsWith('imm'))![1];
}

/** What can be left out of words that some rows share: a field wholly or not at all. */
function plainBits(rows: readonly Row[]): number {
  let plain = rows.reduce((mask, row) => mask & plainOf(row).mask, (1 << BUCKET_SHIFT) - 1);
  for (let before = 0; before !== plain;) {
    before = plain;
    for (const row of rows) {
      for (const [name, field] of row.fields) {
        if (isRegister(row, name) && (plain & maskOf(field)) !== maskOf(field)) plain &= ~maskOf(field);
      }
    }
  }
  return plain;
}

export class WordDecoder {
  readonly #lines = new Uint32Array(LINE_WORDS << LINE_BITS);
  readonly #halves = new Uint16Array(this.#lines.buffer);
  /** By bits 31–21: the bits that are not left out; 0: nobody has looked yet. */
  readonly #kept = new Uint32Array(1 << (32 - BUCKET_SHIFT));

  constructor() {
    // Memory that is read before it is written is given by the system twice.
    this.#lines.fill(0);
  }

  /** @returns where its line is */
  find(word: number): number {
    const bucket = word >>> BUCKET_SHIFT;
    const kept = this.#kept[bucket]! || (this.#kept[bucket] = ~plainBits(bucketOf(word)));
    const rest = (word & kept) >>> 0;
    const line = (Math.imul(rest, 0x9e37_79b1) >>> (32 - LINE_BITS)) * LINE_WORDS;
    if (this.#lines[line] !== rest || this.#halves[2 * line + LINE.flags] === 0) this.#decode(line, rest, ~kept);
    return line;
  }

  /** @param plain the bits that are left out, which are zero */
  #decode(line: number, rest: number, plain: number): void {
    const [u32, u16] = [this.#lines, this.#halves];
    u32[line + LINE.rest] = rest;
    const found = decode(rest);
    if (found === undefined) {
      u32[line + LINE.handlers] = HANDLER_UNDEFINED;
      u16[2 * line + LINE.flags] = FLAG_KNOWN | FLAG_ENDS;
      return;
    }
    const { row, fields } = found;
    const operands = operandsOf(row, fields);
    const { registers } = plainOf(row);
    let flags = FLAG_KNOWN | (row.ends ? FLAG_ENDS : 0);
    if (row.spBase && (plain >>> RN_SHIFT & REGISTER_MASK) !== 0) flags |= FLAG_SP_BASE;
    for (const key in operands) {
      const { kind, value, place } = operands[key]!;
      if (kind === 'x' || kind === 'v') {
        const inWord = registers.get(key) ?? 0;
        const isPlain = inWord !== 0 && (plain >>> (inWord & REGISTER_MASK) & REGISTER_MASK) !== 0;
        const offset = kind === 'x' ? xOffset(value as number) : vOffset(value as number);
        u16[2 * (line + LINE.registers) + place / 2 - 1] = isPlain ? inWord : offset;
        flags++;
      } else if (key === row.branch) {
        const { shift, bits } = distanceField(row);
        u32[line + LINE.immediate] = ((32 - shift - bits) << 8) | (32 - bits);
        flags |= FLAG_BRANCH;
      } else if (kind === 'imm') {
        u32[line + LINE.immediate] = value as number;
        flags |= FLAG_IMM;
      } else {
        u32[line + LINE.immediate] = Number(BigInt.asUintN(32, value as bigint));
        u32[line + LINE.high] = Number(BigInt.asUintN(32, (value as bigint) >> 32n));
        flags |= FLAG_IMM64;
      }
    }
    u32[line + LINE.handlers] = handlerNumber(row, fields, false) | (handlerNumber(row, fields, true) << 16);
    u16[2 * line + LINE.flags] = flags;
  }

  /**
   * Writes a record: operands first, handler last (abi/decode-cache.ts).
   * @param u16 with `u32`, views of the machine memory
   * @param index of the instruction in its page
   * @returns true if a run of instructions ends here
   */
  decodeTo(u16: Uint16Array, u32: Uint32Array, record: number, index: number, word: number): boolean {
    const line = this.find(word);
    const [lines, halves] = [this.#lines, this.#halves];
    const flags = halves[2 * line + LINE.flags]!;
    const lane = record / 2;
    for (let i = 0, from = 2 * (line + LINE.registers); i < (flags & FLAG_REGISTERS); i++) {
      const register = halves[from + i]!;
      u16[lane + 1 + i] = register < IN_WORD ? register : offsets[(register & 0x60) | (word >>> (register & 31) & REGISTER_MASK)]!;
    }
    const handlers = lines[line + LINE.handlers]!;
    let handler = handlers & 0xffff;
    const immediate = lines[line + LINE.immediate]!;
    if ((flags & FLAG_BRANCH) !== 0) {
      const distance = (word << (immediate >>> 8)) >> (immediate & 31);
      const isFar = index + distance < 0 || index + distance >= PAGE_WORDS;
      if (isFar) handler = handlers >>> 16;
      u32[(record + RECORD_IMM) / 4] = distance * (isFar ? 4 : RECORD_BYTES);
    } else if ((flags & FLAG_IMM) !== 0) u32[(record + RECORD_IMM) / 4] = immediate;
    else if ((flags & FLAG_IMM64) !== 0) {
      u32[(record + RECORD_IMM64) / 4] = immediate;
      u32[(record + RECORD_IMM64) / 4 + 1] = lines[line + LINE.high]!;
    }
    if ((flags & FLAG_SP_BASE) !== 0 && (word >>> RN_SHIFT & REGISTER_MASK) === REGISTER_MASK) handler++;
    u16[lane] = handler;
    return (flags & (FLAG_ENDS | FLAG_BRANCH)) !== 0;
  }
}
