// Rings that other threads look after in the host's stead, reading and writing with system calls that wait (lane-server.ts):
// the disk thread, which the guest's events wake, and, for a small request that is alone, the thread of the vCPU that
// has made it. They do what most requests are, reads and writes of a disk that is one file or a chain of layers
// (lent-chain.ts), and give the ring back for everything else. Here is what the threads share, and the host's side. A ring
// is that of a paravirtual disk, or the queue of a virtio disk (lane-queue.ts).
//
//   host's thread    lend ──► served ◄────────────┐          one owner at a time; a request is taken from the ring by the
//                               │  requests wait   │ none left  one who answers it, so that nothing is done twice
//                               ▼                  │
//   disk thread, pCPU's       busy ────────────────┘
//                               │ it is none of mine, or `recall` ──► free: the host's again, at `position`
//                               └ `revoke`: what is begun is ended, and the ring not touched any more
//
// Whoever is busy reads or writes the ring only with the lane's lock, and after it has seen there that the ring has not
// been revoked: when `revoke` returns, the pages may become anybody's.

import { HOST_DOMAINS_MAX } from '../abi/domain-record.ts';
import { VIRTIO_SLOTS } from '../abi/emulated-devices.ts';
import { BLKIF_RING_PAGES_MAX } from '../abi/xen-block.ts';
import { assert } from '../base/assert.ts';
import { ringBell, spinLock, spinUnlock } from '../memory/spin.ts';
import { MAP_PAGES_BYTES, MapPages } from './map-pages.ts';

export const LANE_STATE = { free: 0, served: 1, busy: 2, recalled: 3, revoked: 4 } as const;
/** Why a ring came back by itself. `lost`: what the guest was told is written, the system then refused. */
export const LANE_RETURN = { asked: 0, request: 1, slow: 2, lost: 3 } as const;
export type LaneReturn = (typeof LANE_RETURN)[keyof typeof LANE_RETURN];

/** Where a guest tells of its requests: an event channel's port of the host, or a slot of a machine with emulated devices. */
export type LaneEnd = { readonly domid: number; readonly port: number } | { readonly domid: number; readonly slot: number };

/**
 * Words of a lane, and behind them doubles: the disk's size, and counters that only grow. `loan` tells one lending of the lane
 * from the next; `returns` is a bell, rung when the ring has become the host's; `isWanted`: the disk thread has found it
 * busy, and is to be woken; `place` is a port, or a slot. What is lent is written by the host while the lane is free, and read
 * by who is busy with it.
 */
const WORD = {
  state: 0, lock: 1, loan: 2, position: 3, why: 4, returns: 5, isWanted: 6, domid: 7, isDevice: 8, place: 9, fd: 10, alignBytes: 11,
  isReadOnly: 12, isLocal: 13, resets: 14, chain: 15, isOwn: 16, isVolatile: 17, ringPages: 18, ringMfns: 19,
} as const;
export const LANE_COUNTERS = [
  'reads', 'writes', 'flushes', 'readBytes', 'writtenBytes', 'byVcpus', 'notifications', 'badIndices', 'latencyMicrosSum', 'latencyMicrosMax',
] as const;
export type LaneCounter = (typeof LANE_COUNTERS)[number];
const DOUBLES_AT = 20;
const COUNTERS_AT = DOUBLES_AT + 1;
const LANE_BYTES = 320;
export const LANES_MAX = 512;
/** Behind the lanes: how many there have been at most, whether who serves them shall end, and the lanes of all slots, counted from 1. */
const END_AT = LANES_MAX * LANE_BYTES / 4;
const CLOSED_AT = END_AT + 1;
const SLOTS_AT = END_AT + 2;
/** And the maps of disks in layers. */
const MAPS_AT = Math.ceil((SLOTS_AT + HOST_DOMAINS_MAX * VIRTIO_SLOTS) / 1024) * 4096;
const TABLE_BYTES = MAPS_AT + MAP_PAGES_BYTES;
assert(WORD.ringMfns + BLKIF_RING_PAGES_MAX <= 2 * DOUBLES_AT && 8 * (COUNTERS_AT + LANE_COUNTERS.length) <= LANE_BYTES, 'a lane has room');

