// The guest's half of a block device, for tests: memory, grants, an event channel, and a ring as xen-blkfront of Linux
// drives it, written from io/blkif.h and io/ring.h.

import { BLKIF_OP, blkifRequest, blkifRequestDiscard, blkifRequestIndirect, blkifRingSlots, blkifSegment } from '../../abi/xen-block.ts';
import { GNTST } from '../../abi/xen-grant-table.ts';
import type { GuestBus, GuestPage } from '../../hypervisor/guest-bus.ts';
import { pageMemory } from './test-disks.ts';

const PAGE_BYTES = 4096;
const HEADER = { req_prod: 0, req_event: 1, rsp_prod: 2, rsp_event: 3 } as const;

export interface TestSegment {
  readonly ref: number;
  readonly first: number;
  readonly last: number;
}

export interface TestResponse {
  readonly id: number;
  readonly operation: number;
  readonly status: number;
}

/** Grant N is of frame N; what is granted is in `granted`. */
export class TestGuest implements GuestBus {
  readonly domainId = 7;
  readonly memory: Uint8Array;
  /** By reference: whether it may be written to. */
  readonly granted = new Map<number, boolean>();
  /** By frame: how often it is in use. */
  readonly uses = new Map<number, number>();
  /** How often there is no frame for a grant. */
  shortage = 0;
  maps = 0;
  notifications = 0;
  callback: (() => void) | undefined;
  isBindRefused = false;
  onNotify: () => void = () => {};

  constructor(pages: number) {
    this.memory = pageMemory(pages * PAGE_BYTES);
  }

  page(mfn: number): Uint8Array {
    return this.memory.subarray(mfn * PAGE_BYTES, (mfn + 1) * PAGE_BYTES);
  }
  grantAll(first: number, count: number, write = true): void {
    for (let ref = first; ref < first + count; ref++) this.granted.set(ref, write);
  }

  map(ref: number, write: boolean): GuestPage | number {
    const mayWrite = this.granted.get(ref);
    if (mayWrite === undefined) return GNTST.bad_gntref;
    if (write && !mayWrite) return GNTST.general_error;
    if (this.shortage > 0) {
      this.shortage--;
      return GNTST.eagain;
    }
    this.maps++;
    this.uses.set(ref, (this.uses.get(ref) ?? 0) + 1);
    return { mfn: ref };
  }
  unmap({ mfn }: GuestPage): void {
    const uses = this.uses.get(mfn) ?? 0;
    if (uses === 0) throw new Error('given back more often than taken');
    this.uses.set(mfn, uses - 1);
  }
  /** In use at this moment. */
  get inUse(): number {
    return [...this.uses.values()].reduce((sum, uses) => sum + uses, 0);
  }

  bind(_remotePort: number, callback: () => void): number {
    if (this.isBindRefused) return -22;
    this.callback = callback;
    return 5;
  }
  notify(): void {
    this.notifications++;
    this.onNotify();
  }
  close(): void {
    this.callback = undefined;
  }
}

export class TestRing {
  readonly slots: number;
  readonly #guest: TestGuest;
  readonly #pages: readonly number[];
  #produced = 0;
  #seen = 0;
  #nextId = 1;

  /** @param pages frames of the ring, granted here */
  constructor(guest: TestGuest, pages: readonly number[], position = 0) {
    this.#guest = guest;
    this.#pages = pages;
    this.slots = blkifRingSlots(pages.length * PAGE_BYTES);
    for (const page of pages) guest.granted.set(page, true);
    this.#produced = this.#seen = position >>> 0;
    for (const name of ['req_prod', 'rsp_prod'] as const) this.setIndex(name, position);
    for (const name of ['req_event', 'rsp_event'] as const) this.setIndex(name, position + 1);
  }

