// The pure helpers of emitted code (a64/slow.ts: computeNames), bound to a machine memory.

import { scratchOffset } from '../../abi/vcpu.ts';
import type { ComputeName } from '../../a64/slow.ts';
import type { EmittedCallHandlers } from '../emitted-calls.ts';
import type { ComputeContext } from './context.ts';
import { crc32 } from './crc32.ts';
import { softFloat } from './soft-float.ts';

type Helper = (context: ComputeContext, a: number, b: number, c: number, d: number) => number;

const helpers: Record<ComputeName, Helper> = { crc32, softFloat };

export function computeHandlers(views: { u32: Uint32Array; u64: BigUint64Array }): EmittedCallHandlers['compute'] {
  const contexts = new Map<number, ComputeContext>();
  const contextOf = (vcpu: number): ComputeContext => {
    let context = contexts.get(vcpu);
    if (!context) {
      const record = vcpu >>> 0;
      contexts.set(vcpu, context = { u32: views.u32, u64: views.u64, record, scratch: record + scratchOffset(0) });
    }
    return context;
  };
  return Object.fromEntries(Object.entries(helpers).map(([name, helper]) =>
    [name, (vcpu: number, a: number, b: number, c: number, d: number) => helper(contextOf(vcpu), a, b, c, d)],
  )) as EmittedCallHandlers['compute'];
}
