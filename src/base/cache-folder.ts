// Where this program keeps what it could make again.

import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/** `$ZAZEN_CACHE_DIR`, else `zazen` in `$XDG_CACHE_HOME` or `~/.cache`. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  if (env['ZAZEN_CACHE_DIR']) return resolve(env['ZAZEN_CACHE_DIR']);
  return join(env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'zazen');
}

/**
 * Where Node keeps code that V8 has compiled, and TypeScript that it has stripped of its types: not in a folder that
 * all users of the machine share. One that cannot be written is as good as none.
 */
export function compileCacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  return env['NODE_COMPILE_CACHE'] || join(cacheFolder(env), 'node');
}

/**
 * Where compiled regions of guest code are kept for the next process: `$ZAZEN_REGION_STORE`, else a folder in the cache.
 * @returns undefined: nowhere, which is what `off` says
 */
export function regionStoreFolder(env: NodeJS.ProcessEnv = process.env): string | undefined {
  const chosen = env['ZAZEN_REGION_STORE'];
  if (chosen === 'off') return undefined;
  return chosen ? resolve(chosen) : join(cacheFolder(env), 'regions');
}
