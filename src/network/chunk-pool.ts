// Memory for bytes on their way between host and guest, used again: were it left to the garbage collector, which sees
// megabytes go by, it would run many times a second. Only what is at least half a chunk is worth one.
//
//   copyChunk ──► socket or send queue ──► giveBack        memory of others, and what is short, may be given back as well

export const CHUNK_BYTES = 65536;
/** Kept at most, 4 MiB. */
const FREE_CHUNKS = 64;

const free: Uint8Array[] = [];
/** All that are in use or free. */
const ours = new WeakSet<ArrayBufferLike>();

/** @returns a copy, to be kept until it is given back, once; at most CHUNK_BYTES */
export function copyChunk(bytes: Uint8Array): Uint8Array {
  if (bytes.length < CHUNK_BYTES / 2 || bytes.length > CHUNK_BYTES) return Buffer.from(bytes);
  let chunk = free.pop();
  if (chunk === undefined) {
    chunk = new Uint8Array(CHUNK_BYTES);
    ours.add(chunk.buffer);
  }
  chunk.set(bytes);
  return chunk.subarray(0, bytes.length);
}

/** Nobody looks at it any more. */
export function giveBack(chunk: Uint8Array): void {
  if (ours.has(chunk.buffer) && free.length < FREE_CHUNKS) free.push(new Uint8Array(chunk.buffer));
}
