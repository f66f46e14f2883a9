// The frame table: what each frame is, whom it is charged to, and how often it is in use. Records live in machine
// memory (FRAME in abi/machine-memory.ts) and are changed with Atomics, so any worker may count up or down.
//
// Two counts are kept apart in one word because they mean different things to a writer. *Mappings* are references
// from p2m entries: more than one means that a write must copy. *Pins* are uses by the hypervisor or a backend
// (shared_info, ring pages, buffers of a transfer): they keep the frame alive, but never make a guest's write copy,
// which would tear the guest's page from the page that the backend sees. A frame is free when both are zero; the
// functions here only count, memory/heap.ts frees.

import {
  FRAME, FRAME_COUNT_FREE, FRAME_MAPPING, FRAME_MAPPING_MASK, FRAME_PIN, FRAME_STATE, FRAME_STATE_MASK, HEAP,
} from '../abi/machine-memory.ts';
import { unreachable } from '../base/assert.ts';
import type { MachineMemory } from './machine-memory.ts';

const RECORD_WORDS = FRAME.sizeBytes / 4;
const OWNER = FRAME.at.owner / 4;
const COUNT = FRAME.at.count / 4;
const DECODE = FRAME.at.decode / 4;
const ORDER_SHIFT = 4;
const ORDER_MASK = 0xf;
/** Pins by callers stop at half of what the field holds, so that a mapping can always be turned into a pin. */
const PIN_LIMIT = 0x3fff;

/** So near to the end of what the count holds that each thread of the host could still add one. */
export const MAPPINGS_NEARLY_FULL = FRAME_MAPPING_MASK - 128;

const mappingsOf = (count: number): number => count & FRAME_MAPPING_MASK;
const pinsOf = (count: number) => count >>> 16;
const isFree = (count: number) => count === 0 || count >= FRAME_COUNT_FREE;
const isMapped = (count: number) => mappingsOf(count) > 0 && count < FRAME_COUNT_FREE;

export class FrameTable {
  readonly #words: Uint32Array;
  readonly #base: number;
  readonly #shared: number;

  constructor(memory: MachineMemory) {
    this.#words = memory.u32;
    this.#base = memory.region('frameTable').offsetBytes / 4;
    this.#shared = (memory.region('heap').offsetBytes + HEAP.at.sharedFrames) / 4;
  }

  /** Index in u32 of a frame's record. */
  recordIndex(mfn: number): number {
    return this.#base + mfn * RECORD_WORDS;
  }

  decodeIndex(mfn: number): number {
    return this.#base + mfn * RECORD_WORDS + DECODE;
  }

