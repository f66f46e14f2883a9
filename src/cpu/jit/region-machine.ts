// The Machine of compiled regions: general and SIMD&FP registers live in locals, operands are constants, condition
// flags stay symbolic until somebody needs them.
//
//   first use on a way: local ← vCPU record        exit, or a slow path: changed locals ─► vCPU record
//
// Whatever is slow, an access without a TLB entry among it, is left to the interpreter's handler of the same instruction:
// the region is left before it, with nothing of it done that may not be done twice. Outside of loops registers are stored
// before an access in any case: sooner or later they are, and the way out is short then.
//
// The rest of the state stays in the vCPU record.

import type { FlagSource } from '../../a64/machine.ts';
import { DISCARD_SLOT, RECORD_BYTES, SP_SLOT, ZERO_SLOT } from '../../a64/operand.ts';
import type { Imm, Imm64, Operand, Reg, VReg } from '../../a64/operand.ts';
import type { TrapName } from '../../a64/slow.ts';
import { SLOT_CONTENT } from '../../abi/decode-cache.ts';
import { TLB_ENTRIES, TLB_ENTRY_BYTES, tlbEntry, vOffset, vcpuRecord, xOffset } from '../../abi/vcpu.ts';
import { assert } from '../../base/assert.ts';
import type { Callable, FunctionBuilder, Label } from '../../wasm/function.ts';
import { i32, i64 } from '../../wasm/scalar.ts';
import { f32x4, f64x2, i32x4, i64x2, v128, v128FromI64 } from '../../wasm/vector.ts';
import { withSum } from '../../wasm/types.ts';
import type { Address, Expr, F32, F64, I32, I64, Sum, V128 } from '../../wasm/types.ts';
import { EngineMachine, dispatch, goThroughTlb, leaveIfDue, leaveIfOutOfFuel } from '../engine-machine.ts';
import type { EngineContext, NearbyHost } from '../engine-machine.ts';
import { carryOut, conditionOf, packedFlags, recordFlags } from '../flags.ts';
import { FLAG_KIND, flagKindOf } from './lazy-flags.ts';
import { PAGE_INSTRUCTIONS, indexOf, pageOf } from './region.ts';
import type { Instruction, RegionPage } from './region.ts';
import { contains, noRegisters, union } from './register-set.ts';
import type { RegisterSet } from './register-set.ts';

const at = vcpuRecord.at;

export interface RegionContext extends EngineContext {
  /** (vCPU, kind, a, b): flags of an operation to the vCPU record (lazy-flags.ts). */
  readonly storeFlags: Callable;
  /** (record, vCPU, fuel, number of its handler, and of the flags kind, a, b): to that handler. */
  readonly handOver: Callable;
}

/**
 * Where the flags are: in the record; given by an operation whose values are in locals; or what `mergedFlags` says at
 * run time, where paths meet.
 */
export type FlagState = 'record' | 'merged' | Exclude<FlagSource, { kind: 'adc' }>;

/** What is known where control gets to a block. */
export interface PathState {
  /** Registers whose locals hold their values. */
  available: RegisterSet;
  /** Registers that differ from the record; all of them are available. */
  dirty: RegisterSet;
  flags: FlagState;
  /** SIMD&FP instructions are known not to be trapped. */
  fpChecked: boolean;
  /** The stack pointer is known not to be misaligned, as far as it has to be aligned at all. */
  spChecked: boolean;
  /** Changed registers stay in locals until a slow path or the end. */
  isInLoop: boolean;
  /** What is known of the values of general registers: equal sums, equal values. */
  sums: ReadonlyMap<number, Sum>;
  /** Pages that are known to be what the region was made for, one bit each: where their records are is in locals. */
  pages: number;
  /** Accesses before, of which the host addresses are in locals; the last one first. */
  known: readonly KnownHost[];
}
export interface KnownHost {
  /** The access's address. */
  readonly address: Sum;
  readonly access: 'read' | 'write';
  /** With the permissions of EL0: what is good for one is not for the other. */
  readonly unprivileged: boolean;
  /** Bytes that are known to be in its page, from one to before another, by their distance from its address. */
  readonly from: number;
  readonly to: number;
  /** Which of the locals for host addresses has it. */
  readonly slot: number;
}
/** What is known in a block that several ways lead to, beside what they have in common. */
export const atMerge: Pick<PathState, 'fpChecked' | 'spChecked' | 'sums' | 'known'> =
  { fpChecked: false, spChecked: false, sums: new Map(), known: [] };
