// From what an operator says of a disk to the disk: finds out the format, takes the lock, follows the head to the newest
// layer, and opens everything below it, checking that each file is still what the layer on top of it was put on.

import { realpathSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname, isAbsolute, join } from 'node:path';
import { BlockFile } from './block-file.ts';
import { DiskNode } from './chain.ts';
import { Disk } from './disk.ts';
import type { DiskState } from './disk.ts';
import { DiskHome, ownsLayer, readHead } from './disk-home.ts';
import { asDiskError, diskError } from './errors.ts';
import { Layer } from './layer.ts';
import { PAIR_BYTES, isLayer } from './layer-format.ts';
import type { BackingReference } from './layer-format.ts';
import { RawStore } from './raw-store.ts';
import type { BlockStore } from './store.ts';

export type DiskFormat = 'raw' | 'layer';

export interface DiskFile {
  readonly path: string;
  /** Default: by its name, see `formatOf`. */
  readonly format?: DiskFormat | undefined;
  readonly isReadOnly?: boolean | undefined;
  /** Default true. */
  readonly mayDiscard?: boolean | undefined;
}

/** Longest chain of layers that is followed. */
const DEPTH_MAX = 64;

/** In this thread: a question to the file system's cache takes less than handing it to another thread. */
function realPathOf(path: string, failed = (cause: unknown): Error => asDiskError(path, cause)): string {
  try {
    return realpathSync.native(path);
  } catch (cause) {
    throw failed(cause);
  }
}

/** @throws ZazenError ZAZEN_DISK_* */
export async function openDisk({ path: given, format: wanted, isReadOnly = false, mayDiscard }: DiskFile): Promise<Disk> {
  const path = realPathOf(given);
  const home = isReadOnly ? undefined : await DiskHome.take(path);
  try {
    const head = home ?? await readHead(path);
    const format = head.top === path ? wanted ?? await formatOf(path) : 'layer';
    const chain = new Chain(path, home, head.isMerging, wanted);
    const node = await chain.open(head.top, format, undefined);
    if (home !== undefined) await home.removeOthers(chain.paths);
    return new Disk({ node, isTop: !isReadOnly, sizeBytes: node.store.sizeBytes, isReadOnly, home, mayDiscard });
  } catch (error) {
    await home?.release();
    throw asDiskError(path, error);
  }
}

/** What is in a file, to make disks of that go on from there; nobody writes to the file itself. @throws ZazenError ZAZEN_DISK_* */
export async function openState(file: DiskFile): Promise<DiskState> {
  const disk = await openDisk({ ...file, isReadOnly: true });
  const state = disk.freeze(file.isReadOnly ?? false);
  await disk.close();
  return state;
}

/**
 * Of a file of which nobody has said it: a layer if its name ends in `.layer`, else raw. Not by its first bytes: a guest can
 * write those of a raw disk, and make it look like a layer that lies on any file of the host.
 * @throws ZazenError ZAZEN_DISK_FORMAT when it is named like a raw file and begins like a layer
 */
export async function formatOf(path: string): Promise<DiskFormat> {
  if (path.endsWith('.layer')) return 'layer';
  const file = await open(path, 'r').catch((error: unknown) => { throw asDiskError(path, error); });
  try {
    const start = new Uint8Array(PAIR_BYTES);
    await file.read(start, 0, start.length, 0);
    if (!isLayer(start)) return 'raw';
  } finally {
    await file.close();
  }
  throw diskError('FORMAT', path, 'begins like a layer, and is not named like one',
    { hint: 'say what it is, raw or layer; if a guest could write to it as a raw disk, it is raw' });
}

class Chain {
  readonly #path: string;
  readonly #home: DiskHome | undefined;
  readonly #isMerging: boolean;
  readonly #format: DiskFormat | undefined;
  /** Of the files that are in it. */
  readonly paths = new Set<string>();

  constructor(path: string, home: DiskHome | undefined, isMerging: boolean, format: DiskFormat | undefined) {
    this.#path = path;
    this.#home = home;
    this.#isMerging = isMerging;
    this.#format = format;
  }

  async open(path: string, format: DiskFormat, expected: BackingReference | undefined): Promise<DiskNode> {
    if (this.paths.has(path)) throw diskError('BACKING', path, 'lies on itself');
    if (this.paths.size >= DEPTH_MAX) throw diskError('BACKING', path, `lies under more than ${DEPTH_MAX} layers`);
    this.paths.add(path);
    const origin = this.#owns(path) ? 'own' : 'given';
    const mode = this.#home !== undefined && (path === this.#path || origin === 'own') ? 'write' : 'read';
    const store = format === 'layer' ? await Layer.open(path, mode) : new RawStore(await BlockFile.open(path, mode));
    try {
      if (expected !== undefined) await this.#check(store, expected);
      const below = store instanceof Layer && store.header.backing !== undefined
        ? await this.#openBacking(path, store.header.backing) : undefined;
      return new DiskNode(store, below, origin);
    } catch (error) {
      await store.abandon();
      throw error;
    }
  }

  #owns(path: string): boolean {
    return ownsLayer(this.#path, path);
  }

  async #openBacking(path: string, backing: BackingReference): Promise<DiskNode> {
    const named = isAbsolute(backing.path) ? backing.path : join(dirname(path), backing.path);
    const below = realPathOf(named, (cause) => diskError('BACKING', path, `lies on ${named}, which is not there`, { cause }));
    const format = below === this.#path && this.#format !== undefined ? this.#format : backing.kind;
    return this.open(below, format, backing);
  }

  async #check(store: BlockStore, expected: BackingReference): Promise<void> {
    const { path } = store.file;
    // Putting layers into what lies below them was begun and not ended: it will be done again, with the same outcome.
    const mayHaveGrown = this.#isMerging && (path === this.#path || this.#owns(path));
    const isSame = store instanceof Layer
      ? expected.kind === 'layer' && store.header.uuid === expected.uuid
        && (mayHaveGrown || store.header.generation === expected.generation)
      : expected.kind === 'raw' && (mayHaveGrown || await isSameRaw(store.file, expected));
    if (isSame) return;
    throw diskError('BACKING', path, 'was changed since a layer was put on it',
      { hint: 'the layer is of no use without what it was put on' });
  }
}

async function isSameRaw(file: BlockFile, expected: { sizeBytes: number; modifiedNanos: bigint }): Promise<boolean> {
  const { sizeBytes, modifiedNanos } = await file.identity();
  return sizeBytes === expected.sizeBytes && modifiedNanos === expected.modifiedNanos;
}
