// The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words. Sums are kept
// unfolded in a number; `fold` brings one to 16 bits.

const BLOCK_WORDS = 16384;
/** From here on a view of 32-bit words pays for its making. */
const VIEW_MIN_BYTES = 256;

export function fold(sum: number): number {
  // All sums of packets stay below 2^32.
  let folded = (sum & 0xffff) + (sum >>> 16);
  folded = (folded & 0xffff) + (folded >>> 16);
  return folded;
}

/**
 * Adds the bytes `start` to `end` as big-endian words to `sum`; an odd last byte counts as the high half of a word.
 * Sums of parts may be added if all parts but the last have an even number of bytes.
 */
export function addBytes(sum: number, bytes: Uint8Array, start: number, end: number): number {
  const length = end - start;
  if (length >= VIEW_MIN_BYTES && ((bytes.byteOffset + start) & 1) === 0) return addWords(sum, bytes, start, end);
  let total = 0;
  let i = start;
  for (; i + 1 < end; i += 2) total += (bytes[i]! << 8) | bytes[i + 1]!;
  if (i < end) total += bytes[i]! << 8;
  return sum + total;
}

/**
 * From an even place on, two 16-bit words at a time. Words are read in the order of the hosts that Zazen runs on, which
 * is little-endian: the bytes of a sum of swapped words are swapped at the end.
 */
function addWords(sum: number, bytes: Uint8Array, start: number, end: number): number {
  let swapped = 0;
  let at = start;
  if (((bytes.byteOffset + at) & 2) !== 0) {
    swapped = bytes[at]! | (bytes[at + 1]! << 8);
    at += 2;
  }
  const count = (end - at) >> 2;
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset + at, count);
  for (let block = 0; block < count; block += BLOCK_WORDS) {
    const blockEnd = Math.min(count, block + BLOCK_WORDS);
    let low = 0; // both stay below 2^31: integers for the compiler
    let high = 0;
    for (let i = block; i < blockEnd; i++) {
      const word = words[i]!;
      low = (low + (word & 0xffff)) | 0;
      high = (high + (word >>> 16)) | 0;
    }
    swapped += low + high;
  }
  at += count * 4;
  if (at + 1 < end) {
    swapped += bytes[at]! | (bytes[at + 1]! << 8);
    at += 2;
  }
  if (at < end) swapped += bytes[at]!;
  const folded = fold(swapped);
  return sum + (((folded & 0xff) << 8) | (folded >> 8));
}

/** Sum of the pseudo-header of TCP or UDP over IPv4. */
export function pseudoHeaderSum(source: number, destination: number, protocol: number, lengthBytes: number): number {
  return (source >>> 16) + (source & 0xffff) + (destination >>> 16) + (destination & 0xffff) + protocol + lengthBytes;
}

/** The field's value for a sum. */
export function finish(sum: number): number {
  return ~fold(sum) & 0xffff;
}