const atEntry = (): PathState => ({ available: noRegisters, dirty: noRegisters, flags: 'record', isInLoop: false, pages: 1, ...atMerge });

/** For host addresses that are known at the same time. */
const HOST_SLOTS = [0, 1, 2, 3] as const;
interface HostSlot {
  readonly host: Address;
  /** Where it is in its page. */
  readonly inPage: I32;
}
/** Bytes from one access to another that is expected in the same page. */
const REACH = 512;

/** Goes to a place in the region; the path's state is the machine's. The code behind it is not reached. */
export type FollowEdge = (target: number) => void;

const PAGE_BYTES = 4 * PAGE_INSTRUCTIONS;
const STACK_ALIGNMENT = 16n;
const NOTHING: ReadonlySet<Expr> = new Set();

export class RegionMachine extends EngineMachine<RegionContext> {
  readonly #pages: readonly RegionPage[];
  /** By page, the address of its records. */
  readonly #bases: readonly I32[];
  readonly #general = new Map<number, I64>();
  readonly #vectors = new Map<number, V128>();
  readonly #tlbs: { read: I32; write: I32 };
  readonly #merged: { kind: I32; a: I64; b: I64 };
  readonly #follow: FollowEdge;
  readonly #entry: number;
  /** The record of an instruction that goes to the interpreter, and the way there. */
  readonly #handedOver: I32;
  #toInterpreter: Label | undefined;
  readonly #hostSlots: HostSlot[] = [];
  #lastValue = 0;
  #instruction: Instruction | undefined;
  #ended = false;
  #depth = 0;
  /** Registers that the current instruction may have changed in the record. */
  readonly #addressed = new Set<number>();
  /** Operands that were written, and those whose values are needed, for the survey. */
  readonly written = new Set<Operand>();
  readonly read = new Set<Operand>();
  /** The instruction accesses memory. */
  accesses = false;
  /** The instruction makes a call that may change translations, and goes on. */
  forgets = false;
  state: PathState = atEntry();

  /**
   * @param f of (record, vcpu, fuel), empty
   * @param entry place of the first instruction
   * @param pages of the region
   * @param used these registers get locals
   */
  constructor(
    f: FunctionBuilder, context: RegionContext, entry: number, pages: readonly RegionPage[], used: RegisterSet, follow: FollowEdge,
  ) {
    super(f, context);
    this.#follow = follow;
    this.#entry = entry;
    this.#handedOver = f.local('i32');
    this.#pages = pages;
    const record = f.param(0, 'i32');
    const base = entry === 0 ? record : f.let(i32.sub(record, i32.const(RECORD_BYTES * entry)));
    this.#bases = [base, ...pages.slice(1).map(() => f.local('i32'))];
    this.#tlbs = { read: f.let(this.readState32(at.tlbRead)), write: f.let(this.readState32(at.tlbWrite)) };
    this.#merged = { kind: f.local('i32'), a: f.local('i64'), b: f.local('i64') };
    for (let n = 0; n <= SP_SLOT; n++) {
      if (contains(used.general, n)) this.#general.set(n, f.local('i64'));
      if (contains(used.vectors, n)) this.#vectors.set(n, f.local('v128'));
    }
  }

