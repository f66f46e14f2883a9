// Guest frames to machine frames, as the host gives them, remembered for each vCPU: a page-table walk asks for the same
// few frames again and again. What is remembered is good for as long as an entry of a TLB that was made from it, and is
// forgotten whenever all of those are (Engine.flushTlb).

import { HEAP } from '../abi/machine-memory.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { CpuHost } from './host.ts';
import type { VcpuState } from './vcpu-state.ts';

const ENTRIES = 512;

/** Direct-mapped by the low bits of the guest frame. */
export class FrameCache {
  readonly #guestFrames = new Int32Array(ENTRIES).fill(-1);
  readonly #machineFrames = new Int32Array(ENTRIES);

  /** @returns 0 if it is not known */
  get(guestFrame: number): number {
    const index = guestFrame & (ENTRIES - 1);
    return this.#guestFrames[index] === guestFrame ? this.#machineFrames[index]! : 0;
  }
  set(guestFrame: number, mfn: number): void {
    const index = guestFrame & (ENTRIES - 1);
    this.#guestFrames[index] = guestFrame;
    this.#machineFrames[index] = mfn;
  }
  clear(): void {
    this.#guestFrames.fill(-1);
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
