// The two ways to a fused multiply-add give the same bits wherever both say that they are right: the host's own, and the
// emulation, which is also what shows that nothing was rounded. Which one instructions use depends on the machine.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../base/random.ts';
import { FunctionBuilder } from '../wasm/function.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { hasFusedMadd } from '../wasm/relaxed-madd.ts';
import { emulatedMulAdd, hostMulAdd } from './fp-inline.ts';
import { scalarDouble, scalarSingle } from './fp-shape.ts';
import type { Value } from './fp-shape.ts';
import type { Machine } from './machine.ts';

const SEED = 7;
const CASES = 30_000;

type Ways = Record<'host' | 'hostOk' | 'emulated' | 'emulatedOk' | 'exact', (c: number, a: number, b: number) => number>;

function compile(size: 32 | 64): Ways {
  const shape = size === 32 ? scalarSingle : scalarDouble;
  const type = size === 32 ? 'f32' : 'f64';
  const module = new ModuleBuilder({ params: [], results: [] }, { addressType: 'i32', minPages: 0, maxPages: 1 });
  const add = (name: string, result: 'f32' | 'f64' | 'i32', body: (m: Machine, operands: [Value, Value, Value]) => Parameters<FunctionBuilder['push']>[0]) => {
    const f = module.function({ params: [type, type, type], results: [result] });
    // Fast paths use nothing of a Machine but its function.
    f.push(body({ f } as unknown as Machine, [f.param(0, type), f.param(1, type), f.param(2, type)] as [Value, Value, Value]));
    module.export(name, f);
  };
  add('host', type, (m, [c, a, b]) => hostMulAdd(m, shape, c, a, b).value);
  add('hostOk', 'i32', (m, [c, a, b]) => hostMulAdd(m, shape, c, a, b).ok);
  add('emulated', type, (m, [c, a, b]) => emulatedMulAdd(m, shape, c, a, b).value);
  add('emulatedOk', 'i32', (m, [c, a, b]) => emulatedMulAdd(m, shape, c, a, b).ok);
  add('exact', 'i32', (m, [c, a, b]) => emulatedMulAdd(m, shape, c, a, b).exact!());
  const memory = new WebAssembly.Memory({ initial: 0, maximum: 1, shared: true });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory } });
  return exports as unknown as Ways;
}

for (const size of [32, 64] as const) {
  test(`of width ${size}: equal where both hold, and they hold for ordinary numbers`, (t) => {
    // Not a skip: no program that could be installed would change it, and nothing uses what is not there.
    if (!hasFusedMadd) return t.diagnostic('this machine has no fused multiply-add');
    const random = new SeededRandom(SEED + size);
    const ways = compile(size);
    const round = size === 32 ? Math.fround : (value: number) => value;
    const number = (): number => {
      const scale = 2 ** (random.below(12) === 0 ? random.below(1600) - 800 : random.below(60) - 30);
      const bits = random.below(3) === 0 ? random.below(64) : random.u32() + random.u32() * 2 ** 32;
      return round((random.below(2) ? 1 : -1) * (random.below(30) === 0 ? 0 : bits) * scale);
    };
    let held = 0;
    for (let i = 0; i < CASES; i++) {
      const [a, b] = [number(), number()];
      // One in four cancels, all or nearly.
      const c = random.below(4) === 0 ? round(-a * b) : number();
      if (!ways.hostOk(c, a, b) || !ways.emulatedOk(c, a, b)) continue;
      held++;
      const [host, emulated] = [ways.host(c, a, b), ways.emulated(c, a, b)];
      assert.ok(Object.is(host, emulated), `seed ${SEED + size}: ${c} + ${a} × ${b} is ${host} and ${emulated}`);
      if (ways.exact(c, a, b) && size === 32) assert.equal(host, c + a * b, `${c} + ${a} × ${b} is not exact`);
    }
    assert.ok(held > CASES / 2, `only ${held} of ${CASES} cases were compared`);
  });
}
