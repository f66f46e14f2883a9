// Entry of the program `zazen`. Loads the rest only when Node's compile cache is on, and files are found quickly: it takes
// a third of the time then.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../base/cache-folder.ts';
import { importOwnQuickly } from '../base/own-imports.ts';

enableCompileCache(compileCacheFolder());
importOwnQuickly();
const [{ main }, { runProcess }, { services }] =
  await Promise.all([import('./front-door.ts'), import('./process.ts'), import('./services.ts')]);
await runProcess((io) => main(process.argv.slice(2), io, services));
