// `run --profile FILE`: where the guest's time went, in a file that viewers open.

import { writeFile } from 'node:fs/promises';
import { ZazenError } from '../base/errors.ts';
import type { Domain } from '../host/types.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';

/** Text for flame graphs; everything else is a .cpuprofile. */
const FOLDED = /\.(folded|txt)$/;

async function write(path: string, text: string): Promise<void> {
  try {
    await writeFile(path, text);
  } catch (error) {
    throw new ZazenError('ZAZEN_PROFILE_WRITE', `cannot write ${path}: ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
}

/**
 * Samples a domain from now on.
 * @returns ends it and writes the file; call it while the domain is there
 * @throws ZazenError ZAZEN_PROFILE_WRITE
 */
export async function profileTo(path: string, domain: Domain, io: Io): Promise<() => Promise<void>> {
  // What cannot be written is told before anything is measured.
  await write(path, '');
  const profiling = domain.profile();
  return async () => {
    const profile = await profiling.stop();
    await write(path, FOLDED.test(path) ? profile.toFolded() : JSON.stringify(profile.toCpuProfile()));
    say(io, `${profile.samples} samples of ${(profile.cpuMicros / 1e6).toFixed(2)} s are in ${path}`);
  };
}
