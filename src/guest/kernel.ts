// Reading a kernel for the guest. Accepts what Linux builds for arm64: the raw Image, Image.gz (and xz, zstd), and the
// EFI zboot image; gives the raw Image and what its header says. Anything else gets a typed error that names it.
//
// Raw Image header (Documentation/arm64/booting.rst), little-endian:
//
//   0x00 code0 u32   0x04 code1 u32   0x08 text_offset u64   0x10 image_size u64   0x18 flags u64
//   0x38 magic "ARM\x64"              0x3c offset of the PE header u32, when code0 starts with "MZ"
//   flags: bit 0 big-endian; bits 1-2 page size: 0 not said, 1 4K, 2 16K, 3 64K; bit 3 place anywhere in memory
//
// EFI zboot header (drivers/firmware/efi/libstub/zboot-header.S):
//
//   0x00 "MZ"  0x04 "zimg"  0x08 payload offset u32  0x0c payload size u32  0x18 compression, a C string (32 bytes)

import { ZazenError } from '../base/errors.ts';
import { readBootFile, refuseTooLarge } from './boot-file.ts';
import { DecompressError, decompress, detectCompression } from './decompress.ts';

export interface Kernel {
  /** The raw Image, as it is to be placed in memory. */
  image: Uint8Array;
  /** Where the Image goes, in bytes above a 2 MiB aligned base. */
  textOffset: number;
  /** Bytes that the kernel needs from there on, its zero-initialised data included; at least `image.length`. */
  imageSize: number;
  flags: {
    /** 4096 or 0 when the header does not say. */
    pageSizeBytes: 0 | 4096;
    /** The base may be anywhere in memory, not only close to its start. */
    placeAnywhere: boolean;
  };
}

const headerBytes = 64;
const maxImageBytes = 512 * 2 ** 20;
const hint = 'give an arm64 Linux kernel (Image, Image.gz or vmlinuz), or leave it out to use the Debian kernel';

function fail(code: string, name: string, what: string, cause?: unknown): never {
  throw new ZazenError(code, `${name}: ${what}`, { hint, cause });
}

/**
 * The kernel in a file. Errors (ZazenError): ZAZEN_KERNEL_UNREADABLE, and those of `parseKernel`.
 * @param maxBytes what there is room for
 */
export async function loadKernel(path: string, maxBytes = maxImageBytes): Promise<Kernel> {
  return parseKernel((await readBootFile(path, 'kernel', maxBytes)).bytes, path, maxBytes);
}

/**
 * The kernel in the bytes of a file. Errors (ZazenError): ZAZEN_KERNEL_TRUNCATED, ZAZEN_KERNEL_OTHER_MACHINE,
 * ZAZEN_KERNEL_BIG_ENDIAN, ZAZEN_KERNEL_PAGE_SIZE, ZAZEN_KERNEL_COMPRESSION, ZAZEN_KERNEL_CORRUPT,
 * ZAZEN_KERNEL_NOT_A_KERNEL, ZAZEN_KERNEL_TOO_LARGE.
 * @param name of the file, for errors
 * @param maxBytes what there is room for, unpacked
 */
export async function parseKernel(file: Uint8Array, name: string, maxBytes = maxImageBytes): Promise<Kernel> {
  let bytes = file;
  // A zboot image is an EFI program around a compressed Image; Debian and others also gzip the Image as it is. Two
  // rounds are enough for any mix of the two, and bound what a hostile file can make us do.
  for (let round = 0; round < 2; round++) {
    const payload = isZboot(bytes) ? zbootPayload(bytes, name) : bytes;
    if (payload === bytes && detectCompression(bytes) === 'none') break;
    bytes = await unpack(payload, name, Math.min(maxBytes, maxImageBytes));
  }
  return parseImage(bytes, name);
}

function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function isZboot(bytes: Uint8Array): boolean {
  const view = viewOf(bytes);
  return view.toString('latin1', 0, 2) === 'MZ' && view.toString('latin1', 4, 8) === 'zimg';
}

function zbootPayload(bytes: Uint8Array, name: string): Uint8Array {
  const view = viewOf(bytes);
  if (view.length < headerBytes) fail('ZAZEN_KERNEL_TRUNCATED', name, 'the kernel is truncated in its header');
  const offset = view.readUInt32LE(8);
  const size = view.readUInt32LE(12);
  const compression = view.toString('latin1', 24, 56).split('\0')[0]!;
  if (offset + size > view.length) {
    const message = `the kernel is truncated: its header promises ${offset + size} bytes, it has ${view.length}`;
    fail('ZAZEN_KERNEL_TRUNCATED', name, message);
  }
  const payload = bytes.subarray(offset, offset + size);
  const known = compression === 'gzip' || compression === 'zstd' || compression === 'xzkern' || compression === 'xz';
  if (!known) {
    const printable = compression.replaceAll(/[^\x20-\x7e]/g, '?');
    fail('ZAZEN_KERNEL_COMPRESSION', name, `the kernel is compressed with "${printable}", which is not supported`);
  }
  if (detectCompression(payload) === 'none') fail('ZAZEN_KERNEL_CORRUPT', name, 'the compressed kernel is corrupt');
  return payload;
}

