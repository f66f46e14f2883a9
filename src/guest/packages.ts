// Fetching Debian packages: chosen from verified lists, downloaded, checked and unpacked into a tree in the cache.

import { createHash } from 'node:crypto';
import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { cacheFolder } from '../base/cache-folder.ts';
import { Cache } from './cache.ts';
import type { Log } from './cache.ts';
import { unpackDeb } from './deb.ts';
import { checkDigest } from './mirror-source.ts';
import type { PackageEntry, PackageIndex } from './package-index.ts';
import { choosePackageSource } from './package-source.ts';

export interface FetchOptions {
  /** Default: `$ZAZEN_CACHE_DIR`, else `zazen` in `$XDG_CACHE_HOME` or `~/.cache`. */
  cacheDir?: string | undefined;
  /** Gets one line for each step that takes time. */
  log?: Log | undefined;
  signal?: AbortSignal | undefined;
  /** Fetch again what the cache has, in the version that the archive has now. */
  refresh?: boolean | undefined;
}

export interface FetchPackagesOptions extends FetchOptions {
  /** Also everything the packages depend on, down to the C library; default false. */
  withDependencies?: boolean;
  /** Debian's name of it; default `arm64`, the guest's. */
  architecture?: string;
}

/** Debian's name of the architecture that this process runs on. */
export function hostArchitecture(): string {
  const names: Record<string, string> = { x64: 'amd64', arm: 'armhf', ia32: 'i386', ppc64: 'ppc64el' };
  return names[process.arch] ?? process.arch;
}

/** Left out as Debian's slim images do, and the tables of iconv: half of a small tree, and no program's concern. */
export const needless = /^usr\/(share\/(doc\/.*(?<!\/copyright)$|man\/|locale\/|info\/|lintian\/|bug\/)|lib\/[^/]+\/gconv\/)/;
/** Part of a tree's name in the cache; to be changed with the rules by which trees are made. */
const treeFormat = 2;

/**
 * Unpacks Debian packages into one tree, as they would lie under `/` (without documentation and translations;
 * maintainer scripts are not run), and gives its path. The tree belongs to the cache: read it, don't write to it. A
 * second call for the same packages is instant and stays off the network. Errors: ZazenError ZAZEN_GUEST_*.
 */
export async function fetchPackages(names: readonly string[], options: FetchPackagesOptions = {}): Promise<string> {
  const { withDependencies = false, architecture = 'arm64' } = options;
  const wanted = checkNames(names);
  checkNames([architecture]);
  const identity = JSON.stringify([treeFormat, wanted, withDependencies, architecture, releaseSuffix()]);
  const digest = createHash('sha256').update(identity).digest('hex').slice(0, 16);
  const key = `${wanted.join('+').slice(0, 60)}_${architecture}_${digest}`;
  const cache = openCache(options);
  const fill = async (into: string): Promise<void> => {
    const archive = await openArchive(architecture, cache, options);
    await archive.unpack(archive.index.resolve(wanted, withDependencies), into, (path) => !needless.test(path));
  };
  return cache.directory(`trees/${key}`, fill, options.refresh);
}

/** Names of packages, each once, in order; refuses what cannot be one. */
export function checkNames(names: readonly string[]): string[] {
  for (const name of names) {
    if (/^[a-z0-9][a-z0-9+.-]*$/.test(name)) continue;
    throw new ZazenError('ZAZEN_GUEST_PACKAGE_UNKNOWN', `"${name}" is no name of a Debian package or architecture`);
  }
  return [...new Set(names)].toSorted();
}

/** Keeps what comes from a Debian release that was asked for by name apart from the rest in the cache. */
export function releaseSuffix(): string {
  const suite = process.env['ZAZEN_DEBIAN_MIRROR'] ? process.env['ZAZEN_DEBIAN_SUITE'] : undefined;
  return suite ? `-${suite.replaceAll(/[^A-Za-z0-9.+-]/g, '_')}` : '';
}

export function openCache({ cacheDir, log, signal }: FetchOptions): Cache {
  return new Cache(cacheDir ?? cacheFolder(), log, signal);
}

export interface Archive {
  index: PackageIndex;
  /** Downloads and checks the packages, and unpacks them, in their order, into `intoDir`. */
  unpack(entries: readonly PackageEntry[], intoDir: string, filter?: (path: string) => boolean): Promise<void>;
  /** Downloads and checks the packages, and gives `take` the path of each in turn, where it is until that returns. */
  fetch(entries: readonly PackageEntry[], take: (debPath: string, entry: PackageEntry) => Promise<void>): Promise<void>;
}

/** What the package lists of an architecture take, rounded up. */
const LISTS_BYTES = 64 * 2 ** 20;
const listsFreshMillis = 60 * 60 * 1000;

/** The Debian archive for one architecture, with package lists no older than an hour. */
export async function openArchive(architecture: string, cache: Cache, options: FetchOptions): Promise<Archive> {
  const { log = () => {}, signal } = options;
  const source = await choosePackageSource(architecture, signal);
  const dir = cache.path('index', `${source.name}-${architecture}`);
  const stamp = join(dir, 'updated');
  const index = await cache.withLock(`index-${architecture}`, async () => {
    const updated = options.refresh ? undefined : await stat(stamp).catch(() => undefined);
    if (updated === undefined || Math.abs(Date.now() - updated.mtimeMs) > listsFreshMillis) {
      await rm(stamp, { force: true });
      await cache.requireRoom(LISTS_BYTES);
      await mkdir(dir, { recursive: true });
      await source.refresh(dir, log);
      await writeFile(stamp, '');
    }
    return source.readIndex(dir);
  });
  const archive: Archive = {
    index,
    unpack: (entries, intoDir, filter) => archive.fetch(entries, (path) => unpackDeb(path, intoDir, filter)),
    async fetch(entries, take) {
      for (const { name, version, sizeBytes } of entries) {
        log(`fetching ${name} ${version} (${(sizeBytes / 1e6).toFixed(1)} MB)`);
      }
      await cache.temporary(async (work) => {
        await cache.requireRoom(entries.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
        const paths = await source.download(dir, entries, work).catch(async (error: unknown) => {
          // The archive may have moved on since the lists were read: the next attempt is to read them again.
          await rm(stamp, { force: true });
          throw error;
        });
        for (const [i, path] of paths.entries()) {
          signal?.throwIfAborted();
          const entry = entries[i]!;
          checkDigest(await readDownloaded(path), entry.sha256, entry.name);
          await take(path, entry);
          await rm(path);
        }
      });
    },
  };
  return archive;
}

async function readDownloaded(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new ZazenError('ZAZEN_GUEST_DOWNLOAD', `the download of ${path} left no file`, { cause });
  }
}
