// What a guest that reads a disk from front to back will ask for next: read by the disk thread while it has nothing else to
// do and the guest works on what it got last. The request itself is then a copy.
//
//   guest    ask ─► … work … ─► ask ─► … work … ─► ask            requests, each where the one before it ended
//   thread       read       read on    copy, read on    copy
//
// After large requests it reads on for one more of them, after small ones for a good many: the disk takes about as long for
// one page as for ten.
//
// Only of a disk that nobody but this guest may write to: what it writes comes by the same ring, and what was read before
// that is forgotten.

import { takeBuffer } from './buffers.ts';

const AHEAD_BYTES = 2 ** 20;
/** So many of the last request's size are read at once, as far as there is room. */
const AHEAD_REQUESTS = 32;
/** So many requests in a row are a reader from front to back; small ones follow each other by chance, too. */
const LARGE_BYTES = 2 ** 16;
const LARGE_RUN = 2;
const SMALL_RUN = 8;
/** Rings that it is done for at a time. */
const BUFFERS_MAX = 4;

/** Buffers, shared by a thread's rings: who needs one when all are taken gets that of who has had his for longest. */
export class ReadAheadBuffers {
  readonly #owners: ReadAhead[] = [];

  take(owner: ReadAhead): Uint8Array {
    const before = this.#owners.length < BUFFERS_MAX ? undefined : this.#owners.shift()!;
    this.#owners.push(owner);
    return before?.giveUp() ?? takeBuffer(AHEAD_BYTES).bytes;
  }
}

/** Of one ring. Places and sizes are bytes of the disk. */
export class ReadAhead {
  readonly #buffers: ReadAheadBuffers;
  readonly #diskBytes: number;
  #buffer: Uint8Array | undefined;
  /** What the buffer has. */
  #from = 0;
  #to = 0;
  /** Where the last read ended. */
  #next = 0;
  /** Of requests that followed each other, and the size of the last of them. */
  #run = 0;
  #requestBytes = 0;

  constructor(buffers: ReadAheadBuffers, diskBytes: number) {
    this.#buffers = buffers;
    this.#diskBytes = diskBytes;
  }

  /** @returns what was there when it was read, if all of it was */
  find(offset: number, sizeBytes: number): Uint8Array | undefined {
    if (offset < this.#from || offset + sizeBytes > this.#to) return undefined;
    return this.#buffer!.subarray(offset - this.#from, offset - this.#from + sizeBytes);
  }

  /** A read has been answered. */
  note(offset: number, sizeBytes: number): void {
    this.#run = offset === this.#next ? this.#run + 1 : 1;
    this.#requestBytes = sizeBytes;
    this.#next = offset + sizeBytes;
  }

  /** The disk may be another one from here on. */
  forget(): void {
    this.#to = this.#from = 0;
    this.#run = 0;
  }

  /** Whether there is something to be read now. */
  get isDue(): boolean {
    const hasMore = this.#next >= this.#from && this.#next < this.#to;
    const run = this.#requestBytes >= LARGE_BYTES ? LARGE_RUN : SMALL_RUN;
    return this.#run >= run && !hasMore && this.#next < this.#diskBytes;
  }

  /** Whether a request goes on where the last one ended. */
  isNext(offset: number): boolean {
    return offset === this.#next;
  }

  /** @param read puts what is at a place into memory that requests may use; returns how much that was */
  readOn(read: (into: Uint8Array, offset: number) => number, atMostBytes = AHEAD_BYTES): void {
    this.#buffer ??= this.#buffers.take(this);
    const sizeBytes = Math.min(atMostBytes, AHEAD_REQUESTS * this.#requestBytes, this.#diskBytes - this.#next);
    this.#from = this.#to = this.#next;
    this.#to += read(this.#buffer.subarray(0, sizeBytes), this.#next);
    // The end of the file, or of its good part: that is found out by who asks for it.
    if (this.#to === this.#from) this.#run = 0;
  }

  giveUp(): Uint8Array {
    const buffer = this.#buffer!;
    this.#buffer = undefined;
    this.forget();
    return buffer;
  }
}
