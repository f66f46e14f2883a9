// What handlers and compiled regions have in common, and what the interpreter is made for: for those who run them or make regions,
// without the generator (interpreter.ts), which a host needs when nobody has kept what it makes.

import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { Signature } from '../wasm/function.ts';
import { DecodeCache } from './decode-cache.ts';
import type { WalkLayout } from './emitted-walk.ts';

/**
 * (record, vcpu, fuel, next). `next` is what the record behind names as its handler, read one instruction ahead: else
 * each instruction would wait for the memory's address, then for that, then for the table. Regions do not look at it.
 */
export const handlerSignature: Signature = { params: ['i32', 'i32', 'i32', 'i32'], results: [] };

/** Places of the table: a decoded record names its handler with sixteen bits. From `FIRST_REGION` on they are regions'. */
export const TABLE_SIZE = 0x1_0000;
/** What compiled regions call in an interpreter's instance. */
export const sharedFunctions = {
  resume: { params: ['i32'], results: [] },
  jump: { params: ['i32', 'i32', 'i32', 'i64'], results: [] },
  leave: { params: ['i32', 'i32', 'i32'], results: [] },
  slowLoad: { params: ['i32', 'i32', 'i32', 'i64', 'i32'], results: ['i64'] },
  slowStore: { params: ['i32', 'i32', 'i32', 'i64', 'i32'], results: [] },
  fillTlb: { params: ['i32', 'i32', 'i32', 'i64', 'i32', 'i32'], results: [] },
  /** (vCPU, kind, a, b): jit/lazy-flags.ts */
  storeFlags: { params: ['i32', 'i32', 'i64', 'i64'], results: [] },
  handOver: { params: ['i32', 'i32', 'i32', 'i32', 'i32', 'i64', 'i64'], results: [] },
} as const satisfies Record<string, Signature>;

/** Places in the machine memory that handlers are made for. */
export interface InterpreterLayout extends WalkLayout {
  /** Address of a word, zero at first. */
  readonly pairLock: number;
}

export function interpreterLayout(machine: MachineMemory): InterpreterLayout {
  return {
    pairLock: MACHINE_HEADER.at.pairLock,
    frameTable: machine.region('frameTable').offsetBytes,
    codeSlots: new DecodeCache(machine).slotsAddress,
    frameEnd: machine.frameEnd,
  };
}

/**
 * What a module of regions is instantiated with.
 * @param interpreter exports of the interpreter's instance
 * @param imports what that instance was given
 */
export function regionImports(interpreter: WebAssembly.Exports, imports: WebAssembly.Imports): WebAssembly.Imports {
  return { env: { ...imports['env'], ...interpreter } as WebAssembly.Imports[string] };
}
