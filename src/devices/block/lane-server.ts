// The side of a lane (lane.ts) that does the work: takes reads and writes from rings that were lent, moves data between the
// file and the guest's frames with system calls that wait, and answers. No event loop and no promise is on the way of a
// request. One in the disk thread serves all rings; that one request waits for the disk while others wait for it is why a
// ring with a slow disk goes back. While no ring has anything to do, it reads on where a guest reads from front to back
// (read-ahead.ts).
//
// A large write is answered when its data has been copied, and then written while the guest prepares the next one, if the file
// system has ample room: a disk with a cache, as guests are told that it is one. The ring stays with the thread until it is
// written; so a flush, a read, a checkpoint come after it.
//
// One in each pCPU's thread serves what the guest that it runs has just put into a ring, where that takes less time than to
// wake others for it and to be woken by them: a small request that is alone, to a disk that has been quick.
//
// As with the back end (backend.ts), nothing that a guest writes is believed: slots and pages of segments are copied once,
// and checked; frames are pinned from before they are used until after. Whatever is not a plain transfer, or does not
// succeed, is left in the ring untouched, and the ring given back: errors are the back end's to answer.

import { readvSync, writevSync } from 'node:fs';
import { BLKIF_OP, BLKIF_RSP, blkifRequest } from '../../abi/xen-block.ts';
import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import type { GuestPage } from '../../hypervisor/guest-bus.ts';
import { takeBuffer } from './buffers.ts';
import { errnoOf } from './errors.ts';
import { LANE_RETURN, LANE_STATE } from './lane.ts';
import type { LaneCounter, LaneReturn, LaneTable, Loan } from './lane.ts';
import { bytesOf, skipBytes } from './pieces.ts';
import type { Pieces } from './pieces.ts';
import { ReadAhead, ReadAheadBuffers } from './read-ahead.ts';
import { INDIRECT_SEGMENTS_MAX, SEGMENTS_PER_PAGE, readRequest, readSegments } from './request.ts';
import type { BlockRequest, Segment } from './request.ts';
import { BlockRing } from './ring.ts';

/** The guest behind a lane, for the thread that serves it. */
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
/**
 * A vCPU that has waited for longer than this twice in a row leaves what comes to the disk thread for so many times as
 * long: so a slow disk holds it up for a small part of the time only. One alone may be one in which the thread was off its core.
 */
const VCPU_WAIT_NANOS = 300e3;
const VCPU_WAITS = 2;
const VCPU_REST = 16;
/** What a vCPU waits for when it reads on. */
const VCPU_AHEAD_BYTES = 2 ** 17;

/** Writes of this size are answered before they are on the disk: more than fit into a slot, so that vCPUs have none of them. */
const BEHIND_BYTES = 2 ** 16;
/** So much must be left on the file system then, and it is asked how much there is after so many bytes. */
const ROOM_LEFT_BYTES = 2 ** 30;
const ROOM_LOOK_BYTES = 2 ** 26;

/** What the thread brings. */
export interface LaneServerThread {
  nanos(): number;
  guestOf(domid: number, port: number): LaneGuest;
  /** Bytes that are free on the file system of a file; 0: not known. */
  freeBytes(fd: number): number;
  /** Runs a system call that may take long; nothing of the machine's memory but pinned frames is used meanwhile. */
  wait?<T>(call: () => T): T;
}

/** A loan, as this thread knows it. */
interface Job {
  readonly number: number;
  readonly loan: Loan;
  readonly guest: LaneGuest;
  readonly ring: BlockRing;
  readonly ahead: ReadAhead;
  /** Of the disk, when what was read ahead was read. */
  writesSeen: number;
  /** What may be written before the file system is asked for its room again. */
  roomBytes: number;
  /** Requests in a row that have taken long. */
  slow: number;
  /** How often in a row a vCPU has waited for too long; until when it does not. */
  waits: number;
  restUntil: number;
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
  readonly #thread: LaneServerThread;
  readonly #jobs = new Map<number, Job>();
  readonly #buffers = new ReadAheadBuffers();
  readonly #slot = new Uint8Array(blkifRequest.sizeBytes);
  /** For what is written after the guest has had its answer. */
  #written: Uint8Array | undefined;
  #frames: (Uint8Array | undefined)[] = [];

  constructor(table: LaneTable, thread: LaneServerThread) {
    this.#table = table;
    this.#thread = thread;
  }