/** The words of all lanes, in every thread that has to do with them. */
export class LaneTable {
  readonly buffer: SharedArrayBuffer;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly maps: MapPages;
  readonly #f64: Float64Array;

  constructor(buffer = new SharedArrayBuffer(TABLE_BYTES)) {
    this.buffer = buffer;
    this.u32 = new Uint32Array(buffer, 0, MAPS_AT / 4);
    this.i32 = new Int32Array(buffer, 0, MAPS_AT / 4);
    this.#f64 = new Float64Array(buffer, 0, MAPS_AT / 8);
    this.maps = new MapPages(buffer, MAPS_AT);
  }

  index(lane: number, word: keyof typeof WORD): number {
    return lane * LANE_BYTES / 4 + WORD[word];
  }
  get(lane: number, word: keyof typeof WORD): number {
    return Atomics.load(this.u32, this.index(lane, word));
  }
  set(lane: number, word: keyof typeof WORD, value: number): void {
    Atomics.store(this.u32, this.index(lane, word), value);
  }
  /** No lane has this number or a larger one. */
  get count(): number {
    return Atomics.load(this.u32, END_AT);
  }
  /** Whoever serves lanes shall end. */
  close(): void {
    Atomics.store(this.u32, CLOSED_AT, 1);
  }
  get isClosed(): boolean {
    return Atomics.load(this.u32, CLOSED_AT) !== 0;
  }
  /** A lane is nobody's yet. */
  open(lane: number, end: LaneEnd): void {
    if (lane >= this.count) Atomics.store(this.u32, END_AT, lane + 1);
    this.set(lane, 'domid', end.domid);
    this.set(lane, 'isDevice', Number('slot' in end));
    this.set(lane, 'place', 'slot' in end ? end.slot : end.port);
    for (const name of LANE_COUNTERS) this.setCounter(lane, name, 0);
  }

  endOf(lane: number): LaneEnd {
    const [domid, place] = [this.get(lane, 'domid'), this.get(lane, 'place')];
    return this.get(lane, 'isDevice') === 0 ? { domid, port: place } : { domid, slot: place };
  }

  /** Who looks after a slot's requests from now on; undefined: the host. */
  routeSlot(domid: number, slot: number, lane: number | undefined): void {
    Atomics.store(this.u32, SLOTS_AT + domid * VIRTIO_SLOTS + slot, lane === undefined ? 0 : lane + 1);
  }
  /** As `routeSlot`. */
  laneOfSlot(domid: number, slot: number): number | undefined {
    const lane = Atomics.load(this.u32, SLOTS_AT + domid * VIRTIO_SLOTS + slot);
    return lane === 0 ? undefined : lane - 1;
  }

  setLoan(lane: number, number: number, loan: Loan): void {
    this.set(lane, 'loan', number);
    for (const name of ['position', 'fd', 'chain', 'alignBytes', 'resets'] as const) this.set(lane, name, loan[name]);
    for (const name of ['isReadOnly', 'isOwn', 'isVolatile', 'isLocal'] as const) this.set(lane, name, Number(loan[name]));
    this.set(lane, 'ringPages', loan.ringMfns.length);
    for (const [i, mfn] of loan.ringMfns.entries()) this.u32[this.index(lane, 'ringMfns') + i] = mfn;
    this.#f64[lane * LANE_BYTES / 8 + DOUBLES_AT] = loan.sizeBytes;
  }
  loan(lane: number): Loan {
    const first = this.index(lane, 'ringMfns');
    return {
      ringMfns: Array.from(this.u32.subarray(first, first + this.get(lane, 'ringPages'))), position: this.get(lane, 'position'),
      resets: this.get(lane, 'resets'), fd: this.get(lane, 'fd'), chain: this.get(lane, 'chain'), alignBytes: this.get(lane, 'alignBytes'),
      sizeBytes: this.#f64[lane * LANE_BYTES / 8 + DOUBLES_AT]!,
      isReadOnly: this.get(lane, 'isReadOnly') !== 0, isOwn: this.get(lane, 'isOwn') !== 0,
      isVolatile: this.get(lane, 'isVolatile') !== 0, isLocal: this.get(lane, 'isLocal') !== 0,
    };
  }

