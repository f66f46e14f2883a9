// CRC32 and CRC32C over one to eight bytes, as the A64 instructions compute them: bits reflected, no inversion.

import type { ComputeContext } from './context.ts';

/** Reflected polynomials: 0x04C11DB7 (CRC32) and 0x1EDC6F41 (CRC32C). */
const tables = [0xedb88320, 0x82f63b78].map(polynomial => Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ polynomial : crc >>> 1;
  return crc;
}));

/** @param kind log2 of the byte count in bits 0 and 1; bit 2 set for CRC32C. `high` counts for eight bytes only. */
export function crc32(_context: ComputeContext, accumulator: number, low: number, high: number, kind: number): number {
  const table = tables[kind >> 2]!;
  const sizeBytes = 1 << (kind & 3);
  let crc = accumulator;
  let data = low;
  for (let i = 0; i < sizeBytes; i++) {
    if (i === 4) data = high;
    crc = table[(crc ^ data) & 0xff]! ^ (crc >>> 8);
    data >>>= 8;
  }
  return crc;
}
