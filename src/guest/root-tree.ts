// The files of a Debian system, put together from packages without root and without running anything of the guest's: the
// packages unpacked with /usr merged, and what the first maintainer scripts would have made: links, accounts, and the few
// files of /etc that no package has. Owners and special permissions, which the host's files cannot have, are in a list
// beside the tree.
//
//   <dir>/tree/            the system, as it lies under `/`
//   <dir>/manifest.json    packages, and who owns what

import { mkdir, readFile, readlink, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readDebControl, unpackDeb } from './deb.ts';
import type { DebEntry } from './deb.ts';
import { writeDpkgDatabase } from './dpkg-database.ts';
import type { DebianPackage } from './dpkg-database.ts';
import type { PackageEntry } from './package-index.ts';
import { needless } from './packages.ts';
import type { Archive } from './packages.ts';

/** Owner and permissions of a path, where they are not root's and those of the host's file. */
export interface Ownership {
  readonly path: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

export interface RootTree {
  readonly packages: readonly { readonly name: string; readonly version: string }[];
  readonly owners: readonly Ownership[];
}

const mergedDirs = /^(bin|sbin|lib)(?=\/|$)/;
const place = (path: string): string => path.replace(mergedDirs, 'usr/$1');

/** Kernel and init mount something there, or programs expect them, and no package has them. */
const directories = ['dev', 'proc', 'sys', 'run', 'tmp', 'mnt', 'root', 'etc', 'usr/bin', 'usr/sbin', 'usr/lib', 'var/log'];
/** Such as packages and programs name them; not made where a package has something of the name. */
const links: Readonly<Record<string, string>> = {
  'bin': 'usr/bin', 'sbin': 'usr/sbin', 'lib': 'usr/lib',
  'usr/bin/sh': 'dash', 'usr/bin/awk': 'mawk', 'usr/bin/pager': 'more', 'usr/bin/editor': 'vi',
  'usr/bin/which': 'which.debianutils',
  'etc/mtab': '../proc/self/mounts', 'etc/resolv.conf': '../run/resolv.conf', 'etc/os-release': '../usr/lib/os-release',
};
/** Where what a link leads to is not there, it is not made. */
const optionalLinks = new Set([
  'usr/bin/sh', 'usr/bin/awk', 'usr/bin/pager', 'usr/bin/editor', 'usr/bin/which', 'etc/os-release',
]);

/** The kernel runs these when the host asks the guest to stop; Zazen's init leaves its busybox in /run. */
const stopProgram = (applet: string): string => `#!/bin/sh
# Put here by Zazen; a package with an init system brings its own.
sync
mount -o remount,ro / 2>/dev/null
exec /run/zazen/busybox ${applet} -f
`;

const files: Readonly<Record<string, string>> = {
  'etc/hostname': 'zazen\n',
  'etc/hosts': '127.0.0.1 localhost\n::1 localhost\n',
  'etc/fstab': 'LABEL=zazen-root / ext4 errors=remount-ro 0 1\n',
};
export const ROOT_LABEL = 'zazen-root';
const programs: Readonly<Record<string, string>> = {
  'usr/sbin/poweroff': stopProgram('poweroff'), 'usr/sbin/reboot': stopProgram('reboot'),
};

/** Fills `dir` with the system that `packages` make up; they come in the order in which they are to be unpacked. */
export async function makeRootTree(
  archive: Pick<Archive, 'fetch'>, packages: readonly PackageEntry[], dir: string,
): Promise<RootTree> {
  const root = join(dir, 'tree');
  for (const path of directories) await mkdir(join(root, path), { recursive: true });
  const owners = new Map<string, Ownership>();
  const known: DebianPackage[] = [];
  await archive.fetch(packages, async (debPath) => {
    const entries: DebEntry[] = [];
    const record = (entry: DebEntry, isUnpacked: boolean): void => {
      entries.push(entry);
      if (isUnpacked) noteOwner(owners, entry);
    };
    await unpackDeb(debPath, root, (path) => !needless.test(path), { place, record });
    known.push({ control: await readDebControl(debPath), entries });
  });
  await makeLinks(root);
  for (const [path, text] of Object.entries(files)) await writeMissing(root, path, text, 0o644);
  for (const [path, text] of Object.entries(programs)) await writeMissing(root, path, text, 0o755);
  await makeAccounts(root, owners);
  await writeDpkgDatabase(root, known);
  const tree: RootTree = {
    packages: packages.map(({ name, version }) => ({ name, version })), owners: [...owners.values()],
  };
  await writeFile(join(dir, 'manifest.json'), JSON.stringify(tree));
  return tree;
}

/** A directory belongs to the first package that has it; dpkg, too, leaves one that is there as it is. */
function noteOwner(owners: Map<string, Ownership>, { path, type, mode, uid, gid }: DebEntry): void {
  const at = place(path);
  if (type === 'directory' && owners.has(at)) return;
  if (type === 'file' || type === 'directory') owners.set(at, { path: at, mode, uid, gid });
  else owners.delete(at);
}

async function makeLinks(root: string): Promise<void> {
  for (const [path, target] of Object.entries(links)) {
    const at = join(root, path);
    if (optionalLinks.has(path) && !(await isThere(join(at, '..', target)))) continue;
    await symlink(target, at).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
}

async function isThere(path: string): Promise<boolean> {
  return readFile(path).then(() => true, () => readlink(path).then(() => true, () => false));
}

async function writeMissing(root: string, path: string, text: string, mode: number): Promise<void> {
  await mkdir(join(root, path, '..'), { recursive: true });
  await writeFile(join(root, path), text, { mode, flag: 'wx' }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
}

/** What base-passwd and passwd make when they are configured; root has no password, which is for the console only. */
async function makeAccounts(root: string, owners: Map<string, Ownership>): Promise<void> {
  const master = async (name: string, otherwise: string): Promise<string> => {
    const text = await readFile(join(root, `usr/share/base-passwd/${name}.master`), 'utf8').catch(() => otherwise);
    return text.replaceAll(':*:', ':x:');
  };
  const passwd = await master('passwd', 'root:x:0:0:root:/root:/bin/sh\n');
  const group = await master('group', 'root:x:0:\nshadow:x:42:\n');
  const names = (text: string): string[] => text.split('\n').flatMap((line) => line.split(':')[0] || []);
  const shadow = names(passwd).map((name) => `${name}:${name === 'root' ? '' : '*'}:19000:0:99999:7:::\n`).join('');
  const gshadow = names(group).map((name) => `${name}:*::\n`).join('');
  await writeMissing(root, 'etc/passwd', passwd, 0o644);
  await writeMissing(root, 'etc/group', group, 0o644);
  for (const [path, text] of [['etc/shadow', shadow], ['etc/gshadow', gshadow]] as const) {
    await writeMissing(root, path, text, 0o640);
    owners.set(path, { path, mode: 0o640, uid: 0, gid: 42 });
  }
  owners.set('root', { path: 'root', mode: 0o700, uid: 0, gid: 0 });
}
