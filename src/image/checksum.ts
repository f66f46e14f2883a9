// Checksums of image pages, computed by emitted WebAssembly right where the pages lie: in the machine memory when guest
// pages are written or read, in a scratch memory for everything else.
//
// The function is XXH64 (its published specification) of blocks of exactly 4096 bytes, which therefore have no tail:
//
//   page checksum   XXH64(page, seed = GFN): a page that was stored at another page's place is found
//   area digest     d = 0, then d = XXH64(block, seed = d) for each 4 KiB block of the area in turn
//
// The same pass tells whether a page is all zero, which costs one OR for each word.

import { FRAME_BYTES, FRAME_SHIFT } from '../abi/machine-memory.ts';
import type { AddressType } from '../abi/machine-memory.ts';
import type { FunctionBuilder } from '../wasm/function.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { i32, i64 } from '../wasm/scalar.ts';
import type { Address, I32, I64 } from '../wasm/types.ts';

const PRIME_1 = 0x9e3779b185ebca87n;
const PRIME_2 = 0xc2b2ae3d27d4eb4fn;
const PRIME_3 = 0x165667b19e3779f9n;
const PRIME_4 = 0x85ebca77c2b2ae63n;
const LANES = 4;
const MERGE_ROTATIONS = [1, 7, 12, 18] as const;
/** Bytes that one turn of the loop takes in; more than one stripe, so that the loop itself costs little. */
const TURN_BYTES = 128;

/** A memory that pages lie in. `MachineMemory` is one. */
export interface PageMemory {
  readonly memory: WebAssembly.Memory;
  readonly u8: Uint8Array;
  readonly parameters: { readonly addressType: AddressType; readonly sizeBytes: number };
}

interface Exports {
  hashPages(mfn: number, count: number, gfn: number): void;
  digestPages(mfn: number, count: number, seedLow: number, seedHigh: number): void;
}

export class PageHasher {
  readonly #exports: Exports;
  #out: Uint32Array = new Uint32Array(2);
  #next = 0;
  #zeroPages: boolean[] | undefined;

  constructor({ memory, parameters }: PageMemory) {
    const instance = new WebAssembly.Instance(hashModule(parameters.addressType), {
      env: { memory, emit: this.#emit },
    });
    this.#exports = instance.exports as unknown as Exports;
  }

  readonly #emit = (low: number, high: number, isNonZero: number): void => {
    this.#out[this.#next++] = low;
    this.#out[this.#next++] = high;
    this.#zeroPages?.push(isNonZero === 0);
  };

  /**
   * Checksums of the pages that hold GFNs gfn … gfn+count-1 and lie in consecutive frames from `mfn` on.
   * @param out receives two words for each page, low first, from index `at` on
   * @returns for each page whether it is all zero
   */
  hashPages(mfn: number, count: number, gfn: number, out: Uint32Array, at: number): boolean[] {
    const zeroPages: boolean[] = [];
    this.#out = out;
    this.#next = at;
    this.#zeroPages = zeroPages;
    this.#exports.hashPages(mfn, count, gfn);
    return zeroPages;
  }

  /** Carries a digest on over `count` blocks from `mfn` on. */
  digest(mfn: number, count: number, seed: Digest = EMPTY_DIGEST): Digest {
    const out = new Uint32Array(2);
    this.#out = out;
    this.#next = 0;
    this.#zeroPages = undefined;
    this.#exports.digestPages(mfn, count, seed.low, seed.high);
    return { low: out[0]!, high: out[1]! };
  }
}

/** 64 bits as two unsigned words. */
export interface Digest {
  readonly low: number;
  readonly high: number;
}
export const EMPTY_DIGEST: Digest = { low: 0, high: 0 };

/** Sixteen hexadecimal digits. */
export function formatDigest({ low, high }: Digest): string {
  return [high, low].map((word) => word.toString(16).padStart(8, '0')).join('');
}

const modules = new Map<AddressType, WebAssembly.Module>();

