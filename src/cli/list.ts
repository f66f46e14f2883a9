// `zazen list`: the domains of the hosts that run.

import type { Arguments } from './arguments.ts';
import { HOST_OPTION, listHosts, stateOf } from './hosts.ts';
import type { HostListing } from './hosts.ts';
import type { Io } from './io.ts';
import { formatColumns } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const MIB = 2 ** 20;

export const listVerb: Verb = {
  name: 'list',
  summary: 'Show the domains of all hosts that run: memory in MiB, processor time in seconds.',
  options: { host: HOST_OPTION, json: JSON_OPTION },
  run: listDomains,
};

async function listDomains(args: Arguments, io: Io): Promise<number> {
  const listings = await listHosts(args, io);
  if (args.switches.has('json')) {
    printJson(io, {
      hosts: listings.map(({ client, host }) => ({ ...host, socketPath: client.socketPath })),
      domains: listings.flatMap(({ host, domains }) => domains.map((domain) => ({ ...domain, hostPid: host.pid }))),
    });
  } else io.stdout.write(describe(listings));
  return 0;
}

function describe(listings: readonly HostListing[]): string {
  const several = listings.length > 1;
  const headings = ['NAME', 'ID', 'MEM', 'VCPUS', 'STATE', 'TIME', ...(several ? ['HOST'] : [])];
  const rows = listings.flatMap(({ host, domains }) => domains.map((domain) => [
    domain.name, String(domain.id), (domain.memoryBytes / MIB).toFixed(0), String(domain.vcpus.length), stateOf(domain),
    (domain.runMillis / 1000).toFixed(1), ...(several ? [String(host.pid)] : []),
  ]));
  return formatColumns(headings, rows, new Set([1, 2, 3, 5, 6]));
}
