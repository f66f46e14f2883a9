// The folder in which compiled regions are kept from one process to the next: files (region-pack.ts) that have the version of
// the emitter in their names and are written whole, under another name first. Each process adds files of what it has emitted;
// when there are many, somebody makes one of them, without what nobody has used for longest if it is too much. Whatever goes
// wrong, the store is as if it had not been there: it holds nothing that could not be made again.
//
// Beside them lie other files, whole ones: the interpreter (kept-interpreter.ts), and what the last boot needed (kept-regions.ts).
//
// It is code that will be run, so it is trusted like this program, and like what Node keeps beside it: the folder must be this
// user's and nobody else's. Nothing in it has a name or a place that a guest or an image could choose.

import {
  closeSync, constants, fstatSync, lstatSync, mkdirSync, openSync, readFileSync, readdirSync, renameSync, statSync, unlinkSync, utimesSync, writeFileSync,
} from 'node:fs';
import { createHash, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { RegionStore, StoredRegion } from '../cpu/jit/region-store.ts';
import { Pack } from './region-pack.ts';
import type { PackedRegion } from './region-pack.ts';

const SUFFIX = '.regions';
const WHOLE_SUFFIX = '.whole';
const TEMPORARY = '.new';
const DIGEST_BYTES = 32;
/** Hexadecimal digits of the version in a name. */
const VERSION_DIGITS = 24;
/** Files of one version before they become one. */
const PACKS_MAX = 8;
/** Of all files; of one version's after some had to go. */
const TOTAL_MAX_BYTES = 64 * 2 ** 20;
const KEPT_BYTES = 48 * 2 ** 20;
const DAY_MILLIS = 86_400_000;
/** The day of last use in a file is right to within so many days. */
const STALE_DAYS = 7;
/** What another version has left; and a file that nobody will finish. */
const FOREIGN_MAX_MILLIS = 30 * DAY_MILLIS;
const ABANDONED_MILLIS = DAY_MILLIS / 24;
const OTHERS_MODES = 0o077;

export interface RegionFolderLimits {
  readonly totalMaxBytes?: number;
  readonly keptBytes?: number;
  readonly packsMax?: number;
}

interface FolderFile {
  readonly name: string;
  readonly sizeBytes: number;
  readonly usedMillis: number;
}

/** Runs what may be refused by the system. @returns undefined then */
function attempt<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    if (!(error instanceof Error) || !('code' in error)) throw error;
    return undefined;
  }
}

export class RegionFolder {
  readonly #path: string;
  readonly #version: Uint8Array;
  readonly #prefix: string;
  readonly #uid: number;
  readonly #limits: Required<RegionFolderLimits>;
  #isRefreshed = false;

  private constructor(path: string, version: Uint8Array, uid: number, limits: RegionFolderLimits) {
    this.#path = path;
    this.#version = version;
    this.#prefix = `${Buffer.from(version).toString('hex').slice(0, VERSION_DIGITS)}-`;
    this.#uid = uid;
    this.#limits = { totalMaxBytes: TOTAL_MAX_BYTES, keptBytes: KEPT_BYTES, packsMax: PACKS_MAX, ...limits };
  }

  /**
   * Makes the folder if there is none.
   * @param version 32 bytes: of the emitter, with all that its code depends on
   * @returns undefined when the folder cannot be had, or others may write to it or read it
   */
  static open(path: string, version: Uint8Array, limits: RegionFolderLimits = {}): RegionFolder | undefined {
    const uid = process.getuid?.();
    if (uid === undefined) return undefined;
    attempt(() => mkdirSync(path, { recursive: true, mode: 0o700 }));
    const status = attempt(() => lstatSync(path));
    const isOurs = status !== undefined && status.isDirectory() && status.uid === uid && (status.mode & OTHERS_MODES) === 0;
    return isOurs ? new RegionFolder(path, version, uid, limits) : undefined;
  }

