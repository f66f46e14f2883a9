// Building the guest's initramfs: busybox with its applets, the kernel modules to load, an init, and any trees of files
// on top, such as unpacked Debian packages. The layout has /usr merged: bin, sbin and lib are links into usr, and files
// that a package puts under them go there, so that packages of any age fit together.

import { createHash } from 'node:crypto';
import { lstat, readFile, readdir, readlink } from 'node:fs/promises';
import { basename, join, posix, relative } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG, writeCpio } from './cpio.ts';
import type { CpioEntry } from './cpio.ts';
import { fetchGuest } from './fetch-guest.ts';
import type { GuestFiles, GuestFlavour } from './fetch-guest.ts';
import { commandPath, etcFiles, initScript, moduleListPath, programFiles } from './init-script.ts';
import { moduleName, modulesInLoadOrder, readModule } from './modules.ts';
import { openCache } from './packages.ts';
import type { FetchOptions } from './packages.ts';

export interface InitramfsOptions {
  /** A static arm64 busybox. */
  busyboxPath: string;
  /** Paths of kernel modules, in load order; .ko.xz and the like are unpacked. */
  modules?: readonly string[];
  /** Directories whose content is laid over the root, later ones over earlier ones. */
  trees?: readonly string[];
  /** The init script; default: the one of init-script.ts. */
  init?: string;
}

/** Modules of a Xen guest: disk, network, and what the Xen tools in a guest use. Others come as dependencies. */
export const xenModules: readonly string[] = [
  'xen-blkfront', 'xen-netfront', 'xenfs', 'xen-privcmd', 'xen-evtchn', 'xen-gntdev', 'xen-gntalloc',
];

/** Modules of a guest without Xen: what drives its virtio devices. */
export const virtioModules: readonly string[] = [
  'virtio_mmio', 'virtio_blk', 'virtio_net', 'virtio-rng', 'virtio_console', 'virtio_input', 'evdev',
];

/** By name of the module. A disk takes requests of 1 MiB; the driver's own limit is 128 KiB, for the sake of other hosts. */
const moduleParameters: Readonly<Record<string, readonly string[]>> = { xen_blkfront: ['max_indirect_segments=256'] };

const encoder = new TextEncoder();
const mergedDirs = /^(bin|sbin|lib)(?=\/|$)/;

/**
 * The uncompressed cpio archive. busybox's shell prefers its own applets to programs of the same name in `trees`
 * (`/usr/bin/xz` names the program); a tree with another `bin/sh`, such as Debian's dash, changes that. The same input
 * gives the same bytes. Errors: ZAZEN_INITRAMFS_INPUT and others.
 */
export async function buildInitramfs(options: InitramfsOptions): Promise<Uint8Array> {
  const { busyboxPath, modules = [], trees = [], init = initScript } = options;
  const files = new FileSet();
  for (const dir of ['dev', 'proc', 'sys', 'run', 'tmp', 'mnt', 'root', 'var', 'usr/bin', 'usr/sbin', 'usr/lib']) {
    files.directory(dir, dir === 'tmp' ? 0o1777 : dir === 'root' ? 0o700 : 0o755);
  }
  for (const dir of ['bin', 'sbin', 'lib']) files.link(dir, `usr/${dir}`);
  files.link('var/run', '/run');
  // The kernel opens the console before init can mount anything on /dev.
  files.add({ path: 'dev/console', mode: S_IFCHR | 0o600, device: [5, 1] });
  files.add({ path: 'dev/null', mode: S_IFCHR | 0o666, device: [1, 3] });
  for (const [path, text] of Object.entries(etcFiles)) files.file(path, encoder.encode(text));
  for (const [path, text] of Object.entries(programFiles)) files.file(path, encoder.encode(text), 0o755);

  const busybox = await readInput(busyboxPath);
  files.file('usr/bin/busybox', busybox, 0o755);
  // No modprobe: the kernel would run it for each feature that it lacks, and there is nothing more to be found.
  for (const applet of busyboxApplets(busybox)) {
    if (applet !== 'busybox' && applet !== 'modprobe') files.link(`usr/bin/${applet}`, 'busybox');
  }
  const modulePaths: string[] = [];
  for (const module of modules) {
    const path = `usr/lib/modules/${basename(module).replace(/\.(xz|gz|zst)$/, '')}`;
    files.file(path, await readModule(module));
    modulePaths.push(`/${[path, ...(moduleParameters[moduleName(path)] ?? [])].join(' ')}\n`);
  }
  files.file(moduleListPath, encoder.encode(modulePaths.join('')));
  for (const tree of trees) await addTree(files, tree);
  files.file('init', encoder.encode(init), 0o755);
  return writeCpio(files.sorted());
}

/**
 * An archive to append to an initramfs, that makes init run `command` (with `zazen.nonce` on the kernel command line)
 * however long it is.
 */
export function commandOverlay(command: string): Uint8Array {
  const dirs = ['etc', 'etc/zazen'].map((path): CpioEntry => ({ path, mode: S_IFDIR | 0o755 }));
  return writeCpio([...dirs, { path: commandPath, mode: S_IFREG | 0o600, data: encoder.encode(command) }]);
}

/**
 * Names of busybox's applets, from the table inside its binary: zero-terminated names in order, `[` and `[[` first.
 */
