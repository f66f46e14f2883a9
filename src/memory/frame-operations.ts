// Filling, copying and comparing frames, by a few lines of WebAssembly: a typed array's `fill` and `copyWithin` on shared
// memory go byte by byte with care for races, at a third of the speed of `memory.fill` (docs/performance.md), and a loop
// in TypeScript over two nodes of a p2m is slow until it has run often, which a rollback does not.

import { FRAME_BYTES, FRAME_SHIFT } from '../abi/machine-memory.ts';
import type { AddressType } from '../abi/machine-memory.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import type { FunctionBuilder } from '../wasm/function.ts';
import { bulkMemory, i32, i64 } from '../wasm/scalar.ts';
import type { Address, I32, I64 } from '../wasm/types.ts';
import { v128 } from '../wasm/vector.ts';

const MAX_PAGES: Readonly<Record<AddressType, number>> = { i32: 65536, i64: 2 ** 18 };

const BLOCK_BYTES = 64;

export interface FrameOperations {
  zero(mfn: number): void;
  copy(to: number, from: number): void;
  /**
   * The first 8 bytes that differ in two frames, of those that start at `fromBytes` or later.
   * @param fromBytes a multiple of 8, below FRAME_BYTES
   * @returns their offset; FRAME_BYTES if there are none
   */
  nextDifference(a: number, b: number, fromBytes: number): number;
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
  const difference = builder.function({ params: ['i32', 'i32', 'i32'], results: ['i32'] });
  emitNextDifference(difference, address);
  builder.export('nextDifference', difference);
  builder.export('zero', zero);
  builder.export('copy', copy);
  const module = new WebAssembly.Module(builder.encode());
  modules.set(addressType, module);
  return module;
}

/** Blocks of 64 bytes that are equal are passed over; the others are looked at 8 bytes at a time. */
function emitNextDifference(f: FunctionBuilder, address: (mfn: I32) => Address): void {
  const frame = (index: number): Address => f.let<'i32' | 'i64'>(address(f.param(index, 'i32'))) as Address;
  const a = frame(0);
  const b = frame(1);
  const at = f.param(2, 'i32');
  const inFrame = (start: Address): Address => start.type === 'i32'
    ? i32.add(start as I32, at) : i64.add(start as I64, i64.extendI32U(at));
  const differs = (offset: number) => v128.xor(v128.load(inFrame(a), offset), v128.load(inFrame(b), offset));
  f.loop(again => {
    f.if(i32.eq(at, i32.const(FRAME_BYTES)), () => f.return(at));
    f.if(i32.eqz(i32.and(at, i32.const(BLOCK_BYTES - 1))), () => {
      const block = [0, 16, 32, 48].map(differs).reduce((all, part) => v128.or(all, part));
      f.if(i32.eqz(v128.anyTrue(block)), () => {
        f.set(at, i32.add(at, i32.const(BLOCK_BYTES)));
        f.br(again);
      });
    });
    f.if(i64.ne(i64.load(inFrame(a)), i64.load(inFrame(b))), () => f.return(at));
    f.set(at, i32.add(at, i32.const(8)));
    f.br(again);
  });
  f.unreachable();
}

export function frameOperations(memory: WebAssembly.Memory, addressType: AddressType): FrameOperations {
  return new WebAssembly.Instance(compile(addressType), { env: { memory } }).exports as unknown as FrameOperations;
}
