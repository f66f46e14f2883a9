// Where qemu-aarch64 is: named by the environment, installed on the PATH, or Debian's package unpacked into the cache
// directory, which needs no root and changes nothing else on the host.

import { access, constants } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { ZazenError } from '../../src/base/errors.ts';
import { hostArchitecture, openArchive, openCache } from '../../src/guest/packages.ts';

/** Where the package has the executable, and its tree in the cache. */
const EXECUTABLE = 'usr/bin/qemu-aarch64-static';

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
  return fetchQemuUser();
}

/** Of the package's emulators, each some megabytes, only ours is kept. */
async function fetchQemuUser(): Promise<string> {
  const cache = openCache({});
  try {
    const tree = await cache.directory('trees/qemu-aarch64-static', async (into) => {
      const archive = await openArchive(hostArchitecture(), cache, {});
      const packages = archive.index.resolve(['qemu-user-static'], false);
      await archive.unpack(packages, into, (path) => path === EXECUTABLE);
    });
    const path = join(tree, EXECUTABLE);
    if (await isExecutable(path)) return path;
  } catch (cause) {
    throw missing('Debian\'s qemu-user-static could not be fetched', cause);
  }
  throw missing('Debian\'s qemu-user-static holds no qemu-aarch64-static');
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
