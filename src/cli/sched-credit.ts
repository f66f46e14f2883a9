// `zazen sched-credit`: what domains get of the pCPUs.

import { UsageError } from '../base/errors.ts';
import type { CpuShareSummary } from '../daemon/command.ts';
import { HOST_OPTION, listHosts, sendTo } from './hosts.ts';
import { formatColumns } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

function parseNumber(text: string | undefined, what: string): number | undefined {
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new UsageError(`${what} takes a number, not "${text}"`, 'see: zazen sched-credit --help');
}

export const schedCreditVerb: Verb = {
  name: 'sched-credit',
  summary: 'Show or set what domains get of the pCPUs: weight and cap.',
  details: 'Domains that want the pCPUs at the same time get them in proportion to their weights, 256 unless it is said\n'
    + 'otherwise. The cap is in percent of one pCPU, for all vCPUs of the domain together; 0 is none. Without -w and -c,\n'
    + 'they are shown: of the domain, or of all. In an xl.cfg they are cpu_weight and cap.',
  options: {
    domain: { value: 'DOMAIN', short: 'd', help: 'the domain' },
    weight: { value: 'WEIGHT', short: 'w', help: '1 to 65535' },
    cap: { value: 'PERCENT', short: 'c', help: '0 to 6400' },
    host: HOST_OPTION, json: JSON_OPTION,
  },
  async run(args, io) {
    const { domain } = args.values;
    const weight = parseNumber(args.values['weight'], '--weight');
    const cap = parseNumber(args.values['cap'], '--cap');
    if (domain === undefined && (weight !== undefined || cap !== undefined)) {
      throw new UsageError('a weight or cap is set for one domain', 'name it with -d DOMAIN');
    }
    const shares = domain === undefined
      ? (await listHosts(args, io)).flatMap(({ domains }) => domains)
        .map(({ id, name, cpuWeight, cpuCapPercent }): CpuShareSummary => ({ id, name, weight: cpuWeight, cap: cpuCapPercent }))
      : [await sendTo({
        command: 'sched-credit', domain, ...(weight === undefined ? {} : { weight }), ...(cap === undefined ? {} : { cap }),
      }, args, io)];
    if (args.switches.has('json')) printJson(io, { domains: shares });
    else {
      const rows = shares.map((it) => [it.name, String(it.id), String(it.weight), String(it.cap)]);
      io.stdout.write(formatColumns(['Name', 'ID', 'Weight', 'Cap'], rows, new Set([1, 2, 3])));
    }
    return 0;
  },
};
