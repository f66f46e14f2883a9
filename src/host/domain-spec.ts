// From what the caller asks for to what is built: checks a DomainSpec, fills in its defaults, gets the kernel and the
// initramfs into memory and writes the kernel command line.

import { ZazenError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { WEIGHT_DEFAULT } from '../abi/scheduler.ts';
import type { DomainShare } from '../hypervisor/shares.ts';
import type { MachineType } from '../lifecycle/guest-device-tree.ts';
import { commandOverlay, prepareGuest } from '../guest/initramfs.ts';
import type { BootContents, BootFiles, BootKernel } from './boot-images.ts';
import { MACHINE_DEVICES_MAX } from './emulated-machine.ts';
import { checkNics } from './guest-nics.ts';
import type { CommandConsole } from './guest-command.ts';
import { parseSize } from './size.ts';
import type { CpuShare, CreateOptions, DomainSpec, ExecTty, NicSpec, TerminalSpec } from './types.ts';

/** What a domain is built from: complete and checked, except against what the host has left. */
export interface DomainPlan {
  /** Undefined: the host chooses one. */
  readonly name: string | undefined;
  readonly type: MachineType;
  readonly uuid: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
  readonly kernel: BootKernel;
  readonly initramfs: BootContents | undefined;
  readonly cmdline: string;
  readonly paused: boolean;
  readonly share: DomainShare;
  readonly nics: readonly NicSpec[];
  /** For `attachGuestCommand`. */
  readonly exec: CommandConsole | undefined;
}

export interface PlanOptions extends CreateOptions {
  random: Random;
  /** What is planned is good until this is disposed of. */
  files: BootFiles;
  cacheDir?: string | undefined;
}

export const DEFAULT_MEMORY = '400MiB';
const DEFAULT_CMDLINES: Readonly<Record<MachineType, string>> = { pvh: 'console=hvc0', hvm: 'console=ttyAMA0' };
const VCPUS_MAX = 64;
const WEIGHT_MAX = 65_535;
/** COMMAND_LINE_SIZE of arm64 Linux, its terminating zero included. */
const CMDLINE_MAX_BYTES = 2048;
/** A command whose words fit into this stays on the kernel command line, where anybody can see it. */
const EXEC_ON_CMDLINE_MAX_BYTES = 1024;

const refuse = (code: string, message: string, hint?: string): never => {
  throw new ZazenError(code, message, { hint });
};

/**
 * Errors: ZAZEN_SPEC_NAME, _CPU_SHARE, _TYPE, _DEVICES, _UUID, _SIZE, _VCPUS, _CMDLINE, _EXEC, _TERMINAL, _NIC, _NETWORK; those of BootFiles and
 * prepareGuest.
 */
export async function planDomain(spec: DomainSpec, options: PlanOptions): Promise<DomainPlan> {
  const { name, vcpus = 1, type = 'pvh' } = spec;
  // Everything that needs no reading first: a mistake should not have to wait for a download.
  checkName(name);
  if (!Object.hasOwn(DEFAULT_CMDLINES, type)) refuse('ZAZEN_SPEC_TYPE', `there is no type "${type}"`, 'use pvh or hvm');
  if (!Number.isInteger(vcpus) || vcpus < 1 || vcpus > VCPUS_MAX) {
    refuse('ZAZEN_SPEC_VCPUS', `a domain cannot have ${vcpus} vCPUs`, `give 1 to ${VCPUS_MAX}`);
  }
  const { nics = [], disks = [] } = spec;
  checkNics(nics);
  const share = checkShare(spec, { weight: WEIGHT_DEFAULT, capPercent: 0 });
  if (type === 'hvm' && disks.length + nics.length > MACHINE_DEVICES_MAX) {
    refuse('ZAZEN_SPEC_DEVICES', `a guest of type hvm has ${MACHINE_DEVICES_MAX} disks and network cards at most`);
  }
  const memoryBytes = parseSize(spec.memory ?? DEFAULT_MEMORY);
  const uuid = checkUuid(spec.uuid) ?? randomUuid(options.random);
  const exec = planExec(spec, options.random);
  const cmdline = composeCmdline(spec, exec);
  options.signal?.throwIfAborted();
  return {
    name, type, uuid, memoryBytes, vcpus, cmdline, nics,
    ...await readFiles(spec, memoryBytes, exec?.overlay, options),
    paused: spec.paused ?? false, share,
    exec: exec && { nonce: exec.nonce, tty: exec.tty, ...(type === 'hvm' ? { isSerial: true } : {}) },
  };
}

interface ExecPlan {
  nonce: string;
  tty: ExecTty;
  /** Words for the kernel command line. */
  words: string[];
  /** To append to the initramfs when the command is too long for the command line. */
  overlay: Uint8Array | undefined;
}

function planExec(spec: DomainSpec, random: Random): ExecPlan | undefined {
  if (spec.exec === undefined) return undefined;
  const { command, tty = 'pipe' } = typeof spec.exec === 'string' ? { command: spec.exec } : spec.exec;
  if (command.trim() === '') refuse('ZAZEN_SPEC_EXEC', 'the command to run in the guest is empty');
  if (command.includes('\0')) refuse('ZAZEN_SPEC_EXEC', 'the command to run in the guest contains a zero byte');
  if (!['pipe', 'raw', 'cooked'].includes(tty)) refuse('ZAZEN_SPEC_EXEC', `there is no terminal mode "${tty}"`);
  if (spec.initrd === 'none') {
    refuse('ZAZEN_SPEC_EXEC', 'a command needs an initramfs to run in', 'leave out initrd, or give one by Zazen');
  }
  const nonce = randomHex(random, 4);
  const encoded = Buffer.from(command).toString('base64');
  // Without a person at the console, a kernel that panics has to end; it reboots, which nobody waits for.
  const words = ['panic=-1', `zazen.nonce=${nonce}`, `zazen.tty=${tty}`];
  const isLong = encoded.length > EXEC_ON_CMDLINE_MAX_BYTES;
  if (!isLong) words.push(`zazen.exec=${encoded}`);
  return { nonce, tty, words, overlay: isLong ? commandOverlay(command) : undefined };
}

function composeCmdline(spec: DomainSpec, exec: ExecPlan | undefined): string {
  const words = [DEFAULT_CMDLINES[spec.type ?? 'pvh'], ...(exec?.words ?? []), ...terminalWords(spec.terminal)];
  if (spec.name !== undefined) words.push(`zazen.hostname=${spec.name}`);
  const extra = spec.cmdline?.trim() ?? '';
  if (extra !== '') words.push(extra);
  const cmdline = words.join(' ');
  if (/\p{Cc}/u.test(cmdline)) {
    refuse('ZAZEN_SPEC_CMDLINE', 'the kernel command line contains a control character');
  }
  const sizeBytes = Buffer.byteLength(cmdline);
  if (sizeBytes >= CMDLINE_MAX_BYTES) {
    const message = `the kernel command line has ${sizeBytes} bytes; Linux takes ${CMDLINE_MAX_BYTES - 1}`;
    refuse('ZAZEN_SPEC_CMDLINE', message);
  }
  return cmdline;
}

function terminalWords(terminal: TerminalSpec | undefined): string[] {
  if (terminal === undefined) return [];
  const { rows, columns, type = 'xterm' } = terminal;
  const fits = (n: number): boolean => Number.isInteger(n) && n > 0 && n < 65536;
  if (!fits(rows) || !fits(columns) || !/^[\w.+-]{1,64}$/.test(type)) {
    refuse('ZAZEN_SPEC_TERMINAL', `there is no terminal of type "${type}" with ${rows} rows of ${columns} columns`);
  }
  return [`zazen.winsize=${rows}x${columns}`, `zazen.term=${type}`];
}

async function readFiles(
  spec: DomainSpec, memoryBytes: number, overlay: Uint8Array | undefined, { files, cacheDir, log, signal }: PlanOptions,
): Promise<Pick<DomainPlan, 'kernel' | 'initramfs'>> {
  const { kernel: kernelName = 'debian', initrd = 'default' } = spec;
  const flavour = kernelName === 'debian-generic' ? 'generic' : 'cloud';
  const isDebian = kernelName === 'debian' || kernelName === 'debian-generic';
  const readInitramfs = (path: string): Promise<BootContents> => files.initramfs(path, memoryBytes, overlay);
  // A wrong path should be told at once, so what the caller named is read before anything is fetched.
  const given = isDebian ? undefined : await files.kernel(kernelName, memoryBytes);
  const named = initrd === 'default' || initrd === 'none' ? undefined : await readInitramfs(initrd);
  if (given !== undefined && initrd !== 'default') return { kernel: given, initramfs: named };
  const devices = spec.type === 'hvm' ? 'virtio' : 'xen';
  // Where they are not in the kernel, they are needed to get at the root file system; ext4 asks for its checksums by name.
  const modules = flavour === 'generic' && /(^|\s)root=/.test(spec.cmdline ?? '') ? ['ext4', 'crc32c_generic'] : [];
  const guest = await prepareGuest({ flavour, devices, modules, cacheDir, log, signal });
  signal?.throwIfAborted();
  const kernel = given ?? await files.kernel(guest.kernelPath, memoryBytes);
  return { kernel, initramfs: initrd === 'default' ? await readInitramfs(guest.initramfsPath) : named };
}

function randomHex(random: Random, words: number): string {
  return Array.from({ length: words }, () => random.u32().toString(16).padStart(8, '0')).join('');
}

/** RFC 9562, version 4. */
export function randomUuid(random: Random): string {
  const hex = randomHex(random, 4);
  const variant = ((Number.parseInt(hex[16]!, 16) & 3) | 8).toString(16);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
}

/** ZAZEN_SPEC_NAME */
export function checkName(name: string | undefined): void {
  if (name !== undefined && (!/^[A-Za-z0-9_.+-]{1,64}$/.test(name) || /^\d+$/.test(name))) {
    refuse('ZAZEN_SPEC_NAME', `a domain cannot be called "${name}"`, 'use letters, digits, and _ . + -, up to 64');
  }
}

/** ZAZEN_SPEC_CPU_SHARE @returns what it is to be, having been `before` */
export function checkShare({ cpuWeight, cpuCapPercent }: CpuShare, before: DomainShare): DomainShare {
  const { weight, capPercent } = { weight: cpuWeight ?? before.weight, capPercent: cpuCapPercent ?? before.capPercent };
  if (!Number.isInteger(weight) || weight < 1 || weight > WEIGHT_MAX) {
    refuse('ZAZEN_SPEC_CPU_SHARE', `a domain cannot have the weight ${weight}`, `give 1 to ${WEIGHT_MAX}; ${WEIGHT_DEFAULT} is usual`);
  }
  if (!Number.isInteger(capPercent) || capPercent < 0 || capPercent > 100 * VCPUS_MAX) {
    refuse('ZAZEN_SPEC_CPU_SHARE', `a domain cannot be held to ${capPercent} % of a pCPU`,
      `give 1 to ${100 * VCPUS_MAX}, 100 being one pCPU, or 0 for no limit`);
  }
  return { weight, capPercent };
}

/** ZAZEN_SPEC_UUID @returns it in lower case */
export function checkUuid(uuid: string | undefined): string | undefined {
  if (uuid !== undefined && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(uuid)) {
    refuse('ZAZEN_SPEC_UUID', `"${uuid}" is no UUID`);
  }
  return uuid?.toLowerCase();
}
