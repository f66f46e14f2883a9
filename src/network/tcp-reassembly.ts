// Segments that came before the ones that they follow: kept in order of their sequence numbers, without overlaps, up to
// a bound. What does not fit is dropped and will be sent again.

import { distance } from './tcp-segment.ts';

const MAX_PIECES = 64;

interface Piece {
  sequence: number;
  bytes: Uint8Array;
}

export class Reassembly {
  readonly #pieces: Piece[] = [];
  #bytes = 0;

  /** Bytes held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keeps a copy of what of `payload`, which begins at `sequence`, is not held yet. */
  insert(sequence: number, payload: Uint8Array): void {
    let from = sequence;
    let rest = payload;
    let index = 0;
    for (; index < this.#pieces.length && rest.length > 0; index++) {
      const piece = this.#pieces[index]!;
      const before = distance(piece.sequence, from);
      if (before > 0) {
        const gap = Math.min(before, rest.length);
        if (!this.#keep(index, from, rest.subarray(0, gap))) return;
        index++;
        from = (from + gap) >>> 0;
        rest = rest.subarray(gap);
      }
      const covered = distance(piece.sequence + piece.bytes.length, from);
      if (covered > 0) {
        from = (from + Math.min(covered, rest.length)) >>> 0;
        rest = rest.subarray(Math.min(covered, rest.length));
      }
    }
    if (rest.length > 0) this.#keep(index, from, rest);
  }

  /** The bytes from `sequence` on if they are held, else undefined; they and all before them are forgotten. */
  take(sequence: number): Uint8Array | undefined {
    for (let piece = this.#pieces[0]; piece !== undefined; piece = this.#pieces[0]) {
      const skip = distance(sequence, piece.sequence);
      if (skip < 0) return undefined;
      this.#pieces.shift();
      this.#bytes -= piece.bytes.length;
      if (skip < piece.bytes.length) return piece.bytes.subarray(skip);
    }
    return undefined;
  }

  clear(): void {
    this.#pieces.length = 0;
    this.#bytes = 0;
  }

  #keep(index: number, sequence: number, bytes: Uint8Array): boolean {
    if (this.#pieces.length >= MAX_PIECES) return false;
    this.#pieces.splice(index, 0, { sequence, bytes: bytes.slice() });
    this.#bytes += bytes.length;
    return true;
  }
}
