// A domain as the host's user holds it: console, events, pausing, ending. Its memory, vCPUs and event channels are the
// hypervisor's; this is the end of them in the main thread.

import type { Duplex } from 'node:stream';
import { DOMAIN, STALL_LOST_PAGE } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { VCPU_SCHEDULE, VCPU_STATE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { SHUTDOWN } from '../abi/xen.ts';
import { ZazenError } from '../base/errors.ts';
import { consoleLogEnd, readConsoleLog } from '../hypervisor/console-io.ts';
import { isSuspended, shutdownPath } from '../lifecycle/suspend.ts';
import { framesInTlbs } from '../lifecycle/working-set.ts';
import { HeldCheckpoint, rollBackMemory, takeCheckpoint } from './checkpoint.ts';
import type { CheckpointParts, Family } from './checkpoint.ts';
import { attachGuestCommand } from './guest-command.ts';
import { GuestDevices } from './guest-devices.ts';
import { checkNics } from './guest-nics.ts';
import type { DeviceState, DomainEnds, DomainIdentity } from './guest-devices.ts';
import { hvmFixed, releaseDisks } from './guest-disks.ts';
import type { OpenedDisk } from './guest-disks.ts';
import { EventLog } from './event-log.ts';
import { checkShare } from './domain-spec.ts';
import type { DomainPlan } from './domain-spec.ts';
import type { HostCore } from './host-core.ts';
import type { ImageUser } from './loaded-images.ts';
import { StackSamples, kernelNames } from './profile.ts';
import { parseSize } from './size.ts';
import { Suspension } from './suspension.ts';
import type {
  Checkpoint, ConsoleDevice, CpuShare, DetachOptions, DiskSpec, Domain, DomainEvent, DomainEventBody, DomainSaveOptions, DomainSaveStats,
  DomainState, DomainStats, EventSubscription, GuestCommand, NicSpec, NicStats, Profile, ProfileOptions, Profiling, RollbackStats, SaveStats, ShutdownReason, Size,
  SubscribeOptions, SuspendOptions, SuspendStats, TransferOptions, VcpuStats,
} from './types.ts';

/** By SHUTDOWN_* of Xen's sched.h, of which a suspend is none that ends it; a soft reset has no meaning here. */
const SHUTDOWN_REASONS: Readonly<Record<number, ShutdownReason>> = {
  [SHUTDOWN.poweroff]: 'poweroff', [SHUTDOWN.reboot]: 'reboot', [SHUTDOWN.watchdog]: 'watchdog',
};
const VCPU_STATE_NAMES: Readonly<Record<number, VcpuStats['state']>> = {
  [VCPU_STATE.offline]: 'offline', [VCPU_STATE.starting]: 'offline', [VCPU_STATE.runnable]: 'runnable',
  [VCPU_STATE.running]: 'running', [VCPU_STATE.blocked]: 'blocked', [VCPU_STATE.throttled]: 'runnable',
};
const NANOS_PER_MILLI = 1e6;
const MICROS_PER_MILLI = 1000;
const DETACH_TIMEOUT_MILLIS = 10_000;
const SAMPLE_MICROS = 1000;
const SAMPLE_MICROS_MIN = 100;
const MICROS_PER_MINUTE = 6e7;

export interface HostedDomainParts {
  readonly identity: DomainIdentity;
  readonly ends: DomainEnds;
  readonly vcpuAddresses: readonly number[];
  readonly family: Family;
  readonly exec?: DomainPlan['exec'];
  readonly nics?: DomainPlan['nics'];
  /** Of the checkpoint that it is a fork of; and when that one's memory is there, if it is not yet: it does not run before. */
  readonly devices?: DeviceState;
  readonly memoryReady?: Promise<unknown> | undefined;
  /** Of a new domain. */
  readonly disks?: readonly OpenedDisk[];
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
  readonly #events = new EventLog<DomainEvent>();
  readonly #suspension: Suspension;
  readonly #devices: GuestDevices;
  readonly #memoryReady: Promise<unknown> | undefined;
  #stopped = Promise.withResolvers<ShutdownReason | 'destroyed'>();
  #paused = true;
  /** It will be let go as soon as it can run, and nobody has said otherwise. */
  #isStarting = false;
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
    this.#memoryReady = parts.memoryReady;
    const { devices: state, memoryReady, disks, nics } = parts;
    this.#devices = new GuestDevices(core, ends, this.#identity, { state, memoryReady, disks, nics });
    this.#suspension = new Suspension(core, {
      name: this.name, record: ends.domain,
      isPaused: () => this.#paused, assertRunnable: () => this.#assertRunnable(), emit: (event) => this.#emit(event),
    });
    this.#family.image?.join(this);
    if (exec !== undefined) this.exec = attachGuestCommand(this.#devices.console.stream, exec);
  }

  get p2mRoot(): number {
    return this.#ends.domain.get(DOMAIN.at.p2mRoot);
  }

  /**
   * To be called once, when vCPU 0 is ready to run.
   * @param wasSuspended in the state that it goes on from
   */
  start(paused: boolean, wasSuspended = false): void {
    this.#emit({ type: 'started' });
    if (wasSuspended) this.#emit({ type: 'resumed', reason: 'new-place' });
    if (paused) return this.#emit({ type: 'paused' });
    this.#isStarting = true;
    if (this.#memoryReady === undefined) this.#letGo();
    else void this.#letGoWhen(this.#memoryReady);
  }
  async #letGoWhen(ready: Promise<unknown>): Promise<void> {
    await ready;
    if (this.#isStarting && this.#destroyed === undefined) this.#letGo();
  }
  #letGo(): void {
    this.#isStarting = false;
    this.#paused = false;
    this.#core.thread.scheduling.unpauseDomain(this.id);
  }

  wasRestored(path: string): void {
    this.#emit({ type: 'restored', path });
  }

  #emit(body: DomainEventBody): void {
    const timeMillis = performance.timeOrigin + performance.now();
    const event: DomainEvent = { ...body, domainId: this.id, sequence: this.#events.length + 1, timeMillis };
    this.#events.add(event);
    this.#core.events.add({ ...event, name: this.name });
  }

  // ---- what the hypervisor tells

  /** The domain's shutdown state or its emergency console have changed, or it has stalled. */
  notice(): void {
    if (this.#destroyed !== undefined) return;
    const { scheduling } = this.#core.thread;
    const { domain } = this.#ends;
    const shutdown = domain.get(DOMAIN.at.shutdown);
    // If not, the notice is about something else; the one that its last vCPU has stopped comes yet.
    const hasStopped = shutdown !== 0 && scheduling.isStopped(this.id);
    this.#takeLog();
    this.#devices.emulated?.service();
    const stall = scheduling.takeStall(this.id);
    if (stall !== 0) this.#stalled(stall);
    if (!hasStopped || this.#shutdownReason !== undefined) return;
    if (!isSuspended(domain)) this.#guestStopped(SHUTDOWN_REASONS[shutdown - 1] ?? 'crash');
    else if (this.#suspension.via === undefined) this.#guestSuspended();
  }

  #guestStopped(reason: ShutdownReason): void {
    this.#shutdownReason = reason;
    this.#devices.console.service();
    this.#devices.closeConsole();
    this.#emit({ type: 'shutdown', reason });
    this.#stopped.resolve(reason);
    this.#suspension.ended(this.#shutDownError());
    this.#core.store.domainShutdown(this.id);
  }

  /** Whoever waits for this comes first, and what the store tells everybody later. */
  #guestSuspended(): void {
    this.#suspension.guestSuspended();
    setImmediate(() => {
      if (this.state === 'suspended') this.#core.store.domainShutdown(this.id);
    });
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
    if (this.#suspension.via !== undefined) return 'suspended';
    return this.#paused ? 'paused' : 'running';
  }
  get shutdownReason(): ShutdownReason | undefined {
    return this.#destroyed === undefined ? this.#shutdownReason : undefined;
  }
  get console(): Duplex {
    return this.#devices.console.stream;
  }
  attachConsole(device: ConsoleDevice = 'first'): Duplex {
    if (device === 'first') return this.#devices.console.attach();
    if (this.#devices.emulated !== undefined) return this.#devices.emulated.attachConsole();
    throw new ZazenError('ZAZEN_CONSOLE_MISSING', `domain ${this.name} has no virtio console`,
      { hint: 'guests of type hvm have one' });
  }
  events(options?: SubscribeOptions): EventSubscription<DomainEvent> {
    return this.#events.subscribe(options);
  }

  #assertAlive(): void {
    if (this.#destroyed === undefined) return;
    throw this.#goneError();
  }
  #assertRunnable(): void {
    this.#assertAlive();
    if (this.#shutdownReason !== undefined) throw this.#shutDownError();
  }
  #goneError(): ZazenError {
    return new ZazenError('ZAZEN_DOMAIN_GONE', `domain ${this.name} has been destroyed`);
  }
  #shutDownError(): ZazenError {
    return new ZazenError('ZAZEN_DOMAIN_SHUTDOWN', `domain ${this.name} has shut down (${this.#shutdownReason})`);
  }

  async pause(): Promise<void> {
    this.#assertAlive();
    if (this.#isStarting) {
      this.#isStarting = false;
      return this.#emit({ type: 'paused' });
    }
    if (this.#paused) return;
    const { scheduling } = this.#core.thread;
    this.#paused = true;
    scheduling.pauseDomain(this.id);
    scheduling.waitUntilStopped(this.id);
    this.#emit({ type: 'paused' });
  }

  setCpuShare(share: CpuShare): void {
    this.#assertAlive();
    const { shares } = this.#core.thread.scheduling;
    shares.set(this.id, checkShare(share, shares.get(this.id)));
  }

  profile({ intervalMicros = SAMPLE_MICROS }: ProfileOptions = {}): Profiling {
    this.#assertAlive();
    if (!Number.isInteger(intervalMicros) || intervalMicros < SAMPLE_MICROS_MIN || intervalMicros > MICROS_PER_MINUTE) {
      throw new ZazenError('ZAZEN_PROFILE_INTERVAL', `a guest cannot be sampled every ${intervalMicros} µs`,
        { hint: `give ${SAMPLE_MICROS_MIN} to ${MICROS_PER_MINUTE}` });
    }
    const samples = new StackSamples();
    const end = this.#core.samples.begin(this.id, intervalMicros, sample => samples.add(sample));
    let finished: Promise<Profile> | undefined;
    return { stop: () => finished ??= this.#finishProfile(samples, end) };
  }
  async #finishProfile(samples: StackSamples, end: () => void): Promise<Profile> {
    end();
    if (this.#destroyed !== undefined) return samples.finish(this.name, () => undefined);
    const { machine, p2m, scheduling } = this.#core.thread;
    scheduling.pauseDomain(this.id);
    scheduling.waitUntilStopped(this.id);
    try {
      return samples.finish(this.name, kernelNames(machine, p2m, this.#ends.domain));
    } finally {
      scheduling.unpauseDomain(this.id);
    }
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
    this.#letGo();
    this.#emit({ type: 'unpaused' });
  }

  async load(options: TransferOptions = {}): Promise<void> {
    this.#assertAlive();
    await this.#family.image?.complete(options);
  }

  async shutdown({ reason = 'poweroff' }: { reason?: 'poweroff' | 'reboot' } = {}): Promise<void> {
    this.#assertAlive();
    const { emulated } = this.#devices;
    if (emulated === undefined) this.#core.store.write(shutdownPath(this.id), reason);
    else if (!emulated.press(reason)) {
      throw new ZazenError('ZAZEN_HVM_UNHEARD', `domain ${this.name} has no driver for the buttons of a machine of type hvm`,
        { hint: `load virtio_input in the guest, run ${reason} there, or destroy it` });
    }
  }

  waitForShutdown(): Promise<ShutdownReason | 'destroyed'> {
    return this.#stopped.promise;
  }

  async suspend(options?: SuspendOptions): Promise<SuspendStats> {
    this.#assertRunnable();
    return this.#suspension.suspend(options);
  }

  async resume(): Promise<void> {
    this.#assertRunnable();
    if (this.#suspension.via === undefined) return;
    this.#suspension.resume();
    this.#core.store.domainResumed(this.id);
  }

  /** Those of its cards' specs. @throws ZazenError ZAZEN_PORT_* */
  openForwards(): Promise<void> {
    return this.#devices.nics.openForwards();
  }
  async attachNic(spec: NicSpec = {}): Promise<NicStats> {
    this.#assertAlive();
    checkNics([spec]);
    this.#assertPluggable();
    await this.#core.networks.begin();
    this.#assertAlive();
    const { nics } = this.#devices;
    const handle = nics.add(spec);
    try {
      await nics.openForwards(handle);
    } catch (error) {
      await nics.remove(handle);
      throw error;
    }
    this.#assertAlive();
    return nics.stats().find((nic) => nic.handle === handle)!;
  }
  /** Of a domain that was restored: those that it had when it was saved. */
  takeBackForwards(): Promise<void> {
    return this.#devices.nics.takeBackForwards('all');
  }
  async addForward(forward: string, handle?: number): Promise<string> {
    this.#assertAlive();
    return this.#devices.nics.addForward(forward, handle);
  }
  async removeForward(forward: string): Promise<void> {
    this.#assertAlive();
    return this.#devices.nics.removeForward(forward);
  }
  async detachNic(handle: number): Promise<void> {
    this.#assertAlive();
    this.#assertPluggable();
    await this.#devices.nics.remove(handle);
  }
  #assertPluggable(): void {
    if (this.#devices.emulated === undefined) return;
    throw hvmFixed('network cards');
  }

  async checkpoint(): Promise<Checkpoint> {
    this.#core.onCheckpoint();
    return this.#checkpoint({});
  }
  async #checkpoint(more: { hotFrames?: ReadonlySet<number> }): Promise<HeldCheckpoint> {
    this.#assertAlive();
    const { disks } = this.#devices;
    return disks.isEmpty ? this.#checkpointNow(more) : disks.quiesced(() => this.#checkpointNow(more));
  }
  /** With the disks quiesced. */
  #checkpointNow(more: { hotFrames?: ReadonlySet<number> }): HeldCheckpoint {
    this.#assertRunnable();
    this.#takeLog();
    const parts = { origin: this.#identity, family: this.#family, ...more };
    const { nics } = this.#devices;
    let devices: DeviceState | undefined;
    nics.hold(true);
    try {
      return takeCheckpoint(this.#core, this.#ends.domain, parts, () => devices = this.#devices.save());
    } catch (error) {
      void releaseDisks(devices?.disks ?? []);
      throw error;
    } finally {
      nics.release();
    }
  }

  async save(path: string, { via, ...options }: DomainSaveOptions = {}): Promise<DomainSaveStats> {
    const hotFrames = framesInTlbs(this.#core.thread.machine, this.#vcpuAddresses);
    const mustSuspend = via !== undefined && this.state !== 'suspended';
    const suspend = mustSuspend ? await this.suspend({ via, signal: options.signal }) : undefined;
    await using checkpoint = await this.#checkpointOnce({ hotFrames }, suspend !== undefined);
    const stats = await checkpoint.save(path, options);
    if (this.#destroyed === undefined) this.#emit({ type: 'saved', path });
    return suspend === undefined ? stats : { ...stats, suspend };
  }
  /** @param mustResume whatever comes of it */
  async #checkpointOnce(more: { hotFrames?: ReadonlySet<number> }, mustResume: boolean): Promise<HeldCheckpoint> {
    try {
      return await this.#checkpoint(more);
    } finally {
      if (mustResume && this.state === 'suspended') await this.resume();
    }
  }
  async dumpCore(path: string, { onProgress, signal }: TransferOptions = {}): Promise<SaveStats> {
    await using checkpoint = await this.#checkpoint({});
    const stats = await checkpoint.save(path, { onProgress, signal, isDump: true });
    if (this.#destroyed === undefined) this.#emit({ type: 'saved', path });
    return stats;
  }

  async rollback(checkpoint: Checkpoint): Promise<RollbackStats> {
    this.#assertAlive();
    if (!(checkpoint instanceof HeldCheckpoint)) throw new TypeError('not a checkpoint');
    const parts = checkpoint.partsFor(this.#core, this.#family, this.name);
    const { disks, nics } = this.#devices;
    const stats = disks.isEmpty && parts.devices.disks.length === 0 ? this.#rollBack(parts) : await disks.quiesced(() => {
      this.#assertAlive();
      return this.#rollBack(checkpoint.partsFor(this.#core, this.#family, this.name));
    });
    await nics.takeBackForwards('broughtBack');
    return stats;
  }
  /** With the disks quiesced. */
  #rollBack(parts: CheckpointParts): RollbackStats {
    const start = performance.now();
    this.#takeLog();
    const { nics } = this.#devices;
    nics.hold(false);
    try {
      return this.#rollBackHeld(parts, start);
    } finally {
      nics.release();
    }
  }
  /** With the network cards held as well. */
  #rollBackHeld(parts: CheckpointParts, start: number): RollbackStats {
    const stats = rollBackMemory(this.#core, this.#ends, parts, this.name);
    this.#logCursor = consoleLogEnd(this.#ends.domain);
    if (this.#shutdownReason !== undefined) {
      this.#shutdownReason = undefined;
      this.#stopped = Promise.withResolvers();
    }
    this.#devices.restore(parts.devices);
    this.#core.store.domainResumed(this.id);
    this.#suspension.rolledBack();
    this.#emit({ type: 'rolledBack' });
    return { ...stats, totalMicros: (performance.now() - start) * MICROS_PER_MILLI };
  }

  destroy(): Promise<void> {
    return this.#destroyed ??= this.#destroy();
  }

  async #destroy(): Promise<void> {
    const { thread } = this.#core;
    const { domain } = this.#ends;
    this.#suspension.ended(this.#goneError());
    this.#suspension.close();
    this.#devices.nics.detach();
    this.#lastStats = { ...this.stats(), state: 'destroyed' };
    thread.scheduling.pauseDomain(this.id);
    thread.scheduling.waitUntilStopped(this.id);
    this.#takeLog();
    const disksClosed = this.#devices.close();
    for (const address of this.#vcpuAddresses) thread.scheduling.detach(address);
    this.#core.release(this, domain, this.#vcpuAddresses);
    this.#family.image?.leave(this);
    this.#emit({ type: 'destroyed' });
    this.#events.end();
    this.#stopped.resolve('destroyed');
    await disksClosed;
  }

  async attachDisk(spec: DiskSpec): Promise<string> {
    this.#assertAlive();
    return this.#devices.disks.attach(spec);
  }
  async detachDisk(target: string, { timeoutMillis = DETACH_TIMEOUT_MILLIS, force = false }: DetachOptions = {}): Promise<void> {
    this.#assertAlive();
    return this.#devices.disks.detach(target, { timeoutMillis, force });
  }
  async resizeDisk(target: string, size: Size): Promise<void> {
    this.#assertAlive();
    return this.#devices.disks.resize(target, parseSize(size, 'the disk\'s size'));
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
    const share = scheduling.shares.get(this.id);
    return {
      id: this.id, name: this.name, uuid: this.uuid, state: this.state, memoryBytes: this.memoryBytes,
      residentBytes: heap.chargedFrames(this.id) * FRAME_BYTES,
      vcpus, cpuWeight: share.weight, cpuCapPercent: share.capPercent,
      instructionsRetired: vcpus.reduce((total, vcpu) => total + vcpu.instructionsRetired, 0),
      runMillis: vcpus.reduce((total, vcpu) => total + vcpu.runMillis, 0),
      hypercalls: sum(address => machine.u32[(address + vcpuRecord.at.hypercalls) / 4]!),
      tlbMisses: sum(address => machine.u32[(address + vcpuRecord.at.tlbMisses) / 4]!),
      unknownSystemRegisters: sum(address => Number(machine.u64[(address + vcpuRecord.at.unknownSystemRegisters) / 8]!)),
      consoleOutBytes: outputBytes, consoleInBytes: inputBytes,
      ...(this.#devices.emulated === undefined ? {} : { emulated: this.#devices.emulated.stats() }),
      nics: this.#devices.nics.stats(),
      ...(this.#devices.disks.isEmpty ? {} : { disks: this.#devices.disks.stats() }),
      ...(this.#family.image === undefined ? {} : { image: this.#family.image.stats() }),
    };
  }
}
