// What emitted code depends on beside the instructions that it was made of: a digest of the emitter's sources, which are the
// rooms up to `cpu` and nothing else, and of what it is told at run time. So nobody has to remember to raise a number.
// A release, where the sources are parts of larger files, has a file with their digest in place of them.

import { createHash } from 'node:crypto';
import type { Hash } from 'node:crypto';
import { closeSync, existsSync, fstatSync, openSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { AddressType } from '../abi/machine-memory.ts';
import { tuning } from '../base/tuning.ts';
import { hasFusedMadd } from '../wasm/relaxed-madd.ts';

/** The room of the emitter, and those that it may import from. */
export const EMITTER_ROOMS = ['base', 'abi', 'wasm', 'a64', 'memory', 'cpu'] as const;
const SOURCES = join(import.meta.dirname, '..');
/** In the folder of a release's JavaScript folders. */
export const DIGEST_FILE = 'emitter-digest';
const SECOND_MILLIS = 1000;

const isSource = (name: string): boolean => /\.[jt]s$/.test(name) && !/\.(test|bench|d)\.ts$|(^|\/)test-[^/]*$/.test(name);

/** Files that emitted code depends on, under the folder of all sources; the one that stands for them where there is one. */
export function emitterSources(folder = SOURCES): string[] {
  if (existsSync(join(folder, DIGEST_FILE))) return [DIGEST_FILE];
  return EMITTER_ROOMS.flatMap(room => readdirSync(join(folder, room), { recursive: true, encoding: 'utf8' })
    .filter(isSource).map(name => join(room, name))).toSorted();
}

/** @returns 32 bytes; undefined when the sources are not there, or have changed since this process may have read them */
export function emitterVersion(addressType: AddressType, folder = SOURCES): Uint8Array | undefined {
  const startMillis = Date.now() - process.uptime() * SECOND_MILLIS;
  const hash = createHash('sha256').update(JSON.stringify({ addressType, tuning, hasFusedMadd }));
  try {
    return addSources(hash, folder) < startMillis ? hash.digest() : undefined;
  } catch (error) {
    if (!(error instanceof Error) || !('code' in error)) throw error;
    return undefined;
  }
}

/** For the file of a release. */
export function emitterDigest(folder = SOURCES): string {
  const hash = createHash('sha256');
  addSources(hash, folder);
  return hash.digest('hex');
}

/** @returns when the latest of them was changed, in milliseconds of the wall clock */
function addSources(hash: Hash, folder: string): number {
  return Math.max(...emitterSources(folder).map((name) => {
    const fd = openSync(join(folder, name), 'r');
    try {
      const bytes = readFileSync(fd);
      hash.update(`\n${name} ${bytes.length}\n`).update(bytes);
      return fstatSync(fd).mtimeMs;
    } finally {
      closeSync(fd);
    }
  }));
}
