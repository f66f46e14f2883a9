// Verbs that ask the host of a domain for one thing: `pause`, `unpause`, `shutdown`, `reboot`, `suspend`, `resume`,
// `destroy`.

import { UsageError } from '../base/errors.ts';
import type { CommandOf } from '../daemon/command.ts';
import type { SuspendStats, SuspendVia } from '../host/types.ts';
import { parseCount } from './arguments.ts';
import type { Arguments, OptionRow, OptionTable } from './arguments.ts';
import { HOST_OPTION, sendTo } from './hosts.ts';
import { say } from './io.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

export const DOMAIN = { name: 'NAME' };
const SUSPEND_WAYS = ['auto', 'event-channel', 'store', 'transparent'] as const;

type SimpleCommand = 'pause' | 'unpause' | 'destroy' | 'resume';
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

/** For `suspend` and `save`. */
export const VIA_OPTION: OptionRow = { value: 'WAY', help: `how to suspend it: ${SUSPEND_WAYS.join(', ')}` };

/** The way that `--via` names. */
export function readVia({ values }: Arguments): { via?: SuspendVia | 'auto' } {
  const given = values['via'];
  if (given === undefined) return {};
  const via = SUSPEND_WAYS.find((way) => way === given);
  if (via !== undefined) return { via };
  throw new UsageError(`--via takes ${SUSPEND_WAYS.join(', ')}, not "${given}"`);
}

const suspendVerb: Verb = {
  name: 'suspend',
  summary: 'Ask a guest to suspend itself, or stop it if it cannot; resume lets it go on.',
  details: 'Without --via the guest is asked in the ways that it offers, over its suspend event channel first, then over '
    + 'the store; one that offers none or does not answer is stopped without asking (transparent).',
  positionals: [DOMAIN],
  options: {
    via: VIA_OPTION,
    timeout: { value: 'SECONDS', help: 'how long the guest may take for each step (default 10)' },
    host: HOST_OPTION,
    json: JSON_OPTION,
  },
  async run(args, io) {
    const seconds = parseCount('timeout', args.values['timeout']);
    const result = await sendTo({
      command: 'suspend', domain: args.positionals[0]!, ...readVia(args),
      ...(seconds === undefined ? {} : { timeoutMillis: 1000 * seconds }),
    }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    else say(io, `${result.name} is suspended: ${describeSuspend(result.suspend)}`);
    return 0;
  },
};

/** `transparent, in 0.31 ms (event-channel: not offered)` */
export function describeSuspend({ via, completedMicros, attempts }: SuspendStats): string {
  const others = attempts.slice(0, -1).map((one) => `${one.via}: ${one.outcome.replace('-', ' ')}`);
  return `${via}, in ${(completedMicros / 1000).toFixed(2)} ms${others.length === 0 ? '' : ` (${others.join('; ')})`}`;
}

export const domainVerbs: readonly Verb[] = [
  simpleVerb('pause', 'Stop the vCPUs of a domain; it keeps everything else.'),
  simpleVerb('unpause', 'Let a paused domain run on.'),
  stoppingVerb('shutdown', 'Ask a guest to power off.'),
  stoppingVerb('reboot', 'Ask a guest to reboot.'),
  suspendVerb,
  simpleVerb('resume', 'Let a suspended domain go on where it was.'),
  simpleVerb('destroy', 'End a domain at once, without asking the guest.'),
];
