// Unpacking of Debian binary packages into a directory.
//
//   .deb: "!<arch>\n", then members, each starting on an even offset:
//   member header, 60 bytes: name 16 | mtime 12 | uid 6 | gid 6 | mode 8 | size 10 (decimal) | 0x60 0x0a
//   members: debian-binary, control.tar.*, data.tar.{xz,zst,gz} or data.tar
//
// A package comes from a signed archive, yet nothing in it can write outside the directory: names with `..` are
// refused, and no entry is written through a symbolic link.

import { chmod, link, lstat, mkdir, open, readFile, rm, symlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { createTarDecoder } from 'modern-tar';
import { ZazenError } from '../base/errors.ts';
import { decompressedStream } from './decompress.ts';

/** Unpacks the files of the package at `debPath` into `intoDir`, over what is there; `filter` picks by path. */
export async function unpackDeb(
  debPath: string,
  intoDir: string,
  filter: (path: string) => boolean = () => true,
): Promise<void> {
  try {
    const data = debMember(await readFile(debPath), 'data.tar');
    const entries = decompressedStream(data).pipeThrough(createTarDecoder({ strict: true }));
    for await (const { header, body } of entries) {
      const path = safePath(header.name);
      if (path === '' || !filter(path)) {
        await drain(body);
        continue;
      }
      const target = join(intoDir, path);
      await makeParents(intoDir, path);
      await writeEntry(target, header, body, intoDir);
    }
  } catch (cause) {
    if (cause instanceof ZazenError) throw cause;
    const message = `${basename(debPath)}: cannot unpack the package: ${(cause as Error).message}`;
    throw new ZazenError('ZAZEN_GUEST_PACKAGE', message, { cause });
  }
}

type TarHeader = { name: string; type?: string | undefined; mode?: number | undefined; linkname?: string | undefined };

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
