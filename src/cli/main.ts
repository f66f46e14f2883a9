// Entry of the program `zazen`. Loads the rest only when Node's compile cache is on, which halves the time that takes.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../base/cache-folder.ts';

enableCompileCache(compileCacheFolder());
const [{ main }, { runProcess }, { services }] =
  await Promise.all([import('./front-door.ts'), import('./process.ts'), import('./services.ts')]);
await runProcess((io) => main(process.argv.slice(2), io, services));
