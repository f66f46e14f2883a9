// Guest memory by guest physical address, for devices that the host's thread serves: what the guest says lies where, it
// may take away at any time, so every page is pinned while it is used, and what is not RAM is a fault of the guest's.

import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES, GFN_LIMIT, P2M_KIND } from '../abi/machine-memory.ts';
import { NOT_MEMORY, OUT_OF_FRAMES, PAGE_LOST, entryKind } from '../memory/p2m.ts';
import type { DomainRecord } from './domain-record.ts';
import { settleP2m } from './environment.ts';
import type { Environment } from './environment.ts';

export interface GuestRange {
  /** Guest physical; below 2^64, exact below 2^53. */
  readonly address: number;
  readonly sizeBytes: number;
}

/** `later`: the host cannot have the page now. */
export type RamAnswer = 'done' | 'fault' | 'later';

/** A part of a pinned page: host address, and how many bytes from there. */
interface Piece {
  readonly at: number;
  readonly sizeBytes: number;
}

const LIMIT_BYTES = GFN_LIMIT * FRAME_BYTES;

export class GuestRam {
  readonly #environment: Environment;
  readonly #record: DomainRecord;

  constructor(environment: Environment, record: DomainRecord) {
    this.#environment = environment;
    this.#record = record;
  }

  /** Copies from the guest. After a fault, some bytes may have been. */
  read(range: GuestRange, into: Uint8Array): RamAnswer {
    const { memory, heap } = this.#environment;
    return this.#eachPage(range, (gfn, offset, sizeBytes, done) => {
      const mfn = this.#pinForRead(gfn);
      if (mfn <= 0) return mfn;
      const from = mfn * FRAME_BYTES + offset;
      into.set(memory.u8.subarray(from, from + sizeBytes), done);
      heap.unpin(mfn);
      return mfn;
    });
  }

  /**
   * Pins memory to be written, in one go, by the caller.
   * @param ranges in the order in which bytes are to be put there
   */
  pinForWrite(ranges: readonly GuestRange[]): PinnedRanges | 'fault' | 'later' {
    const { p2m } = this.#environment;
    const pinned = new PinnedRanges(this.#environment);
    let answer: RamAnswer = 'done';
    for (const range of ranges) {
      answer = this.#eachPage(range, (gfn, offset, sizeBytes) => {
        const mfn = p2m.pinForWrite(this.#root, gfn);
        if (mfn > 0) pinned.add(mfn, offset, sizeBytes);
        return mfn;
      });
      if (answer !== 'done') break;
    }
    // Before anything is written: the guest's vCPUs must not go on reading what these pages were copied from.
    settleP2m(this.#environment, this.#record.domid);
    if (answer === 'done') return pinned;
    pinned.unpin();
    return answer;
  }

  /**
   * A 16-bit word, which the guest wrote after what it tells of: what is read afterwards is what it wrote before.
   * @param address a multiple of 2
   */
  load16(address: number): number | 'fault' | 'later' {
    const { memory, heap } = this.#environment;
    let value = 0;
    const answer = this.#eachPage({ address, sizeBytes: 2 }, (gfn, offset) => {
      const mfn = this.#pinForRead(gfn);
      if (mfn <= 0) return mfn;
      value = Atomics.load(memory.u16, (mfn * FRAME_BYTES + offset) / 2);
      heap.unpin(mfn);
      return mfn;
    });
    return answer === 'done' ? value : answer;
  }

  /** As `P2m.pinForWrite` answers: what is memory, but cannot be had now, is told from what is none. */
  #pinForRead(gfn: number): number {
    const { p2m } = this.#environment;
    const mfn = p2m.pinForRead(this.#root, gfn);
    if (mfn > 0) return mfn;
    return entryKind(p2m.lookup(this.#root, gfn)) === P2M_KIND.absent ? NOT_MEMORY : OUT_OF_FRAMES;
  }

  get #root(): number {
    return this.#record.get(DOMAIN.at.p2mRoot);
  }

  #eachPage(
    { address, sizeBytes }: GuestRange, visit: (gfn: number, offset: number, sizeBytes: number, done: number) => number,
  ): RamAnswer {
    if (!(address + sizeBytes <= LIMIT_BYTES)) return 'fault';
    for (let done = 0; done < sizeBytes;) {
      const offset = (address + done) % FRAME_BYTES;
      const length = Math.min(sizeBytes - done, FRAME_BYTES - offset);
      const mfn = visit(Math.floor((address + done) / FRAME_BYTES), offset, length, done);
      if (mfn <= 0) return mfn === OUT_OF_FRAMES || mfn === PAGE_LOST ? 'later' : 'fault';
      done += length;
    }
    return 'done';
  }
}

/** Pages that are the guest's alone and stay where they are until `unpin`. */
export class PinnedRanges {
  readonly #environment: Environment;
  readonly #pieces: Piece[] = [];
  readonly #mfns: number[] = [];

  constructor(environment: Environment) {
    this.#environment = environment;
  }

  add(mfn: number, offset: number, sizeBytes: number): void {
    this.#mfns.push(mfn);
    this.#pieces.push({ at: mfn * FRAME_BYTES + offset, sizeBytes });
  }

  /** Puts bytes where the ranges are, as far as they go, from `skipBytes` on. */
  write(bytes: Uint8Array, skipBytes = 0): void {
    const { u8 } = this.#environment.memory;
    let skip = skipBytes;
    let done = 0;
    for (const { at, sizeBytes } of this.#pieces) {
      const within = Math.min(skip, sizeBytes);
      skip -= within;
      const length = Math.min(sizeBytes - within, bytes.length - done);
      if (length > 0) u8.set(bytes.subarray(done, done + length), at + within);
      done += length;
    }
  }

  /** Host address of a range that is one piece, counted from the last one: -1, -2 … */
  addressOf(fromEnd: number): number {
    return this.#pieces.at(fromEnd)!.at;
  }

  unpin(): void {
    for (const mfn of this.#mfns) this.#environment.heap.unpin(mfn);
    this.#mfns.length = 0;
    this.#pieces.length = 0;
  }
}
