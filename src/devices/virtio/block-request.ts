// A request to a virtio block device (OASIS Virtual I/O Device 1.2, 5.2.6):
//
//   readable: header (type, sector), data to write     writable: data that is read, then the status byte

export const BLOCK_TYPE = { in: 0, out: 1, flush: 4, getId: 8, discard: 11 } as const;
export const BLOCK_STATUS = { ok: 0, ioError: 1, unsupported: 2 } as const;
export const BLOCK_HEADER_BYTES = 16;

const u32 = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;

/** Of a header that was copied; one of BLOCK_TYPE, or anything. */
export const typeOf = (header: Uint8Array): number => u32(header, 0);
/** Exact below 2^53, which is beyond every disk. */
export const sectorOf = (header: Uint8Array): number => u32(header, 12) * 2 ** 32 + u32(header, 8);
