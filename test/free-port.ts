// A port of this machine that a test gives up and takes again: not one of those that the system hands out by itself, which
// anybody may have in between.

import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

const [FIRST, END] = [10_000, 32_000];

/** Of 127.0.0.1, TCP; nobody listens there. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(FIRST, END);
    const server = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!isFree) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}
