// A Debian guest in QEMU as our own benchmarks run it: the same kernel, initramfs and command, in a folder that goes
// away with it.

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import { QemuProcess } from './qemu-monitor.ts';
import { findQemu, qemuMissing } from './qemu.ts';
import type { QemuGuest } from './qemu.ts';

/**
 * The guest that runs `command` as its one program.
 * @param cmdline added to the kernel's command line
 * @param log gets a line for each step that takes time, when the files are to be fetched
 */
export async function debianGuest(
  memoryMib: number, command: string, cmdline = 'quiet', log?: (line: string) => void,
): Promise<QemuGuest> {
  const { kernelPath, initramfsPath } = await prepareGuest(log === undefined ? {} : { log });
  const word = `zazen.exec=${Buffer.from(command).toString('base64')}`;
  return { kernelPath, initramfsPath, memoryMib, cmdline: `${cmdline} ${word}` };
}

/**
 * Gives `work` a QEMU and a folder on a disk (temporary folders may lie in memory); ends and removes both.
 * @returns what `work` returns; what to do about it as a text when QEMU is not installed, which `log` gets as well
 */
export async function withQemu<T>(
  log: (line: string) => void, work: (start: StartQemu, folder: string) => Promise<T>,
): Promise<T | string> {
  const qemu = findQemu();
  if (qemu === undefined) {
    log(qemuMissing);
    return qemuMissing;
  }
  const folder = mkdtempSync(join(process.cwd(), '.cache-bench-'));
  const removeFolder = (): void => rmSync(folder, { recursive: true });
  process.on('exit', removeFolder);
  const started: QemuProcess[] = [];
  try {
    return await work(async (guest, incoming) => {
      started.push(await QemuProcess.start(qemu, guest, folder, incoming));
      return started.at(-1)!;
    }, folder);
  } finally {
    await Promise.all(started.map(one => one.end()));
    process.off('exit', removeFolder);
    removeFolder();
  }
}

/** @param incoming a file that `save` wrote, to go on from */
export type StartQemu = (guest: QemuGuest, incoming?: string) => Promise<QemuProcess>;
