// A checkpoint as the host's user holds it: a frozen state of a domain in memory, to roll back to and to fork from.

import { DOMAIN } from '../abi/domain-record.ts';
import { ZazenError } from '../base/errors.ts';
import { HVM_PARAM } from '../abi/xen.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import { freezeDomain, lookOver } from '../lifecycle/checkpoint.ts';
import type { FrozenDomain } from '../lifecycle/checkpoint.ts';
import { forkDomain } from '../lifecycle/fork.ts';
import { findDifferences } from '../lifecycle/domain-state.ts';
import type { Differences } from '../lifecycle/domain-state.ts';
import { rollBackDomain } from '../lifecycle/rollback.ts';
import { endSuspendElsewhere, isSuspended } from '../lifecycle/suspend.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { DomainShare } from '../hypervisor/shares.ts';
import { checkName, checkUuid, randomUuid } from './domain-spec.ts';
import type { HostedDomain } from './domain.ts';
import type { DeviceState, DomainEnds, DomainIdentity } from './guest-devices.ts';
import { releaseDisks } from './guest-disks.ts';
import { connectHost, tellGuest } from './host-ends.ts';
import type { HostCore } from './host-core.ts';
import type { ParentReference } from '../image/format.ts';
import { openParent, saveCheckpoint } from './image-files.ts';
import type { SaveToParent } from './image-files.ts';
import type { ImageUser, LoadedImage } from './loaded-images.ts';
import type { Checkpoint, CheckpointStats, Domain, ForkSpec, RollbackStats, SaveOptions, SaveStats } from './types.ts';

const MICROS_PER_MILLI = 1000;
const NANOS_PER_MILLI = 1e6;
const NANOS_PER_MICRO = 1000;
/** Forks made in one go before others get their turn. */
const FORKS_PER_TURN = 8;

let lastId = 0;

/** Domains that can be put back to each other's checkpoints: a domain, its forks, and theirs. */
export interface Family {
  /** That the first of them was restored from: memory of all of them may lie in it. */
  readonly image: LoadedImage | undefined;
}

export interface CheckpointParts {
  readonly frozen: FrozenDomain;
  readonly devices: DeviceState;
  readonly origin: DomainIdentity & { readonly id: number };
  readonly family: Family;
  readonly stats: CheckpointStats;
  /** Of the pCPUs; of one from an image, the usual one. */
  readonly share?: DomainShare;
  /** Of one from an image: its forks do not run before that. */
  readonly memoryReady?: Promise<unknown>;
  /** What the guest was using just before, if that was asked for: see lifecycle/working-set.ts. */
  readonly hotFrames?: ReadonlySet<number>;
}

/** By the images that they were saved as. */
const heldCheckpoints = new WeakMap<HostCore, Map<string, HeldCheckpoint>>();

function heldAs(core: HostCore): Map<string, HeldCheckpoint> {
  const known = heldCheckpoints.get(core) ?? new Map<string, HeldCheckpoint>();
  heldCheckpoints.set(core, known);
  return known;
}

/** Of an image with exactly these contents. */
const keyOf = ({ id, digest }: ParentReference): string => `${id} ${digest}`;

export class HeldCheckpoint implements Checkpoint, ImageUser {
  readonly id = ++lastId;
  readonly createdMillis = performance.timeOrigin + performance.now();
  readonly domainId: number;
  readonly domainName: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
  readonly stats: CheckpointStats;
  /** Who the domain was. */
  readonly origin: CheckpointParts['origin'];
  readonly #core: HostCore;
  readonly #parts: CheckpointParts;
  readonly #saves = new Set<Promise<unknown>>();
  #isGone = false;

  constructor(core: HostCore, parts: CheckpointParts) {
    this.#core = core;
    this.#parts = parts;
    this.origin = parts.origin;
    this.domainId = parts.origin.id;
    this.domainName = parts.origin.name;
    this.memoryBytes = parts.origin.memoryBytes;
    this.vcpus = parts.origin.vcpus;
    this.stats = parts.stats;
    core.frozenRoots.add(parts.frozen.root);
    if (parts.devices.disks.length > 0) core.frozenDisks.add(parts.devices.disks);
    parts.family.image?.join(this);
  }

  get p2mRoot(): number {
    return this.#parts.frozen.root;
  }

  /** For rollback. @throws ZazenError ZAZEN_CHECKPOINT_GONE, ZAZEN_CHECKPOINT_FOREIGN */
  partsFor(core: HostCore, family: Family, name: string): CheckpointParts {
    this.#assertHere();
    if (this.#core !== core || this.#parts.family !== family) {
      throw new ZazenError('ZAZEN_CHECKPOINT_FOREIGN', `the checkpoint is none of domain ${name}`,
        { hint: 'a domain can be rolled back to checkpoints of itself, of its forks, and of what it is a fork of' });
    }
    return this.#parts;
  }

  #assertHere(): void {
    if (this.#isGone) throw new ZazenError('ZAZEN_CHECKPOINT_GONE', 'the checkpoint has been destroyed');
  }

