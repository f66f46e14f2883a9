// Disks of domains that run: `block-attach`, `block-detach`, `block-list`, `block-resize`.

import { DOMAIN } from './domain-verbs.ts';
import { parseDisk } from './disk-syntax.ts';
import { HOST_OPTION, sendTo } from './hosts.ts';
import { say } from './io.ts';
import { formatColumns } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const COMMON = { host: HOST_OPTION, json: JSON_OPTION };
const VDEV = { name: 'VDEV' };
const MIB = 2 ** 20;

const attachVerb: Verb = {
  name: 'block-attach',
  summary: 'Give a running domain another disk; prints what the guest calls it.',
  details: 'DISK is PATH,FORMAT,VDEV,ACCESS as in xl.cfg: web.img,raw,xvdb,rw. All but the path may be left out.',
  positionals: [DOMAIN, { name: 'DISK' }],
  options: COMMON,
  async run(args, io) {
    const [domain, disk] = args.positionals as [string, string];
    const result = await sendTo({ command: 'block-attach', domain, disk: parseDisk(disk, process.cwd()) }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    else io.stdout.write(`${result.target}\n`);
    return 0;
  },
};

const detachVerb: Verb = {
  name: 'block-detach',
  summary: 'Take a disk from a running domain, once the guest lets go of it.',
  positionals: [DOMAIN, VDEV],
  options: { force: { short: 'f', help: 'take it even if the guest does not let go' }, ...COMMON },
  async run(args, io) {
    const [domain, target] = args.positionals as [string, string];
    const force = args.switches.has('force');
    const result = await sendTo({ command: 'block-detach', domain, target, ...(force ? { force } : {}) }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    return 0;
  },
};

const resizeVerb: Verb = {
  name: 'block-resize',
  summary: 'Give a disk of a running domain another size; the guest hears of it.',
  positionals: [DOMAIN, VDEV, { name: 'SIZE' }],
  options: COMMON,
  async run(args, io) {
    const [domain, target, size] = args.positionals as [string, string, string];
    const result = await sendTo({ command: 'block-resize', domain, target, size }, args, io);
    if (args.switches.has('json')) printJson(io, result);
    return 0;
  },
};

const listVerb: Verb = {
  name: 'block-list',
  summary: 'List the disks of a domain.',
  positionals: [DOMAIN],
  options: COMMON,
  async run(args, io) {
    const result = await sendTo({ command: 'block-list', domain: args.positionals[0]! }, args, io);
    if (args.switches.has('json')) return printJson(io, result), 0;
    if (result.disks.length === 0) return say(io, 'it has no disks'), 0;
    const rows = result.disks.map((disk) => [
      disk.target, String(disk.device), disk.readOnly ? 'ro' : disk.lasting ? 'rw' : 'rw, own', `${Math.ceil(disk.sizeBytes / MIB)}M`,
      String(disk.reads), String(disk.writes), String(disk.flushes), disk.discard ? String(disk.discards) : 'off', String(disk.failures),
      disk.path,
    ]);
    const headings = ['vdev', 'number', 'access', 'size', 'reads', 'writes', 'flushes', 'discards', 'errors', 'path'];
    io.stdout.write(formatColumns(headings, rows, new Set([1, 3, 4, 5, 6, 7, 8])));
    return 0;
  },
};

export const blockVerbs: readonly Verb[] = [attachVerb, detachVerb, listVerb, resizeVerb];
