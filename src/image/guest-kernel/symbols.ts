// The kernel's own table of its functions (kallsyms; Linux: kernel/kallsyms.c, scripts/kallsyms.c), where VMCOREINFO
// says since Linux 6.0 that it is. Without CONFIG_KALLSYMS_ALL it holds no variables; modules have tables of their own.
//
//   offsets   one u32 for each symbol, ascending; address = relative base + offset
//   names     for each symbol: length (7 bits, or 7 + 7 with the top bit set), then that many tokens
//   token n   at token_table + token_index[n], ended by a zero; the first character of a name is the symbol's type

import type { GuestMemory } from './guest-memory.ts';
import { guestKernelError } from './vmcoreinfo.ts';
import type { Vmcoreinfo } from './vmcoreinfo.ts';

const SYMBOLS_MAX = 2 ** 20;
const NAMES_BYTES_MAX = 2 ** 25;
const TOKENS = 256;
const TOKEN_BYTES_MAX = 64;
/** An address further behind the last symbol is none of its function. */
const FUNCTION_BYTES_MAX = 2n ** 20n;

export interface SymbolPlace {
  readonly name: string;
  readonly offsetBytes: number;
}

export class KernelSymbols {
  readonly #path: string;
  readonly #base: bigint;
  readonly #offsets: DataView;
  readonly #names: Uint8Array;
  readonly #nameAt: Uint32Array;
  readonly #tokens: readonly string[];

  /** @throws ZazenError ZAZEN_GUEST_KERNEL; as the image's reads */
  constructor(memory: GuestMemory, info: Vmcoreinfo) {
    this.#path = memory.path;
    const count = memory.u32(info.symbol('kallsyms_num_syms'));
    const namesAt = info.symbol('kallsyms_names');
    const tokensAt = info.symbol('kallsyms_token_table');
    // The tokens lie behind the names.
    const namesBytes = Number(tokensAt - namesAt);
    if (count > SYMBOLS_MAX || namesBytes <= 0 || namesBytes > NAMES_BYTES_MAX) {
      throw this.#error('has an impossible size');
    }
    this.#base = memory.u64(info.symbol('kallsyms_relative_base'));
    this.#offsets = memory.view(info.symbol('kallsyms_offsets'), 4 * count);
    this.#names = memory.read(namesAt, namesBytes);
    this.#tokens = readTokens(memory, tokensAt, info.symbol('kallsyms_token_index'));
    this.#nameAt = new Uint32Array(count);
    for (let i = 0, at = 0; i < count; i++) {
      this.#nameAt[i] = at;
      const { start, length } = this.#lengthAt(at);
      at = start + length;
    }
  }

  get count(): number {
    return this.#nameAt.length;
  }

  /** The function that an address lies in. */
  find(address: bigint): SymbolPlace | undefined {
    const target = address - this.#base;
    if (target < 0n || target > 0xffff_ffffn) return undefined;
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (BigInt(this.#offset(middle)) <= target) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    const start = this.#offset(low - 1);
    const offset = target - BigInt(start);
    if (offset > FUNCTION_BYTES_MAX) return undefined;
    // Of several names for one address the first is the function's; the linker's marks come behind.
    let first = low - 1;
    while (first > 0 && this.#offset(first - 1) === start) first--;
    return { name: this.#name(first), offsetBytes: Number(offset) };
  }

  #offset(index: number): number {
    return this.#offsets.getUint32(4 * index, true);
  }

  #name(index: number): string {
    const { start, length } = this.#lengthAt(this.#nameAt[index]!);
    return [...this.#names.subarray(start, start + length)].map((token) => this.#tokens[token]!).join('').slice(1);
  }

  #lengthAt(at: number): { start: number; length: number } {
    const [first, second] = [this.#names[at], this.#names[at + 1]];
    const isLong = first !== undefined && first >= 0x80;
    const start = at + (isLong ? 2 : 1);
    const length = isLong ? (first & 0x7f) | ((second ?? 0) << 7) : first ?? 0;
    if (start + length > this.#names.length) throw this.#error('is cut short');
    return { start, length };
  }

  #error(what: string) {
    return guestKernelError(this.#path, `its table of symbols ${what}`);
  }
}

function readTokens(memory: GuestMemory, tableAt: bigint, indexAt: bigint): string[] {
  const index = memory.view(indexAt, 2 * TOKENS);
  return Array.from({ length: TOKENS }, (_, token) => {
    const at = tableAt + BigInt(index.getUint16(2 * token, true));
    // Where a page without memory follows, a token ends before it.
    const bytes = memory.tryRead(at, TOKEN_BYTES_MAX) ?? new Uint8Array(1);
    const end = bytes.indexOf(0);
    return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('latin1');
  });
}
