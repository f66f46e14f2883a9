// The program that runs test cases inside qemu-aarch64: a static ELF executable made here, word by word.
//
// Addresses inside QEMU (everything else is unmapped, so that a stray access faults):
//
//   0x1000_0000  guard page | scratch page (SCRATCH_ADDRESS) | guard page
//   0x2a00_0000  driver code, then one stub per case       (the executable's only segment, read and execute)
//   0x2b00_0000  context: what the driver knows of itself, and the signal stack
//   0x2c00_0000  the case file, shared with this process: one record per case, read before and written after the case
//
// All of X0–X30, SP, flags and vectors belong to the case while it runs, so the driver keeps nothing in registers:
//
//   loader: X0 = record; refill scratch, load everything but X0; X0 = stub; BR X0
//   stub:   LDR X0, =its value; up to 8 words under test, padded with NOP; MSR TPIDR_EL0, X0; LDR X0, =saver; BR X0
//   saver:  X0 = record; store everything but X0; X0 = TPIDR_EL0, store it; copy scratch back; next case
//
// A fault takes the signal handler instead, which stores the state from the signal frame, and returns to the saver's
// last part. A timer of CPU time catches a case that never ends. Stubs are STUB_BYTES apart and filled with UDF around
// the words, so that a branch that leaves them faults at its target.

import { CONDITION, DriverAssembler, SP, SYSTEM_REGISTER } from './driver-assembler.ts';
import { type CpuState, FPCR_MASK, FPSR_MASK, SCRATCH_BYTES } from './cpu-state.ts';

/** Where scratch memory lies for the code under test; the pages on both sides are unmapped. */
export const SCRATCH_ADDRESS = 0x1000_1000n;

/** Longest code of a case, in words. */
export const MAX_WORDS = 8;

const PAGE_BYTES = 4096;
const DRIVER_ADDRESS = 0x2a00_0000;
const CONTEXT_ADDRESS = 0x2b00_0000;
const RECORDS_ADDRESS = 0x2c00_0000;

const STUB_BYTES = 256;
/** Offset in a stub of the load of X0; the case's words follow it. */
const STUB_ENTRY = 96;
const STUB_LITERALS = STUB_BYTES - 16;

/** Bytes of driver code before the first stub. */
const DRIVER_CODE_BYTES = PAGE_BYTES;

/**
 * A record of the case file.
 *
 *   0    X0–X30, SP            32 × u64
 *   256  NZCV, FPCR, FPSR      3 × u64
 *   280  address of the stub   u64
 *   288  V0–V31                32 × 16 bytes
 *   800  outcome               u64: 0 not finished, OUTCOME_COMPLETE, or a signal's number
 *   808  PC at the fault, 816 fault address (si_addr)
 *   1024 scratch memory        4096 bytes
 */
const RECORD = {
  X: 0, SP: 248, NZCV: 256, FPCR: 264, FPSR: 272, STUB: 280, V: 288, OUTCOME: 800, FAULT_PC: 808, FAULT_ADDRESS: 816,
  MEMORY: 1024,
} as const;

export const RECORD_BYTES = RECORD.MEMORY + SCRATCH_BYTES;

const OUTCOME_COMPLETE = 0x100;

/** The context: address of the current record, of the end of the records, and of the record at the last timer tick. */
const CONTEXT = { RECORD: 0, END: 8, LAST_TICK: 16, SIGNAL_STACK: PAGE_BYTES } as const;
const SIGNAL_STACK_BYTES = 0x10000;

const SIGNALS = { SIGILL: 4, SIGTRAP: 5, SIGBUS: 7, SIGSEGV: 11, TIMEOUT: 26 /* SIGVTALRM */ } as const;

/** How a case can end otherwise than by running to its end. TIMEOUT: it was still running after 0.2 s of CPU time. */
export type FaultName = keyof typeof SIGNALS;

