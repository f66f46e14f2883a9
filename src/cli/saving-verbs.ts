// Verbs that move a domain to and from a file: `save`, `dump-core`, `restore`.

import { resolve } from 'node:path';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { UsageError } from '../base/errors.ts';
import type { CommandOf, CommandResults } from '../daemon/command.ts';
import { formatSize } from '../host/size.ts';
import { parseCount } from './arguments.ts';
import type { Arguments } from './arguments.ts';
import { DOMAIN, VIA_OPTION, describeSuspend, readVia } from './domain-verbs.ts';
import { HOST_OPTION, hostOf, oneHost } from './hosts.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { progressBar } from './progress.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const saveVerb: Verb = {
  name: 'save',
  summary: 'Write the state of a domain, or with --checkpoint of one, to a file; the domain goes on.',
  details: 'The words are NAME FILE, or with --checkpoint only FILE.',
  positionals: [{ name: 'NAME', optional: true }, { name: 'FILE', optional: true }],
  options: {
    checkpoint: { value: 'ID', short: 'k', help: 'save this checkpoint' },
    destroy: { help: 'destroy the domain when it is saved' },
    parent: { value: 'FILE', help: 'leave pages that this image has already to it' },
    via: { ...VIA_OPTION, help: `${VIA_OPTION.help} (default: the guest notices nothing)` },
    host: HOST_OPTION,
    json: JSON_OPTION,
  },
  run: saveDomain,
};

async function saveDomain(args: Arguments, io: Io): Promise<number> {
  const checkpoint = parseCount('checkpoint', args.values['checkpoint']);
  const words = args.positionals;
  if (words.length !== (checkpoint === undefined ? 2 : 1)) {
    throw new UsageError('save needs NAME and FILE, or --checkpoint ID and FILE', 'see: zazen save --help');
  }
  const command: CommandOf<'save'> = {
    command: 'save', path: resolve(words.at(-1)!), ...readVia(args),
    ...(checkpoint === undefined ? { domain: words[0]! } : { checkpoint }),
    ...(args.switches.has('destroy') ? { destroy: true } : {}),
    ...(args.values['parent'] === undefined ? {} : { parent: resolve(args.values['parent']) }),
  };
  return write(command, args, io);
}

const dumpCoreVerb: Verb = {
  name: 'dump-core',
  summary: 'Write a core dump of a domain to a file, for gdb, crash and drgn; the domain goes on.',
  positionals: [DOMAIN, { name: 'FILE' }],
  options: { host: HOST_OPTION, json: JSON_OPTION },
  run: (args, io) => {
    const [domain, file] = args.positionals as [string, string];
    return write({ command: 'dump-core', domain, path: resolve(file) }, args, io);
  },
};

async function write(command: CommandOf<'save' | 'dump-core'>, args: Arguments, io: Io): Promise<number> {
  const client = command.domain === undefined ? await oneHost(args, io) : await hostOf(command.domain, args, io);
  let result: CommandResults['save'];
  {
    using bar = progressBar(io, command.command);
    result = await client.send(command, { signal: io.signal, onProgress: (progress) => bar.show(progress) });
  }
  if (args.switches.has('json')) printJson(io, result);
  else {
    const { path, bytesWritten, parentPages, millis, direct } = result;
    const rest = parentPages === 0 ? '' : `, ${formatSize(parentPages * FRAME_BYTES)} in its parent`;
    const how = direct ? '' : '; the file system has no direct I/O';
    say(io, `${path}: ${formatSize(bytesWritten)} in ${(millis / 1000).toFixed(2)} s${rest}${how}`);
    const suspend = 'suspend' in result ? result.suspend : undefined;
    if (suspend !== undefined) say(io, `suspended for it: ${describeSuspend(suspend)}`);
  }
  return 0;
}

const restoreVerb: Verb = {
  name: 'restore',
  summary: 'Make a domain that goes on where a file was saved; prints its name.',
  details: 'It runs while its memory is still being read. Until all is read (image.isComplete in `zazen list --json`),\n'
    + 'the file may be removed or replaced, but not changed.',
  positionals: [{ name: 'FILE' }],
  options: {
    name: { value: 'NAME', help: 'what to call it (default: as it was called)' },
    paused: { short: 'p', help: 'make it paused' },
    eager: { help: 'read all of the file first' },
    host: HOST_OPTION,
    json: JSON_OPTION,
  },
  async run(args, io) {
    const { values, switches, positionals } = args;
    const client = await oneHost(args, io);
    let result: CommandResults['restore'];
    {
      using bar = progressBar(io, 'restore');
      result = await client.send({
        command: 'restore', path: resolve(positionals[0]!),
        ...(values['name'] === undefined ? {} : { name: values['name'] }),
        ...(switches.has('paused') ? { paused: true } : {}),
        ...(switches.has('eager') ? { lazy: false } : {}),
      }, { signal: io.signal, onProgress: (progress) => bar.show(progress) });
    }
    if (switches.has('json')) printJson(io, result);
    else {
      io.stdout.write(`${result.name}\n`);
      say(io, `it took ${(result.restoreMillis / 1000).toFixed(2)} s`);
      for (const forward of result.missingForwards) {
        say(io, `its port forward ${forward} is missing: the host's port is in use. Give it another one: `
          + `zazen network-forward ${result.name} HOSTPORT:GUESTPORT`);
      }
    }
    return 0;
  },
};

export const savingVerbs: readonly Verb[] = [saveVerb, restoreVerb, dumpCoreVerb];