function hashModule(addressType: AddressType): WebAssembly.Module {
  const known = modules.get(addressType);
  if (known !== undefined) return known;
  const maxPages = addressType === 'i32' ? 65536 : 2 ** 18;
  const module = new ModuleBuilder({ params: [], results: [] }, { addressType, minPages: 1, maxPages });
  const emit = module.importFunction('emit', { params: ['i32', 'i32', 'i32'], results: [] });
  const report = (f: FunctionBuilder, hash: I64, any: I64): void => f.call(emit,
    i32.wrapI64(hash), i32.wrapI64(i64.shrU(hash, i64.const(32))), i64.ne(any, i64.const(0)));
  const address = (mfn: I32): Address => addressType === 'i32'
    ? i32.shl(mfn, i32.const(FRAME_SHIFT)) : i64.shl(i64.extendI32U(mfn), i64.const(FRAME_SHIFT));

  const hashPages = module.function({ params: ['i32', 'i32', 'i32'], results: [] });
  forEachPage(hashPages, (mfn) => {
    const gfn = hashPages.param(2, 'i32');
    const { hash, any } = emitXxh64(hashPages, address(mfn), i64.extendI32U(gfn));
    report(hashPages, hash, any);
    hashPages.set(gfn, i32.add(gfn, i32.const(1)));
  });

  const digestPages = module.function({ params: ['i32', 'i32', 'i32', 'i32'], results: [] });
  const [low, high] = [2, 3].map((k) => i64.extendI32U(digestPages.param(k, 'i32'))) as [I64, I64];
  const digest = digestPages.let(i64.or(low, i64.shl(high, i64.const(32))));
  forEachPage(digestPages, (mfn) => {
    digestPages.set(digest, emitXxh64(digestPages, address(mfn), digest).hash);
  });
  report(digestPages, digest, i64.const(0));

  module.export('hashPages', hashPages);
  module.export('digestPages', digestPages);
  const compiled = new WebAssembly.Module(module.encode());
  modules.set(addressType, compiled);
  return compiled;
}

/** A loop over the frames that parameter 0 (first MFN) and 1 (count) name. */
function forEachPage(f: FunctionBuilder, body: (mfn: I32) => void): void {
  const mfn = f.param(0, 'i32');
  const left = f.param(1, 'i32');
  f.block((done) => f.loop((again) => {
    f.brIf(done, i32.eqz(left));
    body(mfn);
    f.set(mfn, i32.add(mfn, i32.const(1)));
    f.set(left, i32.sub(left, i32.const(1)));
    f.br(again);
  }));
}

const round = (lane: I64, input: I64): I64 => i64.mul(
  i64.rotl(i64.add(lane, i64.mul(input, i64.const(PRIME_2))), i64.const(31)), i64.const(PRIME_1));

/** XXH64 of the 4096 bytes at `start`, and the OR of all words. */
function emitXxh64(f: FunctionBuilder, start: Address, seedValue: I64): { hash: I64; any: I64 } {
  const seed = f.let(seedValue);
  const lanes = [
    i64.add(seed, i64.const(PRIME_1 + PRIME_2)), i64.add(seed, i64.const(PRIME_2)), seed,
    i64.sub(seed, i64.const(PRIME_1)),
  ].map((initial) => {
    const lane = f.local('i64');
    f.set(lane, initial);
    return lane;
  });
  const any = f.local('i64');
  f.set(any, i64.const(0));
  const at = f.let(start);
  const turns = f.local('i32');
  f.set(turns, i32.const(FRAME_BYTES / TURN_BYTES));
  f.loop((again) => {
    for (let offset = 0; offset < TURN_BYTES; offset += 8) {
      const lane = lanes[(offset / 8) % LANES]!;
      const word = f.let(i64.load(at, offset));
      f.set(any, i64.or(any, word));
      f.set(lane, round(lane, word));
    }
    if (at.type === 'i32') f.set(at as I32, i32.add(at as I32, i32.const(TURN_BYTES)));
    else f.set(at as I64, i64.add(at as I64, i64.const(TURN_BYTES)));
    f.set(turns, i32.sub(turns, i32.const(1)));
    f.brIf(again, turns);
  });
  return { hash: finish(f, lanes), any };
}

function finish(f: FunctionBuilder, lanes: readonly I64[]): I64 {
  const hash = f.local('i64');
  f.set(hash, lanes.map((lane, k) => i64.rotl(lane, i64.const(MERGE_ROTATIONS[k]!))).reduce((a, b) => i64.add(a, b)));
  for (const lane of lanes) {
    const merged = i64.xor(hash, round(i64.const(0), lane));
    f.set(hash, i64.add(i64.mul(merged, i64.const(PRIME_1)), i64.const(PRIME_4)));
  }
  f.set(hash, i64.add(hash, i64.const(FRAME_BYTES)));
  for (const [shift, prime] of [[33, PRIME_2], [29, PRIME_3], [32, undefined]] as const) {
    f.set(hash, i64.xor(hash, i64.shrU(hash, i64.const(shift))));
    if (prime !== undefined) f.set(hash, i64.mul(hash, i64.const(prime)));
  }
  return hash;
}
