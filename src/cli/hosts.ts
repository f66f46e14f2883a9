// The hosts that run, for verbs that act on one: by default all sockets in the runtime directory are looked at.

import { resolve } from 'node:path';
import { UsageError, ZazenError } from '../base/errors.ts';
import { ControlClient } from '../daemon/client.ts';
import type { Command, CommandResults, ListedDomain } from '../daemon/command.ts';
import { unknownDomain } from '../daemon/protocol.ts';
import { findSockets, runtimeDirectory, socketPathFor } from '../daemon/runtime-directory.ts';
import type { Arguments, OptionRow } from './arguments.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';

export const HOST_OPTION: OptionRow = { value: 'HOST', help: 'PID of the host, or path of its control socket' };

/** A host that is asked what it has, and does not say so in this time, is left out. */
const ANSWER_MILLIS = 5000;

export type HostListing = CommandResults['list'] & { readonly client: ControlClient };

/** The host that `--host` names, else all that run, by PID. */
export async function findHosts({ values }: Arguments, io: Io): Promise<ControlClient[]> {
  const given = values['host'];
  if (given === undefined) return (await findSockets(io.env)).map(({ path }) => new ControlClient(path));
  if (given === '') throw new UsageError('--host takes a PID or the path of a control socket, not ""');
  const isPid = /^[1-9]\d{0,9}$/.test(given);
  return [new ControlClient(isPid ? socketPathFor(runtimeDirectory(io.env), Number(given)) : resolve(given))];
}

/** What each host has. Those that are just ending are left out, but one that was named must answer. */
export async function listHosts(args: Arguments, io: Io): Promise<HostListing[]> {
  const clients = await findHosts(args, io);
  const listings = await Promise.all(clients.map(async (client): Promise<HostListing[]> => {
    const late = AbortSignal.timeout(ANSWER_MILLIS);
    try {
      const listing = await client.send({ command: 'list' }, { signal: AbortSignal.any([io.signal, late]) });
      return [{ client, ...listing }];
    } catch (error) {
      io.signal.throwIfAborted();
      if (late.aborted) say(io, `the host at ${client.socketPath} does not answer`);
      else if (args.values['host'] !== undefined || !(error instanceof ZazenError)) throw error;
      return [];
    }
  }));
  return listings.flat();
}

/** The only host there is, for what names no domain. @throws ZazenError ZAZEN_HOST_NONE, ZAZEN_HOST_AMBIGUOUS */
export async function oneHost(args: Arguments, io: Io): Promise<ControlClient> {
  const clients = await findHosts(args, io);
  if (clients.length === 1) return clients[0]!;
  if (clients.length === 0) throw noHost();
  throw new ZazenError('ZAZEN_HOST_AMBIGUOUS', `${clients.length} hosts run`, {
    hint: 'choose one with --host; zazen list shows them',
  });
}

/**
 * The host that has a domain of this name or id.
 * @throws ZazenError ZAZEN_DOMAIN_UNKNOWN, ZAZEN_DOMAIN_AMBIGUOUS, ZAZEN_HOST_NONE
 */
export async function hostOf(domain: string, args: Arguments, io: Io): Promise<ControlClient> {
  const clients = await findHosts(args, io);
  if (clients.length === 0) throw noHost();
  // It says itself whether it has the domain.
  if (clients.length === 1) return clients[0]!;
  const listings = await listHosts(args, io);
  const having = listings.filter(({ domains }) =>
    domains.some(({ name, id }) => name === domain || String(id) === domain));
  if (having.length === 0) throw unknownDomain(domain);
  if (having.length === 1) return having[0]!.client;
  throw new ZazenError('ZAZEN_DOMAIN_AMBIGUOUS', `${having.length} hosts have a domain ${domain}`, {
    hint: `choose one with --host: ${having.map(({ host }) => host.pid).join(', ')}`,
  });
}

/** With the reason when it has stopped by itself. */
export function stateOf({ state, shutdownReason }: ListedDomain): string {
  return shutdownReason ?? state;
}

function noHost(): ZazenError {
  return new ZazenError('ZAZEN_HOST_NONE', 'no host runs', { hint: 'zazen daemon starts one, and so does zazen run' });
}

/** Sends a command about a domain to the host that has it. */
export async function sendTo<C extends Command & { domain: string }>(
  command: C, args: Arguments, io: Io,
): Promise<CommandResults[C['command']]> {
  const client = await hostOf(command.domain, args, io);
  return client.send(command, { signal: io.signal, log: (line) => say(io, line) });
}
