// An image open for reading, with the parents that it refers to. Pages come straight into the machine memory, in any
// order and from any number of readers at once; each is checked before the call returns. Until then the frames that
// they are read into must be nobody's: after an error they hold anything.

import * as nodeFiles from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { PageHasher } from './checksum.ts';
import type { PageMemory } from './checksum.ts';
import { REQUEST_BYTES, RequestQueue } from './direct-file.ts';
import type { FileSystem } from './direct-file.ts';
import { BRIDGE_PAGES, CHAIN_MAX, imageError } from './format.ts';
import type { Bank, ImageHeader, PageState, PageStretch, ParentReference, VcpuRegisters } from './format.ts';
import { openImageFile } from './open-file.ts';
import type { ImageFile } from './open-file.ts';
import { findAlteredPages, verifyPages } from './verify.ts';
import type { VerifyOptions, VerifyResult } from './verify.ts';

export interface OpenImageOptions {
  /** False: the file alone, of which only the pages that it stores itself can be read. Default true. */
  readonly parents?: boolean;
  readonly files?: FileSystem;
}

/** Guest pages gfn … gfn+count-1, none of them zero, all stored in `image`: this one or one of its parents. */
export interface StoredRun {
  readonly gfn: number;
  readonly count: number;
  readonly image: Image;
}

/**
 * @throws ZazenError ZAZEN_IMAGE_OPEN, _FORMAT, _VERSION, _TRUNCATED, _CHECKSUM, _READ; ZAZEN_IMAGE_PARENT when a
 * parent is missing, is not the image that was meant, or the chain is too long or a circle
 */
export async function openImage(path: string, options: OpenImageOptions = {}): Promise<Image> {
  const { parents = true, files = nodeFiles } = options;
  return openChain(path, files, parents, []);
}

async function openChain(path: string, files: FileSystem, parents: boolean, children: ImageFile[]): Promise<Image> {
  const file = await openImageFile(path, files);
  try {
    const reference = file.content.header.parent;
    if (reference === undefined || !parents) return new Image(file, undefined);
    const chain = [...children, file];
    const parent = await openParent(file, reference, files, chain);
    return new Image(file, parent);
  } catch (error) {
    await file.file.close();
    throw error;
  }
}

async function openParent(
  child: ImageFile, reference: ParentReference, files: FileSystem, chain: ImageFile[],
): Promise<Image> {
  const path = resolve(dirname(child.path), reference.path);
  if (chain.length >= CHAIN_MAX) {
    throw imageError('PARENT', chain[0]!.path, `is the last of a chain of more than ${CHAIN_MAX} images`);
  }
  // Checked before the parent's own parents are looked for, so that a circle ends here.
  const known = chain.find(({ content }) => content.header.id === reference.id);
  if (known !== undefined) throw imageError('PARENT', child.path, `and its parent ${path} form a circle`);
  let parent: Image;
  try {
    parent = await openChain(path, files, true, chain);
  } catch (cause) {
    if (!(cause instanceof ZazenError)) throw cause;
    if (cause.code === 'ZAZEN_IMAGE_PARENT') throw cause;
    throw imageError('PARENT', child.path, `needs its parent: ${cause.message}`, {
      cause, hint: cause.hint ?? 'put the parent back in its place',
    });
  }
  if (parent.header.id !== reference.id || parent.digest !== reference.digest) {
    await parent.close();
    throw imageError('PARENT', child.path, `needs another image than the one that is now at ${path}`);
  }
  return parent;
}

const hashers = new WeakMap<WebAssembly.Memory, PageHasher>();

function hasherOf(machine: PageMemory): PageHasher {
  const known = hashers.get(machine.memory);
  if (known !== undefined) return known;
  const hasher = new PageHasher(machine);
  hashers.set(machine.memory, hasher);
  return hasher;
}

/** Pages of one image file on their way into machine memory by one request. */
interface PageRead {
  readonly image: Image;
  readonly gfn: number;
  readonly mfns: Uint32Array;
}

const REQUEST_PAGES = REQUEST_BYTES / FRAME_BYTES;

export class Image {
  readonly #file: ImageFile;
  readonly parent: Image | undefined;

