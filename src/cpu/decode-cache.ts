// The cache of decoded code in machine memory (layout: abi/decode-cache.ts). One slot holds the decoded records of one
// physical page. Slots are shared by all pCPUs and never move; they are given back all at once, when no vCPU is in
// emitted code (`empty`).
//
// At the start of the region: slot count in use (u32), generation (u32), epoch of compiled regions (u32), slot count ever in
// use (u32), count of slots whose memory was touched, and to be touched (u32 each), then from byte 64 one u32 per slot: the frame
// that it decodes; and one more: bit 0 says that compiled regions begin in the slot, the rest counts invalidations.
//
// A record at which a compiled region begins has the region's number in place of its handler (jit/). All regions that begin
// in a page go when any of its instructions changes; those that go on in it look for the number of its content, which goes too.

import { FIRST_REGION, HANDLER_DECODE, HANDLER_END_OF_PAGE, SLOT_BYTES, SLOT_CONTENT, SLOT_RECORDS } from '../abi/decode-cache.ts';
import { FRAME, FRAME_STATE, FRAME_STATE_MASK } from '../abi/machine-memory.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { KnownRegions } from './jit/known-regions.ts';
import type { WordDecoder } from './word-decoder.ts';

const PAGE_WORDS = 1024;
/** A run is decoded together up to its end; bounded, because what follows a branch may never be reached. */
const RUN_MAX = 64;
/** Slots whose memory is touched before they are taken, 4 MiB: a restored guest takes some 190 before it speaks. */
const SLOTS_AHEAD = 256;
const PAGE_BYTES = 4096;
/** Offset in a slot of the record behind the last instruction's. */
const END_OF_PAGE = (SLOT_RECORDS - 1) * RECORD_BYTES;

/** A place in decoded code, and what tells whether it is still the same code. */
export interface CodePage {
  readonly slot: number;
  /** Of the instruction in the page. */
  readonly index: number;
  readonly mfn: number;
  readonly version: number;
  readonly generation: number;
}

export class DecodeCache {
  readonly #machine: MachineMemory;
  readonly #used: number;
  readonly #frames: number;
  readonly #versions: number;
  readonly #slots: number;
  readonly #slotCount: number;
  readonly #frameTable: number;
  /** Regions that are entered where code is decoded, if this thread has got any. */
  knownRegions: KnownRegions | undefined;
  readonly #wordDecoder: WordDecoder | undefined;
  /** A slot that this thread took and did not need, because another was faster; and the generation it belongs to. */
  #spare = -1;
  #spareGeneration = 0;

