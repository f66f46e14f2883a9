// `zazen run`: a guest with its console attached, or one command in a guest.
//
//   standard input     what happens without --exec             with --exec
//   terminal           a shell; every key but Ctrl-] is its    the command; the guest's terminal if output is one too
//   pipe, file         commands for a shell, as `sh` has it    the command's standard input
//   (custom --initrd)  bytes for the console, either way       the command's standard input

import { isUtf8 } from 'node:buffer';
import { Writable } from 'node:stream';
import { UsageError, ZazenError } from '../base/errors.ts';
import { DEFAULT_NETWORK } from '../host/network-name.ts';
import type { DiskSpec, DomainSpec, ExecSpec, HostOptions, NicSpec } from '../host/types.ts';
import { parseCount, shellQuote } from './arguments.ts';
import type { Arguments } from './arguments.ts';
import { parseDisk } from './disk-syntax.ts';
import { parsePortForward } from '../network/port-forward.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { serveBeside } from './serve.ts';
import { runSession } from './session.ts';
import type { SessionReport } from './session.ts';
import { describeTerminal } from './terminal.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Services, Verb } from './verb.ts';

/** A shell that takes what it reads for a script: standard input is a terminal in the guest, so it is piped on. */
const SCRIPT_SHELL = 'cat | sh';
const ROOT_TARGET = 'xvda';

export const runVerb: Verb = {
  name: 'run',
  summary: 'Create a guest with its console attached; exit when it powers off.',
  rest: ' [-- COMMAND [ARGUMENT]...]',
  details: 'In a terminal, Ctrl-] leaves the guest and destroys it. Without one, standard input is a script for sh.\n'
    + 'Meanwhile the guest answers to zazen list, console, pause, checkpoint and the other verbs.\n'
    + 'With --exec, or words after --, one command runs and its exit status is that of zazen; what it writes goes\n'
    + 'unaltered to standard output, and standard input is its input.\n'
    + 'Other statuses: 1 error, 2 wrong usage, 124 --timeout, 128+n ended by signal n.',
  options: {
    exec: { value: 'COMMAND', short: 'e', help: 'run one command with sh -c, then power off' },
    type: { value: 'TYPE', help: 'pvh (default), or hvm: emulated devices, for guests without Xen drivers' },
    kernel: { value: 'KERNEL', help: 'debian (default), debian-generic, or the path of an arm64 kernel' },
    initrd: { value: 'FILE', help: 'initramfs: default, none, or the path of a file' },
    cmdline: { value: 'WORDS', help: 'add to the kernel command line' },
    root: { value: 'DISK', help: 'a disk to have as root file system, as of guest build; its shell or init runs' },
    disk: { value: 'DISK', short: 'd', isList: true, help: 'a disk: PATH,FORMAT,VDEV,ACCESS as in xl.cfg; may be repeated' },
    memory: { value: 'SIZE', short: 'm', help: 'memory of the guest, such as 400MiB (default) or 1GiB' },
    vcpus: { value: 'N', help: 'virtual CPUs (default 1)' },
    name: { value: 'NAME', help: 'name of the guest' },
    publish: {
      value: 'PORTS', short: 'p', isList: true,
      help: 'forward a port of the host: [ADDRESS:]HOSTPORT:GUESTPORT[/udp];\nmay be repeated',
    },
    network: { value: 'NAME', help: 'network of its card: default, a name of its own, or none' },
    net: { value: 'NAME', help: 'the same' },
    pcap: { value: 'FILE', help: 'write every frame on its network to a file' },
    profile: { value: 'FILE', help: 'write where the guest\'s time goes: a .cpuprofile, or for flame graphs a .folded' },
    timeout: { value: 'SECONDS', help: 'destroy the guest after this long' },
    verbose: { short: 'v', help: 'with a command: show the boot messages on standard error' },
    json: { help: `${JSON_OPTION.help}:\nstatus, output, timings, statistics` },
  },
  run: runGuest,
};

async function runGuest(args: Arguments, io: Io, services: Services): Promise<number> {
  const { values, switches } = args;
  const isJson = switches.has('json');
  const verbose = switches.has('verbose');
  const spec = readSpec(args, io);
  const interactive = isInteractive(spec, io);
  const networks = readNetworks(spec, values['pcap']);
  if (isJson && interactive) {
    throw new UsageError('--json needs --exec, or commands on standard input', 'see: zazen run --help');
  }
  // Nobody sees the boot messages, so the guest need not write them; what is serious comes all the same.
  if (spec.exec !== undefined && !verbose) spec.cmdline = `quiet ${spec.cmdline ?? ''}`.trim();
  if (interactive) say(io, 'starting a guest; Ctrl-] leaves it');
  const collected = isJson ? new Collector() : undefined;
  const report = await runSession(io, {
    spec, interactive, networks,
    startHost: services.startHost,
    serve: (host) => serveBeside(host, io, services),
    output: collected ?? io.stdout,
    log: verbose ? io.stderr : undefined,
    timeoutMillis: parseSeconds(values['timeout']), profilePath: values['profile'],
  });
  if (collected !== undefined) printJson(io, { ...report, ...collected.describe() });
  explain(io, report);
  return report.status;
}

