// For unit tests of lane operations: compiles one to a function of 128-bit integers. The Machine knows FPSR only.

import fc from 'fast-check';
import { i32 } from '../../wasm/scalar.ts';
import { ModuleBuilder } from '../../wasm/module.ts';
import type { FunctionBuilder } from '../../wasm/function.ts';
import type { I32, V128 } from '../../wasm/types.ts';
import { v128 } from '../../wasm/vector.ts';
import type { Machine } from '../machine.ts';
import { Lanes } from './lanes.ts';
import type { Signedness, Size } from './lanes.ts';

// Memory: vectors of 16 bytes (the result first, then the arguments), then FPSR and a count.
const VECTORS = 8;
const FPSR_ADDRESS = 16 * VECTORS;
const COUNT_ADDRESS = FPSR_ADDRESS + 4;

/** A compiled operation: the result, and whether FPSR.QC was set. `count` is what the operation got as its count. */
export type Compiled = (vectors: readonly bigint[], count?: number) => { value: bigint; qc: boolean };

/** `operation` gets pinned arguments and a pinned count. */
export function compile(
  size: Size, width: number, arity: number, operation: (l: Lanes, vectors: V128[], count: I32) => V128,
): Compiled {
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  const module = new ModuleBuilder({ params: [], results: [] }, { addressType: 'i32', minPages: 1, maxPages: 1 });
  const f = module.function({ params: [], results: [] });
  const vectors = Array.from({ length: arity }, (_, k) => f.let(v128.load(i32.const(16 + 16 * k))));
  const lanes = new Lanes(fpsrMachine(f), size, width);
  f.do(v128.store(i32.const(0), operation(lanes, vectors, f.let(i32.load(i32.const(COUNT_ADDRESS))))));
  module.export('run', f);
  const instance = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory } });
  const run = instance.exports['run'] as () => void;
  const view = new DataView(memory.buffer);
  return (values, count = 0) => {
    values.forEach((value, k) => {
      view.setBigUint64(16 + 16 * k, BigInt.asUintN(64, value), true);
      view.setBigUint64(24 + 16 * k, BigInt.asUintN(64, value >> 64n), true);
    });
    view.setInt32(FPSR_ADDRESS, 0, true);
    view.setInt32(COUNT_ADDRESS, count, true);
    run();
    const value = view.getBigUint64(8, true) << 64n | view.getBigUint64(0, true);
    return { value, qc: view.getInt32(FPSR_ADDRESS, true) === 1 << 27 };
  };
}

function fpsrMachine(f: FunctionBuilder): Machine {
  const machine: Pick<Machine, 'f' | 'fpsr' | 'setFpsr'> = {
    f,
    fpsr: () => i32.load(i32.const(FPSR_ADDRESS)),
    setFpsr: value => f.do(i32.store(i32.const(FPSR_ADDRESS), value)),
  };
  return machine as Machine;
}

/** The lanes of a 128-bit value as signed or unsigned integers, lane 0 first. */
export function lanesOf(value: bigint, bits: number, sign: Signedness): bigint[] {
  return Array.from({ length: 128 / bits }, (_, lane) => {
    const unsigned = BigInt.asUintN(bits, value >> BigInt(lane * bits));
    return sign === 'S' ? BigInt.asIntN(bits, unsigned) : unsigned;
  });
}
export function fromLanes(lanes: readonly bigint[], bits: number): bigint {
  return lanes.reduceRight((value, lane) => value << BigInt(bits) | BigInt.asUintN(bits, lane), 0n);
}

/** 128-bit values of lanes that are mostly extremes. */
export function vectorOf(bits: number): fc.Arbitrary<bigint> {
  const half = 1n << BigInt(bits - 1);
  const extreme = fc.constantFrom(0n, 1n, half, half - 1n, half + 1n, 2n * half - 1n);
  const lane = fc.oneof(extreme, fc.bigInt(0n, 2n * half - 1n));
  return fc.array(lane, { minLength: 128 / bits, maxLength: 128 / bits }).map(lanes => fromLanes(lanes, bits));
}

/** SatQ of the Arm ARM's shared pseudocode. */
export function saturate(value: bigint, bits: number, sign: Signedness): bigint {
  const [least, greatest] = sign === 'S'
    ? [-(1n << BigInt(bits - 1)), (1n << BigInt(bits - 1)) - 1n] : [0n, (1n << BigInt(bits)) - 1n];
  if (value > greatest) return greatest;
  return value < least ? least : value;
}
