// The one command type: what the command line sends, what the control socket takes, and what `Control.execute` does in
// a program that embeds Zazen. `COMMANDS` has a row for each: its arguments with their checks, and the states of the
// domain in which it is legal. docs/control-socket.md describes them for people.

import { ZazenError } from '../base/errors.ts';
import type {
  Checkpoint, DiskSpec, DiskStats, DomainSaveStats, DomainSpec, DomainState, DomainStats, HostEvent, HostStats, NicSpec,
  NicStats, RollbackStats, SaveStats, ShutdownReason, SuspendStats, SuspendVia,
} from '../host/types.ts';
import { flag, integer, isRecord, list, oneOf, optional, record, refuseCommand, text } from './checks.ts';
import type { Check, Checks } from './checks.ts';

/** What becomes of a domain that stopped by itself, as xl.cfg has it. */
export type StopAction = 'destroy' | 'restart' | 'preserve';

export interface StopPolicy {
  /** Default: destroy. */
  onPoweroff?: StopAction;
  /** Default: restart. */
  onReboot?: StopAction;
  /** Also for its watchdog; default: destroy. */
  onCrash?: StopAction;
}

/** A domain as a daemon makes it: without a command and a person at its console, and with absolute paths. */
export type ControlledSpec = Omit<DomainSpec, 'exec' | 'terminal'>;

export type Command =
  /** The host and its domains with their statistics. */
  | { command: 'list' }
  | { command: 'create'; spec: ControlledSpec; policy?: StopPolicy }
  | { command: 'pause'; domain: string }
  | { command: 'unpause'; domain: string }
  /** Asks the guest; with `wait`, answers when it has stopped. */
  | { command: 'shutdown'; domain: string; wait?: boolean }
  | { command: 'reboot'; domain: string; wait?: boolean }
  | { command: 'destroy'; domain: string }
  /** Answers when it is suspended; by default in the way that the guest offers, else transparently. */
  | { command: 'suspend'; domain: string; via?: SuspendVia | 'auto'; timeoutMillis?: number }
  /** Where it was. */
  | { command: 'resume'; domain: string }
  /** Keeps the checkpoint in the host, under its id. */
  | { command: 'checkpoint'; domain: string }
  /** Those that the host keeps, of all domains or one. */
  | { command: 'checkpoints'; domain?: string }
  | { command: 'checkpoint-destroy'; checkpoint: number }
  /** To that checkpoint, or to the latest of the domain. */
  | { command: 'rollback'; domain: string; checkpoint?: number }
  /** Of a domain as it is now, or of a checkpoint; exactly one is given. Several are called `NAME-1`, `NAME-2` … */
  | { command: 'fork'; domain?: string; checkpoint?: number; count?: number; name?: string; paused?: boolean }
  /**
   * Of a domain as it is now, or of a checkpoint; exactly one is given. With `destroy`, the domain stops there; with `via`,
   * it is suspended so before.
   */
  | {
    command: 'save'; path: string; domain?: string; checkpoint?: number; destroy?: boolean; parent?: string;
    via?: SuspendVia | 'auto';
  }
  | { command: 'dump-core'; domain: string; path: string }
  | { command: 'restore'; path: string; name?: string; uuid?: string; paused?: boolean; lazy?: boolean }
  | { command: 'block-attach'; domain: string; disk: DiskSpec }
  | { command: 'block-detach'; domain: string; target: string; force?: boolean }
  | { command: 'block-resize'; domain: string; target: string; size: string }
  | { command: 'block-list'; domain: string }
  | { command: 'network-attach'; domain: string; nic: NicSpec }
  /** By its number. */
  | { command: 'network-detach'; domain: string; handle: number }
  | { command: 'network-list'; domain: string }
  /** `[ADDRESS:]HOSTPORT:GUESTPORT[/udp]`, by card `handle` or the first one. */
  | { command: 'network-forward'; domain: string; forward: string; handle?: number; remove?: boolean }
  /** Changes weight and cap of a domain, as far as they are given, and answers with them. `list` has those of all. */
  | { command: 'sched-credit'; domain: string; weight?: number; cap?: number }
  /** Bytes both ways, over an upgraded connection. */
  | { command: 'console'; domain: string }
  /** Follows events, of all domains or one; with `history`, those that are remembered come first. */
  | { command: 'events'; domain?: string; history?: boolean }
  | { command: 'store-ls'; path: string }
  | { command: 'store-read'; path: string }
  | { command: 'store-write'; path: string; value: string }
  | { command: 'store-rm'; path: string }
  /** Follows the paths that change at or below a path; tells of the path itself first. */
  | { command: 'store-watch'; path: string; depth?: number };

