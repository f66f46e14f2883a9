// Bytes on their way to the guest that it has not acknowledged: a list of the host's chunks, none of them copied until
// it goes into a frame.
//
//   head │ chunk │ chunk │ chunk │ …      offset 0 is the oldest byte that is not acknowledged

import { giveBack } from './chunk-pool.ts';

const CHUNK_OVERHEAD_BYTES = 256;

export class SendQueue {
  #chunks: Uint8Array[] = [];
  /** First chunk in use, and how much of it is acknowledged. */
  #first = 0;
  #dropped = 0;
  #length = 0;
  /** Where the last copy ended, as chunk and offset of its first byte: copies mostly go on there. */
  #cursorChunk = 0;
  #cursorOffset = 0;

  /** Bytes held. */
  get length(): number {
    return this.#length;
  }

  /** What the bytes cost, with the objects that hold them. */
  get heldBytes(): number {
    return this.#length + (this.#chunks.length - this.#first) * CHUNK_OVERHEAD_BYTES;
  }

  /** Keeps the chunk, which is the queue's from now on. */
  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  /** Forgets the oldest `count` bytes. */
  drop(count: number): void {
    this.#length -= count;
    this.#dropped += count;
    while (this.#first < this.#chunks.length && this.#dropped >= this.#chunks[this.#first]!.length) {
      this.#dropped -= this.#chunks[this.#first]!.length;
      giveBack(this.#chunks[this.#first]!);
      this.#chunks[this.#first] = EMPTY;
      this.#first++;
    }
    this.#cursorOffset -= count;
    if (this.#cursorChunk < this.#first) this.#rewind();
    if (this.#first > 32 && this.#first * 2 > this.#chunks.length) {
      this.#chunks = this.#chunks.slice(this.#first);
      this.#cursorChunk -= this.#first;
      this.#first = 0;
    }
  }

  clear(): void {
    for (const chunk of this.#chunks.slice(this.#first)) giveBack(chunk);
    this.#chunks = [];
    this.#first = this.#dropped = this.#length = this.#cursorChunk = this.#cursorOffset = 0;
  }

  /** Copies `count` bytes from `offset` on, all of which are held, to `target` at `at`. */
  copy(offset: number, count: number, target: Uint8Array, at: number): void {
    if (offset < this.#cursorOffset) this.#rewind();
    let done = 0;
    while (done < count) {
      const chunk = this.#chunks[this.#cursorChunk]!;
      const from = offset + done - this.#cursorOffset;
      if (from >= chunk.length) {
        this.#cursorOffset += chunk.length;
        this.#cursorChunk++;
        continue;
      }
      const take = Math.min(count - done, chunk.length - from);
      target.set(from === 0 && take === chunk.length ? chunk : chunk.subarray(from, from + take), at + done);
      done += take;
    }
  }

  #rewind(): void {
    this.#cursorChunk = this.#first;
    this.#cursorOffset = -this.#dropped;
  }
}

const EMPTY = new Uint8Array(0);
