// `zazen console`: the console of a domain, with its history, until Ctrl-] or the guest's end. Leaving disturbs nobody.

import { Writable } from 'node:stream';
import { orAborted } from '../base/abort.ts';
import type { Arguments } from './arguments.ts';
import { DOMAIN } from './domain-verbs.ts';
import { HOST_OPTION, hostOf } from './hosts.ts';
import { pump, say } from './io.ts';
import type { Io } from './io.ts';
import { forwardInput, rawTerminal } from './terminal.ts';
import type { ControlClient } from '../daemon/client.ts';
import type { Verb } from './verb.ts';

export const consoleVerb: Verb = {
  name: 'console',
  summary: 'Attach to the console of a domain; Ctrl-] detaches.',
  details: 'Begins with what is kept of the past. Several may be attached; each sees everything. Without a terminal,\n'
    + 'standard input is typed into the guest, and the verb ends when the guest does.',
  positionals: [DOMAIN],
  options: { host: HOST_OPTION },
  async run(args: Arguments, io: Io): Promise<number> {
    const domain = args.positionals[0]!;
    await attachConsole(await hostOf(domain, args, io), domain, io);
    return 0;
  },
};

/** Returns when the person has left, or the console has ended. */
export async function attachConsole(client: ControlClient, domain: string, io: Io): Promise<void> {
  const stream = await client.console(domain, { signal: io.signal });
  const leaving = Promise.withResolvers<'left'>();
  const isPerson = io.stdin.isTTY === true;
  const restore = isPerson ? rawTerminal(io, io.signal) : () => {};
  // Where the input ends, the output goes on.
  const input = new Writable({ write: (chunk, _encoding, done) => void stream.write(chunk, done) });
  const letGo = forwardInput(io.stdin, input, isPerson ? () => leaving.resolve('left') : undefined);
  try {
    const copied = pump(stream, io.stdout, io.signal);
    const how = await orAborted(Promise.race([copied, leaving.promise]), io.signal);
    restore();
    if (isPerson) {
      io.stderr.write('\n');
      const left = `left the console of ${domain}; the guest runs on`;
      say(io, how === 'left' ? left : `the console of ${domain} has ended`);
    }
  } finally {
    letGo();
    restore();
    stream.destroy();
  }
}
