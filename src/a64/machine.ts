// What the meaning of an instruction may say.
//
// Each instruction's meaning is written once, as a function that emits WebAssembly through a `Machine`. It sees its
// operands only as tokens (operand.ts), so it cannot tell which engine it is written for: in the interpreter a token
// stands for a place in a decoded record, in the JIT for a constant and registers live in locals.
//
// Rules that keep a meaning right in every engine:
//  - Faults come first. `load`, `store`, `hostAddress`, `undefined`, `requireEl1` may abandon the instruction; write no
//    register, flag or other state before the last of them. (A store before a faulting second store is allowed, as in
//    the architecture: the instruction is executed again.)
//  - An expression from `x`, `w`, `q`, … reads the register where it is emitted. Pin it with `f.let` when it is used
//    twice, or after a write that could hit the same register.
//  - Code after an unconditional `branch`, `branchTo`, `trap` or `undefined` is not reached; emit none.

import type { FunctionBuilder } from '../wasm/function.ts';
import type { Address, F32, F64, I32, I64, V128 } from '../wasm/types.ts';
import type { Imm, Imm64, Reg, VReg } from './operand.ts';
import type { ComputeName, TrapName } from './slow.ts';

/** Where the condition flags come from; kept symbolic so that an engine may delay or fuse the computation. */
export type FlagSource =
  /** result = a + b or a - b, of `bits` width; values are i32 for 32 and i64 for 64. All are pinned or constant. */
  | { kind: 'add' | 'sub'; bits: 32 | 64; a: I32 | I64; b: I32 | I64; result: I32 | I64 }
  /** result = a + b + carry (carry is 0 or 1). SBC passes the complement of its operand. */
  | { kind: 'adc'; bits: 32 | 64; a: I32 | I64; b: I32 | I64; carry: I32; result: I32 | I64 }
  /** N and Z from the result, C and V zero. */
  | { kind: 'logic'; bits: 32 | 64; result: I32 | I64 }
  /** N, Z, C, V in bits 3 … 0. */
  | { kind: 'packed'; nzcv: I32 };

export type AccessSize = 1 | 2 | 4 | 8;

export interface AccessOptions {
  /** Ordered (load-acquire, store-release): single-copy atomic, faults if not naturally aligned. */
  ordered?: boolean;
  /** LDTR, STTR: with the permissions of EL0. */
  unprivileged?: boolean;
}

export interface Machine {
  readonly f: FunctionBuilder;

  // ---- general registers: 31 is resolved by the operand's kind (zero register, discarded result, or SP)
  x(r: Reg): I64;
  w(r: Reg): I32;
  setX(r: Reg, value: I64): void;
  /** Writes the low word and zeroes the high one. */
  setW(r: Reg, value: I32): void;
  imm(i: Imm): I32;
  /** Sign-extended from 32 bits, or a 64-bit operand. */
  imm64(i: Imm | Imm64): I64;

  // ---- SIMD&FP registers. Writes of fewer than 128 bits zero the rest of the register.
  q(r: VReg): V128;
  setQ(r: VReg, value: V128): void;
  /** Low 64 bits as integer, low 32 bits as integer, and the same as floating point. */
  d(r: VReg): I64;
  s(r: VReg): I32;
  fd(r: VReg): F64;
  fs(r: VReg): F32;
  setD(r: VReg, value: I64): void;
  setS(r: VReg, value: I32): void;
  setFd(r: VReg, value: F64): void;
  setFs(r: VReg, value: F32): void;
  /** Address of the register's 16 bytes and an offset to be used with it: for accesses to one lane in memory form. */
  vAddress(r: VReg): I32;
  fpcr(): I32;
  setFpcr(value: I32): void;
  fpsr(): I32;
  setFpsr(value: I32): void;

  // ---- condition flags
  setFlags(source: FlagSource): void;
  /** 0 or 1 for a condition code 0–15 (14 and 15 are always). */
  condition(code: number): I32;
  /** 0 or 1. */
  carry(): I32;
  /** N, Z, C, V in bits 3 … 0. */
  nzcv(): I32;

  // ---- memory. Values are zero-extended; results are pinned.
  load(size: AccessSize, va: I64, options?: AccessOptions): I64;
  store(size: AccessSize, va: I64, value: I64, options?: AccessOptions): void;
  /** Two adjacent registers' worth (4 or 8 bytes each) with one look-up. */
  loadPair(size: 4 | 8, va: I64): [I64, I64];
  storePair(size: 4 | 8, va: I64, first: I64, second: I64): void;
  load128(va: I64): V128;
  store128(va: I64, value: V128): void;
  /**
   * Host address (pinned) of `1 << sizeLog2` bytes (0–4), naturally aligned, that may be accessed so now; misaligned
   * is an alignment fault. For atomics and exclusives.
   */
  hostAddress(va: I64, sizeLog2: number, access: 'read' | 'write'): Address;
  /** Barrier: of everything, of loads with what follows, of stores with stores. */
  fence(kind: 'full' | 'loads' | 'stores'): void;

  // ---- control flow
  /** Address of this instruction. */
  pc(): I64;
  /** The row names this operand in `branch`. The offset is in bytes from this instruction. */
  branch(offset: Imm): void;
  branchIf(condition: I32, offset: Imm): void;
  branchTo(va: I64): void;

  // ---- state outside the registers, by byte offset in the vCPU record (abi/vcpu.ts)
  readState32(offset: number): I32;
  writeState32(offset: number, value: I32): void;
  readState64(offset: number): I64;
  writeState64(offset: number, value: I64): void;
  /** The operand's byte offset in the vCPU record: for slow paths that read or write a register by themselves. */
  slotOffset(r: Reg | VReg): I32;
  /** Host address of a lock word for 128-bit exclusives, of which Wasm has no atomic form. */
  pairLock(): Address;

  // ---- slow paths in TypeScript
  /**
   * Calls a helper (slow.ts) that sees the vCPU record and its arguments only; 64-bit values travel through the
   * scratch words of the vCPU record. No exceptions, no change of control flow. The result is pinned.
   */
  compute(name: ComputeName, ...args: I32[]): I32;
  setScratch(index: number, value: I64): void;
  scratch(index: number): I64;
  setScratchQ(index: 0 | 2 | 4 | 6, value: V128): void;
  scratchQ(index: 0 | 2 | 4 | 6): V128;
  /** Ends the instruction in TypeScript, which decides where execution goes on (the next instruction, a vector, …). */
  trap(name: TrapName, ...args: I32[]): void;
  /** The same if a condition (non-zero) holds; else the instruction goes on. Faults' rules apply. */
  trapIf(condition: I32, name: TrapName, ...args: I32[]): void;
  /** The instruction is UNDEFINED here. */
  undefined(): void;
  /** UNDEFINED at EL0. */
  requireEl1(): void;
}

/** The meaning's view of one register width, so that 32- and 64-bit forms are written once. */
export type Word = I32 | I64;
