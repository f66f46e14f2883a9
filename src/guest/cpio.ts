// Writer of cpio archives in the "newc" form, the one Linux unpacks as an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Deterministic: the same entries give the same bytes.
//
//   entry:   "070701" | 13 fields of 8 hexadecimal digits | name NUL | 0..3 zeros | data | 0..3 zeros
//   fields:  ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
//   archive: entries, then an entry named "TRAILER!!!"; header+name and data each end on a multiple of 4

import { assert } from '../base/assert.ts';

export const S_IFIFO = 0o010000;
export const S_IFCHR = 0o020000;
export const S_IFDIR = 0o040000;
export const S_IFBLK = 0o060000;
export const S_IFREG = 0o100000;
export const S_IFLNK = 0o120000;
export const S_IFMT = 0o170000;

export interface CpioEntry {
  /** Relative to the root, without leading or trailing slash; UTF-8 on disk. */
  path: string;
  /** File type and permission bits, as in `st_mode`. */
  mode: number;
  /** Content of a regular file, or the target of a symbolic link. */
  data?: Uint8Array;
  /** Major and minor number of a device node. */
  device?: readonly [major: number, minor: number];
  uid?: number;
  gid?: number;
  /** Seconds since 1970; 0 if left out, so that archives do not depend on when they were made. */
  mtimeSeconds?: number;
}

const headerBytes = 110;
const pad4 = (n: number): number => (n + 3) & ~3;

/**
 * The archive that holds `entries`, in their order; a directory must come before what is in it. Its length is a
 * multiple of 4, so archives may be concatenated: Linux unpacks them one over the other.
 */
export function writeCpio(entries: Iterable<CpioEntry>): Uint8Array {
  const records: { entry: CpioEntry; name: Uint8Array }[] = [];
  let sizeBytes = 0;
  const encoder = new TextEncoder();
  const add = (entry: CpioEntry): void => {
    const name = encoder.encode(entry.path);
    assert(name.length > 0 && !name.includes(0), 'a cpio name is neither empty nor has a zero byte');
    records.push({ entry, name });
    sizeBytes += pad4(headerBytes + name.length + 1) + pad4(entry.data?.length ?? 0);
  };
  for (const entry of entries) add(entry);
  add({ path: 'TRAILER!!!', mode: 0 });

  const archive = Buffer.alloc(sizeBytes);
  let offset = 0;
  records.forEach(({ entry, name }, index) => {
    const isTrailer = index === records.length - 1;
    const fileSize = entry.data?.length ?? 0;
    const fields = [
      isTrailer ? 0 : index + 1,
      entry.mode,
      entry.uid ?? 0,
      entry.gid ?? 0,
      (entry.mode & S_IFMT) === S_IFDIR ? 2 : 1,
      entry.mtimeSeconds ?? 0,
      fileSize,
      0,
      0,
      entry.device?.[0] ?? 0,
      entry.device?.[1] ?? 0,
      name.length + 1,
      0,
    ];
    for (const field of fields) assert(field >= 0 && field <= 0xffff_ffff, 'a cpio field has 32 bits');
    archive.write('070701' + fields.map((field) => field.toString(16).padStart(8, '0')).join(''), offset, 'latin1');
    archive.set(name, offset + headerBytes);
    offset += pad4(headerBytes + name.length + 1);
    if (entry.data) archive.set(entry.data, offset);
    offset += pad4(fileSize);
  });
  return archive;
}
