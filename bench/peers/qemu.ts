// QEMU TCG as a peer: the same kernel and initramfs on its `virt` machine, in the fastest settings it has.

import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

export interface QemuGuest {
  readonly kernelPath: string;
  /** None: a kernel that needs none. */
  readonly initramfsPath?: string;
  readonly cmdline: string;
  readonly memoryMib: number;
  /** Default 1; each has a thread of its own. */
  readonly cpus?: number;
  /** Further devices. */
  readonly devices?: readonly string[];
}

export interface QemuBoot {
  /** Process start to the first line of init, in milliseconds. */
  readonly bootMillis: number;
  /** Process start to its end. */
  readonly totalMillis: number;
  /** All that the guest and QEMU have printed. */
  readonly output: string;
}

const BINARY = 'qemu-system-aarch64';
export const qemuMissing = `${BINARY} is not installed: apt-get install qemu-system-arm`;

export function findQemu(): string | undefined {
  return (process.env['PATH'] ?? '').split(delimiter).map(folder => join(folder, BINARY)).find(path => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** The guest on its machine, the console on standard input and output. */
export function machineArguments({ kernelPath, initramfsPath, cmdline, memoryMib, cpus = 1, devices = [] }: QemuGuest): string[] {
  return [
    '-machine', 'virt,gic-version=3', '-cpu', 'max,pauth=off,sve=off', '-accel', 'tcg,thread=multi', '-smp', String(cpus),
    '-m', String(memoryMib), '-nodefaults', '-nographic', '-no-reboot', '-serial', 'stdio',
    '-kernel', kernelPath, ...(initramfsPath === undefined ? [] : ['-initrd', initramfsPath]),
    '-append', `console=ttyAMA0 ${cmdline}`, ...devices,
  ];
}

/** Boots, waits for `marker` on the console, and for the guest to power off. */
export function bootQemu(qemu: string, options: QemuGuest & { readonly marker: string }): Promise<QemuBoot> {
  const args = machineArguments(options);
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const child = spawn(qemu, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let bootMillis: number | undefined;
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      if (bootMillis === undefined && output.includes(options.marker)) bootMillis = performance.now() - start;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => { output += text; });
    child.on('error', reject);
    child.on('close', status => {
      if (bootMillis === undefined) reject(new Error(`QEMU ended with ${status} before init:\n${output.slice(-2000)}`));
      else resolve({ bootMillis, totalMillis: performance.now() - start, output });
    });
  });
}