/** A Linux rt_sigframe: siginfo at X1 of the handler, ucontext at X2 (offsets from arch/arm64's uapi headers). */
const SIGINFO_ADDRESS = 16;
const UCONTEXT = { X: 184, SP: 432, PC: 440, PSTATE: 448, FPSR: 472, FPCR: 476, V: 480 } as const;

const MMAP = { SHARED_FIXED: 0x11n, ANONYMOUS_FIXED: 0x32n, NONE: 0n, READ_WRITE: 3n } as const;

/** Address at which the first word of case `index` of a batch runs. */
export function codeAddress(index: number): number {
  return DRIVER_ADDRESS + DRIVER_CODE_BYTES + index * STUB_BYTES + STUB_ENTRY + 4;
}

/** The executable for a batch, to be run with the path of the case file as its argument. */
export function buildExecutable(codes: readonly (readonly number[])[], states: readonly CpuState[]): Uint8Array {
  const driver = new DriverAssembler(DRIVER_ADDRESS);
  emitStart(driver, BigInt(codes.length * RECORD_BYTES));
  emitLoader(driver);
  emitSaver(driver);
  emitSignalHandler(driver);
  emitData(driver);
  driver.align(DRIVER_CODE_BYTES);
  const driverWords = driver.finish();
  if (driverWords.length * 4 !== DRIVER_CODE_BYTES) throw new Error('the driver code outgrew its page');
  const text = new Uint32Array((DRIVER_CODE_BYTES + codes.length * STUB_BYTES) / 4);
  text.set(driverWords);
  const saver = BigInt(driver.addressOf('saver'));
  codes.forEach((words, index) => {
    const stub = buildStub(words, states[index]!.x[0]!, saver);
    text.set(stub, (DRIVER_CODE_BYTES + index * STUB_BYTES) / 4);
  });
  return wrapElf(new Uint8Array(text.buffer), driver.addressOf('start'));
}

function buildStub(words: readonly number[], x0: bigint, saver: bigint): Uint32Array {
  if (words.length > MAX_WORDS) throw new RangeError(`a case has ${words.length} words; at most ${MAX_WORDS} fit`);
  const a = new DriverAssembler(0);
  a.align(4);
  while (a.address < STUB_ENTRY) a.word(0);
  a.ldrLiteral(0, 'x0');
  for (let i = 0; i < MAX_WORDS; i++) a.word(words[i] ?? 0xd503201f /* NOP */);
  a.msr(SYSTEM_REGISTER.TPIDR_EL0, 0);
  a.ldrLiteral(0, 'saver');
  a.branchRegister(0);
  while (a.address < STUB_LITERALS) a.word(0);
  a.label('x0');
  a.quad(x0);
  a.label('saver');
  a.quad(saver);
  return a.finish();
}

/** Maps memory, installs the handlers, starts the timer. SP is the initial stack: argc, argv[0], argv[1]. */
function emitStart(a: DriverAssembler, recordsBytes: bigint): void {
  const checked = (number: number, args: readonly (bigint | undefined)[]) => {
    a.svc(number, args);
    a.branchIfNegative(0, 'fail');
  };
  a.label('start');
  a.ldrX(1, SP, 16);
  checked(56 /* openat */, [-100n, undefined, 2n, 0n]);
  a.addImmediate(4, 0, 0);
  checked(222 /* mmap */, [
    BigInt(RECORDS_ADDRESS), recordsBytes, MMAP.READ_WRITE, MMAP.SHARED_FIXED, undefined, 0n,
  ]);
  const anonymous = (address: bigint, sizeBytes: number, protection: bigint) =>
    checked(222, [address, BigInt(sizeBytes), protection, MMAP.ANONYMOUS_FIXED, -1n, 0n]);
  anonymous(SCRATCH_ADDRESS - BigInt(PAGE_BYTES), 3 * PAGE_BYTES, MMAP.NONE);
  anonymous(SCRATCH_ADDRESS, SCRATCH_BYTES, MMAP.READ_WRITE);
  anonymous(BigInt(CONTEXT_ADDRESS), CONTEXT.SIGNAL_STACK + SIGNAL_STACK_BYTES, MMAP.READ_WRITE);
  a.adr(0, 'signalStack');
  checked(132 /* sigaltstack */, [undefined, 0n]);
  for (const signal of Object.values(SIGNALS)) {
    a.adr(1, 'signalAction');
    checked(134 /* rt_sigaction */, [BigInt(signal), undefined, 0n, 8n]);
  }
  a.adr(1, 'timer');
  checked(103 /* setitimer */, [1n /* ITIMER_VIRTUAL */, undefined, 0n]);
  a.ldrLiteral(0, 'context');
  a.movImmediate(1, BigInt(RECORDS_ADDRESS));
  a.movImmediate(2, BigInt(RECORDS_ADDRESS) + recordsBytes);
  a.stpX(1, 2, 0, CONTEXT.RECORD);
}

