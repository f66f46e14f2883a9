// The memory of the guest in an image, by physical address and as its kernel saw it: through the kernel's own page
// tables (Arm ARM, D8: VMSAv8-64, stage 1, TTBR1). Only the pages that are asked for are read from the file.
//
//   kernel virtual ──► translate (swapper_pg_dir) ──► physical ──► cluster of 16 pages ──► image
//                                                     cached, 64 MiB at most

import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import type { Bank } from '../format.ts';
import { guestKernelError } from './vmcoreinfo.ts';
import type { Vmcoreinfo } from './vmcoreinfo.ts';

/** Where the pages come from. */
export interface GuestPages {
  readonly path: string;
  readonly banks: readonly Bank[];
  /**
   * Copies of pages gfn … gfn+count-1, which lie in one bank; count is at most `CLUSTER_PAGES`.
   * @throws ZazenError as `Image.readPages`
   */
  read(gfn: number, count: number): Uint8Array;
}

export const CLUSTER_PAGES = 16;
export const CLUSTER_BYTES = CLUSTER_PAGES * FRAME_BYTES;
const CLUSTERS_MAX = 1024;
const TRANSLATIONS_MAX = 65536;
/** No structure and no table of a kernel that we read is larger. */
const READ_BYTES_MAX = 2 ** 26;

const ADDRESS_MASK = 0xffff_ffff_ffffn;
const U64_BYTES = 8;

export class GuestMemory {
  readonly path: string;
  readonly #pages: GuestPages;
  readonly #clusters = new Map<number, Uint8Array>();
  readonly #translations = new Map<bigint, number>();
  readonly #pageShift: number;
  readonly #addressBits: number;
  readonly #root: number;
  readonly #imageOffset: bigint;

