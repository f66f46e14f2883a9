// The calls that emitted code makes into TypeScript: their names and shapes, in one place for the engines that emit
// them and the workers that provide them. The first argument is always the address of the vCPU record.

import type { Signature } from '../wasm/function.ts';
import type { ComputeName, TrapName } from '../a64/slow.ts';
import { computeNames, trapNames } from '../a64/slow.ts';
import { ACTIVITY, vcpuRecord } from '../abi/vcpu.ts';

const i32s = (count: number) => Array.from({ length: count }, () => 'i32' as const);
const shape = (params: number, results: number): Signature => ({ params: i32s(params), results: i32s(results) });

/** Flags of a slow access, above the size (1, 2, 4, 8, 16) in its argument. */
export const ACCESS_UNPRIVILEGED = 0x100;
/** Must be naturally aligned, whatever SCTLR_EL1.A says. */
export const ACCESS_ALIGNED = 0x200;

export const emittedCalls = {
  /** Decodes the record that the vCPU record names, and those after it that belong to the same run. */
  decode: shape(1, 0),
  /** (vcpu, address low, high): makes the code at an address current, or takes the exception. Sets `record`. */
  fetch: shape(3, 0),
  /**
   * (vcpu, address low, high, size and flags): loads into scratch words 0 and 1, zero-extended. When it ends in an
   * exception, `abort` is set and `record` tells where to go on.
   */
  slowLoad: shape(4, 0),
  /** The same for a store from scratch words 0 and 1. */
  slowStore: shape(4, 0),
  /** (vcpu, address low, high, size and flags, is write): makes a TLB entry for the page, or takes the exception. */
  fillTlb: shape(5, 0),
  /** (vcpu): adds the compiled regions that other threads have published. */
  takeInRegions: shape(1, 0),
} as const satisfies Record<string, Signature>;

export const trapSignature = shape(5, 0);
export const computeSignature = shape(5, 1);

export interface EmittedCallHandlers {
  decode(vcpu: number): void;
  fetch(vcpu: number, low: number, high: number): void;
  slowLoad(vcpu: number, low: number, high: number, sizeAndFlags: number): void;
  slowStore(vcpu: number, low: number, high: number, sizeAndFlags: number): void;
  fillTlb(vcpu: number, low: number, high: number, sizeAndFlags: number, isWrite: number): void;
  takeInRegions(vcpu: number): void;
  traps: Record<TrapName, (vcpu: number, a: number, b: number, c: number, d: number) => void>;
  compute: Record<ComputeName, (vcpu: number, a: number, b: number, c: number, d: number) => number>;
}

type EmittedCall = (vcpu: number, a: number, b: number, c: number, d: number) => void;
const activities: Readonly<Record<keyof typeof emittedCalls, number>> = {
  decode: ACTIVITY.decoding, takeInRegions: ACTIVITY.decoding, fetch: ACTIVITY.memory,
  slowLoad: ACTIVITY.memory, slowStore: ACTIVITY.memory, fillTlb: ACTIVITY.memory,
};

/** The import object of emitted modules. What they call says in the vCPU record what it is doing. */
export function importObject(
  memory: WebAssembly.Memory, handlers: EmittedCallHandlers,
): WebAssembly.Imports {
  const env: Record<string, unknown> = { memory };
  const words = new Uint32Array(memory.buffer);
  const [activityAt, missesAt] = [vcpuRecord.at.activity, vcpuRecord.at.tlbMisses];
  const marked = (call: EmittedCall, activity: number): EmittedCall => (vcpu, a, b, c, d) => {
    words[(vcpu + activityAt) >>> 2] = activity;
    if (activity === ACTIVITY.memory) words[(vcpu + missesAt) >>> 2]!++;
    call(vcpu, a, b, c, d);
    words[(vcpu + activityAt) >>> 2] = ACTIVITY.code;
  };
  for (const name of Object.keys(emittedCalls) as (keyof typeof emittedCalls)[]) env[name] = marked(handlers[name] as EmittedCall, activities[name]);
  for (const name of trapNames) env[`trap_${name}`] = marked(handlers.traps[name], ACTIVITY.hypervisor);
  for (const name of computeNames) env[`compute_${name}`] = handlers.compute[name];
  return { env } as WebAssembly.Imports;
}
