// The one command of a domain: streams of its own on top of the domain's console, which it takes over.

import { Readable, Writable } from 'node:stream';
import type { Duplex } from 'node:stream';
import { ZazenError } from '../base/errors.ts';
import { ExecFilter, ExecInput } from './exec-filter.ts';
import type { ExecTty, GuestCommand } from './types.ts';

/** What nobody reads of the log is kept up to here, then dropped: it must not hold up the command. */
const LOG_UNREAD_MAX_BYTES = 1024 * 1024;
/** How much of the end of what the guest said is looked at for the error of a command that was lost. */
const TAIL_MAX_BYTES = 4096;

/** How the guest's console treats the command's bytes. */
export interface CommandConsole {
  readonly nonce: string;
  readonly tty: ExecTty;
  /** A serial port in place of a hypervisor's console. */
  readonly isSerial?: boolean;
}

export function attachGuestCommand(console: Duplex, exec: CommandConsole): GuestCommand {
  return new ConsoleCommand(console, exec);
}

class ConsoleCommand implements GuestCommand {
  readonly output: Readable;
  readonly input: Writable;
  readonly log: Readable;
  readonly started: Promise<void>;
  readonly result: Promise<{ readonly status: number }>;
  readonly #console: Duplex;
  readonly #filter: ExecFilter;
  readonly #start = Promise.withResolvers<void>();
  readonly #exit = Promise.withResolvers<{ readonly status: number }>();
  #state: 'waiting' | 'running' | 'ended' = 'waiting';
  #isLogEnded = false;
  #tail: Buffer = Buffer.alloc(0);

  constructor(console: Duplex, { nonce, tty, isSerial }: CommandConsole) {
    this.#console = console;
    this.#filter = new ExecFilter(nonce);
    this.started = this.#start.promise;
    this.result = this.#exit.promise;
    // Whoever listens gets the error; that nobody does is no failure of the program.
    this.started.catch(() => {});
    this.result.catch(() => {});
    this.output = new Readable({ read: () => void this.#console.resume() });
    this.log = new Readable({ read: () => {} });
    this.input = this.#makeInput(new ExecInput(tty, isSerial));
    // An input that is closed early, by an error of its source, concerns the source only.
    this.input.on('error', () => {});
    console.on('data', (chunk: Buffer) => this.#take(chunk));
    console.on('close', () => this.#lost());
    console.on('end', () => this.#lost());
    console.on('error', () => this.#lost());
  }

  /** Holds bytes back until the command runs (the terminal is not set up before), and drops them after it. */
  #makeInput(encoder: ExecInput): Writable {
    const send = async (bytes: Uint8Array, done: () => void): Promise<void> => {
      await this.started.catch(() => {});
      if (this.#state === 'running' && bytes.length > 0 && this.#console.writable) {
        if (!this.#console.write(bytes)) await this.#writable();
      }
      done();
    };
    return new Writable({
      write: (chunk: Buffer, _encoding, done) => void send(encoder.encode(chunk), done),
      final: (done) => void send(encoder.end(), done),
    });
  }

  /** When the console takes bytes again, or never will. */
  #writable(): Promise<void> {
    return new Promise((resolve) => {
      const settle = (): void => {
        for (const event of ['drain', 'close', 'error']) this.#console.off(event, settle);
        resolve();
      };
      for (const event of ['drain', 'close', 'error']) this.#console.on(event, settle);
      this.result.then(settle, settle);
    });
  }

  #take(chunk: Buffer): void {
    for (const piece of this.#filter.push(chunk)) {
      if (piece.type === 'log') this.#addLog(piece.bytes);
      else if (piece.type === 'output') this.#addOutput(piece.bytes);
      else if (piece.type === 'start') this.#begin();
      else this.#end(piece.status);
    }
  }

  #begin(): void {
    this.#state = 'running';
    this.#start.resolve();
  }

  #addOutput(bytes: Buffer): void {
    // A kernel that panics says so among the command's output.
    this.#keepTail(bytes);
    if (!this.output.push(Buffer.from(bytes))) this.#console.pause();
  }

  #keepTail(bytes: Buffer): void {
    this.#tail = Buffer.concat([this.#tail, bytes]).subarray(-TAIL_MAX_BYTES);
  }

  #addLog(bytes: Buffer): void {
    const copy = Buffer.from(bytes);
    this.#keepTail(copy);
    if (this.log.readableLength < LOG_UNREAD_MAX_BYTES) this.log.push(copy);
  }

  #end(status: number): void {
    this.#state = 'ended';
    this.output.push(null);
    // Without a reader of the output the rest of the log has to come all the same.
    this.#console.resume();
    this.#exit.resolve({ status });
  }

  /** The console is at its end. */
  #lost(): void {
    if (this.#isLogEnded) return;
    this.#isLogEnded = true;
    for (const piece of this.#filter.end()) {
      if (piece.type === 'output') this.#addOutput(piece.bytes);
      else if (piece.type === 'log') this.#addLog(piece.bytes);
    }
    this.log.push(null);
    if (this.#state === 'ended') return;
    const when = this.#state === 'waiting' ? 'before the command began' : 'before the command ended';
    this.#state = 'ended';
    this.output.push(null);
    const error = new ZazenError('ZAZEN_EXEC_LOST', `the guest stopped ${when}${this.#lastWords()}`);
    this.#start.reject(error);
    this.#exit.reject(error);
  }

  #lastWords(): string {
    const lines = this.#tail.toString('utf8').split(/[\r\n]+/).map((line) => line.replaceAll(/\p{Cc}/gu, '').trim());
    // What the guest's init says is wrong tells more than that the kernel powers off, which comes after it.
    const panic = lines.findLast((line) => /^zazen: cannot|Kernel panic|Oops|BUG/.test(line));
    const line = panic ?? lines.findLast((each) => each !== '');
    return line === undefined ? '' : `; its last words: ${line.slice(0, 200)}`;
  }
}
