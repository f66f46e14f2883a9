// What a verb of the command line is, and what it gets from outside: the host and the guest files, which tests replace.

import type { buildRoot } from '../guest/build-root.ts';
import type { prepareGuest } from '../guest/initramfs.ts';
import type { serveControl } from '../daemon/server.ts';
import type { StartHost } from '../host/types.ts';
import type { Arguments, OptionRow, VerbSyntax } from './arguments.ts';
import type { Io } from './io.ts';

export interface Services {
  readonly startHost: StartHost;
  readonly prepareGuest: typeof prepareGuest;
  readonly buildRoot: typeof buildRoot;
  readonly serveControl: typeof serveControl;
}

export interface Verb extends VerbSyntax {
  /** Gives the exit status. Throws ZazenError and Interruption, which the front door reports. */
  run(args: Arguments, io: Io, services: Services): Promise<number>;
}

export const JSON_OPTION: OptionRow = { help: 'print the result as JSON on standard output' };

export function printJson(io: Io, value: unknown): void {
  io.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}
