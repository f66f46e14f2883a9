// What the hostile tests share: guests without an operating system, assembled and wrapped as an arm64 Image, and the
// proof that the host outlived them.
//
//   0x4000_0000 ┌──────────────┐
//               │ Image header │ 64 bytes, the first word branches to the program
//   0x4000_0800 │ vectors      │ 16 × 128 bytes: go on after the instruction that faulted; mask an interrupt
//   0x4000_1000 │ program      │ at EL1 with the MMU off
//   0x4040_0000 │ data         │ a table that the test has made, with its random numbers drawn on the host
//   0x4080_0000 │ free         │ up to MEMORY
//               └──────────────┘

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { HYPERVISOR, XEN_HYPERCALL_TAG } from '../../src/abi/xen.ts';
import { Host } from '../../src/host/index.ts';
import type { Domain, DomainSpec } from '../../src/host/index.ts';
import { PSCI } from '../../src/hypervisor/psci.ts';
import { hostMemory } from '../host-memory.ts';
import { PATIENCE_MILLIS } from '../patience.ts';

export const BASE = 0x4000_0000;
export const DATA = BASE + 0x40_0000;
export const FREE = BASE + 0x80_0000;
export const MEMORY = '40MiB';
const VECTORS = 0x800;
const PROGRAM = 0x1000;
const IRQ_MASKED = 0x80;
const IMAGE_MAGIC = 0x644d_5241;
const PAGE_SIZE_4K = 2;

export interface BareMetalProgram {
  /** The program; default: an endless loop. */
  code?: (a: Assembler) => void;
  /** Goes to DATA. */
  data?: Uint8Array;
  /** Instructions of each synchronous vector instead of going on after the faulting one; at most 32. */
  onFault?: (a: Assembler) => void;
}

/** The bytes of an Image with the program in it. Registers x24-x28 belong to the vectors. */
export function bareMetalImage({ code = spin, data, onFault = skip }: BareMetalProgram): Uint8Array {
  const a = new Assembler(BASE);
  a.b('start').padTo(64);
  for (let vector = 0; vector < 16; vector++) {
    a.padTo(VECTORS + 0x80 * vector);
    if (vector % 4 === 0) onFault(a);
    else maskInterrupts(a);
  }
  a.padTo(PROGRAM).label('start').mov(0, BASE + VECTORS).msr('VBAR_EL1', 0);
  // FP and SIMD are not trapped.
  a.mov(0, 3 << 20).msr('CPACR_EL1', 0).isb();
  code(a);
  const words = a.words();
  assert.ok(4 * words.length <= DATA - BASE, 'the program runs into its data');
  const bytes = new Uint8Array(data ? DATA - BASE + data.length : 4 * words.length);
  const view = new DataView(bytes.buffer);
  words.forEach((word, index) => view.setUint32(4 * index, word, true));
  bytes.fill(0, 4, 64);
  view.setBigUint64(0x10, BigInt(bytes.length), true);
  view.setUint32(0x18, PAGE_SIZE_4K, true);
  view.setUint32(0x38, IMAGE_MAGIC, true);
  if (data) bytes.set(data, DATA - BASE);
  return bytes;
}

function skip(a: Assembler): void {
  a.mrs(28, 'ELR_EL1').add(28, 28, 4).msr('ELR_EL1', 28).eret();
}
function maskInterrupts(a: Assembler): void {
  a.mrs(28, 'SPSR_EL1').mov(27, IRQ_MASKED).emit('ORR (register)', { sf: 1, Rm: 27, Rn: 28, Rd: 28 });
  a.msr('SPSR_EL1', 28).eret();
}

let labels = 0;
/** A name that no other label has. */
export const fresh = (name: string): string => `${name}-${labels++}`;

export function spin(a: Assembler): void {
  const here = fresh('spin');
  a.label(here).b(here);
}
/** PSCI SYSTEM_OFF. */
export function powerOff(a: Assembler): void {
  a.mov(0, PSCI.SYSTEM_OFF).hvc(0);
  spin(a);
}
/** Arguments in x0-x4; the result comes in x0. */
export function hypercall(a: Assembler, number: keyof typeof HYPERVISOR): void {
  a.mov(16, HYPERVISOR[number]).hvc(XEN_HYPERCALL_TAG);
}
/** Runs `body` for x20 = the address of each row at DATA, in a table of `rows` rows. It must leave x20 and x21 alone. */
export function forEachRow(a: Assembler, rows: number, rowBytes: number, body: () => void): void {
  const again = fresh('row');
  a.mov(20, DATA).mov(21, rows).label(again);
  body();
  a.add(20, 20, rowBytes).subs(21, 21, 1).bCond('ne', again);
}
/** Runs `body` so many times; it must leave x22 alone. */
export function repeat(a: Assembler, times: number, body: () => void): void {
  const again = fresh('again');
  a.mov(22, times).label(again);
  body();
  a.subs(22, 22, 1).bCond('ne', again);
}
export function forever(a: Assembler, body: () => void): void {
  const again = fresh('forever');
  a.label(again);
  body();
  a.b(again);
}

// ---- randomness

