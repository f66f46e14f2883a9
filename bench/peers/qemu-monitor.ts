// A QEMU process driven over QMP: runs a guest, stops it, saves and dumps it, and starts one from a saved file.

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createConnection } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface QemuGuest {
  readonly kernelPath: string;
  readonly initramfsPath: string;
  readonly cmdline: string;
  readonly memoryMib: number;
}

const CONNECT_MILLIS = 10_000;
const POLL_MILLIS = 2;

export class QemuProcess {
  readonly #child: ChildProcess;
  #socket: Socket | undefined;
  #replies = '';
  #output = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout!.setEncoding('utf8').on('data', (text: string) => { this.#output += text; });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => { this.#output += text; });
  }

  /** @param incoming a file that `save` wrote, to go on from */
  static async start(qemu: string, guest: QemuGuest, folder: string, incoming?: string): Promise<QemuProcess> {
    const monitor = join(folder, `qmp-${Math.floor(performance.now() * 1000)}`);
    const child = spawn(qemu, [
      '-machine', 'virt,gic-version=3', '-cpu', 'max,pauth=off,sve=off', '-accel', 'tcg,thread=multi', '-smp', '1',
      '-m', String(guest.memoryMib), '-nodefaults', '-nographic', '-no-reboot', '-serial', 'stdio',
      '-qmp', `unix:${monitor},server=on,wait=off`,
      '-kernel', guest.kernelPath, '-initrd', guest.initramfsPath, '-append', `console=ttyAMA0 ${guest.cmdline}`,
      ...(incoming === undefined ? [] : ['-incoming', `exec:cat ${incoming}`]),
    ], { stdio: ['ignore', 'pipe', 'pipe'] });
    const process = new QemuProcess(child);
    await process.#connect(monitor);
    await process.command('qmp_capabilities');
    return process;
  }

  async #connect(path: string): Promise<void> {
    for (const start = performance.now(); ; await sleep(POLL_MILLIS)) {
      try {
        this.#socket = await new Promise<Socket>((resolve, reject) => {
          const socket = createConnection(path, () => resolve(socket));
          socket.on('error', reject);
        });
        break;
      } catch (error) {
        if (performance.now() - start > CONNECT_MILLIS) throw error;
      }
    }
    this.#socket.setEncoding('utf8').on('data', (text: string) => { this.#replies += text; });
  }

  /** Resolves when the console has shown `text` since `from` characters. @returns how much it has shown */
  async until(text: string, from = 0): Promise<number> {
    while (!this.#output.slice(from).includes(text)) {
      if (this.#child.exitCode !== null) throw new Error(`QEMU has ended:\n${this.#output.slice(-1000)}`);
      await sleep(1);
    }
    return this.#output.length;
  }

  /** Polls every 2 ms, so that is what a duration is exact to. */
  async command(execute: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const id = `${execute}-${performance.now()}`;
    this.#socket!.write(`${JSON.stringify({ execute, arguments: args, id })}\n`);
    for (;;) {
      for (const line of this.#replies.split('\n')) {
        if (!line.includes(id)) continue;
        const reply = JSON.parse(line) as { return?: unknown; error?: unknown };
        if (reply.error !== undefined) throw new Error(`QEMU refuses ${execute}: ${JSON.stringify(reply.error)}`);
        return reply.return;
      }
      await sleep(POLL_MILLIS);
    }
  }

  /** Stops the guest and writes its state to a file, without a limit on bandwidth. */
  async save(path: string): Promise<void> {
    await this.command('stop');
    await this.command('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 });
    await this.command('migrate', { uri: `exec:cat > ${path}` });
    for (;;) {
      const { status } = await this.command('query-migrate') as { status: string };
      if (status === 'completed') return;
      if (status === 'failed') throw new Error('QEMU failed to save');
      await sleep(POLL_MILLIS);
    }
  }
  /** Of a process that was started from a file: the guest was stopped when it was saved. */
  async resume(): Promise<void> {
    for (;;) {
      const { status } = await this.command('query-status') as { status: string };
      if (status !== 'inmigrate') break;
      await sleep(POLL_MILLIS);
    }
    await this.command('cont');
  }
  async dump(path: string): Promise<void> {
    await this.command('dump-guest-memory', { paging: false, protocol: `file:${path}` });
  }

  async end(): Promise<void> {
    const ended = new Promise(resolve => { this.#child.once('close', resolve); });
    this.#child.kill('SIGKILL');
    await ended;
  }
}