  /** @param wordDecoder of a thread that decodes: others load no instruction table for it */
  constructor(machine: MachineMemory, wordDecoder?: WordDecoder) {
    this.#machine = machine;
    this.#wordDecoder = wordDecoder;
    const { offsetBytes, sizeBytes } = machine.region('code');
    this.#slotCount = Math.floor((sizeBytes - 64) / (SLOT_BYTES + 8));
    this.#used = offsetBytes / 4;
    this.#frames = this.#used + 16;
    this.#versions = this.#frames + this.#slotCount;
    this.#slots = Math.ceil((offsetBytes + 64 + 8 * this.#slotCount) / 64) * 64;
    if (this.#slots + this.#slotCount * SLOT_BYTES > offsetBytes + sizeBytes) this.#slotCount--;
    this.#frameTable = machine.region('frameTable').offsetBytes;
  }

  get #decoder(): WordDecoder {
    assert(this.#wordDecoder !== undefined, 'a thread that does not decode has got to an instruction');
    return this.#wordDecoder;
  }

  /** Pages that it can hold decoded, and that it holds. */
  get capacity(): { slots: number; used: number } {
    return { slots: this.#slotCount, used: Math.min(this.#slotCount, this.#machine.u32[this.#used]!) };
  }
  /** Address of the first slot. */
  get slotsAddress(): number { return this.#slots; }

  #decodeIndex(mfn: number): number {
    return (this.#frameTable + mfn * FRAME.sizeBytes + FRAME.at.decode) / 4;
  }

  #isTable(mfn: number): boolean {
    const { u32 } = this.#machine;
    const state = Atomics.load(u32, (this.#frameTable + mfn * FRAME.sizeBytes + FRAME.at.state) / 4);
    return (state & FRAME_STATE_MASK) === FRAME_STATE.table;
  }

  /** Address of the frame's slot; takes a fresh one if it has none. 0 when all slots are in use: see `empty`. */
  slotFor(mfn: number): number {
    const { i32, u32 } = this.#machine;
    const index = this.#decodeIndex(mfn);
    const known = Atomics.load(u32, index);
    if (known !== 0) return this.#slots + (known - 1) * SLOT_BYTES;
    const slot = this.#takeSlot();
    if (slot < 0) return 0;
    u32[this.#frames + slot] = mfn;
    const winner = Atomics.compareExchange(i32, index, 0, slot + 1);
    if (winner !== 0) {
      this.#spare = slot;
      this.#spareGeneration = this.generation;
    }
    return this.#slots + ((winner || slot + 1) - 1) * SLOT_BYTES;
  }

  /** The same for a frame that has one, else 0. */
  knownSlot(mfn: number): number {
    const known = Atomics.load(this.#machine.u32, this.#decodeIndex(mfn));
    return known === 0 ? 0 : this.#slots + (known - 1) * SLOT_BYTES;
  }

  #takeSlot(): number {
    if (this.#spare >= 0 && this.#spareGeneration === this.generation) {
      const slot = this.#spare;
      this.#spare = -1;
      return slot;
    }
    const slot = Atomics.add(this.#machine.i32, this.#used, 1);
    if (slot >= this.#slotCount) {
      Atomics.sub(this.#machine.i32, this.#used, 1);
      return -1;
    }
    const { u16, u32 } = this.#machine;
    const first = (this.#slots + slot * SLOT_BYTES) / 2;
    // Of one that was used the handlers only: nobody looks at operands before they are decoded. One that never was is zero, and
    // memory that nobody has touched. A page of that is given by the system when it is written; who reads it first gets one
    // that all share, and another one when he writes, for which other threads are interrupted, since they might see the first.
    const step = slot < u32[this.#used + 3]! ? RECORD_BYTES : PAGE_BYTES;
    for (let offset = 0; offset < END_OF_PAGE; offset += step) u16[first + offset / 2] = HANDLER_DECODE;
    u16[first + END_OF_PAGE / 2] = HANDLER_END_OF_PAGE;
    this.#setContent(slot, 0n);
    return slot;
  }

  /** Has so many slots beyond those in use touched, by who calls `touchAhead`. @returns whether that is still to be done */
  wantAhead(): boolean {
    Atomics.store(this.#machine.u32, this.#used + 5, Math.min(this.slotsInUse + SLOTS_AHEAD, this.#slotCount));
    return this.wantsTouching;
  }
  /** Whether there is something for `touchAhead` to do. */
  get wantsTouching(): boolean {
    return this.#firstUntouched < Atomics.load(this.#machine.u32, this.#used + 5);
  }
  get #firstUntouched(): number {
    return Math.max(Atomics.load(this.#machine.u32, this.#used + 4), this.slotsInUse);
  }

  /**
   * Touches the memory of one of the slots that will be taken next: the system gives a process its memory when that is
   * touched first, which takes microseconds for each page, and those who take slots are in a hurry. Any thread, any time.
   */
  touchAhead(): void {
    const { i32, u32 } = this.#machine;
    const touched = Atomics.load(u32, this.#used + 4);
    const slot = this.#firstUntouched;
    if (!this.wantsTouching || Atomics.compareExchange(i32, this.#used + 4, touched, slot + 1) !== touched) return;
    // Somebody may have taken it: what is in it stays. (Other operations that change nothing read before they write.)
    const first = this.#slots + slot * SLOT_BYTES;
    for (let offset = 0; offset < SLOT_BYTES; offset += PAGE_BYTES) Atomics.compareExchange(i32, (first + offset) / 4, 0, 0);
  }

  /** The frame that a slot decodes, by the slot's address; 0: that is no slot in use. */
  frameOfSlot(address: number): number {
    const slot = (address - this.#slots) / SLOT_BYTES;
    return Number.isInteger(slot) && slot >= 0 && slot < this.slotsInUse ? this.#machine.u32[this.#frames + slot]! : 0;
  }

  get slotsInUse(): number {
    return Math.min(Atomics.load(this.#machine.u32, this.#used), this.#slotCount);
  }

  /** What a slot decodes: for as long as both are the same, nobody has said that its instructions have changed. */
  frameIn(slot: number): number { return this.#machine.u32[this.#frames + slot]!; }
  versionOf(slot: number): number { return Atomics.load(this.#machine.u32, this.#versions + slot) >>> 1; }
  /** Address of the record of an instruction. */
  recordOf(slot: number, index: number): number { return this.#slots + slot * SLOT_BYTES + index * RECORD_BYTES; }

  #placeOf(record: number): { slot: number; first: number } {
    const slot = Math.floor((record - this.#slots) / SLOT_BYTES);
    const first = (record - this.#slots - slot * SLOT_BYTES) / RECORD_BYTES;
    assert(slot >= 0 && slot < this.#slotCount && first < PAGE_WORDS, 'a record outside the decode cache');
    return { slot, first };
  }

  /** Decodes a word in advance. */
  learn(word: number): void {
    this.#decoder.find(word);
  }

  /** Which instructions of a frame are decoded: bit n % 32 of word n / 32 for instruction n. @returns undefined: none */
  decodedIn(mfn: number): Uint32Array | undefined {
    const slot = this.knownSlot(mfn);
    if (slot === 0) return undefined;
    const { u16 } = this.#machine;
    const bits = new Uint32Array(PAGE_WORDS / 32);
    for (let index = 0, lane = slot / 2; index < PAGE_WORDS; index++, lane += RECORD_BYTES / 2) {
      if (u16[lane] !== HANDLER_DECODE) bits[index >>> 5]! |= 1 << (index & 31);
    }
    return bits;
  }

  /** Decodes from a record on, to the end of its run. (A number that was read ahead may lead here when another was faster.) */
  decodeRun(record: number): void {
    const { u16, u32 } = this.#machine;
    const { slot, first } = this.#placeOf(record);
    const words = u32[this.#frames + slot]! * PAGE_WORDS;
    const end = Math.min(first + RUN_MAX, PAGE_WORDS);
    let index = first;
    for (let ends = false; !ends && index < end && u16[record / 2] === HANDLER_DECODE; index++, record += RECORD_BYTES) {
      ends = this.#decodeOne(record, index, u32[words + index]!);
    }
    if (this.knownRegions !== undefined) for (let each = first; each < index; each++) this.#enterKnown(slot, each);
  }

  /** An instruction has been decoded: enters the region that is known to begin there, if there is one. */
  #enterKnown(slot: number, index: number): void {
    const { knownRegions: known } = this;
    const { u32 } = this.#machine;
    if (!known!.begins(index, u32[u32[this.#frames + slot]! * PAGE_WORDS + index]!)) return;
    // Before its words are compared, so that it is not entered if they change meanwhile.
    const page = this.pageOf(this.recordOf(slot, index));
    const region = page === undefined ? -1 : known!.find(index, u32, page.mfn * PAGE_WORDS);
    if (region >= 0) this.enterRegion(page!, known!.indicesOf(region), known!.enter(region), []);
  }

  /** Decodes instructions of a slot that are not decoded yet. @param slot its address */
  decodeAhead(slot: number, first: number, count: number): void {
    const { u16, u32 } = this.#machine;
    const words = this.frameOfSlot(slot) * PAGE_WORDS;
    for (let index = first; index < first + count; index++) {
      const record = slot + index * RECORD_BYTES;
      if (u16[record / 2] === HANDLER_DECODE) this.#decodeOne(record, index, u32[words + index]!);
    }
  }

  /** @returns true if the run ends here */
  #decodeOne(record: number, index: number, word: number): boolean {
    return this.#decoder.decodeTo(this.#machine.u16, this.#machine.u32, record, index, word);
  }

  /**
   * Instructions of a cache line have changed (IC IVAU): they are decoded anew when they are reached.
   * @param whileStopped calls back while no vCPU that could run them is in code: a handler whose record is decoded anew
   *   under it would take operands of one instruction for those of another
   */
  invalidateLine(mfn: number, offsetInPage: number, lineBytes: number, whileStopped: (action: () => void) => void): void {
    const { u16, u32 } = this.#machine;
    const slot = Atomics.load(u32, this.#decodeIndex(mfn)) - 1;
    if (slot < 0) return;
    // A region that is being compiled from what stood here before must not come.
    Atomics.add(u32, this.#versions + slot, 2);
    const first = this.#slots + slot * SLOT_BYTES + Math.floor(offsetInPage / lineBytes) * (lineBytes / 4) * RECORD_BYTES;
    const end = first + (lineBytes / 4) * RECORD_BYTES;
    let record = first;
    while (record < end && u16[record / 2] === HANDLER_DECODE) record += RECORD_BYTES;
    // What no record has been made of is in no region of this page either; nor of another, while nobody knows what is in it.
    if (record === end && this.#contentOf(slot) === 0n) return;
    whileStopped(() => {
      this.#dropRegions(slot);
      this.#setContent(slot, 0n);
      for (record = first; record < end; record += RECORD_BYTES) u16[record / 2] = HANDLER_DECODE;
    });
  }

  // ---- compiled regions

  /** Where a record is, for the compiler; undefined when its page has gone. */
  pageOf(record: number): CodePage | undefined {
    const { u32 } = this.#machine;
    const generation = this.generation;
    const { slot, first } = this.#placeOf(record);
    const mfn = u32[this.#frames + slot]!;
    const version = Atomics.load(u32, this.#versions + slot) >>> 1;
    if (slot >= this.slotsInUse || Atomics.load(u32, this.#decodeIndex(mfn)) !== slot + 1) return undefined;
    return { slot, index: first, mfn, version, generation };
  }

  /**
   * Has a region run at a record, unless the page has changed since `pageOf`. Only by a thread that counts as in code,
   * so that slots are not given back meanwhile.
   * @param indices of all its instructions in the page: their records get decoded, for a region may leave one to its handler
   * @param contents of pages, as far as they are known
   */
  enterRegion(
    { slot, index, version, generation, mfn }: CodePage, indices: Iterable<number>, tableIndex: number,
    contents: Iterable<{ page: CodePage; content: bigint }>,
  ): boolean {
    const { u16, u32 } = this.#machine;
    for (const { page, content } of contents) this.#markContent(page, content);
    const isSame = (): boolean => Atomics.load(u32, this.#versions + slot) >>> 1 === version && this.generation === generation;
    if (!isSame()) return false;
    const base = this.#slots + slot * SLOT_BYTES;
    const decoded: number[] = [];
    for (const each of indices) {
      const record = base + each * RECORD_BYTES;
      if (Atomics.load(u16, record / 2) !== HANDLER_DECODE) continue;
      this.#decodeOne(record, each, u32[mfn * PAGE_WORDS + each]!);
      if (each !== index) decoded.push(each);
    }
    Atomics.or(u32, this.#versions + slot, 1);
    const entry = (base + index * RECORD_BYTES) / 2;
    Atomics.store(u16, entry, tableIndex);
    if (this.knownRegions !== undefined) for (const each of decoded) this.#enterKnown(slot, each);
    if (isSame()) return true;
    Atomics.compareExchange(u16, entry, tableIndex, HANDLER_DECODE);
    return false;
  }

  /**
   * Says what is in a page, for regions that go on in it from another one; unless it has changed since `pageOf`.
   * @param content its number (jit/page-contents.ts)
   */
  #markContent({ slot, version, generation }: CodePage, content: bigint): void {
    const isSame = (): boolean => Atomics.load(this.#machine.u32, this.#versions + slot) >>> 1 === version && this.generation === generation;
    if (!isSame()) return;
    this.#setContent(slot, content);
    if (!isSame()) this.#setContent(slot, 0n);
  }
  #contentAt(slot: number): number { return (this.#slots + slot * SLOT_BYTES + SLOT_CONTENT) / 8; }
  #contentOf(slot: number): bigint { return Atomics.load(this.#machine.u64, this.#contentAt(slot)); }
  #setContent(slot: number, content: bigint): void {
    Atomics.store(this.#machine.u64, this.#contentAt(slot), content);
  }

  #dropRegions(slot: number): void {
    const { u16, u32 } = this.#machine;
    const version = this.#versions + slot;
    const hadRegions = (Atomics.and(u32, version, ~1) & 1) !== 0;
    if (!hadRegions) return;
    const first = (this.#slots + slot * SLOT_BYTES) / 2;
    for (let at = first; at < first + PAGE_WORDS * (RECORD_BYTES / 2); at += RECORD_BYTES / 2) {
      if (u16[at]! >= FIRST_REGION) Atomics.store(u16, at, HANDLER_DECODE);
    }
  }

  /** Counts how often all slots were given back, or decoded code has changed under vCPUs that may be in it. */
  get generation(): number {
    return Atomics.load(this.#machine.u32, this.#used + 1);
  }

  /** What was decoded has changed: a vCPU that is in the middle of an instruction does not return to its code. */
  renew(): void {
    Atomics.add(this.#machine.u32, this.#used + 1, 1);
  }

  /** Whether no record names a region of before this epoch: it goes up when all are given up (jit/region-parcels.ts). */
  knowsRegionEpoch(epoch: number): boolean {
    return ((Atomics.load(this.#machine.u32, this.#used + 2) - epoch) | 0) >= 0;
  }

  /**
   * Gives all slots back. The caller has stopped all vCPUs and has their exec TLBs flushed before they run on; those
   * that are in the middle of an instruction see the new generation and leave the code they were in.
   * @param regionEpoch of the regions that records may name from now on, if it is a later one
   */
  empty(regionEpoch?: number): void {
    const { u32 } = this.#machine;
    const used = this.slotsInUse;
    for (let slot = 0; slot < used; slot++) {
      const mfn = u32[this.#frames + slot]!;
      const index = this.#decodeIndex(mfn);
      // What was code may have become a root of a p2m, which has its lock there, and a number in it that is like the slot's.
      if (u32[index] === slot + 1 && !this.#isTable(mfn)) Atomics.store(u32, index, 0);
    }
    if (regionEpoch !== undefined && !this.knowsRegionEpoch(regionEpoch)) Atomics.store(u32, this.#used + 2, regionEpoch);
    Atomics.add(u32, this.#used + 1, 1);
    u32[this.#used + 3] = Math.max(u32[this.#used + 3]!, used);
    Atomics.store(u32, this.#used, 0);
  }
}
