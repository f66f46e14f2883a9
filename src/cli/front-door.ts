// The front door: finds the verb, reads its arguments, runs it, and tells what went wrong in one line.
//
//   exit status   0 done; 1 an operator's error; 2 wrong usage; 128+n ended by signal n; else what the verb says

import { UsageError, ZazenError, isWrongUsage } from '../base/errors.ts';
import { parseArguments, verbHelp } from './arguments.ts';
import { Interruption, say } from './io.ts';
import type { Io } from './io.ts';
import { formatTable } from './table.ts';
import { printJson } from './verb.ts';
import type { Services } from './verb.ts';
import { allVerbs, familyOf, findVerb } from './verbs.ts';
import { zazenVersion } from './version.ts';

/**
 * Runs one command line, without the program's name; gives the exit status. Throws only what is our own bug: when it
 * returns, everything that it started has ended.
 */
export async function main(words: readonly string[], io: Io, services: Services): Promise<number> {
  const end = words.indexOf('--');
  const isJson = (end < 0 ? words : words.slice(0, end)).includes('--json');
  return reportErrors(io, isJson, async () => {
    const [first] = words;
    if (first === undefined) throw new UsageError('no verb given');
    if (first === '--version' || first === '-V') {
      io.stdout.write(`zazen ${await zazenVersion()}\n`);
      return 0;
    }
    if (first === '--help' || first === '-h' || first === 'help') return help(words.slice(1), io);
    if (words.length === 2 && ['--help', '-h'].includes(words[1]!) && (await familyOf(first)).length > 0) return help([first], io);
    const { verb, rest } = await findVerb(words);
    const args = parseArguments(verb, rest);
    if (args.switches.has('help')) {
      io.stdout.write(verbHelp(verb));
      return 0;
    }
    return verb.run(args, io, services);
  });
}

/** Runs `body`, and turns what it throws into a line and an exit status. */
export async function reportErrors(io: Io, isJson: boolean, body: () => Promise<number>): Promise<number> {
  try {
    return await body();
  } catch (error) {
    const cause = rootCause(error);
    if (cause instanceof Interruption) {
      if (cause.message !== '') say(io, cause.message);
      if (isJson) printJson(io, { status: cause.status, error: { code: 'ZAZEN_INTERRUPTED', message: cause.message } });
      return cause.status;
    }
    if (!(cause instanceof ZazenError)) throw error;
    const status = isWrongUsage(cause) ? 2 : 1;
    // One line, whatever a file's name or a library's message holds.
    say(io, [cause.message, cause.hint].filter(Boolean).join('; ').replaceAll(/\p{Cc}+/gu, ' '));
    if (isJson) {
      printJson(io, { status, error: { code: cause.code, message: cause.message, hint: cause.hint } });
    }
    return status;
  }
}

/** Closing the host after a failure may fail as well: then the failure that came first counts. */
function rootCause(error: unknown): unknown {
  return error instanceof SuppressedError ? rootCause(error.suppressed) : error;
}

async function help(words: readonly string[], io: Io): Promise<number> {
  const family = words.length === 1 ? await familyOf(words[0]!) : [];
  const verbs = formatTable((family.length > 0 ? family : await allVerbs()).map((verb) => [verb.name, verb.summary] as const), '  ');
  if (family.length > 0) {
    io.stdout.write(`usage: zazen ${words[0]!} VERB [OPTION]...\n\n${verbs}\nzazen ${words[0]!} VERB --help tells more.\n`);
    return 0;
  }
  if (words.length > 0) {
    io.stdout.write(verbHelp((await findVerb(words)).verb));
    return 0;
  }
  io.stdout.write('usage: zazen VERB [OPTION]...\n\nZazen runs unmodified arm64 Linux guests inside Node, under the '
    + `Xen ABI and without privileges.\n\n${verbs}\nzazen VERB --help tells more; zazen --version tells the version.\n`
    + 'A first try: zazen run, or zazen run -- uname -a\n');
  return 0;
}
