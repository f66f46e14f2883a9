// Filling and copying frames, by a few lines of WebAssembly: a typed array's `fill` and `copyWithin` on shared memory go
// byte by byte with care for races, at a third of the speed of `memory.fill` (docs/performance.md).

import { FRAME_BYTES, FRAME_SHIFT } from '../abi/machine-memory.ts';
import type { AddressType } from '../abi/machine-memory.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { bulkMemory, i32, i64 } from '../wasm/scalar.ts';
import type { Address, I32 } from '../wasm/types.ts';

const MAX_PAGES: Readonly<Record<AddressType, number>> = { i32: 65536, i64: 2 ** 18 };

export interface FrameOperations {
  zero(mfn: number): void;
  copy(to: number, from: number): void;
}

const modules = new Map<AddressType, WebAssembly.Module>();

function compile(addressType: AddressType): WebAssembly.Module {
  const known = modules.get(addressType);
  if (known !== undefined) return known;
  const builder = new ModuleBuilder({ params: [], results: [] },
    { addressType, minPages: 1, maxPages: MAX_PAGES[addressType] });
  const address = (mfn: I32): Address => addressType === 'i32'
    ? i32.shl(mfn, i32.const(FRAME_SHIFT)) : i64.shl(i64.extendI32U(mfn), i64.const(FRAME_SHIFT));
  const zero = builder.function({ params: ['i32'], results: [] });
  zero.do(bulkMemory.fill(address(zero.param(0, 'i32')), i32.const(0), i32.const(FRAME_BYTES)));
  const copy = builder.function({ params: ['i32', 'i32'], results: [] });
  copy.do(bulkMemory.copy(address(copy.param(0, 'i32')), address(copy.param(1, 'i32')), i32.const(FRAME_BYTES)));
  builder.export('zero', zero);
  builder.export('copy', copy);
  const module = new WebAssembly.Module(builder.encode());
  modules.set(addressType, module);
  return module;
}

export function frameOperations(memory: WebAssembly.Memory, addressType: AddressType): FrameOperations {
  const table = new WebAssembly.Table({ element: 'anyfunc', initial: 0 });
  return new WebAssembly.Instance(compile(addressType), { env: { memory, table } }).exports as unknown as FrameOperations;
}
