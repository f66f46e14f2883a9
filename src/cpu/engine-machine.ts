// What the Machines of both engines share: access to guest memory through the inline TLB with its slow paths, SIMD&FP
// registers and other state in the vCPU record, pure helpers. Where general registers and flags live, how control
// flows, and what has to be in the record before a slow path is taken, is the engine's.

import type { AccessOptions, AccessSize, FlagSource, Machine } from '../a64/machine.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import type { Imm, Imm64, Reg, VReg } from '../a64/operand.ts';
import type { ComputeName, TrapName } from '../a64/slow.ts';
import { TLB_ENTRIES, TLB_ENTRY_BYTES, scratchOffset, tlbEntry, tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import { atomicRmw, f32, f64, i32, i64 } from '../wasm/scalar.ts';
import { v128 } from '../wasm/vector.ts';
import type { Callable, FunctionBuilder } from '../wasm/function.ts';
import type { Address, F32, F64, I32, I64, V128 } from '../wasm/types.ts';
import { ACCESS_ALIGNED, ACCESS_UNPRIVILEGED } from './emitted-calls.ts';

const at = vcpuRecord.at;

/** What emitted code calls, and the addresses that its module is made for. */
export interface EngineContext {
  readonly addressType: 'i32' | 'i64';
  /** (vcpu): goes on at the record and fuel of the vCPU record, or returns if that is 0. */
  readonly resume: Callable;
  /** (record, vcpu, fuel, va): to a virtual address; `record` counts as retired. */
  readonly jump: Callable;
  /** (record, vcpu, fuel): saves both and returns out of emitted code. */
  readonly leave: Callable;
  /** (record, vcpu, fuel, va, size and flags) → low 64 bits. */
  readonly slowLoad: Callable;
  readonly slowStore: Callable;
  readonly fillTlb: Callable;
  readonly compute: Readonly<Record<ComputeName, Callable>>;
  readonly pairLockAddress: number;
}

export const loads = { 1: i64.load8U, 2: i64.load16U, 4: i64.load32U, 8: i64.load };
export const stores = { 1: i64.store8, 2: i64.store16, 4: i64.store32, 8: i64.store };
export const orderedLoads = { 1: i64.atomicLoad8U, 2: i64.atomicLoad16U, 4: i64.atomicLoad32U, 8: i64.atomicLoad };
export const orderedStores = { 1: i64.atomicStore8, 2: i64.atomicStore16, 4: i64.atomicStore32, 8: i64.atomicStore };

export interface NearbyHost {
  /** Host address of something in that page, and how far behind it the access is. */
  readonly host: Address;
  readonly offset: number;
  /** Some byte of the access is not in the page; undefined if all are known to be. */
  readonly isOutside: I32 | undefined;
}

export abstract class EngineMachine<Context extends EngineContext = EngineContext> implements Machine {
  readonly f: FunctionBuilder;
  protected readonly context: Context;
  protected readonly vcpu: I32;
  protected readonly fuel: I32;

  /** @param f of `handlerSignature` */
  constructor(f: FunctionBuilder, context: Context) {
    this.f = f;
    this.context = context;
    this.vcpu = f.param(1, 'i32');
    this.fuel = f.param(2, 'i32');
  }

  // ---- what the engines do differently
  /** Address of the current instruction's record. */
  protected abstract record(): I32;
  /** Byte offset of the operand's register in the vCPU record. */
  abstract slotOffset(r: Reg | VReg): I32;
  /** Address and static offset of a SIMD&FP register in the vCPU record. */
  protected abstract vPlace(r: VReg): [base: I32, offset: number];
  /** Before a slow path that may end in an exception: everything to the vCPU record. */
  protected abstract spill(): void;
  /** Before every access to memory, on the fast path too. */
  protected beforeAccess(): void { /* nothing to do */ }
  /** Ends the way of a miss: whatever runs the instruction again does it from its start. Left out: misses are served by a call. */
  protected handMissOver?(): void;
  /** An access that is expected in the page of one before. Not for ordered accesses. */
  protected nearby(_va: I64, _sizeBytes: number, _access: 'read' | 'write', _unprivileged: boolean): NearbyHost | undefined {
    return undefined;
  }
  /** The host address of an access that is not ordered, found in the TLB, and the virtual one of its page. */
  protected foundHost(
    _va: I64, _sizeBytes: number, _access: 'read' | 'write', _unprivileged: boolean, _host: Address, _page: I64,
  ): void { /* not of use */ }
  /** Before a call that may change translations and goes on. */
  protected forgetHosts(): void { /* nothing is known */ }
  protected abstract tlb(access: 'read' | 'write'): I32;
  protected abstract stackPointer(): I64;
  /** Ends the instruction in a trap, wherever it stands. */
  protected abstract emitTrap(name: TrapName, args: I32[]): void;

  abstract x(r: Reg): I64;
  abstract w(r: Reg): I32;
  abstract setX(r: Reg, value: I64): void;
  abstract imm(i: Imm): I32;
  abstract imm64(i: Imm | Imm64): I64;
  abstract setFlags(source: FlagSource): void;
  abstract condition(code: number): I32;
  abstract carry(): I32;
  abstract nzcv(): I32;
  abstract pc(): I64;
  abstract branch(offset: Imm): void;
  abstract branchIf(condition: I32, offset: Imm): void;
  abstract branchTo(va: I64): void;
  abstract trap(name: TrapName, ...args: I32[]): void;

  setW(r: Reg, value: I32): void { this.setX(r, i64.extendI32U(value)); }

  // ---- SIMD&FP registers
  q(r: VReg): V128 { return v128.load(...this.vPlace(r)); }
  setQ(r: VReg, value: V128): void {
    const [base, offset] = this.vPlace(r);
    this.f.do(v128.store(base, value, offset));
  }
  d(r: VReg): I64 { return i64.load(...this.vPlace(r)); }
  s(r: VReg): I32 { return i32.load(...this.vPlace(r)); }
  fd(r: VReg): F64 { return f64.load(...this.vPlace(r)); }
  fs(r: VReg): F32 { return f32.load(...this.vPlace(r)); }
  setD(r: VReg, value: I64): void {
    const [base, offset] = this.vPlace(r);
    const slot = base.local === undefined ? this.f.let(base) : base;
    this.f.do(i64.store(slot, value, offset));
    this.f.do(i64.store(slot, i64.const(0), offset + 8));
  }
  setS(r: VReg, value: I32): void { this.setD(r, i64.extendI32U(value)); }
  setFd(r: VReg, value: F64): void { this.setD(r, i64.reinterpretF64(value)); }
  setFs(r: VReg, value: F32): void { this.setS(r, i32.reinterpretF32(value)); }
  vAddress(r: VReg): I32 {
    const [base, offset] = this.vPlace(r);
    return this.f.let(i32.add(base, i32.const(offset)));
  }
  fpcr(): I32 { return this.readState32(at.fpcr); }
  setFpcr(value: I32): void { this.writeState32(at.fpcr, value); }
  fpsr(): I32 { return this.readState32(at.fpsr); }
  setFpsr(value: I32): void { this.writeState32(at.fpsr, value); }

  // ---- flags, as they are in the record (flags.ts writes them)
  protected recordedCarry(): I32 { return this.readState32(at.flagC); }
  protected recordedNzcv(): I32 {
    const n = i32.wrapI64(i64.shl(i64.shrU(this.readState64(at.flagN), i64.const(63)), i64.const(3)));
    const z = i32.shl(i64.eqz(this.readState64(at.flagZ)), i32.const(2));
    const c = i32.shl(this.recordedCarry(), i32.const(1));
    const v = i32.shrU(this.readState32(at.flagV), i32.const(31));
    return i32.or(i32.or(n, z), i32.or(c, v));
  }
  protected recordedCondition(code: number): I32 {
    const positive = this.#recordedCondition(code >> 1);
    return code & 1 ? i32.eqz(positive) : positive;
  }
  #recordedCondition(pair: number): I32 {
    const notZero = i64.ne(this.readState64(at.flagZ), i64.const(0));
    const nEqualsV = i32.geS(i32.xor(this.readState32(at.flagN + 4), this.readState32(at.flagV)), i32.const(0));
    switch (pair) {
      case 0: return i64.eqz(this.readState64(at.flagZ)); // EQ
      case 1: return this.recordedCarry(); // CS
      case 2: return i64.ltS(this.readState64(at.flagN), i64.const(0)); // MI
      case 3: return i32.ltS(this.readState32(at.flagV), i32.const(0)); // VS
      case 4: return i32.and(this.recordedCarry(), notZero); // HI
      case 5: return nEqualsV; // GE
      default: return i32.and(nEqualsV, notZero); // GT
    }
  }

  // ---- memory
  /** The TLB entry's address, its tag, and whether that differs from what the address must compare to. */
  #probe(va: I64, tlb: I32, compared: I64): { entry: I32; tag: I64; miss: I32 } {
    const { f } = this;
    const index = i32.and(i32.shrU(i32.wrapI64(va), i32.const(8)), i32.const((TLB_ENTRIES - 1) * TLB_ENTRY_BYTES));
    const entry = f.let(i32.add(index, tlb));
    const tag = f.let(i64.load(entry, tlbEntry.at.tag));
    return { entry, tag, miss: i64.ne(tag, compared) };
  }
  /**
   * Compares page and page crossing in one: the last byte must lie in the entry's page. Where an access crosses, that is the
   * page behind the one that selects the entry, and with two entries or more its own entry is in another place.
   */
  static #unaligned(va: I64, sizeBytes: number): I64 {
    return i64.and(i64.add(va, i64.const(sizeBytes - 1)), i64.const(~0xfffn));
  }
  /** Compares page and natural alignment in one: low bits that are set never equal a tag. */
  static #aligned(va: I64, sizeBytes: number): I64 {
    return i64.and(va, i64.const(~0xfffn | BigInt(sizeBytes - 1)));
  }
  #tlb(access: 'read' | 'write', unprivileged: boolean): I32 {
    return unprivileged ? i32.add(this.vcpu, i32.const(tlbOffsets[0][access])) : this.tlb(access);
  }
  #hostOf(va: I64, entry: I32): Address {
    if (this.context.addressType === 'i64') return i64.add(va, i64.load(entry, tlbEntry.at.target));
    return i32.add(i32.wrapI64(va), i32.load(entry, tlbEntry.at.target));
  }
  #checkAbort(): void {
    this.f.if(this.readState32(at.abort), () => this.f.returnCall(this.context.resume, this.vcpu));
  }
  #access(va: I64, sizeBytes: number, access: 'read' | 'write', options: AccessOptions,
    fast: (host: Address, offset: number) => void, slow: (sizeAndFlags: I32) => void): void {
    this.beforeAccess();
    const unprivileged = options.unprivileged === true;
    const near = options.ordered ? undefined : this.nearby(va, sizeBytes, access, unprivileged);
    if (near !== undefined) {
      if (near.isOutside !== undefined) this.f.if(near.isOutside, () => this.handMissOver!(), undefined, 'unlikely');
      return fast(near.host, near.offset);
    }
    const compared = options.ordered ? EngineMachine.#aligned(va, sizeBytes) : EngineMachine.#unaligned(va, sizeBytes);
    const { entry, tag, miss } = this.#probe(va, this.#tlb(access, unprivileged), compared);
    const flags = (options.ordered ? ACCESS_ALIGNED : 0) | (unprivileged ? ACCESS_UNPRIVILEGED : 0);
    if (this.handMissOver !== undefined) {
      this.f.if(miss, () => this.handMissOver!(), undefined, 'unlikely');
      const host = this.f.let(this.#hostOf(va, entry));
      if (!options.ordered) this.foundHost(va, sizeBytes, access, unprivileged, host, tag);
      return fast(host, 0);
    }
    this.f.if(miss, () => {
      this.spill();
      slow(i32.const(sizeBytes | flags));
      this.#checkAbort();
    }, () => fast(this.f.let(this.#hostOf(va, entry)), 0), 'unlikely');
  }
  #slowLoad(va: I64, sizeAndFlags: I32): I64 {
    return this.f.callExpr('i64', this.context.slowLoad, this.record(), this.vcpu, this.fuel, va, sizeAndFlags);
  }
  #slowStore(va: I64, sizeAndFlags: I32): void {
    this.f.call(this.context.slowStore, this.record(), this.vcpu, this.fuel, va, sizeAndFlags);
  }

  load(size: AccessSize, va: I64, options: AccessOptions = {}): I64 {
    const { f } = this;
    const address = f.let(va);
    const result = f.local('i64');
    this.#access(address, size, 'read', options,
      (host, offset) => f.set(result, (options.ordered ? orderedLoads : loads)[size](host, offset)),
      flags => f.set(result, this.#slowLoad(address, flags)));
    return result;
  }
  store(size: AccessSize, va: I64, value: I64, options: AccessOptions = {}): void {
    const { f } = this;
    const address = f.let(va);
    const pinned = f.let(value);
    this.#access(address, size, 'write', options,
      (host, offset) => f.do((options.ordered ? orderedStores : stores)[size](host, pinned, offset)),
      flags => { this.setScratch(0, pinned); this.#slowStore(address, flags); });
  }
  loadPair(size: 4 | 8, va: I64): [I64, I64] {
    const { f } = this;
    const address = f.let(va);
    const first = f.local('i64');
    const second = f.local('i64');
    this.#access(address, 2 * size, 'read', {},
      (host, offset) => { f.set(first, loads[size](host, offset)); f.set(second, loads[size](host, offset + size)); },
      flags => {
        f.set(first, this.#slowLoad(address, flags));
        if (size === 8) return f.set(second, this.scratch(1));
        f.set(second, i64.shrU(first, i64.const(32)));
        f.set(first, i64.and(first, i64.const(0xffffffffn)));
      });
    return [first, second];
  }
  storePair(size: 4 | 8, va: I64, first: I64, second: I64): void {
    const { f } = this;
    const address = f.let(va);
    const low = f.let(first);
    const high = f.let(second);
    this.#access(address, 2 * size, 'write', {},
      (host, offset) => { f.do(stores[size](host, low, offset)); f.do(stores[size](host, high, offset + size)); },
      flags => {
        if (size === 8) {
          this.setScratch(0, low);
          this.setScratch(1, high);
        } else {
          this.setScratch(0, i64.or(i64.and(low, i64.const(0xffffffffn)), i64.shl(high, i64.const(32))));
        }
        this.#slowStore(address, flags);
      });
  }
  load128(va: I64): V128 {
    const { f } = this;
    const address = f.let(va);
    const result = f.local('v128');
    this.#access(address, 16, 'read', {},
      (host, offset) => f.set(result, v128.load(host, offset)),
      flags => { f.drop(this.#slowLoad(address, flags)); f.set(result, this.scratchQ(0)); });
    return result;
  }
  store128(va: I64, value: V128): void {
    const { f } = this;
    const address = f.let(va);
    const pinned = f.let(value);
    this.#access(address, 16, 'write', {},
      (host, offset) => f.do(v128.store(host, pinned, offset)),
      flags => { this.setScratchQ(0, pinned); this.#slowStore(address, flags); });
  }
  hostAddress(va: I64, sizeLog2: number, access: 'read' | 'write'): Address {
    const { f } = this;
    const address = f.let(va);
    this.beforeAccess();
    this.forgetHosts();
    const { entry, miss } = this.#probe(address, this.tlb(access), EngineMachine.#aligned(address, 1 << sizeLog2));
    f.if(miss, () => {
      this.spill();
      f.call(this.context.fillTlb, this.record(), this.vcpu, this.fuel, address,
        i32.const((1 << sizeLog2) | ACCESS_ALIGNED), i32.const(access === 'write' ? 1 : 0));
      this.#checkAbort();
    }, undefined, 'unlikely');
    return f.let(this.#hostOf(address, entry));
  }
  /**
   * Where the processor orders loads with loads and stores with stores by itself, as x64 does, only the full barrier is
   * left to it; a locked operation does it in a seventh of the time of a fence. The others are for V8, which takes what a
   * plain load found before for what the next one of the same address would find; an atomic load, a plain one for the
   * processor, keeps it from that.
   */
  fence(kind: 'full' | 'loads' | 'stores'): void {
    if (process.arch !== 'x64') this.f.fence();
    else if (kind === 'full') this.f.drop(atomicRmw.or[3]!(this.vcpu, i64.const(0), scratchOffset(0)));
    else this.f.drop(i32.atomicLoad(this.vcpu, scratchOffset(0)));
  }
  pairLock(): Address { return i32.const(this.context.pairLockAddress); }

  // ---- state
  readState32(offset: number): I32 { return i32.load(this.vcpu, offset); }
  writeState32(offset: number, value: I32): void { this.f.do(i32.store(this.vcpu, value, offset)); }
  readState64(offset: number): I64 { return i64.load(this.vcpu, offset); }
  writeState64(offset: number, value: I64): void { this.f.do(i64.store(this.vcpu, value, offset)); }

  // ---- slow paths
  compute(name: ComputeName, ...args: I32[]): I32 {
    return this.f.let(this.f.callExpr('i32', this.context.compute[name], this.vcpu, ...padded(args)));
  }
  setScratch(index: number, value: I64): void { this.writeState64(scratchOffset(index), value); }
  scratch(index: number): I64 { return this.readState64(scratchOffset(index)); }
  setScratchQ(index: 0 | 2 | 4 | 6, value: V128): void { this.f.do(v128.store(this.vcpu, value, scratchOffset(index))); }
  scratchQ(index: 0 | 2 | 4 | 6): V128 { return v128.load(this.vcpu, scratchOffset(index)); }
  trapIf(condition: I32, name: TrapName, ...args: I32[]): void {
    this.f.if(condition, () => this.emitTrap(name, args), undefined, 'unlikely');
  }
  undefined(): void { this.trap('undefined'); }
  requireEl1(): void { this.trapIf(i32.eqz(this.readState32(at.el)), 'undefined'); }
  /** Before the meaning of a row that accesses memory by SP. */
  requireAlignedSp(): void {
    this.trapIf(i32.and(i32.wrapI64(this.stackPointer()), this.readState32(at.spAlignmentMask)), 'spAlignment');
  }
  /** Before the meaning of a row that uses SIMD&FP registers. */
  requireFp(): void { this.trapIf(this.readState32(at.fpTrap), 'fpDisabled'); }
}

export function padded(args: I32[]): I32[] {
  return [...args, ...Array.from({ length: 4 - args.length }, () => i32.const(0))];
}

/**
 * To the code at a virtual address, through the exec TLB; `record` counts as retired. A misaligned address misses.
 * @param miss emits what fills the entry, or ends the way there
 */
export function goThroughTlb(
  f: FunctionBuilder, leave: Callable, record: I32, vcpu: I32, fuel: I32, va: I64, miss: (low: I32) => void,
): void {
  const low = f.let(i32.wrapI64(va));
  const index = i32.and(i32.shrU(low, i32.const(8)), i32.const((TLB_ENTRIES - 1) * TLB_ENTRY_BYTES));
  const entry = f.let(i32.add(index, i32.load(vcpu, at.tlbExec)));
  // The tag, if it is the right one.
  const page = f.let(i64.load(entry, tlbEntry.at.tag));
  f.if(i64.ne(page, i64.and(va, i64.const(~0xffcn))), () => {
    miss(low);
    f.set(page, i64.and(va, i64.const(~0xfffn)));
  }, undefined, 'unlikely');
  const slot = f.let(i32.load(entry, tlbEntry.at.target));
  const target = f.let(i32.add(slot, i32.shl(i32.and(low, i32.const(0xffc)), i32.const(2))));
  f.do(i64.store(vcpu, i64.sub(page, i64.extendI32U(i32.shrU(slot, i32.const(2)))), at.pcBase));
  const left = f.let(i32.sub(i32.add(fuel, i32.sub(target, record)), i32.const(RECORD_BYTES)));
  leaveIfDue(f, leave, target, vcpu, left);
  dispatch(f, target, vcpu, left);
}

/** To whatever a record names. @param record pinned */
export function dispatch(f: FunctionBuilder, record: I32, vcpu: I32, fuel: I32): void {
  f.returnCallIndirect(i32.load16U(record), record, vcpu, fuel, handlerBehind(record));
}
/** What the record behind this one names; behind a page's last pseudo-record there is something, too, that nobody runs. */
export const handlerBehind = (record: I32): I32 => i32.load16U(record, RECORD_BYTES);

const isOutOfFuel = (target: I32, fuel: I32): I32 => i32.leS(i32.sub(fuel, target), i32.const(0));

/**
 * Out of fuel or wanted: save where to go on, and return out of emitted code.
 * @param spill emits what else is to be saved, in code that goes on otherwise
 */
export function leaveIfDue(f: FunctionBuilder, leave: Callable, target: I32, vcpu: I32, fuel: I32, spill?: () => void): void {
  // Of code that goes on, atomic, or V8 might look once for all rounds of a loop; nor does it keep what the guest reads from one to
  // the next. Elsewhere a plain load does, for which V8 need not look whether the address is aligned.
  const pending = (spill === undefined ? i32.load : i32.atomicLoad)(vcpu, at.pending);
  f.if(i32.or(isOutOfFuel(target, fuel), pending), () => {
    spill?.();
    f.returnCall(leave, target, vcpu, fuel);
  }, undefined, 'unlikely');
}
/**
 * On a way forward, which does not come back without another look: out of fuel only, so that what lies behind it is found where it
 * is hot.
 */
export function leaveIfOutOfFuel(f: FunctionBuilder, leave: Callable, target: I32, vcpu: I32, fuel: I32): void {
  f.if(isOutOfFuel(target, fuel), () => f.returnCall(leave, target, vcpu, fuel), undefined, 'unlikely');
}
