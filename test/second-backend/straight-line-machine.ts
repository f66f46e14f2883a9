// A second Machine (src/a64/machine.ts), to show that the meanings of the instructions do not know for which engine
// they are written: one WebAssembly function for a straight line of instructions. It differs from the interpreter
// wherever the two may differ:
//
//                     interpreter                          here
//   registers         slots of the vCPU record             locals, spilled on the way out
//   operands          read from a decoded record           constants
//   condition flags   un-normalised, in the record         N, Z, C and V as bits in four locals
//   PC                base and record address              constant
//   memory            TLB in emitted code, slow on a miss  always by the slow path
//   control flow      tail calls                           the function returns with the PC in the vCPU record
//
// A block ends behind its last instruction, at a taken branch, or with a trap or fault. FPCR and FPSR stay in the
// record. `vAddress` spills a register for the rest of its instruction, so it must not be called under a condition.

import type { AccessOptions, AccessSize, FlagSource, Machine } from '../../src/a64/machine.ts';
import { DISCARD_SLOT, ZERO_SLOT } from '../../src/a64/operand.ts';
import type { Imm, Imm64, Operands, Reg, VReg } from '../../src/a64/operand.ts';
import type { ComputeName, TrapName } from '../../src/a64/slow.ts';
import {
  TLB_ENTRIES, TLB_ENTRY_BYTES, scratchOffset, tlbEntry, vOffset, vcpuRecord, xOffset,
} from '../../src/abi/vcpu.ts';
import { ACCESS_ALIGNED, ACCESS_UNPRIVILEGED } from '../../src/cpu/emitted-calls.ts';
import type { Callable, FunctionBuilder } from '../../src/wasm/function.ts';
import { i32, i64 } from '../../src/wasm/scalar.ts';
import { Expr } from '../../src/wasm/types.ts';
import type { Address, F32, F64, I32, I64, V128 } from '../../src/wasm/types.ts';
import { f32x4, f64x2, i32x4, i64x2, v128 } from '../../src/wasm/vector.ts';

const at = vcpuRecord.at;

export interface StraightLineContext {
  readonly addressType: 'i32' | 'i64';
  readonly slowLoad: Callable;
  readonly slowStore: Callable;
  readonly fillTlb: Callable;
  readonly traps: Readonly<Record<TrapName, Callable>>;
  readonly compute: Readonly<Record<ComputeName, Callable>>;
  readonly pairLockAddress: number;
}

export class StraightLineMachine implements Machine {
  readonly f: FunctionBuilder;
  readonly #context: StraightLineContext;
  readonly #vcpu: I32;
  readonly #general = new Map<number, I64>();
  readonly #vector = new Map<number, V128>();
  /** Vector registers that are in the record for the rest of the current instruction. */
  readonly #inMemory = new Set<number>();
  readonly #flags: Readonly<Record<'n' | 'z' | 'c' | 'v', I32>>;
  #pc = 0n;
  #ended = false;

