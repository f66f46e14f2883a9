// Commands carried out on a host: the one place where a command becomes calls of the API. The control server hands it
// what comes from the socket; a program that embeds Zazen may call it as well.

import { isUtf8 } from 'node:buffer';
import type { Duplex } from 'node:stream';
import { orAborted } from '../base/abort.ts';
import { ZazenError } from '../base/errors.ts';
import type {
  Checkpoint, Domain, DomainSaveStats, ForkSpec, Host, SaveOptions, ShutdownReason, SuspendVia, TransferOptions,
} from '../host/types.ts';
import { assertLegal } from './command.ts';
import type {
  CheckpointSummary, Command, CommandName, CommandOf, CommandResults, CpuShareSummary, DomainSummary, HostDescription, ListedDomain,
} from './command.ts';
import { EventHub } from './event-hub.ts';
import { unknownDomain } from './protocol.ts';
import type { Progress } from './protocol.ts';
import { StopPolicies } from './stop-policies.ts';
import type { Origin } from './stop-policies.ts';

export interface ControlOptions {
  /** Of Zazen, for `list`. */
  readonly version: string;
  /** Gets a line for each thing worth telling the host's operator. */
  readonly log?: (line: string) => void;
}

export interface ExecuteOptions {
  /** Ends waiting and fetching; what is done stays done. */
  readonly signal?: AbortSignal;
  /** Gets a line for each step that takes time. */
  readonly log?: (line: string) => void;
  /** Gets how far a long step has come, often. */
  readonly onProgress?: (progress: Progress) => void;
}

/** A checkpoint that the host keeps, and what its forks are to be started from again. */
interface KeptCheckpoint {
  readonly checkpoint: Checkpoint;
  readonly origin: Origin;
}

export class Control {
  readonly #host: Host;
  readonly #version: string;
  readonly #hub: EventHub;
  readonly #policies: StopPolicies;
  readonly #checkpoints = new Map<number, KeptCheckpoint>();
  readonly #startedMillis = Date.now();

  constructor(host: Host, options: ControlOptions) {
    this.#host = host;
    this.#version = options.version;
    this.#hub = new EventHub(host);
    this.#policies = new StopPolicies(host, options.log ?? (() => {}));
  }

  /**
   * Carries out a command that has one result. Errors: ZAZEN_DOMAIN_UNKNOWN, ZAZEN_DOMAIN_STATE, ZAZEN_STORE_*, those
   * of the API; `signal.reason` when aborted.
   */
  async execute<C extends Command>(command: C, options: ExecuteOptions = {}): Promise<CommandResults[C['command']]> {
    return await this.#execute(command, options) as CommandResults[C['command']];
  }