  /** One of FRAME_STATE. */
  state(mfn: number): number {
    return Atomics.load(this.#words, this.recordIndex(mfn)) & FRAME_STATE_MASK;
  }

  /** Of the first frame of a free block. */
  order(mfn: number): number {
    return (Atomics.load(this.#words, this.recordIndex(mfn)) >>> ORDER_SHIFT) & ORDER_MASK;
  }

  setState(mfn: number, state: number): void {
    Atomics.store(this.#words, this.recordIndex(mfn), state);
  }

  owner(mfn: number): number {
    return Atomics.load(this.#words, this.recordIndex(mfn) + OWNER);
  }

  /** References from p2m entries, and the one of a caller that has allocated the frame and not mapped it yet. */
  mappings(mfn: number): number {
    return mappingsOf(this.#count(mfn));
  }

  pins(mfn: number): number {
    const count = this.#count(mfn);
    return isFree(count) ? 0 : pinsOf(count);
  }

  /** Decoded-code slot + 1, or 0. Belongs to the cpu room; 0 in every frame that the heap hands out. */
  decode(mfn: number): number {
    return Atomics.load(this.#words, this.decodeIndex(mfn));
  }

  setDecode(mfn: number, decode: number): void {
    Atomics.store(this.#words, this.decodeIndex(mfn), decode);
  }

  /** Makes the record of a frame that nobody else can see yet. */
  claim(mfn: number, state: number, owner: number): void {
    const index = this.recordIndex(mfn);
    const words = this.#words;
    words[index] = state;
    words[index + OWNER] = owner;
    words[index + DECODE] = 0;
    Atomics.store(words, index + COUNT, FRAME_MAPPING);
  }

  /** Undoes `claim`, for a frame whose count has become zero. */
  disclaim(mfn: number): void {
    const index = this.recordIndex(mfn);
    const words = this.#words;
    words[index] = 0;
    words[index + OWNER] = 0;
    words[index + COUNT] = 0;
    words[index + DECODE] = 0;
  }

  /**
   * One more mapping of a frame that the caller holds a mapping of.
   * @returns false when the count is full; the caller must copy instead
   */
  retain(mfn: number): boolean {
    return this.#retain(mfn, 1, 'retain of a frame without a mapping');
  }

  /** As `retain`, where a pin of the caller's keeps the frame: the last mapping of it may be dropped at any moment. */
  retainPinned(mfn: number): boolean {
    return this.#retain(mfn, 0, 'retain of a frame without a pin');
  }

  #retain(mfn: number, mappingsMin: 0 | 1, complaint: string): boolean {
    const index = this.recordIndex(mfn) + COUNT;
    for (;;) {
      const count = Atomics.load(this.#words, index);
      const mappings = mappingsOf(count);
      if (isFree(count) || mappings < mappingsMin) this.#fail(complaint, mfn, count);
      if (mappings === FRAME_MAPPING_MASK) return false;
      if (Atomics.compareExchange(this.#words, index, count, count + FRAME_MAPPING) !== count) continue;
      if (mappings === 1) Atomics.add(this.#words, this.#shared, 1);
      return true;
    }
  }

  /**
   * `retain` for many frames: @returns the mappings there were; the caller counts those that were 1 in `noteShared`, and
   * takes the mapping back when they are too many (MAPPINGS_NEARLY_FULL).
   */
  addMapping(mfn: number): number {
    const before = Atomics.add(this.#words, this.#base + mfn * RECORD_WORDS + COUNT, FRAME_MAPPING);
    if (!isMapped(before)) this.#fail('retain of a frame without a mapping', mfn, before);
    return mappingsOf(before);
  }
  noteShared(frames: number): void {
    if (frames !== 0) Atomics.add(this.#words, this.#shared, frames);
  }

  /** @returns true when that was the last use: the caller must give the frame to the heap */
  dropMapping(mfn: number): boolean {
    const before = Atomics.sub(this.#words, this.recordIndex(mfn) + COUNT, FRAME_MAPPING);
    if (!isMapped(before)) this.#fail('release of a frame without a mapping', mfn, before);
    this.#noteDrop(before);
    return before === FRAME_MAPPING;
  }

  /** Drops a mapping if it is not the last one. @returns false, changing nothing, when it is */
  dropMappingIfShared(mfn: number): boolean {
    return this.#takeIfShared(mfn, -FRAME_MAPPING);
  }

  /** Turns a mapping of a shared frame into a pin of the caller's. @returns false when it is not shared any more */
  mappingToPinIfShared(mfn: number): boolean {
    return this.#takeIfShared(mfn, FRAME_PIN - FRAME_MAPPING);
  }

  mappingToPin(mfn: number): void {
    const before = Atomics.add(this.#words, this.recordIndex(mfn) + COUNT, FRAME_PIN - FRAME_MAPPING);
    if (!isMapped(before)) this.#fail('unmapping of a frame without a mapping', mfn, before);
    this.#noteDrop(before);
  }

  /**
   * One more pin. Needs no reference: a frame that is free, or freed meanwhile, is refused.
   * @returns false when the frame is free or pinned too often
   */
  pin(mfn: number): boolean {
    const index = this.recordIndex(mfn) + COUNT;
    for (;;) {
      const count = Atomics.load(this.#words, index);
      if (isFree(count) || pinsOf(count) >= PIN_LIMIT) return false;
      if (Atomics.compareExchange(this.#words, index, count, count + FRAME_PIN) === count) return true;
    }
  }

  /** @returns true when that was the last use: the caller must give the frame to the heap */
  dropPin(mfn: number): boolean {
    const before = Atomics.sub(this.#words, this.recordIndex(mfn) + COUNT, FRAME_PIN);
    if (isFree(before) || pinsOf(before) === 0) this.#fail('unpin of a frame without a pin', mfn, before);
    return before === FRAME_PIN;
  }

  #count(mfn: number): number {
    return Atomics.load(this.#words, this.recordIndex(mfn) + COUNT);
  }

  /** Our bug: says what there is to be known of the frame, since what went wrong with it was earlier and elsewhere. */
  #fail(what: string, mfn: number, count: number): never {
    const state = Object.keys(FRAME_STATE)[this.state(mfn)];
    unreachable(`${what}: frame ${mfn}, ${state}, of account ${this.owner(mfn)}, count ${count.toString(16)}`);
  }

  #noteDrop(before: number): void {
    if (mappingsOf(before) === 2) Atomics.sub(this.#words, this.#shared, 1);
  }

  #takeIfShared(mfn: number, change: number): boolean {
    const index = this.recordIndex(mfn) + COUNT;
    for (;;) {
      const count = Atomics.load(this.#words, index);
      if (!isMapped(count)) this.#fail('release of a frame without a mapping', mfn, count);
      if (mappingsOf(count) === 1) return false;
      if (Atomics.compareExchange(this.#words, index, count, count + change) !== count) continue;
      this.#noteDrop(count);
      return true;
    }
  }
}
