// The version of this package, from its manifest.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

export async function zazenVersion(): Promise<string> {
  const manifest = JSON.parse(await readFile(join(import.meta.dirname, '../../package.json'), 'utf8'));
  return String(manifest.version);
}