/** Numbers of a seed (mulberry32). A test prints its seed when it fails: it is in the test's name. */
export class Dice {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }
  u32(): number {
    this.#state = (this.#state + 0x6d2b_79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  }
  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }
  below(limit: number): number {
    return this.u32() % limit;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

// ---- what must hold afterwards

/** Looks every few milliseconds. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + PATIENCE_MILLIS;
  while (!condition()) {
    assert.ok(performance.now() < deadline, `waited in vain until ${what}`);
    await new Promise(resolve => setTimeout(resolve, 2));
  }
}

async function soon<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} takes too long`)), PATIENCE_MILLIS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Unpauses guests that have stalled, now and as often as they do it while `work` goes on: a vCPU that found no frame a moment
 * before there were some may say so only then.
 */
export async function whileGoingOn<T>(guests: readonly Domain[], work: () => Promise<T>): Promise<T> {
  const subscriptions = guests.map(guest => guest.events({ history: false }));
  for (const [index, guest] of guests.entries()) {
    void (async () => {
      for await (const { type } of subscriptions[index]!) if (type === 'stalled') await guest.unpause();
    })();
    if (guest.state === 'paused') await guest.unpause();
  }
  try {
    return await work();
  } finally {
    for (const subscription of subscriptions) void subscription.return();
  }
}

/** A host with a witness: a guest that checks its own memory for ever and crashes if another guest got at it. */
export class Arena {
  readonly host: Host;
  readonly #witness: Domain;
  readonly #directory: string;
  #files = 0;

  private constructor(host: Host, directory: string, witness: Domain) {
    this.host = host;
    this.#directory = directory;
    this.#witness = witness;
  }

  static async open(memory = hostMemory('512MiB')): Promise<Arena> {
    const directory = mkdtempSync(join(tmpdir(), 'zazen-hostile-'));
    const host = await Host.start({ memory, pcpus: 2 });
    const path = join(directory, 'witness');
    writeFileSync(path, bareMetalImage({ code: watchOwnMemory }));
    try {
      const witness = await host.create({ kernel: path, initrd: 'none', memory: MEMORY, name: 'witness' });
      return new Arena(host, directory, witness);
    } catch (error) {
      await host.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.host.close();
    rmSync(this.#directory, { recursive: true });
  }

  file(bytes: Uint8Array): string {
    const path = join(this.#directory, `file${this.#files++}`);
    writeFileSync(path, bytes);
    return path;
  }

  start(program: BareMetalProgram, spec: DomainSpec = {}): Promise<Domain> {
    return this.host.create({ kernel: this.file(bareMetalImage(program)), initrd: 'none', memory: MEMORY, ...spec });
  }

  /** The host can pause, continue and destroy a guest whatever it does, and nobody else has noticed anything. */
  async survive(guest: Domain): Promise<void> {
    if (guest.state === 'running') {
      await soon('pausing', guest.pause());
      const { instructionsRetired } = guest.stats();
      await this.#witnessGoesOn();
      assert.equal(guest.stats().instructionsRetired, instructionsRetired, 'a paused guest runs');
      await soon('continuing', guest.unpause());
    }
    await this.#witnessGoesOn();
    await this.audit();
    await soon('destroying', guest.destroy());
    await this.audit();
  }

  /** Returns when the witness has all the memory that it will ever have. */
  settle(): Promise<void> {
    return this.#witnessGoesOn();
  }

  async #witnessGoesOn(): Promise<void> {
    const before = this.#witness.stats().instructionsRetired;
    await until('the other guest has done its rounds', () =>
      this.#witness.state !== 'running' || this.#witness.stats().instructionsRetired > before + 200_000);
    assert.equal(this.#witness.state, 'running', 'another guest has been touched');
  }

  async audit(): Promise<void> {
    assert.deepEqual((await this.host.audit()).problems, []);
  }

  /** Runs a guest until it has powered off or retired so many instructions, then `survive`. */
  async run(program: BareMetalProgram, instructions = Infinity, spec: DomainSpec = {}): Promise<Domain> {
    const guest = await this.start(program, spec);
    await until(`the guest has stopped or retired ${instructions} instructions`, () =>
      guest.state !== 'running' || guest.stats().instructionsRetired >= instructions);
    await this.survive(guest);
    return guest;
  }

  /** Of a guest that must reach its `powerOff`. */
  async runToEnd(program: BareMetalProgram, spec: DomainSpec = {}): Promise<Domain> {
    const guest = await this.start(program, spec);
    assert.equal(await soon('the program', guest.waitForShutdown()), 'poweroff');
    await this.survive(guest);
    return guest;
  }
}

/** Writes a pattern that depends on the address into 64 pages, then reads it back again and again. */
function watchOwnMemory(a: Assembler): void {
  const WORDS = 64 * 512;
  const STEP = 64;
  const pattern = (): void => { a.eorReg(3, 1, 5); };
  a.mov(5, 0x5a5a_1234_9876_0fedn).mov(1, FREE).mov(2, WORDS / (STEP / 8)).label('fill');
  pattern();
  a.str(3, 1).add(1, 1, STEP).subs(2, 2, 1).bCond('ne', 'fill');
  a.label('round').mov(1, FREE).mov(2, WORDS / (STEP / 8)).label('check').ldr(4, 1);
  pattern();
  a.emit('SUBS (register)', { sf: 1, Rm: 4, Rn: 3, Rd: 31 }).bCond('ne', 'spoilt');
  a.add(1, 1, STEP).subs(2, 2, 1).bCond('ne', 'check').b('round');
  a.label('spoilt');
  powerOff(a);
}