  /**
   * @param f of one i32 parameter, the vCPU record's address.
   * @param operands of all instructions of the line: the registers that get locals.
   */
  constructor(f: FunctionBuilder, context: StraightLineContext, operands: readonly Operands[]) {
    this.f = f;
    this.#context = context;
    this.#vcpu = f.param(0, 'i32');
    for (const { kind, value } of operands.flatMap(each => Object.values(each))) {
      const n = value as number;
      if (kind === 'x' && n < ZERO_SLOT && !this.#general.has(n)) this.#general.set(n, f.local('i64'));
      if (kind === 'v' && !this.#vector.has(n)) this.#vector.set(n, f.local('v128'));
    }
    for (const [n, local] of this.#general) f.set(local, this.readState64(xOffset(n)));
    for (const [n, local] of this.#vector) f.set(local, v128.load(this.#vcpu, vOffset(n)));
    const bit31 = (value: I32): I32 => f.let(i32.shrU(value, i32.const(31)));
    this.#flags = {
      n: bit31(this.readState32(at.flagN + 4)), z: f.let(i64.eqz(this.readState64(at.flagZ))),
      c: f.let(this.readState32(at.flagC)), v: bit31(this.readState32(at.flagV)),
    };
  }

  /** Emits one instruction; returns false if none can follow. */
  instruction(pc: bigint, isFp: boolean, meaning: () => void): boolean {
    this.#pc = pc;
    if (isFp) this.trapIf(this.readState32(at.fpTrap), 'fpDisabled');
    meaning();
    for (const n of this.#inMemory) this.f.set(this.#vector.get(n)!, v128.load(this.#vcpu, vOffset(n)));
    this.#inMemory.clear();
    return !this.#ended;
  }
  /** Emits the way out behind the last instruction. */
  finish(pc: bigint): void {
    if (!this.#ended) this.#exit(i64.const(pc));
  }

  /** Everything that is in locals goes back to the record. */
  #spill(): void {
    const { f } = this;
    for (const [n, local] of this.#general) this.writeState64(xOffset(n), local);
    for (const [n, local] of this.#vector) {
      if (!this.#inMemory.has(n)) f.do(v128.store(this.#vcpu, local, vOffset(n)));
    }
    const { n, z, c, v } = this.#flags;
    this.writeState64(at.flagN, i64.shl(i64.extendI32U(n), i64.const(63)));
    this.writeState64(at.flagZ, i64.extendI32U(i32.eqz(z)));
    this.writeState32(at.flagC, c);
    this.writeState32(at.flagV, i32.shl(v, i32.const(31)));
  }
  #exit(pc: I64): void {
    const pinned = this.f.let(pc);
    this.#spill();
    this.writeState64(at.pcBase, pinned);
    this.f.return();
  }

  // ---- operands
  x(r: Reg): I64 { return r.value === ZERO_SLOT ? i64.const(0) : this.#general.get(r.value as number)!; }
  w(r: Reg): I32 { return i32.wrapI64(this.x(r)); }
  setX(r: Reg, value: I64): void {
    if (r.value === DISCARD_SLOT) this.f.drop(value);
    else this.f.set(this.#general.get(r.value as number)!, value);
  }
  setW(r: Reg, value: I32): void { this.setX(r, i64.extendI32U(value)); }
  imm(i: Imm): I32 { return i32.const(i.value as number); }
  imm64(i: Imm | Imm64): I64 { return i64.const(i.value); }
  slotOffset(r: Reg | VReg): I32 {
    return i32.const(r.kind === 'x' ? xOffset(r.value as number) : vOffset(r.value as number));
  }

  /** Where the register is, is settled when the expression is emitted. */
  q(r: VReg): V128 {
    const n = r.value as number;
    const local = this.#vector.get(n)!;
    return new Expr('v128', out => {
      if (this.#inMemory.has(n)) v128.load(this.#vcpu, vOffset(n)).emit(out);
      else local.emit(out);
    });
  }
  setQ(r: VReg, value: V128): void {
    const n = r.value as number;
    if (this.#inMemory.has(n)) this.f.do(v128.store(this.#vcpu, value, vOffset(n)));
    else this.f.set(this.#vector.get(n)!, value);
  }
  d(r: VReg): I64 { return i64x2.extract(this.q(r), 0); }
  s(r: VReg): I32 { return i32x4.extract(this.q(r), 0); }
  fd(r: VReg): F64 { return f64x2.extract(this.q(r), 0); }
  fs(r: VReg): F32 { return f32x4.extract(this.q(r), 0); }
  setD(r: VReg, value: I64): void { this.setQ(r, i64x2.replace(v128.const(0n, 0n), 0, value)); }
  setS(r: VReg, value: I32): void { this.setQ(r, i32x4.replace(v128.const(0n, 0n), 0, value)); }
  setFd(r: VReg, value: F64): void { this.setQ(r, f64x2.replace(v128.const(0n, 0n), 0, value)); }
  setFs(r: VReg, value: F32): void { this.setQ(r, f32x4.replace(v128.const(0n, 0n), 0, value)); }
  vAddress(r: VReg): I32 {
    const n = r.value as number;
    if (!this.#inMemory.has(n)) this.f.do(v128.store(this.#vcpu, this.#vector.get(n)!, vOffset(n)));
    this.#inMemory.add(n);
    return i32.add(this.#vcpu, i32.const(vOffset(n)));
  }
  fpcr(): I32 { return this.readState32(at.fpcr); }
  setFpcr(value: I32): void { this.writeState32(at.fpcr, value); }
  fpsr(): I32 { return this.readState32(at.fpsr); }
  setFpsr(value: I32): void { this.writeState32(at.fpsr, value); }

  // ---- flags
  setFlags(source: FlagSource): void {
    const { f } = this;
    const { n, z, c, v } = this.#flags;
    if (source.kind === 'packed') {
      const nzcv = f.let(source.nzcv);
      [v, c, z, n].forEach((flag, i) => f.set(flag, i32.and(i32.shrU(nzcv, i32.const(i)), i32.const(1))));
      return;
    }
    // As the Arm ARM's AddWithCarry has it: the result as the sum of x, y and a carry, all of 64 bits here.
    const top = i64.const(source.bits - 1);
    const wide = (value: I32 | I64): I64 => value.type === 'i64' ? value : i64.extendI32U(value);
    const bit = (value: I64): I32 => i32.wrapI64(i64.and(i64.shrU(value, top), i64.const(1)));
    const result = f.let(wide(source.result));
    f.set(n, bit(result));
    f.set(z, i64.eqz(result));
    if (source.kind === 'logic') {
      f.set(c, i32.const(0));
      f.set(v, i32.const(0));
      return;
    }
    const a = wide(source.a);
    const b = source.kind === 'sub' ? i64.xor(wide(source.b), i64.const(-1n)) : wide(source.b);
    // A carry leaves the top bit where both have it, or one has it and the result lost it.
    const carries = i64.or(i64.and(a, b), i64.and(i64.or(a, b), i64.xor(result, i64.const(-1n))));
    const overflows = i64.and(i64.xor(a, result), i64.xor(b, result));
    f.set(c, bit(carries));
    f.set(v, bit(overflows));
  }
  carry(): I32 { return this.#flags.c; }
  nzcv(): I32 {
    const { n, z, c, v } = this.#flags;
    const shifted = (flag: I32, by: number): I32 => i32.shl(flag, i32.const(by));
    return i32.or(i32.or(shifted(n, 3), shifted(z, 2)), i32.or(shifted(c, 1), v));
  }
  condition(code: number): I32 {
    const { n, z, c, v } = this.#flags;
    const not = (flag: I32): I32 => i32.eqz(flag);
    const holds = [
      z, c, n, v, i32.and(c, not(z)), i32.eq(n, v), i32.and(i32.eq(n, v), not(z)), i32.const(1),
    ][code >> 1]!;
    return code & 1 && code < 14 ? not(holds) : holds;
  }

  // ---- memory
  #slow(target: Callable, va: I64, flags: number, ...rest: I32[]): void {
    const { f } = this;
    this.#spill();
    this.writeState64(at.pcBase, i64.const(this.#pc));
    f.call(target, this.#vcpu, i32.wrapI64(va), i32.wrapI64(i64.shrU(va, i64.const(32))), i32.const(flags), ...rest);
    f.if(this.readState32(at.abort), () => f.return());
  }
  static #flagsOf(size: number, options: AccessOptions): number {
    return size | (options.ordered ? ACCESS_ALIGNED : 0) | (options.unprivileged ? ACCESS_UNPRIVILEGED : 0);
  }
  load(size: AccessSize, va: I64, options: AccessOptions = {}): I64 {
    this.#slow(this.#context.slowLoad, this.f.let(va), StraightLineMachine.#flagsOf(size, options));
    return this.f.let(this.scratch(0));
  }
  store(size: AccessSize, va: I64, value: I64, options: AccessOptions = {}): void {
    const address = this.f.let(va);
    this.setScratch(0, value);
    this.#slow(this.#context.slowStore, address, StraightLineMachine.#flagsOf(size, options));
  }
  loadPair(size: 4 | 8, va: I64): [I64, I64] {
    const { f } = this;
    this.#slow(this.#context.slowLoad, f.let(va), 2 * size);
    if (size === 8) return [f.let(this.scratch(0)), f.let(this.scratch(1))];
    const word = (offset: number): I64 => f.let(i64.extendI32U(this.readState32(scratchOffset(0) + offset)));
    return [word(0), word(4)];
  }
  storePair(size: 4 | 8, va: I64, first: I64, second: I64): void {
    const address = this.f.let(va);
    const [low, high] = [this.f.let(first), this.f.let(second)];
    this.setScratch(0, low);
    if (size === 8) this.setScratch(1, high);
    else this.writeState32(scratchOffset(0) + 4, i32.wrapI64(high));
    this.#slow(this.#context.slowStore, address, 2 * size);
  }
  load128(va: I64): V128 {
    this.#slow(this.#context.slowLoad, this.f.let(va), 16);
    return this.f.let(this.scratchQ(0));
  }
  store128(va: I64, value: V128): void {
    const address = this.f.let(va);
    this.setScratchQ(0, value);
    this.#slow(this.#context.slowStore, address, 16);
  }
  hostAddress(va: I64, sizeLog2: number, access: 'read' | 'write'): Address {
    const { f } = this;
    const address = f.let(va);
    const isWrite = access === 'write';
    this.#slow(this.#context.fillTlb, address, (1 << sizeLog2) | ACCESS_ALIGNED, i32.const(Number(isWrite)));
    const index = i32.and(i32.shrU(i32.wrapI64(address), i32.const(8)), i32.const((TLB_ENTRIES - 1) * TLB_ENTRY_BYTES));
    const entry = f.let(i32.add(index, this.readState32(isWrite ? at.tlbWrite : at.tlbRead)));
    if (this.#context.addressType === 'i64') return f.let(i64.add(address, i64.load(entry, tlbEntry.at.target)));
    return f.let(i32.add(i32.wrapI64(address), i32.load(entry, tlbEntry.at.target)));
  }
  fence(): void { this.f.fence(); }
  pairLock(): Address { return i32.const(this.#context.pairLockAddress); }

  // ---- control flow
  pc(): I64 { return i64.const(this.#pc); }
  branch(offset: Imm): void {
    this.#ended = true;
    this.#exit(i64.const(this.#pc + BigInt(offset.value)));
  }
  branchIf(condition: I32, offset: Imm): void {
    this.f.if(condition, () => this.#exit(i64.const(this.#pc + BigInt(offset.value))));
  }
  branchTo(va: I64): void {
    this.#ended = true;
    this.#exit(va);
  }

  // ---- state
  readState32(offset: number): I32 { return i32.load(this.#vcpu, offset); }
  writeState32(offset: number, value: I32): void { this.f.do(i32.store(this.#vcpu, value, offset)); }
  readState64(offset: number): I64 { return i64.load(this.#vcpu, offset); }
  writeState64(offset: number, value: I64): void { this.f.do(i64.store(this.#vcpu, value, offset)); }

  // ---- slow paths
  compute(name: ComputeName, ...args: I32[]): I32 {
    return this.f.let(this.f.callExpr('i32', this.#context.compute[name], this.#vcpu, ...padded(args)));
  }
  setScratch(index: number, value: I64): void { this.writeState64(scratchOffset(index), value); }
  scratch(index: number): I64 { return this.readState64(scratchOffset(index)); }
  setScratchQ(index: 0 | 2 | 4 | 6, value: V128): void {
    this.f.do(v128.store(this.#vcpu, value, scratchOffset(index)));
  }
  scratchQ(index: 0 | 2 | 4 | 6): V128 { return v128.load(this.#vcpu, scratchOffset(index)); }
  trap(name: TrapName, ...args: I32[]): void {
    this.#ended = true;
    this.#trap(name, args);
  }
  trapIf(condition: I32, name: TrapName, ...args: I32[]): void {
    this.f.if(condition, () => this.#trap(name, args));
  }
  #trap(name: TrapName, args: I32[]): void {
    this.#spill();
    this.writeState64(at.pcBase, i64.const(this.#pc));
    this.f.call(this.#context.traps[name], this.#vcpu, ...padded(args));
    this.f.return();
  }
  undefined(): void { this.trap('undefined'); }
  requireEl1(): void { this.trapIf(i32.eqz(this.readState32(at.el)), 'undefined'); }
}

function padded(args: I32[]): I32[] {
  return [...args, ...Array.from({ length: 4 - args.length }, () => i32.const(0))];
}
