// `zazen events`: what becomes of domains, as it happens.

import type { CommandOf, CommandResults } from '../daemon/command.ts';
import type { Arguments } from './arguments.ts';
import { HOST_OPTION, hostOf, oneHost } from './hosts.ts';
import type { Io } from './io.ts';
import type { Verb } from './verb.ts';

export const eventsVerb: Verb = {
  name: 'events',
  summary: 'Follow what becomes of the domains of a host, or of one domain until it is destroyed.',
  positionals: [{ name: 'NAME', optional: true }],
  options: {
    history: { help: 'begin with the latest events of the past' },
    host: HOST_OPTION,
    json: { help: 'print each event as a line of JSON' },
  },
  run: followEvents,
};

async function followEvents(args: Arguments, io: Io): Promise<number> {
  const { switches, positionals: [domain] } = args;
  const client = domain === undefined ? await oneHost(args, io) : await hostOf(domain, args, io);
  const command: CommandOf<'events'> = {
    command: 'events',
    ...(domain === undefined ? {} : { domain }),
    ...(switches.has('history') ? { history: true } : {}),
  };
  for await (const event of client.follow(command, { signal: io.signal })) {
    io.stdout.write(switches.has('json') ? `${JSON.stringify(event)}\n` : describe(event));
  }
  return 0;
}

function describe(event: CommandResults['events']): string {
  const { timeMillis, name, domainId, type } = event;
  const what = detailOf(event);
  return `${new Date(timeMillis).toISOString()}  ${name} (${domainId})  ${type}${what === undefined ? '' : `: ${what}`}\n`;
}

function detailOf(event: CommandResults['events']): string | undefined {
  switch (event.type) {
    case 'shutdown': case 'resumed': return event.reason;
    case 'suspended': return event.via;
    case 'saved': case 'restored': return event.path;
    case 'stalled': return event.message;
    default: return undefined;
  }
}
