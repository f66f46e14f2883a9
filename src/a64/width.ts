// 32- and 64-bit forms of an instruction written once: `const r = width(m, sf)` gives the operations of that width.

import { i32, i64, select } from '../wasm/scalar.ts';
import type { I32, I64 } from '../wasm/types.ts';
import type { FlagSource, Machine, Word } from './machine.ts';
import type { Imm, Imm64, Reg } from './operand.ts';

type Binary = (a: Word, b: Word) => Word;
type Compare = (a: Word, b: Word) => I32;

export interface Width {
  readonly bits: 32 | 64;
  read(r: Reg): Word;
  write(r: Reg, value: Word): void;
  imm(i: Imm | Imm64): Word;
  const(value: number | bigint): Word;
  /** From a 32-bit value, zero-extended. */
  fromU32(value: I32): Word;
  /** The low 32 bits. */
  toI32(value: Word): I32;
  let(value: Word): Word;
  add: Binary; sub: Binary; mul: Binary; and: Binary; or: Binary; xor: Binary;
  shl: Binary; shrS: Binary; shrU: Binary; rotr: Binary; divS: Binary; divU: Binary; remS: Binary; remU: Binary;
  eq: Compare; ne: Compare; ltS: Compare; ltU: Compare; gtS: Compare; geU: Compare;
  eqz(a: Word): I32;
  clz(a: Word): Word;
  not(a: Word): Word;
  select(condition: I32, whenTrue: Word, whenFalse: Word): Word;
  /** Operands pinned or constant. */
  flags(kind: 'add' | 'sub', a: Word, b: Word, result: Word): FlagSource;
  logicFlags(result: Word): FlagSource;
  adcFlags(a: Word, b: Word, carry: I32, result: Word): FlagSource;
}

// The operations of one width only ever meet values of that width; the casts below say so once for all definitions.
type Ops = Pick<Width, 'add' | 'sub' | 'mul' | 'and' | 'or' | 'xor' | 'shl' | 'shrS' | 'shrU' | 'rotr' | 'divS' | 'divU'
  | 'remS' | 'remU' | 'eq' | 'ne' | 'ltS' | 'ltU' | 'gtS' | 'geU' | 'eqz' | 'clz'>;

export function width(m: Machine, sf: number): Width {
  const bits = sf ? 64 : 32;
  const constant = (value: number | bigint): Word => sf ? i64.const(value) : i32.const(Number(BigInt.asIntN(32, BigInt(value))));
  return {
    ...((sf ? i64 : i32) as unknown as Ops),
    bits,
    read: r => sf ? m.x(r) : m.w(r),
    write: (r, value) => sf ? m.setX(r, value as I64) : m.setW(r, value as I32),
    imm: i => sf ? m.imm64(i) : i.kind === 'imm' ? m.imm(i as Imm) : i32.wrapI64(m.imm64(i)),
    const: constant,
    fromU32: value => sf ? i64.extendI32U(value) : value,
    toI32: value => sf ? i32.wrapI64(value as I64) : value as I32,
    let: value => m.f.let(value as I64),
    not: a => sf ? i64.xor(a as I64, i64.const(-1n)) : i32.xor(a as I32, i32.const(-1)),
    select: (condition, whenTrue, whenFalse) => select(condition, whenTrue as I64, whenFalse as I64),
    flags: (kind, a, b, result) => ({ kind, bits, a, b, result }),
    logicFlags: result => ({ kind: 'logic', bits, result }),
    adcFlags: (a, b, carry, result) => ({ kind: 'adc', bits, a, b, carry, result }),
  };
}
