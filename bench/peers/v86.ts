// v86, an emulator of a PC by WebAssembly that is made at run time, as a peer: Debian's i386 kernel, busybox and programs, made
// into an initramfs as for our own guests, in a process of its own. Its BIOS comes from Debian's `seabios`.

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdir, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { assert } from '../../src/base/assert.ts';
import { buildInitramfs } from '../../src/guest/initramfs.ts';
import { fetchPackages, openArchive, openCache, releaseSuffix } from '../../src/guest/packages.ts';

const ARCHITECTURE = 'i386';

export interface V86Installation {
  readonly modulePath: string;
  readonly wasmPath: string;
}

/** All that the process needs to know. */
export interface V86Machine extends V86Installation, V86Files {
  readonly cmdline: string;
  /** A power of two. */
  readonly memoryMib: number;
}

export interface V86Files {
  readonly biosPath: string;
  readonly vgaBiosPath: string;
  readonly kernelPath: string;
  readonly initramfsPath: string;
}

export const v86Missing = 'v86 is not installed: npm install';

export function findV86(): V86Installation | undefined {
  try {
    const modulePath = import.meta.resolve('v86');
    return { modulePath, wasmPath: join(dirname(fileURLToPath(modulePath)), 'v86.wasm') };
  } catch {
    return undefined;
  }
}

/** Fetched and made if the cache does not have them. @param packages Debian's, laid over the initramfs with what they need */
export async function fetchV86Guest(packages: readonly string[], log: (line: string) => void): Promise<V86Files> {
  const cache = openCache({ log });
  const machine = await cache.directory(`peers/v86-${ARCHITECTURE}${releaseSuffix()}`, async into => {
    const archive = await openArchive(ARCHITECTURE, cache, { log });
    const kernel = archive.index.require('linux-image-686').depends.flat().find(({ name }) => /^linux-image-\d/.test(name));
    assert(kernel !== undefined, 'linux-image-686 names no kernel');
    const wanted = archive.index.resolve([kernel.name, 'busybox-static', 'seabios'], false);
    await archive.unpack(wanted, into, path => /^(boot\/vmlinuz-|bin\/busybox$|usr\/share\/seabios\/)/.test(path));
    const [vmlinuz] = await readdir(join(into, 'boot'));
    await rename(join(into, 'boot', vmlinuz!), join(into, 'vmlinuz'));
  });
  const tree = await fetchPackages(packages, { withDependencies: true, architecture: ARCHITECTURE, log });
  const initramfs = await buildInitramfs({ busyboxPath: join(machine, 'bin/busybox'), trees: [tree] });
  const digest = createHash('sha256').update(initramfs).digest('hex').slice(0, 32);
  return {
    biosPath: join(machine, 'usr/share/seabios/bios.bin'),
    vgaBiosPath: join(machine, 'usr/share/seabios/vgabios-stdvga.bin'),
    kernelPath: join(machine, 'vmlinuz'),
    initramfsPath: await cache.file(`initramfs/${digest}.cpio`, async () => initramfs),
  };
}

/** A guest that runs, and its serial port. */
export class V86Process implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;

  /**
   * @param onOutput gets what the guest prints
   * @param onEnd is called when the process has ended
   */
  constructor(machine: V86Machine, onOutput: (text: string) => void, onEnd: () => void) {
    const program = fileURLToPath(new URL('./v86-process.ts', import.meta.url));
    // What is written to standard error shows where the process's owner looks.
    this.#child = spawn(process.execPath, [program, JSON.stringify(machine)], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout!.setEncoding('utf8').on('data', onOutput);
    // Writing to a guest that has ended is found out by whoever waits for its answer.
    this.#child.stdin!.on('error', () => {});
    this.#ended = new Promise(resolve => {
      this.#child.once('exit', () => {
        onEnd();
        resolve();
      });
    });
  }

  write(text: string): void {
    this.#child.stdin!.write(text);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }
}