/** Loads the next case and enters its stub; exits after the last one. */
function emitLoader(a: DriverAssembler): void {
  a.label('loader');
  a.ldrLiteral(0, 'context');
  a.ldpX(0, 1, 0, CONTEXT.RECORD);
  a.compare(0, 1);
  a.branchIf(CONDITION.NE, 'load');
  a.svc(94 /* exit_group */, [0n]);
  a.label('fail');
  a.svc(94, [1n]);
  a.label('load');
  a.addImmediate(1, 0, RECORD.MEMORY);
  a.movImmediate(2, SCRATCH_ADDRESS);
  emitCopyScratch(a, 'fill', 1, 2);
  for (const [register, offset] of STATUS_REGISTERS) {
    a.ldrX(1, 0, offset);
    a.msr(register, 1);
  }
  for (let n = 0; n < 32; n += 2) a.ldpQ(n, n + 1, 0, RECORD.V + 16 * n);
  a.ldrX(1, 0, RECORD.SP);
  a.addImmediate(SP, 1, 0);
  for (let n = 1; n < 31; n += 2) a.ldpX(n, n + 1, 0, RECORD.X + 8 * n);
  a.clrex();
  a.ldrX(0, 0, RECORD.STUB);
  a.branchRegister(0);
}

/** Stores the final state of a case that ran to its end; entered with X0 in TPIDR_EL0. */
function emitSaver(a: DriverAssembler): void {
  a.label('saver');
  a.ldrLiteral(0, 'context');
  a.ldrX(0, 0, CONTEXT.RECORD);
  for (let n = 1; n < 31; n += 2) a.stpX(n, n + 1, 0, RECORD.X + 8 * n);
  a.mrs(1, SYSTEM_REGISTER.TPIDR_EL0);
  a.strX(1, 0, RECORD.X);
  a.addImmediate(1, SP, 0);
  a.strX(1, 0, RECORD.SP);
  for (const [register, offset] of STATUS_REGISTERS) {
    a.mrs(1, register);
    a.strX(1, 0, offset);
  }
  for (let n = 0; n < 32; n += 2) a.stpQ(n, n + 1, 0, RECORD.V + 16 * n);
  a.movImmediate(1, BigInt(OUTCOME_COMPLETE));
  a.strX(1, 0, RECORD.OUTCOME);

  a.label('finishCase'); // also where the signal handler returns to; needs no register
  a.ldrLiteral(3, 'context');
  a.ldrX(0, 3, CONTEXT.RECORD);
  a.addImmediate(2, 0, RECORD.MEMORY);
  a.movImmediate(1, SCRATCH_ADDRESS);
  emitCopyScratch(a, 'drain', 1, 2);
  a.strX(2, 3, CONTEXT.RECORD); // the memory is a record's last part: its end is the next record
  a.branch('loader');
}

