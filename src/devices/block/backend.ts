// Back end of one paravirtual disk: takes requests from the guest's ring, moves data between the disk and the pages that the
// guest has granted, and answers. Requests run side by side and are answered as they end.
//
//   ring slot ──copied──► request ──checked──► grants mapped ──► disk reads and writes the guest's frames ──► response
//
// Whatever a guest puts into the ring, a request ends in a response: with BLKIF_RSP_ERROR when its grants, its segments or
// its place on the disk are none, with EOPNOTSUPP when the host does not know it. While a request is under way its frames
// are pinned, so that a guest that takes them back hurts itself only.
//
// Between requests the ring is lent to the disk thread, if there is one (lanes/lane.ts). It comes back with the first request
// that is not for that thread, and whenever the ring, or the disk, is to stand still or to change.

import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import { BLKIF_OP, BLKIF_RSP, blkifRequest, blkifSegment } from '../../abi/xen-block.ts';
import { GNTST } from '../../abi/xen-grant-table.ts';
import { assert } from '../../base/assert.ts';
import { systemClock } from '../../base/clock.ts';
import type { Clock } from '../../base/clock.ts';
import { errnoOf } from '../../base/errors.ts';
import type { GuestBus, GuestPage } from '../../hypervisor/guest-bus.ts';
import type { Lane } from '../../lanes/lane.ts';
import { Lending } from '../../lanes/lending.ts';
import type { Lendable } from '../../lanes/lending.ts';
import { newMetrics } from '../../lanes/metrics.ts';
import type { BlockMetrics } from '../../lanes/metrics.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { RateLimit } from './rate-limit.ts';
import type { RateLimits } from './rate-limit.ts';
import { SEGMENTS_PER_PAGE, readRequest, readSegments } from './request.ts';
import type { BlockRequest, Segment } from './request.ts';
import { BlockRing } from './ring.ts';

/** The guest, as the back end of one of its disks sees it. */
export interface BlockGuest extends Pick<GuestBus, 'memory' | 'map' | 'unmap'> {
  notify(): void;
}

/** What a back end needs of a disk; offsets and sizes in bytes, multiples of 512. */
export interface BlockMedium extends Lendable {
  readonly canDiscard: boolean;
  read(pieces: Pieces, offset: number): Promise<void>;
  write(pieces: Pieces, offset: number): Promise<void>;
  flush(): Promise<void>;
  discard(offset: number, sizeBytes: number): Promise<void>;
}

export interface BackendOptions {
  readonly guest: BlockGuest;
  readonly disk: BlockMedium;
  readonly limits?: RateLimits | undefined;
  readonly clock?: Clock;
  readonly metrics?: BlockMetrics;
}

/** What a guest's front end has agreed on, in numbers that mean something in the guest. */
export interface RingConnection {
  /** Grants of the ring's pages, in order. */
  readonly ringRefs: readonly number[];
  /** The guest keeps granted what it has granted once. */
  readonly isPersistent: boolean;
  /** Answered requests, modulo 2^32. */
  readonly position: number;
}

/** Enough for every slot of a ring of one page with 11 segments each, and for large indirect requests. */
const PERSISTENT_MAX = 1024;
const MEMORY_RETRY_MILLIS = 20;
const MEMORY_RETRIES = 100;

/** Requests taken in one turn of the event loop at most: a guest whose requests fail at once must not hold the host's thread. */
const REQUESTS_PER_TURN = 512;

/** A page in use by requests; one that is kept stays mapped without any. */
interface HeldPage {
  readonly page: GuestPage;
  uses: number;
  isKept: boolean;
}

/** The guest's fault; the answer is an error. */
class BadRequest extends Error {}

