// Entry of `npm start`. Loads the rest only when Node's compile cache is on, and files are found quickly: it takes
// a third of the time then. The thread of the host's first pCPU does the same meanwhile.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../base/cache-folder.ts';
import { importOwnQuickly } from '../base/own-imports.ts';
import { beginPcpuAhead } from '../host/pcpu-ahead.ts';

enableCompileCache(compileCacheFolder());
importOwnQuickly();
beginPcpuAhead();
const [{ start }, { runProcess }, { services }] =
  await Promise.all([import('./introduction.ts'), import('./process.ts'), import('./services.ts')]);
await runProcess((io) => start(process.argv.slice(2), io, services));
