// What an image file is: its areas, limits and types. docs/formats/image.md describes it field by field.
//
//        0 ┌────────────────────┐
//          │ head               │ one block: ELF header, program headers, and the superblock in its last bytes
//     4096 ├────────────────────┤
//          │ pages of bank 0    │ page n of the bank at 4096 + n × 4096; holes where pages are zero or the parent's
//          │ pages of bank 1 …  │
//          ├────────────────────┤ hotOffset
//          │ hot pages          │ some of them once more, one after the other: those that a restored guest needs first
//          ├────────────────────┤ notesOffset
//          │ notes              │ registers, VMCOREINFO, header, state sections, page map, page checksums
//          └────────────────────┘ fileBytes, a multiple of 4096
//
// There is one layout for given banks, hot pages and notes, and a reader accepts no other: no byte of a file is
// unaccounted for.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';

export const BLOCK_BYTES = FRAME_BYTES;
/** Raised by every change that an older reader must not overlook; readers take this version and all before it. */
export const IMAGE_VERSION = 3;
/** The first one with hot pages. */
export const HOT_PAGES_VERSION = 3;
export const IMAGE_MAGIC = 'ZAZENIMG';

// Limits, so that no file can make its reader allocate without measure.
export const BANKS_MAX = 32;
/** 64 GiB of guest memory. */
export const PAGES_MAX = 2 ** 24;
export const VCPUS_MAX = 512;
/** 4 MiB, what one request reads. */
export const HOT_PAGES_MAX = 1024;
export const HEADER_BYTES_MAX = 2 ** 20;
export const SECTION_BYTES_MAX = 2 ** 26;
export const SECTIONS_MAX = 4096;
export const VMCOREINFO_BYTES_MAX = 2 ** 16;
/** Files of a chain, the first one included. */
export const CHAIN_MAX = 64;

/** Gaps of at most this many zero pages between stored ones do not end a request. */
export const BRIDGE_PAGES = 16;

export type JsonValue = string | number | boolean | null | readonly JsonValue[] | { readonly [key: string]: JsonValue };

/** A bank of guest memory; both are multiples of 4096. */
export interface Bank {
  readonly guestAddress: number;
  readonly sizeBytes: number;
}

/**
 * Where the guest's kernel has part of its image in its own address space, so that readers which know that kernel find
 * its page tables and with them all else. The addresses and the size are multiples of 4096.
 */
export interface KernelWindow {
  /** In the upper half of the address space. */
  readonly virtualAddress: bigint;
  readonly guestAddress: number;
  readonly sizeBytes: number;
}

/** General and SIMD&FP registers of one vCPU, for debuggers; restoring takes them from the state sections. */
export interface VcpuRegisters {
  /** X0–X30. */
  readonly x: ArrayLike<bigint>;
  readonly sp: bigint;
  readonly pc: bigint;
  readonly pstate: bigint;
  /** V0–V31 as 512 bytes, little-endian, with FPSR and FPCR. */
  readonly fp?: { readonly v: Uint8Array; readonly fpsr: number; readonly fpcr: number };
}

/** Bytes that some room saved, found again under their name ([a-z0-9][a-z0-9._/-]*, at most 64 characters). */
export interface StateSection {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Names the image that holds the pages which did not change. */
export interface ParentReference {
  /** As written in the file: relative to the folder of the image that names it, unless absolute. */
  readonly path: string;
  readonly id: string;
  /** Of the parent's head, and so of its whole contents. */
  readonly digest: string;
}

export interface ImageHeader {
  /** UUID of the image itself, new for each. */
  readonly id: string;
  readonly createdMillis: number;
  readonly parent?: ParentReference;
  /** The guest's name, UUID and whatever else the writer found worth telling. */
  readonly domain: { readonly [key: string]: JsonValue };
}

export const PAGE_STATE = { zero: 0, stored: 1, parent: 2 } as const;
export type PageState = keyof typeof PAGE_STATE;

/** Pages gfn … gfn+count-1, all in one state. */
export interface PageStretch {
  readonly gfn: number;
  readonly count: number;
  readonly state: PageState;
}

export type ImageErrorKind =
  /** No such file, or not to be opened. */
  | 'OPEN'
  /** Not an image, or one whose parts contradict each other. */
  | 'FORMAT'
  | 'VERSION'
  | 'TRUNCATED'
  | 'CHECKSUM'
  | 'PARENT'
  | 'READ'
  | 'CREATE'
  | 'NO_SPACE'
  | 'WRITE';

export function imageError(
  kind: ImageErrorKind, path: string, what: string, options: { hint?: string; cause?: unknown } = {},
): ZazenError {
  return new ZazenError(`ZAZEN_IMAGE_${kind}`, `image ${path}: ${what}`, options);
}

export interface ImageLayout {
  /** File offset of each bank's first page. */
  readonly bankOffsets: readonly number[];
  readonly pageCount: number;
  /** Behind the last page. */
  readonly hotOffset: number;
  readonly notesOffset: number;
}

export function layoutImage(banks: readonly Bank[], hotPages = 0): ImageLayout {
  const bankOffsets: number[] = [];
  let offset = BLOCK_BYTES;
  for (const { sizeBytes } of banks) {
    bankOffsets.push(offset);
    offset += sizeBytes;
  }
  const notesOffset = offset + hotPages * FRAME_BYTES;
  return { bankOffsets, pageCount: (offset - BLOCK_BYTES) / FRAME_BYTES, hotOffset: offset, notesOffset };
}

/** Says what is wrong with banks, or undefined. They lie in ascending order and do not overlap. */
export function findBankFault(banks: readonly Bank[]): string | undefined {
  if (banks.length > BANKS_MAX) return `${banks.length} banks of memory are more than ${BANKS_MAX}`;
  let end = 0;
  let pages = 0;
  for (const { guestAddress, sizeBytes } of banks) {
    const isWhole = (bytes: number) => Number.isSafeInteger(bytes) && bytes >= 0 && bytes % FRAME_BYTES === 0;
    if (!isWhole(guestAddress) || !isWhole(sizeBytes) || sizeBytes === 0) return 'a bank of memory is not made of whole pages';
    if (guestAddress < end) return 'banks of memory overlap or are out of order';
    end = guestAddress + sizeBytes;
    pages += sizeBytes / FRAME_BYTES;
    if (end > 2 ** 48 || pages > PAGES_MAX) return 'a guest of this size is more than an image can hold';
  }
  return undefined;
}

/** Says what is wrong with a window to the memory of `banks`, or undefined. */
export function findWindowFault(window: KernelWindow, banks: readonly Bank[]): string | undefined {
  const { virtualAddress, guestAddress, sizeBytes } = window;
  const isWhole = (bytes: number) => Number.isSafeInteger(bytes) && bytes % FRAME_BYTES === 0;
  if (sizeBytes <= 0 || !isWhole(guestAddress) || !isWhole(sizeBytes) || virtualAddress % BigInt(FRAME_BYTES) !== 0n) {
    return 'the window to the kernel is not made of whole pages';
  }
  const isKernels = virtualAddress >= 2n ** 63n && virtualAddress + BigInt(sizeBytes) <= 2n ** 64n;
  const end = guestAddress + sizeBytes;
  const isMemory = banks.some((one) => guestAddress >= one.guestAddress && end <= one.guestAddress + one.sizeBytes);
  return isKernels && isMemory ? undefined : 'the window to the kernel shows what is not there';
}

export const alignToBlock = (bytes: number): number => Math.ceil(bytes / BLOCK_BYTES) * BLOCK_BYTES;
