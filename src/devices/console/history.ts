// The last bytes of a console's output, for who comes late. Takes memory only as output comes, up to its limit, so that
// a thousand silent guests cost nothing.

const FIRST_BYTES = 4096;

export class ConsoleHistory {
  readonly #limitBytes: number;
  /** Once it has its full size, a ring: the oldest byte is at #next. */
  #bytes = new Uint8Array(0);
  #next = 0;
  #full = false;
  /** Stands for what is kept: another object when that is something else. */
  version: object = {};

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  append(bytes: Uint8Array): void {
    this.version = {};
    const kept = bytes.subarray(Math.max(0, bytes.length - this.#limitBytes));
    this.#grow(kept.length);
    const first = Math.min(kept.length, this.#bytes.length - this.#next);
    this.#bytes.set(kept.subarray(0, first), this.#next);
    this.#bytes.set(kept.subarray(first), 0);
    this.#next += kept.length;
    if (this.#next < this.#limitBytes) return;
    this.#next -= this.#limitBytes;
    this.#full = true;
  }

  /** A copy of all that is kept, oldest first. */
  read(): Buffer {
    if (!this.#full) return Buffer.from(this.#bytes.subarray(0, this.#next));
    return Buffer.concat([this.#bytes.subarray(this.#next), this.#bytes.subarray(0, this.#next)]);
  }

  /** @param version that it had when `read` gave these bytes */
  restore(bytes: Uint8Array, version: object | undefined): void {
    if (version === this.version) return;
    this.#next = 0;
    this.#full = false;
    this.append(bytes);
    if (version !== undefined) this.version = version;
  }

  #grow(moreBytes: number): void {
    const needed = Math.min(this.#limitBytes, this.#next + moreBytes);
    if (this.#full || needed <= this.#bytes.length) return;
    const sizeBytes = Math.min(this.#limitBytes, Math.max(FIRST_BYTES, 2 * this.#bytes.length, needed));
    const grown = new Uint8Array(sizeBytes);
    grown.set(this.#bytes);
    this.#bytes = grown;
  }
}
