// `zazen top`: what each domain does now, from two samples of its statistics.

import { setTimeout as delay } from 'node:timers/promises';
import { UsageError } from '../base/errors.ts';
import type { ListedDomain } from '../daemon/command.ts';
import { formatSize } from '../host/size.ts';
import type { ActivitySamples } from '../host/types.ts';
import type { Arguments } from './arguments.ts';
import { HOST_OPTION, listHosts, stateOf } from './hosts.ts';
import type { HostListing } from './hosts.ts';
import type { Io } from './io.ts';
import { formatColumns } from './table.ts';
import { rawTerminal } from './terminal.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const ALTERNATE_SCREEN = '\x1b[?1049h\x1b[?25l';
const MAIN_SCREEN = '\x1b[?25h\x1b[?1049l';
/** q, Q, Ctrl-C, Ctrl-]. */
const LEAVE_KEYS: ReadonlySet<number> = new Set([0x71, 0x51, 3, 0x1d]);
const HOME = '\x1b[H';
const CLEAR_LINE = '\x1b[K';
const CLEAR_REST = '\x1b[J';

export const topVerb: Verb = {
  name: 'top',
  summary: 'Show what the domains do: speed, processor use, memory, console, hypercalls.',
  details: 'In a terminal the table is refreshed until q or Ctrl-C; else it is printed once. MIPS are million\n'
    + 'instructions a second since the last sample; CPU is of one processor; MEM is what the guest has touched;\n'
    + 'MISSES are accesses to memory that no TLB knew. Above, where the time of the pCPUs goes: guest code compiled and\n'
    + 'interpreted, TLB misses (memory), decoding, calls of the hypervisor, emulated devices; the host thread has back\n'
    + 'ends, store and toolstack.',
  options: {
    interval: { value: 'SECONDS', short: 'd', help: 'time between two samples (default 1)' },
    once: { help: 'print the table once' },
    host: HOST_OPTION,
    json: { help: `${JSON_OPTION.help}, once` },
  },
  run: showTop,
};

export interface DomainActivity {
  readonly hostPid: number;
  readonly id: number;
  readonly name: string;
  readonly state: string;
  readonly vcpus: number;
  /** Million instructions a second. */
  readonly mips: number;
  readonly cpuPercent: number;
  readonly memoryBytes: number;
  readonly residentBytes: number;
  readonly consoleOutBytes: number;
  readonly consoleInBytes: number;
  readonly hypercallsPerSecond: number;
  readonly tlbMissesPerSecond: number;
}

/** Where the pCPUs' time went since the last sample, in percent of all of them. */
export interface HostActivity {
  readonly hostPid: number;
  /** Guest code. */
  readonly compiledPercent: number;
  readonly interpretedPercent: number;
  readonly memoryPercent: number;
  readonly decodingPercent: number;
  readonly hypervisorPercent: number;
  readonly devicesPercent: number;
  readonly idlePercent: number;
  /** Of one processor: back ends of devices, store and toolstack. */
  readonly hostThreadPercent: number;
  readonly networkThreadPercent: number;
}

async function showTop(args: Arguments, io: Io): Promise<number> {
  const millis = parseInterval(args.values['interval']);
  const isJson = args.switches.has('json');
  const before = await listHosts(args, io);
  const isPerson = io.stdout.isTTY === true && io.stdin.isTTY === true;
  if (isPerson && !isJson && !args.switches.has('once')) return refresh(args, io, millis, before);
  await pause(millis, io.signal);
  const now = await listHosts(args, io);
  const domains = compareSamples(before, now);
  const activity = compareHosts(before, now);
  if (isJson) printJson(io, { hosts: now.map(({ host }) => host), activity, domains });
  else io.stdout.write(describe(now, activity, domains));
  return 0;
}

async function refresh(args: Arguments, io: Io, millis: number, first: readonly HostListing[]): Promise<number> {
  const leave = new AbortController();
  const restore = rawTerminal(io, io.signal);
  const leaveScreen = io.onExit(() => io.stdout.write(MAIN_SCREEN));
  const take = (chunk: Buffer): void => {
    if (chunk.some((key) => LEAVE_KEYS.has(key))) leave.abort();
  };
  io.stdin.on('data', take);
  io.stdout.write(ALTERNATE_SCREEN);
  const stop = AbortSignal.any([io.signal, leave.signal]);
  try {
    for (let before: readonly HostListing[] = [], now = first; ;) {
      draw(io, describe(now, compareHosts(before, now), compareSamples(before, now)));
      await pause(millis, stop);
      before = now;
      now = await listHosts(args, io);
    }
  } catch (error) {
    if (!leave.signal.aborted) throw error;
    return 0;
  } finally {
    io.stdin.off('data', take).pause();
    leaveScreen();
    restore();
  }
}

/** Over what is there, without flicker; lines that do not fit are left out. */
function draw(io: Io, text: string): void {
  // A terminal that does not know its size says 0.
  const rows = io.stdout.rows || 24;
  const columns = io.stdout.columns || 80;
  const lines = text.trimEnd().split('\n').slice(0, rows - 1).map((line) => line.slice(0, columns));
  io.stdout.write(HOME + lines.map((line) => `${line}${CLEAR_LINE}\r\n`).join('') + CLEAR_REST);
}

async function pause(millis: number, signal: AbortSignal): Promise<void> {
  await delay(millis, undefined, { signal }).catch(() => signal.throwIfAborted());
}

/** Rates of the domains that there are now; a domain that is new has those since it began. */
export function compareSamples(before: readonly HostListing[], now: readonly HostListing[]): DomainActivity[] {
  return now.flatMap(({ client, host, domains }) => {
    const old = before.find((listing) => listing.client.socketPath === client.socketPath);
    const seconds = (host.stats.uptimeMillis - (old?.host.stats.uptimeMillis ?? 0)) / 1000;
    return domains.map((domain) => {
      const known = old?.domains.find(({ id, uuid }) => id === domain.id && uuid === domain.uuid);
      const rate = (of: (stats: ListedDomain) => number): number => {
        // A rollback does not take back what was counted, but a host that was just asked has no time between.
        const difference = of(domain) - (known === undefined ? 0 : of(known));
        return seconds > 0 ? Math.max(0, difference) / seconds : 0;
      };
      return {
        hostPid: host.pid, id: domain.id, name: domain.name, state: stateOf(domain), vcpus: domain.vcpus.length,
        mips: rate((it) => it.instructionsRetired) / 1e6, cpuPercent: rate((it) => it.runMillis) / 10,
        memoryBytes: domain.memoryBytes, residentBytes: domain.residentBytes,
        consoleOutBytes: domain.consoleOutBytes, consoleInBytes: domain.consoleInBytes,
        hypercallsPerSecond: rate((it) => it.hypercalls), tlbMissesPerSecond: rate((it) => it.tlbMisses),
      };
    });
  });
}

/** Hosts that were there before as well, in the order that they have now. */
export function compareHosts(before: readonly HostListing[], now: readonly HostListing[]): HostActivity[] {
  return now.flatMap(({ client, host: { pid, stats } }) => {
    const old = before.find((listing) => listing.client.socketPath === client.socketPath)?.host.stats;
    if (old === undefined) return [];
    const looks = (of: keyof ActivitySamples): number => stats.activity[of] - old.activity[of];
    const all = (Object.keys(stats.activity) as (keyof ActivitySamples)[]).reduce((sum, of) => sum + looks(of), 0);
    const percent = (of: keyof ActivitySamples): number => 100 * looks(of) / Math.max(1, all);
    const spent = (of: 'busyMillis' | 'compiledMillis'): number =>
      [stats, old].map(({ pcpus }) => pcpus.reduce((sum, pcpu) => sum + pcpu[of], 0)).reduce((later, earlier) => later - earlier);
    // Whether code that was seen to run was compiled, is known of whole slices.
    const compiled = Math.min(1, spent('compiledMillis') / Math.max(1e-6, spent('busyMillis')));
    const thread = (of: 'hostThreadMillis' | 'networkThreadMillis'): number =>
      100 * (stats[of] - old[of]) / Math.max(1, stats.uptimeMillis - old.uptimeMillis);
    return [{
      hostPid: pid, compiledPercent: percent('code') * compiled, interpretedPercent: percent('code') * (1 - compiled),
      memoryPercent: percent('memory'), decodingPercent: percent('decoding'), hypervisorPercent: percent('hypervisor'),
      devicesPercent: percent('devices'), idlePercent: percent('idle'),
      hostThreadPercent: thread('hostThreadMillis'), networkThreadPercent: thread('networkThreadMillis'),
    }];
  });
}

function describeActivity(activity: HostActivity | undefined): string {
  if (activity === undefined) return '';
  const shares = [
    ['compiled', activity.compiledPercent], ['interpreted', activity.interpretedPercent], ['memory', activity.memoryPercent],
    ['decoding', activity.decodingPercent], ['hypervisor', activity.hypervisorPercent], ['devices', activity.devicesPercent],
    ['idle', activity.idlePercent], ['host thread', activity.hostThreadPercent],
    ['network thread', activity.networkThreadPercent],
  ] as const;
  return `  ${shares.map(([name, percent]) => `${name} ${percent.toFixed(0)}%`).join(', ')}\n`;
}

function describe(hosts: readonly HostListing[], activities: readonly HostActivity[], domains: readonly DomainActivity[]): string {
  const several = hosts.length > 1;
  const heads = hosts.map(({ host: { pid, stats } }) =>
    `host ${pid}: domains ${stats.domains}, pCPUs ${stats.pcpus.length}, ${formatSize(stats.memoryBytes)}, `
    + `${formatSize(stats.freeBytes)} free, ${formatSize(stats.dirtyBytes)} to scrub; `
    + `code: ${stats.codeCache.usedPages} of ${stats.codeCache.pages} pages, ${stats.codeCache.regions} regions compiled\n`
    + describeActivity(activities.find(({ hostPid }) => hostPid === pid))).join('');
  const headings = [
    'NAME', 'ID', 'STATE', 'VCPUS', 'MIPS', 'CPU%', 'MEM', 'OF', 'CONSOLE', 'HYPERCALLS/S', 'MISSES/S',
    ...(several ? ['HOST'] : []),
  ];
  return heads + formatColumns(headings, domains.map((it) => [
    it.name, String(it.id), it.state, String(it.vcpus), it.mips.toFixed(1), it.cpuPercent.toFixed(0),
    formatSize(it.residentBytes), formatSize(it.memoryBytes), formatSize(it.consoleOutBytes),
    it.hypercallsPerSecond.toFixed(0), it.tlbMissesPerSecond.toFixed(0), ...(several ? [String(it.hostPid)] : []),
  ]), new Set([1, 3, 4, 5, 6, 7, 8, 9, 10, 11]));
}

function parseInterval(text: string | undefined): number {
  const seconds = Number(text ?? '1');
  if (!/^\d+(\.\d+)?$/.test(text ?? '1') || seconds < 0.05 || seconds > 3600) {
    throw new UsageError(`--interval takes seconds from 0.05 to 3600, not "${text}"`, 'see: zazen top --help');
  }
  return seconds * 1000;
}
