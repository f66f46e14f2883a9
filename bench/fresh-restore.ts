// One restore in a process that has not done anything before, started as the program `zazen` starts, for the benchmark
// `restore`: fresh-restore.ts IMAGE SAVED-AT. Writes a line of JSON when the guest has spoken, and then another one: how
// fast a guest is when nothing has been compiled.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../src/base/cache-folder.ts';
import { importOwnQuickly } from '../src/base/own-imports.ts';
import { beginPcpuAhead } from '../src/host/pcpu-ahead.ts';

enableCompileCache(compileCacheFolder());
importOwnQuickly();
beginPcpuAhead();
const [{ Host }, { measureRestore, measureSpeed }] =
  await Promise.all([import('../src/host/index.ts'), import('./restored-guest.ts')]);
const [path, savedAt] = process.argv.slice(2);
await using host = await Host.start();
const { domain, sample } = await measureRestore(host, path!, JSON.parse(savedAt!), {});
process.stdout.write(`${JSON.stringify(sample)}\n`);
await domain.destroy();
process.stdout.write(JSON.stringify(await measureSpeed(host, await host.restore(path!, { paused: true }))));
