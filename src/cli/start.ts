// Entry of `npm start`. Loads the rest only when Node's compile cache is on, and files are found quickly: it takes
// a third of the time then.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../base/cache-folder.ts';
import { importOwnQuickly } from '../base/own-imports.ts';

enableCompileCache(compileCacheFolder());
importOwnQuickly();
const [{ start }, { runProcess }, { services }] =
  await Promise.all([import('./introduction.ts'), import('./process.ts'), import('./services.ts')]);
await runProcess((io) => start(process.argv.slice(2), io, services));
