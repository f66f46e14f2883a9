// A table of functions that modules share: all places filled from the start, functions put in by other modules.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Signature } from './function.ts';
import { ModuleBuilder } from './module.ts';
import { i32 } from './scalar.ts';

const SIZE = 8;
const inTable: Signature = { params: ['i32', 'i32'], results: ['i32'] };
const memoryImport = { addressType: 'i32', minPages: 0, maxPages: 1 } as const;
const memory = new WebAssembly.Memory({ initial: 0, maximum: 1, shared: true });

/** A table full of functions that give the negative of their second argument; `call(place, x)` calls one with its place and x. */
function owner(): WebAssembly.Exports {
  const module = new ModuleBuilder(inTable, memoryImport);
  const negative = module.function(inTable);
  negative.push(i32.sub(i32.const(0), negative.param(1, 'i32')));
  const call = module.function(inTable);
  call.returnCallIndirect(call.param(0, 'i32'), call.param(0, 'i32'), call.param(1, 'i32'));
  module.export('call', call);
  module.export('negative', negative);
  module.defineTable(SIZE, negative);
  return new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory } }).exports;
}

/** Puts functions that add a constant at some places. */
function guest(table: WebAssembly.Table, constants: Readonly<Record<number, number>>): void {
  const module = new ModuleBuilder(inTable, memoryImport);
  module.importTable(SIZE);
  for (const place in constants) {
    const f = module.function(inTable);
    f.push(i32.add(f.param(1, 'i32'), i32.const(constants[place]!)));
    module.place(Number(place), f);
  }
  void new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory, table } });
}

test('places hold the initial function until a module puts its own there, in runs and alone', () => {
  const { table, call, negative } = owner() as { table: WebAssembly.Table; call: (place: number, x: number) => number; negative: unknown };
  const at = (x: number) => Array.from({ length: SIZE }, (_, place) => call(place, x));
  assert.deepEqual(at(7), Array<number>(SIZE).fill(-7));
  guest(table, { 1: 10, 2: 20, 5: 50 });
  guest(table, { 7: 70, 2: 21 });
  assert.deepEqual(at(1), [-1, 11, 22, -1, -1, 51, -1, 71]);
  table.set(5, negative);
  assert.equal(call(5, 3), -3);
});

test('there is nothing beyond the table, and its size is fixed', () => {
  const { table, call } = owner() as { table: WebAssembly.Table; call: (place: number, x: number) => number };
  assert.throws(() => call(SIZE, 1), WebAssembly.RuntimeError);
  assert.throws(() => table.grow(1, call), RangeError);
  assert.throws(() => table.set(0, null), TypeError);
});