const STATUS_REGISTERS = [
  [SYSTEM_REGISTER.NZCV, RECORD.NZCV],
  [SYSTEM_REGISTER.FPCR, RECORD.FPCR],
  [SYSTEM_REGISTER.FPSR, RECORD.FPSR],
] as const;

/** Copies SCRATCH_BYTES from [Xsource] to [Xtarget], advancing both; uses X9, V0 and V1. */
function emitCopyScratch(a: DriverAssembler, label: string, source: number, target: number): void {
  a.movImmediate(9, BigInt(SCRATCH_BYTES / 32));
  a.label(label);
  a.ldpQPostIndex(0, 1, source);
  a.stpQPostIndex(0, 1, target);
  a.subsImmediate(9, 9, 1);
  a.branchIf(CONDITION.NE, label);
}

/** handler(X0 = signal, X1 = siginfo, X2 = ucontext): stores the state at the fault; returns to finishCase. */
function emitSignalHandler(a: DriverAssembler): void {
  a.label('signalHandler');
  a.ldrLiteral(3, 'context');
  a.ldrX(4, 3, CONTEXT.RECORD);
  a.subsImmediate(31, 0, SIGNALS.TIMEOUT);
  a.branchIf(CONDITION.NE, 'fault');
  a.ldrX(5, 3, CONTEXT.LAST_TICK);
  a.strX(4, 3, CONTEXT.LAST_TICK);
  a.compare(4, 5);
  a.branchIf(CONDITION.EQ, 'fault'); // the same case for a whole period of the timer
  a.ret();

  a.label('fault');
  a.strX(0, 4, RECORD.OUTCOME);
  a.ldrX(5, 1, SIGINFO_ADDRESS);
  a.strX(5, 4, RECORD.FAULT_ADDRESS);
  a.ldrX(5, 2, UCONTEXT.PC);
  a.strX(5, 4, RECORD.FAULT_PC);
  for (let n = 0; n < 32; n += 2) { // X0–X30 and SP follow one another in both
    a.ldpX(5, 6, 2, UCONTEXT.X + 8 * n);
    a.stpX(5, 6, 4, RECORD.X + 8 * n);
  }
  a.ldrX(5, 2, UCONTEXT.PSTATE);
  a.strX(5, 4, RECORD.NZCV);
  a.ldrW(5, 2, UCONTEXT.FPCR);
  a.strX(5, 4, RECORD.FPCR);
  a.ldrW(5, 2, UCONTEXT.FPSR);
  a.strX(5, 4, RECORD.FPSR);
  for (let n = 0; n < 32; n += 2) {
    a.ldpQ(0, 1, 2, UCONTEXT.V + 16 * n);
    a.stpQ(0, 1, 4, RECORD.V + 16 * n);
  }
  a.adr(5, 'finishCase');
  a.strX(5, 2, UCONTEXT.PC);
  a.ret();
}

/** Structures for the system calls of emitStart. */
function emitData(a: DriverAssembler): void {
  a.align(16);
  a.label('context');
  a.quad(BigInt(CONTEXT_ADDRESS));
  a.label('signalStack'); // stack_t: pointer, flags, size
  for (const field of [BigInt(CONTEXT_ADDRESS + CONTEXT.SIGNAL_STACK), 0n, BigInt(SIGNAL_STACK_BYTES)]) a.quad(field);
  a.label('signalAction'); // struct sigaction: handler, SA_SIGINFO | SA_ONSTACK, restorer, mask (the timer's signal)
  const mask = 1n << BigInt(SIGNALS.TIMEOUT - 1);
  for (const field of [BigInt(a.addressOf('signalHandler')), 0x0800_0004n, 0n, mask]) a.quad(field);
  a.label('timer'); // struct itimerval: interval and first expiry of 0.1 s
  for (const field of [0n, 100_000n, 0n, 100_000n]) a.quad(field);
}

