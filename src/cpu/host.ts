// What the CPU needs from the machine around it. The hypervisor room implements it for domains; tests implement it over
// flat memory. All calls come from the pCPU thread that runs the vCPU, in the middle of an instruction.

import type { TlbRequest } from './tlb-requests.ts';
import type { VcpuState } from './vcpu-state.ts';

export interface CpuHost {
  /**
   * Stage 2 translation of a guest frame for reading or fetching.
   * @returns the frame of machine memory; 0 if no memory is there (the access goes to `mmioLoad` or aborts); NO_FRAME
   *   (the vCPU is stopped before the instruction).
   */
  frameForRead(vcpu: VcpuState, guestFrame: number): number;
  /**
   * The same for writing: the frame is owned by this guest alone and marked as written.
   * @returns as above
   */
  frameForWrite(vcpu: VcpuState, guestFrame: number): number;

  /**
   * Where the machine memory names the root of the p2m that `frameForRead` asks, for emitted code to walk it as well
   * (emitted-walk.ts); 0: stage 2 is something else. Asked whenever the vCPU is about to run.
   */
  stageTwoRootAddress(vcpu: VcpuState): number;

  /**
   * Emulated registers. Values are halves in scratch words of the vCPU record (word 0), zero-extended.
   * @returns false if nothing is at that address: the guest gets a synchronous external abort.
   */
  mmioLoad(vcpu: VcpuState, physicalAddress: number, sizeBytes: number): boolean;
  mmioStore(vcpu: VcpuState, physicalAddress: number, sizeBytes: number): boolean;

  /**
   * System registers that are not the CPU's own: interrupt controller (ICC_*) and timers. `encoding` is
   * op0:op1:CRn:CRm:op2 in 16 bits. The value is put into, or taken from, 64 bits of the vCPU record.
   * @returns false: there is no such register
   */
  readSystemRegister(vcpu: VcpuState, encoding: number, slot: number): boolean;
  writeSystemRegister(vcpu: VcpuState, encoding: number, slot: number): boolean;
  /** CNTVCT_EL0 of the vCPU whose record is at an address, in ticks: below 2^53. */
  readCounter(vcpuAddress: number): number;

  /** HVC from EL1: arguments and results are general registers. False: this immediate is not served (UNDEFINED). */
  hvc(vcpu: VcpuState, immediate: number): boolean;

  /**
   * TLB invalidation that other vCPUs of the domain must see before this returns.
   * @param asid as for `mustHear` (tlb-requests.ts)
   */
  broadcastTlbInvalidate(vcpu: VcpuState, request: TlbRequest, asid: number): void;
  /** Runs an action while no other vCPU of the domain is in code; one that was in the middle of it leaves it. */
  whileOthersStopped(vcpu: VcpuState, action: () => void): void;
  /**
   * The decode cache is full, or compiled regions are given up: stops all pCPUs at a safe point and empties it.
   * @param regionEpoch of the regions that records may name from then on; unless given, the same as before
   */
  flushDecodeCache(vcpu: VcpuState, regionEpoch?: number): void;
}

/** There is memory, but no frame can be had for it now: the host has none left, or what is to be in it is lost. */
export const NO_FRAME = -1;

/** Why `Engine.run` came back. */
export type ExitReason =
  /** Out of fuel, or `pending` was set. */
  | 'slice'
  /** WFI with no interrupt pending: the vCPU waits. */
  | 'wfi'
  /** The host asked for it during a call (`Engine.requestExit`): a shutdown, a blocking hypercall. */
  | 'host'
  /** The next instruction needs a frame that cannot be had (NO_FRAME); it can be tried again. */
  | 'noFrame';
