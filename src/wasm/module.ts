// The module writer: imports (one memory or two, perhaps a table, functions), functions, exports, and element segments that
// put functions into the table when the module is instantiated.
//
// Type 0 is the type of table functions (see FunctionBuilder.returnCallIndirect). The table holds nothing else, it has no
// empty place, and its size is fixed: so a call through it looks at neither type nor emptiness of what it calls. Modules
// that say the same of a table can share it. Imports come first, so their
// indices are known when they are declared; functions get theirs when they are added, before their bodies need them.

import { Code, valTypeCode } from './code.ts';
import { FunctionBuilder } from './function.ts';
import type { Callable, FunctionBody, Signature } from './function.ts';

export interface MemoryImport {
  readonly addressType: 'i32' | 'i64';
  readonly minPages: number;
  readonly maxPages: number;
}

interface ModuleFunction extends Callable {
  body(): FunctionBody;
}

export class ModuleBuilder {
  readonly addressType: 'i32' | 'i64';
  readonly #memory: MemoryImport;
  readonly #secondMemory: MemoryImport | undefined;
  readonly #types: Signature[] = [];
  readonly #imports: { name: string; type: number }[] = [];
  readonly #functions: ModuleFunction[] = [];
  readonly #exports: { name: string; target: Callable }[] = [];
  readonly #elements: { tableIndex: number; target: Callable }[] = [];
  #table: { size: number; initial?: Callable } | undefined;

  /** @param secondMemory imported as `memory1`; only `bulkMemory.copyToSecond` reaches it */
  constructor(tableSignature: Signature, memory: MemoryImport, secondMemory?: MemoryImport) {
    this.#types.push(tableSignature);
    this.#memory = memory;
    this.#secondMemory = secondMemory;
    this.addressType = memory.addressType;
  }

