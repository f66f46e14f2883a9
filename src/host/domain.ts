// A domain as the host's user holds it: console, events, pausing, ending. Its memory, vCPUs and event channels are the
// hypervisor's; this is the end of them in the main thread.

import type { Duplex } from 'node:stream';
import { DOMAIN, STALL_LOST_PAGE } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { VCPU_SCHEDULE, VCPU_STATE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { ZazenError } from '../base/errors.ts';
import { consoleLogEnd, readConsoleLog } from '../hypervisor/console-io.ts';
import { domainPath } from '../lifecycle/store-entries.ts';
import { framesInTlbs } from '../lifecycle/working-set.ts';
import { HeldCheckpoint, rollBackMemory, takeCheckpoint } from './checkpoint.ts';
import type { Family } from './checkpoint.ts';
import { attachGuestCommand } from './guest-command.ts';
import { GuestDevices } from './guest-devices.ts';
import type { DeviceState, DomainEnds, DomainIdentity } from './guest-devices.ts';
import { EventLog } from './event-log.ts';
import type { DomainPlan } from './domain-spec.ts';
import type { HostCore } from './host-core.ts';
import type { ImageUser } from './loaded-images.ts';
import type {
  Checkpoint, Domain, DomainEvent, DomainEventBody, DomainState, DomainStats, GuestCommand, RollbackStats, SaveOptions,
  SaveStats, ShutdownReason, TransferOptions,  VcpuStats,
} from './types.ts';

/** By SHUTDOWN_* of Xen's sched.h; a soft reset has no meaning here. */
const SHUTDOWN_REASONS: readonly ShutdownReason[] = ['poweroff', 'reboot', 'suspend', 'crash', 'watchdog', 'crash'];
const VCPU_STATE_NAMES: Readonly<Record<number, VcpuStats['state']>> = {
  [VCPU_STATE.offline]: 'offline', [VCPU_STATE.starting]: 'offline', [VCPU_STATE.runnable]: 'runnable',
  [VCPU_STATE.running]: 'running', [VCPU_STATE.blocked]: 'blocked',
};
const NANOS_PER_MILLI = 1e6;
const MICROS_PER_MILLI = 1000;

export interface HostedDomainParts {
  readonly identity: DomainIdentity;
  readonly ends: DomainEnds;
  readonly vcpuAddresses: readonly number[];
  readonly family: Family;
  readonly exec?: DomainPlan['exec'];
  /** Of the checkpoint that it is a fork of. */
  readonly devices?: DeviceState;
}

export class HostedDomain implements Domain, ImageUser {
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  readonly memoryBytes: number;
  readonly exec: GuestCommand | undefined;
  readonly #core: HostCore;
  readonly #ends: DomainEnds;
  readonly #identity: DomainIdentity & { readonly id: number };
  readonly #family: Family;
  readonly #vcpuAddresses: readonly number[];
  readonly #events = new EventLog();
  readonly #devices: GuestDevices;
  #stopped = Promise.withResolvers<ShutdownReason | 'destroyed'>();
  #paused = true;
  /** It is paused because a page of its image could not be read. */
  #isPageLost = false;
  #shutdownReason: ShutdownReason | undefined;
  #destroyed: Promise<void> | undefined;
  #lastStats: DomainStats | undefined;
  #logCursor: number;
  /** The end of the emergency console's text that is no whole line yet. */
  #logRest = '';

  constructor(core: HostCore, parts: HostedDomainParts) {
    const { identity, ends, exec } = parts;
    this.id = ends.domain.domid;
    this.name = identity.name;
    this.uuid = identity.uuid;
    this.memoryBytes = identity.memoryBytes;
    this.#core = core;
    this.#ends = ends;
    const { name, uuid, memoryBytes, vcpus } = identity;
    this.#identity = { name, uuid, memoryBytes, vcpus, id: this.id };
    this.#family = parts.family;
    this.#vcpuAddresses = parts.vcpuAddresses;
    // What a fork's original has said was heard there.
    this.#logCursor = consoleLogEnd(ends.domain);
    this.#devices = new GuestDevices(core, ends, this.#identity, parts.devices);
    this.#family.image?.join(this);
    if (exec !== undefined) this.exec = attachGuestCommand(this.#devices.console.stream, exec);
  }

  get p2mRoot(): number {
    return this.#ends.domain.get(DOMAIN.at.p2mRoot);
  }

  /** To be called once, when vCPU 0 is ready to run. */
  start(paused: boolean): void {
    this.#emit({ type: 'started' });
    if (paused) this.#emit({ type: 'paused' });
    else {
      this.#paused = false;
      this.#core.thread.scheduling.unpauseDomain(this.id);
    }
  }

  #emit(body: DomainEventBody): void {
    const timeMillis = performance.timeOrigin + performance.now();
    this.#events.add({ ...body, domainId: this.id, sequence: this.#events.length + 1, timeMillis } as DomainEvent);
  }

  // ---- what the hypervisor tells

  /** The domain's shutdown state or its emergency console have changed, or it has stalled. */
  notice(): void {
    if (this.#destroyed !== undefined) return;
    this.#takeLog();
    const stall = this.#core.thread.scheduling.takeStall(this.id);
    if (stall !== 0) this.#stalled(stall);
    const shutdown = this.#ends.domain.get(DOMAIN.at.shutdown);
    if (shutdown === 0 || this.#shutdownReason !== undefined) return;
    this.#core.thread.scheduling.waitUntilStopped(this.id);
    this.#takeLog();
    this.#devices.console.service();
    this.#shutdownReason = SHUTDOWN_REASONS[shutdown - 1] ?? 'crash';
    this.#core.store.domainShutdown(this.id);
    this.#devices.closeConsole();
    this.#emit({ type: 'shutdown', reason: this.#shutdownReason });
    this.#stopped.resolve(this.#shutdownReason);
  }

  /** Paused for want of a frame, once more than by the user. */
  #stalled(why: number): void {
    const { scheduling } = this.#core.thread;
    const problem = why >= STALL_LOST_PAGE ? this.#lossOf(why - STALL_LOST_PAGE) : this.#outOfFrames();
    if (problem !== undefined) {
      scheduling.waitUntilStopped(this.id);
      this.#emit({ type: 'stalled', ...problem });
    }
    if (problem === undefined || this.#paused) scheduling.unpauseDomain(this.id);
    else this.#paused = true;
  }

  #outOfFrames(): { code: string; message: string } | undefined {
    // Frames of a destroyed domain are on their way: no reason to trouble anybody. If they do not suffice, it stalls again.
    if (this.#core.releaseStep()) return undefined;
    return { code: 'ZAZEN_HOST_OUT_OF_MEMORY', message: 'the host has no memory left for it; free some, then unpause it' };
  }
  #lossOf(gfn: number): { code: string; message: string } | undefined {
    const loss = this.#family.image?.lossOf(gfn);
    if (loss === undefined) return undefined;
    this.#isPageLost = true;
    return { code: loss.code, message: `${loss.message}; put the file right, then unpause it` };
  }

  #takeLog(): void {
    if (consoleLogEnd(this.#ends.domain) === this.#logCursor) return;
    const { bytes, cursor } = readConsoleLog(this.#ends.domain, this.#logCursor);
    this.#logCursor = cursor;
    const lines = (this.#logRest + Buffer.from(bytes).toString('latin1')).split(/\r?\n/);
    this.#logRest = lines.pop()!.slice(-4096);
    for (const line of lines) this.#core.log(`${this.name}: ${line.replaceAll(/\p{Cc}/gu, '')}`);
  }

  // ---- what the user asks

  get state(): DomainState {
    if (this.#destroyed !== undefined) return 'destroyed';
    if (this.#shutdownReason !== undefined) return 'shutdown';
    return this.#paused ? 'paused' : 'running';
  }
  get shutdownReason(): ShutdownReason | undefined {
    return this.#destroyed === undefined ? this.#shutdownReason : undefined;
  }
  get console(): Duplex {
    return this.#devices.console.stream;
  }
  attachConsole(): Duplex {
    return this.#devices.console.attach();
  }
  events(): AsyncIterableIterator<DomainEvent> {
    return this.#events.read();
  }

  #assertAlive(): void {
    if (this.#destroyed === undefined) return;
    throw new ZazenError('ZAZEN_DOMAIN_GONE', `domain ${this.name} has been destroyed`);
  }

  async pause(): Promise<void> {
    this.#assertAlive();
    if (this.#paused) return;
    const { scheduling } = this.#core.thread;
    this.#paused = true;
    scheduling.pauseDomain(this.id);
    scheduling.waitUntilStopped(this.id);
    this.#emit({ type: 'paused' });
  }

  async unpause(): Promise<void> {
    this.#assertAlive();
    if (!this.#paused) return;
    if (this.#isPageLost) {
      this.#isPageLost = false;
      await this.#family.image?.lookAgain();
      this.#assertAlive();
    }
    if (!this.#paused) return;
    this.#paused = false;
    this.#core.thread.scheduling.unpauseDomain(this.id);
    this.#emit({ type: 'unpaused' });
  }

  async load(options: TransferOptions = {}): Promise<void> {
    this.#assertAlive();
    await this.#family.image?.complete(options);
  }

  async shutdown({ reason = 'poweroff' }: { reason?: 'poweroff' | 'reboot' } = {}): Promise<void> {
    this.#assertAlive();
    this.#core.store.write(`${domainPath(this.id)}/control/shutdown`, reason);
  }

  waitForShutdown(): Promise<ShutdownReason | 'destroyed'> {
    return this.#stopped.promise;
  }

  async checkpoint(): Promise<Checkpoint> {
    return this.#checkpoint({});
  }
  #checkpoint(more: { hotFrames?: ReadonlySet<number> }): HeldCheckpoint {
    this.#assertAlive();
    if (this.#shutdownReason !== undefined) {
      throw new ZazenError('ZAZEN_DOMAIN_SHUTDOWN', `domain ${this.name} has shut down`);
    }
    this.#takeLog();
    const parts = { origin: this.#identity, family: this.#family, ...more };
    return takeCheckpoint(this.#core, this.#ends.domain, parts, () => this.#devices.save());
  }

  async save(path: string, options: SaveOptions = {}): Promise<SaveStats> {
    const hotFrames = framesInTlbs(this.#core.thread.machine, this.#vcpuAddresses);
    await using checkpoint = this.#checkpoint({ hotFrames });
    return await checkpoint.save(path, options);
  }
  dumpCore(path: string, { onProgress, signal }: TransferOptions = {}): Promise<SaveStats> {
    return this.save(path, { onProgress, signal });
  }

  async rollback(checkpoint: Checkpoint): Promise<RollbackStats> {
    this.#assertAlive();
    if (!(checkpoint instanceof HeldCheckpoint)) throw new TypeError('not a checkpoint');
    const { frozen, devices } = checkpoint.partsFor(this.#core, this.#family, this.name);
    const start = performance.now();
    this.#takeLog();
    const stats = rollBackMemory(this.#core, this.#ends, frozen, this.name);
    this.#logCursor = consoleLogEnd(this.#ends.domain);
    if (this.#shutdownReason !== undefined) {
      this.#shutdownReason = undefined;
      this.#stopped = Promise.withResolvers();
    }
    this.#devices.restore(devices);
    this.#emit({ type: 'rolledBack' });
    return { ...stats, totalMicros: (performance.now() - start) * MICROS_PER_MILLI };
  }

  destroy(): Promise<void> {
    return this.#destroyed ??= this.#destroy();
  }

  async #destroy(): Promise<void> {
    const { thread } = this.#core;
    const { domain } = this.#ends;
    this.#lastStats = { ...this.stats(), state: 'destroyed' };
    thread.scheduling.pauseDomain(this.id);
    thread.scheduling.waitUntilStopped(this.id);
    this.#takeLog();
    this.#devices.close();
    for (const address of this.#vcpuAddresses) thread.scheduling.detach(address);
    this.#core.release(this, domain, this.#vcpuAddresses);
    this.#family.image?.leave(this);
    this.#emit({ type: 'destroyed' });
    this.#events.end();
    this.#stopped.resolve('destroyed');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }

  stats(): DomainStats {
    if (this.#lastStats !== undefined) return this.#lastStats;
    const { machine, scheduling, heap } = this.#core.thread;
    const vcpus = this.#vcpuAddresses.map((address, id): VcpuStats => ({
      id,
      state: VCPU_STATE_NAMES[scheduling.get(address, 'state')]!,
      instructionsRetired: Number(machine.u64[(address + vcpuRecord.at.instructionsRetired) / 8]!),
      runMillis: scheduling.getNanos(address, VCPU_SCHEDULE.at.runNanos) / NANOS_PER_MILLI,
    }));
    const sum = (pick: (address: number) => number): number => this.#vcpuAddresses.reduce((total, address) => total + pick(address), 0);
    const { outputBytes, inputBytes } = this.#devices.console.metrics;
    return {
      id: this.id, name: this.name, uuid: this.uuid, state: this.state, memoryBytes: this.memoryBytes,
      residentBytes: heap.chargedFrames(this.id) * FRAME_BYTES,
      vcpus,
      instructionsRetired: vcpus.reduce((total, vcpu) => total + vcpu.instructionsRetired, 0),
      runMillis: vcpus.reduce((total, vcpu) => total + vcpu.runMillis, 0),
      hypercalls: sum(address => machine.u32[(address + vcpuRecord.at.hypercalls) / 4]!),
      unknownSystemRegisters: sum(address => Number(machine.u64[(address + vcpuRecord.at.unknownSystemRegisters) / 8]!)),
      consoleOutBytes: outputBytes, consoleInBytes: inputBytes,
      ...(this.#family.image === undefined ? {} : { image: this.#family.image.stats() }),
    };
  }
}
