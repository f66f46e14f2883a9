// What emitted code depends on beside the instructions that it was made of: a digest of the emitter's sources, which are the
// rooms up to `cpu` and nothing else, and of what it is told at run time. So nobody has to remember to raise a number.

import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { AddressType } from '../abi/machine-memory.ts';
import { tuning } from '../base/tuning.ts';
import { hasFusedMadd } from '../wasm/relaxed-madd.ts';

/** The room of the emitter, and those that it may import from. */
export const EMITTER_ROOMS = ['base', 'abi', 'wasm', 'a64', 'memory', 'cpu'] as const;
const SOURCES = join(import.meta.dirname, '..');
const SECOND_MILLIS = 1000;

const isSource = (name: string): boolean => /\.[jt]s$/.test(name) && !/\.(test|bench|d)\.ts$|(^|\/)test-[^/]*$/.test(name);

/** Files that emitted code depends on, under the folder of all sources. */
export function emitterSources(folder = SOURCES): string[] {
  return EMITTER_ROOMS.flatMap(room => readdirSync(join(folder, room), { recursive: true, encoding: 'utf8' })
    .filter(isSource).map(name => join(room, name))).toSorted();
}

/** @returns 32 bytes; undefined when the sources are not there, or have changed since this process may have read them */
export function emitterVersion(addressType: AddressType, folder = SOURCES): Uint8Array | undefined {
  const startMillis = Date.now() - process.uptime() * SECOND_MILLIS;
  const hash = createHash('sha256').update(JSON.stringify({ addressType, tuning, hasFusedMadd }));
  try {
    for (const name of emitterSources(folder)) {
      const fd = openSync(join(folder, name), 'r');
      try {
        if (fstatSync(fd).mtimeMs > startMillis) return undefined;
        const bytes = readFileSync(fd);
        hash.update(`\n${name} ${bytes.length}\n`).update(bytes);
      } finally {
        closeSync(fd);
      }
    }
  } catch (error) {
    if (!(error instanceof Error) || !('code' in error)) throw error;
    return undefined;
  }
  return hash.digest();
}