export type CommandName = Command['command'];
export type CommandOf<N extends CommandName> = Extract<Command, { command: N }>;

export interface HostDescription {
  readonly pid: number;
  readonly version: string;
  /** Unix time in milliseconds. */
  readonly startedMillis: number;
  readonly stats: HostStats;
}

export interface DomainSummary {
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  readonly state: DomainState;
}

export type CheckpointSummary = Pick<Checkpoint,
  'id' | 'domainId' | 'domainName' | 'memoryBytes' | 'vcpus' | 'createdMillis' | 'stats'>;

/** Of the pCPUs; cap in percent of one, 0: none. */
export interface CpuShareSummary {
  readonly id: number;
  readonly name: string;
  readonly weight: number;
  readonly cap: number;
}

/** What each command answers with; for those that follow something, one such object after another. */
export interface CommandResults {
  'list': { readonly host: HostDescription; readonly domains: readonly ListedDomain[] };
  'create': DomainSummary;
  'pause': DomainSummary;
  'unpause': DomainSummary;
  'shutdown': DomainSummary & { readonly reason?: ShutdownReason | 'destroyed' };
  'reboot': DomainSummary & { readonly reason?: ShutdownReason | 'destroyed' };
  'destroy': DomainSummary;
  'suspend': DomainSummary & { readonly suspend: SuspendStats };
  'resume': DomainSummary;
  'checkpoint': CheckpointSummary;
  'checkpoints': { readonly checkpoints: readonly CheckpointSummary[] };
  'checkpoint-destroy': CheckpointSummary;
  'rollback': DomainSummary & { readonly checkpoint: number; readonly stats: RollbackStats };
  'fork': { readonly domains: readonly DomainSummary[]; readonly forkMicros: number };
  'save': DomainSaveStats & { readonly path: string };
  'dump-core': SaveStats & { readonly path: string };
  /** `missingForwards`: ports of the host that it had when it was saved, and could not have back. */
  'restore': DomainSummary & { readonly restoreMillis: number; readonly missingForwards: readonly string[] };
  'block-attach': { readonly target: string };
  'block-detach': Record<string, never>;
  'block-resize': Record<string, never>;
  'block-list': { readonly disks: readonly DiskStats[] };
  'network-attach': { readonly nic: NicStats };
  'network-detach': Record<string, never>;
  'network-list': { readonly nics: readonly NicStats[] };
  /** As it is in force; without, when it was removed. */
  'network-forward': { readonly forward?: string };
  'sched-credit': CpuShareSummary;
  'console': never;
  'events': HostEvent;
  'store-ls': { readonly names: readonly string[] };
  /** `valueBase64` when it is no UTF-8. */
  'store-read': { readonly value: string } | { readonly valueBase64: string };
  'store-write': Record<string, never>;
  'store-rm': Record<string, never>;
  'store-watch': { readonly path: string };
}

export type ListedDomain = DomainStats & { readonly shutdownReason?: ShutdownReason };

/** How a command is answered. */
export type AnswerKind = 'result' | 'stream' | 'console';

interface CommandRow<C> {
  readonly answer: AnswerKind;
  readonly arguments: Checks<Omit<C, 'command'>>;
  /** States of the domain named by `domain` in which the command is legal; not for commands without one. */
  readonly states?: readonly DomainState[];
}

/** A name, or an id in digits. */
const domain = text(64, 1);
const path = text(3072, 1);
const checkpoint = integer(1, Number.MAX_SAFE_INTEGER);
/** More than a host has room for. */
const FORKS_MAX = 10_000;
/** XENSTORE_PAYLOAD_MAX: what a guest could read. */
const storeValue = text(4096);
const stopAction = oneOf('destroy', 'restart', 'preserve');

const absolutePath: Check<string> = (value, what) => {
  const given = text(4096, 1)(value, what);
  if (given.startsWith('/')) return given;
  return refuseCommand(`${what} must be an absolute path`, 'the host has its own directory');
};

