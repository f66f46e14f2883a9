// The guest's half of a console page, for tests: what hvc_xen of Linux does, written from io/console.h.

import { XENCONS_INTERFACE, XENCONS_IN_BYTES, XENCONS_OUT_BYTES } from '../../abi/xen-console.ts';

const { at } = XENCONS_INTERFACE;
export type IndexName = 'in_cons' | 'in_prod' | 'out_cons' | 'out_prod';

export class TestFrontEnd {
  page = new Uint8Array(new SharedArrayBuffer(4096));
  notifications = 0;

  index(name: IndexName): number {
    return Atomics.load(new Uint32Array(this.page.buffer, this.page.byteOffset), at[name] / 4);
  }

  setIndex(name: IndexName, value: number): void {
    Atomics.store(new Uint32Array(this.page.buffer, this.page.byteOffset), at[name] / 4, value >>> 0);
  }

  /** Starts all indices somewhere. */
  startAt(outIndex: number, inIndex: number): void {
    for (const name of ['out_cons', 'out_prod'] as const) this.setIndex(name, outIndex);
    for (const name of ['in_cons', 'in_prod'] as const) this.setIndex(name, inIndex);
  }

  /** @returns how many bytes fitted */
  write(bytes: Uint8Array): number {
    const produced = this.index('out_prod');
    const room = XENCONS_OUT_BYTES - ((produced - this.index('out_cons')) >>> 0);
    const count = Math.min(room, bytes.length);
    for (let i = 0; i < count; i++) this.page[at.out + (((produced + i) >>> 0) % XENCONS_OUT_BYTES)] = bytes[i]!;
    this.setIndex('out_prod', produced + count);
    return count;
  }

  print(text: string): void {
    this.write(Buffer.from(text));
  }

  read(maxBytes = Infinity): Buffer {
    const consumed = this.index('in_cons');
    const count = Math.min(maxBytes, (this.index('in_prod') - consumed) >>> 0);
    const bytes = Buffer.alloc(count);
    for (let i = 0; i < count; i++) bytes[i] = this.page[at.in + (((consumed + i) >>> 0) % XENCONS_IN_BYTES)]!;
    this.setIndex('in_cons', consumed + count);
    return bytes;
  }
}
