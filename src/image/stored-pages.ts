// The pages of an image and its parents: where each one is, and whether what was read is what was written. All that this
// needs can be described to another thread, which then reads pages for itself: descriptors are good in the whole process,
// and tables lie in memory that threads share.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { PageHasher } from './checksum.ts';
import type { PageMemory } from './checksum.ts';
import { REQUEST_BYTES, readSync } from './direct-file.ts';
import { BRIDGE_PAGES, imageError, layoutImage } from './format.ts';
import type { Bank, PageStretch } from './format.ts';
import { buffersOf, frameStretches } from './frame-buffers.ts';
import { PageMap } from './page-map.ts';
import { findAlteredCopies, findAlteredPages } from './verify.ts';

/** What can be posted to another thread; tables in shared memory. Good for as long as the image is open. */
export interface PagesDescription {
  readonly path: string;
  readonly fd: number;
  readonly banks: readonly Bank[];
  readonly pageMap: Uint8Array;
  /** Two words for each stored page. */
  readonly checksums: Uint32Array;
  readonly parent: PagesDescription | undefined;
}

/** Guest pages gfn … gfn+count-1, none of them zero, all stored in one file. */
export interface StoredRun {
  readonly gfn: number;
  readonly count: number;
  readonly pages: StoredPages;
}

/** Pages of one file on their way into machine memory by one request. */
export interface PageRead {
  readonly pages: StoredPages;
  readonly gfn: number;
  readonly mfns: Uint32Array;
}

const REQUEST_PAGES = REQUEST_BYTES / FRAME_BYTES;

const hashers = new WeakMap<WebAssembly.Memory, PageHasher>();

function hasherOf(machine: PageMemory): PageHasher {
  const known = hashers.get(machine.memory);
  if (known !== undefined) return known;
  const hasher = new PageHasher(machine);
  hashers.set(machine.memory, hasher);
  return hasher;
}

function inSharedMemory<T extends Uint8Array | Uint32Array>(array: T): T {
  const bytes = new Uint8Array(new SharedArrayBuffer(array.byteLength));
  bytes.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  return (array instanceof Uint32Array ? new Uint32Array(bytes.buffer) : bytes) as T;
}

export class StoredPages {
  readonly path: string;
  readonly map: PageMap;
  readonly parent: StoredPages | undefined;
  readonly #fd: () => number;
  readonly #banks: readonly Bank[];
  readonly #endOffset: number;
  readonly #checksums: Uint32Array;

  /** @param fd asked anew for each request: a file may be opened again */
  constructor(
    { path, banks, map, checksums }: Pick<PagesDescription, 'path' | 'banks' | 'checksums'> & { readonly map: PageMap },
    fd: () => number, parent: StoredPages | undefined,
  ) {
    this.path = path;
    this.map = map;
    this.parent = parent;
    this.#fd = fd;
    this.#banks = banks;
    this.#endOffset = layoutImage(banks).hotOffset;
    this.#checksums = checksums;
  }

  /** In a thread that was posted the description. */
  static attach(description: PagesDescription): StoredPages {
    const parent = description.parent === undefined ? undefined : StoredPages.attach(description.parent);
    const map = new PageMap(description.banks, description.pageMap);
    return new StoredPages({ ...description, map }, () => description.fd, parent);
  }