function fileOr(...words: readonly string[]): Check<string> {
  return (value, what) => {
    const given = text(4096, 1)(value, what);
    if (given.startsWith('/') || words.includes(given)) return given;
    return refuseCommand(`${what} must be ${words.join(', ')} or an absolute path`, 'the host has its own directory');
  };
}

const size: Check<number | string> = (value, what) =>
  typeof value === 'number' ? integer(1, Number.MAX_SAFE_INTEGER)(value, what) : text(32, 1)(value, what);

/** More than a guest may have. */
const NICS_MAX = 64;
const FORWARDS_MAX = 256;
const rate = integer(1, Number.MAX_SAFE_INTEGER);
const disk = record<DiskSpec>({
  path: absolutePath, format: optional(oneOf('raw', 'layer')), readOnly: optional(flag), target: optional(text(16, 1)),
  bytesPerSecond: optional(rate), requestsPerSecond: optional(rate), persistentGrants: optional(flag),
  discard: optional(flag),
});
const nic = record<NicSpec>({
  network: optional(text(64, 1)), mac: optional(text(17, 1)), address: optional(text(15, 1)),
  forwards: optional(list(text(64, 1), FORWARDS_MAX)), rateBytesPerSecond: optional(rate),
});
/** More than a guest has names for. */
const DISKS_MAX = 256;
const vdev = text(16, 1);

const cpuWeight = integer(1, 65_535);
/** Percent: what the most vCPUs can use. */
const cpuCap = integer(0, 6400);

const spec = record<ControlledSpec>({
  name: optional(text(64, 1)),
  type: optional(oneOf('pvh', 'hvm')),
  uuid: optional(text(64, 1)),
  memory: optional(size),
  vcpus: optional(integer(1, 1024)),
  kernel: optional(fileOr('debian', 'debian-generic')),
  initrd: optional(fileOr('default', 'none')),
  cmdline: optional(text(4096)),
  disks: optional(list(disk, DISKS_MAX)),
  nics: optional(list(nic, NICS_MAX)),
  paused: optional(flag),
  cpuWeight: optional(cpuWeight),
  cpuCapPercent: optional(cpuCap),
});

const policy = record<StopPolicy>({
  onPoweroff: optional(stopAction), onReboot: optional(stopAction), onCrash: optional(stopAction),
});

const RUNNABLE: readonly DomainState[] = ['running', 'paused'];
const LIVE: readonly DomainState[] = [...RUNNABLE, 'suspended'];
const ANY: readonly DomainState[] = [...LIVE, 'shutdown'];
const via = oneOf('auto', 'event-channel', 'store', 'transparent');
/** As long as a timer can run. */
const timeoutMillis = integer(0, 2 ** 31 - 1);

