// A guest with one vCPU that runs in this thread, in virtual time: a nanosecond is an instruction, time stands still
// within a slice, and a guest that waits has its next deadline at once. The host's answers come between slices. So two
// guests that are given the same slices do the same, whatever runs their code.

import assert from 'node:assert/strict';
import { FRAME_BYTES } from '../../src/abi/machine-memory.ts';
import { VCPU_SCHEDULE } from '../../src/abi/scheduler.ts';
import { VCPU_BYTES, vcpuRecord, tlbOffsets, xOffset } from '../../src/abi/vcpu.ts';
import { DISCARD_SLOT } from '../../src/a64/operand.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { interpreterLayout } from '../../src/cpu/handlers.ts';
import { buildInterpreter } from '../../src/cpu/interpreter.ts';
import { LocalTranslator } from '../../src/cpu/test-regions.ts';
import type { ExitReason } from '../../src/cpu/host.ts';
import type { TestRegionOptions } from '../../src/cpu/test-regions.ts';
import type { VcpuState } from '../../src/cpu/vcpu-state.ts';
import { HostCore } from '../../src/host/host-core.ts';
import { hostOf } from '../../src/host/host.ts';
import type { Domain, DomainSpec, Host } from '../../src/host/index.ts';
import { assemblePcpu } from '../../src/host/pcpu-loop.ts';
import type { PcpuParts } from '../../src/host/pcpu-loop.ts';

const at = vcpuRecord.at;
const WASM_PAGE_BYTES = 65536;
const START_NANOS = 1e9;
/** What a YIELD takes. */
const SPIN_NANOS = 20_000;
const START_MILLIS = Date.UTC(2026, 0, 1);

/** What is not the guest's state: how it is being run, and addresses of host memory that follow from that. */
const notCompared: readonly (readonly [fromOffset: number, sizeBytes: number])[] = [
  [xOffset(DISCARD_SLOT), 8], [at.scratch, 64],
  // Compared by what they say.
  [at.flagN, 24],
  [at.fuel, 4], [at.pending, 4], [at.abort, 4], [at.tlbFlushRequest, 8], [at.tlbMisses, 4], [at.activity, 4],
];

export interface DeterministicOptions {
  readonly memoryBytes: number;
  readonly seed: number;
  /** Hot code is compiled; left out: everything is interpreted. */
  readonly regions?: TestRegionOptions;
}

export class DeterministicGuest {
  readonly core: HostCore;
  readonly host: Host;
  readonly domain: Domain;
  readonly vcpu: VcpuState;
  readonly translator: LocalTranslator | undefined;
  /** What the guest has said. */
  console = '';
  readonly #parts: PcpuParts;
  readonly #clock: { nanos: number };
  readonly #record: Uint8Array;

  private constructor(
    core: HostCore, host: Host, domain: Domain, parts: PcpuParts, clock: { nanos: number }, translator: LocalTranslator | undefined,
  ) {
    this.core = core;
    this.host = host;
    this.domain = domain;
    this.translator = translator;
    this.#parts = parts;
    this.#clock = clock;
    domain.console.on('data', (bytes: Buffer) => { this.console += bytes.toString('latin1'); });
    const { thread: { scheduling, safePoints }, engine } = parts;
    const address = scheduling.take(0);
    assert.notEqual(address, 0, 'the vCPU is ready to run');
    this.vcpu = engine.vcpu(address);
    this.#record = new Uint8Array(core.thread.machine.memory.buffer, address, tlbOffsets[0].read);
    scheduling.onRequest(() => engine.requestExit('host'));
    safePoints.onFlush(vcpuAddress => engine.obeyFlushRequest(engine.vcpu(vcpuAddress)));
    // An interrupt that the guest raises itself is taken after the very instruction, not at the next branch that looks.
    scheduling.interrupted = () => engine.requestExit('host');
  }

  static async create(spec: DomainSpec, { memoryBytes, seed, regions }: DeterministicOptions): Promise<DeterministicGuest> {
    const time = { nanos: START_NANOS };
    const clock = { monotonicNanos: () => time.nanos, wallMillis: () => START_MILLIS };
    const core = new HostCore({ memoryBytes, pcpus: 1, clock, random: new SeededRandom(seed), log: () => {} });
    const host = hostOf(core);
    const { machine } = core.thread;
    const { addressType, sizeBytes } = machine.parameters;
    const bytes = buildInterpreter({ addressType, minPages: 1, maxPages: sizeBytes / WASM_PAGE_BYTES }, interpreterLayout(machine));
    const translator = regions && new LocalTranslator(machine, regions);
    const parts = assemblePcpu({
      machine, pcpu: 0, clock, interpreter: new WebAssembly.Module(bytes), regions: translator?.client(),
    });
    const domain = await host.create(spec);
    return new DeterministicGuest(core, host, domain, parts, time, translator);
  }