  /** Emits one instruction. @param needed registers that it reads @returns false if control does not get behind it */
  instruction(instruction: Instruction, needed: RegisterSet, meaning: () => void): boolean {
    const close = this.f.openScope();
    this.#instruction = instruction;
    this.#ended = false;
    this.#depth = this.f.depth;
    const { row, fields } = instruction;
    if (row.fp && !this.state.fpChecked) {
      this.requireFp();
      this.state.fpChecked = true;
    }
    this.makeAvailable(needed);
    if (row.spBase && fields['Rn'] === 31 && !this.state.spChecked) {
      this.requireAlignedSp();
      this.state.spChecked = true;
    }
    meaning();
    for (const n of this.#addressed) this.f.set(this.#vectors.get(n)!, v128.load(this.vcpu, vOffset(n)));
    this.#addressed.clear();
    const { flags } = this.state;
    // A later block may take the flags from these.
    close(typeof flags === 'string' ? NOTHING : new Set<Expr>(Object.values(flags).filter(value => typeof value === 'object')));
    return !this.#ended;
  }

  /** Loads what is not yet there. */
  makeAvailable({ general, vectors }: RegisterSet): void {
    const { available } = this.state;
    const missing = { general: general & ~available.general, vectors: vectors & ~available.vectors };
    if (missing.general !== 0) {
      for (const [n, local] of this.#general) {
        if (contains(missing.general, n)) this.f.set(local, this.readState64(xOffset(n)));
      }
    }
    if (missing.vectors !== 0) {
      for (const [n, local] of this.#vectors) {
        if (contains(missing.vectors, n)) this.f.set(local, v128.load(this.vcpu, vOffset(n)));
      }
    }
    this.state.available = union(available, missing);
  }

  // ---- ways out

  #recordOf(place: number): I32 { return i32.add(this.#bases[pageOf(place)]!, i32.const(RECORD_BYTES * indexOf(place))); }
  protected record(): I32 { return this.#recordOf(this.#instruction!.place); }

  protected override beforeAccess(): void {
    this.accesses = true;
    if (this.state.isInLoop) return;
    this.#spillRegisters();
    this.state.dirty = noRegisters;
  }
  protected spill(): void {
    this.#spillRegisters();
    const { flags } = this.state;
    if (flags === 'record') return;
    if (flags === 'merged') return this.#storeMergedFlags();
    const { a, b } = RegionMachine.#lazy(flags);
    this.f.call(this.context.storeFlags, this.vcpu, i32.const(flagKindOf(flags)), a, b);
  }
  #storeMergedFlags(): void {
    this.f.call(this.context.storeFlags, this.vcpu, this.#merged.kind, this.#merged.a, this.#merged.b);
  }
  #spillRegisters(): void {
    const { dirty } = this.state;
    if (dirty.general !== 0) {
      for (const [n, local] of this.#general) if (contains(dirty.general, n)) this.writeState64(xOffset(n), local);
    }
    if (dirty.vectors !== 0) {
      for (const [n, local] of this.#vectors) if (contains(dirty.vectors, n)) this.#spillVector(n, local);
    }
  }
  #spillVector(n: number, local: V128): void {
    this.f.do(v128.store(this.vcpu, local, vOffset(n)));
  }
  /** As `spill`, for ways out that are taken often: flags without a call. */
  #spillInline(): void {
    const { flags } = this.state;
    if (flags === 'record' || flags === 'merged') return this.spill();
    this.#spillRegisters();
    recordFlags(this.f, this.vcpu, flags);
  }

  /** The operands of a source as 64-bit values, as `mergedFlags` and `storeFlags` take them. */
  static #lazy(source: Exclude<FlagSource, { kind: 'adc' }>): { a: I64; b: I64 } {
    const wide = (value: I32 | I64): I64 => value.type === 'i64' ? value : i64.extendI32U(value);
    if (source.kind === 'packed') return { a: wide(source.nzcv), b: i64.const(0) };
    if (source.kind === 'logic') return { a: wide(source.result), b: i64.const(0) };
    return { a: wide(source.a), b: wide(source.b) };
  }
  /** Says at run time where the flags are, for a block that is reached by several paths. */
  mergeFlags(): void {
    const { flags } = this.state;
    if (flags === 'merged') return;
    this.f.set(this.#merged.kind, i32.const(flags === 'record' ? FLAG_KIND.recorded : flagKindOf(flags)));
    if (flags === 'record') return;
    const { a, b } = RegionMachine.#lazy(flags);
    this.f.set(this.#merged.a, a);
    if (flags.kind === 'add' || flags.kind === 'sub') this.f.set(this.#merged.b, b);
  }
  /** The flags of paths that met, into the record. */
  #settleFlags(): void {
    if (this.state.flags !== 'merged') return;
    this.#storeMergedFlags();
    this.state.flags = 'record';
    // Later blocks may still be entered with merged flags.
    this.f.set(this.#merged.kind, i32.const(FLAG_KIND.recorded));
  }

  /** Control passes from one place to another: fuel stays relative to the record. */
  pass(from: number, to: number): void {
    if (pageOf(from) !== pageOf(to)) return this.#passPage(from, to);
    const distance = RECORD_BYTES * (indexOf(to) - indexOf(from) - 1);
    if (distance !== 0) this.f.set(this.fuel, i32.add(this.fuel, i32.const(distance)));
  }
  /** Virtual address of the start of another page of the region. */
  #startOf(page: number, from: number): I64 {
    const distance = PAGE_BYTES * (this.#pages[page]!.distance - this.#pages[from]!.distance);
    const start = i64.add(this.readState64(at.pcBase), i64.extendI32U(i32.shrU(this.#bases[from]!, i32.const(2))));
    return distance === 0 ? start : i64.add(start, i64.const(distance));
  }
  /** Virtual address of a place, while the vCPU is at another one. */
  #addressOf(place: number, from: number): I64 {
    return i64.add(this.#startOf(pageOf(place), pageOf(from)), i64.const(4 * indexOf(place)));
  }
  #passPage(from: number, to: number): void {
    const { f } = this;
    const [before, page] = [pageOf(from), pageOf(to)];
    const start = f.let(this.#startOf(page, before));
    if ((this.state.pages >>> page & 1) === 0) this.#look(from, to, start);
    const base = this.#bases[page]!;
    this.writeState64(at.pcBase, i64.sub(start, i64.extendI32U(i32.shrU(base, i32.const(2)))));
    const distance = i32.const(RECORD_BYTES * (indexOf(to) - indexOf(from) - 1));
    f.set(this.fuel, i32.add(i32.add(this.fuel, i32.sub(base, this.#bases[before]!)), distance));
  }
  /** Finds the records of a page in the exec TLB. Where there are none, or not those of this code, the region is left. */
  #look(from: number, to: number, start: I64): void {
    const { f } = this;
    const page = pageOf(to);
    const index = i32.and(i32.shrU(i32.wrapI64(start), i32.const(8)), i32.const((TLB_ENTRIES - 1) * TLB_ENTRY_BYTES));
    const entry = f.let(i32.add(index, this.readState32(at.tlbExec)));
    const isPage = f.let(i64.eq(i64.load(entry, tlbEntry.at.tag), start));
    // Of another page's entry, or an empty one, it is not looked at: where it leads to there need not be any memory.
    const slot = f.let(i32.and(i32.load(entry, tlbEntry.at.target), i32.sub(i32.const(0), isPage)));
    // The first page is the one that the region runs in, or another.
    const isOther = page === 0 ? i32.ne(slot, this.#bases[0]!)
      : i64.ne(i64.load(slot, SLOT_CONTENT), i64.const(this.#pages[page]!.content));
    f.if(i32.or(i32.eqz(isPage), isOther), () => {
      this.#spillInline();
      f.returnCall(this.context.jump, this.#recordOf(from), this.vcpu, this.fuel, i64.add(start, i64.const(4 * indexOf(to))));
    }, undefined, 'unlikely');
    if (page !== 0) f.set(this.#bases[page]!, slot);
    this.state.pages |= 1 << page;
  }
  /** At a place that control comes to again and again. */
  leaveIfDue(target: number): void {
    leaveIfDue(this.f, this.context.leave, this.f.let(this.#recordOf(target)), this.vcpu, this.fuel, () => this.spill());
  }
  /** Out of the region, to whatever the target's record says. */
  leaveTo(from: number, target: number): void {
    if (pageOf(from) !== pageOf(target)) return this.#jump(from, this.#addressOf(target, from));
    this.pass(from, target);
    this.#spillInline();
    const record = this.f.let(this.#recordOf(target));
    // Not only on ways back: where no vCPU ever stops, nobody finds hot code.
    if (indexOf(target) < PAGE_INSTRUCTIONS) {
      const look = indexOf(target) > indexOf(from) ? leaveIfOutOfFuel : leaveIfDue;
      look(this.f, this.context.leave, record, this.vcpu, this.fuel);
    }
    dispatch(this.f, record, this.vcpu, this.fuel);
  }
  /** Emits the whole region, and behind it the place from which instructions go to the interpreter: cold code, so it is there once. */
  around(body: () => void): void {
    const { f } = this;
    f.block(label => {
      this.#toInterpreter = label;
      body();
    });
    const { kind, a, b } = this.#merged;
    f.returnCall(this.context.handOver, this.#handedOver, this.vcpu, this.fuel, i32.load16U(this.#handedOver), kind, a, b);
  }
  /** The interpreter does this instruction: whatever its record says. */
  #handOver(): void {
    this.#spillRegisters();
    this.mergeFlags();
    if (this.#instruction!.place === this.#entry) return this.#handEntryOver();
    this.f.set(this.#handedOver, this.record());
    this.f.br(this.#toInterpreter!);
  }
  /** The first one's record may name this very region. */
  #handEntryOver(): void {
    const { kind, a, b } = this.#merged;
    this.f.returnCall(this.context.handOver, this.record(), this.vcpu, this.fuel, i32.const(this.#instruction!.handler), kind, a, b);
  }

  // ---- general registers
  #localOf<L>(locals: ReadonlyMap<number, L>, r: Operand): L {
    const local = locals.get(r.value as number);
    assert(local !== undefined, 'a register of a region has no local');
    return local;
  }
  x(r: Reg): I64 {
    this.read.add(r);
    return r.value === ZERO_SLOT ? i64.const(0) : withSum(this.#localOf(this.#general, r), this.#sumOf(r.value as number));
  }
  #sumOf(n: number): Sum {
    const known = this.state.sums.get(n);
    if (known !== undefined) return known;
    const sum = { of: ++this.#lastValue, plus: 0n };
    this.state.sums = new Map(this.state.sums).set(n, sum);
    return sum;
  }
  #learn(n: number, sum: Sum | undefined): void {
    const sums = new Map(this.state.sums);
    if (n === SP_SLOT) this.state.spChecked &&= this.#keepsAlignment(sum);
    // What is written on some ways through the meaning only is neither what it was nor this.
    if (sum === undefined || this.f.depth !== this.#depth) sums.delete(n);
    else sums.set(n, sum);
    this.state.sums = sums;
  }
  /** The stack pointer moves by a known distance: frames come and go without another look at its alignment. */
  #keepsAlignment(sum: Sum | undefined): boolean {
    const before = this.state.sums.get(SP_SLOT);
    return sum !== undefined && sum.of === before?.of && (sum.plus - before.plus) % STACK_ALIGNMENT === 0n && this.f.depth === this.#depth;
  }
  w(r: Reg): I32 { return i32.wrapI64(this.x(r)); }
  setX(r: Reg, value: I64): void {
    this.#noteWrite(r);
    if (r.value === DISCARD_SLOT) return this.f.drop(value);
    this.f.set(this.#localOf(this.#general, r), value);
    this.#learn(r.value as number, value.sum);
    this.#change({ general: 1 << (r.value as number), vectors: 0 });
  }
  /** What is written on some ways through the meaning only, is needed as well. */
  #noteWrite(r: Operand): void {
    this.written.add(r);
    if (this.f.depth !== this.#depth) this.read.add(r);
  }
  #change(changed: RegisterSet): void {
    this.state.available = union(this.state.available, changed);
    this.state.dirty = union(this.state.dirty, changed);
  }
  imm(i: Imm): I32 { return i32.const(i.value as number); }
  imm64(i: Imm | Imm64): I64 { return i64.const(i.value); }
  slotOffset(r: Reg | VReg): I32 {
    return i32.const(r.kind === 'x' ? xOffset(r.value as number) : vOffset(r.value as number));
  }
  protected vPlace(r: VReg): [I32, number] { return [this.vcpu, vOffset(r.value as number)]; }
  protected tlb(access: 'read' | 'write'): I32 { return this.#tlbs[access]; }
  protected stackPointer(): I64 {
    assert(contains(this.state.available.general, SP_SLOT), 'the stack pointer is not there');
    return this.#general.get(SP_SLOT)!;
  }

  // ---- SIMD&FP registers
  override q(r: VReg): V128 {
    this.read.add(r);
    return this.#localOf(this.#vectors, r);
  }
  override setQ(r: VReg, value: V128): void {
    this.#noteWrite(r);
    this.f.set(this.#localOf(this.#vectors, r), value);
    this.#change({ general: 0, vectors: 1 << (r.value as number) });
  }
  override d(r: VReg): I64 { return i64x2.extract(this.q(r), 0); }
  override s(r: VReg): I32 { return i32x4.extract(this.q(r), 0); }
  override fd(r: VReg): F64 { return f64x2.extract(this.q(r), 0); }
  override fs(r: VReg): F32 { return f32x4.extract(this.q(r), 0); }
  override setD(r: VReg, value: I64): void { this.setQ(r, v128FromI64(value)); }
  override setS(r: VReg, value: I32): void { this.setQ(r, i32x4.replace(v128.const(0n, 0n), 0, value)); }
  override setFd(r: VReg, value: F64): void { this.setQ(r, f64x2.replace(v128.const(0n, 0n), 0, value)); }
  override setFs(r: VReg, value: F32): void { this.setQ(r, f32x4.replace(v128.const(0n, 0n), 0, value)); }

  /** For accesses to one lane in memory form: the record has the register during the instruction. */
  override vAddress(r: VReg): I32 {
    const n = r.value as number;
    this.#spillVector(n, this.q(r));
    this.state.dirty = { ...this.state.dirty, vectors: this.state.dirty.vectors & ~(1 << n) };
    this.#addressed.add(n);
    return super.vAddress(r);
  }

  // ---- accesses near others
  //
  // A translation that was found stays good until emitted code is left or a call is made that may change it.

  protected override handMissOver(): void { this.#handOver(); }
  protected override nearby(va: I64, sizeBytes: number, access: 'read' | 'write', unprivileged: boolean): NearbyHost | undefined {
    const { sum } = va;
    if (sum === undefined) return undefined;
    for (const known of this.state.known) {
      const distance = Number(sum.plus - known.address.plus);
      // What may be written may be read.
      const isIts = known.address.of === sum.of && (known.access === access || access === 'read')
        && known.unprivileged === unprivileged;
      const [from, to] = [Math.min(known.from, distance), Math.max(known.to, distance + sizeBytes)];
      const grows = { down: from < known.from, up: to > known.to };
      if (!isIts || Math.abs(distance) > REACH || (grows.down && grows.up)) continue;
      const { host, inPage } = this.#hostSlot(known.slot);
      if (this.f.depth === this.#depth) this.state.known = this.state.known.map(each => each === known ? { ...known, from, to } : each);
      return {
        ...distance < 0 ? { host: this.f.let<'i32' | 'i64'>(moved(host, distance)), offset: 0 } : { host, offset: distance },
        isOutside: grows.down ? i32.ltU(inPage, i32.const(-from)) : grows.up ? i32.gtU(inPage, i32.const(PAGE_BYTES - to)) : undefined,
      };
    }
    return undefined;
  }
  protected override foundHost(
    va: I64, sizeBytes: number, access: 'read' | 'write', unprivileged: boolean, host: Address, page: I64,
  ): void {
    if (va.sum === undefined || this.f.depth !== this.#depth) return;
    const { known } = this.state;
    const slots = known.map(({ slot }) => slot);
    const slot = HOST_SLOTS.find(each => !slots.includes(each)) ?? slots.at(-1)!;
    const locals = this.#hostSlot(slot);
    this.f.set(locals.host, host);
    this.f.set(locals.inPage, i32.sub(i32.wrapI64(va), i32.wrapI64(page)));
    const found = { address: va.sum, access, unprivileged, from: 0, to: sizeBytes, slot };
    this.state.known = [found, ...known.filter(each => each.slot !== slot)];
  }
  #hostSlot(slot: number): HostSlot {
    return this.#hostSlots[slot] ??= { host: this.f.lastingLocal(this.context.addressType), inPage: this.f.lastingLocal('i32') };
  }
  protected override forgetHosts(): void {
    this.forgets = true;
    this.state.known = [];
    this.state.pages = 1 << this.#instruction!.page;
  }

  // ---- flags
  setFlags(source: FlagSource): void {
    const isPinned = source.kind !== 'adc' && source.kind !== 'packed';
    this.state.flags = isPinned ? source : { kind: 'packed', nzcv: this.f.let(packedFlags(source)) };
  }
  carry(): I32 {
    this.#settleFlags();
    const { flags } = this.state;
    if (typeof flags === 'string') return this.recordedCarry();
    if (flags.kind === 'logic') return i32.const(0);
    return flags.kind === 'packed' ? conditionOf(flags, 2) : carryOut(flags);
  }
  nzcv(): I32 {
    this.#settleFlags();
    const { flags } = this.state;
    return typeof flags === 'string' ? this.recordedNzcv() : packedFlags(flags);
  }
  condition(code: number): I32 {
    if (code >= 14) return i32.const(1);
    this.#settleFlags();
    const { flags } = this.state;
    return typeof flags === 'string' ? this.recordedCondition(code) : conditionOf(flags, code);
  }

  // ---- control flow
  pc(): I64 {
    return i64.add(this.readState64(at.pcBase), i64.extendI32U(i32.shrU(this.record(), i32.const(2))));
  }
  branch(offset: Imm): void {
    this.#branch(offset);
    this.#ended = true;
  }
  branchIf(condition: I32, offset: Imm): void {
    const [state, instruction] = [{ ...this.state }, this.#instruction];
    // The way there may emit other blocks with this machine.
    this.f.if(condition, () => this.#branch(offset));
    this.state = state;
    this.#instruction = instruction;
    this.#ended = false;
  }
  #branch(offset: Imm): void {
    const { place, index, target } = this.#instruction!;
    if (target !== undefined) return this.#follow(target);
    const near = (offset.value as number) / 4;
    if (index + near >= 0 && index + near < PAGE_INSTRUCTIONS) return this.leaveTo(place, place + near);
    this.#jump(place, i64.add(this.pc(), this.imm64(offset)));
  }
  branchTo(va: I64): void {
    this.#branchTo(va);
    this.#ended = true;
  }
  #branchTo(va: I64): void {
    const { place, target } = this.#instruction!;
    if (target === undefined) return this.#jump(place, va);
    // To where the call came from that the region has followed, most likely.
    const address = this.f.let(va);
    this.f.if(i64.ne(address, this.#addressOf(target, place)), () => this.#jump(place, address), undefined, 'unlikely');
    this.#follow(target);
  }
  #jump(from: number, va: I64): void {
    const target = this.f.let(va);
    this.#spillInline();
    const record = this.f.let(this.#recordOf(from));
    goThroughTlb(this.f, this.context.leave, record, this.vcpu, this.fuel, target,
      () => this.f.returnCall(this.context.jump, record, this.vcpu, this.fuel, target));
  }
  trap(): void {
    this.#ended = true;
    this.#handOver();
  }
  protected emitTrap(_name: TrapName, _args: I32[]): void { this.#handOver(); }
}

function moved(host: Address, distance: number): Address {
  return host.type === 'i64' ? i64.add(host, i64.const(distance)) : i32.add(host, i32.const(distance));
}