  constructor(file: ImageFile, parent: Image | undefined) {
    this.#file = file;
    this.parent = parent;
  }

  get path(): string { return this.#file.path; }
  get version(): number { return this.#file.version; }
  get fileBytes(): number { return this.#file.fileBytes; }
  get header(): ImageHeader { return this.#file.content.header; }
  get banks(): readonly Bank[] { return this.#file.banks; }
  get vcpus(): readonly VcpuRegisters[] { return this.#file.content.vcpus; }
  get vmcoreinfo(): Uint8Array | undefined { return this.#file.content.vmcoreinfo; }
  /** State sections by name, in the order of writing. */
  get sections(): ReadonlyMap<string, Uint8Array> { return this.#file.content.sections; }
  get pageCount(): number { return this.#file.map.pageCount; }
  /** Pages stored in this very file. */
  get storedPages(): number { return this.#file.content.checksums.length / 2; }
  /** Sixteen hexadecimal digits that stand for the whole contents. */
  get digest(): string { return this.#file.digest; }
  /** False where the file system refused O_DIRECT. */
  get direct(): boolean { return this.#file.file.isDirect; }
  /** For an incremental image that names this one as its parent. */
  get reference(): ParentReference {
    return { path: resolve(this.path), id: this.header.id, digest: this.digest };
  }

  /** @throws ZazenError ZAZEN_IMAGE_FORMAT when the image has no such section: every reader needs what it asks for */
  section(name: string): Uint8Array {
    const bytes = this.sections.get(name);
    if (bytes === undefined) throw imageError('FORMAT', this.path, `has no state of ${name}`);
    return bytes;
  }

  /** What this file itself says of a guest page; undefined where the guest has no memory. */
  pageState(gfn: number): PageState | undefined {
    return this.#file.map.state(gfn);
  }

  /** How many pages are in each state in this file. */
  pageCounts(): Record<PageState, number> {
    const counts = { zero: 0, stored: 0, parent: 0 };
    for (const { count, state } of this.#file.map.stretches()) counts[state] += count;
    return counts;
  }

  /**
   * The pages that are not zero, parents' pages included, in ascending order; of the whole guest or a range.
   * @throws ZazenError ZAZEN_IMAGE_PARENT
   */
  *runs(gfn = 0, count = Infinity): Generator<StoredRun> {
    for (const stretch of this.#file.map.stretches(gfn, count)) {
      if (stretch.state === 'stored') yield { gfn: stretch.gfn, count: stretch.count, image: this };
      if (stretch.state !== 'parent') continue;
      yield* this.#parentOf(stretch.gfn, stretch.count).runs(stretch.gfn, stretch.count);
    }
  }

  #parentOf(gfn: number, count: number): Image {
    if (this.parent === undefined) throw imageError('PARENT', this.path, 'was opened without its parent');
    const first = this.parent.#file.map.pageOf(gfn);
    if (first < 0 || this.parent.#file.map.pageOf(gfn + count - 1) !== first + count - 1) {
      throw imageError('PARENT', this.path, `looks for page ${gfn} in its parent, which has no such memory`);
    }
    return this.parent;
  }

  /**
   * Reads guest pages gfn … gfn+n-1 into the machine frames mfns[0] … mfns[n-1]; zero pages are filled with zeros.
   * Frames that follow each other are fastest.
   * @throws ZazenError ZAZEN_IMAGE_READ, _TRUNCATED, _CHECKSUM, which name the file and the page; ZAZEN_IMAGE_PARENT
   */
  async readPages(machine: PageMemory, gfn: number, mfns: Uint32Array): Promise<void> {
    const queue = new RequestQueue();
    try {
      for (const read of this.#plan(machine, gfn, mfns)) {
        await queue.add(async () => {
          const bytesRead = await read.image.#file.file.read(buffersOf(machine, read), read.image.#offsetOf(read))
            .catch((cause: unknown) => read.image.#readFailed(read, cause));
          read.image.#check(machine, read, bytesRead);
        });
      }
    } finally {
      await queue.settle();
    }
  }

  /** As `readPages`, without leaving the calling thread: for a pCPU that waits for a few pages. */
  readPagesSync(machine: PageMemory, gfn: number, mfns: Uint32Array): void {
    for (const read of this.#plan(machine, gfn, mfns)) {
      let bytesRead = 0;
      try {
        bytesRead = read.image.#file.file.readSync(buffersOf(machine, read), read.image.#offsetOf(read));
      } catch (cause) {
        read.image.#readFailed(read, cause);
      }
      read.image.#check(machine, read, bytesRead);
    }
  }

  /** Fills zero pages at once, and gives what has to be read. */
  *#plan(machine: PageMemory, gfn: number, mfns: Uint32Array): Generator<PageRead> {
    const { map } = this.#file;
    const first = map.pageOf(gfn);
    assert(mfns.length === 0 || first >= 0 && map.pageOf(gfn + mfns.length - 1) === first + mfns.length - 1,
      'pages to read lie outside of the guest');
    for (const stretch of bridge(map.stretches(gfn, mfns.length))) {
      const start = stretch.gfn - gfn;
      const targets = mfns.subarray(start, start + stretch.count);
      if (stretch.state === 'zero') {
        for (const mfn of targets) machine.u8.fill(0, mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES);
      } else if (stretch.state === 'parent') {
        yield* this.#parentOf(stretch.gfn, stretch.count).#plan(machine, stretch.gfn, targets);
      } else {
        for (let k = 0; k < stretch.count; k += REQUEST_PAGES) {
          yield { image: this, gfn: stretch.gfn + k, mfns: targets.subarray(k, k + REQUEST_PAGES) };
        }
      }
    }
  }

  #offsetOf({ gfn }: PageRead): number {
    const { map, layout } = this.#file;
    return layout.notesOffset - (map.pageCount - map.pageOf(gfn)) * FRAME_BYTES;
  }

  #readFailed({ gfn }: PageRead, cause: unknown): never {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === undefined) throw cause;
    throw imageError('READ', this.path, `page ${gfn} cannot be read (${code})`, { cause });
  }

  #check(machine: PageMemory, { gfn, mfns }: PageRead, bytesRead: number): void {
    if (bytesRead < mfns.length * FRAME_BYTES) {
      throw imageError('TRUNCATED', this.path, `is cut short before page ${gfn + Math.floor(bytesRead / FRAME_BYTES)}`);
    }
    const hasher = hasherOf(machine);
    for (const { start, mfn, count } of frameStretches(mfns)) {
      for (const bad of findAlteredPages(this.#file, hasher, gfn + start, mfn, count)) {
        throw imageError('CHECKSUM', this.path, `page ${bad} is not what was written`,
          { hint: 'the file was altered, or its disk fails' });
      }
    }
  }

  /**
   * Reads every byte of this file and of its parents again and looks for what is not as it was written.
   * @throws ZazenError as openImage does when a head or the notes are no longer right
   */
  async verify(options: VerifyOptions = {}): Promise<VerifyResult> {
    const own = await verifyPages(this.#file, options);
    if (this.parent === undefined) return own;
    for (const { gfn, count, state } of this.#file.map.stretches()) if (state === 'parent') this.#parentOf(gfn, count);
    const inherited = await this.parent.verify(options);
    return {
      bytesRead: own.bytesRead + inherited.bytesRead,
      pagesChecked: own.pagesChecked + inherited.pagesChecked,
      problemCount: own.problemCount + inherited.problemCount,
      problems: [...own.problems, ...inherited.problems],
    };
  }

  async close(): Promise<void> {
    await this.#file.file.close();
    await this.parent?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
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

/** Stretches of consecutive frames. */
function* frameStretches(mfns: Uint32Array): Generator<{ start: number; mfn: number; count: number }> {
  for (let start = 0; start < mfns.length;) {
    let end = start + 1;
    while (end < mfns.length && mfns[end] === mfns[end - 1]! + 1) end++;
    yield { start, mfn: mfns[start]!, count: end - start };
    start = end;
  }
}

function buffersOf(machine: PageMemory, { mfns }: PageRead): Uint8Array[] {
  return [...frameStretches(mfns)].map(({ mfn, count }) =>
    machine.u8.subarray(mfn * FRAME_BYTES, (mfn + count) * FRAME_BYTES));
}