  get retired(): number { return Number(this.vcpu.get64(at.instructionsRetired)); }
  get pc(): bigint { return this.vcpu.get64(at.pcBase); }

  /**
   * Runs some instructions, up to the next place where the engine can be left; less if the vCPU waits or wants
   * something of the host.
   */
  run(instructions: number): void {
    const { thread: { safePoints }, engine } = this.#parts;
    const { vcpu } = this;
    vcpu.set32(at.pending, 0);
    safePoints.enter(vcpu.address);
    try {
      this.#end = engine.run(vcpu, instructions);
    } finally {
      safePoints.leave();
    }
  }
  #end: ExitReason = 'slice';

  /**
   * Between slices, when both guests are at the same place: time goes on, and the host answers.
   * @param spins the guest waits for time to pass
   * @returns false when the guest has stopped for good
   */
  async settle(spins: boolean): Promise<boolean> {
    const { thread: { scheduling, timers } } = this.#parts;
    const { address } = this.vcpu;
    if (spins) this.#skippedNanos += SPIN_NANOS;
    this.#clock.nanos = Math.max(this.#clock.nanos, START_NANOS + this.retired + this.#skippedNanos);
    await this.#hostAnswers();
    timers.update(address, this.#clock.nanos);
    const asked = scheduling.takeRequests(address);
    if (!scheduling.mayRun(address)) return false;
    if ((this.#end === 'wfi' || (asked & 1) !== 0) && this.vcpu.get32(at.irqLine) === 0) {
      const until = (asked & 1) === 0 ? Infinity : scheduling.getNanos(address, VCPU_SCHEDULE.at.blockUntil);
      this.#skipTo(Math.min(timers.nextDeadlineNanos(address), until));
      timers.update(address, this.#clock.nanos);
    }
    this.#end = 'slice';
    return true;
  }
  #skippedNanos = 0;
  #skipTo(nanos: number): void {
    assert.ok(Number.isFinite(nanos), `the guest waits for ever:\n${this.console.slice(-500)}`);
    this.#skippedNanos += Math.max(0, nanos - this.#clock.nanos);
    this.#clock.nanos = Math.max(this.#clock.nanos, nanos);
  }

  async #hostAnswers(): Promise<void> {
    const { ports } = this.core;
    while (ports.doorbell !== this.#heard) {
      this.#heard = ports.doorbell;
      ports.deliver();
      // Streams pass on in later turns of the loop.
      for (let turn = 0; turn < 3; turn++) await new Promise(resolve => setImmediate(resolve));
    }
  }
  #heard: number | undefined;

  /** Where it is, for people. */
  toString(): string {
    const { vcpu } = this;
    return `${this.retired} at 0x${this.pc.toString(16)}, left by ${this.#end}, IRQ line ${vcpu.get32(at.irqLine)}, `
      + `DAIF 0x${vcpu.get32(at.daif).toString(16)}`;
  }
  /** The guest's registers and everything else that its vCPU is, as bytes. */
  registers(): Uint8Array {
    const copy = this.#record.slice();
    for (const [from, size] of notCompared) copy.fill(0, from, from + size);
    new DataView(copy.buffer).setUint32(at.flagN, this.vcpu.nzcv(), true);
    return copy;
  }
  /** All frames: the guest's memory, its page tables of both stages, and what the hypervisor keeps for it. */
  frames(): Uint8Array {
    const { machine } = this.core.thread;
    return new Uint8Array(machine.memory.buffer, machine.firstFrame * FRAME_BYTES, (machine.frameEnd - machine.firstFrame) * FRAME_BYTES);
  }

  async close(): Promise<void> {
    await this.core.images.close();
    await this.core.networks.close();
  }
}

/** Of the vCPU record. */
export function fieldAt(offset: number): string {
  assert.ok(offset < VCPU_BYTES);
  const starts = Object.entries(at).filter(([, start]) => start <= offset).toSorted(([, a], [, b]) => b - a);
  const [name, start] = starts[0]!;
  return `${name} + ${offset - start}`;
}