export const COMMANDS: { readonly [N in CommandName]: CommandRow<CommandOf<N>> } = {
  'list': { answer: 'result', arguments: {} },
  'create': { answer: 'result', arguments: { spec, policy: optional(policy) } },
  'pause': { answer: 'result', arguments: { domain }, states: RUNNABLE },
  'unpause': { answer: 'result', arguments: { domain }, states: RUNNABLE },
  'shutdown': { answer: 'result', arguments: { domain, wait: optional(flag) }, states: ['running'] },
  'reboot': { answer: 'result', arguments: { domain, wait: optional(flag) }, states: ['running'] },
  'destroy': { answer: 'result', arguments: { domain }, states: ANY },
  'suspend': {
    answer: 'result', states: RUNNABLE,
    arguments: { domain, via: optional(via), timeoutMillis: optional(timeoutMillis) },
  },
  'resume': { answer: 'result', arguments: { domain }, states: ['suspended'] },
  'checkpoint': { answer: 'result', arguments: { domain }, states: LIVE },
  'checkpoints': { answer: 'result', arguments: { domain: optional(domain) } },
  'checkpoint-destroy': { answer: 'result', arguments: { checkpoint } },
  'rollback': { answer: 'result', arguments: { domain, checkpoint: optional(checkpoint) }, states: ANY },
  'fork': {
    answer: 'result', states: LIVE,
    arguments: {
      domain: optional(domain), checkpoint: optional(checkpoint), count: optional(integer(1, FORKS_MAX)),
      name: optional(text(64, 1)), paused: optional(flag),
    },
  },
  'save': {
    answer: 'result', states: LIVE,
    arguments: {
      path: absolutePath, domain: optional(domain), checkpoint: optional(checkpoint), destroy: optional(flag),
      parent: optional(absolutePath), via: optional(via),
    },
  },
  'dump-core': { answer: 'result', arguments: { domain, path: absolutePath }, states: LIVE },
  'restore': {
    answer: 'result',
    arguments: {
      path: absolutePath, name: optional(text(64, 1)), uuid: optional(text(64, 1)), paused: optional(flag),
      lazy: optional(flag),
    },
  },
  'block-attach': { answer: 'result', arguments: { domain, disk }, states: LIVE },
  'block-detach': { answer: 'result', arguments: { domain, target: vdev, force: optional(flag) }, states: LIVE },
  'block-resize': { answer: 'result', arguments: { domain, target: vdev, size: text(32, 1) }, states: LIVE },
  'block-list': { answer: 'result', arguments: { domain }, states: ANY },
  'network-attach': { answer: 'result', arguments: { domain, nic }, states: LIVE },
  'network-detach': { answer: 'result', arguments: { domain, handle: integer(0, 65535) }, states: LIVE },
  'network-list': { answer: 'result', arguments: { domain }, states: ANY },
  'network-forward': {
    answer: 'result', states: LIVE,
    arguments: { domain, forward: text(64, 1), handle: optional(integer(0, 65535)), remove: optional(flag) },
  },
  'sched-credit': {
    answer: 'result', arguments: { domain, weight: optional(cpuWeight), cap: optional(cpuCap) }, states: ANY,
  },
  'console': { answer: 'console', arguments: { domain }, states: ANY },
  'events': { answer: 'stream', arguments: { domain: optional(domain), history: optional(flag) }, states: ANY },
  'store-ls': { answer: 'result', arguments: { path } },
  'store-read': { answer: 'result', arguments: { path } },
  'store-write': { answer: 'result', arguments: { path, value: storeValue } },
  'store-rm': { answer: 'result', arguments: { path } },
  'store-watch': { answer: 'stream', arguments: { path, depth: optional(integer(0, 1024)) } },
};

/** The command in a JSON value from a peer. @throws ZazenError ZAZEN_COMMAND_INVALID, ZAZEN_COMMAND_UNKNOWN */
export function parseCommand(value: unknown): Command {
  if (!isRecord(value)) return refuseCommand('a command must be an object');
  const { command: name, ...rest } = value;
  if (typeof name !== 'string') return refuseCommand("a command's name must be a string");
  if (!isCommandName(name)) {
    throw new ZazenError('ZAZEN_COMMAND_UNKNOWN', `there is no command "${name.slice(0, 64)}"`, {
      hint: `there are ${Object.keys(COMMANDS).join(', ')}`,
    });
  }
  const checks = COMMANDS[name].arguments as Checks<object>;
  return { command: name, ...record(checks)(rest, name) } as Command;
}

function isCommandName(name: string): name is CommandName {
  return Object.hasOwn(COMMANDS, name);
}

/** @throws ZazenError ZAZEN_DOMAIN_STATE */
export function assertLegal(name: CommandName, target: { readonly name: string; readonly state: DomainState }): void {
  const states = COMMANDS[name].states!;
  if (states.includes(target.state)) return;
  const message = `domain ${target.name} is ${STATE_WORDS[target.state]}; ${name} takes one that is `
    + states.map((state) => STATE_WORDS[state]).join(' or ');
  throw new ZazenError('ZAZEN_DOMAIN_STATE', message, { hint: hintFor(name, target.state) });
}

const STATE_WORDS: Readonly<Record<DomainState, string>> = {
  running: 'running', paused: 'paused', suspended: 'suspended', shutdown: 'shut down', destroyed: 'destroyed',
};

function hintFor(name: CommandName, state: DomainState): string | undefined {
  if (state === 'paused' && (name === 'shutdown' || name === 'reboot')) return 'unpause it first, or destroy it';
  if (state === 'suspended') return 'resume it first, or destroy it';
  if (state === 'shutdown') return 'destroy it';
  return undefined;
}
