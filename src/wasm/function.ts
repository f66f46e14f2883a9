// A function under construction: statements are emitted in the order of the calls, expressions where they are used.

import { Code, valTypeCode } from './code.ts';
import { Expr, withSum } from './types.ts';
import type { I32, ValType } from './types.ts';
import type { Statement } from './scalar.ts';

export interface Signature {
  readonly params: readonly ValType[];
  readonly results: readonly ValType[];
}

/** Something a module can call: an import or a function of its own. Its index is settled when the module is encoded. */
export interface Callable {
  readonly signature: Signature;
  index: number;
}

/** A function that has been emitted. It names types and other functions by their numbers in its module. */
export interface FunctionBody {
  /** The declaration of its locals and its code. */
  readonly bytes: Uint8Array;
  /** Offsets in it of branches hardly ever taken. */
  readonly unlikely: readonly number[];
}

/** A place that `br` can leave for: the depth is computed at the time of use. */
export interface Label {
  readonly height: number;
}

export class FunctionBuilder implements Callable {
  readonly signature: Signature;
  readonly code: Code;
  index = -1;
  /** Where in the code there are branches into code that is hardly ever run. */
  readonly unlikely: number[] = [];
  readonly #locals: ValType[] = [];
  /** Locals made since the innermost `openScope`. */
  #scope: Expr[] | undefined;
  /** Locals that were given up, to be used again. */
  readonly #free: Partial<Record<ValType, Expr[]>> = {};
  #height = 0;

  constructor(signature: Signature, addressType: 'i32' | 'i64' = 'i32') {
    this.signature = signature;
    this.code = new Code(addressType);
  }

  /** A parameter as an expression. */
  param<T extends ValType>(index: number, type: T): Expr<T> {
    return this.#localExpr(index, type);
  }

  /** A new local; what it holds at first is not defined. */
  local<T extends ValType>(type: T): Expr<T> {
    const local = this.#free[type]?.pop() as Expr<T> | undefined ?? this.#newLocal(type);
    this.#scope?.push(local);
    return local;
  }
  /** One that no scope gives up. */
  lastingLocal<T extends ValType>(type: T): Expr<T> {
    return this.#newLocal(type);
  }
  #newLocal<T extends ValType>(type: T): Expr<T> {
    this.#locals.push(type);
    return this.#localExpr(this.signature.params.length + this.#locals.length - 1, type);
  }

  /**
   * Locals that are made until the returned function is called are given up then, but for those to be kept: a function
   * of few locals is compiled and entered faster. Scopes may lie within each other.
   */
  openScope(): (kept: ReadonlySet<Expr>) => void {
    const outer = this.#scope;
    const made: Expr[] = this.#scope = [];
    return kept => {
      this.#scope = outer;
      const numbers = new Set([...kept].map(({ local }) => local));
      for (const local of made) if (!numbers.has(local.local)) (this.#free[local.type] ??= []).push(local);
    };
  }

  /** How many blocks, loops and ifs the code to come lies in. */
  get depth(): number { return this.#height; }

  #localExpr<T extends ValType>(index: number, type: T): Expr<T> {
    return new Expr(type, out => { out.byte(0x20); out.unsigned(index); }, { local: index });
  }

  /** `local.set`. The first argument is what `local` or `param` gave. */
  set<T extends ValType>(local: Expr<T>, value: Expr<T>): void {
    if (local.sum !== undefined) throw new Error('a local of which it is known what it holds is changed');
    value.emit(this.code);
    this.code.byte(0x21);
    this.code.unsigned(local.local!);
  }

  /** Evaluates an expression once, now; the result can be used any number of times. */
  let<T extends ValType>(value: Expr<T>): Expr<T> {
    if (value.constant !== undefined) return value;
    const local = this.local(value.type);
    this.set(local, value);
    return withSum(local, value.sum);
  }

  do(statement: Statement): void {
    statement(this.code);
  }

  /** Evaluates for effect. */
  drop(value: Expr): void {
    value.emit(this.code);
    this.code.byte(0x1a);
  }

  /** Leaves a value on the stack: the function's result, or a block's. */
  push(value: Expr): void {
    value.emit(this.code);
  }

  /** @param likelihood of `then`: a hint to the engine */
  if(condition: I32, then: () => void, otherwise?: () => void, likelihood?: 'unlikely'): void {
    if (condition.constant !== undefined) {
      if (condition.constant !== 0) then();
      else otherwise?.();
      return;
    }
    condition.emit(this.code);
    if (likelihood !== undefined) this.unlikely.push(this.code.length);
    this.code.byte(0x04);
    this.code.byte(0x40);
    this.#height++;
    then();
    if (otherwise) {
      this.code.byte(0x05);
      otherwise();
    }
    this.#height--;
    this.code.byte(0x0b);
  }

  /** `br` to a block's label goes to its end, to a loop's label to its start. */
  block(body: (label: Label) => void): void {
    this.#structure(0x02, body);
  }
  loop(body: (label: Label) => void): void {
    this.#structure(0x03, body);
  }
  #structure(opcode: number, body: (label: Label) => void): void {
    this.code.byte(opcode);
    this.code.byte(0x40);
    const label = { height: ++this.#height };
    body(label);
    this.#height--;
    this.code.byte(0x0b);
  }

  br(label: Label): void {
    this.code.byte(0x0c);
    this.code.unsigned(this.#height - label.height);
  }
  brIf(label: Label, condition: I32): void {
    condition.emit(this.code);
    this.code.byte(0x0d);
    this.code.unsigned(this.#height - label.height);
  }

  return(...values: Expr[]): void {
    for (const value of values) value.emit(this.code);
    this.code.byte(0x0f);
  }
  unreachable(): void {
    this.code.byte(0x00);
  }

  /** A call without result. */
  call(target: Callable, ...args: Expr[]): void {
    for (const arg of args) arg.emit(this.code);
    this.code.byte(0x10);
    this.code.unsigned(target.index);
  }
  /** A call with one result, as an expression; calls happen where it is emitted. */
  callExpr<T extends ValType>(type: T, target: Callable, ...args: Expr[]): Expr<T> {
    return new Expr(type, out => {
      for (const arg of args) arg.emit(out);
      out.byte(0x10);
      out.unsigned(target.index);
    });
  }
  returnCall(target: Callable, ...args: Expr[]): void {
    for (const arg of args) arg.emit(this.code);
    this.code.byte(0x12);
    this.code.unsigned(target.index);
  }
  /** Tail call through table 0; all such functions have the module's type 0. */
  returnCallIndirect(tableIndex: I32, ...args: Expr[]): void {
    for (const arg of args) arg.emit(this.code);
    tableIndex.emit(this.code);
    this.code.byte(0x13);
    this.code.unsigned(0);
    this.code.unsigned(0);
  }
  fence(): void {
    this.code.raw([0xfe, 0x03, 0x00]);
  }

  /** All of it, as it stands in the code section behind its size. */
  body(): FunctionBody {
    const out = new Code();
    const runs: { type: ValType; count: number }[] = [];
    for (const type of this.#locals) {
      const last = runs.at(-1);
      if (last?.type === type) last.count++;
      else runs.push({ type, count: 1 });
    }
    out.unsigned(runs.length);
    for (const run of runs) {
      out.unsigned(run.count);
      out.byte(valTypeCode(run.type));
    }
    const start = out.length;
    out.raw(this.code.bytes());
    out.byte(0x0b);
    return { bytes: out.bytes(), unlikely: this.unlikely.map(offset => start + offset) };
  }
}
