// The disk thread's side of a lane (lane.ts): takes reads and writes from rings that it was lent, moves data between the
// file and the guest's frames with system calls that wait, and answers. No event loop, no promise and no other thread is
// on the way of a request; that one waits for the disk while others wait for it is why a ring with a slow disk goes back.
// While no ring has anything to do, it reads on where a guest reads from front to back (read-ahead.ts).
//
// As with the back end (backend.ts), nothing that a guest writes is believed: slots and pages of segments are copied once,
// and checked; frames are pinned from before they are used until after. Whatever is not a plain transfer, or does not
// succeed, is left in the ring untouched, and the ring given back: errors are the back end's to answer.

import { readvSync, writevSync } from 'node:fs';
import { BLKIF_OP, BLKIF_RSP, blkifRequest } from '../../abi/xen-block.ts';
import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import type { GuestPage } from '../../hypervisor/guest-bus.ts';
import { bytesOf, skipBytes } from './block-file.ts';
import type { Pieces } from './block-file.ts';
import { errnoOf } from './errors.ts';
import { LANE_RETURN, LANE_STATE } from './lane.ts';
import type { LaneCounter, LaneReturn, LaneTable, Loan } from './lane.ts';
import { ReadAhead, ReadAheadBuffers } from './read-ahead.ts';
import { SEGMENTS_PER_PAGE, readRequest, readSegments } from './request.ts';
import type { BlockRequest, Segment } from './request.ts';
import { BlockRing } from './ring.ts';

/** The guest behind a lane, for the disk thread. */
export interface LaneGuest {
  /** All frames. */
  readonly memory: Uint8Array;
  /** All of them or none. @returns undefined when one cannot be had, for whatever reason */
  map(refs: readonly number[], write: boolean): readonly GuestPage[] | undefined;
  unmap(pages: readonly GuestPage[]): void;
  notify(): void;
}

/** A disk that takes longer than this for each of so many requests is better served by several threads than by one. */
const SLOW_NANOS = 20e6;
const SLOW_IN_A_ROW = 4;
/** Requests of one ring before others get their turn. */
const REQUESTS_PER_TURN = 16;

interface Job {
  readonly number: number;
  readonly loan: Loan;
  readonly guest: LaneGuest;
  readonly ring: BlockRing;
  readonly ahead: ReadAhead;
  /** Requests in a row that have taken long. */
  slow: number;
}

/** A plain transfer that has been checked. */
interface Transfer {
  readonly request: BlockRequest;
  readonly segments: readonly Segment[];
  readonly sizeBytes: number;
  readonly isWrite: boolean;
}

export class LaneServer {
  readonly #table: LaneTable;
  readonly #nanos: () => number;
  readonly #jobs = new Map<number, Job>();
  readonly #buffers = new ReadAheadBuffers();
  readonly #slot = new Uint8Array(blkifRequest.sizeBytes);
  #frames: (Uint8Array | undefined)[] = [];

  constructor(table: LaneTable, nanos: () => number) {
    this.#table = table;
    this.#nanos = nanos;
  }

  /** A ring has been lent. */
  add(lane: number, number: number, loan: Loan, guest: LaneGuest): void {
    const pages = loan.ringMfns.map((mfn) => guest.memory.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES));
    const ahead = new ReadAhead(this.#buffers, loan.sizeBytes);
    this.#jobs.set(lane, { number, loan, guest, ring: new BlockRing(pages, loan.position), ahead, slow: 0 });
  }