  get #header(): Uint32Array {
    return new Uint32Array(this.#guest.memory.buffer, this.#pages[0]! * PAGE_BYTES, 4);
  }
  index(name: keyof typeof HEADER): number {
    return this.#header[HEADER[name]]!;
  }
  setIndex(name: keyof typeof HEADER, value: number): void {
    this.#header[HEADER[name]] = value >>> 0;
  }

  /** Puts bytes into the next slot, without telling. */
  put(slot: Uint8Array): void {
    this.#access(this.#produced, slot, true);
    this.#produced = (this.#produced + 1) >>> 0;
    this.setIndex('req_prod', this.#produced);
  }

  #access(index: number, bytes: Uint8Array, isWrite: boolean): void {
    const start = 64 + (index % this.slots) * blkifRequest.sizeBytes;
    for (let i = 0; i < bytes.length; i++) {
      const page = this.#guest.page(this.#pages[Math.floor((start + i) / PAGE_BYTES)]!);
      if (isWrite) page[(start + i) % PAGE_BYTES] = bytes[i]!;
      else bytes[i] = page[(start + i) % PAGE_BYTES]!;
    }
  }

  /** @returns its id */
  request(operation: number, sector: number, segments: readonly TestSegment[]): number {
    const slot = Buffer.alloc(blkifRequest.sizeBytes);
    const id = this.#start(slot, operation, sector);
    slot[blkifRequest.at.nr_segments] = segments.length;
    writeSegments(slot, blkifRequest.at.seg, segments);
    this.put(slot);
    return id;
  }

  /** Segments go into a page of the guest's. */
  indirect(operation: number, sector: number, segments: readonly TestSegment[], page: number): number {
    const slot = Buffer.alloc(blkifRequest.sizeBytes);
    const id = this.#start(slot, BLKIF_OP.indirect, sector);
    slot[blkifRequestIndirect.at.indirect_op] = operation;
    slot.writeUInt16LE(segments.length, blkifRequestIndirect.at.nr_segments);
    slot.writeUInt32LE(page, blkifRequestIndirect.at.indirect_grefs);
    this.#guest.granted.set(page, false);
    const bytes = Buffer.alloc(PAGE_BYTES);
    writeSegments(bytes, 0, segments.slice(0, PAGE_BYTES / blkifSegment.sizeBytes));
    this.#guest.page(page).set(bytes);
    this.put(slot);
    return id;
  }

  discard(sector: number, sectors: number): number {
    const slot = Buffer.alloc(blkifRequest.sizeBytes);
    const id = this.#start(slot, BLKIF_OP.discard, sector);
    slot.writeBigUInt64LE(BigInt(sectors), blkifRequestDiscard.at.nr_sectors);
    this.put(slot);
    return id;
  }

  #start(slot: Buffer, operation: number, sector: number): number {
    const id = this.#nextId++;
    slot[blkifRequest.at.operation] = operation;
    slot.writeBigUInt64LE(BigInt(id), blkifRequest.at.id);
    slot.writeBigUInt64LE(BigInt(sector), blkifRequest.at.sector_number);
    return id;
  }

  /** Responses that have come since the last time. */
  responses(): TestResponse[] {
    const responses: TestResponse[] = [];
    for (const end = this.index('rsp_prod'); this.#seen !== end; this.#seen = (this.#seen + 1) >>> 0) {
      const bytes = Buffer.alloc(16);
      this.#access(this.#seen, bytes, false);
      responses.push({ id: bytes.readUInt32LE(0), operation: bytes[8]!, status: bytes.readInt16LE(10) });
    }
    this.setIndex('rsp_event', this.#seen + 1);
    return responses;
  }
}

function writeSegments(bytes: Buffer, at: number, segments: readonly TestSegment[]): void {
  for (const [i, { ref, first, last }] of segments.entries()) {
    const start = at + i * blkifSegment.sizeBytes;
    if (start + blkifSegment.sizeBytes > bytes.length) break;
    bytes.writeUInt32LE(ref, start);
    bytes[start + blkifSegment.at.first_sect] = first;
    bytes[start + blkifSegment.at.last_sect] = last;
  }
}
