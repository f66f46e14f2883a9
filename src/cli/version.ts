// The version of this package, from its manifest.

import { readFile } from 'node:fs/promises';

export async function zazenVersion(): Promise<string> {
  const manifest = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'));
  return String(manifest.version);
}
