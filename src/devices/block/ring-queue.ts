// The requests in a paravirtual disk's ring, for a lane (lane-queue.ts). Slots and pages of segments are copied once, and
// checked; frames that the guest has granted are pinned from before they are used until after, and data goes straight
// from and to them.

import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import { BLKIF_OP, BLKIF_RSP, blkifRequest } from '../../abi/xen-block.ts';
import type { GuestPage } from '../../hypervisor/guest-bus.ts';
import type { Loan } from '../../lanes/lane.ts';
import type { LaneGuard, LaneQueue, LentQueue, Transfer } from '../../lanes/lane-queue.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { SEGMENTS_PER_PAGE, readRequest, readSegments } from './request.ts';
import type { BlockRequest, Segment } from './request.ts';
import { BlockRing } from './ring.ts';

/** The guest behind a ring, for the thread that serves it. */
export interface LaneGuest {
  /** All frames. */
  readonly memory: Uint8Array;
  /** All of them or none. @returns undefined when one cannot be had, for whatever reason */
  map(refs: readonly number[], write: boolean): readonly GuestPage[] | undefined;
  unmap(pages: readonly GuestPage[]): void;
  notify(): void;
}

/** A transfer that has been checked. */
interface RingTransfer extends Transfer {
  readonly request: BlockRequest;
  readonly segments: readonly Segment[];
}

const FRAME_VIEWS = 4096;

/** Views of frames are kept, for all rings of a thread: most requests are of frames that were in one before. */
export class FrameViews {
  readonly #views: (Uint8Array | undefined)[] = [];

  of(memory: Uint8Array, mfn: number): Uint8Array {
    const slot = mfn % FRAME_VIEWS;
    const kept = this.#views[slot];
    if (kept !== undefined && kept.buffer === memory.buffer && kept.byteOffset === mfn * FRAME_BYTES) return kept;
    const made = memory.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES);
    this.#views[slot] = made;
    return made;
  }
}

export class RingQueue implements LaneQueue {
  readonly #guest: LaneGuest;
  readonly #guard: LaneGuard;
  readonly #views: FrameViews;
  readonly #ring: BlockRing;
  readonly #slot = new Uint8Array(blkifRequest.sizeBytes);
  #transfer: RingTransfer | undefined;
  #pages: readonly GuestPage[] = [];

  constructor(guest: LaneGuest, { loan: { ringMfns, position }, guard }: LentQueue, views: FrameViews) {
    this.#guest = guest;
    this.#guard = guard;
    this.#views = views;
    this.#ring = new BlockRing(ringMfns.map((mfn) => guest.memory.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES)), position);
  }

  get position(): number {
    return this.#ring.position;
  }
  goOnAt(position: number): void {
    this.#ring.goOnAt(position);
  }

  peek(): boolean {
    return this.#guard(() => this.#ring.peek(this.#slot)) ?? false;
  }
  get waiting(): number {
    return this.#guard(() => this.#ring.waiting) ?? 0;
  }
  get isSmall(): boolean {
    return this.#slot[0] !== BLKIF_OP.indirect;
  }
  takeBadIndices(): number {
    const count = this.#ring.badIndices;
    this.#ring.badIndices = 0;
    return count;
  }

  check(loan: Loan): Transfer | undefined {
    const request = readRequest(this.#slot.slice());
    const isWrite = request.kind === BLKIF_OP.write;
    if (request.kind === BLKIF_OP.flush_diskcache && request.segmentCount === 0 && loan.isVolatile) {
      this.#transfer = { request, segments: [], sizeBytes: 0, isWrite, offset: 0 };
      return this.#transfer;
    }
    const { segmentCount: count, indirectRefs, offset } = request;
    if ((!isWrite && request.kind !== BLKIF_OP.read) || count === undefined || (isWrite && loan.isReadOnly)) return undefined;
    const segments = indirectRefs === undefined ? readSegments(request.slot, blkifRequest.at.seg, count)
      : readIndirect(this.#guest, indirectRefs, count);
    if (segments === undefined) return undefined;
    let sizeBytes = 0;
    for (const segment of segments) sizeBytes += segment.sizeBytes;
    this.#transfer = { request, segments, sizeBytes, isWrite, offset };
    return this.#transfer;
  }

  hold(): Pieces | undefined {
    const { isWrite, segments } = this.#transfer!;
    const pages = this.#guest.map(segments.map(({ ref }) => ref), !isWrite);
    if (pages === undefined) return undefined;
    this.#pages = pages;
    return this.#piecesOf(segments, pages);
  }
  letGo(): void {
    const pages = this.#pages;
    this.#pages = [];
    this.#guest.unmap(pages);
  }

  fill(bytes: Uint8Array): boolean {
    return this.#copy((piece, at) => piece.set(bytes.subarray(at, at + piece.length)));
  }
  copyTo(bytes: Uint8Array): boolean {
    return this.#copy((piece, at) => bytes.set(piece, at));
  }
  #copy(each: (piece: Uint8Array, at: number) => void): boolean {
    const pieces = this.hold();
    if (pieces === undefined) return false;
    let at = 0;
    for (const piece of pieces) {
      each(piece, at);
      at += piece.length;
    }
    this.letGo();
    return true;
  }

  answer(): number {
    const { idLow, idHigh, kind } = this.#transfer!.request;
    const mustTell = this.#guard(() => {
      this.#ring.advance();
      return this.#ring.respond(idLow, idHigh, kind, BLKIF_RSP.okay);
    });
    // Revoked, the request is nobody's.
    if (mustTell !== true) return 0;
    this.#guest.notify();
    return 1;
  }

  /** Where segments follow each other in memory they become one piece. */
  #piecesOf(segments: readonly Segment[], pages: readonly GuestPage[]): Pieces {
    const { memory } = this.#guest;
    const pieces: Uint8Array[] = [];
    for (let i = 0; i < segments.length;) {
      const first = pages[i]!.mfn;
      const start = first * FRAME_BYTES + segments[i]!.offset;
      let end = start + segments[i]!.sizeBytes;
      const follows = (next: number): boolean => pages[next]!.mfn * FRAME_BYTES + segments[next]!.offset === end;
      for (i++; i < segments.length && follows(i); i++) end += segments[i]!.sizeBytes;
      const isFrame = end - start === FRAME_BYTES && start % FRAME_BYTES === 0;
      pieces.push(isFrame ? this.#views.of(memory, first) : memory.subarray(start, end));
    }
    return pieces;
  }
}

function readIndirect(guest: LaneGuest, refs: readonly number[], count: number): Segment[] | undefined {
  const pages = guest.map(refs, false);
  if (pages === undefined) return undefined;
  // Copied once: the guest may be writing to them now.
  const copies = pages.map(({ mfn }) => guest.memory.slice(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES));
  guest.unmap(pages);
  const segments: Segment[] = [];
  for (const [i, copy] of copies.entries()) {
    const inPage = readSegments(copy, 0, Math.min(SEGMENTS_PER_PAGE, count - i * SEGMENTS_PER_PAGE));
    if (inPage === undefined) return undefined;
    segments.push(...inPage);
  }
  return segments;
}
