// No byte of a destroyed domain is ever readable by another. Threads write a pattern into a domain's memory; it is
// destroyed while other threads take frames from the heap at full speed and look at every one, and idle pCPUs take the
// memory apart and scrub it. Then the same with guests that look at their own memory.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { DOMAIN } from '../../src/abi/domain-record.ts';
import { GUEST_RAM0_BASE } from '../../src/abi/xen.ts';
import { FRAME_BYTES } from '../../src/abi/machine-memory.ts';
import { systemClock } from '../../src/base/clock.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { PSCI } from '../../src/hypervisor/psci.ts';
import { HostCore } from '../../src/host/host-core.ts';
import type { DomainRecord } from '../../src/hypervisor/domain-record.ts';
import { FREE, fresh, powerOff } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';
import { COMMAND, CONTROL, FIRST_AGENT } from './frame-worker.ts';
import type { FrameTask } from './frame-worker.ts';

const ROUNDS = 6;
/** So much of the machine that the others soon need frames that were the domain's. */
const SHARE = 0.85;
const FIRST_GFN = GUEST_RAM0_BASE / FRAME_BYTES;
const FILLERS = 2;
const LOOKERS = 3;

/** Threads beside a host's pCPUs that use its heap. */
class FrameThreads {
  readonly control = new Int32Array(new SharedArrayBuffer(128));
  readonly #workers: Worker[] = [];
  #commands = 0;

  constructor(memory: WebAssembly.Memory) {
    for (let i = 0; i < FILLERS + LOOKERS; i++) {
      const workerData: FrameTask = {
        memory, agent: FIRST_AGENT + i, role: i < FILLERS ? 'filler' : 'looker', control: this.control,
      };
      const worker = new Worker(new URL('./frame-worker.ts', import.meta.url), { workerData, execArgv: [] });
      worker.on('error', (error) => { throw error; });
      this.#workers.push(worker);
    }
  }

