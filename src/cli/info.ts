// `zazen info`: what this machine gives to Zazen, and what is in the cache.

import { constants } from 'node:fs';
import { readFile, readdir } from 'node:fs/promises';
import { availableParallelism, cpus, freemem, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { SIZE_MAX_BYTES, defaultMachineParameters } from '../abi/machine-memory.ts';
import { HolePuncher } from '../devices/block/hole-puncher.ts';
import { cacheFolder } from '../base/cache-folder.ts';
import { findE2fsprogs } from '../guest/ext4-image.ts';
import { formatSize } from '../host/size.ts';
import type { HostStats } from '../host/types.ts';
import type { Arguments } from './arguments.ts';
import { HOST_OPTION, listHosts } from './hosts.ts';
import type { Io } from './io.ts';
import { formatTable } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';
import { zazenVersion } from './version.ts';

export const infoVerb: Verb = {
  name: 'info',
  summary: 'Show what this machine gives to Zazen and what is in the cache, or with --host a host that runs.',
  options: { host: HOST_OPTION, json: JSON_OPTION },
  run: showInfo,
};

/** What Zazen needs of the WebAssembly engine, or would make use of. */
interface Features {
  sharedMemory: boolean;
  tailCalls: boolean;
  simd: boolean;
  memory64: boolean;
  memory4GiB: boolean;
}

async function showInfo(args: Arguments, io: Io): Promise<number> {
  const { switches, values } = args;
  if (values['host'] !== undefined) return showHost(args, io);
  const cacheDir = cacheFolder(io.env as NodeJS.ProcessEnv);
  const facts = {
    zazen: await zazenVersion(),
    node: { version: process.version, path: process.execPath, v8: process.versions.v8 },
    machine: {
      system: `${process.platform} ${release()}`,
      architecture: process.arch,
      processor: cpus()[0]?.model ?? 'unknown',
      processors: availableParallelism(),
      memoryBytes: totalmem(),
      freeBytes: freemem(),
      // What a container or service manager lets this process have; 0 where there is no such limit.
      memoryLimitBytes: process.constrainedMemory(),
    },
    host: { memoryDefaultBytes: defaultMachineParameters.sizeBytes, memoryMaxBytes: SIZE_MAX_BYTES.i64 },
    features: detectFeatures(),
    disks: { direct: constants.O_DIRECT !== undefined, discardRaw: HolePuncher.isAvailable, build: await canBuild() },
    cacheDir,
    guests: await listGuests(cacheDir),
  };
  if (switches.has('json')) printJson(io, facts);
  else io.stdout.write(describeFacts(facts));
  return 0;
}

async function showHost(args: Arguments, io: Io): Promise<number> {
  for (const { client, host, domains } of await listHosts(args, io)) {
    const { stats } = host;
    if (args.switches.has('json')) printJson(io, { ...host, socketPath: client.socketPath });
    else {
      io.stdout.write(formatTable([
        ['host', `${host.pid}, zazen ${host.version}`],
        ['socket', client.socketPath],
        ['started', new Date(host.startedMillis).toISOString()],
        ['memory', `${formatSize(stats.memoryBytes)}, ${formatSize(stats.freeBytes)} free, `
          + `${formatSize(stats.dirtyBytes)} to scrub`],
        ['pCPUs', stats.pcpus.map(({ id, busyMillis }) =>
          `${id}: busy ${(100 * busyMillis / stats.uptimeMillis).toFixed(0)} % of the time`).join('\n')],
        ['domains', domains.map(({ name }) => name).join(' ') || 'none'],
        ['networks', describeNetworks(stats.networks) || 'none'],
      ]));
    }
  }
  return 0;
}

/** A line for each: its cards and what they have moved, and what the gateway does for them. */
export function describeNetworks(networks: HostStats['networks']): string {
  return Object.entries(networks).map(([name, { ports, tcp, udp, dns }]) => {
    const sum = (pick: (port: typeof ports[number]) => number): number => ports.reduce((total, port) => total + pick(port), 0);
    return `${name}: ${ports.length} cards, sent ${formatSize(sum((port) => port.txBytes))} in ${sum((port) => port.txFrames)} frames, `
      + `received ${formatSize(sum((port) => port.rxBytes))} in ${sum((port) => port.rxFrames)}, `
      + `${sum((port) => port.rxDropped)} dropped; ${tcp.connections} TCP connections, ${udp.flows} UDP flows, `
      + `${dns.local + dns.forwarded} DNS questions`;
  }).join('\n');
}

function describeFacts(facts: {
  zazen: string;
  node: { version: string; path: string };
  machine: {
    system: string; architecture: string; processor: string; processors: number; memoryBytes: number; freeBytes: number;
    memoryLimitBytes: number;
  };
  host: { memoryDefaultBytes: number; memoryMaxBytes: number };
  features: Features;
  disks: { direct: boolean; discardRaw: boolean; build: boolean };
  cacheDir: string;
  guests: CachedGuest[];
}): string {
  const { node, machine, host, features, disks, guests } = facts;
  const limit = machine.memoryLimitBytes;
  const isLimited = limit > 0 && limit < machine.memoryBytes;
  const memory = `${formatSize(machine.memoryBytes)}, ${formatSize(machine.freeBytes)} free`
    + (isLimited ? `, limited to ${formatSize(limit)}` : '');
  return formatTable([
    ['zazen', facts.zazen],
    ['node', `${node.version}, ${node.path}`],
    ['system', `${machine.system}, ${machine.architecture}`],
    ['processors', `${machine.processors} × ${machine.processor}`],
    ['memory', memory],
    ['for guests', `${formatSize(host.memoryDefaultBytes)} by default, ${formatSize(host.memoryMaxBytes)} at most`],
    ['features', Object.entries(features).map(([name, there]) => `${there ? '✓' : '✗'} ${name}`).join('  ')],
    ['disks', `${disks.direct ? '✓' : '✗'} past the page cache  ${disks.discardRaw ? '✓' : '✗'} discard on raw files (fallocate)  `
      + `${disks.build ? '✓' : '✗'} guest build (e2fsprogs)`],
    ['cache', facts.cacheDir],
    ['guests', guests.map((guest) => `${guest.name}: Linux ${guest.kernelRelease}`).join('\n')
      || 'none yet; zazen guest fetch gets one'],
  ]);
}

const canBuild = (): Promise<boolean> => findE2fsprogs().then(() => true, () => false);

interface CachedGuest {
  name: string;
  kernelRelease: string;
}

/** Looks, without fetching anything. */
async function listGuests(cacheDir: string): Promise<CachedGuest[]> {
  const names = await readdir(join(cacheDir, 'guests')).catch(() => []);
  const guests = await Promise.all(names.toSorted().map(async (name) => {
    try {
      const { kernelRelease } = JSON.parse(await readFile(join(cacheDir, 'guests', name, 'manifest.json'), 'utf8'));
      return typeof kernelRelease === 'string' ? [{ name, kernelRelease }] : [];
    } catch {
      return [];
    }
  }));
  return guests.flat();
}

const WASM_HEADER = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0];

/** Whether a module with one function of this body, without parameters and results, is valid. */
function accepts(body: readonly number[]): boolean {
  return WebAssembly.validate(Uint8Array.from([
    ...WASM_HEADER,
    1, 4, 1, 0x60, 0, 0, // one type
    3, 2, 1, 0, // one function
    10, body.length + 4, 1, body.length + 2, 0, ...body, 0x0b,
  ]));
}

function reserves(makeMemory: () => WebAssembly.Memory): boolean {
  try {
    return makeMemory().buffer instanceof SharedArrayBuffer;
  } catch {
    return false;
  }
}

function detectFeatures(): Features {
  const shared = (pages: number) => new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  return {
    sharedMemory: reserves(() => shared(1)),
    tailCalls: accepts([0x12, 0]), // return_call 0
    simd: accepts([0x41, 0, 0xfd, 0x0f, 0x1a]), // i32.const 0, i8x16.splat, drop
    memory64: reserves(() => new WebAssembly.Memory({ initial: 1n, maximum: 1n, shared: true, address: 'i64' })),
    memory4GiB: reserves(() => shared(65536)),
  };
}