  /** Has the regions of all files be found. The files stay open, for code is read when it is wanted. */
  load(store: RegionStore): void {
    for (const { pack } of this.#openAll()) for (const region of pack.regions) store.learn(region);
  }
  #openAll(): { name: string; pack: Pack }[] {
    return this.#files().flatMap(({ name, usedMillis }) => {
      if (!this.#isOurs(name)) return [];
      const path = join(this.#path, name);
      const pack = attempt(() => Pack.open(path, this.#version, this.#uid));
      if (pack === undefined) attempt(() => unlinkSync(path));
      else if (Date.now() - usedMillis > DAY_MILLIS) attempt(() => utimesSync(path, new Date(), new Date()));
      return pack === undefined ? [] : [{ name, pack }];
    });
  }
  #isOurs(name: string): boolean {
    return name.startsWith(this.#prefix) && name.endsWith(SUFFIX);
  }
  #files(): FolderFile[] {
    const names = attempt(() => readdirSync(this.#path)) ?? [];
    return names.flatMap(name => {
      if (![SUFFIX, WHOLE_SUFFIX, TEMPORARY].some(suffix => name.endsWith(suffix))) return [];
      const status = attempt(() => statSync(join(this.#path, name)));
      return status === undefined ? [] : [{ name, sizeBytes: status.size, usedMillis: status.mtimeMs }];
    });
  }

  /**
   * Adds what the process has emitted since the last time.
   * @returns regions that were written, or undefined if nothing can be
   */
  save(store: RegionStore): number | undefined {
    const fresh = store.takeFresh();
    const today = Math.floor(Date.now() / DAY_MILLIS);
    const written = fresh.length === 0 ? 0 : this.#write(fresh.map(region => ({ region, day: today })));
    if (written === undefined) return undefined;
    this.#tidy(store.used, today);
    return written;
  }
  #write(regions: Iterable<{ region: StoredRegion; day: number }>): number | undefined {
    return this.#replace(`${randomBytes(8).toString('hex')}${SUFFIX}`, path => Pack.write(path, this.#version, regions));
  }
  /** @returns what `write` does, or undefined if nothing can be written */
  #replace<T>(name: string, write: (path: string) => T): T | undefined {
    const path = join(this.#path, `${this.#prefix}${name}`);
    const temporary = `${path}.${randomBytes(8).toString('hex')}${TEMPORARY}`;
    return attempt(() => {
      try {
        const written = write(temporary);
        renameSync(temporary, path);
        return written;
      } catch (error) {
        attempt(() => unlinkSync(temporary));
        throw error;
      }
    });
  }

  /**
   * A file that depends on nothing but the emitter and its name; made if it is not there, or not as it was written.
   * @param name no word of it is chosen by a guest or an image
   */
  async file(name: string, make: () => Promise<Uint8Array<ArrayBuffer>>): Promise<Uint8Array<ArrayBuffer>> {
    const known = this.read(name);
    if (known !== undefined) return known;
    const bytes = await make();
    this.write(name, bytes);
    return bytes;
  }
  /** Of this version. @returns undefined when it is not there, or not as it was written */
  read(name: string): Uint8Array<ArrayBuffer> | undefined {
    const path = join(this.#path, `${this.#prefix}${name}${WHOLE_SUFFIX}`);
    return attempt(() => this.#readWhole(path, name));
  }
  /** If that can be done. */
  write(name: string, bytes: Uint8Array): void {
    this.#replace(`${name}${WHOLE_SUFFIX}`, temporary =>
      writeFileSync(temporary, Buffer.concat([this.#digest(name, bytes), bytes]), { mode: 0o600, flag: 'wx' }));
  }
  #digest(name: string, bytes: Uint8Array): Buffer {
    return createHash('sha256').update(this.#version).update(name).update(bytes).digest();
  }
  #readWhole(path: string, name: string): Uint8Array<ArrayBuffer> | undefined {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      const status = fstatSync(fd);
      if (!status.isFile() || status.uid !== this.#uid) return undefined;
      const all = new Uint8Array(readFileSync(fd));
      const bytes = all.subarray(DIGEST_BYTES);
      if (!this.#digest(name, bytes).equals(all.subarray(0, DIGEST_BYTES))) return undefined;
      if (Date.now() - status.mtimeMs > DAY_MILLIS) attempt(() => utimesSync(path, new Date(), new Date()));
      return bytes;
    } finally {
      closeSync(fd);
    }
  }

  /** One file of many, and what is too much goes. Two who do it at the same time leave two files of the same regions. */
  #tidy(used: ReadonlySet<StoredRegion>, today: number): void {
    const files = this.#files();
    const ours = files.filter(({ name }) => this.#isOurs(name));
    const isStale = !this.#isRefreshed && [...used].some(region => today - (region as PackedRegion).day > STALE_DAYS);
    const total = (list: readonly FolderFile[]): number => list.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const isTooMuch = total(ours) > this.#limits.totalMaxBytes;
    if (ours.length > this.#limits.packsMax || isTooMuch || isStale) this.#merge(used, today, isTooMuch ? this.#limits.keptBytes : Infinity);
    this.#dropForeign(files);
  }
  #merge(used: ReadonlySet<StoredRegion>, today: number, maxBytes: number): void {
    this.#isRefreshed = true;
    const usedToday = new Set([...used].map(region => (region as PackedRegion).identity));
    const packs = this.#openAll();
    const byIdentity = new Map<string, { region: PackedRegion; day: number }>();
    for (const region of packs.flatMap(({ pack }) => pack.regions)) {
      const day = usedToday.has(region.identity) ? today : region.day;
      if (day > (byIdentity.get(region.identity)?.day ?? -1)) byIdentity.set(region.identity, { region, day });
    }
    const regions = [...byIdentity.values()].toSorted((a, b) => b.day - a.day);
    let room = maxBytes;
    const isWritten = this.#write(regions.filter(({ region }) => (room -= region.sizeBytes) >= 0)) !== undefined;
    for (const { name, pack } of packs) {
      pack.close();
      if (isWritten) attempt(() => unlinkSync(join(this.#path, name)));
    }
  }
  /** Those of other versions, and what was never finished. */
  #dropForeign(files: readonly FolderFile[]): void {
    const now = Date.now();
    let room = this.#limits.totalMaxBytes;
    for (const { name, sizeBytes, usedMillis } of files.toSorted((a, b) => b.usedMillis - a.usedMillis)) {
      if (this.#isOurs(name)) continue;
      room -= sizeBytes;
      const maxMillis = name.endsWith(TEMPORARY) ? ABANDONED_MILLIS : FOREIGN_MAX_MILLIS;
      if (room < 0 || now - usedMillis > maxMillis) attempt(() => unlinkSync(join(this.#path, name)));
    }
  }
}
