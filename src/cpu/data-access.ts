// Loads and stores that miss the TLB: translation, page crossings, emulated registers, faults; and the guest-memory
// access of hypercalls, which goes through the same translation.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { scratchOffset, tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import { ACCESS_ALIGNED, ACCESS_UNPRIVILEGED } from './emitted-calls.ts';
import type { Engine } from './engine.ts';
import { exceptionClass, faultStatus, syndrome } from './exceptions.ts';
import { NO_FRAME } from './host.ts';
import type { ExitReason } from './host.ts';
import { fillDataTlb, noteFill, probeDataTlb } from './tlb.ts';
import { ACCESS_READ, ACCESS_WRITE } from './translation.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
const SCTLR_A = 2;
const ISS_WNR = 1 << 6;
/** Results of `#locate` that are no host address. */
const FAULTED = -1;
const MMIO = -2;
/** Of `#nextPage`: all TLBs were flushed meanwhile, so the first page has to be looked up again. */
const AGAIN = -3;

export class DataAccess {
  readonly #engine: Engine;
  /** Physical address behind the last MMIO answer of `#locate`. */
  #physical = 0;
  #mustRetry = false;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Into scratch words 0 and 1. See emitted-calls.ts. */
  load(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number): void {
    const size = sizeAndFlags & 0xff;
    const scratch = vcpu.address + scratchOffset(0);
    const first = this.#begin(vcpu, low, high, sizeAndFlags, ACCESS_READ);
    if (first === FAULTED) return;
    const inPage = FRAME_BYTES - (low & 0xfff);
    if (first === MMIO) return this.#mmio(vcpu, low, high, size, ACCESS_READ);
    vcpu.setHalves(scratchOffset(0), 0, 0);
    vcpu.setHalves(scratchOffset(1), 0, 0);
    if (size <= inPage) {
      this.#copy(scratch, first, size);
      return;
    }
    const second = this.#nextPage(vcpu, low, high, sizeAndFlags, ACCESS_READ);
    if (second === AGAIN) return this.load(vcpu, low, high, sizeAndFlags);
    if (second < 0) return;
    this.#copy(scratch, first, inPage);
    this.#copy(scratch + inPage, second, size - inPage);
  }

  /** From scratch words 0 and 1. */
  store(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number): void {
    const size = sizeAndFlags & 0xff;
    const scratch = vcpu.address + scratchOffset(0);
    const first = this.#begin(vcpu, low, high, sizeAndFlags, ACCESS_WRITE);
    if (first === FAULTED) return;
    const inPage = FRAME_BYTES - (low & 0xfff);
    if (first === MMIO) return this.#mmio(vcpu, low, high, size, ACCESS_WRITE);
    if (size <= inPage) {
      this.#copy(first, scratch, size);
      return;
    }
    const second = this.#nextPage(vcpu, low, high, sizeAndFlags, ACCESS_WRITE);
    if (second === AGAIN) return this.store(vcpu, low, high, sizeAndFlags);
    if (second < 0) return;
    this.#copy(first, scratch, inPage);
    this.#copy(second, scratch + inPage, size - inPage);
  }

