// The program `zazen` with a fake host behind it, for tests that send signals to a real process. What its guest does is
// named by the first argument.

import { main } from './front-door.ts';
import { runProcess } from './process.ts';
import { FakeHosts } from './test-fake-host.ts';
import type { FakeHostOptions } from './test-fake-host.ts';
import { serveIfAsked } from './test-io.ts';

const BEHAVIOURS: Record<string, FakeHostOptions> = {
  /** A command that never ends. */
  hang: { guest: (guest) => { guest.begin(); guest.say('ready\n'); } },
  /** As `hang`, and the host cannot be closed. */
  stuck: {
    guest: (guest) => { guest.begin(); guest.say('ready\n'); },
    close: () => new Promise(() => { setInterval(() => {}, 1000); }),
  },
  /** A command that writes for ever. */
  yes: {
    guest: async (guest) => {
      guest.begin();
      for (;;) {
        guest.say('y\n'.repeat(1000));
        await new Promise((resolve) => { setImmediate(resolve); });
      }
    },
  },
  /** Ends at once, with input left unread. */
  quick: { guest: (guest) => guest.command('done\n', 3) },
  /** A shell: repeats what is typed. */
  shell: { guest: async (guest) => { guest.say('ready\n'); guest.say(await guest.typed('\x03')); } },
  bug: { guest: () => {}, create: async () => { throw new TypeError('our own bug'); } },
  /** As `hang`, and an error comes that is nobody's to catch. */
  strayBug: { guest: (guest) => { guest.begin(); guest.say('ready\n'); setImmediate(() => { throw new TypeError('our own bug'); }); } },
};

// A real host has workers, which keep the process alive.
setInterval(() => {}, 1000);
const [behaviour = '', ...words] = process.argv.slice(2);
const hosts = new FakeHosts(BEHAVIOURS[behaviour]!);
await runProcess(async (io) => {
  const none = (): Promise<never> => Promise.reject(new Error('none'));
  const services = { startHost: hosts.start, prepareGuest: none, buildRoot: none, serveControl: serveIfAsked };
  const status = await main(words, io, services);
  if (hosts.open > 0) io.stderr.write('a host was left open\n');
  return status;
});
