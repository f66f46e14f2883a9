// Several vCPUs at the same time, each on an engine and a thread of its own over one machine memory, for programs that
// find out what the vCPUs see of each other's accesses.
//
//   offset from GUEST_BASE
//   0x00_0000  vectors: HVC in each
//   0x01_0000  programs, one after the other
//   0x10_0000  variables, a line of 256 bytes each: X, Y, Z, and how many have started and finished
//   0x40_0000  results of the first thread, then of the others: RESULTS_MAX values of 64 bits each

import assert from 'node:assert/strict';
import { Worker } from 'node:worker_threads';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { interpreterLayout } from '../../src/cpu/handlers.ts';
import { buildInterpreter } from '../../src/cpu/interpreter.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine } from '../../src/cpu/test-machine.ts';
import { ForcedRegions } from '../../src/cpu/test-regions.ts';
import { VcpuState } from '../../src/cpu/vcpu-state.ts';
import { PATIENCE_MILLIS } from '../patience.ts';

const at = vcpuRecord.at;
const VECTORS = GUEST_BASE;
const PROGRAMS = GUEST_BASE + 0x1_0000;
const VARIABLES = GUEST_BASE + 0x10_0000;
const VARIABLE_BYTES = 256;
const RESULTS = GUEST_BASE + 0x40_0000;
export const RESULTS_MAX = 0x4_0000;
export const VCPUS = 4;
const VECTOR_CALL = 0xbad;

/**
 * Words that a rig and its threads share. In `round`, together so that nobody sees one without the other: how many
 * threads take part, and above them the round's number.
 */
export const CONTROL = { round: 0, done: 1, ready: 2 } as const;
export const THREADS_MASK = 7;
/** Instead of a round's number: the thread ends. */
export const CLOSE = -1;

export interface SmpTask {
  readonly memory: WebAssembly.Memory;
  readonly control: SharedArrayBuffer;
  readonly interpreter: WebAssembly.Module;
  readonly regions: readonly WebAssembly.Module[];
  readonly index: number;
  readonly vcpuCount: number;
}

/** Registers that every program finds set: variables, its results, how many iterations, and what it may use at will. */
export const R = { k: 0, x: 10, y: 11, z: 12, started: 13, finished: 14, results: 15, iterations: 16, threads: 17 } as const;
type Variable = 'x' | 'y' | 'z' | 'started' | 'finished';
const variables: readonly Variable[] = ['x', 'y', 'z', 'started', 'finished'];

export interface EngineVariant {
  readonly addressType: 'i32' | 'i64';
  /** Left out: interpreted. */
  readonly regionMax?: number;
}

export class SmpRig {
  readonly #m: TestMachine;
  readonly #regions: ForcedRegions | undefined;
  readonly #regionMax: number;
  readonly #control = new Int32Array(new SharedArrayBuffer(64));
  readonly #workers: Worker[] = [];
  #nextProgram = PROGRAMS;
  #rounds = 0;

  constructor({ addressType, regionMax }: EngineVariant) {
    this.#m = createTestMachine({ addressType });
    this.#regionMax = regionMax ?? 0;
    this.#regions = regionMax === undefined ? undefined : new ForcedRegions(this.#m.machine, { regionMax });
    const vectors = new Assembler(VECTORS);
    for (let offset = 0; offset < 0x800; offset += 0x80) vectors.padTo(offset).hvc(VECTOR_CALL);
    this.#m.load(VECTORS, vectors.words());
  }

