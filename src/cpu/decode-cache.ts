// The cache of decoded code in machine memory (layout: abi/decode-cache.ts). One slot holds the decoded records of one
// physical page. Slots are shared by all pCPUs and never move; they are given back all at once, when no vCPU is in
// emitted code (`empty`).
//
// At the start of the region: slot count in use (u32), generation (u32), then from byte 64 one u32 per slot: the frame
// that it decodes.

import { HANDLER_DECODE, HANDLER_END_OF_PAGE, HANDLER_UNDEFINED, SLOT_BYTES, SLOT_RECORDS } from '../abi/decode-cache.ts';
import { FRAME } from '../abi/machine-memory.ts';
import { RECORD_BYTES, RECORD_IMM } from '../a64/operand.ts';
import { operandsOf } from '../a64/row.ts';
import { decode, handlerNumber } from '../a64/table.ts';
import { vOffset, xOffset } from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';

const PAGE_WORDS = 1024;
/** A run is decoded together up to its end; bounded, because what follows a branch may never be reached. */
const RUN_MAX = 64;

export class DecodeCache {
  readonly #machine: MachineMemory;
  readonly #used: number;
  readonly #frames: number;
  readonly #slots: number;
  readonly #slotCount: number;
  readonly #frameTable: number;
  /** A slot that this thread took and did not need, because another was faster; and the generation it belongs to. */
  #spare = -1;
  #spareGeneration = 0;

  constructor(machine: MachineMemory) {
    this.#machine = machine;
    const { offsetBytes, sizeBytes } = machine.region('code');
    this.#slotCount = Math.floor((sizeBytes - 64) / (SLOT_BYTES + 4));
    this.#used = offsetBytes / 4;
    this.#frames = this.#used + 16;
    this.#slots = Math.ceil((offsetBytes + 64 + 4 * this.#slotCount) / 64) * 64;
    if (this.#slots + this.#slotCount * SLOT_BYTES > offsetBytes + sizeBytes) this.#slotCount--;
    this.#frameTable = machine.region('frameTable').offsetBytes;
  }

  #decodeIndex(mfn: number): number {
    return (this.#frameTable + mfn * FRAME.sizeBytes + FRAME.at.decode) / 4;
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
    const address = this.#slots + slot * SLOT_BYTES;
    this.#machine.u8.fill(0, address, address + SLOT_BYTES);
    this.#machine.u16[(address + (SLOT_RECORDS - 1) * RECORD_BYTES) / 2] = HANDLER_END_OF_PAGE;
    return slot;
  }

  get slotsInUse(): number {
    return Math.min(Atomics.load(this.#machine.u32, this.#used), this.#slotCount);
  }

  /** Decodes from a record on, to the end of its run. */
  decodeRun(record: number): void {
    const { u16, u32 } = this.#machine;
    const slot = Math.floor((record - this.#slots) / SLOT_BYTES);
    const first = (record - this.#slots - slot * SLOT_BYTES) / RECORD_BYTES;
    assert(slot >= 0 && slot < this.#slotCount && first < PAGE_WORDS, 'a record outside the decode cache');
    const words = u32[this.#frames + slot]! * PAGE_WORDS;
    for (let index = first; index < Math.min(first + RUN_MAX, PAGE_WORDS); index++, record += RECORD_BYTES) {
      if (index > first && u16[record / 2] !== HANDLER_DECODE) return;
      if (this.#decodeOne(record, index, u32[words + index]!)) return;
    }
  }

  /** Operands first, handler last: see abi/decode-cache.ts. @returns true if the run ends here. */
  #decodeOne(record: number, index: number, word: number): boolean {
    const { u16, u32, u64 } = this.#machine;
    const found = decode(word);
    if (!found) {
      u16[record / 2] = HANDLER_UNDEFINED;
      return true;
    }
    const { row, fields } = found;
    const operands = operandsOf(row, fields);
    let far = false;
    for (const key in operands) {
      const { kind, value, place } = operands[key]!;
      if (kind === 'x') u16[(record + place) / 2] = xOffset(value as number);
      else if (kind === 'v') u16[(record + place) / 2] = vOffset(value as number);
      else if (kind === 'imm64') u64[(record + place) / 8] = value as bigint;
      else if (key === row.branch) {
        const target = index + (value as number) / 4;
        far = target < 0 || target >= PAGE_WORDS;
        u32[(record + RECORD_IMM) / 4] = far ? value as number : (value as number) * (RECORD_BYTES / 4);
      } else u32[(record + RECORD_IMM) / 4] = value as number;
    }
    u16[record / 2] = handlerNumber(row, fields, far);
    return row.ends;
  }

  /** Instructions of a cache line have changed (IC IVAU): they are decoded anew when they are reached. */
  invalidateLine(mfn: number, offsetInPage: number, lineBytes: number): void {
    const known = Atomics.load(this.#machine.u32, this.#decodeIndex(mfn));
    if (known === 0) return;
    const first = Math.floor(offsetInPage / lineBytes) * (lineBytes / 4);
    let record = this.#slots + (known - 1) * SLOT_BYTES + first * RECORD_BYTES;
    for (let i = 0; i < lineBytes / 4; i++, record += RECORD_BYTES) this.#machine.u16[record / 2] = HANDLER_DECODE;
  }

  /** Counts how often all slots were given back. */
  get generation(): number {
    return Atomics.load(this.#machine.u32, this.#used + 1);
  }

  /**
   * Gives all slots back. The caller has stopped all vCPUs and has their exec TLBs flushed before they run on; those
   * that are in the middle of an instruction see the new generation and leave the code they were in.
   */
  empty(): void {
    const { u32 } = this.#machine;
    const used = this.slotsInUse;
    for (let slot = 0; slot < used; slot++) {
      const index = this.#decodeIndex(u32[this.#frames + slot]!);
      if (u32[index] === slot + 1) Atomics.store(u32, index, 0);
    }
    Atomics.add(u32, this.#used + 1, 1);
    Atomics.store(u32, this.#used, 0);
  }
}
