// Entry of the program `zazen`. Loads the rest only when Node's compile cache is on, and files are found quickly: it takes
// a third of the time then. Where there will be a host, its first pCPU's thread does the same meanwhile.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../base/cache-folder.ts';
import { importOwnQuickly } from '../base/own-imports.ts';
import { beginPcpuAhead } from '../host/pcpu-ahead.ts';

const VERBS_WITH_HOST = ['run', 'daemon'];

enableCompileCache(compileCacheFolder());
importOwnQuickly();
if (VERBS_WITH_HOST.includes(process.argv[2]!)) beginPcpuAhead();
const { main, runProcess, services } = await import('./program.ts');
await runProcess((io) => main(process.argv.slice(2), io, services));
