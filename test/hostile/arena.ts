// Where the hostile tests run their guests, with the proof that the host and its other guests outlived them.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { Host } from '../../src/host/index.ts';
import type { Domain, DomainSpec } from '../../src/host/index.ts';
import { FREE, MEMORY, bareMetalImage, powerOff } from '../bare-metal.ts';
import type { BareMetalProgram } from '../bare-metal.ts';
import { hostMemory } from '../host-memory.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { until } from '../waiting.ts';

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
