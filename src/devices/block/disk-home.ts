// What belongs to a disk that lives on in files: who has it open for writing, and which layer is the newest. Two small
// files beside it, PATH being the file that the operator named:
//
//   PATH.lock    pid namespace, pid and start time of the process that writes; a dead process's lock is taken over
//   PATH.head    JSON { version, top, isMerging }: the layer that has the disk's present contents; without the file, PATH has
//
// The lock keeps Zazen processes of one system apart. It means nothing to other programs, nor across a network.

import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { link, open, readFile, readdir, rename, unlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errnoOf } from '../../base/errors.ts';
import { asDiskError, diskError } from './errors.ts';

const VERSION = 1;
const LOCK_ATTEMPTS = 8;

function tryOr<T>(work: () => T, otherwise: T): T {
  try {
    return work();
  } catch {
    return otherwise;
  }
}

/** Clock ticks from the start of the system to that of the process: tells processes of the same pid apart. */
function startTicks(pid: number): string {
  // The second field is a name in parentheses, which may hold anything.
  return tryOr(() => readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ').at(-1)!.split(' ')[19]!, '');
}

function ownNamespace(): string {
  return tryOr(() => readlinkSync('/proc/self/ns/pid'), '');
}

function isAlive(owner: string): boolean {
  const [namespace, pid, started] = owner.trim().split(' ');
  // Nobody here can tell whether a process of another namespace lives.
  if (namespace !== ownNamespace() || pid === undefined || !/^\d+$/.test(pid)) return owner.trim() !== '';
  return startTicks(Number(pid)) === started && started !== '';
}

export class DiskHome {
  /** The file that the operator named. */
  readonly path: string;
  #top: string;
  #isMerging: boolean;
  #pointed: Promise<void> = Promise.resolve();

  private constructor(path: string, top: string, isMerging: boolean) {
    this.path = path;
    this.#top = top;
    this.#isMerging = isMerging;
  }

  /** @throws ZazenError ZAZEN_DISK_LOCKED and others */
  static async take(path: string): Promise<DiskHome> {
    try {
      await lock(path);
      try {
        const { top, isMerging } = await readHead(path);
        return new DiskHome(path, top, isMerging);
      } catch (error) {
        await unlink(`${path}.lock`);
        throw error;
      }
    } catch (error) {
      throw asDiskError(path, error);
    }
  }

  /** Path of the file that has the disk's present contents. */
  get top(): string {
    return this.#top;
  }
  /** Layers were being put into those below them, which may therefore be others than the layers remember. */
  get isMerging(): boolean {
    return this.#isMerging;
  }

  /** A name for a new layer. */
  layerPath(): string {
    return `${this.path}.${randomBytes(4).toString('hex')}.layer`;
  }

  /**
   * From when it returns, whoever opens the disk finds `top`, which must be durable.
   * @param top asked when it is this change's turn: they go one after the other
   * @param isMerging default: as it is
   */
  point(top: () => string, isMerging?: boolean): Promise<void> {
    const done = this.#pointed.then(() => this.#point(top(), isMerging ?? this.#isMerging));
    this.#pointed = done.catch(() => {});
    return done;
  }

  async #point(top: string, isMerging: boolean): Promise<void> {
    if (top === this.#top && isMerging === this.#isMerging) return;
    const head = `${this.path}.head`;
    if (top === this.path && !isMerging) await unlink(head).catch(ignoreMissing);
    else {
      const next = `${head}.next`;
      const file = await open(next, 'w', 0o600);
      try {
        await file.writeFile(`${JSON.stringify({ version: VERSION, top: basename(top), isMerging })}\n`);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(next, head);
    }
    await syncFolder(dirname(this.path));
    this.#top = top;
    this.#isMerging = isMerging;
  }

  /** Layers of this disk that a killed process had made and the head does not lead to hold nothing that was ever flushed. */
  async removeOthers(used: ReadonlySet<string>): Promise<void> {
    const folder = dirname(this.path);
    for (const name of await readdir(folder)) {
      const path = join(folder, name);
      if (ownsLayer(this.path, path) && !used.has(path)) await unlink(path).catch(ignoreMissing);
    }
  }

  async release(): Promise<void> {
    await unlink(`${this.path}.lock`).catch(ignoreMissing);
  }
}

/** Whether `layerPath` of a disk's home made the name. */
export function ownsLayer(diskPath: string, path: string): boolean {
  const start = `${diskPath}.`;
  return path.startsWith(start) && /^[0-9a-f]{8}\.layer$/.test(path.slice(start.length));
}

export async function readHead(path: string): Promise<{ top: string; isMerging: boolean }> {
  // Most disks have none, and who asks has just found the file itself: one look, not a way through Node's threads.
  const text = existsSync(`${path}.head`) ? await readFile(`${path}.head`, 'utf8').catch(ignoreMissing) : undefined;
  if (text === undefined) return { top: path, isMerging: false };
  const head = tryOr(() => JSON.parse(text) as Partial<Record<'version' | 'top' | 'isMerging', unknown>> | null, null);
  const { version, top, isMerging } = head ?? {};
  if (version !== VERSION || typeof top !== 'string' || top !== basename(top) || top.startsWith('.')) {
    throw diskError('DAMAGED', `${path}.head`, 'it does not say what it should');
  }
  return { top: join(dirname(path), top), isMerging: isMerging === true };
}

async function lock(path: string): Promise<void> {
  const lockPath = `${path}.lock`;
  // Made complete under a name of its own, then linked: a lock is never seen half written.
  const mine = `${lockPath}.${randomBytes(6).toString('hex')}`;
  await writeFile(mine, `${ownNamespace()} ${process.pid} ${startTicks(process.pid)}\n`, { flag: 'wx', mode: 0o600 });
  try {
    for (let attempt = 0; attempt < LOCK_ATTEMPTS; attempt++) {
      try {
        return await link(mine, lockPath);
      } catch (error) {
        if (errnoOf(error) !== 'EEXIST') throw error;
      }
      await removeDead(path, lockPath, `${mine}.dead`);
    }
    throw diskError('LOCKED', path, 'others take the lock again and again');
  } finally {
    await unlink(mine).catch(ignoreMissing);
  }
}

async function removeDead(path: string, lockPath: string, asidePath: string): Promise<void> {
  const locked = (owner: string) => diskError('LOCKED', path, `process ${owner.trim().split(' ')[1] ?? '?'} has it open for writing`,
    { hint: 'end that guest, or open the disk read-only' });
  const owner = await readFile(lockPath, 'utf8').catch(ignoreMissing);
  if (owner === undefined) return;
  if (isAlive(owner)) throw locked(owner);
  // Moved aside and read again: another one may have been quicker, and this be the lock that he has now.
  if (await rename(lockPath, asidePath).then(() => true, (error: unknown) => Boolean(ignoreMissing(error)))) {
    const moved = await readFile(asidePath, 'utf8');
    if (isAlive(moved)) {
      await link(asidePath, lockPath).catch(() => {});
      await unlink(asidePath);
      throw locked(moved);
    }
    await unlink(asidePath);
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function ignoreMissing(error: unknown): undefined {
  if (errnoOf(error) !== 'ENOENT') throw error;
  return undefined;
}
