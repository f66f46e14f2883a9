// Guest frames to machine frames, as the host gives them, remembered for each vCPU: a page-table walk asks for the same
// few frames again and again. What is remembered is good for as long as an entry of a TLB that was made from it, and is
// forgotten whenever all of those are (Engine.flushTlb).

import { HEAP } from '../abi/machine-memory.ts';
import { FRAME_CACHE_BYTES, FRAME_CACHE_ENTRIES, FRAME_CACHE_ENTRY_BYTES, LINE_BYTES } from '../abi/vcpu.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { CpuHost } from './host.ts';
import { linesInUse, useLine } from './lines-in-use.ts';
import type { VcpuState } from './vcpu-state.ts';

const ENTRY_WORDS = FRAME_CACHE_ENTRY_BYTES / 4;
const LINE_WORDS = LINE_BYTES / 4;

/** In a vCPU record, where emitted code looks as well (emitted-walk.ts). Never the zero frame. */
export class FrameCache {
  readonly #u32: Uint32Array;
  readonly #vcpu: Pick<VcpuState, 'address' | 'u32'>;
  readonly #offset: number;
  readonly #first: number;

  /** @param offset of the first entry in the record */
  constructor(vcpu: Pick<VcpuState, 'address' | 'u32'>, offset: number) {
    this.#u32 = vcpu.u32;
    this.#vcpu = vcpu;
    this.#offset = offset;
    this.#first = (vcpu.address + offset) / 4;
  }

  #index(guestFrame: number): number {
    return this.#first + (guestFrame & (FRAME_CACHE_ENTRIES - 1)) * ENTRY_WORDS;
  }
  /** @returns 0 if it is not known */
  get(guestFrame: number): number {
    const index = this.#index(guestFrame);
    return this.#u32[index] === guestFrame ? this.#u32[index + 1]! : 0;
  }
  set(guestFrame: number, mfn: number): void {
    const index = this.#index(guestFrame);
    useLine(this.#vcpu, index);
    this.#u32[index] = guestFrame;
    this.#u32[index + 1] = mfn;
  }
  clear(): void {
    for (const line of linesInUse(this.#vcpu, this.#offset, FRAME_CACHE_BYTES, true)) {
      for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) this.#u32[index + 1] = 0;
    }
  }
  /** Forgets what leads to a machine frame. */
  drop(mfn: number): void {
    for (const line of linesInUse(this.#vcpu, this.#offset, FRAME_CACHE_BYTES)) {
      for (let index = line; index < line + LINE_WORDS; index += ENTRY_WORDS) {
        if (this.#u32[index + 1] === mfn) this.#u32[index + 1] = 0;
      }
    }
  }
}

export class StageTwo {
  readonly #machine: MachineMemory;
  readonly #host: CpuHost;
  /** Stands for all memory that was never written: never remembered, because it is not what the guest writes to. */
  readonly #zeroFrameIndex: number;

  constructor(machine: MachineMemory, host: CpuHost) {
    this.#machine = machine;
    this.#host = host;
    this.#zeroFrameIndex = (machine.region('heap').offsetBytes + HEAP.at.zeroMfn) / 4;
  }

  isZeroFrame(mfn: number): boolean {
    return mfn === this.#machine.u32[this.#zeroFrameIndex];
  }

  /** As CpuHost.frameForRead. */
  frameForRead(vcpu: VcpuState, guestFrame: number): number {
    const known = vcpu.readFrames.get(guestFrame);
    if (known !== 0) return known;
    const mfn = this.#host.frameForRead(vcpu, guestFrame);
    if (mfn > 0 && !this.isZeroFrame(mfn)) vcpu.readFrames.set(guestFrame, mfn);
    return mfn;
  }

  /** As CpuHost.frameForWrite. */
  frameForWrite(vcpu: VcpuState, guestFrame: number): number {
    const known = vcpu.writeFrames.get(guestFrame);
    if (known !== 0) return known;
    const mfn = this.#host.frameForWrite(vcpu, guestFrame);
    if (mfn > 0) vcpu.writeFrames.set(guestFrame, mfn);
    return mfn;
  }
}
