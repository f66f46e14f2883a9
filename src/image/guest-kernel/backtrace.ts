// Call chains inside the guest's kernel, along its frame records (AAPCS64): x29 points to the caller's x29 and to the
// return address. A function that has not made its record yet, or never makes one, hides its caller.

import type { VcpuRegisters } from '../format.ts';
import type { Btf } from './btf.ts';
import { viewOf } from './guest-memory.ts';
import type { GuestMemory } from './guest-memory.ts';
import type { GuestProcess } from './processes.ts';
import type { KernelSymbols, SymbolPlace } from './symbols.ts';

export interface Frame {
  readonly pc: bigint;
  /** Undefined outside of the kernel's own functions: in a module, or nowhere. */
  readonly place: SymbolPlace | undefined;
}

const FRAMES_MAX = 64;
const EXCEPTION_LEVEL = 0xcn;

/** Undefined for a vCPU that runs a process's own code. */
export function backtraceOfVcpu(memory: GuestMemory, symbols: KernelSymbols, vcpu: VcpuRegisters): Frame[] | undefined {
  if ((vcpu.pstate & EXCEPTION_LEVEL) === 0n) return undefined;
  return walk(memory, symbols, vcpu.pc, vcpu.x[29]!);
}

/** Where a task that is on no vCPU left off. @throws ZazenError ZAZEN_GUEST_KERNEL */
export function backtraceOfTask(
  memory: GuestMemory, symbols: KernelSymbols, types: Btf, { task }: GuestProcess,
): Frame[] {
  const saved = (register: string): bigint =>
    memory.u64(task + BigInt(types.member('task_struct', `thread.cpu_context.${register}`).offsetBytes));
  return walk(memory, symbols, saved('pc'), saved('fp'));
}

function walk(memory: GuestMemory, symbols: KernelSymbols, pc: bigint, frame: bigint): Frame[] {
  const frames: Frame[] = [{ pc, place: symbols.find(pc) }];
  for (let record = frame; frames.length < FRAMES_MAX && record !== 0n;) {
    const bytes = memory.tryRead(record, 16);
    if (bytes === undefined) break;
    const caller = viewOf(bytes).getBigUint64(8, true);
    if (caller === 0n) break;
    // The return address may be the first one behind the function that called, if that never returns.
    const place = symbols.find(caller - 4n);
    frames.push({ pc: caller, place: place && { ...place, offsetBytes: place.offsetBytes + 4 } });
    record = viewOf(bytes).getBigUint64(0, true);
  }
  return frames;
}
