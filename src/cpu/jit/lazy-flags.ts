// Condition flags as the operation that gives them, at run time: a kind and two 64-bit operands. Compiled code keeps
// them so where paths meet, and has them written to the vCPU record on ways that are seldom taken.

import type { FlagSource } from '../../a64/machine.ts';
import type { ModuleBuilder } from '../../wasm/module.ts';
import type { Callable } from '../../wasm/function.ts';
import { i32, i64 } from '../../wasm/scalar.ts';
import type { I32, I64 } from '../../wasm/types.ts';
import { recordFlags } from '../flags.ts';
import { sharedFunctions } from '../handlers.ts';

/** `recorded`: they are in the vCPU record already. `packed` has N, Z, C, V in bits 3 … 0 of `a`. */
export const FLAG_KIND = { recorded: 0, add32: 1, add64: 2, sub32: 3, sub64: 4, logic32: 5, logic64: 6, packed: 7 } as const;

export function flagKindOf(source: Exclude<FlagSource, { kind: 'adc' }>): number {
  return source.kind === 'packed' ? FLAG_KIND.packed : FLAG_KIND[`${source.kind}${source.bits}`];
}

/** (vCPU, kind, a, b): writes the flags to the vCPU record. */
export function emitStoreFlags(module: ModuleBuilder): Callable {
  const f = module.function(sharedFunctions.storeFlags);
  const vcpu = f.param(0, 'i32');
  const kind = f.param(1, 'i32');
  const [a, b] = [f.param(2, 'i64'), f.param(3, 'i64')];
  const narrow = (value: I64): I32 => f.let(i32.wrapI64(value));
  const cases: [number, () => FlagSource][] = [
    [FLAG_KIND.sub64, () => ({ kind: 'sub', bits: 64, a, b, result: f.let(i64.sub(a, b)) })],
    [FLAG_KIND.sub32, () => {
      const [x, y] = [narrow(a), narrow(b)];
      return { kind: 'sub', bits: 32, a: x, b: y, result: f.let(i32.sub(x, y)) };
    }],
    [FLAG_KIND.logic64, () => ({ kind: 'logic', bits: 64, result: a })],
    [FLAG_KIND.logic32, () => ({ kind: 'logic', bits: 32, result: narrow(a) })],
    [FLAG_KIND.packed, () => ({ kind: 'packed', nzcv: narrow(a) })],
    [FLAG_KIND.add64, () => ({ kind: 'add', bits: 64, a, b, result: f.let(i64.add(a, b)) })],
    [FLAG_KIND.add32, () => {
      const [x, y] = [narrow(a), narrow(b)];
      return { kind: 'add', bits: 32, a: x, b: y, result: f.let(i32.add(x, y)) };
    }],
  ];
  for (const [value, source] of cases) {
    f.if(i32.eq(kind, i32.const(value)), () => {
      recordFlags(f, vcpu, source());
      f.return();
    });
  }
  return f;
}
