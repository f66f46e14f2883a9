// Where qemu-aarch64 is: named by the environment, installed on the PATH, or Debian's package unpacked into the cache
// directory, which needs no root and changes nothing else on the host.

import { execFile } from 'node:child_process';
import { access, constants, mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { ZazenError } from '../../src/base/errors.ts';

const run = promisify(execFile);

let found: Promise<string> | undefined;

/**
 * Path of an executable qemu-aarch64. Fetched at first use if the host has none; later calls are answered from memory.
 * @throws ZazenError ZAZEN_QEMU_USER_MISSING when there is none and none can be had
 */
export function qemuUserPath(): Promise<string> {
  found ??= findQemuUser();
  return found;
}

async function findQemuUser(): Promise<string> {
  const named = process.env['ZAZEN_QEMU_AARCH64'];
  if (named !== undefined && named !== '') {
    if (await isExecutable(named)) return named;
    throw missing(`ZAZEN_QEMU_AARCH64 names ${named}, which cannot be executed`);
  }
  for (const directory of (process.env['PATH'] ?? '').split(delimiter)) {
    for (const name of ['qemu-aarch64-static', 'qemu-aarch64']) {
      const path = join(directory, name);
      if (directory !== '' && await isExecutable(path)) return path;
    }
  }
  const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'zazen');
  const cached = join(cache, 'qemu-user', 'qemu-aarch64-static');
  if (!await isExecutable(cached)) await unpackQemuUser(cache, cached);
  return cached;
}

/** Downloads and unpacks beside the target, then renames: safe to interrupt, and to run twice at once. */
async function unpackQemuUser(cache: string, target: string): Promise<void> {
  await mkdir(cache, { recursive: true });
  const directory = await mkdtemp(join(cache, 'qemu-user-'));
  try {
    await run('apt-get', ['download', '-qq', 'qemu-user-static'], { cwd: directory });
    const archive = (await readdir(directory)).find((name) => name.endsWith('.deb'));
    if (archive === undefined) throw missing('apt-get download left no package');
    await run('dpkg-deb', ['-x', archive, '.'], { cwd: directory });
    await mkdir(join(target, '..'), { recursive: true });
    await rename(join(directory, 'usr', 'bin', 'qemu-aarch64-static'), target);
  } catch (cause) {
    throw cause instanceof ZazenError ? cause : missing('Debian\'s qemu-user-static could not be fetched', cause);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(() => true, () => false);
}

function missing(message: string, cause?: unknown): ZazenError {
  return new ZazenError('ZAZEN_QEMU_USER_MISSING', message, {
    hint: 'install Debian\'s qemu-user-static, or set ZAZEN_QEMU_AARCH64 to a qemu-aarch64 executable',
    cause,
  });
}
