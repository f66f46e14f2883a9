// Whether this machine's relaxed multiply-add is fused, rounded once: WebAssembly leaves it open, and a processor has one
// way for all of its life. Found out by numbers whose product has to be rounded.

import { ModuleBuilder } from './module.ts';
import { f32, f64 } from './scalar.ts';
import { f32x4, f64x2 } from './vector.ts';

function probe(): boolean {
  const module = new ModuleBuilder({ params: [], results: [] }, { addressType: 'i32', minPages: 0, maxPages: 1 });
  const single = module.function({ params: ['f64', 'f64', 'f64'], results: ['f64'] });
  const narrow = (index: number) => f32x4.splat(f32.demoteF64(single.param(index, 'f64')));
  single.push(f64.promoteF32(f32x4.extract(f32x4.relaxedMadd(narrow(0), narrow(1), narrow(2)), 0)));
  const double = module.function({ params: ['f64', 'f64', 'f64'], results: ['f64'] });
  const wide = (index: number) => f64x2.splat(double.param(index, 'f64'));
  double.push(f64x2.extract(f64x2.relaxedMadd(wide(0), wide(1), wide(2)), 0));
  module.export('single', single);
  module.export('double', double);
  const bytes = module.encode();
  if (!WebAssembly.validate(bytes)) return false;
  const memory = new WebAssembly.Memory({ initial: 0, maximum: 1, shared: true });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } });
  const isFused = (name: string, precision: number): boolean => {
    const step = 2 ** -precision;
    const multiplyAdd = exports[name] as (a: number, b: number, c: number) => number;
    // (1 + step)(1 - step) = 1 - step², which rounds to 1.
    return multiplyAdd(1 + step, 1 - step, -1) === -step * step;
  };
  return isFused('single', 20) && isFused('double', 50);
}

export const hasFusedMadd: boolean = probe();
