// Fetching what a guest boots from: one of Debian's arm64 kernels with its modules, and a static busybox.

import { copyFile, mkdir, readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { loadKernel } from './kernel.ts';
import { openArchive, openCache, releaseSuffix } from './packages.ts';
import type { FetchOptions } from './packages.ts';

/** Debian's kernel for virtual machines (small, the default), or the one for every arm64 machine. */
export type GuestFlavour = 'cloud' | 'generic';

export interface GuestFiles {
  /** A raw arm64 Image. */
  kernelPath: string;
  /** `lib/modules/RELEASE` of the kernel. */
  modulesDir: string;
  /** A static arm64 busybox. */
  busyboxPath: string;
  /** What `uname -r` says in the guest. */
  kernelRelease: string;
  /** Debian's names and versions of what was fetched. */
  packages: { name: string; version: string }[];
}

const wanted =
  /^(boot\/(vmlinuz|config)-|(usr\/)?lib\/modules\/|(usr\/)?bin\/busybox$|usr\/share\/doc\/[^/]+\/copyright)/;

const metaPackages: Record<GuestFlavour, string> = { cloud: 'linux-image-cloud-arm64', generic: 'linux-image-arm64' };

/**
 * The files of a Debian guest, fetched if they are not in the cache yet; with them there it takes a millisecond and
 * no network. Safe to interrupt and to run twice at once. Errors: ZazenError ZAZEN_GUEST_*.
 */
export async function fetchGuest(options: FetchOptions & { flavour?: GuestFlavour } = {}): Promise<GuestFiles> {
  const { flavour = 'cloud' } = options;
  const cache = openCache(options);
  const fill = async (into: string): Promise<void> => {
    const archive = await openArchive('arm64', cache, options);
    // The meta-package depends on the kernel of the day, whose name carries its release.
    const release = /^linux-image-(\d.*)$/;
    const alternatives = archive.index.require(metaPackages[flavour]).depends.flat();
    const kernelName = alternatives.map(({ name }) => name).find((name) => release.test(name));
    if (kernelName === undefined) {
      throw new ZazenError('ZAZEN_GUEST_PACKAGE_UNKNOWN', `${metaPackages[flavour]} names no kernel`);
    }
    const packages = [archive.index.require(kernelName), archive.index.require('busybox-static')];
    const tree = join(into, 'tree');
    await mkdir(tree);
    await archive.unpack(packages, tree, (path) => wanted.test(path));
    const described = packages.map(({ name, version }) => ({ name, version }));
    await arrange(into, tree, release.exec(kernelName)![1]!, described);
  };
  const dir = await cache.directory(`guests/${flavour}${releaseSuffix()}`, fill, options.refresh);
  const manifest = JSON.parse(await readFile(join(dir, 'manifest.json'), 'utf8'));
  return {
    kernelPath: join(dir, 'Image'),
    modulesDir: join(dir, manifest.modulesDir),
    busyboxPath: join(dir, 'busybox'),
    kernelRelease: manifest.kernelRelease,
    packages: manifest.packages,
  };
}

/** Lays the unpacked packages out so that a reader need not know how Debian does it. */
async function arrange(
  into: string,
  tree: string,
  kernelRelease: string,
  packages: GuestFiles['packages'],
): Promise<void> {
  const [vmlinuz] = (await readdir(join(tree, 'boot'))).filter((name) => name.startsWith('vmlinuz-'));
  const kernel = await loadKernel(join(tree, 'boot', vmlinuz ?? 'vmlinuz'));
  await writeFile(join(into, 'Image'), kernel.image);
  const busybox = await firstReadable([join(tree, 'bin/busybox'), join(tree, 'usr/bin/busybox')]);
  await copyFile(busybox, join(into, 'busybox'));
  const modules = await firstReadable([join(tree, 'lib/modules'), join(tree, 'usr/lib/modules')]);
  const modulesDir = `modules/${kernelRelease}`;
  await rename(modules, join(into, 'modules'));
  // What the kernel was built with, and the licences, stay beside it.
  await rename(join(tree, 'boot', `config-${kernelRelease}`), join(into, 'config'));
  await rename(join(tree, 'usr/share/doc'), join(into, 'doc'));
  await rm(tree, { recursive: true });
  await writeFile(join(into, 'manifest.json'), JSON.stringify({ kernelRelease, modulesDir, packages }, null, 2));
}

async function firstReadable(paths: string[]): Promise<string> {
  for (const path of paths) {
    const isThere = await readdir(path).then(() => true, (error: NodeJS.ErrnoException) => error.code === 'ENOTDIR');
    if (isThere) return path;
  }
  throw new ZazenError('ZAZEN_GUEST_PACKAGE', `the Debian packages have none of: ${paths.join(', ')}`);
}
