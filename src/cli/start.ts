// Entry of `npm start`. Loads the rest only when Node's compile cache is on, which halves the time that takes.

import { enableCompileCache } from 'node:module';
import { compileCacheFolder } from '../base/cache-folder.ts';

enableCompileCache(compileCacheFolder());
const [{ start }, { runProcess }, { services }] =
  await Promise.all([import('./introduction.ts'), import('./process.ts'), import('./services.ts')]);
await runProcess((io) => start(io, services));
