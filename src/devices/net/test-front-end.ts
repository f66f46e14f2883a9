// The guest's half of a network card, for tests: memory, grants, event channels, and rings as xen-netfront of Linux
// drives them, written from io/netif.h and io/ring.h. And a network that keeps what it is given.

import { GNTST } from '../../abi/xen-grant-table.ts';
import { NETIF_RING_SLOTS } from '../../abi/xen-net.ts';
import type { GuestBus, GuestPage } from '../../hypervisor/guest-bus.ts';
import type { FramePort, Offload } from '../../network/frame-port.ts';

const PAGE_BYTES = 4096;
const HEADER = { req_prod: 0, req_event: 1, rsp_prod: 2, rsp_event: 3 } as const;

/** Grant N is of frame N; what is granted is in `granted`, with whether it may be written to. */
export class TestGuest implements GuestBus {
  readonly domainId = 7;
  readonly memory: Uint8Array;
  readonly granted = new Map<number, boolean>();
  /** Host's port to callback. */
  readonly callbacks = new Map<number, () => void>();
  readonly notified: number[] = [];
  inUse = 0;
  isBindRefused = false;
  /** How often there is no frame for a grant. */
  shortage = 0;
  #nextPort = 1;

  constructor(pages: number) {
    this.memory = new Uint8Array(new SharedArrayBuffer(pages * PAGE_BYTES));
  }

  map(ref: number, write: boolean): GuestPage | number {
    const mayWrite = this.granted.get(ref);
    if (mayWrite === undefined || (ref + 1) * PAGE_BYTES > this.memory.length) return GNTST.bad_gntref;
    if (write && !mayWrite) return GNTST.general_error;
    if (this.shortage > 0) {
      this.shortage--;
      return GNTST.eagain;
    }
    this.inUse++;
    return { mfn: ref };
  }
  unmap(): void {
    this.inUse--;
  }
  bind(_remotePort: number, callback: () => void): number {
    if (this.isBindRefused) return -22;
    this.callbacks.set(this.#nextPort, callback);
    return this.#nextPort++;
  }
  notify(port: number): void {
    this.notified.push(port);
  }
  close(port: number): void {
    this.callbacks.delete(port);
  }
  /** All of its events happen. */
  kick(): void {
    for (const callback of [...this.callbacks.values()]) callback();
  }

  page(mfn: number): Buffer {
    return Buffer.from(this.memory.buffer, mfn * PAGE_BYTES, PAGE_BYTES);
  }
}

export class TestRing {
  readonly page: number;
  readonly #guest: TestGuest;
  readonly #slotBytes: number;
  produced: number;
  seen: number;

  /** @param page frame of the ring, granted here */
  constructor(guest: TestGuest, page: number, slotBytes: number, position = 0) {
    this.#guest = guest;
    this.page = page;
    this.#slotBytes = slotBytes;
    guest.granted.set(page, true);
    this.produced = this.seen = position >>> 0;
    for (const name of ['req_prod', 'rsp_prod'] as const) this.set(name, position);
    for (const name of ['req_event', 'rsp_event'] as const) this.set(name, position + 1);
  }

  get(name: keyof typeof HEADER): number {
    return this.#guest.page(this.page).readUInt32LE(HEADER[name] * 4);
  }
  set(name: keyof typeof HEADER, value: number): void {
    this.#guest.page(this.page).writeUInt32LE(value >>> 0, HEADER[name] * 4);
  }
  slot(index: number): Buffer {
    const at = 64 + (index % NETIF_RING_SLOTS) * this.#slotBytes;
    return this.#guest.page(this.page).subarray(at, at + this.#slotBytes);
  }
  put(...words: readonly number[]): void {
    const slot = this.slot(this.produced);
    words.forEach((word, i) => slot.writeUInt32LE(word >>> 0, i * 4));
    this.produced = (this.produced + 1) >>> 0;
  }
  push(): void {
    this.set('req_prod', this.produced);
  }
  /** Slots of responses that have come since the last time. */
  responses(): Buffer[] {
    const slots: Buffer[] = [];
    for (; this.seen !== this.get('rsp_prod'); this.seen = (this.seen + 1) >>> 0) {
      slots.push(Buffer.from(this.slot(this.seen)));
    }
    this.set('rsp_event', this.seen + 1);
    return slots;
  }
}

/** A tx request in its three words. */
export const txSlot = (ref: number, offset: number, flags: number, id: number, size: number): number[] =>
  [ref, offset | (flags << 16), id | (size << 16)];
/** A GSO slot. */
export const gsoSlot = (type: number, gsoType: number, size: number, more = 0): number[] =>
  [type | (more << 8) | (size << 16), gsoType, 0];

export class TestNetwork implements FramePort {
  readonly frames: { bytes: Buffer; offload: Offload }[] = [];
  isFull = false;
  readies = 0;
  isClosed = false;

  send(frame: Uint8Array, offload: Offload): boolean {
    if (this.isFull) return false;
    this.frames.push({ bytes: Buffer.from(frame), offload: { ...offload } });
    return true;
  }
  ready(): void {
    this.readies++;
  }
  close(): void {
    this.isClosed = true;
  }
}
