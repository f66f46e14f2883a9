// A QEMU process driven over QMP: runs a guest, stops it, saves and dumps it, takes snapshots, starts one from a saved
// file. QEMU connects to a socket that we listen on, and every reply and event is acted on when it comes: a duration
// measured here has no polling in it, but the round trip over the socket.

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import { constants } from 'node:os';
import { join } from 'node:path';
import { machineArguments } from './qemu.ts';
import type { QemuGuest } from './qemu.ts';

export type { QemuGuest } from './qemu.ts';

interface QmpEvent {
  readonly event: string;
  readonly data?: { readonly id?: string; readonly status?: string };
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

interface QmpReply {
  readonly id?: string;
  readonly return?: unknown;
  readonly error?: unknown;
}

/** How long the guest stood still, by QEMU's own clock, and how long the caller waited. */
export interface QemuPause {
  readonly downtimeMicros: number;
  readonly totalMicros: number;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** A signal's own way to end a process runs nothing that is registered for its exit. */
const exitOnSignal = (name: NodeJS.Signals): void => process.exit(128 + constants.signals[name]);

const SNAPSHOT_NODE = 'snapshots';
/** Only bounds what the guest's disk would hold; the machine's state lies beyond it. */
const SNAPSHOT_DISK_BYTES = 2 ** 30;

export class QemuProcess {
  readonly #child: ChildProcess;
  readonly #folder: string;
  #socket: Socket | undefined;
  #output = '';
  #commands = 0;
  #jobs = 0;
  readonly #events: QmpEvent[] = [];
  readonly #replies = new Map<string, (reply: QmpReply) => void>();
  /** Called whenever something was printed, an event came, or the process ended. */
  readonly #watchers = new Set<() => void>();

