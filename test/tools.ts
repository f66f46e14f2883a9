// Host tools that tests compare with. A missing one skips the test with a message; under `ZAZEN_CI=1`, where all of
// them are installed, it fails the test instead, so that nothing goes unchecked there.

import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import type { TestContext } from 'node:test';

/** The path of the program `tool` found along `PATH`, or undefined. */
export function findTool(tool: string): string | undefined {
  for (const dir of (process.env['PATH'] ?? '').split(delimiter)) {
    const path = join(dir || '.', tool);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not in this one.
    }
  }
  return undefined;
}

/** True if `tool` is there. If not, `t` is skipped, or fails under ZAZEN_CI=1: `if (!needsTool(t, 'cpio')) return;` */
export function needsTool(t: TestContext, tool: string, debianPackage = tool): boolean {
  if (findTool(tool) !== undefined) return true;
  const message = `needs ${tool} (Debian package ${debianPackage})`;
  if (process.env['ZAZEN_CI'] === '1') throw new Error(message);
  t.skip(message);
  return false;
}