export function busyboxApplets(busybox: Uint8Array): string[] {
  const view = Buffer.from(busybox.buffer, busybox.byteOffset, busybox.byteLength);
  const start = view.indexOf('[\0[[\0', 0, 'latin1');
  const end = view.indexOf('\0\0', start, 'latin1');
  const names = start < 0 ? [] : view.toString('latin1', start, end).split('\0');
  if (!names.includes('sh') || names.some((name) => !/^[\w[.+-]{1,32}$/.test(name))) {
    throw new ZazenError('ZAZEN_INITRAMFS_INPUT', 'cannot find the applets of busybox: is it a busybox binary?');
  }
  return names;
}

/** The files of the archive by path; what is added later wins, and the directories above a file are made for it. */
class FileSet {
  readonly #entries = new Map<string, CpioEntry>();

  add(entry: CpioEntry): void {
    const parent = posix.dirname(entry.path);
    if (parent !== '.' && !this.#entries.has(parent)) this.directory(parent);
    this.#entries.set(entry.path, entry);
  }

  directory(path: string, permissions = 0o755): void {
    this.add({ path, mode: S_IFDIR | permissions });
  }

  file(path: string, data: Uint8Array, permissions = 0o644): void {
    this.add({ path, mode: S_IFREG | permissions, data });
  }

  link(path: string, target: string): void {
    this.add({ path, mode: S_IFLNK | 0o777, data: encoder.encode(target) });
  }

  has(path: string): boolean {
    return this.#entries.has(path);
  }

  /** By path, which puts a directory before what is in it. */
  sorted(): CpioEntry[] {
    return [...this.#entries.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  }
}

async function addTree(files: FileSet, root: string): Promise<void> {
  for (const path of await listTree(root)) {
    const source = join(root, path);
    const info = await lstat(source);
    const target = path.replace(mergedDirs, 'usr/$1');
    if (info.isSymbolicLink()) {
      const wanted = await readlink(source);
      // A merged-/usr package may carry the links that are made here anyway.
      if (target !== path && !path.includes('/')) continue;
      // A file that moved into usr would find its relatives one level further away.
      const isMoved = target !== path && wanted.startsWith('..');
      files.link(target, isMoved ? posix.resolve('/', posix.dirname(path), wanted) : wanted);
    } else if (info.isDirectory()) {
      if (!files.has(target)) files.directory(target, info.mode & 0o7777);
    } else if (info.isFile()) {
      files.file(target, await readInput(source), info.mode & 0o777);
    }
  }
}

async function listTree(root: string): Promise<string[]> {
  try {
    return (await readdir(root, { recursive: true })).toSorted();
  } catch (cause) {
    throw new ZazenError('ZAZEN_INITRAMFS_INPUT', `cannot read the directory ${root}`, { cause });
  }
}

async function readInput(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new ZazenError('ZAZEN_INITRAMFS_INPUT', `cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
}

export interface PrepareGuestOptions extends FetchOptions {
  flavour?: GuestFlavour;
  /** What its devices are; default: Xen's. */
  devices?: 'xen' | 'virtio';
  /** Directories to lay over the initramfs. */
  trees?: readonly string[];
  /** Names of further kernel modules to load; those built into the kernel, or unknown to it, are left out. */
  modules?: readonly string[];
}

export interface PreparedGuest extends GuestFiles {
  initramfsPath: string;
  /** Modules asked for that this kernel has no file for: built in, or not there. */
  missingModules: string[];
}

/**
 * Everything to boot a Debian guest with: fetched, built and cached as needed. The initramfs is built again when any
 * file that goes into it changes.
 */
export async function prepareGuest(options: PrepareGuestOptions = {}): Promise<PreparedGuest> {
  const { trees = [], modules = [], devices = 'xen' } = options;
  const guest = await fetchGuest(options);
  const cache = openCache(options);
  const names = [...(devices === 'xen' ? xenModules : virtioModules), ...modules];
  // What was fetched never changes under its version, wherever the cache is now; the caller's trees may change.
  const { kernelRelease, packages } = guest;
  const fetched = { place: relative(cache.dir, guest.busyboxPath), kernelRelease, packages };
  const hash = createHash('sha256').update(JSON.stringify([initScript, etcFiles, programFiles, names, moduleParameters, fetched, trees]));
  for (const path of trees) await hashStatus(hash, path);
  const key = hash.digest('hex').slice(0, 32);
  const listPath = await cache.file(`initramfs/${key}.modules.json`, async () => {
    const { paths, missing } = await modulesInLoadOrder(guest.modulesDir, names);
    return encoder.encode(JSON.stringify({ paths: paths.map((path) => relative(guest.modulesDir, path)), missing }));
  });
  const order: { paths: string[]; missing: string[] } = JSON.parse(await readFile(listPath, 'utf8'));
  const initramfsPath = await cache.file(`initramfs/${key}.cpio`, () => {
    options.log?.('building the initramfs');
    return buildInitramfs({ busyboxPath: guest.busyboxPath, modules: order.paths.map((path) => join(guest.modulesDir, path)), trees });
  });
  return { ...guest, initramfsPath, missingModules: order.missing };
}

/** Takes in what tells one state of the file or tree at `path` from another, without reading content. */
async function hashStatus(hash: { update(text: string): unknown }, path: string): Promise<void> {
  const info = await lstat(path).catch((cause: unknown) => {
    throw new ZazenError('ZAZEN_INITRAMFS_INPUT', `cannot read ${path}`, { cause });
  });
  hash.update(`${path} ${info.mode} ${info.size} ${info.mtimeMs} ${info.ino}\n`);
  if (!info.isDirectory()) return;
  for (const name of (await readdir(path)).toSorted()) await hashStatus(hash, join(path, name));
}