  async #execute(command: Command, options: ExecuteOptions): Promise<unknown> {
    const { store } = this.#host;
    switch (command.command) {
      case 'list': return { host: this.#describe(), domains: this.#host.domains().map(describeDomain) };
      case 'create': return summary(await this.#policies.create(command.spec, command.policy ?? {}, options));
      case 'pause': return this.#act(command, (domain) => domain.pause());
      case 'unpause': return this.#act(command, (domain) => domain.unpause());
      case 'destroy': return this.#act(command, (domain) => domain.destroy());
      case 'resume': return this.#act(command, (domain) => domain.resume());
      case 'suspend': return this.#suspend(command, options.signal);
      case 'shutdown': return this.#shutDown(command, 'poweroff', options.signal);
      case 'reboot': return this.#shutDown(command, 'reboot', options.signal);
      case 'checkpoint': return this.#checkpoint(command);
      case 'checkpoints':
        return { checkpoints: this.#keptOf(command.domain).map((it) => describeCheckpoint(it.checkpoint)) };
      case 'checkpoint-destroy': return this.#destroyCheckpoint(command);
      case 'rollback': return this.#rollBack(command);
      case 'fork': return this.#fork(command);
      case 'save': return this.#save(command, options);
      case 'dump-core': {
        const stats = await this.#find(command.domain, 'dump-core').dumpCore(command.path, saveOptions(options));
        return { path: command.path, ...stats };
      }
      case 'restore': return this.#restore(command, options);
      case 'block-attach': return { target: await this.#find(command.domain, command.command).attachDisk(command.disk) };
      case 'block-detach':
        return await this.#find(command.domain, command.command).detachDisk(command.target, { force: command.force }), {};
      case 'block-resize':
        return await this.#find(command.domain, command.command).resizeDisk(command.target, command.size), {};
      case 'network-attach': return { nic: await this.#find(command.domain, command.command).attachNic(command.nic) };
      case 'network-detach':
        return await this.#find(command.domain, command.command).detachNic(command.handle), {};
      case 'network-list': return { nics: this.#find(command.domain, command.command).stats().nics };
      case 'network-forward': return this.#forward(command);
      case 'sched-credit': return this.#schedule(command);
      case 'block-list': return { disks: this.#find(command.domain, command.command).stats().disks ?? [] };
      case 'store-ls': return { names: there(command.path, store.list(command.path)) };
      case 'store-read': return describeValue(there(command.path, store.readBytes(command.path)));
      case 'store-write': return store.write(command.path, command.value), {};
      case 'store-rm': {
        if (!store.exists(command.path)) there(command.path, undefined);
        return store.rm(command.path), {};
      }
      case 'console': case 'events': case 'store-watch':
        throw new ZazenError('ZAZEN_COMMAND_INVALID', `${command.command} has no single result`);
    }
  }

  #schedule({ command, domain: name, weight, cap }: CommandOf<'sched-credit'>): CpuShareSummary {
    const domain = this.#find(name, command);
    domain.setCpuShare({ cpuWeight: weight, cpuCapPercent: cap });
    const { cpuWeight, cpuCapPercent } = domain.stats();
    return { id: domain.id, name: domain.name, weight: cpuWeight, cap: cpuCapPercent };
  }

  async #act(
    command: CommandOf<'pause' | 'unpause' | 'destroy' | 'resume'>, act: (domain: Domain) => Promise<void>,
  ): Promise<DomainSummary> {
    const domain = this.#find(command.domain, command.command);
    await act(domain);
    return summary(domain);
  }

  async #shutDown(
    { command, domain: name, wait }: CommandOf<'shutdown' | 'reboot'>,
    reason: 'poweroff' | 'reboot',
    signal: AbortSignal | undefined,
  ): Promise<DomainSummary & { reason?: ShutdownReason | 'destroyed' }> {
    const domain = this.#find(name, command);
    await domain.shutdown({ reason });
    if (wait !== true) return summary(domain);
    return { reason: await orAborted(domain.waitForShutdown(), signal), ...summary(domain) };
  }

  async #suspend(
    { command, domain: name, via, timeoutMillis }: CommandOf<'suspend'>, signal: AbortSignal | undefined,
  ): Promise<CommandResults['suspend']> {
    const domain = this.#find(name, command);
    const suspend = await domain.suspend({ via, timeoutMillis, signal });
    return { ...summary(domain), suspend };
  }

  // ---- checkpoints

  async #checkpoint(command: CommandOf<'checkpoint'>): Promise<CheckpointSummary> {
    const domain = this.#find(command.domain, command.command);
    const checkpoint = await domain.checkpoint();
    this.#checkpoints.set(checkpoint.id, { checkpoint, origin: this.#policies.origin(domain) });
    return describeCheckpoint(checkpoint);
  }

  /** Oldest first. A domain that is gone may be named by what it was called. */
  #keptOf(name: string | undefined): KeptCheckpoint[] {
    const id = this.#host.domains().find((one) => one.name === name)?.id;
    return [...this.#checkpoints.values()].filter(({ checkpoint: { domainId, domainName } }) =>
      name === undefined || String(domainId) === name || (id === undefined ? domainName === name : domainId === id));
  }