  /** @returns whether the state was `from` */
  move(lane: number, from: number, to: number): boolean {
    return Atomics.compareExchange(this.u32, this.index(lane, 'state'), from, to) === from;
  }
  locked<T>(lane: number, body: () => T): T {
    spinLock(this.u32, this.index(lane, 'lock'));
    try {
      return body();
    } finally {
      spinUnlock(this.u32, this.index(lane, 'lock'));
    }
  }

  #counter(lane: number, name: LaneCounter): number {
    return (lane * LANE_BYTES) / 8 + COUNTERS_AT + LANE_COUNTERS.indexOf(name);
  }
  counter(lane: number, name: LaneCounter): number {
    return this.#f64[this.#counter(lane, name)]!;
  }
  setCounter(lane: number, name: LaneCounter, value: number): void {
    this.#f64[this.#counter(lane, name)] = value;
  }
  /** The ring is the host's: wakes who waits for it. */
  ring(lane: number): void {
    ringBell(this.i32, this.index(lane, 'returns'));
  }
}

/** What a thread has to know to look after a ring. */
export interface Loan {
  /** Frames of the ring's pages, which stay mapped while it is lent; of a virtio disk, none. */
  readonly ringMfns: readonly number[];
  /** Answered requests; there are none under way. A virtio disk has that in its registers. */
  readonly position: number;
  /** How often the guest has reset a virtio disk. */
  readonly resets: number;
  /** That is written to. */
  readonly fd: number;
  /** Page of the chain that the disk is (abi/layer-map.ts); 0: the file is the disk. */
  readonly chain: number;
  /** What places and sizes in the file must be multiples of; 1: anything. */
  readonly alignBytes: number;
  readonly sizeBytes: number;
  /** The host has to look at every write. */
  readonly isReadOnly: boolean;
  /** Nobody but the guest writes to the disk. */
  readonly isOwn: boolean;
  /** Nothing of it is to last: a flush has nothing to do. */
  readonly isVolatile: boolean;
  /** A file system, or a disk, of this machine: whoever waits for it does so for a short while. */
  readonly isLocal: boolean;
}

/** One ring's place at the disk thread, as the back end sees it. */
export interface Lane {
  /** Whether a ring can be lent now. Asking is how the disk thread hears that it is wanted. */
  readonly isReady: boolean;
  /** @param onReturn called when the ring is the caller's again, unless `recall` or `revoke` said so at once */
  lend(loan: Loan, onReturn: (why: LaneReturn) => void): void;
  /** @returns true: it is back. Otherwise it comes back when the request that is under way has ended */
  recall(): boolean;
  /** From when this returns, the ring's pages are not touched. @returns as `recall` */
  revoke(): boolean;
  /** When the ring has come back: as in `Loan`, and the reason. */
  readonly position: number;
  readonly why: LaneReturn;
  /** For what is lent. */
  readonly maps: MapPages;
  counter(name: LaneCounter): number;
  /** Its ring is not lent; or has been revoked, and then it ends when that is back. */
  close(): void;
}

/** What a lane needs of the disk thread. */
export interface LaneThread {
  /** Whether it is there, and able to take more. */
  canTake(): boolean;
  /** The ring's events are not for the host from now on, and the thread is to look whether there is something in it. */
  take(): void;
  /** The ring's events are for the host again. */
  takeBack(): void;
  /** The lane is not needed any more. */
  closed(): void;
}

/** Of all lanes, so that one that is used again has no number of before. */
let nextLoan = 1;

/** The host's side of a lane. What it says of the ring's state is what both threads have agreed on. */
export class HostLane implements Lane {
  readonly #table: LaneTable;
  readonly #lane: number;
  readonly #thread: LaneThread;
  #onReturn: ((why: LaneReturn) => void) | undefined;
  #isRecalled = false;
  #isClosed = false;

  constructor(table: LaneTable, lane: number, thread: LaneThread) {
    this.#table = table;
    this.#lane = lane;
    this.#thread = thread;
  }

  get isReady(): boolean {
    return this.#onReturn === undefined && !this.#isClosed && this.#thread.canTake();
  }
  get position(): number {
    return this.#table.get(this.#lane, 'position');
  }
  get maps(): MapPages {
    return this.#table.maps;
  }
  get why(): LaneReturn {
    return this.#table.get(this.#lane, 'why') as LaneReturn;
  }
  counter(name: LaneCounter): number {
    return this.#table.counter(this.#lane, name);
  }