  describe(): PagesDescription {
    return {
      path: this.path, fd: this.#fd(), banks: this.#banks, pageMap: inSharedMemory(this.map.bytes),
      checksums: inSharedMemory(this.#checksums), parent: this.parent?.describe(),
    };
  }

  /** How many pages this very file stores. */
  get storedPages(): number { return this.#checksums.length / 2; }

  /**
   * The pages that are not zero, parents' pages included, in ascending order; of the whole guest or a range.
   * @throws ZazenError ZAZEN_IMAGE_PARENT
   */
  *runs(gfn = 0, count = Infinity): Generator<StoredRun> {
    for (const stretch of this.map.stretches(gfn, count)) {
      if (stretch.state === 'stored') yield { gfn: stretch.gfn, count: stretch.count, pages: this };
      if (stretch.state !== 'parent') continue;
      yield* this.parentOf(stretch.gfn, stretch.count).runs(stretch.gfn, stretch.count);
    }
  }

  /** @throws ZazenError ZAZEN_IMAGE_PARENT */
  parentOf(gfn: number, count: number): StoredPages {
    if (this.parent === undefined) throw imageError('PARENT', this.path, 'was opened without its parent');
    const first = this.parent.map.pageOf(gfn);
    if (first < 0 || this.parent.map.pageOf(gfn + count - 1) !== first + count - 1) {
      throw imageError('PARENT', this.path, `looks for page ${gfn} in its parent, which has no such memory`);
    }
    return this.parent;
  }

  /** Fills zero pages at once, and gives what has to be read. */
  *plan(machine: PageMemory, gfn: number, mfns: Uint32Array): Generator<PageRead> {
    const { map } = this;
    const first = map.pageOf(gfn);
    assert(mfns.length === 0 || first >= 0 && map.pageOf(gfn + mfns.length - 1) === first + mfns.length - 1,
      'pages to read lie outside of the guest');
    for (const stretch of bridge(map.stretches(gfn, mfns.length))) {
      const start = stretch.gfn - gfn;
      const targets = mfns.subarray(start, start + stretch.count);
      if (stretch.state === 'zero') {
        for (const mfn of targets) machine.u8.fill(0, mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES);
      } else if (stretch.state === 'parent') {
        yield* this.parentOf(stretch.gfn, stretch.count).plan(machine, stretch.gfn, targets);
      } else {
        for (let k = 0; k < stretch.count; k += REQUEST_PAGES) {
          yield { pages: this, gfn: stretch.gfn + k, mfns: targets.subarray(k, k + REQUEST_PAGES) };
        }
      }
    }
  }

  /**
   * Reads pages into machine frames (see Image.readPages) without leaving the calling thread.
   * @throws ZazenError ZAZEN_IMAGE_READ, _TRUNCATED, _CHECKSUM, which name the file and the page; ZAZEN_IMAGE_PARENT
   */
  readSync(machine: PageMemory, gfn: number, mfns: Uint32Array): void {
    for (const read of this.plan(machine, gfn, mfns)) {
      const { pages } = read;
      let bytesRead = 0;
      try {
        bytesRead = readSync(pages.#fd(), buffersOf(machine, read), pages.offsetOf(read.gfn));
      } catch (cause) {
        pages.readFailed(read.gfn, cause);
      }
      pages.check(machine, read, bytesRead);
    }
  }

  /** Place of a page in the file. */
  offsetOf(gfn: number): number {
    return this.#endOffset - (this.map.pageCount - this.map.pageOf(gfn)) * FRAME_BYTES;
  }

  readFailed(gfn: number, cause: unknown): never {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === undefined) throw cause;
    throw imageError('READ', this.path, `page ${gfn} cannot be read (${code})`, { cause });
  }

  /**
   * @param gfns pages that this file stores
   * @param mfns frames that they were read into
   * @returns GFNs of those that are not what was written
   */
  findAltered(machine: PageMemory, gfns: Uint32Array, mfns: Uint32Array): Set<number> {
    return new Set(findAlteredCopies({ map: this.map, checksums: this.#checksums }, hasherOf(machine), gfns, mfns));
  }

  /** @throws ZazenError ZAZEN_IMAGE_TRUNCATED, _CHECKSUM */
  check(machine: PageMemory, { gfn, mfns }: PageRead, bytesRead: number): void {
    if (bytesRead < mfns.length * FRAME_BYTES) {
      throw imageError('TRUNCATED', this.path, `is cut short before page ${gfn + Math.floor(bytesRead / FRAME_BYTES)}`);
    }
    const hasher = hasherOf(machine);
    const tables = { map: this.map, checksums: this.#checksums };
    for (const { start, mfn, count } of frameStretches(mfns)) {
      for (const bad of findAlteredPages(tables, hasher, gfn + start, mfn, count)) {
        throw imageError('CHECKSUM', this.path, `page ${bad} is not what was written`,
          { hint: 'the file was altered, or its disk fails' });
      }
    }
  }
}

/** Joins stored stretches over short gaps of zero pages, which are then read, and checked, with them. */
function* bridge(stretches: Iterable<PageStretch>): Generator<PageStretch> {
  let stored: PageStretch | undefined;
  let gap: PageStretch | undefined;
  for (const stretch of stretches) {
    if (stretch.state === 'stored') {
      stored = stored === undefined ? stretch : { ...stored, count: stretch.gfn + stretch.count - stored.gfn };
      gap = undefined;
    } else if (stretch.state === 'zero' && stored !== undefined && gap === undefined && stretch.count <= BRIDGE_PAGES) {
      gap = stretch;
    } else {
      if (stored !== undefined) yield stored;
      if (gap !== undefined) yield gap;
      stored = gap = undefined;
      yield stretch;
    }
  }
  if (stored !== undefined) yield stored;
  if (gap !== undefined) yield gap;
}
