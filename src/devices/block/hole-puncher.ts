// Giving space of a file back to its file system, in the middle of the file: fallocate(2), which Node does not have. The
// program of that name (util-linux) has it. A shell is started at the first discard and runs it for one range after the
// other, so that a host of gigabytes is forked once and not for each. It has the file as a descriptor and no name, and reads
// nothing but pairs of numbers; when the host ends, in whatever way, its input ends, and so does it.
//
//   host ──"offset length\n"──► sh ──fallocate --punch-hole /proc/self/fd/3──► file
//        ◄──────status─────────

import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Socket } from 'node:net';
import type { Writable } from 'node:stream';

const FALLOCATE = ['/usr/bin/fallocate', '/bin/fallocate'].find(canRun);
const SHELL = '/bin/sh';
const SCRIPT = 'trap "" INT TERM HUP; while read -r offset length; do'
  + ' "$0" --punch-hole --offset "$offset" --length "$length" /proc/self/fd/3 2>/dev/null; echo $?; done';

function canRun(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export class HolePuncher {
  /** Whether this system has what it takes. */
  static readonly isAvailable = process.platform === 'linux' && FALLOCATE !== undefined && canRun(SHELL);

  readonly #fd: number;
  readonly #program: string;
  #input: Writable | undefined;
  /** What answers come by: it keeps the process from ending while one is awaited, and only then. */
  #output: Socket | undefined;
  #hasFailed = false;
  /** In the order of the questions. */
  readonly #waiting: ((isDone: boolean) => void)[] = [];

  /** @param fd open for writing until `close` @param program other than the system's, for tests */
  constructor(fd: number, program = FALLOCATE!) {
    this.#fd = fd;
    this.#program = program;
  }

  /** Makes part of the file a hole, which reads as zero. @returns false when it could not be done; never rejects */
  punch(offset: number, sizeBytes: number): Promise<boolean> {
    if (this.#hasFailed) return Promise.resolve(false);
    const input = this.#input ??= this.#start();
    this.#output!.ref();
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      input.write(`${offset} ${sizeBytes}\n`);
    });
  }

  #start(): Writable {
    const child = spawn(SHELL, ['-c', SCRIPT, this.#program], { stdio: ['pipe', 'pipe', 'ignore', this.#fd], env: {} });
    child.on('error', () => this.#giveUp());
    const input = child.stdin!;
    // It may have gone before it has read what is written to it.
    input.on('error', () => this.#giveUp());
    this.#output = child.stdout as Socket;
    createInterface(this.#output).on('line', (status) => this.#answered(status === '0')).on('close', () => this.#giveUp());
    child.unref();
    (input as Socket).unref();
    this.#output.unref();
    return input;
  }

  /** A file system that cannot do it is not asked again. */
  #answered(isDone: boolean): void {
    this.#waiting.shift()?.(isDone);
    if (this.#waiting.length === 0) this.#output!.unref();
    if (!isDone) this.#giveUp();
  }

  #giveUp(): void {
    this.#hasFailed = true;
    this.#input?.end();
    for (const tell of this.#waiting.splice(0)) tell(false);
  }

  /** When all that was asked has been answered. */
  close(): void {
    this.#hasFailed = true;
    this.#input?.end();
  }
}