  /** Does some of what waits in all rings. @returns whether there was anything */
  serve(): boolean {
    let any = false;
    for (const [lane, job] of this.#jobs) any = this.#serveLane(lane, job) || any;
    return any;
  }

  /** When nothing waits: reads on where a guest reads from front to back. @returns whether one does */
  readAhead(): boolean {
    for (const [lane, job] of this.#jobs) {
      if (job.ahead.isDue && !job.loan.isReadOnly && this.#whileBusy(lane, job, () => this.#readOn(job))) return true;
    }
    return false;
  }

  #serveLane(lane: number, job: Job): boolean {
    const before = job.ring.position;
    this.#whileBusy(lane, job, () => this.#serveRing(lane, job));
    return job.ring.position !== before;
  }

  /** @param work returns why the ring must go back, if it must @returns whether it was done: not when the ring is elsewhere */
  #whileBusy(lane: number, job: Job, work: () => LaneReturn | undefined): boolean {
    if (!this.#table.move(lane, LANE_STATE.served, LANE_STATE.busy)) return false;
    // Lent anew, and the loan is still on its way: what is known here is of another one.
    const isMine = this.#table.get(lane, 'loan') === job.number;
    const why = isMine ? work() : undefined;
    if (why !== undefined) this.#giveBack(lane, why);
    else if (!this.#table.move(lane, LANE_STATE.busy, LANE_STATE.served)) this.#giveBack(lane, LANE_RETURN.asked);
    return isMine;
  }

  /** @returns why the ring must go back, if it must */
  #serveRing(lane: number, job: Job): LaneReturn | undefined {
    let why: LaneReturn | undefined;
    for (let i = 0; why === undefined && i < REQUESTS_PER_TURN && this.#peek(lane, job); i++) why = this.#serveOne(lane, job);
    this.#table.set(lane, 'position', job.ring.position);
    return why;
  }

  #giveBack(lane: number, why: LaneReturn): void {
    this.#jobs.delete(lane);
    this.#table.set(lane, 'why', why);
    this.#table.set(lane, 'state', LANE_STATE.free);
    this.#table.ring(lane);
  }

  /** Copies the next request. @returns false when there is none, or the ring is to be given back */
  #peek(lane: number, { ring }: Job): boolean {
    const isThere = this.#table.locked(lane, () => this.#table.get(lane, 'state') === LANE_STATE.busy && ring.peek(this.#slot));
    if (ring.badIndices > 0) this.#count(lane, 'badIndices', ring.badIndices);
    ring.badIndices = 0;
    return isThere;
  }

  /** @returns as `#serveRing`; with LANE_RETURN.request, nothing was done */
  #serveOne(lane: number, job: Job): LaneReturn | undefined {
    const start = this.#nanos();
    const transfer = this.#check(job);
    if (transfer === undefined || !this.#perform(job, transfer)) return LANE_RETURN.request;
    this.#answer(lane, job, transfer);
    const nanos = this.#nanos() - start;
    this.#countTransfer(lane, transfer, nanos / 1000);
    return this.#judge(job, nanos);
  }