  /** Before `start`. @returns the program's address */
  add(write: (a: Assembler) => void): number {
    const address = this.#nextProgram;
    const a = new Assembler(address);
    write(a);
    const words = a.hvc(0).words();
    this.#m.load(address, words);
    this.#nextProgram += Math.ceil(words.length * 4 / 256) * 256;
    // Of a program that is compiled as a whole, the places where it begins and where its loops do.
    const places = this.#regionMax > words.length ? words.flatMap((_, i) => i === 0 || startsBlock(words, i) ? [i] : [])
      : words.map((_, i) => i);
    this.#regions?.compile(places.map(i => {
      const place = address - GUEST_BASE + 4 * i;
      return { mfn: this.#m.machine.firstFrame + Math.floor(place / 4096), offsetInPage: place & 0xfff };
    }));
    return address;
  }

  /** When it resolves, all threads wait for work. */
  async start(): Promise<void> {
    const { machine } = this.#m;
    const { addressType, sizeBytes } = machine.parameters;
    const bytes = buildInterpreter({ addressType, minPages: 1, maxPages: sizeBytes / 65536 }, interpreterLayout(machine));
    const interpreter = new WebAssembly.Module(bytes);
    for (let index = 0; index < VCPUS; index++) {
      const task: SmpTask = {
        memory: machine.memory, control: this.#control.buffer as SharedArrayBuffer, interpreter,
        regions: this.#regions?.modules ?? [], index, vcpuCount: VCPUS,
      };
      if (index > 0) this.#m.addVcpu(index);
      const worker = new Worker(new URL('./smp-worker.ts', import.meta.url), { workerData: task, execArgv: [] });
      worker.on('error', error => { throw error; });
      this.#workers.push(worker);
    }
    while (Atomics.load(this.#control, CONTROL.ready) < VCPUS) {
      const { value } = Atomics.waitAsync(this.#control, CONTROL.ready, Atomics.load(this.#control, CONTROL.ready), 100);
      await value;
    }
  }

  #offset(variable: Variable): number {
    return VARIABLES + VARIABLE_BYTES * variables.indexOf(variable);
  }
  #u64(address: number): BigUint64Array {
    const { ram } = this.#m;
    return new BigUint64Array(ram.buffer, ram.byteOffset + address - GUEST_BASE);
  }
  read(variable: Variable, word = 0): bigint { return this.#u64(this.#offset(variable))[word]!; }
  /** The first results of a thread. */
  results(thread: number, count: number): bigint[] {
    return [...this.#u64(RESULTS + thread * RESULTS_MAX * 8).subarray(0, count)];
  }

  /** What a thread has counted to. */
  iterations(thread: number): number {
    return Number(new VcpuState(this.#m.machine, this.#m.machine.vcpuAddress(thread)).x(R.k));
  }

  /** Runs programs side by side until each has called the host; variables are zero before. */
  run(programs: readonly number[], iterations: number): void {
    for (const variable of variables) this.#u64(this.#offset(variable)).fill(0n, 0, VARIABLE_BYTES / 8);
    programs.forEach((address, index) => {
      const vcpu = new VcpuState(this.#m.machine, this.#m.machine.vcpuAddress(index));
      for (let n = 0; n < 31; n++) vcpu.setX(n, 0n);
      for (const variable of variables) vcpu.setX(R[variable], BigInt(this.#offset(variable)));
      vcpu.setX(R.results, BigInt(RESULTS + index * RESULTS_MAX * 8));
      vcpu.setX(R.iterations, BigInt(iterations));
      vcpu.setX(R.threads, BigInt(programs.length));
      vcpu.enterEl(1, 1);
      vcpu.set32(at.daif, 0x3c0);
      vcpu.set64(at.vbarEl1, BigInt(VECTORS));
      vcpu.set32(at.record, 0);
      vcpu.set64(at.pcBase, BigInt(address));
    });
    const control = this.#control;
    Atomics.store(control, CONTROL.done, 0);
    Atomics.store(control, CONTROL.round, ++this.#rounds * (THREADS_MASK + 1) + programs.length);
    Atomics.notify(control, CONTROL.round);
    for (;;) {
      const done = Atomics.load(control, CONTROL.done);
      if (done === programs.length) break;
      assert.notEqual(Atomics.wait(control, CONTROL.done, done, PATIENCE_MILLIS), 'timed-out', 'a program does not end');
    }
    programs.forEach((address, index) => {
      const vcpu = new VcpuState(this.#m.machine, this.#m.machine.vcpuAddress(index));
      const pc = Number(vcpu.get64(at.pcBase));
      assert.ok(pc > address, `thread ${index} has come to a vector: ESR 0x${vcpu.get64(at.esrEl1).toString(16)}`);
    });
  }

  async close(): Promise<void> {
    const ended = this.#workers.map(worker => new Promise<void>(resolve => { worker.once('exit', () => resolve()); }));
    Atomics.store(this.#control, CONTROL.round, CLOSE);
    Atomics.notify(this.#control, CONTROL.round);
    await Promise.all(ended);
  }
}

/** Whether a word is the target of a branch back (B, B.cond, CBZ, CBNZ, TBZ, TBNZ), or follows one. */
function startsBlock(words: readonly number[], index: number): boolean {
  return words.some((word, from) => {
    const distance = branchDistance(word);
    return distance !== undefined && (from + distance === index || from + 1 === index);
  });
}
function branchDistance(word: number): number | undefined {
  const field = (low: number, bits: number): number => (word << (32 - bits - low)) >> (32 - bits);
  if ((word >>> 26) === 0b000101) return field(0, 26);
  const top = word >>> 24;
  if (top === 0x54 || (top & 0x7e) === 0x34) return field(5, 19);
  return (top & 0x7e) === 0x36 ? field(5, 14) : undefined;
}
