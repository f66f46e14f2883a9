// The heap's free lists: buddies by order, clean and dirty blocks apart. Lists and links are in machine memory; the
// caller holds the heap lock around every method but `count`.
//
// A free block of 2^order frames is known by the record of its first frame: state clean or dirty with the order,
// `owner` the next block of the list, `count` FRAME_COUNT_FREE with the previous one (0: none, as MFN 0 is never
// free). The records of its other frames are blank. Two buddies merge when both are free, of one order and of one
// kind; a clean one never merges with a dirty one, as that would lose what we know about half of it.

import { FRAME, FRAME_COUNT_FREE, FRAME_STATE, HEAP, HEAP_ORDER_MAX } from '../abi/machine-memory.ts';
import type { FrameTable } from './frame-table.ts';
import type { MachineMemory } from './machine-memory.ts';

export const CLEAN = 0;
export const DIRTY = 1;
/** Which lists: CLEAN or DIRTY. */
export type Kind = typeof CLEAN | typeof DIRTY;

const NEXT = FRAME.at.owner / 4;
const PREVIOUS = FRAME.at.count / 4;
const ORDERS = HEAP_ORDER_MAX + 1;

const lowestBit = (mask: number) => 31 - Math.clz32(mask & -mask);
const blockState = (kind: Kind, order: number) => (FRAME_STATE.clean + kind) | (order << 4);

export class FreeLists {
  readonly #words: Uint32Array;
  readonly #frames: FrameTable;
  readonly #free: number;
  readonly #masks: number;
  readonly #heads: number;
  readonly #firstFrame: number;
  readonly #frameEnd: number;

  constructor(memory: MachineMemory, frames: FrameTable) {
    const heap = memory.region('heap').offsetBytes;
    this.#words = memory.u32;
    this.#frames = frames;
    this.#free = (heap + HEAP.at.freeFrames) / 4;
    this.#masks = (heap + HEAP.at.orderMask) / 4;
    this.#heads = (heap + HEAP.at.lists) / 4;
    this.#firstFrame = memory.firstFrame;
    this.#frameEnd = memory.frameEnd;
  }

  /** Free frames of a kind; may be called without the lock as a hint. */
  count(kind: Kind): number {
    return Atomics.load(this.#words, this.#free + kind);
  }

  /** Adds `count` frames from `mfn` on, whatever their alignment. */
  put(kind: Kind, mfn: number, count: number): void {
    this.#words[this.#free + kind]! += count;
    while (count > 0) {
      const order = Math.min(lowestBit(mfn), 31 - Math.clz32(count), HEAP_ORDER_MAX);
      this.#merge(kind, mfn, order);
      mfn += 1 << order;
      count -= 1 << order;
    }
  }

  /** @returns the first frame of a block of exactly that order, or 0 */
  take(kind: Kind, order: number): number {
    const mask = this.#words[this.#masks + kind]! >>> order;
    if (mask === 0) return 0;
    let from = order + lowestBit(mask);
    const mfn = this.#words[this.#heads + kind * ORDERS + from]!;
    this.#unlink(kind, mfn, from);
    while (from > order) {
      from--;
      this.#link(kind, mfn + (1 << from), from);
    }
    this.#words[this.#free + kind]! -= 1 << order;
    return mfn;
  }

  /** The order of the smallest free block, or -1. */
  smallestOrder(kind: Kind): number {
    const mask = this.#words[this.#masks + kind]!;
    return mask === 0 ? -1 : lowestBit(mask);
  }

  /** The order of the largest free block, or -1. */
  largestOrder(kind: Kind): number {
    return 31 - Math.clz32(this.#words[this.#masks + kind]!);
  }

  /** The first block of a list, or 0. */
  first(kind: Kind, order: number): number {
    return this.#words[this.#heads + kind * ORDERS + order]!;
  }

  next(mfn: number): number {
    return this.#words[this.#frames.recordIndex(mfn) + NEXT]!;
  }

  #merge(kind: Kind, mfn: number, order: number): void {
    for (; order < HEAP_ORDER_MAX; order++) {
      const buddy = mfn ^ (1 << order);
      if (buddy < this.#firstFrame || buddy >= this.#frameEnd) break;
      if (Atomics.load(this.#words, this.#frames.recordIndex(buddy)) !== blockState(kind, order)) break;
      this.#unlink(kind, buddy, order);
      if (buddy < mfn) mfn = buddy;
    }
    this.#link(kind, mfn, order);
  }

  #link(kind: Kind, mfn: number, order: number): void {
    const words = this.#words;
    const head = this.#heads + kind * ORDERS + order;
    const next = words[head]!;
    const record = this.#frames.recordIndex(mfn);
    words[record + NEXT] = next;
    Atomics.store(words, record + PREVIOUS, FRAME_COUNT_FREE);
    Atomics.store(words, record, blockState(kind, order));
    if (next !== 0) words[this.#frames.recordIndex(next) + PREVIOUS] = (FRAME_COUNT_FREE | mfn) >>> 0;
    words[head] = mfn;
    words[this.#masks + kind]! |= 1 << order;
  }

  #unlink(kind: Kind, mfn: number, order: number): void {
    const words = this.#words;
    const record = this.#frames.recordIndex(mfn);
    const next = words[record + NEXT]!;
    const previous = words[record + PREVIOUS]! & ~FRAME_COUNT_FREE;
    const head = this.#heads + kind * ORDERS + order;
    if (next !== 0) words[this.#frames.recordIndex(next) + PREVIOUS] = (FRAME_COUNT_FREE | previous) >>> 0;
    if (previous !== 0) words[this.#frames.recordIndex(previous) + NEXT] = next;
    else {
      words[head] = next;
      if (next === 0) words[this.#masks + kind]! &= ~(1 << order);
    }
    this.#frames.disclaim(mfn);
  }
}