/** What the guest's end means, where it is not plain. */
function explain(io: Io, { outcome }: SessionReport): void {
  if (outcome === 'crash') say(io, 'the guest crashed; its last words are above');
  else if (outcome === 'watchdog') say(io, 'the guest was ended by its watchdog');
  else if (outcome === 'reboot') say(io, 'the guest wants to reboot; without a terminal it is not started again');
}

function readSpec({ values, lists, rest }: Arguments, io: Io): DomainSpec {
  if (rest !== undefined && values['exec'] !== undefined) {
    throw new UsageError('give either --exec or a command after --, not both', 'see: zazen run --help');
  }
  if (rest?.length === 0) throw new UsageError('there is no command after --', 'see: zazen run --help');
  const spec: DomainSpec = {};
  if (values['name'] !== undefined) spec.name = values['name'];
  if (values['type'] !== undefined) spec.type = values['type'] as DomainSpec['type'];
  if (values['memory'] !== undefined) spec.memory = values['memory'];
  if (values['kernel'] !== undefined) spec.kernel = values['kernel'];
  if (values['initrd'] !== undefined) spec.initrd = values['initrd'];
  if (values['cmdline'] !== undefined) spec.cmdline = values['cmdline'];
  if (lists['disk'] !== undefined) spec.disks = lists['disk'].map((disk) => parseDisk(disk, process.cwd()));
  if (values['root'] !== undefined) addRoot(spec, parseDisk(values['root'], process.cwd()));
  spec.nics = readNics(values, lists['publish'] ?? []);
  const vcpus = parseCount('vcpus', values['vcpus']);
  if (vcpus !== undefined) spec.vcpus = vcpus;
  const terminal = describeTerminal(io);
  if (terminal !== undefined) spec.terminal = terminal;
  const command = values['exec'] ?? rest?.map(shellQuote).join(' ');
  const exec = chooseExec(command, spec, io);
  if (exec !== undefined) spec.exec = exec;
  return spec;
}

/** The first disk, unless it says itself what it is called; Zazen's init mounts it (guest/init-script.ts). */
function addRoot(spec: DomainSpec, disk: DiskSpec): void {
  const { target = ROOT_TARGET } = disk;
  spec.disks = [{ ...disk, target }, ...spec.disks ?? []];
  const words = [`root=/dev/${target}`, ...disk.readOnly === true ? ['ro'] : [], ...spec.cmdline === undefined ? [] : [spec.cmdline]];
  spec.cmdline = words.join(' ');
}

/** One card, unless none is wanted. */
function readNics(values: Arguments['values'], forwards: readonly string[]): NicSpec[] {
  const { network: given, net } = values;
  if (given !== undefined && net !== undefined) throw new UsageError('give either --network or --net, not both');
  const network = given ?? net ?? DEFAULT_NETWORK;
  if (network === 'none') {
    if (forwards.length > 0) throw new UsageError('without a network card there is nothing to forward ports to');
    return [];
  }
  for (const forward of forwards) parsePortForward(forward);
  return [{ network, ...(forwards.length === 0 ? {} : { forwards }) }];
}

/** With a capture of the card's network, if one is wanted. */
function readNetworks({ nics }: DomainSpec, capturePath: string | undefined): HostOptions['networks'] {
  if (capturePath === undefined) return undefined;
  const network = nics?.[0]?.network;
  if (network === undefined) throw new UsageError('without a network card there is nothing to write with --pcap');
  return { [network]: { capturePath } };
}

function chooseExec(command: string | undefined, spec: DomainSpec, io: Io): ExecSpec | undefined {
  if (command !== undefined) return { command, tty: io.stdin.isTTY && io.stdout.isTTY ? 'cooked' : 'pipe' };
  const hasOurInit = spec.initrd === undefined || spec.initrd === 'default';
  return io.stdin.isTTY || !hasOurInit ? undefined : { command: SCRIPT_SHELL, tty: 'pipe' };
}

/** Whether a person's terminal is handed to the guest. */
function isInteractive({ exec }: DomainSpec, io: Io): boolean {
  return exec === undefined ? io.stdin.isTTY === true : (exec as ExecSpec).tty === 'cooked';
}

function parseSeconds(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = Number(text);
  // A timer takes 31 bits of milliseconds.
  if (!/^\d+(\.\d+)?$/.test(text) || seconds <= 0 || seconds > 2_000_000) {
    throw new UsageError(`--timeout takes a number of seconds, not "${text}"`, 'see: zazen run --help');
  }
  return seconds * 1000;
}

const COLLECTED_MAX_BYTES = 64 * 2 ** 20;

/** Keeps what the guest writes for the JSON document. */
class Collector extends Writable {
  readonly #chunks: Buffer[] = [];
  #sizeBytes = 0;

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    this.#sizeBytes += chunk.length;
    if (this.#sizeBytes <= COLLECTED_MAX_BYTES) this.#chunks.push(chunk);
    done();
  }

  /** As text if it is text. */
  describe(): { output: string } | { outputBase64: string } {
    if (this.#sizeBytes > COLLECTED_MAX_BYTES) {
      throw new ZazenError('ZAZEN_OUTPUT_TOO_LARGE', 'the command wrote more than 64 MiB, too much for --json', {
        hint: 'leave out --json, and read standard output',
      });
    }
    const bytes = Buffer.concat(this.#chunks);
    return isUtf8(bytes) ? { output: bytes.toString('utf8') } : { outputBase64: bytes.toString('base64') };
  }
}