async function unpack(payload: Uint8Array, name: string, maxBytes: number): Promise<Uint8Array> {
  try {
    return await decompress(payload, maxBytes);
  } catch (cause) {
    const reason = cause instanceof DecompressError ? cause.reason : 'corrupt';
    if (reason === 'truncated') fail('ZAZEN_KERNEL_TRUNCATED', name, 'the compressed kernel is truncated', cause);
    if (reason === 'tooLarge') refuseTooLarge('kernel', name, maxBytes);
    fail('ZAZEN_KERNEL_CORRUPT', name, `the compressed kernel is corrupt: ${(cause as Error).message}`, cause);
  }
}

function parseImage(image: Uint8Array, name: string): Kernel {
  const view = viewOf(image);
  if (view.length < headerBytes || view.readUInt32LE(0x38) !== 0x644d5241) refuseOther(view, name);
  const flagBits = view.readUInt32LE(0x18);
  if (flagBits & 1) fail('ZAZEN_KERNEL_BIG_ENDIAN', name, 'the kernel is big-endian; only little-endian ones can run');
  const pageSize = (flagBits >> 1) & 3;
  if (pageSize > 1) {
    const words = `the kernel uses pages of ${pageSize === 2 ? 16 : 64} KiB; only 4 KiB is supported`;
    fail('ZAZEN_KERNEL_PAGE_SIZE', name, words);
  }
  const textOffset = Number(view.readBigUInt64LE(8));
  const declaredSize = Number(view.readBigUInt64LE(0x10));
  if (textOffset > 2 ** 30 || declaredSize > 2 ** 32) {
    fail('ZAZEN_KERNEL_CORRUPT', name, 'the kernel header is corrupt');
  }
  const fileEnd = peFileEnd(view);
  if (view.length < fileEnd) {
    const words = `the kernel is truncated: its header promises ${fileEnd} bytes, it has ${view.length}`;
    fail('ZAZEN_KERNEL_TRUNCATED', name, words);
  }
  // Before Linux 3.17 image_size was 0; such a kernel needs its own size and an unknown amount of zeroed data.
  const imageSize = Math.max(declaredSize, image.length);
  const flags: Kernel['flags'] = { pageSizeBytes: pageSize === 1 ? 4096 : 0, placeAnywhere: (flagBits & 8) !== 0 };
  return { image, textOffset, imageSize, flags };
}

/** The size that the PE section table asks of the file, or 0: the only trace of an Image's own length in it. */
function peFileEnd(view: Buffer): number {
  const pe = view.readUInt32LE(0x3c);
  if (view.toString('latin1', 0, 2) !== 'MZ' || pe < headerBytes || pe > 0x1000) return 0;
  if (pe + 24 > view.length) return pe + 24;
  if (view.toString('latin1', pe, pe + 4) !== 'PE\0\0') return 0;
  const sectionCount = Math.min(view.readUInt16LE(pe + 6), 96);
  const table = pe + 24 + view.readUInt16LE(pe + 20);
  let end = table + sectionCount * 40;
  if (end > view.length) return end;
  for (let at = table; at < table + sectionCount * 40; at += 40) {
    end = Math.max(end, view.readUInt32LE(at + 16) + view.readUInt32LE(at + 20));
  }
  return end;
}

const elfMachines = new Map([
  [3, 'i386'], [8, 'MIPS'], [20, 'PowerPC'], [21, 'PowerPC64'], [22, 's390'], [40, '32-bit Arm'], [62, 'x86-64'],
  [243, 'RISC-V'], [258, 'LoongArch'],
]);

/** Says what the file is instead of an arm64 Image. */
function refuseOther(view: Buffer, name: string): never {
  const other = (machine: string): never =>
    fail('ZAZEN_KERNEL_OTHER_MACHINE', name, `this is a kernel for ${machine}; an arm64 one is needed`);
  if (view.length >= 0x206 && view.toString('latin1', 0x202, 0x206) === 'HdrS') other('x86');
  if (view.length >= 20 && view.readUInt32BE(0) === 0x7f454c46) {
    const machine = view[5] === 2 ? view.readUInt16BE(18) : view.readUInt16LE(18);
    if (machine !== 183) other(elfMachines.get(machine) ?? `ELF machine ${machine}`);
    fail('ZAZEN_KERNEL_NOT_A_KERNEL', name, 'this is an ELF file (vmlinux?), not a bootable arm64 Image');
  }
  if (view.length >= 0x28 && view.readUInt32LE(0x24) === 0x016f2818) other('32-bit Arm');
  if (view.length >= 0x40 && view.readUInt32LE(0x38) === 0x05435352) other('RISC-V');
  if (view.length >= 2 && view.length < headerBytes && view.toString('latin1', 0, 2) === 'MZ') {
    fail('ZAZEN_KERNEL_TRUNCATED', name, 'the kernel is truncated in its header');
  }
  if (view.length === 0) fail('ZAZEN_KERNEL_TRUNCATED', name, 'the kernel file is empty');
  fail('ZAZEN_KERNEL_NOT_A_KERNEL', name, 'this is not an arm64 Linux kernel');
}
