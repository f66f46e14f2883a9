// An image open for reading, with the parents that it refers to. Pages come straight into the machine memory, in any
// order and from any number of readers at once; each is checked before the call returns. Until then the frames that
// they are read into must be nobody's: after an error they hold anything.

import type { BigIntStats } from 'node:fs';
import * as nodeFiles from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import type { PageMemory } from './checksum.ts';
import { RequestQueue } from './direct-file.ts';
import type { DirectFile, FileSystem } from './direct-file.ts';
import { CHAIN_MAX, imageError } from './format.ts';
import type { Bank, ImageHeader, KernelWindow, PageState, ParentReference, VcpuRegisters } from './format.ts';
import { buffersOf } from './frame-buffers.ts';
import type { HotArea } from './hot-area.ts';
import { openImageFile } from './open-file.ts';
import type { AtHead, ImageFile } from './open-file.ts';
import { StoredPages } from './stored-pages.ts';
import type { StoredRun } from './stored-pages.ts';
import { verifyPages } from './verify.ts';
import type { VerifyOptions, VerifyResult } from './verify.ts';

export interface OpenImageOptions {
  /** False: the file alone, of which only the pages that it stores itself can be read. Default true. */
  readonly parents?: boolean;
  readonly files?: FileSystem;
  /** Of this very file; when opening fails later, it is closed when what this has begun to read has ended. */
  readonly atHead?: AtHead;
}

/**
 * @throws ZazenError ZAZEN_IMAGE_OPEN, _FORMAT, _VERSION, _TRUNCATED, _CHECKSUM, _READ; ZAZEN_IMAGE_PARENT when a
 * parent is missing, is not the image that was meant, or the chain is too long or a circle
 */
export async function openImage(path: string, options: OpenImageOptions = {}): Promise<Image> {
  const { parents = true, files = nodeFiles, atHead } = options;
  return openChain(path, files, parents, [], atHead);
}

async function openChain(
  path: string, files: FileSystem, parents: boolean, children: ImageFile[], atHead?: AtHead,
): Promise<Image> {
  const file = await openImageFile(path, files, atHead);
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

export class Image {
  readonly #file: ImageFile;
  readonly parent: Image | undefined;
  /** Where the pages are, for readers in any thread. */
  readonly pages: StoredPages;

  constructor(file: ImageFile, parent: Image | undefined) {
    this.#file = file;
    this.parent = parent;
    const { path, banks, map, content } = file;
    this.pages = new StoredPages({ path, banks, map, checksums: content.checksums }, () => file.file.handle.fd, parent?.pages);
  }

  get path(): string { return this.#file.path; }
  get version(): number { return this.#file.version; }
  get fileBytes(): number { return this.#file.fileBytes; }
  get header(): ImageHeader { return this.#file.content.header; }
  get banks(): readonly Bank[] { return this.#file.banks; }
  get kernelWindow(): KernelWindow | undefined { return this.#file.kernelWindow; }
  get vcpus(): readonly VcpuRegisters[] { return this.#file.content.vcpus; }
  get vmcoreinfo(): Uint8Array | undefined { return this.#file.content.vmcoreinfo; }
  /** State sections by name, in the order of writing. */
  get sections(): ReadonlyMap<string, Uint8Array> { return this.#file.content.sections; }
  get pageCount(): number { return this.#file.map.pageCount; }
  /** Pages stored in this very file. */
  get storedPages(): number { return this.pages.storedPages; }
  /** Sixteen hexadecimal digits that stand for the whole contents. */
  get digest(): string { return this.#file.digest; }
  /** False where the file system refused O_DIRECT. */
  get direct(): boolean { return this.#file.file.isDirect; }
  /** Guest pages that are stored twice, because a restored guest needs them first, in the order of their second copies. */
  get hotGfns(): Uint32Array { return this.#file.content.hotGfns; }
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

  /** Whether this very file stores all of some pages, at least one. */
  areStored(gfn: number, count: number): boolean {
    return this.#file.map.areStored(gfn, count);
  }

  /** See StoredPages.runs. */
  runs(gfn = 0, count = Infinity): Generator<StoredRun> {
    return this.pages.runs(gfn, count);
  }

  /**
   * Reads guest pages gfn … gfn+n-1 into the machine frames mfns[0] … mfns[n-1]; zero pages are filled with zeros.
   * Frames that follow each other are fastest.
   * @throws ZazenError ZAZEN_IMAGE_READ, _TRUNCATED, _CHECKSUM, which name the file and the page; ZAZEN_IMAGE_PARENT
   */
  async readPages(machine: PageMemory, gfn: number, mfns: Uint32Array): Promise<void> {
    const queue = new RequestQueue();
    try {
      for (const read of this.pages.plan(machine, gfn, mfns)) {
        const { pages } = read;
        await queue.add(async () => {
          const bytesRead = await this.#fileOf(pages).read(buffersOf(machine, read), pages.offsetOf(read.gfn))
            .catch((cause: unknown) => pages.readFailed(read.gfn, cause));
          pages.check(machine, read, bytesRead);
        });
      }
    } finally {
      await queue.settle();
    }
  }

  /** The second copies of the hot pages. */
  get hotArea(): HotArea { return this.#file.hotArea; }

  /**
   * @param first number of the first hot page that was read
   * @param mfns frames that they were read into
   * @returns GFNs of those that are not what was written
   */
  findAlteredHotPages(machine: PageMemory, first: number, mfns: Uint32Array): Set<number> {
    return this.pages.findAltered(machine, this.hotGfns.subarray(first, first + mfns.length), mfns);
  }

  /** As `readPages`, without leaving the calling thread. */
  readPagesSync(machine: PageMemory, gfn: number, mfns: Uint32Array): void {
    this.pages.readSync(machine, gfn, mfns);
  }

  #fileOf(pages: StoredPages): DirectFile {
    return this.pages === pages || this.parent === undefined ? this.#file.file : this.parent.#fileOf(pages);
  }

  /**
   * Reads every byte of this file and of its parents again and looks for what is not as it was written.
   * @throws ZazenError as openImage does when a head or the notes are no longer right
   */
  async verify(options: VerifyOptions = {}): Promise<VerifyResult> {
    const own = await verifyPages(this.#file, options);
    if (this.parent === undefined) return own;
    for (const { gfn, count, state } of this.#file.map.stretches()) if (state === 'parent') this.pages.parentOf(gfn, count);
    const inherited = await this.parent.verify(options);
    return {
      bytesRead: own.bytesRead + inherited.bytesRead,
      pagesChecked: own.pagesChecked + inherited.pagesChecked,
      problemCount: own.problemCount + inherited.problemCount,
      problems: [...own.problems, ...inherited.problems],
    };
  }

  /** Of the file that is open, whatever its name means by now, as it was before anything was read. */
  get status(): BigIntStats {
    return this.#file.status;
  }

  async close(): Promise<void> {
    await this.#file.file.close();
    await this.parent?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
