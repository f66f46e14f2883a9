// The control socket of a host that was started for something else.

import { rmSync } from 'node:fs';
import { ZazenError } from '../base/errors.ts';
import type { Host } from '../host/types.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import type { Services } from './verb.ts';
import { zazenVersion } from './version.ts';

/** Serves it until disposed of; where that cannot be, a line says so, and the guest runs all the same. */
export async function serveBeside(host: Host, io: Io, services: Services): Promise<AsyncDisposable | undefined> {
  try {
    const options = { env: io.env, version: await zazenVersion(), log: (line: string) => say(io, line) };
    const server = await services.serveControl(host, options);
    const removing = removeOnExit(io, server.socketPath);
    return {
      async [Symbol.asyncDispose]() {
        removing[Symbol.dispose]();
        await server.close();
      },
    };
  } catch (error) {
    if (!(error instanceof ZazenError)) throw error;
    say(io, `no control socket: ${error.message}`);
    return undefined;
  }
}

/** Removes the socket also where the process has no time to close it. */
export function removeOnExit(io: Io, socketPath: string): Disposable {
  return { [Symbol.dispose]: io.onExit(() => rmSync(socketPath, { force: true })) };
}