  async fork(wanted: number | readonly ForkSpec[] = 1): Promise<Domain[]> {
    const specs = typeof wanted === 'number' ? Array.from({ length: wanted }, (): ForkSpec => ({})) : wanted;
    this.#checkSpecs(specs);
    if (this.#parts.devices.nics.length > 0) await this.#core.networks.begin();
    const forks: Domain[] = [];
    try {
      for (const spec of specs) {
        if (forks.length > 0 && forks.length % FORKS_PER_TURN === 0) await new Promise(setImmediate);
        forks.push(this.#forkOne(spec));
      }
      await this.#parts.memoryReady;
    } catch (error) {
      await Promise.all(forks.map((fork) => fork.destroy()));
      throw error;
    }
    return forks;
  }

  #checkSpecs(specs: readonly ForkSpec[]): void {
    const names = new Set<string>();
    for (const { name, uuid } of specs) {
      checkName(name);
      checkUuid(uuid);
      if (name === undefined) continue;
      this.#core.assertNameFree(name);
      if (names.has(name)) throw new ZazenError('ZAZEN_DOMAIN_NAME_TAKEN', `two forks are to be called ${name}`);
      names.add(name);
    }
  }

  #forkOne({ name, uuid: wantedUuid, paused = false }: ForkSpec): HostedDomain {
    this.#assertHere();
    const core = this.#core;
    core.assertOpen();
    if (name !== undefined) core.assertNameFree(name);
    const { thread, builder } = core;
    const { frozen, devices, origin, family, share, memoryReady } = this.#parts;
      const vcpuAddresses = core.takeVcpus(frozen.state.vcpus.length);
    const uuid = checkUuid(wantedUuid) ?? randomUuid(core.random);
    const record = vcpuAddresses
      && forkDomain(thread, builder, frozen, vcpuAddresses, Buffer.from(uuid.replaceAll('-', ''), 'hex'));
    if (record === undefined) {
      if (vcpuAddresses) core.returnVcpus(vcpuAddresses);
      throw new ZazenError('ZAZEN_DOMAIN_LIMIT', `the host has no room for another fork of ${origin.name}`,
        { hint: 'destroy a domain or a checkpoint, or start the host with more memory' });
    }
    const wasSuspended = isSuspended(record);
    if (wasSuspended) endSuspendElsewhere(thread, record);
    const ends = connectHost(core, record);
    setWallClock(core, record);
    tellGuest(core, ends);
    const identity = { ...origin, uuid, name: name ?? core.freeName(`domain-${record.domid}`) };
    const hosted = core.makeHosted({ identity, ends, vcpuAddresses: vcpuAddresses!, family, devices, memoryReady });
    core.domains.set(record.domid, hosted);
    if (share !== undefined) thread.scheduling.shares.set(record.domid, share);
    thread.timers.startTime(record.domid);
    hosted.start(paused, wasSuspended);
    return hosted;
  }

  async save(path: string, options: SaveOptions & Pick<SaveToParent, 'isDump'> = {}): Promise<SaveStats> {
    this.#assertHere();
    return this.#heldFor(this.#save(path, options));
  }

