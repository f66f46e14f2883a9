// What a compute helper (a64/slow.ts, Machine.compute) is given besides its arguments.

export interface ComputeContext {
  /** Views of the whole machine memory. */
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  /** Byte address in the machine memory of the eight 64-bit scratch words. */
  readonly scratch: number;
  /** Byte address in the machine memory of the vCPU record. */
  readonly record: number;
}
