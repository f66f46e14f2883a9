// A process of faults-save.test.ts, with a host and a guest of its own, that says on standard output what it does:
//
//   forever PATH KERNEL   the guest is the one in the image, if there is one; saves it to PATH until the process is
//                         killed: "ready", then "saved" each time
//   once PATH KERNEL      one save, which fails: "error CODE"; then "lives"

import { existsSync, readdirSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { ZazenError } from '../../src/base/errors.ts';
import { hostMemory } from '../host-memory.ts';
import { Host } from '../../src/host/index.ts';
import type { Domain } from '../../src/host/index.ts';
import { keeperRound } from '../keeper.ts';
import { until } from '../waiting.ts';

/** Of the guest. */
export const KEPT_PAGES = 6000;

async function main(how: string, path: string, kernel: string): Promise<void> {
  const host = await Host.start({ memory: hostMemory('384MiB'), pcpus: 1 });
  const domain = existsSync(path) ? await host.restore(path)
    : await host.create({ kernel, initrd: 'none', memory: '64MiB', name: 'kept' });
  await worksOn(domain, 2);
  if (how === 'forever') {
    for (console.log('ready'); ;) {
      await domain.save(path);
      console.log('saved');
      if (domain.state !== 'running') throw new Error(`the guest is ${domain.state}`);
    }
  }
  const error: unknown = await domain.save(path).then(() => undefined, (reason: unknown) => reason);
  console.log(error instanceof ZazenError ? `error ${error.code}` : `not refused: ${String(error)}`);
  await worksOn(domain, 2);
  const { problems } = await host.audit();
  const files = readdirSync(dirname(path)).filter(name => name.startsWith(`.${basename(path)}`));
  console.log([...problems, ...files].join(' ') || 'lives');
  await host.close();
}

/** The guest looks at all of its memory so many times. */
async function worksOn(domain: Domain, rounds: number): Promise<void> {
  const goal = domain.stats().instructionsRetired + (rounds + 1) * keeperRound(KEPT_PAGES);
  await until('the guest has looked at its memory', () =>
    domain.state !== 'running' || domain.stats().instructionsRetired > goal);
  if (domain.state !== 'running') throw new Error(`the guest is ${domain.state}`);
}

if (process.argv[1] === import.meta.filename) await main(...process.argv.slice(2) as [string, string, string]);
