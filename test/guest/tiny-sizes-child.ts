// A process of tiny-sizes.test.ts with sizes of its own (ZAZEN_TUNING): goes on with the guest of an image, has it run commands, and
// prints what came of them.
//
//   node tiny-sizes-child.ts IMAGE COMMANDS    a list, as JSON

import { Host } from '../../src/host/index.ts';
import { hostMemory } from '../host-memory.ts';
import { limited } from './guests.ts';
import { Shell } from './shell.ts';

/** What the child prints, as one line of JSON. */
export interface ChildReport {
  readonly outputs: readonly string[];
  readonly problems: readonly string[];
  /** Of the guest since it was restored. */
  readonly instructions: number;
  readonly tlbMisses: number;
  /** Decoded pages that there is room for. */
  readonly codePages: number;
}

const [, , path, commands] = process.argv;
if (path !== undefined && commands !== undefined) {
  await using host = await Host.start({ memory: hostMemory('1GiB') });
  const domain = await host.restore(path);
  const before = domain.stats();
  const outputs: string[] = [];
  await limited(domain, async () => {
    const shell = new Shell(domain, 'tiny');
    for (const command of JSON.parse(commands) as string[]) outputs.push(await shell.ask(command));
  });
  const after = domain.stats();
  const { pages } = host.stats().codeCache;
  await domain.destroy();
  const report: ChildReport = {
    outputs, problems: (await host.audit({ readClean: true })).problems, codePages: pages,
    instructions: after.instructionsRetired - before.instructionsRetired, tlbMisses: after.tlbMisses - before.tlbMisses,
  };
  console.log(JSON.stringify(report));
}
