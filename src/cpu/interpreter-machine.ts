// The Machine of the interpreter: one handler per specialised row, tail-called from the one before.
//
// A handler is a function (record, vcpu, fuel, next). Operands are read from the decoded record; registers and flags
// live in the vCPU record. `fuel` is sixteen times the instructions left plus the address of the current record, so it
// stays the same along a straight line and a taken branch adds the distance from the next record to its target. `next`
// is the number of the handler to call when there is no branch.

import type { FlagSource } from '../a64/machine.ts';
import { RECORD_BYTES, SP_SLOT } from '../a64/operand.ts';
import type { Imm, Imm64, Reg, VReg } from '../a64/operand.ts';
import type { TrapName } from '../a64/slow.ts';
import { vcpuRecord, xOffset } from '../abi/vcpu.ts';
import { i32, i64 } from '../wasm/scalar.ts';
import type { Callable, FunctionBuilder } from '../wasm/function.ts';
import type { I32, I64 } from '../wasm/types.ts';
import { EngineMachine, dispatch, handlerBehind, leaveIfDue, padded } from './engine-machine.ts';
import type { EngineContext } from './engine-machine.ts';
import { recordFlags } from './flags.ts';

const at = vcpuRecord.at;

export interface InterpreterContext extends EngineContext {
  readonly traps: Readonly<Record<TrapName, Callable>>;
  /** (vcpu, SYS operation, its argument) → 1 if there is no more to be done (emitted-walk.ts). */
  readonly maintain: Callable;
}

export class InterpreterMachine extends EngineMachine<InterpreterContext> {
  readonly #record: I32;
  readonly #far: boolean;
  #ended = false;

  constructor(f: FunctionBuilder, context: InterpreterContext, far: boolean) {
    super(f, context);
    this.#record = f.param(0, 'i32');
    this.#far = far;
  }

  /** The tail call to the next instruction, unless the meaning has ended otherwise. */
  finish(): void {
    if (!this.#ended) this.#goOn();
  }

  /** By the handler's number that came with this instruction. */
  #goOn(): void {
    const behind = this.f.let(i32.add(this.#record, i32.const(RECORD_BYTES)));
    this.f.returnCallIndirect(this.f.param(3, 'i32'), behind, this.vcpu, this.fuel, handlerBehind(behind));
  }
  protected record(): I32 { return this.#record; }
  protected spill(): void { /* everything is in the vCPU record */ }
  protected tlb(access: 'read' | 'write'): I32 { return this.readState32(access === 'read' ? at.tlbRead : at.tlbWrite); }
  protected stackPointer(): I64 { return this.readState64(xOffset(SP_SLOT)); }

  // ---- operands
  slotOffset(r: Reg | VReg): I32 { return i32.load16U(this.#record, r.place); }
  #slot(r: Reg | VReg): I32 { return i32.add(this.vcpu, this.slotOffset(r)); }
  protected vPlace(r: VReg): [I32, number] { return [this.#slot(r), 0]; }
  x(r: Reg): I64 { return i64.load(this.#slot(r)); }
  w(r: Reg): I32 { return i32.load(this.#slot(r)); }
  setX(r: Reg, value: I64): void { this.f.do(i64.store(this.#slot(r), value)); }
  imm(i: Imm): I32 { return i32.load(this.#record, i.place); }
  imm64(i: Imm | Imm64): I64 {
    return i.kind === 'imm' ? i64.load32S(this.#record, i.place) : i64.load(this.#record, i.place);
  }

  // ---- flags
  setFlags(source: FlagSource): void { recordFlags(this.f, this.vcpu, source); }
  carry(): I32 { return this.recordedCarry(); }
  nzcv(): I32 { return this.recordedNzcv(); }
  condition(code: number): I32 { return code >= 14 ? i32.const(1) : this.recordedCondition(code); }

  // ---- control flow
  pc(): I64 {
    return i64.add(this.readState64(at.pcBase), i64.extendI32U(i32.shrU(this.#record, i32.const(2))));
  }
  branch(offset: Imm): void {
    this.#ended = true;
    this.#branch(offset);
  }
  branchIf(condition: I32, offset: Imm): void {
    this.f.if(condition, () => this.#branch(offset));
  }
  /** Near: the record's immediate is the distance of the records. Far: that of the addresses. */
  #branch(offset: Imm): void {
    const { f } = this;
    if (this.#far) return this.#jump(i64.add(this.pc(), this.imm64(offset)));
    const distance = f.let(this.imm(offset));
    const target = f.let(i32.add(this.#record, distance));
    const fuel = f.let(i32.sub(i32.add(this.fuel, distance), i32.const(RECORD_BYTES)));
    leaveIfDue(f, this.context.leave, target, this.vcpu, fuel);
    dispatch(this.f, target, this.vcpu, fuel);
  }
  branchTo(va: I64): void {
    this.#ended = true;
    this.#jump(va);
  }
  #jump(va: I64): void {
    this.f.returnCall(this.context.jump, this.#record, this.vcpu, this.fuel, va);
  }

  trap(name: TrapName, ...args: I32[]): void {
    this.#ended = true;
    this.emitTrap(name, args);
  }
  protected emitTrap(name: TrapName, args: I32[]): void {
    const { f } = this;
    if (name === 'sys') this.#maintain(args[0]!, args[1]!);
    this.writeState32(at.record, this.#record);
    this.writeState32(at.fuel, this.fuel);
    f.call(this.context.traps[name], this.vcpu, ...padded(args));
    f.returnCall(this.context.resume, this.vcpu);
  }
  #maintain(operation: I32, slotOffset: I32): void {
    const argument = i64.load(i32.add(this.vcpu, slotOffset));
    this.f.if(this.f.callExpr('i32', this.context.maintain, this.vcpu, operation, argument), () => {
      this.#goOn();
    });
  }
}
