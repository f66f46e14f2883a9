// Memory of one request, in several places.

/** Memory for one request, in order; no piece is empty. All of it in Wasm memories, whose pages are pages. */
export type Pieces = readonly Uint8Array[];

export function bytesOf(pieces: Pieces): number {
  let bytes = 0;
  for (const piece of pieces) bytes += piece.length;
  return bytes;
}

/** The pieces without their first bytes. */
export function skipBytes(pieces: Pieces, bytes: number): Pieces {
  let first = 0;
  while (first < pieces.length && bytes >= pieces[first]!.length) bytes -= pieces[first++]!.length;
  if (bytes === 0) return first === 0 ? pieces : pieces.slice(first);
  return [pieces[first]!.subarray(bytes), ...pieces.slice(first + 1)];
}

/** Part of what the pieces hold, as pieces of the same memory. */
export function slicePieces(pieces: Pieces, from: number, sizeBytes: number): Pieces {
  const slice: Uint8Array[] = [];
  let at = 0;
  for (const piece of pieces) {
    const first = Math.max(0, from - at);
    const end = Math.min(piece.length, from + sizeBytes - at);
    if (first < end) slice.push(first === 0 && end === piece.length ? piece : piece.subarray(first, end));
    at += piece.length;
    if (at >= from + sizeBytes) break;
  }
  return slice;
}