  async #save(path: string, { parent: parentPath, ...options }: Parameters<HeldCheckpoint['save']>[1] & {}): Promise<SaveStats> {
    const parent = parentPath === undefined ? undefined : await openParent(parentPath, this.origin);
    const held = heldAs(this.#core);
    const base = parent === undefined ? undefined : held.get(keyOf(parent.reference));
    const write = (parentRoot?: number) =>
      saveCheckpoint(this.#core, this.#parts, path, { ...options, parent, parentRoot });
    const { reference, stats } = await (base === undefined ? write() : base.#heldFor(write(base.#parts.frozen.root)));
    if (!this.#isGone) held.set(keyOf(reference), this);
    return stats;
  }

  /** The frozen memory stays until then. */
  #heldFor<T>(save: Promise<T>): Promise<T> {
    this.#saves.add(save);
    const forget = (): void => { this.#saves.delete(save); };
    save.then(forget, forget);
    return save;
  }

  async destroy(): Promise<void> {
    if (this.#isGone) return;
    this.#isGone = true;
    const held = heldAs(this.#core);
    for (const [key, checkpoint] of held) if (checkpoint === this) held.delete(key);
    // They read the frozen memory.
    await Promise.allSettled(this.#saves);
    this.#core.frozenRoots.delete(this.#parts.frozen.root);
    this.#core.releaseRoot(this.#parts.frozen.root);
    this.#parts.family.image?.leave(this);
    this.#core.frozenDisks.delete(this.#parts.devices.disks);
    await releaseDisks(this.#parts.devices.disks);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }
}

/**
 * The guest computes its wall clock from its own time, which has stood still for a while. Of one that has suspended itself,
 * the two say when that was, until it goes on.
 */
export function setWallClock({ thread, builder }: HostCore, record: DomainRecord): void {
  if (isSuspended(record)) return;
  builder.setWallClock(record, thread.clock.wallMillis() - thread.timers.time(record.domid) / NANOS_PER_MILLI);
}

function outOfMemory(what: string): ZazenError {
  return new ZazenError('ZAZEN_HOST_OUT_OF_MEMORY', `the host has no memory left for ${what}`,
    { hint: 'destroy a domain or a checkpoint, or start the host with more memory' });
}

function busy(name: string): ZazenError {
  return new ZazenError('ZAZEN_DOMAIN_BUSY', `devices use memory of domain ${name}`);
}

/**
 * With the domain stopped, its virtual time included, which stays so if it was. `whileStopped` gets the micros that the
 * stop took; `whileStopping` is called when it has begun, while the vCPUs are on their way.
 */
function stopped<T>(
  { thread }: HostCore, record: DomainRecord, whileStopped: (stopMicros: number) => T, whileStopping?: () => void,
): T {
  const { scheduling, timers } = thread;
  const { domid } = record;
  const start = performance.now();
  const wasTimeStopped = timers.isTimeStopped(domid);
  scheduling.beginBriefStop();
  scheduling.pauseDomain(domid);
  try {
    whileStopping?.();
    scheduling.waitUntilStopped(domid);
    timers.stopTime(domid);
    return whileStopped((performance.now() - start) * MICROS_PER_MILLI);
  } finally {
    if (!wasTimeStopped) timers.startTime(domid);
    scheduling.unpauseDomain(domid);
    scheduling.endBriefStop();
  }
}

/**
 * To be called as late as can be: this thread may have lost its core to the vCPU's in the moment when it let that go on.
 * @param sinceNanos when `stopped` was called
 */
function downtimeMicros({ thread: { scheduling, clock } }: HostCore, { domid }: DomainRecord, sinceNanos: number): number {
  return (scheduling.ranOnAt(domid, sinceNanos, clock.monotonicNanos()) - sinceNanos) / NANOS_PER_MICRO;
}

/**
 * @throws ZazenError ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_DOMAIN_BUSY; ZAZEN_DOMAIN_SHUTDOWN when it shuts down just now
 */
export function takeCheckpoint(
  core: HostCore, record: DomainRecord, parts: Pick<CheckpointParts, 'origin' | 'family' | 'hotFrames'>,
  saveDevices: () => DeviceState,
): HeldCheckpoint {
  const { origin } = parts;
  const devices = saveDevices();
  const begin = performance.now();
  core.thread.scheduling.findOnCores(record.domid, core.thread.clock, () => lookOver(core.thread, record));
  const start = core.thread.clock.monotonicNanos();
  let stopMicros = 0;
  const frozen = stopped(core, record, (micros) => {
    stopMicros = micros;
    if (record.get(DOMAIN.at.shutdown) !== 0 && !isSuspended(record)) return 'shutdown';
    const result = freezeDomain(core.thread, record);
    setWallClock(core, record);
    return result;
  });
  if (frozen === undefined) throw outOfMemory(`a checkpoint of domain ${origin.name}`);
  if (frozen === 'busy') throw busy(origin.name);
  if (frozen === 'shutdown') throw new ZazenError('ZAZEN_DOMAIN_SHUTDOWN', `domain ${origin.name} has shut down`);
  const share = core.thread.scheduling.shares.get(record.domid);
  const stats = {
    stopMicros, downtimeMicros: downtimeMicros(core, record, start),
    totalMicros: (performance.now() - begin) * MICROS_PER_MILLI,
  };
  return new HeldCheckpoint(core, { ...parts, frozen, devices, stats, share });
}

/**
 * The memory part of a rollback; the guest runs when this returns, unless it was paused.
 * @throws ZazenError ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_DOMAIN_BUSY; the domain is as before
 */
export function rollBackMemory(
  core: HostCore, ends: DomainEnds, { frozen, devices }: Pick<CheckpointParts, 'frozen' | 'devices'>, name: string,
): Omit<RollbackStats, 'totalMicros'> {
  const { thread, builder } = core;
  const { domain, consolePort, xenstorePort } = ends;
  const start = thread.clock.monotonicNanos();
  let stopMicros = 0;
  let differences: Differences;
  stopped(core, domain, (micros) => {
    stopMicros = micros;
    const rolledBack = rollBackDomain(thread, builder, domain, frozen, differences);
    if (rolledBack === undefined) throw outOfMemory(`rolling back domain ${name}`);
    const { oldRoot, isConnected } = rolledBack;
    if (!isConnected) {
      const { channels } = thread.hypercalls;
      const host = channels.domains.record(0);
      const ports = [[HVM_PARAM.STORE_EVTCHN, xenstorePort], [HVM_PARAM.CONSOLE_EVTCHN, consolePort]] as const;
      for (const [param, port] of ports) {
        channels.join(host, port, domain, Number(getHvmParam(domain, param)));
      }
    }
    setWallClock(core, domain);
    if (!isConnected || devices.owesEvents) tellGuest(core, ends);
    if (oldRoot !== 0) core.releaseRoot(oldRoot);
  }, () => {
    if (thread.hypercalls.grants.whileUnused(domain, () => undefined) === 'busy') throw busy(name);
    differences = findDifferences(thread, domain, frozen.root);
  });
  return { stopMicros, downtimeMicros: downtimeMicros(core, domain, start) };
}
