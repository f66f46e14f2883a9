// The host's end of the console page. The guest can write anything there at any time, the host's own indices included,
// so nothing is believed for longer than one call: indices are read once and compared, and a producer that is further
// ahead of its consumer than the ring is long means "nothing to do" until the guest puts it right. All that is known of
// the rings is in the page, so a page that is saved and restored needs nothing beside it.

import { XENCONS_INTERFACE, XENCONS_IN_BYTES, XENCONS_OUT_BYTES } from '../../abi/xen-console.ts';
import { assert } from '../../base/assert.ts';

const { at, sizeBytes: INTERFACE_BYTES } = XENCONS_INTERFACE;
const FIRST_WORD = at.in_cons;
type Index = 'in_cons' | 'in_prod' | 'out_cons' | 'out_prod';

/** A console's bytes, both ways, as its back end takes and gives them. */
export interface ConsoleTransport {
  /** How often the guest's indices were nonsense. */
  readonly badIndices: number;
  hasOutput(): boolean;
  /** Takes what the guest has put out, in order. Empty if there is nothing. */
  takeOutput(): Buffer;
  /** Gives the guest as much as fits. @returns how many bytes that was */
  putInput(bytes: Uint8Array): number;
}

export class ConsoleRing implements ConsoleTransport {
  /** How often indices were found that cannot be. */
  badIndices = 0;
  readonly #pageNow: () => Uint8Array;
  #page: Uint8Array | undefined;
  #words!: Int32Array;

  /** @param page the page as it is now: asked for at each use, since copy-on-write may move it */
  constructor(page: () => Uint8Array) {
    this.#pageNow = page;
  }

  hasOutput(): boolean {
    this.#map();
    return this.#load('out_cons') !== this.#load('out_prod');
  }

  takeOutput(): Buffer {
    const page = this.#map();
    const consumed = this.#load('out_cons');
    const count = this.#between(consumed, this.#load('out_prod'), XENCONS_OUT_BYTES, 0);
    const bytes = Buffer.allocUnsafe(count);
    if (count === 0) return bytes;
    const start = consumed % XENCONS_OUT_BYTES;
    const first = Math.min(count, XENCONS_OUT_BYTES - start);
    bytes.set(page.subarray(at.out + start, at.out + start + first));
    bytes.set(page.subarray(at.out, at.out + count - first), first);
    this.#store('out_cons', consumed + count);
    return bytes;
  }

  putInput(bytes: Uint8Array): number {
    const page = this.#map();
    const produced = this.#load('in_prod');
    const waiting = this.#between(this.#load('in_cons'), produced, XENCONS_IN_BYTES, XENCONS_IN_BYTES);
    const count = Math.min(bytes.length, XENCONS_IN_BYTES - waiting);
    if (count === 0) return 0;
    const start = produced % XENCONS_IN_BYTES;
    const first = Math.min(count, XENCONS_IN_BYTES - start);
    page.set(bytes.subarray(0, first), at.in + start);
    page.set(bytes.subarray(first, count), at.in);
    this.#store('in_prod', produced + count);
    return count;
  }

  /** Bytes from `consumed` to `produced`, or `otherwise` if that is more than the ring has. */
  #between(consumed: number, produced: number, ringBytes: number, otherwise: number): number {
    const count = (produced - consumed) >>> 0;
    if (count <= ringBytes) return count;
    this.badIndices++;
    return otherwise;
  }

  #map(): Uint8Array {
    const page = this.#pageNow();
    if (page !== this.#page) {
      assert(page.length >= INTERFACE_BYTES && page.byteOffset % 4 === 0, 'the console page is whole and aligned');
      this.#page = page;
      this.#words = new Int32Array(page.buffer, page.byteOffset + FIRST_WORD, (INTERFACE_BYTES - FIRST_WORD) / 4);
    }
    return page;
  }

  #load(index: Index): number {
    return Atomics.load(this.#words, (at[index] - FIRST_WORD) / 4) >>> 0;
  }

  #store(index: Index, value: number): void {
    Atomics.store(this.#words, (at[index] - FIRST_WORD) / 4, value | 0);
  }
}