  command(command: number): void {
    Atomics.store(this.control, CONTROL.command, ++this.#commands * 4 + command);
    Atomics.notify(this.control, CONTROL.command);
  }
  async done(): Promise<void> {
    const command = this.control[CONTROL.command];
    await until('the threads are done',
      () => this.#workers.every((_, i) => Atomics.load(this.control, CONTROL.done + i) === command));
  }
  get looked(): number {
    return this.control[CONTROL.looked]!;
  }
  /** Resolves when they are at it. */
  async look(): Promise<void> {
    const { looked } = this;
    this.command(COMMAND.look);
    await until('the lookers look', () => this.looked > looked + 1000);
  }
  /** When it resolves, the threads have nothing of the heap's, and have found nothing in it. */
  async rest(): Promise<void> {
    this.command(COMMAND.rest);
    await this.done();
    assert.equal(this.control[CONTROL.found], 0, `found 0x${(this.control[CONTROL.value]! >>> 0).toString(16)}`);
  }
  async close(): Promise<void> {
    await Promise.all(this.#workers.map(worker => worker.terminate()));
  }
}

/** A host's insides, with domains that threads fill. */
class Rig {
  readonly core = new HostCore({
    memoryBytes: 384 * 2 ** 20, pcpus: 2, clock: systemClock, random: new SeededRandom(1), log: () => {},
  });
  readonly threads = new FrameThreads(this.core.thread.machine.memory);
  readonly pages = Math.floor(this.core.thread.heap.stats().total * SHARE);

  async fill(record: DomainRecord): Promise<void> {
    this.threads.control.set([record.get(DOMAIN.at.p2mRoot), FIRST_GFN, this.pages, FILLERS], CONTROL.root);
    this.threads.command(COMMAND.fill);
    await this.threads.done();
  }
  createDomain(): DomainRecord {
    const { builder } = this.core;
    const vcpuAddresses = this.core.takeVcpus(1)!;
    const made = builder.createDomain({ vcpuAddresses, handle: new Uint8Array(16), maxPages: this.pages });
    assert.ok(made !== undefined && builder.addRam(made.domain, FIRST_GFN, this.pages));
    this.core.returnVcpus(vcpuAddresses);
    for (const port of [made.consolePort, made.xenstorePort]) this.core.ports.close(port);
    return made.domain;
  }
  audit(): void {
    assert.deepEqual(this.core.audit().problems, []);
  }
  async close(): Promise<void> {
    await this.core.close();
    await this.threads.close();
  }
}

test('frames of a destroyed domain come to others as zeros, however fast they take them', async (t) => {
  const rig = new Rig();
  t.after(() => rig.close());
  rig.core.startWorkers();
  const { threads } = rig;
  const { heap } = rig.core.thread;
  // The first one leaves a table of ports to the host.
  rig.core.releaseRecord(rig.createDomain());
  await until('it is gone', () => !heap.tearDown.isPending);
  const { used } = heap.stats();
  for (let round = 0; round < ROUNDS; round++) {
    const record = rig.createDomain();
    await rig.fill(record);
    assert.ok(heap.stats().used > used + rig.pages);
    await threads.look();
    const { looked } = threads;
    rig.core.releaseRecord(record);
    // Sometimes in the middle of it, sometimes when all is done.
    if (round % 2 === 0) await until('it is gone', () => !heap.tearDown.isPending);
    await until('they have had it all', () => threads.looked > looked + rig.pages);
    await threads.rest();
    rig.audit();
  }
  await until('all is scrubbed', () => heap.stats().dirty + heap.stats().scrubbing === 0);
  assert.equal(heap.stats().used, used);
  rig.audit();
  t.diagnostic(`${threads.looked} frames looked at`);
  // What is still to do when the host closes keeps no worker.
  const last = rig.createDomain();
  await rig.fill(last);
  rig.core.releaseRecord(last);
});

/** Writes a pattern into every word of its free memory, then sleeps for ever. */
function pollute(a: Assembler): void {
  const [write, rest] = ['write', 'rest'].map(fresh) as [string, string];
  a.mov(1, FREE).mov(2, GUEST_WORDS).mov(5, 0x5ec2_e700_5ec2_e700n).label(write).str(5, 1);
  a.add(1, 1, 8).subs(2, 2, 1).bCond('ne', write);
  a.mov(0, 1).label(rest).emit('WFI', {}).b(rest);
}
/** The machine memory of the host that `start` starts. */
async function withMemory<T>(start: () => Promise<T>): Promise<{ started: T; memory: WebAssembly.Memory }> {
  const { Memory } = WebAssembly;
  const made: WebAssembly.Memory[] = [];
  WebAssembly.Memory = class extends Memory {
    constructor(descriptor: WebAssembly.MemoryDescriptor) {
      super(descriptor);
      made.push(this);
    }
  };
  try {
    const started = await start();
    return { started, memory: made.toSorted((a, b) => b.buffer.byteLength - a.buffer.byteLength)[0]! };
  } finally {
    WebAssembly.Memory = Memory;
  }
}

test('frames that a guest has filled come to others as zeros, while it is destroyed and afterwards', async t => {
  const { started: arena, memory } = await withMemory(() => Arena.open('384MiB'));
  const threads = new FrameThreads(memory);
  try {
    for (let round = 0; round < 2; round++) {
      const guest = await arena.start({ code: pollute }, { memory: GUEST_BYTES });
      await until('it has written all', () => guest.stats().residentBytes > GUEST_WORDS * 8);
      await threads.look();
      const { looked } = threads;
      // Its last writes may still be under way.
      await guest.destroy();
      await until('they have had it all', () => threads.looked > looked + arena.host.stats().memoryBytes / FRAME_BYTES);
      await threads.rest();
      await arena.audit();
    }
    t.diagnostic(`${threads.looked} frames looked at`);
  } finally {
    await arena.close();
    await threads.close();
  }
});

/** Touches every page, with a zero, then reads every word; powers off when all are zero, else asks for a reset. */
function inspect(a: Assembler): void {
  const [touch, read, wrong] = ['touch', 'read', 'wrong'].map(fresh) as [string, string, string];
  a.mov(1, FREE).mov(2, GUEST_WORDS / 512).mov(5, 0).label(touch).str(5, 1);
  a.add(1, 1, 4095).add(1, 1, 1).subs(2, 2, 1).bCond('ne', touch);
  a.mov(1, FREE).mov(2, GUEST_WORDS).label(read).ldr(4, 1).emit('SUBS (register)', { sf: 1, Rm: 5, Rn: 4, Rd: 31 });
  a.bCond('ne', wrong).add(1, 1, 8).subs(2, 2, 1).bCond('ne', read);
  powerOff(a);
  a.label(wrong).mov(0, PSCI.SYSTEM_RESET).hvc(0);
}
const GUEST_BYTES = 72 * 2 ** 20;
const GUEST_WORDS = (GUEST_BYTES - 16 * 2 ** 20) / 8;

test('a guest sees nothing of one that was destroyed a moment before', async () => {
  const arena = await Arena.open('384MiB');
  try {
    for (let round = 0; round < 3; round++) {
      const dirty = await arena.start({ code: pollute }, { memory: GUEST_BYTES });
      await until('it has written all', () => dirty.stats().residentBytes > GUEST_WORDS * 8
        && dirty.stats().instructionsRetired > 4 * GUEST_WORDS);
      const next = await arena.start({ code: inspect }, { memory: GUEST_BYTES, paused: true });
      await dirty.destroy();
      await next.unpause();
      assert.equal(await next.waitForShutdown(), 'poweroff');
      await arena.survive(next);
    }
  } finally {
    await arena.close();
  }
});