  /** @throws ZazenError ZAZEN_GUEST_KERNEL when the kernel's tables are not where it says, or of an unknown kind */
  constructor(pages: GuestPages, info: Vmcoreinfo) {
    this.path = pages.path;
    this.#pages = pages;
    this.#pageShift = Math.log2(info.pageBytes);
    // How many bits the tables translate can be fewer than what the kernel was built for.
    this.#addressBits = info.has('NUMBER(TCR_EL1_T1SZ)') ? 64 - Number(info.number('TCR_EL1_T1SZ'))
      : Number(info.number('VA_BITS'));
    if (![12, 14, 16].includes(this.#pageShift) || !(this.#addressBits >= 36 && this.#addressBits <= 48)) {
      throw guestKernelError(this.path,
        `pages of ${info.pageBytes} bytes and addresses of ${this.#addressBits} bits are not supported`);
    }
    this.#imageOffset = info.number('kimage_voffset');
    this.#root = this.imageAddress(info.symbol('swapper_pg_dir'));
  }

  /** Physical address of something in the kernel's own image, which lies in one piece. */
  imageAddress(virtual: bigint): number {
    return Number(BigInt.asUintN(64, virtual - this.#imageOffset) & ADDRESS_MASK);
  }

  /** Virtual address of a physical one that lies in the kernel's image. */
  imageVirtual(physical: number): bigint {
    return BigInt.asUintN(64, BigInt(physical) + this.#imageOffset);
  }

  /** @returns a copy, or undefined where the guest has no memory */
  physical(address: number, sizeBytes: number): Uint8Array | undefined {
    if (sizeBytes > READ_BYTES_MAX) throw guestKernelError(this.path, `something of ${sizeBytes} bytes is too large`);
    const out = new Uint8Array(sizeBytes);
    for (let done = 0; done < sizeBytes;) {
      const at = address + done;
      const bank = this.#bankOf(at);
      if (bank === undefined) return undefined;
      const start = Math.max(bank.guestAddress, Math.floor(at / CLUSTER_BYTES) * CLUSTER_BYTES);
      const cluster = this.#cluster(start, bank);
      const part = cluster.subarray(at - start, at - start + sizeBytes - done);
      out.set(part, done);
      done += part.length;
    }
    return out;
  }

  #bankOf(address: number): Bank | undefined {
    return this.#pages.banks.find(({ guestAddress, sizeBytes }) =>
      address >= guestAddress && address < guestAddress + sizeBytes);
  }

  #cluster(start: number, bank: Bank): Uint8Array {
    const known = this.#clusters.get(start);
    if (known !== undefined) return known;
    if (this.#clusters.size >= CLUSTERS_MAX) this.#clusters.clear();
    const end = Math.min(bank.guestAddress + bank.sizeBytes, (Math.floor(start / CLUSTER_BYTES) + 1) * CLUSTER_BYTES);
    const cluster = this.#pages.read(start / FRAME_BYTES, (end - start) / FRAME_BYTES);
    this.#clusters.set(start, cluster);
    return cluster;
  }

  /** @returns the physical address, or undefined where the kernel maps nothing */
  translate(virtual: bigint): number | undefined {
    const page = virtual >> BigInt(this.#pageShift);
    let physical = this.#translations.get(page);
    if (physical === undefined) {
      physical = this.#walk(virtual);
      if (physical === undefined) return undefined;
      if (this.#translations.size >= TRANSLATIONS_MAX) this.#translations.clear();
      this.#translations.set(page, physical);
    }
    return physical + Number(virtual & BigInt(this.#pageBytes - 1));
  }

  get #pageBytes(): number {
    return 2 ** this.#pageShift;
  }

  /** The page's address; blocks are broken into pages. */
  #walk(virtual: bigint): number | undefined {
    const bits = this.#addressBits;
    if (virtual >> BigInt(bits) !== (1n << BigInt(64 - bits)) - 1n) return undefined;
    const bitsPerLevel = this.#pageShift - 3;
    let table = this.#root;
    for (let level = 4 - Math.ceil((bits - this.#pageShift) / bitsPerLevel); ; level++) {
      const shift = this.#pageShift + bitsPerLevel * (3 - level);
      const top = Math.min(shift + bitsPerLevel, bits);
      const index = Number((virtual >> BigInt(shift)) & ((1n << BigInt(top - shift)) - 1n));
      const descriptor = this.#descriptor(table + index * U64_BYTES);
      if ((descriptor & 1n) === 0n) return undefined;
      const isTable = (descriptor & 2n) !== 0n;
      const isPage = level === 3;
      if (isPage && !isTable) return undefined;
      if (isPage || !isTable) {
        const span = (1n << BigInt(shift)) - 1n;
        const pageMask = BigInt(this.#pageBytes - 1);
        return Number((descriptor & ADDRESS_MASK & ~span) | (virtual & span & ~pageMask));
      }
      table = Number(descriptor & ADDRESS_MASK & ~BigInt(this.#pageBytes - 1));
    }
  }

  #descriptor(address: number): bigint {
    const bytes = this.physical(address, U64_BYTES);
    return bytes === undefined ? 0n : viewOf(bytes).getBigUint64(0, true);
  }

  /** A copy of kernel memory. @throws ZazenError ZAZEN_GUEST_KERNEL where there is none */
  read(virtual: bigint, sizeBytes: number): Uint8Array {
    const out = this.tryRead(virtual, sizeBytes);
    if (out === undefined) throw guestKernelError(this.path, `there is no memory at 0x${virtual.toString(16)}`);
    return out;
  }

  /** As `read`; undefined where there is no memory. */
  tryRead(virtual: bigint, sizeBytes: number): Uint8Array | undefined {
    if (sizeBytes > READ_BYTES_MAX) throw guestKernelError(this.path, `something of ${sizeBytes} bytes is too large`);
    const out = new Uint8Array(sizeBytes);
    for (let done = 0; done < sizeBytes;) {
      const at = BigInt.asUintN(64, virtual + BigInt(done));
      const physical = this.translate(at);
      const count = Math.min(sizeBytes - done, this.#pageBytes - Number(at & BigInt(this.#pageBytes - 1)));
      const part = physical === undefined ? undefined : this.physical(physical, count);
      if (part === undefined) return undefined;
      out.set(part, done);
      done += count;
    }
    return out;
  }

  /** A view of kernel memory that is a copy. */
  view(virtual: bigint, sizeBytes: number): DataView {
    return viewOf(this.read(virtual, sizeBytes));
  }

  u64(virtual: bigint): bigint {
    return this.view(virtual, U64_BYTES).getBigUint64(0, true);
  }

  u32(virtual: bigint): number {
    return this.view(virtual, 4).getUint32(0, true);
  }
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
