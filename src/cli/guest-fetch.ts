// `zazen guest fetch`: gets the files of a Debian guest into the cache, so that later runs need no network.

import { UsageError } from '../base/errors.ts';
import type { GuestFlavour } from '../guest/fetch-guest.ts';
import type { Arguments } from './arguments.ts';
import { Interruption, say } from './io.ts';
import type { Io } from './io.ts';
import { formatTable } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Services, Verb } from './verb.ts';

export const guestFetchVerb: Verb = {
  name: 'guest fetch',
  summary: "Fetch Debian's arm64 kernel and busybox, and build the initramfs, if they are not there yet.",
  options: {
    flavour: { value: 'FLAVOUR', help: 'cloud (default): the kernel for virtual machines; generic: the one for all' },
    refresh: { help: 'fetch again, in the version that Debian has now' },
    json: JSON_OPTION,
  },
  run: fetchGuestFiles,
};

async function fetchGuestFiles({ values, switches }: Arguments, io: Io, { prepareGuest }: Services): Promise<number> {
  const { flavour = 'cloud' } = values;
  if (!isFlavour(flavour)) {
    throw new UsageError(`there is no flavour "${flavour}"; give cloud or generic`, 'see: zazen guest fetch --help');
  }
  const guest = await interruptible(io, prepareGuest({
    flavour, signal: io.signal, refresh: switches.has('refresh'), log: (line) => say(io, line),
  }));
  if (switches.has('json')) printJson(io, guest);
  else {
    const packages = guest.packages.map(({ name, version }) => `${name} ${version}`).join('\n');
    io.stdout.write(formatTable([
      ['kernel', guest.kernelPath], ['release', guest.kernelRelease], ['initramfs', guest.initramfsPath],
      ['modules', guest.modulesDir], ['busybox', guest.busyboxPath], ['packages', packages],
    ]));
  }
  return 0;
}

/** Aborting such work leaves no half-made file; that is waited for, but what it throws then is of no interest. */
export async function interruptible<T>(io: Io, work: Promise<T>): Promise<T> {
  const result = await work.catch((error: unknown) => {
    if (io.signal.reason instanceof Interruption) throw io.signal.reason;
    throw error;
  });
  io.signal.throwIfAborted();
  return result;
}

function isFlavour(text: string): text is GuestFlavour {
  return text === 'cloud' || text === 'generic';
}