export class BlockBackend {
  readonly #metrics: BlockMetrics;
  readonly #guest: BlockGuest;
  readonly #disk: BlockMedium;
  readonly #clock: Clock;
  #limit: RateLimit;
  #connection: { refs: readonly number[]; isPersistent: boolean } | undefined;
  /** While its pages are in use; at other times it stands at `#position`. */
  #ring: BlockRing | undefined;
  #position = 0;
  #ringPages: GuestPage[] = [];
  readonly #persistent = new Map<number, HeldPage>();
  /** Counts connections: an answer for one that has ended goes nowhere. */
  #epoch = 0;
  #inFlight = 0;
  #isPaused = false;
  /** Nothing is taken from the ring while a barrier is under way. */
  #hasBarrier = false;
  readonly #waiting: { readonly inFlight: number; readonly tell: () => void }[] = [];
  /** Requests since the loop was last let go on to everything else. */
  #taken = 0;
  /** Of the ring of this connection. */
  #lending: Lending | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor({ guest, disk, limits = {}, clock = systemClock, metrics = newMetrics() }: BackendOptions) {
    this.#guest = guest;
    this.#disk = disk;
    this.#clock = clock;
    this.#limit = new RateLimit(limits, clock);
    this.#metrics = metrics;
  }

  setLimits(limits: RateLimits): void {
    this.#limit = new RateLimit(limits, this.#clock);
    this.#lending?.takeBack();
    this.service();
  }

  get metrics(): BlockMetrics {
    this.#lending?.count();
    return this.#metrics;
  }

  // ---- connection ---------------------------------------------------------------------------------------------------

  /** @returns false when the guest does not grant the pages of the ring */
  connect(connection: RingConnection): boolean {
    this.goOn(connection);
    const ring = this.#openRing();
    if (typeof ring !== 'number' || ring === GNTST.eagain) return true;
    this.disconnect();
    return false;
  }

  /**
   * As after `connect` at an earlier time. The ring is used when it is needed and can be, as after `letGo`: that the
   * guest has just taken a grant back, or that there is no frame now, does not end a connection.
   */
  goOn({ ringRefs, isPersistent, position }: RingConnection): void {
    this.disconnect();
    this.#connection = { refs: ringRefs, isPersistent };
    this.#position = position;
  }

  get agreed(): { readonly ringPages: number; readonly persistentGrants: boolean } {
    return { ringPages: this.#connection?.refs.length ?? 0, persistentGrants: this.#connection?.isPersistent ?? false };
  }

  /** What the guest and the host agreed on, and how far they are; undefined when not connected. With no request under way. */
  save(): RingConnection | undefined {
    if (this.#connection === undefined) return undefined;
    assert(this.#inFlight === 0, 'all requests have been answered');
    const position = this.#ring?.position ?? this.#position;
    return { ringRefs: this.#connection.refs, isPersistent: this.#connection.isPersistent, position };
  }

  /** Requests under way end by themselves; nobody hears of it. */
  disconnect(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#epoch++;
    this.#connection = undefined;
    this.#ring = undefined;
    this.#endLane();
    this.#unmapAll();
  }

  /** Of a connection. @returns GNTST.eagain when there is no frame for it now, another GNTST when it is not granted */
  #openRing(): BlockRing | number {
    if (this.#ring !== undefined) return this.#ring;
    const pages: GuestPage[] = [];
    for (const ref of this.#connection!.refs) {
      const page = this.#guest.map(ref, true);
      if (typeof page === 'number') {
        for (const mapped of pages) this.#guest.unmap(mapped);
        return page;
      }
      pages.push(page);
    }
    this.#ringPages = pages;
    this.#ring = this.#ringAt(this.#position);
    return this.#ring;
  }

  #ringAt(position: number): BlockRing {
    return new BlockRing(this.#ringPages.map(({ mfn }) => this.#bytes(mfn, 0, FRAME_BYTES)), position);
  }

  #unmapAll(): void {
    for (const page of this.#ringPages) this.#guest.unmap(page);
    this.#ringPages = [];
    // What requests are using is theirs until they end.
    for (const held of this.#persistent.values()) {
      held.isKept = false;
      if (held.uses === 0) this.#guest.unmap(held.page);
    }
    this.#persistent.clear();
  }

  /** Gives back every page of the guest's. While paused. */
  letGo(): void {
    assert(this.#isPaused && this.#inFlight === 0, 'the back end is paused');
    if (this.#ring !== undefined) this.#position = this.#ring.position;
    this.#ring = undefined;
    this.#unmapAll();
  }

  // ---- requests -----------------------------------------------------------------------------------------------------

  /** Starts what there is to do: to be called when the guest has signalled. */
  service(): void {
    if (this.#connection === undefined || this.#isPaused || this.#timer !== undefined || this.#lending?.isLent === true) return;
    const ring = this.#openRing();
    if (typeof ring === 'number') {
      // The guest tells when it grants it again; when there is a frame, nobody does.
      if (ring === GNTST.eagain) this.#serviceLater(MEMORY_RETRY_MILLIS);
      return;
    }
    while (!this.#isPaused && !this.#hasBarrier && this.#taken < REQUESTS_PER_TURN) {
      const delayMillis = this.#limit.delayMillis();
      if (delayMillis > 0) {
        this.#metrics.throttled++;
        return this.#serviceLater(delayMillis);
      }
      const slot = new Uint8Array(blkifRequest.sizeBytes);
      const isTaken = ring.take(slot);
      this.#metrics.badIndices += ring.badIndices;
      ring.badIndices = 0;
      if (!isTaken) return this.#lend(ring);
      // Counted on from turn to turn: a call back in every turn would cost each small request its way through the loop.
      if (++this.#taken === REQUESTS_PER_TURN) setImmediate(() => this.#nextTurn());
      this.#limit.takeRequest();
      this.#inFlight++;
      void this.#serve(readRequest(slot), ring);
    }
  }

  #nextTurn(): void {
    this.#taken = 0;
    this.service();
  }

  #serviceLater(delayMillis: number): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.service();
    }, delayMillis);
  }

  async #serve(request: BlockRequest, ring: BlockRing): Promise<void> {
    const epoch = this.#epoch;
    const start = this.#clock.monotonicNanos();
    const isBarrier = request.kind === BLKIF_OP.write_barrier;
    if (isBarrier) this.#hasBarrier = true;
    const status = await this.#perform(request).catch((error: unknown) => this.#statusOf(error));
    if (isBarrier) this.#hasBarrier = false;
    this.#inFlight--;
    const micros = (this.#clock.monotonicNanos() - start) / 1000;
    this.#metrics.latencyMicrosSum += micros;
    this.#metrics.latencyMicrosMax = Math.max(this.#metrics.latencyMicrosMax, micros);
    if (this.#epoch === epoch && ring.respond(request.idLow, request.idHigh, request.kind, status)) {
      this.#metrics.notifications++;
      this.#guest.notify();
    }
    this.#tellWaiting();
    // A slot is free again, or a barrier gone.
    this.service();
  }

  #statusOf(error: unknown): number {
    if (error instanceof BadRequest) {
      this.#metrics.badRequests++;
      return BLKIF_RSP.error;
    }
    // What the system has refused; anything else is our bug, and not the guest's to hear.
    if (errnoOf(error) === undefined) throw error;
    this.#metrics.failures++;
    return BLKIF_RSP.error;
  }

  async #perform(request: BlockRequest): Promise<number> {
    const { kind } = request;
    if (kind === BLKIF_OP.read) return this.#transfer(request, false);
    if (kind === BLKIF_OP.write) return this.#transfer(request, true);
    if (kind === BLKIF_OP.flush_diskcache) return this.#flush(request);
    if (kind === BLKIF_OP.write_barrier) return this.#barrier(request);
    if (kind === BLKIF_OP.discard) return this.#discard(request);
    return BLKIF_RSP.eopnotsupp;
  }

  async #transfer(request: BlockRequest, isWrite: boolean): Promise<number> {
    if (request.segmentCount === undefined || (isWrite && this.#disk.isReadOnly)) throw new BadRequest();
    const segments = request.indirectRefs === undefined
      ? checked(readSegments(request.slot, blkifRequest.at.seg, request.segmentCount))
      : await this.#readIndirect(request.indirectRefs, request.segmentCount);
    const sizeBytes = segments.reduce((sum, segment) => sum + segment.sizeBytes, 0);
    if (!(request.offset + sizeBytes <= this.#disk.sizeBytes)) throw new BadRequest();
    this.#limit.takeBytes(sizeBytes);
    const pages: HeldPage[] = [];
    try {
      for (const { ref } of segments) pages.push(this.#mapNow(ref, !isWrite) ?? await this.#mapLater(ref, !isWrite));
      const pieces = this.#piecesOf(segments, pages);
      if (isWrite) {
        this.#metrics.writes++;
        this.#metrics.writtenBytes += sizeBytes;
        await this.#disk.write(pieces, request.offset);
      } else {
        this.#metrics.reads++;
        this.#metrics.readBytes += sizeBytes;
        await this.#disk.read(pieces, request.offset);
      }
    } finally {
      for (const page of pages) this.#unmap(page);
    }
    return BLKIF_RSP.okay;
  }

  async #flush(request: BlockRequest): Promise<number> {
    if (request.segmentCount !== 0) {
      const status = await this.#transfer(request, true);
      if (status !== BLKIF_RSP.okay) return status;
    }
    this.#metrics.flushes++;
    await this.#disk.flush();
    return BLKIF_RSP.okay;
  }

  /** What came before is on the disk before it, and it before what comes after. */
  async #barrier(request: BlockRequest): Promise<number> {
    await this.#untilInFlight(1);
    await this.#disk.flush();
    return this.#flush(request);
  }

  #untilInFlight(inFlight: number): Promise<void> | undefined {
    if (this.#inFlight <= inFlight) return undefined;
    return new Promise<void>((tell) => { this.#waiting.push({ inFlight, tell }); });
  }

  #tellWaiting(): void {
    for (let i = this.#waiting.length - 1; i >= 0; i--) {
      if (this.#inFlight <= this.#waiting[i]!.inFlight) this.#waiting.splice(i, 1)[0]!.tell();
    }
  }

  async #discard({ offset, discardBytes }: BlockRequest): Promise<number> {
    if (!this.#disk.canDiscard) return BLKIF_RSP.eopnotsupp;
    if (!(discardBytes > 0 && offset + discardBytes <= this.#disk.sizeBytes)) throw new BadRequest();
    this.#metrics.discards++;
    await this.#disk.discard(offset, discardBytes);
    return BLKIF_RSP.okay;
  }

  // ---- the guest's pages --------------------------------------------------------------------------------------------

  async #readIndirect(refs: readonly number[], count: number): Promise<Segment[]> {
    const segments: Segment[] = [];
    for (const [i, ref] of refs.entries()) {
      const held = this.#mapNow(ref, false) ?? await this.#mapLater(ref, false);
      const inPage = Math.min(SEGMENTS_PER_PAGE, count - i * SEGMENTS_PER_PAGE);
      // Copied once: the guest may be writing to it now.
      const copy = this.#bytes(held.page.mfn, 0, inPage * blkifSegment.sizeBytes).slice();
      this.#unmap(held);
      segments.push(...checked(readSegments(copy, 0, inPage)));
    }
    return segments;
  }

  /** @returns undefined when there is no frame for it just now */
  #mapNow(ref: number, write: boolean): HeldPage | undefined {
    const kept = this.#persistent.get(ref);
    if (kept !== undefined) {
      kept.uses++;
      return kept;
    }
    const isKept = this.#connection?.isPersistent === true && this.#persistent.size < PERSISTENT_MAX;
    // One that is kept is used for both directions.
    const page = this.#guest.map(ref, write || isKept);
    if (page === GNTST.eagain) return undefined;
    if (typeof page === 'number') throw new BadRequest();
    const held = { page, uses: 1, isKept };
    if (isKept) this.#persistent.set(ref, held);
    return held;
  }

  async #mapLater(ref: number, write: boolean): Promise<HeldPage> {
    for (let attempt = 0; attempt < MEMORY_RETRIES; attempt++) {
      await new Promise<void>((resolve) => { setTimeout(resolve, MEMORY_RETRY_MILLIS); });
      const held = this.#mapNow(ref, write);
      if (held !== undefined) return held;
    }
    throw new BadRequest();
  }

  #unmap(held: HeldPage): void {
    if (--held.uses === 0 && !held.isKept) this.#guest.unmap(held.page);
  }

  #bytes(mfn: number, offset: number, sizeBytes: number): Uint8Array {
    return this.#guest.memory.subarray(mfn * FRAME_BYTES + offset, mfn * FRAME_BYTES + offset + sizeBytes);
  }

  /** Where segments follow each other in memory they become one piece. */
  #piecesOf(segments: readonly Segment[], pages: readonly HeldPage[]): Pieces {
    const pieces: Uint8Array[] = [];
    let start = -1;
    let end = -1;
    segments.forEach((segment, i) => {
      const from = pages[i]!.page.mfn * FRAME_BYTES + segment.offset;
      if (from !== end) {
        if (end > 0) pieces.push(this.#guest.memory.subarray(start, end));
        start = from;
      }
      end = from + segment.sizeBytes;
    });
    pieces.push(this.#guest.memory.subarray(start, end));
    return pieces;
  }

  // ---- the disk thread ----------------------------------------------------------------------------------------------

  /** From now on the ring of this connection may be looked after there. @param lane closed with the connection */
  useLane(lane: Lane): void {
    assert(this.#lending === undefined && this.#connection !== undefined, 'a connection has one lane');
    const lending = new Lending({
      lane, disk: this.#disk, clock: this.#clock, metrics: this.#metrics,
      onAwait: () => { this.#inFlight++; },
      onBack: (wasAwaited) => {
        if (wasAwaited) this.#inFlight--;
        // Of a connection that has ended there is no ring any more.
        if (this.#lending === lending) this.#ring = this.#ringAt(lending.position);
        this.#tellWaiting();
        this.service();
      },
    });
    this.#lending = lending;
  }

  /** When nothing waits. */
  #lend(ring: BlockRing): void {
    // Of limits and pages that are kept the thread knows nothing.
    if (this.#inFlight > 0 || this.#limit.isLimited || this.#connection!.isPersistent) return;
    this.#lending?.lend({ ringMfns: this.#ringPages.map(({ mfn }) => mfn), position: ring.position, resets: 0 });
  }

  #endLane(): void {
    const lending = this.#lending;
    this.#lending = undefined;
    lending?.end();
  }

  // ---- standing still -----------------------------------------------------------------------------------------------

  /** Resolves when no request is under way; from then on nothing is taken from the ring until `resume`. */
  async pause(): Promise<void> {
    this.#isPaused = true;
    this.#lending?.takeBack();
    await this.#untilInFlight(0);
  }

  resume(): void {
    this.#isPaused = false;
    this.service();
  }
}

function checked(segments: Segment[] | undefined): Segment[] {
  if (segments === undefined) throw new BadRequest();
  return segments;
}
