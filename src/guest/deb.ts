// Unpacking of Debian binary packages into a directory.
//
//   .deb: "!<arch>\n", then members, each starting on an even offset:
//   member header, 60 bytes: name 16 | mtime 12 | uid 6 | gid 6 | mode 8 | size 10 (decimal) | 0x60 0x0a
//   members: debian-binary, control.tar.*, data.tar.{xz,zst,gz} or data.tar
//
// A package comes from a signed archive, yet nothing in it can write outside the directory: names with `..` are
// refused, and no entry is written through a symbolic link.

import { chmod, link, lstat, mkdir, open, readFile, rm, symlink, utimes } from 'node:fs/promises';
import { basename, dirname, join, posix } from 'node:path';
import { createTarDecoder } from 'modern-tar';
import { ZazenError } from '../base/errors.ts';
import { decompressedStream } from './decompress.ts';

/** A file or directory of a package, as the package has it. */
export interface DebEntry {
  /** Without a slash at either end; empty for the root. */
  readonly path: string;
  readonly type: 'file' | 'directory' | 'link' | 'symlink' | 'other';
  /** Permissions, with set-user-ID and the like. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

/** How a tree differs from the package: where things lie, and what is kept of what a host's files cannot have. */
export interface DebLayout {
  /** Where a path of the package lies in the tree. */
  readonly place: (path: string) => string;
  /** Called for every entry, also for those that the filter leaves out. */
  readonly record: (entry: DebEntry, isUnpacked: boolean) => void;
}

const asItIs: DebLayout = { place: (path) => path, record: () => {} };

/** Unpacks the files of the package at `debPath` into `intoDir`, over what is there; `filter` picks by path. */
export async function unpackDeb(
  debPath: string,
  intoDir: string,
  filter: (path: string) => boolean = () => true,
  { place, record }: DebLayout = asItIs,
): Promise<void> {
  await readMember(debPath, 'data.tar', async (path, header, body) => {
    const isWanted = path !== '' && filter(path);
    record(entryOf(path, header), isWanted);
    if (!isWanted) return drain(body);
    const to = place(path);
    const target = join(intoDir, to);
    await makeParents(intoDir, to);
    return writeEntry(target, placed(header, path, place), body, intoDir);
  });
}

/** The small files by which dpkg knows a package: `control`, `md5sums`, `postinst` and so on, with their permissions. */
export async function readDebControl(debPath: string): Promise<Map<string, { data: Uint8Array; mode: number }>> {
  const files = new Map<string, { data: Uint8Array; mode: number }>();
  await readMember(debPath, 'control.tar', async (path, header, body) => {
    const chunks: Uint8Array[] = [];
    for await (const chunk of body) chunks.push(chunk);
    if (header.type === 'file' || header.type === undefined) {
      files.set(path, { data: Buffer.concat(chunks), mode: (header.mode ?? 0o644) & 0o777 });
    }
  });
  return files;
}

type Body = ReadableStream<Uint8Array>;

/** Gives `take` every entry of a tar archive in the package, which must read its body to the end. */
async function readMember(
  debPath: string, member: string, take: (path: string, header: TarHeader, body: Body) => Promise<void>,
): Promise<void> {
  try {
    const data = debMember(await readFile(debPath), member);
    const entries = decompressedStream(data).pipeThrough(createTarDecoder({ strict: true }));
    for await (const { header, body } of entries) await take(safePath(header.name), header, body);
  } catch (cause) {
    if (cause instanceof ZazenError) throw cause;
    const message = `${basename(debPath)}: cannot unpack the package: ${(cause as Error).message}`;
    throw new ZazenError('ZAZEN_GUEST_PACKAGE', message, { cause });
  }
}

type TarHeader = {
  name: string; type?: string | undefined; mode?: number | undefined; linkname?: string | undefined;
  uid?: number | undefined; gid?: number | undefined; mtime?: Date | undefined;
};

function entryOf(path: string, header: TarHeader): DebEntry {
  const { type = 'file', mode = type === 'directory' ? 0o755 : 0o644, uid = 0, gid = 0 } = header;
  const isKnown = type === 'file' || type === 'directory' || type === 'link' || type === 'symlink';
  return { path, type: isKnown ? type : 'other', mode: mode & 0o7777, uid, gid };
}

/** The header of an entry that may have moved, with links that lead where they did. */
function placed(header: TarHeader, path: string, place: (path: string) => string): TarHeader {
  const { type, linkname = '' } = header;
  if (type === 'link') return { ...header, linkname: place(safePath(linkname)) };
  if (type !== 'symlink' || place(path) === path || !linkname.startsWith('..')) return header;
  // A file that lies deeper now would find its relatives one level further away.
  return { ...header, linkname: posix.resolve('/', posix.dirname(path), linkname) };
}

async function writeEntry(
  target: string,
  header: TarHeader,
  body: ReadableStream<Uint8Array>,
  intoDir: string,
): Promise<void> {
  if (header.type === 'directory') {
    await drain(body);
    // A directory over an existing one, or over a link to one (/lib on merged systems), is left as it is.
    if (!(await lstat(target).catch(() => undefined))) await mkdir(target);
    return;
  }
  await rm(target, { force: true });
  if (header.type === 'symlink') {
    await drain(body);
    await symlink(header.linkname ?? '', target);
  } else if (header.type === 'link') {
    await drain(body);
    const source = safePath(header.linkname ?? '');
    await makeParents(intoDir, source);
    await link(join(intoDir, source), target);
  } else if (header.type === 'file' || header.type === undefined) {
    const file = await open(target, 'wx', 0o600);
    try {
      for await (const chunk of body) await file.writeFile(chunk);
    } finally {
      await file.close();
    }
    // Never set-user-ID on the host; owners are ours, and root's in the guest.
    await chmod(target, ((header.mode ?? 0o644) & 0o777) | 0o400);
    if (header.mtime !== undefined) await utimes(target, header.mtime, header.mtime);
  } else {
    await drain(body);
  }
}

/** Reads a body to its end: cancelling one of some size, as modern-tar 0.8.6 offers, can stall its decoder for good. */
async function drain(body: ReadableStream<Uint8Array>): Promise<void> {
  const reader = body.getReader();
  while (!(await reader.read()).done);
}

/** Makes the directories above `path`, and refuses one that is a link (it could lead anywhere). */
async function makeParents(root: string, path: string): Promise<void> {
  let dir = root;
  for (const part of dirname(path).split('/')) {
    if (part === '.') break;
    dir = join(dir, part);
    const info = await lstat(dir).catch(() => undefined);
    if (info === undefined) await mkdir(dir);
    else if (!info.isDirectory()) throw new Error(`"${path}" is below something that is not a directory`);
  }
}

function safePath(name: string): string {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..') || name.includes('\0')) throw new Error(`unsafe path "${name}"`);
  return parts.join('/');
}

/** The content of the first member of the ar archive `deb` whose name starts with `prefix`. */
export function debMember(deb: Uint8Array, prefix: string): Uint8Array {
  const view = Buffer.from(deb.buffer, deb.byteOffset, deb.byteLength);
  if (view.toString('latin1', 0, 8) !== '!<arch>\n') throw new Error('not a Debian package');
  for (let at = 8; at + 60 <= view.length; ) {
    const name = view.toString('latin1', at, at + 16).trimEnd();
    const digits = view.toString('latin1', at + 48, at + 58).trimEnd();
    const isHeader = /^[0-9]+$/.test(digits) && view.toString('latin1', at + 58, at + 60) === '`\n';
    if (!isHeader) throw new Error('the package is damaged');
    const end = at + 60 + Number(digits);
    if (end > view.length) throw new Error('the package is truncated');
    if (name.startsWith(prefix)) return deb.subarray(at + 60, end);
    at = end + (end & 1);
  }
  throw new Error(`the package has no ${prefix}`);
}
