// Decompression of the containers that Debian and Linux use: xz, gzip, zstd. One place knows the magics and the bounds;
// callers turn a failure into their own error. Everything here may be fed hostile bytes: the output is bounded.

import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import xz from 'xz-decompress';

export type Compression = 'none' | 'gzip' | 'xz' | 'zstd';

/** Thrown for bytes that are not what their header says, or that end too early, or that unpack to more than allowed. */
export class DecompressError extends Error {
  override name = 'DecompressError';
  /** The input ended before the format said so; it unpacks to more than allowed; it is not what its header says. */
  readonly reason: 'truncated' | 'tooLarge' | 'corrupt';

  constructor(message: string, reason: DecompressError['reason'], cause?: unknown) {
    super(message, { cause });
    this.reason = reason;
  }
}

/** Tells the container by its first bytes. */
export function detectCompression(bytes: Uint8Array): Compression {
  const [a, b, c, d, e, f] = bytes;
  if (a === 0x1f && b === 0x8b) return 'gzip';
  if (a === 0xfd && b === 0x37 && c === 0x7a && d === 0x58 && e === 0x5a && f === 0) return 'xz';
  if (a === 0x28 && b === 0xb5 && c === 0x2f && d === 0xfd) return 'zstd';
  return 'none';
}

/** A stream of the decompressed bytes of `bytes`; an xz input is never held decompressed as a whole. */
export function decompressedStream(bytes: Uint8Array): ReadableStream<Uint8Array> {
  const source = streamOf(bytes);
  switch (detectCompression(bytes)) {
    case 'none':
      return source;
    case 'xz':
      return new xz.XzReadableStream(source);
    case 'gzip':
    case 'zstd':
      return streamOf(decompressWithZlib(bytes, 4 * 2 ** 30 - 1));
  }
}

/**
 * The decompressed bytes of `bytes`, whatever their container; bytes in no known container come back as they are.
 * Throws DecompressError.
 */
export async function decompress(bytes: Uint8Array, maxSizeBytes = 2 ** 30): Promise<Uint8Array> {
  switch (detectCompression(bytes)) {
    case 'none':
      return bytes;
    case 'gzip':
    case 'zstd':
      return decompressWithZlib(bytes, maxSizeBytes);
    case 'xz':
      return decompressXz(bytes, maxSizeBytes);
  }
}

function decompressWithZlib(bytes: Uint8Array, maxOutputLength: number): Uint8Array {
  try {
    const unpack = detectCompression(bytes) === 'gzip' ? gunzipSync : zstdDecompressSync;
    return unpack(bytes, { maxOutputLength });
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ERR_BUFFER_TOO_LARGE') throw new DecompressError('unpacks to more than is allowed', 'tooLarge', cause);
    throw new DecompressError((cause as Error).message, code === 'Z_BUF_ERROR' ? 'truncated' : 'corrupt', cause);
  }
}

async function decompressXz(bytes: Uint8Array, maxSizeBytes: number): Promise<Uint8Array> {
  // The stream decoder ends quietly at the end of a truncated input, so the footer is looked at here: an .xz file ends
  // with the magic "YZ" (possibly followed by padding in multiples of four zero bytes).
  let end = bytes.length;
  while (end >= 4 && end % 4 === 0 && bytes[end - 1] === 0) end -= 4;
  if (bytes[end - 2] !== 0x59 || bytes[end - 1] !== 0x5a) throw new DecompressError('unexpected end of file', 'truncated');
  const chunks: Uint8Array[] = [];
  let sizeBytes = 0;
  try {
    for await (const chunk of new xz.XzReadableStream(streamOf(bytes))) {
      sizeBytes += chunk.length;
      if (sizeBytes > maxSizeBytes) throw new DecompressError('unpacks to more than is allowed', 'tooLarge');
      chunks.push(chunk);
    }
  } catch (cause) {
    if (cause instanceof DecompressError) throw cause;
    throw new DecompressError(cause instanceof Error ? cause.message : String(cause), 'corrupt', cause);
  }
  return Buffer.concat(chunks, sizeBytes);
}

function streamOf(bytes: Uint8Array): ReadableStream<Uint8Array> {
  const chunkBytes = 1 << 18;
  let offset = 0;
  return new ReadableStream<Uint8Array>({
    pull(controller) {
      if (offset >= bytes.length) return controller.close();
      controller.enqueue(bytes.subarray(offset, (offset += chunkBytes)));
    },
  });
}