  lend(loan: Loan, onReturn: (why: LaneReturn) => void): void {
    assert(this.#onReturn === undefined && !this.#isClosed, 'a lane has one ring');
    this.#onReturn = onReturn;
    this.#isRecalled = false;
    const number = nextLoan;
    nextLoan = (nextLoan + 1) >>> 0;
    this.#table.setLoan(this.#lane, number, loan);
    this.#table.set(this.#lane, 'why', LANE_RETURN.asked);
    this.#table.set(this.#lane, 'state', LANE_STATE.served);
    this.#thread.take();
    void this.#awaitReturn(onReturn);
  }

  /** Whoever ends the lending rings the bell; what it means is in the state. */
  async #awaitReturn(onReturn: (why: LaneReturn) => void): Promise<void> {
    const { i32 } = this.#table;
    const bell = this.#table.index(this.#lane, 'returns');
    for (;;) {
      const heard = Atomics.load(i32, bell);
      if (this.#onReturn !== onReturn) return;
      if (this.#table.get(this.#lane, 'state') === LANE_STATE.free) break;
      const wait = Atomics.waitAsync(i32, bell, heard);
      if (wait.async) await wait.value;
    }
    if (!this.#isRecalled) this.#thread.takeBack();
    this.#end();
    onReturn(this.why);
  }

  recall(): boolean {
    const { served, busy, free, recalled } = LANE_STATE;
    if (this.#onReturn === undefined) return true;
    // Not later: when it has been revoked, its port may be somebody else's by then.
    if (!this.#isRecalled) this.#thread.takeBack();
    this.#isRecalled = true;
    for (;;) {
      if (this.#table.move(this.#lane, served, free)) return this.#back();
      const state = this.#table.get(this.#lane, 'state');
      // The call is on its way, and a caller who is told so now must not be told again.
      if (state === free) return this.#back();
      if (state === recalled || state === LANE_STATE.revoked || this.#table.move(this.#lane, busy, recalled)) return false;
    }
  }

  revoke(): boolean {
    if (this.recall()) return true;
    return this.#table.locked(this.#lane, () => {
      if (this.#table.move(this.#lane, LANE_STATE.recalled, LANE_STATE.revoked)) return false;
      return this.#table.get(this.#lane, 'state') === LANE_STATE.free && this.#back();
    });
  }

  /** Gives the ring back if no request is under way. */
  returnIdle(): void {
    const onReturn = this.#onReturn;
    if (onReturn === undefined || this.#table.get(this.#lane, 'state') !== LANE_STATE.served) return;
    if (this.recall()) onReturn(LANE_RETURN.asked);
  }

  #back(): true {
    this.#end();
    this.#table.ring(this.#lane);
    return true;
  }

  #end(): void {
    this.#onReturn = undefined;
    if (this.#isClosed) this.#thread.closed();
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.#onReturn === undefined) this.#thread.closed();
  }
}

/**
 * Looks from time to time whether the disk thread gets on. A file system that does not answer must hold up only the disks
 * that are on it: all other rings go back to the host.
 */
export class LaneWatch {
  readonly #table: LaneTable;
  readonly #lanes: ReadonlyMap<number, HostLane>;
  /** Requests that each lane had answered at the last look, of those where one was under way. */
  #busy = new Map<number, number>();
  #isStuck = false;

  constructor(table: LaneTable, lanes: ReadonlyMap<number, HostLane>) {
    this.#table = table;
    this.#lanes = lanes;
  }

  /** Whether a request was under way at the last look that had been so at the one before. Nothing is lent then. */
  get isStuck(): boolean {
    return this.#isStuck;
  }

  look(): void {
    const before = this.#busy;
    this.#busy = new Map();
    let isStuck = false;
    for (const lane of this.#lanes.keys()) {
      const state = this.#table.get(lane, 'state');
      if (state === LANE_STATE.free || state === LANE_STATE.served) continue;
      const answered = this.#table.counter(lane, 'reads') + this.#table.counter(lane, 'writes');
      isStuck ||= before.get(lane) === answered;
      this.#busy.set(lane, answered);
    }
    // First, since who gets his ring back would lend it again at once.
    this.#isStuck = isStuck;
    if (isStuck) for (const lane of this.#lanes.values()) lane.returnIdle();
  }
}
