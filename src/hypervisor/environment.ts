// What the Xen half of the hypervisor works with in one thread, and what it needs from the rest of the machine. Each
// pCPU thread and the host's main thread has an Environment of its own over the same machine memory.

import type { Clock } from '../base/clock.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import type { Heap } from '../memory/heap.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { P2m } from '../memory/p2m.ts';

/**
 * Guest virtual memory, through the vCPU's present EL1 translation. Only for the vCPU that this thread runs.
 *
 * There may be no frame for a page now, or its content not to be had. Then the hypercall is made again when that has
 * changed (`mustRetry`), so it must not have done anything by then, or say in its arguments how far it has got.
 */
export interface GuestAccess {
  /**
   * @param willAnswer what is read is written before the call is over, perhaps after something that must not be done
   *   twice: a frame that the writing needs is had first, as far as the guest may write there
   * @returns a copy, or undefined when some of it is not readable
   */
  copyFromGuest(vcpu: VcpuState, va: bigint, sizeBytes: number, willAnswer?: boolean): Uint8Array | undefined;
  /**
   * @param isRepeatable all that the call has done so far may be done again
   * @returns false when some of it is not writable; what comes before may have been written
   */
  copyToGuest(vcpu: VcpuState, va: bigint, bytes: Uint8Array, isRepeatable?: boolean): boolean;
  /** A page was not to be had: what the call answers is void, and it is made again with the arguments that it leaves. */
  mustRetry(): boolean;
}

/** The interrupt controller; may be called by any thread, with a domain lock held. */
export interface Interrupts {
  setInterruptLevel(vcpuAddress: number, intid: number, level: boolean): void;
}

/** vCPUs are named by the address of their record. */
export interface Scheduler {
  /** Any thread, with a domain lock held: a vCPU that is blocked, or has been told to block, goes on. */
  wake(vcpuAddress: number): void;
  /**
   * The calling vCPU leaves the pCPU after this instruction until `wake`, an interrupt, or the deadline; a `wake` that
   * comes after this call but before the vCPU has left counts.
   * @param deadlineNanos monotonic time; undefined: none
   */
  block(vcpuAddress: number, deadlineNanos: number | undefined): void;
  /** The calling vCPU lets others run after this instruction. */
  yield(vcpuAddress: number): void;
  /** PSCI's view of the vCPU. */
  isOnline(vcpuAddress: number): boolean;
  /** @returns false for a vCPU that was never started. One that goes offline itself stops after this instruction. */
  setOnline(vcpuAddress: number, online: boolean): boolean;
  /** The domain's pauseCount or shutdown changed: its vCPUs look at it before their next instruction. */
  pauseChanged(domid: number): void;
  /** The domain's shutdown was set: its vCPUs stop, and when they have, the host hears of it. */
  shutDown(domid: number): void;
}

export interface Stage2 {
  /**
   * Returns when no vCPU of the domain uses a translation older than this call. Never called with a domain lock held,
   * because a vCPU that is waiting for that lock could not answer.
   */
  flush(domid: number): void;
}

export interface Environment {
  readonly memory: MachineMemory;
  readonly heap: Heap;
  readonly p2m: P2m;
  readonly guest: GuestAccess;
  readonly interrupts: Interrupts;
  readonly scheduler: Scheduler;
  readonly stage2: Stage2;
  readonly clock: Clock;
}

/** After changes of a domain's p2m, without its lock: makes all vCPUs forget what was replaced, then frees it. */
export function settleP2m(environment: Environment, domid: number): void {
  if (!environment.p2m.stale) return;
  environment.stage2.flush(domid);
  environment.p2m.releaseStale();
}
