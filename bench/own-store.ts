// A store of compiled regions that is empty at first and that nobody else has: so that what a benchmark measures depends on
// what it does itself and not on what this user has run before.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** For all hosts that `action` starts, in this process and in those that it starts. They may be nested. */
export async function withOwnStore<T>(action: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-bench-regions-'));
  const before = process.env['ZAZEN_REGION_STORE'];
  process.env['ZAZEN_REGION_STORE'] = folder;
  try {
    return await action(folder);
  } finally {
    if (before === undefined) delete process.env['ZAZEN_REGION_STORE'];
    else process.env['ZAZEN_REGION_STORE'] = before;
    // A process that a test has left behind may be writing still.
    rmSync(folder, { recursive: true, force: true, maxRetries: 10 });
  }
}
