// Guests for the benchmarks of checkpoint, rollback and fork, and the proof that they computed what they should.

import { createHash } from 'node:crypto';
import { assert } from '../src/base/assert.ts';
import type { Domain, Host } from '../src/host/index.ts';

const CMDLINE = 'quiet cryptomgr.notests initcall_blacklist=init_blk_tracer';

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

  /** @param pauseSeconds between two rounds */
  static async start(host: Host, memory: string, roundBytes: number, pauseSeconds = 0): Promise<BusyGuest> {
    const exec = `mkdir /w; mount -t tmpfs none /w; n=0; echo begin; while :; do n=$((n+1))
      head -c ${roundBytes} /dev/zero | tr '\\0' $((n%10)) >/w/f; md5sum </w/f
      ${pauseSeconds > 0 ? `sleep ${pauseSeconds}` : ':'}; done`;
    const guest = new BusyGuest(await host.create({ memory, exec, cmdline: CMDLINE }), roundBytes);
    await guest.untilRounds(2);
    return guest;
  }

  get rounds(): number {
    return this.#text.split('  -\n').length - 1;
  }
  async untilRounds(count: number): Promise<void> {
    const output = this.domain.exec!.output;
    while (this.rounds < count) await new Promise(resolve => output.once('data', resolve));
  }

  /** Every line is the checksum of one of the ten files that there are. @returns how many lines */
  verify(): number {
    const expected = new Set(Array.from({ length: 10 }, (_, digit) =>
      createHash('md5').update(Buffer.alloc(this.#roundBytes, String(digit))).digest('hex')));
    const lines = this.#text.split('\n').filter(line => line.endsWith('  -'));
    for (const line of lines) assert(expected.has(line.slice(0, 32)), `the guest computed ${line}`);
    return lines.length;
  }
}

/** A guest that waits for commands on its console. */
export async function waitingGuest(host: Host, memory: string): Promise<Domain> {
  const domain = await host.create({ memory, cmdline: CMDLINE, exec: 'while read -r line; do eval "$line"; done' });
  domain.exec!.output.resume();
  await domain.exec!.started;
  return domain;
}

/** @throws when the guest does not answer as a guest that is alive does */
export async function checkAlive(domain: Domain): Promise<void> {
  const console = domain.attachConsole();
  const answer = textUntil(console, `alive-${domain.id * 7}-`);
  console.write(`echo alive-$((${domain.id}*7))-$(cat /sys/hypervisor/uuid)\n`);
  await answer;
  console.destroy();
}
