// Runs vCPUs on one thread: instantiates the emitted modules and provides the slow paths they call.
//
// A vCPU's place is one of two: in code (`record` ≠ 0, `pcBase` of the current page), or out of it (`record` = 0,
// `pcBase` = PC). `fuel` is sixteen times the instructions left plus `record` in both. Between calls of `run` a vCPU is
// always out of code, so that its decoded page may go.

import { RECORD_BYTES, RECORD_SHIFT } from '../a64/operand.ts';
import { FIRST_REGION, SLOT_BYTES } from '../abi/decode-cache.ts';
import { PENDING, tlbCoverage, tlbCoverageOffset, tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { computeHandlers } from './compute/index.ts';
import { DataAccess } from './data-access.ts';
import { DecodeCache } from './decode-cache.ts';
import { importObject } from './emitted-calls.ts';
import type { EmittedCallHandlers } from './emitted-calls.ts';
import { exceptionClass, faultStatus, syndrome, takeException } from './exceptions.ts';
import { TABLE_SIZE, regionImports } from './handlers.ts';
import { NO_FRAME } from './host.ts';
import type { CpuHost, ExitReason } from './host.ts';
import { KnownRegions } from './jit/known-regions.ts';
import type { RegionClient } from './jit/region-client.ts';
import { StageTwo } from './stage-two.ts';
import { FORGET_EVERYTHING, obeyTlbRequests, postTlbRequest } from './tlb-requests.ts';
import { execNeighbours, fillExecTlb, flushAddress, flushAll, flushAsid, flushFrame, noteFill, probeExecTlb, updateAsid } from './tlb.ts';
import { ACCESS_EXEC, Translation } from './translation.ts';
import { TrapHandlers } from './traps.ts';
import { VcpuState } from './vcpu-state.ts';
import { WordDecoder } from './word-decoder.ts';

const at = vcpuRecord.at;
const IRQ_MASKED = 0x80;
const TCR_TBI0 = 1 << 5;
const PSTATE_IL = 1 << 20;

export interface EngineOptions {
  readonly pcpu?: number;
  /** Has hot code compiled; without it everything is interpreted. */
  readonly regions?: RegionClient;
}

export class Engine {
  readonly machine: MachineMemory;
  readonly host: CpuHost;
  readonly stageTwo: StageTwo;
  readonly translation: Translation;
  readonly data: DataAccess;
  readonly decodeCache: DecodeCache;
  readonly #pcpu: number;
  readonly #run: (vcpu: number) => void;
  readonly #regionImports: WebAssembly.Imports;
  readonly #regions: RegionClient | undefined;
  readonly #table: WebAssembly.Table;
  /** What runs at a number that this thread knows no region for. */
  readonly #unknownRegion: unknown;
  readonly #vcpus = new Map<number, VcpuState>();
  #exit: ExitReason | undefined;
  /** Generation of the decode cache whose code the vCPU is in. */
  #generation = 0;
  #codeHasMoved = false;

  /** @param interpreter compiled from `buildInterpreter` for this machine memory. */
  constructor(machine: MachineMemory, host: CpuHost, interpreter: WebAssembly.Module, options: EngineOptions = {}) {
    const { pcpu = 0, regions } = options;
    this.machine = machine;
    this.host = host;
    this.#pcpu = pcpu;
    this.stageTwo = new StageTwo(machine, host);
    this.translation = new Translation(machine, this.stageTwo);
    this.data = new DataAccess(this);
    this.decodeCache = new DecodeCache(machine, new WordDecoder());
    this.#regions = regions;
    const imports = importObject(machine.memory, this.#handlers());
    const instance = new WebAssembly.Instance(interpreter, imports);
    this.#table = instance.exports['table'] as WebAssembly.Table;
    this.#unknownRegion = instance.exports['unknownRegion'];
    this.#regionImports = regionImports(instance.exports, imports);
    this.#run = instance.exports['resume'] as (vcpu: number) => void;
  }

  #handlers(): EmittedCallHandlers {
    return {
      decode: address => this.decodeCache.decodeRun(this.vcpu(address).get32(at.record)),
      fetch: (address, low, high) => {
        const vcpu = this.vcpu(address);
        this.#leaveCode(vcpu, 1);
        vcpu.setHalves(at.pcBase, low, high);
        // A guest that invalidates its TLB again and again must not get past the end of its slice here.
        this.#goOn(vcpu);
      },
      slowLoad: (address, low, high, size) => this.data.load(this.vcpu(address), low, high, size),
      slowStore: (address, low, high, size) => this.data.store(this.vcpu(address), low, high, size),
      fillTlb: (address, low, high, size, isWrite) => this.data.fill(this.vcpu(address), low, high, size, isWrite !== 0),
      takeInRegions: address => {
        const vcpu = this.vcpu(address);
        this.#takeInRegions(vcpu);
        if (!this.codeIsGone) return;
        this.#leaveCode(vcpu, 0);
        this.#goOn(vcpu);
      },
      traps: new TrapHandlers(this).table(),
      compute: computeHandlers(this.machine, vcpuAddress => this.host.readCounter(vcpuAddress)),
    };
  }

  /** Puts compiled regions into this thread's table (jit/compile.ts). */
  addRegions(module: WebAssembly.Module): void {
    void new WebAssembly.Instance(module, this.#regionImports);
  }

  /** The TypeScript view of a vCPU record; one per record and thread. */
  vcpu(address: number): VcpuState {
    address >>>= 0;
    let vcpu = this.#vcpus.get(address);
    if (!vcpu) this.#vcpus.set(address, vcpu = new VcpuState(this.machine, address));
    return vcpu;
  }

  /**
   * Runs a vCPU until it has retired about `instructions` (an exit is seen at branches), waits, or is wanted. Whoever
   * calls has cleared `pending` before looking at what it stands for.
   * Instructions are counted in the vCPU record.
   */
  run(vcpu: VcpuState, instructions: number): ExitReason {
    const regions = this.#regions;
    let quantum = Math.min(instructions, regions?.untilSample ?? instructions);
    let granted = quantum;
    this.#exit = undefined;
    vcpu.set32(at.charged, 0);
    vcpu.set32(at.fuel, granted << RECORD_SHIFT);
    vcpu.set32(at.record, 0);
    this.takeOver(vcpu);
    for (;;) {
      this.#attend(vcpu);
      if (vcpu.get32(at.record) === 0) this.#enterCode(vcpu);
      if (vcpu.get32(at.record) !== 0) this.#run(vcpu.address);
      else this.#charge(vcpu);
      if (this.#exit !== undefined || this.#isWanted(vcpu)) break;
      if (this.#remaining(vcpu) > 0) continue;
      this.#endQuantum(vcpu, quantum);
      quantum = 0;
      if (this.codeIsGone) this.#leaveCode(vcpu, 0);
      if (granted === instructions) break;
      quantum = Math.min(instructions - granted, regions!.untilSample);
      vcpu.set32(at.fuel, vcpu.get32(at.fuel) + (quantum << RECORD_SHIFT));
      granted += quantum;
    }
    this.#leaveCode(vcpu, 0);
    regions?.endRun(quantum - Math.max(0, (vcpu.get32(at.fuel) | 0) >> RECORD_SHIFT));
    const retired = BigInt((((granted << RECORD_SHIFT) - (vcpu.get32(at.fuel) | 0)) >> RECORD_SHIFT) - vcpu.get32(at.charged));
    vcpu.set32(at.charged, 0);
    vcpu.set64(at.instructionsRetired, vcpu.get64(at.instructionsRetired) + retired);
    return this.#exit ?? 'slice';
  }

  /** Whether somebody wants the slice to end; one who only wants something looked at shall have that. */
  #isWanted(vcpu: VcpuState): boolean {
    if (vcpu.get32(at.pending) === 0) return false;
    return Atomics.compareExchange(vcpu.u32, (vcpu.address + at.pending) / 4, PENDING.attend, 0) !== PENDING.attend;
  }

  /** A run is cut into quanta, so that hot code shows (jit/region-client.ts). */
  #endQuantum(vcpu: VcpuState, instructions: number): void {
    const record = vcpu.get32(at.record);
    if (this.#regions?.passed(instructions) === true && record !== 0) {
      this.#regions.sample(record, this.machine.u16[record / 2]!, () => execNeighbours(vcpu, vcpu.pc()));
    }
    this.#takeInRegions(vcpu);
  }
  /** Between instructions, while this thread counts as in code. */
  #takeInRegions(vcpu: VcpuState): void {
    if (this.#regions === undefined) return;
    for (const message of this.#regions.arrived()) {
      if ('epoch' in message) this.#dropRegions(vcpu, message.epoch);
      else {
        if (message.module !== undefined) this.addRegions(message.module);
        if (message.known !== undefined) this.decodeCache.knownRegions = new KnownRegions(message.known);
        for (const entry of message.entries) this.decodeCache.enterRegion(entry.page, entry.indices, entry.tableIndex, entry.contents);
      }
    }
  }
  /**
   * All regions go, and their numbers will be used again. Whoever hears of it first empties the decode cache, so that no
   * record names one; the others are made to hear of it by that, before they run on.
   */
  #dropRegions(vcpu: VcpuState, epoch: number): void {
    this.decodeCache.knownRegions = undefined;
    for (let i = FIRST_REGION; i < TABLE_SIZE; i++) this.#table.set(i, this.#unknownRegion);
    if (!this.decodeCache.knowsRegionEpoch(epoch)) this.host.flushDecodeCache(vcpu, epoch);
  }

  /** Whether compiled code ran when that was last looked at, which is when a slice has been used up, and sometimes before. */
  get isInRegions(): boolean {
    return this.#regions?.isInRegions ?? false;
  }

  /** Makes `run` come back after the current instruction. For the host, during one of its calls. */
  requestExit(reason: ExitReason): void {
    this.#exit = reason;
  }
  get exitRequested(): boolean {
    return this.#exit !== undefined;
  }

  /**
   * Before this thread translates anything for a vCPU, in `run` or on its behalf. What is remembered of translations is
   * in the record and moves with the vCPU; in a record that no pCPU has run since it was made or restored it is nothing.
   */
  takeOver(vcpu: VcpuState): void {
    if (vcpu.get32(at.lastPcpu) === 0) {
      this.flushTlb(vcpu);
      updateAsid(vcpu);
    }
    vcpu.set32(at.lastPcpu, this.#pcpu + 1);
    vcpu.set32(tlbCoverageOffset + tlbCoverage.at.stageTwoRoot, this.host.stageTwoRootAddress(vcpu));
    this.obeyFlushRequest(vcpu);
  }

  /** Stage 2 has changed, whatever of it: all that was made from it goes. */
  flushTlb(vcpu: VcpuState): void {
    flushAll(vcpu);
    vcpu.readFrames.clear();
    vcpu.writeFrames.clear();
  }
  /** A frame that the guest could read and run, but not write, is no longer where it was. */
  forgetFrame(vcpu: VcpuState, mfn: number): void {
    const slot = this.decodeCache.knownSlot(mfn);
    flushFrame(vcpu, mfn, slot);
    vcpu.readFrames.drop(mfn);
    const record = vcpu.get32(at.record);
    // A program that changes the page that it runs in has to go on in its copy.
    if (slot !== 0 && record >= slot && record < slot + SLOT_BYTES) this.#codeHasMoved = true;
  }

  /** What others have asked for by `pending`. Where the vCPU goes on is looked up anew if the page may be gone. */
  #attend(vcpu: VcpuState): void {
    if (this.#hasFlushRequest(vcpu)) {
      this.#leaveCode(vcpu, 0);
      this.obeyFlushRequest(vcpu);
    }
    if (this.interruptDue(vcpu)) this.takeInterrupt(vcpu);
  }
  /**
   * Makes a vCPU, of any thread, flush its TLBs before it next runs an instruction after an exit. One that has not run flushes
   * them before it does (`takeOver`), and its record, one of a thousand, is memory that nobody has touched.
   */
  requestTlbFlush(vcpuAddress: number): void {
    if (this.machine.u32[(vcpuAddress + at.lastPcpu) / 4] === 0) return;
    postTlbRequest(this.machine, vcpuAddress, FORGET_EVERYTHING);
  }
  #hasFlushRequest(vcpu: VcpuState): boolean {
    return Atomics.load(vcpu.u32, (vcpu.address + at.tlbFlushRequest) / 4) !== vcpu.get32(at.tlbFlushDone);
  }
  /** Of this thread's vCPU: what others have asked it to forget. */
  obeyFlushRequest(vcpu: VcpuState): void {
    if (!this.#hasFlushRequest(vcpu)) return;
    obeyTlbRequests(this.machine, vcpu.address, {
      everything: () => this.flushTlb(vcpu),
      allTlbs: () => flushAll(vcpu),
      asid: asid => flushAsid(vcpu, asid),
      address: (low, high) => flushAddress(vcpu, low, high),
      frame: mfn => this.forgetFrame(vcpu, mfn),
    });
  }

  interruptDue(vcpu: VcpuState): boolean {
    return vcpu.get32(at.irqLine) !== 0 && (vcpu.get32(at.daif) & IRQ_MASKED) === 0;
  }
  /** Between instructions: the current one has not been retired. */
  takeInterrupt(vcpu: VcpuState): void {
    this.#leaveCode(vcpu, 0);
    vcpu.set64(at.pcBase, takeException(vcpu, 'irq', vcpu.get64(at.pcBase)));
  }

  #remaining(vcpu: VcpuState): number {
    return (vcpu.get32(at.fuel) - vcpu.get32(at.record)) | 0;
  }

  #leaveCode(vcpu: VcpuState, retired: 0 | 1): void {
    vcpu.set32(at.fuel, this.#remaining(vcpu) - retired * RECORD_BYTES);
    if (vcpu.get32(at.record) === 0) return;
    vcpu.set64(at.pcBase, vcpu.pc());
    vcpu.set32(at.record, 0);
  }

  /** Leaves code for an exception that retires nothing. */
  #charge(vcpu: VcpuState): void {
    this.#leaveCode(vcpu, 1);
    vcpu.set32(at.charged, vcpu.get32(at.charged) + 1);
  }
  /** Back into code after a change of flow, unless it is time to leave. */
  #goOn(vcpu: VcpuState): void {
    if (!this.exitRequested && this.#remaining(vcpu) > 0 && vcpu.get32(at.pending) === 0) this.#enterCode(vcpu);
  }

  // ---- flow of control, for traps

  /** After the current instruction. */
  advance(vcpu: VcpuState): void {
    if (!this.exitRequested && !this.codeIsGone) {
      vcpu.set32(at.record, vcpu.get32(at.record) + RECORD_BYTES);
      return;
    }
    this.#leaveCode(vcpu, 1);
    vcpu.set64(at.pcBase, BigInt.asUintN(64, vcpu.get64(at.pcBase) + 4n));
    if (!this.exitRequested) this.#enterCode(vcpu);
  }
  /**
   * The decode cache was emptied in the middle of the current instruction, or the page that it is in was copied: it must
   * not return to its code.
   */
  get codeIsGone(): boolean {
    return this.#codeHasMoved || this.decodeCache.generation !== this.#generation;
  }
  /** To another address; the current instruction is retired. */
  jump(vcpu: VcpuState, pc: bigint): void {
    this.#leaveCode(vcpu, 1);
    vcpu.set64(at.pcBase, pc);
    if (this.interruptDue(vcpu)) this.takeInterrupt(vcpu);
    this.#goOn(vcpu);
  }
  /** The current instruction faults: it is not retired. `returnOffset` is 4 for SVC and HVC, which prefer the next. */
  fault(vcpu: VcpuState, esr: number, returnOffset = 0n): void {
    if (returnOffset === 0n) this.#charge(vcpu);
    else this.#leaveCode(vcpu, 1);
    vcpu.set64(at.pcBase, takeException(vcpu, 'synchronous', vcpu.get64(at.pcBase) + returnOffset, esr));
    this.#goOn(vcpu);
  }
  /** The instruction is executed again when the vCPU runs next: nothing has happened. */
  stopBefore(vcpu: VcpuState, reason: ExitReason): void {
    this.#leaveCode(vcpu, 0);
    this.#exit = reason;
  }

  /** From out of code into the code at the PC; or to the exception that fetching it raises, and out again. */
  #enterCode(vcpu: VcpuState): void {
    this.#hearOfRenewal(vcpu);
    const low = vcpu.get32(at.pcBase);
    const high = vcpu.get32(at.pcBase + 4);
    const tlb = tlbOffsets[vcpu.el as 0 | 1].exec;
    const slot = (low & 3) === 0 ? probeExecTlb(vcpu, tlb, low, high) || this.#fetch(vcpu, low, high) : this.#misaligned(vcpu);
    if (slot === 0) return;
    // While a frame was waited for, other threads may have changed everything.
    if (this.codeIsGone) return this.#enterCode(vcpu);
    if (vcpu.get32(at.pstateRest) & PSTATE_IL) {
      vcpu.set64(at.pcBase, takeException(vcpu, 'synchronous', vcpu.get64(at.pcBase), syndrome(exceptionClass.illegalState, 0)));
      return;
    }
    const record = slot + ((low & 0xffc) << 2);
    vcpu.set64(at.pcBase, BigInt.asUintN(64, vcpu.get64(at.pcBase) - BigInt((low & 0xfff) + (slot >>> 2))));
    vcpu.set32(at.fuel, vcpu.get32(at.fuel) + record);
    vcpu.set32(at.record, record);
  }
  /** Regions' numbers may have been given to others since this thread was in code, and that must not be missed. */
  #hearOfRenewal(vcpu: VcpuState): void {
    this.#codeHasMoved = false;
    while (this.codeIsGone) {
      this.#generation = this.decodeCache.generation;
      this.#regions?.forget();
      this.#takeInRegions(vcpu);
    }
  }

  /** Out of code, before the instruction. */
  #noFrame(): 0 {
    this.#exit = 'noFrame';
    return 0;
  }
  #misaligned(vcpu: VcpuState): 0 {
    return this.#fetchFault(vcpu, syndrome(exceptionClass.pcAlignment, 0));
  }
  #fetchFault(vcpu: VcpuState, esr: number): 0 {
    vcpu.copy64(at.farEl1, at.pcBase);
    vcpu.set64(at.pcBase, takeException(vcpu, 'synchronous', vcpu.get64(at.pcBase), esr));
    return 0;
  }

  /** @returns the slot of the page's decoded records, or 0 after an exception. */
  #fetch(vcpu: VcpuState, low: number, high: number): number {
    const { translation } = this;
    const { el } = vcpu;
    const abort = (status: number) => this.#fetchFault(vcpu,
      syndrome(el === 0 ? exceptionClass.instructionAbortLower : exceptionClass.instructionAbort, status));
    if (this.#stripTag(vcpu, high)) return this.#fetch(vcpu, low, vcpu.get32(at.pcBase + 4));
    const flushes = vcpu.get32(at.tlbFlushDone);
    if (!translation.translate(vcpu, low, high, ACCESS_EXEC, el)) {
      return translation.status === NO_FRAME ? this.#noFrame() : abort(translation.status);
    }
    const { guestFrame } = translation;
    let mfn = this.stageTwo.frameForRead(vcpu, guestFrame);
    if (this.stageTwo.isZeroFrame(mfn)) mfn = this.stageTwo.frameForWrite(vcpu, guestFrame);
    if (mfn === 0) return abort(faultStatus.externalAbort);
    if (mfn === NO_FRAME) return this.#noFrame();
    // As in data-access.ts.
    if (vcpu.get32(at.tlbFlushDone) !== flushes) return this.#fetch(vcpu, low, high);
    const slot = this.decodeCache.slotFor(mfn);
    if (slot === 0) {
      this.host.flushDecodeCache(vcpu);
      // Others may have taken the frame away meanwhile, too.
      return this.#fetch(vcpu, low, high);
    }
    noteFill(vcpu, low, high, translation.reach, translation.global, el, false);
    fillExecTlb(vcpu, tlbOffsets[el as 0 | 1].exec, low, high, slot);
    return slot;
  }

  /** With TBI, a branch leaves the tag out of the PC (AArch64.BranchAddr). @returns true if the PC has changed. */
  #stripTag(vcpu: VcpuState, high: number): boolean {
    const upper = (high >>> 23) & 1;
    if ((vcpu.get32(at.tcrEl1 + 4) & (TCR_TBI0 << upper)) === 0 || high >>> 24 === (upper ? 0xff : 0)) return false;
    vcpu.set32(at.pcBase + 4, upper ? high | 0xff00_0000 : high & 0x00ff_ffff);
    return true;
  }
}