  /** Does some of what waits in all rings. @returns whether there was anything */
  serve(): boolean {
    let any = false;
    for (let lane = 0; lane < this.#table.end; lane++) any = this.#serveLane(lane) || any;
    return any;
  }

  /** When nothing waits: reads on where a guest reads from front to back. @returns whether one does */
  readAhead(): boolean {
    for (const [lane, known] of this.#jobs) if (isReadOn(known) && this.#readAheadOf(lane)) return true;
    return false;
  }

  #readAheadOf(lane: number): boolean {
    let isDone = false;
    this.#whileBusy(lane, (job) => {
      // What is lent now may be another ring.
      isDone = isReadOn(job);
      return isDone ? this.#readOn(job) : undefined;
    });
    return isDone;
  }

  #serveLane(lane: number): boolean {
    const { served, busy } = LANE_STATE;
    const state = this.#table.get(lane, 'state');
    if (state === busy) this.#table.set(lane, 'isWanted', 1);
    else if (state !== served) return false;
    let any = false;
    this.#whileBusy(lane, (job) => {
      const before = job.ring.position;
      const why = this.#serveRing(lane, job);
      any = job.ring.position !== before;
      return why;
    });
    return any;
  }

  /**
   * For the thread of the vCPU that has just said that there is something: answers it at once if that takes no time to speak
   * of. @returns false when the disk thread is to look
   */
  serveAtOnce(lane: number): boolean {
    const known = this.#jobs.get(lane);
    if (known !== undefined && known.number === this.#table.get(lane, 'loan') && this.#thread.nanos() < known.restUntil) return false;
    let isAll = false;
    const isMine = this.#whileBusy(lane, (job) => {
      if (!job.loan.isLocal || !this.#peek(lane, job) || job.ring.waiting !== 1 || this.#slot[0] === BLKIF_OP.indirect) return undefined;
      const start = this.#thread.nanos();
      const why = this.#serveOne(lane, job, VCPU_AHEAD_BYTES);
      if (why === undefined) this.#count(lane, 'byVcpus', 1);
      this.#rest(job, start);
      // That there is none is said in the ring, so that the guest tells of the next one.
      isAll = why !== undefined || !this.#peek(lane, job);
      this.#table.set(lane, 'position', job.ring.position);
      return why;
    });
    return isMine && isAll && Atomics.exchange(this.#table.u32, this.#table.index(lane, 'isWanted'), 0) === 0;
  }

  #rest(job: Job, start: number): void {
    const now = this.#thread.nanos();
    job.waits = now - start > VCPU_WAIT_NANOS ? job.waits + 1 : 0;
    if (job.waits >= VCPU_WAITS) job.restUntil = now + VCPU_REST * (now - start);
  }

  /** @param work returns why the ring must go back, if it must @returns whether it was done: not when the ring is elsewhere */
  #whileBusy(lane: number, work: (job: Job) => LaneReturn | undefined): boolean {
    if (!this.#table.move(lane, LANE_STATE.served, LANE_STATE.busy)) return false;
    const why = work(this.#jobOf(lane));
    if (why !== undefined) this.#giveBack(lane, why);
    else if (!this.#table.move(lane, LANE_STATE.busy, LANE_STATE.served)) this.#giveBack(lane, LANE_RETURN.asked);
    return true;
  }

  /** What is lent now; while the lane is busy. */
  #jobOf(lane: number): Job {
    const table = this.#table;
    const number = table.get(lane, 'loan');
    const known = this.#jobs.get(lane);
    const job = known?.number === number ? known : this.#newJob(lane, number);
    job.ring.goOnAt(table.get(lane, 'position'));
    const writes = table.counter(lane, 'writes');
    if (job.writesSeen !== writes) job.ahead.forget();
    job.writesSeen = writes;
    return job;
  }
  #newJob(lane: number, number: number): Job {
    const loan = this.#table.loan(lane);
    const guest = this.#thread.guestOf(this.#table.get(lane, 'domid'), this.#table.get(lane, 'port'));
    const pages = loan.ringMfns.map((mfn) => guest.memory.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES));
    const job = {
      number, loan, guest, ring: new BlockRing(pages, loan.position), ahead: new ReadAhead(this.#buffers, loan.sizeBytes),
      writesSeen: this.#table.counter(lane, 'writes'), roomBytes: 0, slow: 0, waits: 0, restUntil: 0,
    };
    this.#jobs.set(lane, job);
    return job;
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

  /**
   * @param aheadBytes so much is read on with this request when its turn has come; 0: that is done when nothing waits
   * @returns as `#serveRing`; with LANE_RETURN.request, nothing was done
   */
  #serveOne(lane: number, job: Job, aheadBytes = 0): LaneReturn | undefined {
    const start = this.#thread.nanos();
    const transfer = this.#check(job);
    if (transfer === undefined) return LANE_RETURN.request;
    if (aheadBytes > 0 && isReadOn(job) && job.ahead.isNext(transfer.request.offset)) this.#readOn(job, aheadBytes);
    const isBehind = this.#isBehind(job, transfer);
    if (!(isBehind ? this.#takeData(job, transfer) : this.#perform(job, transfer))) return LANE_RETURN.request;
    this.#countTransfer(lane, job, transfer, (this.#thread.nanos() - start) / 1000);
    this.#answer(lane, job, transfer);
    if (isBehind && !this.#writeData(job, transfer)) return LANE_RETURN.lost;
    return this.#judge(job, this.#thread.nanos() - start);
  }

  /** Whether a write may be answered before it has been done: then it must not fail, as far as one can know. */
  #isBehind(job: Job, { isWrite, sizeBytes }: Transfer): boolean {
    if (!isWrite || sizeBytes < BEHIND_BYTES) return false;
    if (job.roomBytes < sizeBytes) job.roomBytes = Math.min(ROOM_LOOK_BYTES, this.#thread.freeBytes(job.loan.fd) - ROOM_LEFT_BYTES);
    if (job.roomBytes < sizeBytes) return false;
    job.roomBytes -= sizeBytes;
    return true;
  }

  /** @returns as `#perform` */
  #takeData({ guest, ahead }: Job, { segments }: Transfer): boolean {
    const pages = guest.map(segments.map(({ ref }) => ref), false);
    if (pages === undefined) return false;
    this.#written ??= takeBuffer(INDIRECT_SEGMENTS_MAX * FRAME_BYTES).bytes;
    let at = 0;
    for (const piece of this.#piecesOf(guest, segments, pages)) {
      this.#written.set(piece, at);
      at += piece.length;
    }
    guest.unmap(pages);
    ahead.forget();
    return true;
  }
  #writeData({ loan }: Job, { request: { offset }, sizeBytes }: Transfer): boolean {
    const data = this.#written!.subarray(0, sizeBytes);
    return this.#wait(() => orRefused(() => transferAll(writevSync, loan.fd, [data], offset), false));
  }

  #judge(job: Job, nanos: number): LaneReturn | undefined {
    job.slow = nanos > SLOW_NANOS ? job.slow + 1 : 0;
    return job.slow === SLOW_IN_A_ROW ? LANE_RETURN.slow : undefined;
  }

  #readOn(job: Job, atMostBytes?: number): LaneReturn | undefined {
    const start = this.#thread.nanos();
    job.ahead.readOn((into, offset) => this.#wait(() => orRefused(() => readvSync(job.loan.fd, [into], offset), 0)), atMostBytes);
    return this.#judge(job, this.#thread.nanos() - start);
  }

  #wait<T>(call: () => T): T {
    return this.#thread.wait === undefined ? call() : this.#thread.wait(call);
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
        return this.#wait(() => orRefused(() => transferAll(writevSync, loan.fd, pieces, offset), false));
      }
      const known = ahead.find(offset, sizeBytes);
      if (known !== undefined) copyTo(pieces, known);
      else if (!this.#wait(() => orRefused(() => transferAll(readvSync, loan.fd, pieces, offset), false))) return false;
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

  #countTransfer(lane: number, job: Job, { isWrite, sizeBytes }: Transfer, micros: number): void {
    this.#count(lane, isWrite ? 'writes' : 'reads', 1);
    if (isWrite) job.writesSeen++;
    this.#count(lane, isWrite ? 'writtenBytes' : 'readBytes', sizeBytes);
    this.#count(lane, 'latencyMicrosSum', micros);
    if (micros > this.#table.counter(lane, 'latencyMicrosMax')) this.#table.setCounter(lane, 'latencyMicrosMax', micros);
  }
  #count(lane: number, name: LaneCounter, amount: number): void {
    this.#table.setCounter(lane, name, this.#table.counter(lane, name) + amount);
  }
}

/** Whether the guest's next request is known, and nobody else writes to the disk. */
const isReadOn = ({ ahead, loan }: Job): boolean => ahead.isDue && !loan.isReadOnly;

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
