// What an operator hears of disks. Codes are ZAZEN_DISK_*:
//
//   MISSING, UNREADABLE   the file is not there, or the system refuses it
//   FORMAT                it is no layer, or one of a version that is not known
//   DAMAGED               its records contradict themselves or their checksums
//   BACKING               what it lies on is missing, was changed since, or goes in a circle
//   LOCKED                somebody has it open for writing
//   IO, SPACE             reading or writing failed later; no room
//   SIZE, SPEC            what was asked for cannot be

import { ZazenError, errnoOf } from '../../base/errors.ts';

export type DiskErrorKind = 'MISSING' | 'UNREADABLE' | 'FORMAT' | 'DAMAGED' | 'BACKING' | 'LOCKED' | 'IO' | 'SPACE'
  | 'SIZE' | 'SPEC';

export function diskError(
  kind: DiskErrorKind, path: string, words: string, options: { hint?: string; cause?: unknown } = {},
): ZazenError {
  return new ZazenError(`ZAZEN_DISK_${kind}`, `disk ${path}: ${words}`, options);
}

const REASONS: Partial<Record<string, readonly [DiskErrorKind, string]>> = {
  ENOENT: ['MISSING', 'there is no such file or directory'],
  EACCES: ['UNREADABLE', 'permission denied'],
  EPERM: ['UNREADABLE', 'permission denied'],
  EROFS: ['UNREADABLE', 'the file system is read-only'],
  EISDIR: ['UNREADABLE', 'is a directory'],
  EEXIST: ['UNREADABLE', 'exists already'],
  ENOSPC: ['SPACE', 'no space left on the file system'],
  EDQUOT: ['SPACE', 'the quota of the file system is used up'],
};

/** An error of the file system, said for the operator; a ZazenError stays what it is, and a bug of ours is thrown on. */
export function asDiskError(path: string, cause: unknown): ZazenError {
  if (cause instanceof ZazenError) return cause;
  const errno = errnoOf(cause);
  if (errno === undefined) throw cause;
  const [kind, words] = REASONS[errno] ?? ['IO', `reading or writing failed: ${errno}`];
  return diskError(kind, path, words, { cause });
}
