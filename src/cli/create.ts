// `zazen create`: a domain from an xl.cfg on a host that runs.

import { readFile } from 'node:fs/promises';
import { ZazenError, isWrongUsage } from '../base/errors.ts';
import type { Arguments } from './arguments.ts';
import { attachConsole } from './console.ts';
import { readDomainConfig } from './domain-config.ts';
import { HOST_OPTION, oneHost } from './hosts.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

export const createVerb: Verb = {
  name: 'create',
  summary: 'Create a domain from a configuration in the syntax of xl.cfg, on a host that runs.',
  details: 'Taken: name, uuid, type, memory, maxmem, vcpus, cpu_weight, cap, kernel, ramdisk, cmdline, root, extra, disk, vif,\n'
    + 'on_poweroff, on_reboot and on_crash (destroy, restart, preserve). Without kernel the guest is Debian. Devices that Zazen\n'
    + 'does not have are refused by name; other keys are left out with a warning.',
  positionals: [{ name: 'FILE' }, { name: 'KEY=VALUE', optional: true, many: true }],
  options: {
    paused: { short: 'p', help: 'create it paused' },
    console: { short: 'c', help: 'attach to its console' },
    host: HOST_OPTION,
    json: JSON_OPTION,
  },
  run: createDomain,
};

async function createDomain(args: Arguments, io: Io): Promise<number> {
  const [file, ...assignments] = args.positionals as [string, ...string[]];
  const text = [await readConfig(file), ...assignments.map(quoteBareWord)].join('\n');
  const { spec, policy, warnings } = await namingFile(file, async () => readDomainConfig(text, file, process.cwd()));
  for (const warning of warnings) say(io, warning);
  if (args.switches.has('paused')) spec.paused = true;
  const client = await oneHost(args, io);
  const options = { signal: io.signal, log: (line: string) => say(io, line) };
  const created = await namingFile(file, () => client.send({ command: 'create', spec, policy }, options));
  if (args.switches.has('json')) printJson(io, created);
  else say(io, `created ${created.name}, id ${created.id}`);
  if (args.switches.has('console')) await attachConsole(client, String(created.id), io);
  return 0;
}

/** What is wrong with the domain that is asked for, the file has said, and not the command line. */
async function namingFile<T>(file: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof ZazenError) || !isWrongUsage(error)) throw error;
    throw new ZazenError('ZAZEN_CONFIG_VALUE', `${file}: ${error.message}`, { cause: error, ...(error.hint === undefined ? {} : { hint: error.hint }) });
  }
}

async function readConfig(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw new ZazenError('ZAZEN_CONFIG_UNREADABLE', `cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
}

/** `name=web` is what a shell leaves of `name="web"`. */
function quoteBareWord(assignment: string): string {
  const match = /^(\w+\+?=)([^\s'"[\d].*)$/s.exec(assignment);
  return match === null ? assignment : `${match[1]!}"${match[2]!.replaceAll(/["\\]/g, String.raw`\$&`)}"`;
}
