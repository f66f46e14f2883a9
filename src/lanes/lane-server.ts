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
// What a guest's requests are, and where, is the queue's affair (lane-queue.ts). Whatever is not a plain transfer, or does
// not succeed, is left where it is, untouched, and the ring given back: errors are the host's to answer.

import { readvSync, writevSync } from 'node:fs';
import { errnoOf } from '../base/errors.ts';
import { takeBuffer } from './buffers.ts';
import { LANE_RETURN, LANE_STATE } from './lane.ts';
import type { LaneCounter, LaneReturn, LaneTable, Loan } from './lane.ts';
import { TRANSFER_MAX_BYTES } from './lane-queue.ts';
import type { LaneGuard, LaneQueue, LentQueue, Transfer } from './lane-queue.ts';
import { LentChain } from './lent-chain.ts';
import { LentPlainFile, NOWHERE } from './lent-store.ts';
import type { Extent, LentStore } from './lent-store.ts';
import { bytesOf, skipBytes, slicePieces } from './pieces.ts';
import type { Pieces } from './pieces.ts';
import { ReadAhead, ReadAheadBuffers } from './read-ahead.ts';

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
const SMALL_BUFFER_BYTES = 2 ** 16;

/** Writes of this size are answered before they are on the disk: more than fit into a slot, so that vCPUs have none of them. */
const BEHIND_BYTES = 2 ** 16;
/** So much must be left on the file system then, and it is asked how much there is after so many bytes. */
const ROOM_LEFT_BYTES = 2 ** 30;
const ROOM_LOOK_BYTES = 2 ** 26;

/** What the thread brings. */
export interface LaneServerThread {
  nanos(): number;
  openQueue(lent: LentQueue): LaneQueue;
  /** Bytes that are free on the file system of a file; 0: not known. */
  freeBytes(fd: number): number;
  /** Runs a system call that may take long; nothing of the machine's memory but pinned frames is used meanwhile. */
  wait?<T>(call: () => T): T;
}

/** A loan, as this thread knows it. */
interface Job {
  readonly number: number;
  readonly loan: Loan;
  readonly queue: LaneQueue;
  readonly store: LentStore;
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

export class LaneServer {
  readonly #table: LaneTable;
  readonly #thread: LaneServerThread;
  readonly #jobs = new Map<number, Job>();
  readonly #buffers = new ReadAheadBuffers();
  /** For the data of a request that does not go straight from or to the guest's frames, or is written after its answer. */
  #buffer: Uint8Array = new Uint8Array(0);

  constructor(table: LaneTable, thread: LaneServerThread) {
    this.#table = table;
    this.#thread = thread;
  }

  /** Does some of what waits in all rings. @returns whether there was anything */
  serve(): boolean {
    let any = false;
    for (let lane = 0; lane < this.#table.count; lane++) any = this.#serveLane(lane) || any;
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
      const before = job.queue.position;
      const why = this.#serveRing(lane, job);
      any = job.queue.position !== before;
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
      if (!job.loan.isLocal || !this.#peek(lane, job) || !job.queue.isSmall || job.queue.waiting !== 1) return undefined;
      const start = this.#thread.nanos();
      const why = this.#serveOne(lane, job, VCPU_AHEAD_BYTES);
      if (why === undefined) this.#count(lane, 'byVcpus', 1);
      this.#rest(job, start);
      // That there is none is said in the ring, so that the guest tells of the next one.
      isAll = why !== undefined || !this.#peek(lane, job);
      this.#table.set(lane, 'position', job.queue.position);
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
    job.queue.goOnAt(table.get(lane, 'position'));
    const writes = table.counter(lane, 'writes');
    if (job.writesSeen !== writes) job.ahead.forget();
    job.writesSeen = writes;
    return job;
  }
  #newJob(lane: number, number: number): Job {
    const loan = this.#table.loan(lane);
    const job = {
      number, loan, queue: this.#openQueue(lane, loan),
      store: loan.chain === 0 ? new LentPlainFile(loan.fd) : new LentChain(this.#table.maps, loan.chain), ahead: new ReadAhead(this.#buffers, loan.sizeBytes),
      writesSeen: this.#table.counter(lane, 'writes'), roomBytes: 0, slow: 0, waits: 0, restUntil: 0,
    };
    this.#jobs.set(lane, job);
    return job;
  }

  #openQueue(lane: number, loan: Loan): LaneQueue {
    const { busy, recalled } = LANE_STATE;
    const guard: LaneGuard = (body) => this.#table.locked(lane, () => {
      const state = this.#table.get(lane, 'state');
      return state === busy || state === recalled ? body() : undefined;
    });
    return this.#thread.openQueue({ end: this.#table.endOf(lane), loan, guard, bufferOf: (sizeBytes) => this.#bufferOf(sizeBytes) });
  }