/** A static executable whose one segment is `text` at DRIVER_ADDRESS. */
function wrapElf(text: Uint8Array, entry: number): Uint8Array {
  const file = new Uint8Array(PAGE_BYTES + text.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // 64-bit, little-endian, version 1
  view.setUint16(16, 2, true); // e_type = ET_EXEC
  view.setUint16(18, 183, true); // e_machine = EM_AARCH64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(entry), true);
  view.setBigUint64(32, 64n, true); // e_phoff
  view.setUint16(52, 64, true); // e_ehsize
  view.setUint16(54, 56, true); // e_phentsize
  view.setUint16(56, 1, true); // e_phnum
  view.setUint32(64, 1, true); // p_type = PT_LOAD
  view.setUint32(68, 5, true); // p_flags = read, execute
  view.setBigUint64(72, BigInt(PAGE_BYTES), true); // p_offset
  view.setBigUint64(80, BigInt(DRIVER_ADDRESS), true); // p_vaddr
  view.setBigUint64(88, BigInt(DRIVER_ADDRESS), true);
  view.setBigUint64(96, BigInt(text.length), true); // p_filesz
  view.setBigUint64(104, BigInt(text.length), true); // p_memsz
  view.setBigUint64(112, BigInt(PAGE_BYTES), true);
  file.set(text, PAGE_BYTES);
  return file;
}

/** Writes the initial state of case `index` into its record of the case file. */
export function writeRecord(records: Uint8Array, index: number, state: CpuState): void {
  const at = index * RECORD_BYTES;
  const quads = new BigUint64Array(records.buffer, records.byteOffset + at, RECORD.MEMORY / 8);
  quads.set(state.x, RECORD.X / 8);
  quads[RECORD.SP / 8] = state.sp;
  quads[RECORD.NZCV / 8] = BigInt(state.nzcv >>> 0);
  quads[RECORD.FPCR / 8] = BigInt(state.fpcr >>> 0);
  quads[RECORD.FPSR / 8] = BigInt(state.fpsr >>> 0);
  quads[RECORD.STUB / 8] = BigInt(codeAddress(index) - 4);
  quads.set(state.v, RECORD.V / 8);
  records.set(state.memory, at + RECORD.MEMORY);
}

export interface RecordOutcome {
  state: CpuState;
  /** Absent when the case ran to its end. */
  fault?: FaultName;
  faultPc: bigint;
  faultAddress: bigint;
}

/** Reads a record after the run; undefined if its case never finished. */
export function readRecord(records: Uint8Array, index: number): RecordOutcome | undefined {
  const at = index * RECORD_BYTES;
  const quads = new BigUint64Array(records.buffer, records.byteOffset + at, RECORD.MEMORY / 8);
  const outcome = Number(quads[RECORD.OUTCOME / 8]);
  if (outcome === 0) return undefined;
  const state: CpuState = {
    x: quads.slice(RECORD.X / 8, RECORD.X / 8 + 31),
    sp: quads[RECORD.SP / 8]!,
    nzcv: (Number(quads[RECORD.NZCV / 8]) & 0xf0000000) >>> 0,
    fpcr: Number(quads[RECORD.FPCR / 8]) & FPCR_MASK,
    fpsr: Number(quads[RECORD.FPSR / 8]) & FPSR_MASK,
    v: quads.slice(RECORD.V / 8, RECORD.V / 8 + 64),
    memory: records.slice(at + RECORD.MEMORY, at + RECORD_BYTES),
  };
  const result: RecordOutcome = {
    state,
    faultPc: quads[RECORD.FAULT_PC / 8]!,
    faultAddress: quads[RECORD.FAULT_ADDRESS / 8]!,
  };
  if (outcome !== OUTCOME_COMPLETE) result.fault = faultName(outcome);
  return result;
}

function faultName(signal: number): FaultName {
  for (const [name, number] of Object.entries(SIGNALS)) if (number === signal) return name as FaultName;
  throw new Error(`the driver recorded signal ${signal}, which it does not handle`);
}
