// The value types of WebAssembly and expressions over them.
//
// An expression is a piece of code that leaves one value of its type on the stack when emitted. It has no identity:
// emitted twice, it is evaluated twice, at the place where it is emitted. Whoever uses a value twice, or after
// something that could change it, pins it in a local first.

import type { Code } from './code.ts';

export type ValType = 'i32' | 'i64' | 'f32' | 'f64' | 'v128';

/** A value that is known to be another one, told by a number, plus a constant; modulo 2^64. */
export interface Sum {
  readonly of: number;
  readonly plus: bigint;
}

export class Expr<T extends ValType = ValType> {
  readonly type: T;
  readonly emit: (code: Code) => void;
  /** The value, if it is known now: a number for i32 (signed), a bigint for i64 (signed). */
  readonly constant: number | bigint | undefined;
  /** The index, if the expression reads a local. */
  readonly local: number | undefined;
  /** Additions of constants keep it up to date. */
  readonly sum: Sum | undefined;

  constructor(type: T, emit: (code: Code) => void, known: { constant?: number | bigint; local?: number; sum?: Sum } = {}) {
    this.type = type;
    this.emit = emit;
    this.constant = known.constant;
    this.local = known.local;
    this.sum = known.sum;
  }
}

/** The same expression, of which it is known what sum it is. */
export function withSum<T extends ValType>(value: Expr<T>, sum: Sum | undefined): Expr<T> {
  const { type, emit, local } = value;
  return sum === undefined ? value : new Expr(type, emit, { ...(local === undefined ? {} : { local }), sum });
}

export type I32 = Expr<'i32'>;
export type I64 = Expr<'i64'>;
export type F32 = Expr<'f32'>;
export type F64 = Expr<'f64'>;
export type V128 = Expr<'v128'>;
/** An address in the machine memory: i32 is widened without sign where the memory is 64-bit. */
export type Address = I32 | I64;
