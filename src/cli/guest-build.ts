// `zazen guest build`: a root file system for guests, from Debian packages.

import { parseSize } from '../host/size.ts';
import type { Arguments } from './arguments.ts';
import { interruptible } from './guest-fetch.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { formatTable } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Services, Verb } from './verb.ts';

export const guestBuildVerb: Verb = {
  name: 'guest build',
  summary: 'Make a disk with a Debian root file system (ext4) from packages, without root.',
  details: 'FILE becomes a raw disk with the packages that every Debian has, those named, and what they depend on:\n'
    + 'zazen run --root FILE. Their maintainer scripts have not run; `dpkg --configure -a` in the guest runs them.\n'
    + 'Needs mkfs.ext4 and debugfs of e2fsprogs.',
  positionals: [{ name: 'FILE' }, { name: 'PACKAGE', optional: true, many: true }],
  options: {
    size: { value: 'SIZE', help: 'of the file system (default 2GiB); the file is sparse' },
    refresh: { help: 'fetch the packages again, in the versions that Debian has now' },
    json: JSON_OPTION,
  },
  run: buildGuestRoot,
};

async function buildGuestRoot(args: Arguments, io: Io, { buildRoot }: Services): Promise<number> {
  const { values, switches, positionals } = args;
  const [path, ...packages] = positionals as [string, ...string[]];
  const sizeBytes = values['size'] === undefined ? undefined : parseSize(values['size'], "the disk's size");
  const built = await interruptible(io, buildRoot(path, {
    packages, sizeBytes, refresh: switches.has('refresh'), signal: io.signal, log: (line) => say(io, line),
  }));
  if (switches.has('json')) printJson(io, built);
  else {
    io.stdout.write(formatTable([
      ['file', built.path], ['size', `${built.sizeBytes} bytes`], ['packages', String(built.packages.length)],
    ]));
  }
  return 0;
}
