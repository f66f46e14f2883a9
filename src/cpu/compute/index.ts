// The helpers of emitted code that change no flow of control (a64/slow.ts: computeNames), bound to a machine memory.

import { scratchOffset } from '../../abi/vcpu.ts';
import type { ComputeName } from '../../a64/slow.ts';
import type { EmittedCallHandlers } from '../emitted-calls.ts';
import type { ComputeContext } from './context.ts';
import { crc32 } from './crc32.ts';
import { softFloat } from './soft-float.ts';

const TWO_32 = 0x1_0000_0000;

type Helper = (context: ComputeContext, a: number, b: number, c: number, d: number) => number;

const helpers: Record<Exclude<ComputeName, 'counter'>, Helper> = { crc32, softFloat };

/** @param readCounter CNTVCT_EL0 of the vCPU whose record is at an address, below 2^53 */
export function computeHandlers(
  views: { u32: Uint32Array; u64: BigUint64Array }, readCounter: (vcpuAddress: number) => number,
): EmittedCallHandlers['compute'] {
  const counter = (vcpu: number): number => {
    const ticks = readCounter(vcpu >>> 0);
    const index = ((vcpu >>> 0) + scratchOffset(0)) >>> 2;
    views.u32[index] = ticks;
    views.u32[index + 1] = Math.floor(ticks / TWO_32);
    return 0;
  };
  const contexts = new Map<number, ComputeContext>();
  const contextOf = (vcpu: number): ComputeContext => {
    let context = contexts.get(vcpu);
    if (!context) {
      const record = vcpu >>> 0;
      contexts.set(vcpu, context = { u32: views.u32, u64: views.u64, record, scratch: record + scratchOffset(0) });
    }
    return context;
  };
  const bound = Object.fromEntries(Object.entries(helpers).map(([name, helper]) =>
    [name, (vcpu: number, a: number, b: number, c: number, d: number) => helper(contextOf(vcpu), a, b, c, d)],
  )) as Omit<EmittedCallHandlers['compute'], 'counter'>;
  return { ...bound, counter };
}
