// Samples of what a vCPU is at, on their way from a pCPU to who wants them (profile.ts makes sense of them):
//
//   domid │ vCPU │ exception level │ nanoseconds │ PC │ return addresses, outwards …     64 bits each

import { vcpuRecord } from '../abi/vcpu.ts';
import type { Engine } from '../cpu/engine.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import type { VcpuScheduling } from '../hypervisor/scheduler.ts';

const at = vcpuRecord.at;
const FRAME_POINTER = 29;
/** Frames of a stack at most. */
const FRAMES_MAX = 64;
/** A frame record: the caller's, and the return address. */
const RECORD_BYTES = 16;
/** No caller's record lies further up than a kernel's largest stack, or a process's usual one. */
const STEP_BYTES_MAX = 1n << 20n;

/** Of a vCPU that is between two instructions, by the thread that runs it. */
export function takeSample(engine: Engine, vcpu: VcpuState, [domid, vcpuId]: [number, number], nanos: number): BigUint64Array {
  const words = [BigInt(domid), BigInt(vcpuId), BigInt(vcpu.el), BigInt(Math.round(nanos)), vcpu.get64(at.pcBase)];
  let frame = vcpu.x(FRAME_POINTER);
  for (let frames = 1; frames < FRAMES_MAX && frame !== 0n && (frame & 7n) === 0n; frames++) {
    const bytes = engine.data.copyFromGuest(vcpu, frame, RECORD_BYTES);
    if (bytes === undefined) break;
    const view = new DataView(bytes.buffer);
    const [next, address] = [view.getBigUint64(0, true), view.getBigUint64(8, true)];
    if (address === 0n) break;
    words.push(address);
    // Stacks grow down: a caller's record lies above, or on another stack altogether, where the walk ends.
    if (next <= frame || next - frame > STEP_BYTES_MAX) break;
    frame = next;
  }
  return BigUint64Array.from(words);
}

type TakeSample = (sample: BigUint64Array) => void;

/** Who wants samples, in the host's main thread. They are taken of all domains as often as anybody wants them of one. */
export class SampleSubscriptions {
  readonly #scheduling: VcpuScheduling;
  readonly #wanted = new Set<{ readonly domid: number; readonly micros: number; readonly take: TakeSample }>();

  constructor(scheduling: VcpuScheduling) {
    this.#scheduling = scheduling;
  }

  /** @returns ends it; may be called twice */
  begin(domid: number, micros: number, take: TakeSample): () => void {
    const one = { domid, micros, take };
    this.#wanted.add(one);
    this.#setInterval();
    return () => {
      this.#wanted.delete(one);
      this.#setInterval();
    };
  }
  #setInterval(): void {
    const shortest = Math.min(...[...this.#wanted].map(({ micros }) => micros));
    this.#scheduling.sampleMicros = shortest === Infinity ? 0 : shortest;
  }

  deliver(sample: BigUint64Array): void {
    for (const { domid, take } of this.#wanted) if (BigInt(domid) === sample[0]) take(sample);
  }
}
