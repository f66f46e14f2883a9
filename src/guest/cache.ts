// The cache of downloaded and built guest files. What keeps it right is that everything in it is made under tmp/ and
// gets its name by one rename, when it is complete: being killed at any point, or running twice at once, leaves either
// nothing or the whole thing under that name. The lock only saves the second runner the work.
//
//   $ZAZEN_CACHE_DIR | $XDG_CACHE_HOME/zazen | ~/.cache/zazen (base/cache-folder.ts)
//     guests/<flavour>/   kernel, modules and busybox      trees/<key>/     unpacked Debian packages
//     initramfs/<key>     built images                     index/<key>/     the archive's verified package lists
//     tmp/<owner>.<random>  work in progress               locks/<name>     held by the process named inside
//     node/               Node's compile cache

import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, readdir, rename, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ZazenError } from '../base/errors.ts';

export type Log = (line: string) => void;

export class Cache {
  readonly dir: string;
  readonly #log: Log;
  readonly #signal: AbortSignal | undefined;

  constructor(dir: string, log: Log = () => {}, signal?: AbortSignal) {
    this.dir = dir;
    this.#log = log;
    this.#signal = signal;
  }

  path(...parts: string[]): string {
    return join(this.dir, ...parts);
  }

  /**
   * The directory `name` of the cache; if it is not there, or is to be replaced, `fill` is given an empty directory to
   * fill, which then becomes it. `fill` runs in one process at a time, so far as the lock goes.
   */
  async directory(name: string, fill: (into: string) => Promise<void>, replace = false): Promise<string> {
    const path = this.path(name);
    if (!replace && (await exists(path))) return path;
    return this.withLock(name, async () => {
      if (!replace && (await exists(path))) return path;
      return this.temporary(async (dir) => {
        const into = join(dir, 'new');
        await mkdir(into);
        await fill(into);
        if (replace) await rename(path, join(dir, 'old')).catch(() => {});
        await publish(into, path);
        return path;
      });
    });
  }

  /** The file `name` of the cache; if it is not there, `make` gives its content. */
  async file(name: string, make: () => Promise<Uint8Array>): Promise<string> {
    const path = this.path(name);
    if (await exists(path)) return path;
    return this.temporary(async (dir) => {
      await writeFile(join(dir, 'new'), await make());
      await publish(join(dir, 'new'), path);
      return path;
    });
  }

  /** Runs `work` with a directory of its own inside the cache, which is removed afterwards. */
  async temporary<T>(work: (dir: string) => Promise<T>): Promise<T> {
    const dir = this.path('tmp', `${ownerOf(process.pid)}.${randomBytes(6).toString('hex')}`);
    await this.#makeDirectory(dir);
    try {
      return await work(dir);
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code;
      if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EIO') throw this.#unwritable(cause as Error);
      throw cause;
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  }

  /** Runs `work` while no other process on this machine runs under the lock `name`; a dead holder's lock is taken. */
  async withLock<T>(name: string, work: () => Promise<T>): Promise<T> {
    const path = this.path('locks', name.replaceAll(/[^A-Za-z0-9.+_-]/g, '_'));
    const owner = ownerOf(process.pid) + '\n';
    await this.#makeDirectory(dirname(path));
    await this.#removeLeftovers();
    let waiting = false;
    while (!(await tryLock(path, owner).catch((cause: Error) => { throw this.#unwritable(cause); }))) {
      this.#signal?.throwIfAborted();
      const holder = await readFile(path, 'latin1').catch(() => '');
      // An empty lock is one being written this very moment, unless it stays empty.
      const isStale = holder === '' ? await olderThan(path, 10_000) : !isAlive(holder.trim());
      if (isStale) {
        await breakLock(path, holder);
        continue;
      }
      if (!waiting && holder !== '') {
        this.#log(`waiting for another zazen (process ${holder.split(',')[1]}) to finish with ${name}`);
        waiting = true;
      }
      await delay(100, undefined, { signal: this.#signal });
    }
    try {
      return await work();
    } finally {
      await rm(path, { force: true });
    }
  }

  /** For those who would not end, or not say why, on a full disk: apt-get waits for ever. */
  async requireRoom(bytes: number): Promise<void> {
    await this.#makeDirectory(this.dir);
    const { bavail, bsize } = await statfs(this.dir);
    if (bavail * bsize >= bytes) return;
    const mib = (size: number): string => `${Math.floor(size / 2 ** 20)} MiB`;
    throw this.#unwritable(new Error(`there is room for ${mib(bavail * bsize)}, and this takes ${mib(bytes)}`));
  }

  async #makeDirectory(path: string): Promise<void> {
    try {
      await mkdir(path, { recursive: true });
    } catch (cause) {
      throw this.#unwritable(cause as Error);
    }
  }

  #unwritable(cause: Error): ZazenError {
    const hint = 'set ZAZEN_CACHE_DIR to a directory that can be written and has space';
    return new ZazenError('ZAZEN_CACHE', `cannot write the cache ${this.dir}: ${cause.message}`, { hint, cause });
  }

  async #removeLeftovers(): Promise<void> {
    for (const entry of await readdir(this.path('tmp')).catch(() => [])) {
      const owner = entry.slice(0, entry.lastIndexOf('.'));
      if (!isAlive(owner)) await rm(this.path('tmp', entry), { recursive: true, force: true });
    }
  }
}

export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

/** Gives `from` its final name; if another process was first, its work stands and ours is dropped by the caller. */
async function publish(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  try {
    await rename(from, to);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== 'ENOTEMPTY' && code !== 'EEXIST') throw error;
  }
}

async function tryLock(path: string, owner: string): Promise<boolean> {
  try {
    const file = await open(path, 'wx');
    try {
      await file.writeFile(owner);
    } catch (error) {
      await rm(path, { force: true });
      throw error;
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

/** Removes a lock that its holder left behind; if it is no longer that holder's by now, it is put back. */
async function breakLock(path: string, holder: string): Promise<void> {
  const aside = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    await rename(path, aside);
  } catch {
    return;
  }
  if ((await readFile(aside, 'latin1').catch(() => '')) === holder) await rm(aside, { force: true });
  else await rename(aside, path);
}

async function olderThan(path: string, millis: number): Promise<boolean> {
  const info = await stat(path).catch(() => undefined);
  return info !== undefined && Date.now() - info.mtimeMs > millis;
}

/** `host,pid,start time`: names one process, also after its number was given to another. */
function ownerOf(pid: number): string {
  return `${hostname().replaceAll(/[^A-Za-z0-9-]/g, '_')},${pid},${startTime(pid)}`;
}

function isAlive(owner: string): boolean {
  const [host, pid, start] = owner.split(',');
  // What another machine does on a shared home directory cannot be seen from here: believe it.
  if (host !== ownerOf(process.pid).split(',')[0]) return true;
  try {
    process.kill(Number(pid), 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  return startTime(Number(pid)) === start;
}

/** Clock ticks from boot to the start of the process; empty where there is no /proc, and then the number decides. */
function startTime(pid: number): string {
  try {
    const line = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return line.slice(line.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    return '';
  }
}
