// `zazen daemon`: a host in the foreground, for domains that come and go over its control socket.

import { resolve } from 'node:path';
import { parseCount } from './arguments.ts';
import type { Arguments } from './arguments.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Services, Verb } from './verb.ts';
import { zazenVersion } from './version.ts';
import { removeOnExit } from './serve.ts';

export const daemonVerb: Verb = {
  name: 'daemon',
  summary: 'Start a host in the foreground, for zazen create; Ctrl-C ends it with its guests.',
  options: {
    memory: { value: 'SIZE', short: 'm', help: 'memory of the host, for all guests (default 2GiB)' },
    pcpus: { value: 'N', help: 'threads that run guests (default: one a processor, at most 4)' },
    socket: { value: 'PATH', help: 'control socket, instead of one in the runtime directory' },
    json: { help: `${JSON_OPTION.help}, once the host is ready` },
  },
  run: runDaemon,
};

async function runDaemon({ values, switches }: Arguments, io: Io, services: Services): Promise<number> {
  const pcpus = parseCount('pcpus', values['pcpus']);
  const log = (line: string): void => say(io, line);
  await using host = await services.startHost({
    log,
    ...(values['memory'] === undefined ? {} : { memory: values['memory'] }),
    ...(pcpus === undefined ? {} : { pcpus }),
  });
  io.signal.throwIfAborted();
  await using server = await services.serveControl(host, {
    env: io.env, log, version: await zazenVersion(),
    ...(values['socket'] === undefined ? {} : { socketPath: resolve(values['socket']) }),
  });
  using _ = removeOnExit(io, server.socketPath);
  if (switches.has('json')) printJson(io, { pid: process.pid, socketPath: server.socketPath });
  else say(io, `host ${process.pid} listens at ${server.socketPath}`);
  return await new Promise((_resolve, reject) => {
    const end = (): void => reject(io.signal.reason);
    io.signal.addEventListener('abort', end, { once: true });
    if (io.signal.aborted) end();
  });
}