  #kept(id: number): KeptCheckpoint {
    const kept = this.#checkpoints.get(id);
    if (kept !== undefined) return kept;
    throw new ZazenError('ZAZEN_CHECKPOINT_UNKNOWN', `there is no checkpoint ${id}`, {
      hint: 'zazen checkpoints shows those there are',
    });
  }

  async #destroyCheckpoint(command: CommandOf<'checkpoint-destroy'>): Promise<CheckpointSummary> {
    const { checkpoint } = this.#kept(command.checkpoint);
    this.#checkpoints.delete(checkpoint.id);
    await checkpoint.destroy();
    return describeCheckpoint(checkpoint);
  }

  async #rollBack(command: CommandOf<'rollback'>): Promise<CommandResults['rollback']> {
    const domain = this.#find(command.domain, command.command);
    const kept = command.checkpoint === undefined
      ? this.#keptOf(String(domain.id)).at(-1) : this.#kept(command.checkpoint);
    if (kept === undefined) {
      throw new ZazenError('ZAZEN_CHECKPOINT_UNKNOWN', `domain ${domain.name} has no checkpoint`, {
        hint: `zazen checkpoint ${domain.name} makes one`,
      });
    }
    const stats = await domain.rollback(kept.checkpoint);
    return { ...summary(domain), checkpoint: kept.checkpoint.id, stats };
  }

  async #fork(command: CommandOf<'fork'>): Promise<CommandResults['fork']> {
    if ((command.domain === undefined) === (command.checkpoint === undefined)) {
      throw new ZazenError('ZAZEN_COMMAND_INVALID', 'fork takes either a domain or a checkpoint');
    }
    const begun = performance.now();
    const wanted = forkSpecs(command);
    const made = command.domain === undefined
      ? await this.#forkFrom(this.#kept(command.checkpoint!), wanted)
      : await this.#forkLive(this.#find(command.domain, command.command), wanted);
    return { domains: made.map(summary), forkMicros: (performance.now() - begun) * 1000 };
  }

  async #forkLive(domain: Domain, wanted: readonly ForkSpec[]): Promise<Domain[]> {
    await using checkpoint = await domain.checkpoint();
    return await this.#forkFrom({ checkpoint, origin: this.#policies.origin(domain) }, wanted);
  }

  async #forkFrom({ checkpoint, origin }: KeptCheckpoint, wanted: readonly ForkSpec[]): Promise<Domain[]> {
    const made = await checkpoint.fork(wanted);
    for (const domain of made) this.#policies.adopt(domain, origin);
    return made;
  }

  // ---- images

  async #save(command: CommandOf<'save'>, options: ExecuteOptions): Promise<CommandResults['save']> {
    const { path, checkpoint, destroy = false, parent, via } = command;
    const saving = { ...saveOptions(options), ...(parent === undefined ? {} : { parent }) };
    const isOfDomain = destroy || via !== undefined;
    if ((command.domain === undefined) === (checkpoint === undefined) || (isOfDomain && checkpoint !== undefined)) {
      throw new ZazenError('ZAZEN_COMMAND_INVALID',
        'save takes a domain, which it may suspend or destroy, or a checkpoint');
    }
    if (command.domain === undefined) {
      return { path, ...await this.#kept(checkpoint!).checkpoint.save(path, saving) };
    }
    const domain = this.#find(command.domain, command.command);
    if (!destroy) return { path, ...await domain.save(path, { ...saving, via }) };
    return { path, ...await saveAndDestroy(domain, path, saving, via) };
  }

  async #restore(command: CommandOf<'restore'>, options: ExecuteOptions): Promise<CommandResults['restore']> {
    const begun = performance.now();
    const { command: _, path, ...identity } = command;
    const domain = await this.#host.restore(path, { ...identity, ...saveOptions(options) });
    this.#policies.adopt(domain, { spec: undefined, policy: {} });
    const restoreMillis = performance.now() - begun;
    const missingForwards = domain.stats().nics.flatMap((nic) => nic.missingForwards);
    return { ...summary(domain), restoreMillis, missingForwards };
  }

  async #forward({ command, domain: name, forward, handle, remove }: CommandOf<'network-forward'>): Promise<{ forward?: string }> {
    const domain = this.#find(name, command);
    if (remove !== true) return { forward: await domain.addForward(forward, handle) };
    await domain.removeForward(forward);
    return {};
  }

  // ---- what has no single result

  /** A stream of its own on the domain's console, history first; destroy it when done. */
  openConsole(command: CommandOf<'console'>): Duplex {
    return this.#find(command.domain, command.command).attachConsole();
  }

  /**
   * Follows what a command asks for: `emit` gets each object, `end` is called when no more can come.
   * @returns ends it; to be called in any case.
   */
  follow(
    command: CommandOf<'events'> | CommandOf<'store-watch'>,
    emit: (result: CommandResults['events' | 'store-watch']) => void,
    end: () => void,
  ): () => void {
    if (command.command === 'store-watch') {
      const { path, depth } = command;
      return this.#host.store.watch(path, (changed) => emit({ path: changed }), depth === undefined ? {} : { depth });
    }
    const only = command.domain === undefined ? undefined : this.#find(command.domain, 'events').id;
    const tell = (event: CommandResults['events']): void => {
      if (only !== undefined && event.domainId !== only) return;
      emit(event);
      if (only !== undefined && event.type === 'destroyed') end();
    };
    if (command.history === true) for (const event of this.#hub.history()) tell(event);
    return this.#hub.follow(tell);
  }

  /** By name or id. */
  #find(name: string, command: CommandName): Domain {
    const domain = this.#host.domains().find((one) => one.name === name || String(one.id) === name);
    if (domain === undefined) throw unknownDomain(name);
    assertLegal(command, domain);
    return domain;
  }

  #describe(): HostDescription {
    return { pid: process.pid, version: this.#version, startedMillis: this.#startedMillis, stats: this.#host.stats() };
  }

  close(): void {
    this.#hub.close();
  }
}

