// `zazen store ls|read|write|rm|watch`: the store that guests and toolstack share.

import type { Positional } from './arguments.ts';
import { HOST_OPTION, oneHost } from './hosts.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const PATH: Positional = { name: 'PATH' };
const OPTIONS = { host: HOST_OPTION, json: JSON_OPTION };

export const storeVerbs: readonly Verb[] = [
  {
    name: 'store ls', summary: 'Show the names below a path of the store; a domain has /local/domain/ID.',
    positionals: [PATH], options: OPTIONS,
    async run(args, io) {
      const client = await oneHost(args, io);
      const result = await client.send({ command: 'store-ls', path: args.positionals[0]! }, { signal: io.signal });
      if (args.switches.has('json')) printJson(io, result);
      else io.stdout.write(result.names.map((name) => `${name}\n`).join(''));
      return 0;
    },
  },
  {
    name: 'store read', summary: 'Show the value of a path in the store.',
    positionals: [PATH], options: OPTIONS,
    async run(args, io) {
      const client = await oneHost(args, io);
      const result = await client.send({ command: 'store-read', path: args.positionals[0]! }, { signal: io.signal });
      if (args.switches.has('json')) printJson(io, result);
      else io.stdout.write('value' in result ? `${result.value}\n` : Buffer.from(result.valueBase64, 'base64'));
      return 0;
    },
  },
  {
    name: 'store write', summary: 'Write a value to a path of the store.',
    positionals: [PATH, { name: 'VALUE' }], options: { host: HOST_OPTION },
    async run(args, io) {
      const [path, value] = args.positionals as [string, string];
      const client = await oneHost(args, io);
      await client.send({ command: 'store-write', path, value }, { signal: io.signal });
      return 0;
    },
  },
  {
    name: 'store rm', summary: 'Remove a path of the store with all below it.',
    positionals: [PATH], options: { host: HOST_OPTION },
    async run(args, io) {
      const client = await oneHost(args, io);
      await client.send({ command: 'store-rm', path: args.positionals[0]! }, { signal: io.signal });
      return 0;
    },
  },
  {
    name: 'store watch', summary: 'Follow changes at and below a path of the store; the path itself comes first.',
    positionals: [PATH],
    options: { host: HOST_OPTION, json: { help: 'print each change as a line of JSON' } },
    async run(args, io) {
      const client = await oneHost(args, io);
      const changes = client.follow({ command: 'store-watch', path: args.positionals[0]! }, { signal: io.signal });
      for await (const change of changes) {
        io.stdout.write(`${args.switches.has('json') ? JSON.stringify(change) : change.path}\n`);
      }
      return 0;
    },
  },
];
