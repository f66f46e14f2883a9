// Reading a file that a guest boots from, named by the operator: only a regular file, and never more of it than the
// guest could take. A FIFO would keep us waiting for a writer, a device may never end.

import { constants } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import type { BigIntStats } from 'node:fs';
import { ZazenError } from '../base/errors.ts';

export type BootFileKind = 'kernel' | 'initramfs';

export interface BootFile {
  readonly bytes: Uint8Array;
  /**
   * Says that a file which has it later is this one, with these contents: see `identify`. Undefined when the file was
   * changed so lately, or while it was read, that its times could not tell the next change from the last one.
   */
  readonly identity: string | undefined;
}

/** Time stamps of files move in steps, at worst of two seconds (FAT). */
const SETTLED_NANOS = 2_500_000_000n;
const NANOS_PER_MILLI = 1_000_000n;
const MIB = 2 ** 20;

const refuse = (kind: BootFileKind, path: string, what: string, cause?: unknown): never => {
  const [code, wanted] = kind === 'kernel'
    ? ['ZAZEN_KERNEL_UNREADABLE', 'an arm64 Linux kernel'] : ['ZAZEN_INITRD_UNREADABLE', 'a cpio archive'];
  throw new ZazenError(code!, `${path}: cannot read the ${kind}: ${what}`, {
    cause, hint: `give the path of ${wanted}, or leave it out to use the default one`,
  });
};

/** @throws ZazenError ZAZEN_KERNEL_TOO_LARGE, ZAZEN_INITRD_TOO_LARGE */
export function refuseTooLarge(kind: BootFileKind, path: string, maxBytes: number): never {
  throw new ZazenError(kind === 'kernel' ? 'ZAZEN_KERNEL_TOO_LARGE' : 'ZAZEN_INITRD_TOO_LARGE',
    `${path}: the ${kind} is larger than the ${Math.floor(maxBytes / MIB)} MiB that there are for it`,
    { hint: `give the guest more memory, or a smaller ${kind}` });
}

/**
 * What tells a file and its contents from others and from its own past and future, without reading it.
 * @throws ZazenError ZAZEN_KERNEL_UNREADABLE, ZAZEN_INITRD_UNREADABLE: it is not there, or no regular file
 */
export async function identify(path: string, kind: BootFileKind): Promise<string> {
  const status = await stat(path, { bigint: true }).catch((cause: Error) => refuse(kind, path, cause.message, cause));
  assertRegular(status, path, kind);
  return identityOf(status);
}

const identityOf = ({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats) => [dev, ino, size, mtimeNs, ctimeNs].join();

function assertRegular(status: BigIntStats, path: string, kind: BootFileKind): void {
  if (status.isFile()) return;
  const type = status.isDirectory() ? 'directory' : status.isFIFO() ? 'FIFO' : status.isSocket() ? 'socket' : 'device';
  refuse(kind, path, `it is a ${type}, not a file`);
}

/**
 * @param maxBytes what there is room for
 * @throws ZazenError ZAZEN_KERNEL_UNREADABLE or _TOO_LARGE, ZAZEN_INITRD_UNREADABLE or _TOO_LARGE
 */
export async function readBootFile(path: string, kind: BootFileKind, maxBytes: number): Promise<BootFile> {
  // Opening a device may do something already.
  await identify(path, kind);
  try {
    // If it has become a FIFO meanwhile, opening must not wait.
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const before = await file.stat({ bigint: true });
    assertRegular(before, path, kind);
    if (before.size > maxBytes) refuseTooLarge(kind, path, maxBytes);
    const bytes = await readUpTo(file, Number(before.size));
    if (bytes.length === 0) refuse(kind, path, 'it is empty');
    const after = await file.stat({ bigint: true });
    const isSettled = identityOf(after) === identityOf(before)
      && BigInt(Date.now()) * NANOS_PER_MILLI - latest(after.mtimeNs, after.ctimeNs) > SETTLED_NANOS;
    return { bytes, identity: isSettled ? identityOf(after) : undefined };
  } catch (cause) {
    if (cause instanceof ZazenError) throw cause;
    return refuse(kind, path, (cause as Error).message, cause);
  }
}

const latest = (a: bigint, b: bigint) => a > b ? a : b;

/** All of the file, or so much of it. */
async function readUpTo(file: FileHandle, sizeBytes: number): Promise<Uint8Array> {
  const bytes = Buffer.allocUnsafeSlow(sizeBytes);
  let end = 0;
  for (let bytesRead = 1; bytesRead > 0 && end < sizeBytes; end += bytesRead) {
    ({ bytesRead } = await file.read(bytes, end, sizeBytes - end, end));
  }
  return bytes.subarray(0, end);
}