  #typeIndex(signature: Signature): number {
    const key = (s: Signature) => `${s.params.join()}:${s.results.join()}`;
    const found = this.#types.findIndex(type => key(type) === key(signature));
    if (found >= 0) return found;
    return this.#types.push(signature) - 1;
  }

  /** All imports are declared before the first function. They are taken from the import module `env`. */
  importFunction(name: string, signature: Signature): Callable {
    if (this.#functions.length > 0) throw new Error('an import is declared after a function');
    this.#imports.push({ name, type: this.#typeIndex(signature) });
    return { signature, index: this.#imports.length - 1 };
  }

  /** Has the module use a table of another module's, imported as `table`. */
  importTable(size: number): void {
    this.#table = { size };
  }
  /** Makes a table, exported as `table`. @param initial of type 0: stands at all places at first */
  defineTable(size: number, initial: Callable): void {
    this.#table = { size, initial };
  }

  /** A new function; the builder may be filled later, in any order. */
  function(signature: Signature): FunctionBuilder {
    return this.#add(new FunctionBuilder(signature, this.addressType));
  }
  /** A function that was emitted before, for a module with the same imports in the same order and the same table. */
  emitted(signature: Signature, body: FunctionBody): Callable {
    return this.#add({ signature, index: -1, body: () => body });
  }
  #add<F extends ModuleFunction>(f: F): F {
    f.index = this.#imports.length + this.#functions.length;
    this.#functions.push(f);
    return f;
  }

  /** A builder that does not become a part of the module: for code that is only looked at. */
  scratch(signature: Signature): FunctionBuilder {
    return new FunctionBuilder(signature, this.addressType);
  }

  export(name: string, target: Callable): void {
    this.#exports.push({ name, target });
  }

  /** Puts a function of type 0 into the table at instantiation. */
  place(tableIndex: number, target: Callable): void {
    this.#elements.push({ tableIndex, target });
  }

  encode(): Uint8Array<ArrayBuffer> {
    const functionTypes = this.#functions.map(f => this.#typeIndex(f.signature));
    const out = new Code();
    out.raw([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
    section(out, 1, this.#types, (s, type) => {
      s.byte(0x60);
      for (const list of [type.params, type.results]) {
        s.unsigned(list.length);
        for (const t of list) s.byte(valTypeCode(t));
      }
    });
    this.#encodeImports(out);
    section(out, 3, functionTypes, (s, type) => s.unsigned(type));
    const { size = 0, initial } = this.#table ?? {};
    section(out, 4, initial === undefined ? [] : [initial], (s, target) => {
      s.raw([0x40, 0x00]);
      tableType(s, size);
      functionReference(s, target);
    });
    section<(s: Code) => void>(out, 7, [
      ...this.#exports.map(item => (s: Code) => { s.name(item.name); s.byte(0); s.unsigned(item.target.index); }),
      ...(initial === undefined ? [] : [(s: Code) => { s.name('table'); s.byte(1); s.unsigned(0); }]),
    ], (s, write) => write(s));
    section(out, 9, this.#elementRuns(), (s, run) => {
      s.raw([6, 0]);
      s.byte(0x41);
      s.signed32(run.start);
      s.byte(0x0b);
      s.raw(TABLE_FUNCTION);
      s.unsigned(run.targets.length);
      for (const target of run.targets) functionReference(s, target);
    });
    const code = new Code();
    const hints: BranchHints[] = [];
    section(code, 10, this.#functions, (s, f) => {
      const { bytes, unlikely } = f.body();
      s.unsigned(bytes.length);
      s.raw(bytes);
      if (unlikely.length > 0) hints.push({ index: f.index, offsets: unlikely });
    });
    encodeBranchHints(out, hints);
    out.raw(code.bytes());
    return out.bytes().slice();
  }

  #encodeImports(out: Code): void {
    const memory = (name: string, { addressType, minPages, maxPages }: MemoryImport) => (s: Code): void => {
      s.name(name); s.byte(2); s.byte(addressType === 'i64' ? 7 : 3); s.unsigned(minPages); s.unsigned(maxPages);
    };
    const writers: ((s: Code) => void)[] = [
      memory('memory', this.#memory),
      ...(this.#secondMemory === undefined ? [] : [memory('memory1', this.#secondMemory)]),
      ...(this.#table === undefined || this.#table.initial !== undefined ? []
        : [(s: Code) => { s.name('table'); s.byte(1); tableType(s, this.#table!.size); }]),
      ...this.#imports.map(item => (s: Code) => { s.name(item.name); s.byte(0); s.unsigned(item.type); }),
    ];
    section(out, 2, writers, (s, write) => { s.name('env'); write(s); });
  }

  /** Adjacent table places go into one segment. */
  #elementRuns(): { start: number; targets: Callable[] }[] {
    const runs: { start: number; targets: Callable[] }[] = [];
    for (const { tableIndex, target } of this.#elements.toSorted((a, b) => a.tableIndex - b.tableIndex)) {
      const last = runs.at(-1);
      if (last && last.start + last.targets.length === tableIndex) last.targets.push(target);
      else runs.push({ start: tableIndex, targets: [target] });
    }
    return runs;
  }
}

/** What a place of the table holds: a reference to a function of type 0, never null. */
const TABLE_FUNCTION = [0x64, 0];

function tableType(s: Code, size: number): void {
  s.raw(TABLE_FUNCTION);
  s.byte(1);
  s.unsigned(size);
  s.unsigned(size);
}
function functionReference(s: Code, target: Callable): void {
  s.byte(0xd2);
  s.unsigned(target.index);
  s.byte(0x0b);
}

interface BranchHints {
  readonly index: number;
  /** Of branches hardly ever taken, from the function's declaration of locals on. */
  readonly offsets: readonly number[];
}

/** The custom section of the branch hinting extension; it stands before the code section. */
function encodeBranchHints(out: Code, functions: readonly BranchHints[]): void {
  if (functions.length === 0) return;
  const body = new Code();
  body.name('metadata.code.branch_hint');
  body.unsigned(functions.length);
  for (const { index, offsets } of functions) {
    body.unsigned(index);
    body.unsigned(offsets.length);
    for (const offset of offsets) {
      body.unsigned(offset);
      body.raw([1, 0]);
    }
  }
  out.byte(0);
  out.unsigned(body.length);
  out.raw(body.bytes());
}

function section<T>(out: Code, id: number, items: readonly T[], encode: (section: Code, item: T) => void): void {
  if (items.length === 0) return;
  const body = new Code();
  body.unsigned(items.length);
  for (const item of items) encode(body, item);
  out.byte(id);
  out.unsigned(body.length);
  out.raw(body.bytes());
}
