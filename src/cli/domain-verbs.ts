// Verbs that ask the host of a domain for one thing: `pause`, `unpause`, `shutdown`, `reboot`, `destroy`.

import type { CommandOf } from '../daemon/command.ts';
import { HOST_OPTION, sendTo } from './hosts.ts';
import { say } from './io.ts';
import type { OptionTable } from './arguments.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

export const DOMAIN = { name: 'NAME' };

type SimpleCommand = 'pause' | 'unpause' | 'destroy';
type StoppingCommand = 'shutdown' | 'reboot';

function simpleVerb(name: SimpleCommand, summary: string): Verb {
  return domainVerb(name, summary, {}, (domain) => ({ command: name, domain }));
}

function stoppingVerb(name: StoppingCommand, summary: string): Verb {
  const options = { wait: { short: 'w', help: 'return when the guest has stopped' } };
  return domainVerb(name, summary, options, (domain, wait) => ({ command: name, domain, ...(wait ? { wait } : {}) }));
}

function domainVerb(
  name: SimpleCommand | StoppingCommand,
  summary: string,
  options: OptionTable,
  commandFor: (domain: string, wait: boolean) => CommandOf<SimpleCommand> | CommandOf<StoppingCommand>,
): Verb {
  return {
    name, summary, positionals: [DOMAIN],
    options: { ...options, host: HOST_OPTION, json: JSON_OPTION },
    async run(args, io) {
      const wait = args.switches.has('wait');
      const result = await sendTo(commandFor(args.positionals[0]!, wait), args, io);
      if (args.switches.has('json')) printJson(io, result);
      else if ('reason' in result) say(io, `${result.name} has stopped: ${result.reason}`);
      return 0;
    },
  };
}

export const domainVerbs: readonly Verb[] = [
  simpleVerb('pause', 'Stop the vCPUs of a domain; it keeps everything else.'),
  simpleVerb('unpause', 'Let a paused domain run on.'),
  stoppingVerb('shutdown', 'Ask a guest to power off.'),
  stoppingVerb('reboot', 'Ask a guest to reboot.'),
  simpleVerb('destroy', 'End a domain at once, without asking the guest.'),
];