function summary({ id, name, uuid, state }: Domain): DomainSummary {
  return { id, name, uuid, state };
}

function describeCheckpoint(checkpoint: Checkpoint): CheckpointSummary {
  const { id, domainId, domainName, memoryBytes, vcpus, createdMillis, stats } = checkpoint;
  return { id, domainId, domainName, memoryBytes, vcpus, createdMillis, stats };
}

/** Nothing that the guest does is lost: it does nothing after what is saved. Goes on if that fails. */
async function saveAndDestroy(
  domain: Domain, path: string, options: SaveOptions, via: SuspendVia | 'auto' | undefined,
): Promise<DomainSaveStats> {
  const before = domain.state;
  const suspend = via === undefined || before === 'suspended' ? undefined
    : await domain.suspend({ via, signal: options.signal });
  if (suspend === undefined) await domain.pause();
  try {
    const stats = await domain.save(path, options);
    await domain.destroy();
    return suspend === undefined ? stats : { ...stats, suspend };
  } catch (error) {
    if (suspend !== undefined && domain.state === 'suspended') await domain.resume();
    else if (before === 'running' && domain.state === 'paused') await domain.unpause();
    throw error;
  }
}

function saveOptions({ signal, onProgress }: ExecuteOptions): TransferOptions {
  return {
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : {
      onProgress: ({ pagesDone, pageCount }) => onProgress({ done: pagesDone, total: pageCount }),
    }),
  };
}

function forkSpecs({ count = 1, name, paused }: CommandOf<'fork'>): ForkSpec[] {
  return Array.from({ length: count }, (_, i) => ({
    ...(name === undefined ? {} : { name: count === 1 ? name : `${name}-${i + 1}` }),
    ...(paused === undefined ? {} : { paused }),
  }));
}

function describeDomain(domain: Domain): ListedDomain {
  const { shutdownReason } = domain;
  return { ...domain.stats(), ...(shutdownReason === undefined ? {} : { shutdownReason }) };
}

function there<T>(path: string, value: T | undefined): T {
  if (value === undefined) throw new ZazenError('ZAZEN_STORE_ENOENT', `store: ${path}: no such node`);
  return value;
}

function describeValue(bytes: Uint8Array): CommandResults['store-read'] {
  const value = Buffer.from(bytes);
  return isUtf8(value) ? { value: value.toString() } : { valueBase64: value.toString('base64') };
}