  private constructor(child: ChildProcess, folder: string) {
    this.#child = child;
    this.#folder = folder;
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.#output += text;
        this.#notify();
      });
    }
    // Writing to a guest that has ended is found out by whoever waits for its answer.
    child.stdin!.on('error', () => {});
    // A guest that goes on for ever must not outlive us.
    const kill = (): void => { child.kill('SIGKILL'); };
    process.on('exit', kill);
    for (const name of SIGNALS) process.on(name, exitOnSignal);
    child.on('exit', () => {
      process.off('exit', kill);
      for (const name of SIGNALS) process.off(name, exitOnSignal);
      this.#notify();
    });
  }

  /** @param incoming a file that `save` wrote, to go on from */
  static async start(qemu: string, guest: QemuGuest, folder: string, incoming?: string): Promise<QemuProcess> {
    const monitor = join(folder, `qmp-${Math.floor(performance.now() * 1000)}`);
    const server = createServer();
    const connected = new Promise<Socket>(resolve => { server.once('connection', resolve); });
    server.listen(monitor);
    await once(server, 'listening');
    const child = spawn(qemu, [
      ...machineArguments(guest), '-qmp', `unix:${monitor},server=off`,
      ...(incoming === undefined ? [] : ['-incoming', 'defer']),
    ], { stdio: ['pipe', 'pipe', 'pipe'] });
    const process = new QemuProcess(child, folder);
    const failed = new Promise<never>((_, reject) => {
      child.once('error', reject);
      child.once('exit', () => reject(process.#ended()));
    });
    try {
      process.#listen(await Promise.race([connected, failed]));
    } finally {
      failed.catch(() => {});
      server.close();
    }
    await process.command('qmp_capabilities');
    if (incoming !== undefined) await process.#migrate('migrate-incoming', `exec:cat ${incoming}`);
    return process;
  }

  #listen(socket: Socket): void {
    this.#socket = socket;
    let rest = '';
    // A process that is ended resets the connection.
    socket.on('error', () => {}).setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      for (const line of lines) this.#receive(JSON.parse(line) as QmpReply | QmpEvent);
    });
  }

  #receive(message: QmpReply | QmpEvent): void {
    if ('event' in message) {
      this.#events.push(message);
      this.#notify();
    } else if (message.id !== undefined) {
      this.#replies.get(message.id)?.(message);
      this.#replies.delete(message.id);
    }
  }

  #notify(): void {
    for (const watch of [...this.#watchers]) watch();
  }

  #ended(): Error {
    return new Error(`QEMU has ended:\n${this.#output.slice(-1000)}`);
  }

  /** Resolves when `found` gives something, which it may after any output or event. Rejects when QEMU ends first. */
  #until<T>(found: () => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      const watch = (): void => {
        const value = found();
        if (value === undefined && this.#child.exitCode === null && this.#child.signalCode === null) return;
        this.#watchers.delete(watch);
        if (value === undefined) reject(this.#ended());
        else resolve(value);
      };
      this.#watchers.add(watch);
      watch();
    });
  }

  /** All that the guest and QEMU have printed. */
  get output(): string {
    return this.#output;
  }

  /** What the process has in memory that it shares with no file, in bytes. */
  get ownBytes(): number {
    return Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(`/proc/${this.#child.pid}/status`, 'latin1'))![1]) * 1024;
  }

  /** To the guest's console. */
  write(text: string): void {
    this.#child.stdin!.write(text);
  }

  /** Resolves when the console has shown `text` since `from` characters. @returns how much it has shown */
  until(text: string, from = 0): Promise<number> {
    return this.#until(() => this.#output.includes(text, from) ? this.#output.length : undefined);
  }

  /** @throws Error with what QEMU says when it refuses, or when it ends before it answers */
  async command(execute: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const id = `${execute}-${this.#commands++}`;
    let reply: QmpReply | undefined;
    this.#replies.set(id, answer => {
      reply = answer;
      this.#notify();
    });
    const answered = this.#until(() => reply);
    this.#socket!.write(`${JSON.stringify({ execute, arguments: args, id })}\n`);
    const { error, return: value } = await answered;
    if (error !== undefined) throw new Error(`QEMU refuses ${execute}: ${JSON.stringify(error)}`);
    return value;
  }

  /** Runs what stops the guest and lets it go on. */
  async #measurePause(work: () => Promise<unknown>): Promise<QemuPause> {
    const seen = this.#events.length;
    const start = performance.now();
    await work();
    const totalMicros = (performance.now() - start) * 1000;
    const microsOf = (name: string): number | undefined => {
      const event = this.#events.slice(seen).find(one => one.event === name);
      return event === undefined ? undefined : event.timestamp.seconds * 1e6 + event.timestamp.microseconds;
    };
    const resumed = await this.#until(() => microsOf('RESUME'));
    return { downtimeMicros: resumed - microsOf('STOP')!, totalMicros };
  }

  /** `stop` and at once `cont`: the least that a checkpoint could cost. No state is taken. */
  pauseAndContinue(): Promise<QemuPause> {
    return this.#measurePause(async () => {
      await this.command('stop');
      await this.command('cont');
    });
  }

  /** Runs a command that starts a job, to its end. */
  async #job(execute: string, args: Record<string, unknown>): Promise<void> {
    const id = `job-${this.#jobs++}`;
    await this.command(execute, { 'job-id': id, ...args });
    await this.#until(() => this.#events.find(({ event, data }) =>
      event === 'JOB_STATUS_CHANGE' && data?.id === id && data.status === 'concluded'));
    const jobs = await this.command('query-jobs') as { id: string; error?: string }[];
    const error = jobs.find(job => job.id === id)?.error;
    if (error !== undefined) throw new Error(`QEMU failed in ${execute}: ${error}`);
    await this.command('job-dismiss', { id });
  }

  /** Makes a qcow2 file for snapshots to live in; once, before the first one. */
  async addSnapshotFile(): Promise<void> {
    const [file, filename] = [`${SNAPSHOT_NODE}-file`, join(this.#folder, `snapshots-${this.#child.pid}.qcow2`)];
    await this.#job('blockdev-create', { options: { driver: 'file', filename, size: 0 } });
    await this.command('blockdev-add', { driver: 'file', 'node-name': file, filename });
    await this.#job('blockdev-create', { options: { driver: 'qcow2', file, size: SNAPSHOT_DISK_BYTES } });
    await this.command('blockdev-add', { driver: 'qcow2', 'node-name': SNAPSHOT_NODE, file });
    // Whoever has it open keeps it, and nobody else needs it.
    rmSync(filename);
  }

  /** A whole checkpoint of a running guest, into the snapshot file by way of the page cache; the guest goes on. */
  saveSnapshot(tag: string): Promise<QemuPause> {
    return this.#measurePause(() =>
      this.#job('snapshot-save', { tag, vmstate: SNAPSHOT_NODE, devices: [SNAPSHOT_NODE] }));
  }
  /** Puts a running guest back to a snapshot, from where it goes on. */
  loadSnapshot(tag: string): Promise<QemuPause> {
    return this.#measurePause(() =>
      this.#job('snapshot-load', { tag, vmstate: SNAPSHOT_NODE, devices: [SNAPSHOT_NODE] }));
  }

  /** Stops the guest and writes its state to a file, without a limit on bandwidth. */
  async save(path: string): Promise<void> {
    await this.command('stop');
    await this.command('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 });
    await this.#migrate('migrate', `exec:cat > ${path}`);
  }
  /** Of a process that was started from a file: the guest was stopped when it was saved. */
  async resume(): Promise<void> {
    await this.command('cont');
  }

  /** Moves the state out or in, to the end. */
  async #migrate(execute: string, uri: string): Promise<void> {
    await this.command('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
    const seen = this.#events.length;
    await this.command(execute, { uri });
    const status = await this.#until(() => this.#events.slice(seen).find(({ event, data }) =>
      event === 'MIGRATION' && (data?.status === 'completed' || data?.status === 'failed'))?.data!.status);
    if (status === 'failed') throw new Error(`QEMU failed in ${execute}`);
  }

  async dump(path: string): Promise<void> {
    await this.command('dump-guest-memory', { paging: false, protocol: `file:${path}` });
  }

  /** Asks QEMU to end. @returns milliseconds until the process is gone */
  async quit(): Promise<number> {
    const exited = once(this.#child, 'exit');
    const start = performance.now();
    // Its answer may be lost when the process ends.
    this.#socket!.write('{"execute": "quit"}\n');
    await exited;
    return performance.now() - start;
  }

  async end(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, 'close');
    this.#child.kill('SIGKILL');
    await ended;
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }
}