  /**
   * Between a scratch word and the guest's memory, in the largest aligned units: what is aligned, or one half of a pair that
   * is, other vCPUs see written as a whole or not at all (a copy of bytes on shared memory may be seen half done). In
   * order with everything else, for accesses that ask for it.
   */
  #copy(to: number, from: number, sizeBytes: number): void {
    const { u8, u16, u32, u64 } = this.#engine.machine;
    const together = to | from | sizeBytes;
    const log2 = (together & 7) === 0 ? 3 : (together & 3) === 0 ? 2 : together & 1 ? 0 : 1;
    const [source, target, count] = [from / (1 << log2), to / (1 << log2), sizeBytes >> log2];
    if (log2 === 3) {
      for (let i = 0; i < count; i++) Atomics.store(u64, target + i, Atomics.load(u64, source + i));
      return;
    }
    const units = log2 === 2 ? u32 : log2 === 1 ? u16 : u8;
    for (let i = 0; i < count; i++) Atomics.store(units, target + i, Atomics.load(units, source + i));
  }

  /** Makes a TLB entry, for accesses that must go through one. Where none can be, the access is not supported. */
  fill(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number, isWrite: boolean): void {
    const access = isWrite ? ACCESS_WRITE : ACCESS_READ;
    for (;;) {
      const host = this.#begin(vcpu, low, high, sizeAndFlags, access);
      if (host < 0) {
        if (host === MMIO) this.#dataAbort(vcpu, low, high, faultStatus.exclusiveUnsupported, access);
        return;
      }
      const mfn = Math.floor(host / FRAME_BYTES);
      if (!this.#engine.stageTwo.isZeroFrame(mfn)) return this.#fillTlb(vcpu, low, high, sizeAndFlags, access, mfn);
      // A monitor on the zero frame could never be satisfied by a store, which goes to another frame.
      const own = this.#engine.stageTwo.frameForWrite(vcpu, Math.floor(this.#physical / FRAME_BYTES));
      if (own === NO_FRAME) {
        this.#stop(vcpu, 'noFrame');
        return;
      }
    }
  }

  #begin(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number, access: 0 | 1): number {
    vcpu.set32(at.abort, 0);
    const size = sizeAndFlags & 0xff;
    const mustAlign = (sizeAndFlags & ACCESS_ALIGNED) !== 0 || (vcpu.get32(at.sctlrEl1) & SCTLR_A) !== 0;
    // A pair or a vector of sixteen bytes need only be aligned to its elements.
    if (mustAlign && low & ((sizeAndFlags & ACCESS_ALIGNED ? size : Math.min(size, 8)) - 1)) {
      return this.#dataAbort(vcpu, low, high, faultStatus.alignment, access);
    }
    return this.#locate(vcpu, low, high, sizeAndFlags, access);
  }

  /** Host address of a virtual address, with a TLB entry made on the way; or FAULTED or MMIO. */
  #locate(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number, access: 0 | 1): number {
    const { translation, stageTwo } = this.#engine;
    const el = sizeAndFlags & ACCESS_UNPRIVILEGED ? 0 : vcpu.el;
    const flushes = vcpu.get32(at.tlbFlushDone);
    if (!translation.translate(vcpu, low, high, access, el)) {
      return translation.status === NO_FRAME
        ? this.#stop(vcpu, 'noFrame') : this.#dataAbort(vcpu, low, high, translation.status, access);
    }
    const { guestFrame } = translation;
    const mfn = access === ACCESS_WRITE ? stageTwo.frameForWrite(vcpu, guestFrame) : stageTwo.frameForRead(vcpu, guestFrame);
    if (mfn === NO_FRAME) return this.#stop(vcpu, 'noFrame');
    if (this.#engine.codeIsGone) return this.#stop(vcpu, 'slice');
    // The frame was waited for, and meanwhile another vCPU has changed the tables and had all TLBs flushed.
    if (vcpu.get32(at.tlbFlushDone) !== flushes) return this.#locate(vcpu, low, high, sizeAndFlags, access);
    this.#physical = guestFrame * FRAME_BYTES + (low & 0xfff);
    if (mfn === 0) return MMIO;
    if (translation.device && low & (Math.min(sizeAndFlags & 0xff, 8) - 1)) {
      return this.#dataAbort(vcpu, low, high, faultStatus.alignment, access);
    }
    // Emitted code does not look at SCTLR_EL1.A: while it is set, accesses stay on the slow path. (Entries that atomics
    // make are not kept from others; those pages are checked less strictly.)
    const isChecked = (vcpu.get32(at.sctlrEl1) & SCTLR_A) !== 0;
    if (!translation.device && !isChecked && !stageTwo.isZeroFrame(mfn)) this.#fillTlb(vcpu, low, high, sizeAndFlags, access, mfn);
    return mfn * FRAME_BYTES + (low & 0xfff);
  }

  #fillTlb(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number, access: 0 | 1, mfn: number): void {
    const el = sizeAndFlags & ACCESS_UNPRIVILEGED ? 0 : vcpu.el as 0 | 1;
    const tlb = tlbOffsets[el];
    const { reach, global, user } = this.#engine.translation;
    noteFill(vcpu, low, high, reach, global, el, user);
    fillDataTlb(vcpu, access === ACCESS_WRITE ? tlb.write : tlb.read, low, high, mfn);
  }

  /** The second page of an access that crosses; emulated registers are not crossed into. */
  #nextPage(vcpu: VcpuState, low: number, high: number, sizeAndFlags: number, access: 0 | 1): number {
    const nextLow = ((low & ~0xfff) + FRAME_BYTES) >>> 0;
    const nextHigh = nextLow === 0 ? (high + 1) | 0 : high;
    const flushes = vcpu.get32(at.tlbFlushDone);
    const host = this.#locate(vcpu, nextLow, nextHigh, sizeAndFlags, access);
    // What is known of the first page is of the time before a flush.
    if (host >= 0 && vcpu.get32(at.tlbFlushDone) !== flushes) return AGAIN;
    return host === MMIO ? this.#dataAbort(vcpu, nextLow, nextHigh, faultStatus.externalAbort, access) : host;
  }

  #mmio(vcpu: VcpuState, low: number, high: number, size: number, access: 0 | 1): void {
    const { host } = this.#engine;
    if (access === ACCESS_READ) {
      vcpu.setHalves(scratchOffset(0), 0, 0);
      vcpu.setHalves(scratchOffset(1), 0, 0);
    }
    const done = size <= 8 && (low & (size - 1)) === 0
      && (access === ACCESS_READ ? host.mmioLoad(vcpu, this.#physical, size) : host.mmioStore(vcpu, this.#physical, size));
    if (!done) this.#dataAbort(vcpu, low, high, faultStatus.externalAbort, access);
  }

  #stop(vcpu: VcpuState, reason: ExitReason): typeof FAULTED {
    vcpu.set32(at.abort, 1);
    this.#engine.stopBefore(vcpu, reason);
    return FAULTED;
  }

  #dataAbort(vcpu: VcpuState, low: number, high: number, status: number, access: 0 | 1): typeof FAULTED {
    vcpu.set32(at.abort, 1);
    vcpu.setHalves(at.farEl1, low, high);
    const ec = vcpu.el === 0 ? exceptionClass.dataAbortLower : exceptionClass.dataAbort;
    this.#engine.fault(vcpu, syndrome(ec, status | (access === ACCESS_WRITE ? ISS_WNR : 0)));
    return FAULTED;
  }

  // ---- for hypercalls: guest virtual addresses with the permissions of EL1, user pages included (privcmd)
  //
  // A page that cannot be had now makes the whole instruction be tried again. So that this may be, calls read before they
  // do anything, and what they write afterwards they have made writable when they read it.

  beginHypercall(): void {
    this.#mustRetry = false;
  }
  /** Whether the call has to be made again; what it says is void then. */
  get mustRetry(): boolean {
    return this.#mustRetry;
  }

  /** @returns undefined if any byte cannot be read. @param willAnswer frames for writing there are had, too */
  copyFromGuest(vcpu: VcpuState, address: bigint, sizeBytes: number, willAnswer = false): Uint8Array | undefined {
    const bytes = new Uint8Array(sizeBytes);
    if (willAnswer && !this.#makeWritable(vcpu, address, sizeBytes)) return undefined;
    const copied = this.#eachPiece(vcpu, address, sizeBytes, ACCESS_READ, (host, done, length) => {
      copyBytes(bytes, done, this.#engine.machine.u8, host, length);
    });
    if (copied === 'noFrame') this.#mustRetry = true;
    return copied === 'done' ? bytes : undefined;
  }
  /**
   * @param isRepeatable the call may be made again for want of a frame
   * @returns false if any byte cannot be written; bytes before it may have been
   */
  copyToGuest(vcpu: VcpuState, address: bigint, bytes: Uint8Array, isRepeatable = false): boolean {
    const copied = this.#eachPiece(vcpu, address, bytes.length, ACCESS_WRITE, (host, done, length) => {
      copyBytes(this.#engine.machine.u8, host, bytes, done, length);
    });
    if (copied === 'noFrame' && isRepeatable) this.#mustRetry = true;
    return copied === 'done';
  }
  /** As far as the guest may write there. @returns false when a frame cannot be had */
  #makeWritable(vcpu: VcpuState, address: bigint, sizeBytes: number): boolean {
    const { translation, stageTwo } = this.#engine;
    const end = address + BigInt(sizeBytes);
    for (let va = address; va < end; va = (va | 0xfffn) + 1n) {
      const [low, high] = [Number(va & 0xffff_ffffn), Number(BigInt.asUintN(32, va >> 32n))];
      let mfn = 0;
      if (translation.translateIgnoringPan(vcpu, low, high, ACCESS_WRITE, 1)) {
        mfn = stageTwo.frameForWrite(vcpu, translation.guestFrame);
      } else if (translation.status === NO_FRAME) mfn = NO_FRAME;
      else if (translation.translateIgnoringPan(vcpu, low, high, ACCESS_READ, 1)) {
        mfn = stageTwo.frameForRead(vcpu, translation.guestFrame);
      }
      if (mfn === NO_FRAME) this.#mustRetry = true;
    }
    return !this.#mustRetry;
  }
  #eachPiece(vcpu: VcpuState, address: bigint, sizeBytes: number, access: 0 | 1,
    piece: (host: number, done: number, length: number) => void): 'done' | 'fault' | 'noFrame' {
    // Between slices, too: to tell the guest its run state.
    this.#engine.takeOver(vcpu);
    for (let done = 0; done < sizeBytes;) {
      const va = BigInt.asUintN(64, address + BigInt(done));
      const low = Number(va & 0xffff_ffffn);
      const mfn = this.#frameForHypercall(vcpu, low, Number(va >> 32n), access);
      if (mfn <= 0) return mfn === NO_FRAME ? 'noFrame' : 'fault';
      const length = Math.min(sizeBytes - done, FRAME_BYTES - (low & 0xfff));
      piece(mfn * FRAME_BYTES + (low & 0xfff), done, length);
      done += length;
    }
    return 'done';
  }
  /** Most often the guest has just used the page itself. @returns 0: the guest may not; or NO_FRAME */
  #frameForHypercall(vcpu: VcpuState, low: number, high: number, access: 0 | 1): number {
    const { translation, stageTwo } = this.#engine;
    const known = probeDataTlb(vcpu, access === ACCESS_WRITE ? tlbOffsets[1].write : tlbOffsets[1].read, low, high);
    if (known !== 0) return known;
    if (!translation.translateIgnoringPan(vcpu, low, high, access, 1)) return translation.status === NO_FRAME ? NO_FRAME : 0;
    return access === ACCESS_WRITE
      ? stageTwo.frameForWrite(vcpu, translation.guestFrame) : stageTwo.frameForRead(vcpu, translation.guestFrame);
  }
}

/** So few bytes are quicker copied one by one than by way of a view of them. */
const FEW_BYTES = 64;
function copyBytes(to: Uint8Array, toStart: number, from: Uint8Array, fromStart: number, length: number): void {
  if (length > FEW_BYTES) to.set(from.subarray(fromStart, fromStart + length), toStart);
  else for (let i = 0; i < length; i++) to[toStart + i] = from[fromStart + i]!;
}
