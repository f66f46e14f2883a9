// Guests for the benchmarks of checkpoint, rollback and fork, and the proof that they computed what they should.

import { createHash } from 'node:crypto';
import { assert } from '../src/base/assert.ts';
import type { Domain, Host } from '../src/host/index.ts';
import type { QemuProcess } from './peers/qemu-monitor.ts';

export const GUEST_CMDLINE = 'quiet cryptomgr.notests initcall_blacklist=init_blk_tracer';

/** Resolves with a new stream's whole text once `wanted` is in it. */
function textUntil(stream: NodeJS.ReadableStream, wanted: string): Promise<string> {
  let text = '';
  return new Promise((resolve, reject) => {
    stream.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      if (text.includes(wanted)) resolve(text);
    });
    stream.on('end', () => reject(new Error(`the guest ended without ${wanted}: ${text.slice(-500)}`)));
  });
}

/** @param pauseSeconds between two rounds */
export function busyCommand(roundBytes: number, pauseSeconds = 0): string {
  return `mkdir /w; mount -t tmpfs none /w; n=0; echo begin; while :; do n=$((n+1))
    head -c ${roundBytes} /dev/zero | tr '\\0' $((n%10)) >/w/f; md5sum </w/f
    ${pauseSeconds > 0 ? `sleep ${pauseSeconds}` : ':'}; done`;
}

/** Resolves when the busy guest in QEMU has printed so many checksums, beginning `from` characters. */
export async function untilRounds(qemu: QemuProcess, count: number, from = 0): Promise<void> {
  while (countRounds(qemu.output.slice(from)) < count) await qemu.until('\n', qemu.output.length);
}

/** How many rounds a busy guest that printed this has done. */
function countRounds(text: string): number {
  return text.split(/  -\r?\n/).length - 1;
}

/**
 * Every line with a checksum has that of one of the ten files that there are. The first line is not looked at: it may
 * have lost its beginning.
 * @returns how many lines
 */
export function verifyRounds(text: string, roundBytes: number): number {
  const expected = new Set(Array.from({ length: 10 }, (_, digit) =>
    createHash('md5').update(Buffer.alloc(roundBytes, String(digit))).digest('hex')));
  const lines = text.split(/\r?\n/).slice(1).filter(line => line.endsWith('  -'));
  for (const line of lines) assert(expected.has(line.slice(0, 32)), `the guest computed ${line}`);
  return lines.length;
}

/** A guest that writes to its memory all the time, and prints the checksum of each round. */
export class BusyGuest {
  readonly domain: Domain;
  readonly #roundBytes: number;
  #text = '';

  constructor(domain: Domain, roundBytes: number) {
    this.domain = domain;
    this.#roundBytes = roundBytes;
    domain.exec!.output.on('data', (chunk: Buffer) => { this.#text += chunk.toString('latin1'); });
  }

  static async start(host: Host, memory: string, roundBytes: number, pauseSeconds = 0): Promise<BusyGuest> {
    const exec = busyCommand(roundBytes, pauseSeconds);
    const guest = new BusyGuest(await host.create({ memory, exec, cmdline: GUEST_CMDLINE }), roundBytes);
    await guest.untilRounds(2);
    return guest;
  }

  get rounds(): number {
    return countRounds(this.#text);
  }
  async untilRounds(count: number): Promise<void> {
    const output = this.domain.exec!.output;
    while (this.rounds < count) await new Promise(resolve => output.once('data', resolve));
  }

  /** Leaves what was printed so far out of all that follows: a rollback may have cut a line. */
  forget(): void {
    this.#text = '';
  }

  /** @returns how many rounds were right; throws when one was not */
  verify(): number {
    return verifyRounds(this.#text, this.#roundBytes);
  }
}

/** Reads commands from its console and runs them. */
export const WAITING_COMMAND = 'while read -r line; do eval "$line"; done';

/** A guest that waits for commands on its console. */
export async function waitingGuest(host: Host, memory: string): Promise<Domain> {
  const domain = await host.create({ memory, cmdline: GUEST_CMDLINE, exec: WAITING_COMMAND });
  domain.exec!.output.resume();
  await domain.exec!.started;
  return domain;
}

/** What makes a waiting guest print something that is not in the command itself. */
export function aliveQuestion(number: number): { command: string; answer: string } {
  const command = `echo alive-$((${number}*7))-$(cat /proc/sys/kernel/ostype)\n`;
  return { command, answer: `alive-${number * 7}-Linux` };
}

/** @throws when the guest does not answer as a guest that is alive does */
export async function checkAlive(domain: Domain): Promise<void> {
  const console = domain.attachConsole();
  const question = aliveQuestion(domain.id);
  const answer = textUntil(console, question.answer);
  console.write(question.command);
  await answer;
  console.destroy();
}
