// Locals of scopes: given up at the end, used again, and those that are kept are not.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ModuleBuilder } from './module.ts';
import { i32, i64 } from './scalar.ts';

test('locals of a scope are used again behind it, except those that are kept and those of other types', () => {
  const module = new ModuleBuilder({ params: [], results: [] }, { addressType: 'i32', minPages: 0, maxPages: 1 });
  const f = module.function({ params: ['i32'], results: ['i32'] });
  const x = f.param(0, 'i32');
  const outer = f.let(i32.add(x, i32.const(1)));
  const close = f.openScope();
  const kept = f.let(i32.add(outer, i32.const(10)));
  const closeInner = f.openScope();
  const inner = f.let(i32.mul(kept, i32.const(3)));
  closeInner(new Set());
  const second = f.let(i32.mul(kept, i32.const(5)));
  assert.equal(second, inner, 'given up and used again');
  const wide = f.let(i64.extendI32U(second));
  close(new Set([kept]));
  const third = f.local('i32');
  assert.ok(third !== kept && third !== outer && third === second);
  assert.notEqual(f.local('i32'), kept);
  assert.equal(f.local('i64'), wide);
  f.set(third, i32.const(0));
  f.push(i32.add(kept, outer));
  module.export('f', f);
  const memory = new WebAssembly.Memory({ initial: 0, maximum: 1, shared: true });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory } });
  assert.equal((exports['f'] as (x: number) => number)(5), 22);
});
