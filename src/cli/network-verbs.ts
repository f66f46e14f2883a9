// Network cards of domains that run: `network-attach`, `network-detach`, `network-list`, and
// ports of the host that lead to them: `network-forward`.

import { UsageError } from '../base/errors.ts';
import { parsePortForward } from '../network/port-forward.ts';
import { DOMAIN } from './domain-verbs.ts';
import { HOST_OPTION, sendTo } from './hosts.ts';
import { say } from './io.ts';
import { formatColumns } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';
import { parseVif } from './vif-syntax.ts';

const COMMON = { host: HOST_OPTION, json: JSON_OPTION };

const attachVerb: Verb = {
  name: 'network-attach',
  summary: 'Give a running domain another network card; prints its number.',
  details: 'VIF is as in xl.cfg: mac=00:16:3e:12:34:56,bridge=NETWORK. forward=8080:80 forwards a port of the host.\n'
    + 'The words may be given apart. The guest has to configure the card, for instance by DHCP.',
  positionals: [DOMAIN, { name: 'VIF', optional: true, many: true }],
  options: COMMON,
  async run(args, io) {
    const [domain, ...words] = args.positionals as [string, ...string[]];
    const result = await sendTo({ command: 'network-attach', domain, nic: parseVif(words.join(',')) }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    else io.stdout.write(`${result.nic.handle}\n`);
    return 0;
  },
};

const detachVerb: Verb = {
  name: 'network-detach',
  summary: 'Take a network card from a running domain, by its number or its MAC address.',
  positionals: [DOMAIN, { name: 'NUMBER' }],
  options: COMMON,
  async run(args, io) {
    const [domain, which] = args.positionals as [string, string];
    const handle = /^\d{1,5}$/.test(which) ? Number(which) : await handleOf(which);
    const result = await sendTo({ command: 'network-detach', domain, handle }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    return 0;

    async function handleOf(mac: string): Promise<number> {
      const { nics } = await sendTo({ command: 'network-list', domain }, args, io);
      const nic = nics.find((one) => one.mac === mac.toLowerCase());
      if (nic !== undefined) return nic.handle;
      throw new UsageError(`${domain} has no network card ${mac}`, `see: zazen network-list ${domain}`);
    }
  },
};

const forwardVerb: Verb = {
  name: 'network-forward',
  summary: 'Forward a port of the host to a domain that runs; prints it with the host\'s port as it is.',
  details: 'FORWARD is [ADDRESS:]HOSTPORT:GUESTPORT[/udp], as with -p of run; host port 0 is any free one.\n'
    + 'The address is 127.0.0.1 unless given.',
  positionals: [DOMAIN, { name: 'FORWARD' }],
  options: {
    card: { value: 'NUMBER', help: 'by this card of the guest (default: its first)' },
    remove: { short: 'r', help: 'no longer forward it; connections that there are go on' },
    ...COMMON,
  },
  async run(args, io) {
    const [domain, forward] = args.positionals as [string, string];
    parsePortForward(forward);
    const card = args.values['card'];
    if (card !== undefined && !/^\d{1,5}$/.test(card)) throw new UsageError(`--card takes the number of a card, not "${card}"`);
    const result = await sendTo({
      command: 'network-forward', domain, forward, ...(card === undefined ? {} : { handle: Number(card) }),
      ...(args.switches.has('remove') ? { remove: true } : {}),
    }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    else if (result.forward !== undefined) io.stdout.write(`${result.forward}\n`);
    return 0;
  },
};

const listVerb: Verb = {
  name: 'network-list',
  summary: 'List the network cards of a domain.',
  positionals: [DOMAIN],
  options: COMMON,
  async run(args, io) {
    const result = await sendTo({ command: 'network-list', domain: args.positionals[0]! }, args, io);
    if (args.switches.has('json')) return printJson(io, result), 0;
    if (result.nics.length === 0) return say(io, 'it has no network cards'), 0;
    const rows = result.nics.map((nic) => [
      String(nic.handle), nic.network, nic.mac, nic.address, nic.isConnected ? 'yes' : 'no',
      String(nic.rxFrames), String(nic.rxBytes), String(nic.txFrames), String(nic.txBytes),
      String(nic.rxDropped + nic.rxErrors + nic.txErrors), [...nic.forwards, ...nic.missingForwards.map((forward) => `(${forward} missing)`)].join(' '),
    ]);
    const headings = ['', 'network', 'MAC', 'address', 'driver', 'rx', 'bytes', 'tx', 'bytes', 'errors', 'forwards'];
    io.stdout.write(formatColumns(headings, rows, new Set([0, 5, 6, 7, 8, 9])));
    return 0;
  },
};

export const networkVerbs: readonly Verb[] = [attachVerb, detachVerb, forwardVerb, listVerb];