  #bufferOf(sizeBytes: number): Uint8Array {
    if (this.#buffer.length < sizeBytes) {
      // A pCPU's thread needs no more than for small ones.
      this.#buffer = takeBuffer(sizeBytes <= SMALL_BUFFER_BYTES ? SMALL_BUFFER_BYTES : TRANSFER_MAX_BYTES).bytes;
    }
    return this.#buffer.subarray(0, sizeBytes);
  }

  /** @returns why the ring must go back, if it must */
  #serveRing(lane: number, job: Job): LaneReturn | undefined {
    let why: LaneReturn | undefined;
    for (let i = 0; why === undefined && i < REQUESTS_PER_TURN && this.#peek(lane, job); i++) why = this.#serveOne(lane, job);
    this.#table.set(lane, 'position', job.queue.position);
    return why;
  }

  #giveBack(lane: number, why: LaneReturn): void {
    this.#jobs.delete(lane);
    this.#table.set(lane, 'why', why);
    this.#table.set(lane, 'state', LANE_STATE.free);
    this.#table.ring(lane);
  }

  /** Copies the next request. @returns false when there is none, or the ring is to be given back */
  #peek(lane: number, { queue }: Job): boolean {
    const isThere = this.#table.get(lane, 'state') === LANE_STATE.busy && queue.peek();
    const badIndices = queue.takeBadIndices();
    if (badIndices > 0) this.#count(lane, 'badIndices', badIndices);
    return isThere;
  }

  /**
   * @param aheadBytes so much is read on with this request when its turn has come; 0: that is done when nothing waits
   * @returns as `#serveRing`; with LANE_RETURN.request, the request is still in the ring
   */
  #serveOne(lane: number, job: Job, aheadBytes = 0): LaneReturn | undefined {
    const start = this.#thread.nanos();
    const transfer = this.#check(job);
    if (transfer === undefined) return LANE_RETURN.request;
    if (transfer.sizeBytes === 0) return this.#answerFlush(lane, job);
    if (aheadBytes > 0 && isReadOn(job) && job.ahead.isNext(transfer.offset)) this.#readOn(job, aheadBytes);
    const { offset, sizeBytes, isWrite } = transfer;
    const known = isWrite ? undefined : job.ahead.find(offset, sizeBytes);
    const places = known !== undefined ? [] : isWrite ? job.store.findForWrite(offset, sizeBytes) : job.store.find(offset, sizeBytes);
    if (places === undefined) return LANE_RETURN.request;
    const isBehind = this.#isBehind(job, transfer);
    if (!(isBehind ? this.#takeData(job, transfer) : this.#perform(job, transfer, places, known))) return LANE_RETURN.request;
    this.#countTransfer(lane, job, transfer, (this.#thread.nanos() - start) / 1000);
    if (!this.#answer(lane, job)) return LANE_RETURN.request;
    if (isBehind && !this.#writeData(job, transfer, places)) return LANE_RETURN.lost;
    return this.#judge(job, this.#thread.nanos() - start);
  }

  /** @returns false: it is still in the queue */
  #answer(lane: number, { queue }: Job): boolean {
    const told = queue.answer();
    if (told !== undefined && told > 0) this.#count(lane, 'notifications', told);
    return told !== undefined;
  }

  #answerFlush(lane: number, job: Job): LaneReturn | undefined {
    this.#count(lane, 'flushes', 1);
    return this.#answer(lane, job) ? undefined : LANE_RETURN.request;
  }

  #check({ loan, queue }: Job): Transfer | undefined {
    const transfer = queue.check(loan);
    if (transfer === undefined) return undefined;
    const { offset, sizeBytes } = transfer;
    const isAligned = offset % loan.alignBytes === 0 && sizeBytes % loan.alignBytes === 0;
    return isAligned && offset + sizeBytes <= loan.sizeBytes && sizeBytes <= TRANSFER_MAX_BYTES ? transfer : undefined;
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
  #takeData({ queue, ahead }: Job, { sizeBytes }: Transfer): boolean {
    if (!queue.copyTo(this.#bufferOf(sizeBytes))) return false;
    ahead.forget();
    return true;
  }
  #writeData({ store }: Job, { sizeBytes }: Transfer, places: readonly Extent[]): boolean {
    const data = this.#bufferOf(sizeBytes);
    const isDone = this.#wait(() => orRefused(() => transferAll(writevSync, places, [data]), false));
    if (isDone) store.written();
    return isDone;
  }

  #judge(job: Job, nanos: number): LaneReturn | undefined {
    job.slow = nanos > SLOW_NANOS ? job.slow + 1 : 0;
    return job.slow === SLOW_IN_A_ROW ? LANE_RETURN.slow : undefined;
  }

  #readOn(job: Job, atMostBytes?: number): LaneReturn | undefined {
    const start = this.#thread.nanos();
    job.ahead.readOn((into, offset) => this.#wait(() => readSome(job.store.find(offset, into.length), into)), atMostBytes);
    return this.#judge(job, this.#thread.nanos() - start);
  }

  #wait<T>(call: () => T): T {
    return this.#thread.wait === undefined ? call() : this.#thread.wait(call);
  }

  /** @returns false when it was not done, or not wholly */
  #perform({ queue, ahead, store }: Job, { offset, sizeBytes, isWrite }: Transfer, places: readonly Extent[], known: Uint8Array | undefined): boolean {
    if (isWrite) ahead.forget();
    if (!(known === undefined ? this.#transferHeld(queue, isWrite ? writevSync : readvSync, places) : queue.fill(known))) return false;
    if (isWrite) store.written();
    else ahead.note(offset, sizeBytes);
    return true;
  }

  #transferHeld(queue: LaneQueue, call: Call, places: readonly Extent[]): boolean {
    const pieces = queue.hold();
    if (pieces === undefined) return false;
    try {
      return this.#wait(() => orRefused(() => transferAll(call, places, pieces), false));
    } finally {
      queue.letGo();
    }
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
const isReadOn = ({ ahead, loan }: Job): boolean => ahead.isDue && loan.isOwn;

type Call = typeof readvSync | typeof writevSync;

/** The system's refusal is said by the back end, which gets it, too. Anything else is our bug. */
function orRefused<T>(call: () => T, refused: T): T {
  try {
    return call();
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return refused;
  }
}

/** @returns false when the file ends, or takes no more */
function transferAll(call: Call, places: readonly Extent[], pieces: Pieces): boolean {
  const only = places[0]!;
  if (places.length === 1) return transferPart(call, only, pieces);
  return places.every((place) => transferPart(call, place, slicePieces(pieces, place.from, place.sizeBytes)));
}

function transferPart(call: Call, { fd, at }: Extent, pieces: Pieces): boolean {
  if (fd === NOWHERE) {
    for (const piece of pieces) piece.fill(0);
    return true;
  }
  const sizeBytes = bytesOf(pieces);
  for (let left = pieces, done = 0; done < sizeBytes;) {
    const bytes = call(fd, left as Uint8Array[], at + done);
    if (bytes === 0) return false;
    done += bytes;
    if (done < sizeBytes) left = skipBytes(left, bytes);
  }
  return true;
}

/** Of a place on the disk. @returns how much there is, from the beginning; 0 also when the system refuses */
function readSome(places: readonly Extent[] | undefined, into: Uint8Array): number {
  let done = 0;
  for (const { fd, at, from, sizeBytes } of places ?? []) {
    const part = into.subarray(from, from + sizeBytes);
    const bytes = fd === NOWHERE ? part.fill(0).length : orRefused(() => readvSync(fd, [part], at), 0);
    done += bytes;
    if (bytes < sizeBytes) break;
  }
  return done;
}
