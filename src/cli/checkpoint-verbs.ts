// Verbs about checkpoints, which the host keeps in memory under numbers: `checkpoint`, `checkpoints`, `rollback`,
// `fork`, `checkpoint-destroy`.

import { UsageError } from '../base/errors.ts';
import type { CheckpointSummary, CommandOf } from '../daemon/command.ts';
import { parseCount } from './arguments.ts';
import type { Arguments, OptionRow } from './arguments.ts';
import { DOMAIN } from './domain-verbs.ts';
import { HOST_OPTION, findHosts, hostOf, oneHost, sendTo } from './hosts.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { formatColumns } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const CHECKPOINT_OPTION: OptionRow = { value: 'ID', short: 'k', help: 'number of the checkpoint' };
const MIB = 2 ** 20;

const checkpointVerb: Verb = {
  name: 'checkpoint',
  summary: 'Freeze the state of a guest in memory and let it run on; prints the number of it.',
  positionals: [DOMAIN],
  options: { host: HOST_OPTION, json: JSON_OPTION },
  async run(args, io) {
    const result = await sendTo({ command: 'checkpoint', domain: args.positionals[0]! }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    else {
      io.stdout.write(`${result.id}\n`);
      say(io, `the guest stood still for ${formatMicros(result.stats.downtimeMicros)}`);
    }
    return 0;
  },
};

const checkpointsVerb: Verb = {
  name: 'checkpoints',
  summary: 'Show the checkpoints that the host keeps: memory of the guest in MiB, downtime it took.',
  positionals: [{ ...DOMAIN, optional: true }],
  options: { host: HOST_OPTION, json: JSON_OPTION },
  async run(args, io) {
    const [domain] = args.positionals;
    const found: (CheckpointSummary & { socketPath: string })[] = [];
    for (const client of await findHosts(args, io)) {
      const command: CommandOf<'checkpoints'> = { command: 'checkpoints', ...(domain === undefined ? {} : { domain }) };
      const { checkpoints } = await client.send(command, { signal: io.signal });
      found.push(...checkpoints.map((checkpoint) => ({ ...checkpoint, socketPath: client.socketPath })));
    }
    if (args.switches.has('json')) printJson(io, { checkpoints: found });
    else io.stdout.write(describe(found));
    return 0;
  },
};

function describe(checkpoints: readonly CheckpointSummary[]): string {
  return formatColumns(['ID', 'DOMAIN', 'MEM', 'VCPUS', 'TIME', 'DOWNTIME'], checkpoints.map((it) => [
    String(it.id), it.domainName, (it.memoryBytes / MIB).toFixed(0), String(it.vcpus),
    new Date(it.createdMillis).toISOString(), formatMicros(it.stats.downtimeMicros),
  ]), new Set([0, 2, 3, 5]));
}

const rollbackVerb: Verb = {
  name: 'rollback',
  summary: 'Put a domain back to a checkpoint of itself, by default its latest.',
  positionals: [DOMAIN],
  options: { checkpoint: CHECKPOINT_OPTION, host: HOST_OPTION, json: JSON_OPTION },
  async run(args, io) {
    const checkpoint = parseCount('checkpoint', args.values['checkpoint']);
    const command: CommandOf<'rollback'> =
      { command: 'rollback', domain: args.positionals[0]!, ...(checkpoint === undefined ? {} : { checkpoint }) };
    const result = await sendTo(command, args, io);
    if (args.switches.has('json')) printJson(io, result);
    else {
      const { name, checkpoint: id, stats } = result;
      say(io, `${name} is at checkpoint ${id}; it took ${formatMicros(stats.totalMicros)}`);
    }
    return 0;
  },
};

const forkVerb: Verb = {
  name: 'fork',
  summary: 'Make domains that go on from where one is now or was at a checkpoint.',
  positionals: [{ ...DOMAIN, optional: true }],
  options: {
    checkpoint: CHECKPOINT_OPTION,
    count: { value: 'N', short: 'n', help: 'how many (default 1)' },
    name: { value: 'NAME', help: 'what to call it; several are NAME-1, NAME-2 and so on' },
    paused: { short: 'p', help: 'make them paused' },
    host: HOST_OPTION,
    json: JSON_OPTION,
  },
  run: forkDomain,
};

async function forkDomain(args: Arguments, io: Io): Promise<number> {
  const { values, switches, positionals: [domain] } = args;
  const checkpoint = parseCount('checkpoint', values['checkpoint']);
  if ((domain === undefined) === (checkpoint === undefined)) {
    throw new UsageError('give either the name of a domain or --checkpoint', 'see: zazen fork --help');
  }
  const count = parseCount('count', values['count']);
  const client = domain === undefined ? await oneHost(args, io) : await hostOf(domain, args, io);
  const result = await client.send({
    command: 'fork',
    ...(domain === undefined ? {} : { domain }),
    ...(checkpoint === undefined ? {} : { checkpoint }),
    ...(count === undefined ? {} : { count }),
    ...(values['name'] === undefined ? {} : { name: values['name'] }),
    ...(switches.has('paused') ? { paused: true } : {}),
  }, { signal: io.signal });
  if (switches.has('json')) printJson(io, result);
  else {
    io.stdout.write(result.domains.map(({ name }) => `${name}\n`).join(''));
    say(io, `it took ${formatMicros(result.forkMicros)}`);
  }
  return 0;
}

const checkpointDestroyVerb: Verb = {
  name: 'checkpoint-destroy',
  summary: 'Drop a checkpoint and the memory that only it holds; its forks live on.',
  positionals: [{ name: 'ID' }],
  options: { host: HOST_OPTION, json: JSON_OPTION },
  async run(args, io) {
    const checkpoint = Number(args.positionals[0]!);
    if (!/^[1-9]\d{0,14}$/.test(args.positionals[0]!)) {
      throw new UsageError(`"${args.positionals[0]!}" is no number of a checkpoint`, 'see: zazen checkpoints');
    }
    const client = await oneHost(args, io);
    const result = await client.send({ command: 'checkpoint-destroy', checkpoint }, { signal: io.signal });
    if (args.switches.has('json')) printJson(io, result);
    return 0;
  },
};

export const checkpointVerbs: readonly Verb[] =
  [checkpointVerb, checkpointsVerb, rollbackVerb, forkVerb, checkpointDestroyVerb];

/** A duration for people: `0.21 ms`. */
function formatMicros(micros: number): string {
  return micros < 1e6 ? `${(micros / 1000).toFixed(2)} ms` : `${(micros / 1e6).toFixed(2)} s`;
}