  #judge(job: Job, nanos: number): LaneReturn | undefined {
    job.slow = nanos > SLOW_NANOS ? job.slow + 1 : 0;
    return job.slow === SLOW_IN_A_ROW ? LANE_RETURN.slow : undefined;
  }

  #readOn(job: Job): LaneReturn | undefined {
    const start = this.#nanos();
    job.ahead.readOn((into, offset) => orRefused(() => readvSync(job.loan.fd, [into], offset), 0));
    return this.#judge(job, this.#nanos() - start);
  }

  #check({ loan, guest }: Job): Transfer | undefined {
    const request = readRequest(this.#slot.slice());
    const isWrite = request.kind === BLKIF_OP.write;
    const { segmentCount: count, indirectRefs } = request;
    if ((!isWrite && request.kind !== BLKIF_OP.read) || count === undefined || (isWrite && loan.isReadOnly)) return undefined;
    const segments = indirectRefs === undefined ? readSegments(request.slot, blkifRequest.at.seg, count)
      : readIndirect(guest, indirectRefs, count);
    if (segments === undefined) return undefined;
    let sizeBytes = 0;
    for (const segment of segments) sizeBytes += segment.sizeBytes;
    const isInside = request.offset + sizeBytes <= loan.sizeBytes;
    const isAligned = request.offset % loan.alignBytes === 0 && sizeBytes % loan.alignBytes === 0;
    return isInside && isAligned ? { request, segments, sizeBytes, isWrite } : undefined;
  }

  /** @returns false when it was not done, or not wholly */
  #perform({ loan, guest, ahead }: Job, { request: { offset }, segments, sizeBytes, isWrite }: Transfer): boolean {
    const pages = guest.map(segments.map(({ ref }) => ref), !isWrite);
    if (pages === undefined) return false;
    try {
      const pieces = this.#piecesOf(guest, segments, pages);
      if (isWrite) {
        ahead.forget();
        return orRefused(() => transferAll(writevSync, loan.fd, pieces, offset), false);
      }
      const known = ahead.find(offset, sizeBytes);
      if (known !== undefined) copyTo(pieces, known);
      else if (!orRefused(() => transferAll(readvSync, loan.fd, pieces, offset), false)) return false;
      ahead.note(offset, sizeBytes);
      return true;
    } finally {
      guest.unmap(pages);
    }
  }

  /** Where segments follow each other in memory they become one piece. */
  #piecesOf({ memory }: LaneGuest, segments: readonly Segment[], pages: readonly GuestPage[]): Pieces {
    const pieces: Uint8Array[] = [];
    for (let i = 0; i < segments.length;) {
      const first = pages[i]!.mfn;
      const start = first * FRAME_BYTES + segments[i]!.offset;
      let end = start + segments[i]!.sizeBytes;
      const follows = (next: number): boolean => pages[next]!.mfn * FRAME_BYTES + segments[next]!.offset === end;
      for (i++; i < segments.length && follows(i); i++) end += segments[i]!.sizeBytes;
      const isFrame = end - start === FRAME_BYTES && start % FRAME_BYTES === 0;
      pieces.push(isFrame ? this.#frame(memory, first) : memory.subarray(start, end));
    }
    return pieces;
  }

  /** Views of frames are kept: most requests are of frames that were in one before. */
  #frame(memory: Uint8Array, mfn: number): Uint8Array {
    const slot = mfn % FRAME_VIEWS;
    const kept = this.#frames[slot];
    if (kept !== undefined && kept.buffer === memory.buffer && kept.byteOffset === mfn * FRAME_BYTES) return kept;
    const made = memory.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES);
    this.#frames[slot] = made;
    return made;
  }

  #answer(lane: number, { ring, guest }: Job, { request: { idLow, idHigh, kind } }: Transfer): void {
    const { busy, recalled } = LANE_STATE;
    const mustTell = this.#table.locked(lane, () => {
      const state = this.#table.get(lane, 'state');
      // Revoked, the request is nobody's.
      if (state !== busy && state !== recalled) return false;
      ring.advance();
      return ring.respond(idLow, idHigh, kind, BLKIF_RSP.okay);
    });
    if (!mustTell) return;
    this.#count(lane, 'notifications', 1);
    guest.notify();
  }

  #countTransfer(lane: number, { isWrite, sizeBytes }: Transfer, micros: number): void {
    this.#count(lane, isWrite ? 'writes' : 'reads', 1);
    this.#count(lane, isWrite ? 'writtenBytes' : 'readBytes', sizeBytes);
    this.#count(lane, 'latencyMicrosSum', micros);
    if (micros > this.#table.counter(lane, 'latencyMicrosMax')) this.#table.setCounter(lane, 'latencyMicrosMax', micros);
  }
  #count(lane: number, name: LaneCounter, amount: number): void {
    this.#table.setCounter(lane, name, this.#table.counter(lane, name) + amount);
  }
}

const FRAME_VIEWS = 4096;

/** The system's refusal is said by the back end, which gets it, too. Anything else is our bug. */
function orRefused<T>(call: () => T, refused: T): T {
  try {
    return call();
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return refused;
  }
}

function copyTo(pieces: Pieces, bytes: Uint8Array): void {
  let at = 0;
  for (const piece of pieces) {
    piece.set(bytes.subarray(at, at + piece.length));
    at += piece.length;
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

/** @returns false when the file ends, or takes no more */
function transferAll(call: typeof readvSync | typeof writevSync, fd: number, pieces: Pieces, offset: number): boolean {
  const sizeBytes = bytesOf(pieces);
  for (let left = pieces, done = 0; done < sizeBytes;) {
    const bytes = call(fd, left as Uint8Array[], offset + done);
    if (bytes === 0) return false;
    done += bytes;
    if (done < sizeBytes) left = skipBytes(left, bytes);
  }
  return true;
}
