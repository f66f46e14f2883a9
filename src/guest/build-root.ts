// `zazen guest build`: a Debian system on an ext4 file system in a file, from a list of packages, without root.

import { createHash, randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { access, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { exists } from './cache.ts';
import { alreadyThere, findE2fsprogs, makeExt4 } from './ext4-image.ts';
import { checkNames, openArchive, openCache, releaseSuffix } from './packages.ts';
import type { FetchOptions } from './packages.ts';
import { ROOT_LABEL, makeRootTree } from './root-tree.ts';
import type { RootTree } from './root-tree.ts';

export interface BuildRootOptions extends FetchOptions {
  /** Packages beside those without which there is no Debian; what they depend on comes along. */
  readonly packages?: readonly string[];
  /** Of the file system; default 2 GiB. The file is sparse. */
  readonly sizeBytes?: number | undefined;
}

export interface BuiltRoot {
  readonly path: string;
  readonly sizeBytes: number;
  /** All that is in it. */
  readonly packages: readonly { readonly name: string; readonly version: string }[];
}

const DEFAULT_SIZE_BYTES = 2 ** 31;
/** Less than this is no place for an ext4 with a journal and a system in it. */
const SIZE_MIN_BYTES = 64 * 2 ** 20;
/** Part of a tree's name in the cache; to be changed with the rules by which trees are made. */
const TREE_FORMAT = 2;
const MERGED = 'usr-is-merged';

/**
 * Makes the file `path`: a raw disk with one ext4 file system and no partitions, labelled `zazen-root`, for
 * `root=/dev/xvda`. It has that name only when it is complete. The unpacked packages are kept in the cache: a second disk
 * of the same ones takes seconds and no network. Errors: ZazenError ZAZEN_GUEST_*, ZAZEN_ROOT_*, ZAZEN_CACHE;
 * `signal.reason`.
 */
export async function buildRoot(path: string, options: BuildRootOptions = {}): Promise<BuiltRoot> {
  const { packages = [], sizeBytes = DEFAULT_SIZE_BYTES, log = () => {}, signal } = options;
  const names = checkNames(packages);
  const target = resolve(path);
  if (!(sizeBytes >= SIZE_MIN_BYTES)) {
    throw new ZazenError('ZAZEN_ROOT_SIZE', `${sizeBytes} bytes are no size for a root file system`,
      { hint: 'give 64MiB or more' });
  }
  // What is missing should not have to wait for a download.
  await findE2fsprogs();
  if (await exists(target)) throw alreadyThere(path);
  await access(dirname(target), constants.W_OK).catch((cause: Error) => {
    throw new ZazenError('ZAZEN_ROOT_IMAGE', `cannot make ${path}: ${cause.message}`, { cause, hint: 'choose a folder that can be written to' });
  });
  const dir = await rootTree(names, options);
  const { packages: contents, owners }: RootTree = JSON.parse(await readFile(join(dir, 'manifest.json'), 'utf8'));
  signal?.throwIfAborted();
  log(`making an ext4 file system of ${Math.floor(sizeBytes / 2 ** 20)} MiB with ${contents.length} packages`);
  const making = join(dirname(target), `.${basename(target)}.${randomBytes(4).toString('hex')}`);
  try {
    await makeExt4(join(dir, 'tree'), making, { label: ROOT_LABEL, sizeBytes, owners, signal });
    await rename(making, target);
  } finally {
    await rm(making, { force: true });
  }
  return { path: target, sizeBytes, packages: contents };
}

async function rootTree(names: readonly string[], options: BuildRootOptions): Promise<string> {
  const cache = openCache(options);
  const identity = JSON.stringify([TREE_FORMAT, names, releaseSuffix()]);
  const digest = createHash('sha256').update(identity).digest('hex').slice(0, 16);
  return cache.directory(`roots/${['required', ...names].join('+').slice(0, 60)}_${digest}`, async (into) => {
    const archive = await openArchive('arm64', cache, options);
    const { index } = archive;
    // The tree is made merged; the package that would do it at leisure brings all of perl along.
    const merged = index.find(MERGED) === undefined ? [] : [MERGED];
    await makeRootTree(archive, index.resolve([...index.required(), ...merged, ...names], true), into);
  }, options.refresh);
}
