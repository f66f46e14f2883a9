// Writes an image: guest pages straight out of the machine memory in large requests, several of them in flight; then
// the notes; then the head, without which a file is no image; then the name.

import * as nodeFiles from 'node:fs/promises';
import { randomUUID } from 'node:crypto';
import { basename, dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { EMPTY_DIGEST, PageHasher, formatDigest } from './checksum.ts';
import type { Digest, PageMemory } from './checksum.ts';
import { REQUEST_BYTES, RequestQueue, Scratch } from './direct-file.ts';
import type { DirectFile, FileSystem } from './direct-file.ts';
import { encodeHead, encodeNotes, encodeVcpu, setHeadDigest } from './elf.ts';
import {
  BLOCK_BYTES, BRIDGE_PAGES, IMAGE_VERSION, VCPUS_MAX, alignToBlock, findBankFault, imageError, layoutImage,
} from './format.ts';
import type {
  Bank, ImageHeader, ImageLayout, JsonValue, ParentReference, StateSection, VcpuRegisters,
} from './format.ts';
import { ZAZEN_NOTE, encodeSection, notesBytesMax } from './notes.ts';
import { PageMap } from './page-map.ts';
import { PartialFile } from './partial-file.ts';

/**
 * Guest pages gfn … gfn+count-1: in consecutive machine frames from `mfn` on, or as they are in the parent image.
 * Frames must not change until the write is over.
 */
export interface PageRun {
  readonly gfn: number;
  readonly count: number;
  readonly mfn: number | 'parent';
}

export interface WriteImageRequest {
  readonly path: string;
  /** In ascending order, without overlap. */
  readonly banks: readonly Bank[];
  /** In ascending order; pages in no run are zero. Pages in frames that are all zero become holes like them. */
  readonly pages: Iterable<PageRun>;
  /** `MachineMemory` is one. */
  readonly machine: PageMemory;
  /** Told by `zazen image info`: the guest's `name` and `uuid`, and whatever else is worth telling. */
  readonly domain: { readonly [key: string]: JsonValue };
  readonly vcpus: readonly VcpuRegisters[];
  /** The text of the guest kernel's VMCOREINFO. */
  readonly vmcoreinfo?: Uint8Array;
  readonly sections: readonly StateSection[];
  /** `Image.reference` of the parent, or `ImageWritten.reference`; needed if any run says 'parent'. */
  readonly parent?: ParentReference;
  readonly onProgress?: (progress: WriteProgress) => void;
  readonly signal?: AbortSignal;
  readonly files?: FileSystem;
  readonly wallMillis?: () => number;
}

export interface WriteProgress {
  /** Pages of the guest that are dealt with, of all of them. */
  readonly pagesDone: number;
  readonly pageCount: number;
  readonly bytesWritten: number;
}

export interface ImageWritten {
  /** To this image, for an incremental one; the path is absolute. */
  readonly reference: ParentReference;
  readonly pagesWritten: number;
  readonly zeroPages: number;
  readonly parentPages: number;
  /** Notes and head included, holes not. */
  readonly bytesWritten: number;
  readonly fileBytes: number;
  readonly requests: number;
  /** False where the file system refused O_DIRECT and the page cache was used. */
  readonly direct: boolean;
  /** Until everything was with the file system, until it was durable under its name, and the sum. */
  readonly writeMillis: number;
  readonly syncMillis: number;
  readonly millis: number;
}

/**
 * When it returns, the file is complete and durable under its name. When it throws, that name is as it was before.
 * @throws ZazenError ZAZEN_IMAGE_CREATE, ZAZEN_IMAGE_NO_SPACE, ZAZEN_IMAGE_WRITE; the signal's reason when aborted
 */
export async function writeImage(request: WriteImageRequest): Promise<ImageWritten> {
  const { path, signal, files = nodeFiles } = request;
  assert(findBankFault(request.banks) === undefined, 'banks of memory that no image can hold');
  assert(request.vcpus.length <= VCPUS_MAX, 'more vCPUs than an image can hold');
  signal?.throwIfAborted();
  const started = performance.now();
  const header = await makeHeader(request);
  // Renaming over a device would put a file in its place, and over a folder would fail after all the work.
  const isOther = await files.stat(path).then((status) => !status.isFile(), () => false);
  if (isOther) throw imageError('CREATE', path, 'there is something else than a file of this name');
  const partial = await PartialFile.create(files, path).catch((cause: unknown) => {
    throw asImageError(path, cause, 'CREATE');
  });
  try {
    const writing = new ImageWriting(request, partial.file, header);
    const digest = await writing.run();
    signal?.throwIfAborted();
    const direct = partial.file.isDirect;
    const written = performance.now();
    await partial.publish();
    const done = performance.now();
    return {
      ...writing.counts(),
      reference: { path: resolve(path), id: header.id, digest: formatDigest(digest) },
      direct, writeMillis: written - started, syncMillis: done - written, millis: done - started,
    };
  } catch (error) {
    await partial.discard();
    if (signal?.aborted) throw signal.reason;
    throw asImageError(path, error, 'WRITE');
  }
}

const ADVICE: Record<string, string> = {
  ENOSPC: 'make room on the disk', EDQUOT: 'the quota is used up', EFBIG: 'the file system or ulimit -f is too small',
};

/** What the file system says, for the operator; our own bugs stay what they are. */
function asImageError(path: string, cause: unknown, kind: 'CREATE' | 'WRITE'): unknown {
  const { code, syscall } = (cause ?? {}) as NodeJS.ErrnoException;
  if (cause instanceof ZazenError || code === undefined || syscall === undefined && code !== 'EIO') return cause;
  const hint = ADVICE[code];
  if (hint !== undefined) return imageError('NO_SPACE', path, `no room for it (${code})`, { cause, hint });
  return imageError(kind, path, `cannot be ${kind === 'CREATE' ? 'created' : 'written'} (${code})`, { cause });
}

async function makeHeader({ path, parent, domain, wallMillis = Date.now }: WriteImageRequest): Promise<ImageHeader> {
  const header = { id: randomUUID(), createdMillis: wallMillis(), domain };
  if (parent === undefined) return header;
  const real = (file: string) => nodeFiles.realpath(file).catch(() => resolve(file));
  const [folder, parentPath] = await Promise.all([real(dirname(resolve(path))), real(parent.path)]);
  if (join(folder, basename(path)) === parentPath) {
    throw imageError('CREATE', path, 'would replace its own parent', { hint: 'give it another name' });
  }
  const relativePath = relative(folder, parentPath);
  assert(!isAbsolute(relativePath), 'a relative path is absolute');
  return { ...header, parent: { ...parent, path: relativePath } };
}

/** Pages that follow each other in the file, to be written by one request. */
interface Batch {
  readonly offset: number;
  pages: number;
  readonly pieces: { mfn: number | 'zeros'; count: number }[];
}

const REQUEST_PAGES = REQUEST_BYTES / FRAME_BYTES;
/**
 * A request costs as much time as some hundred kilobytes (docs/formats/image.md), so that a short gap is written as
 * zeros; but of all that is stored only an eighth may be such zeros, lest the file lose its holes.
 */
const BRIDGE_SHARE = 8;
const zeros = new Uint8Array(new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true }).buffer);

class ImageWriting {
  readonly #request: WriteImageRequest;
  readonly #file: DirectFile;
  readonly #header: ImageHeader;
  readonly #layout: ImageLayout;
  readonly #map: PageMap;
  readonly #checksums: Uint32Array;
  readonly #hasher: PageHasher;
  readonly #queue = new RequestQueue();
  #batch: Batch | undefined;
  #pagesWritten = 0;
  #parentPages = 0;
  #bridgedPages = 0;
  #bytesWritten = 0;
  #fileBytes = 0;
  #requests = 0;

  constructor(request: WriteImageRequest, file: DirectFile, header: ImageHeader) {
    this.#request = request;
    this.#file = file;
    this.#header = header;
    this.#layout = layoutImage(request.banks);
    this.#map = new PageMap(request.banks);
    this.#checksums = new Uint32Array(2 * this.#layout.pageCount);
    this.#hasher = new PageHasher(request.machine);
  }

  /** @returns the digest of the head */
  async run(): Promise<Digest> {
    try {
      await this.#file.handle.truncate(this.#layout.notesOffset); // so that no page's write has to move the end
      await this.#writePages();
    } finally {
      await this.#queue.settle();
    }
    return Scratch.use(async (scratch) => {
      const notes = encodeNotes(this.#notes());
      assert(notes.length <= notesBytesMax(this.#layout.pageCount), 'more state than an image can hold');
      const notesDigest = await this.#writeNotes(notes, scratch);
      return this.#writeHead({ banks: this.#request.banks, notesBytes: notes.length, notesDigest }, scratch);
    });
  }

  counts() {
    return {
      pagesWritten: this.#pagesWritten,
      parentPages: this.#parentPages,
      zeroPages: this.#layout.pageCount - this.#pagesWritten - this.#parentPages,
      bytesWritten: this.#bytesWritten,
      fileBytes: this.#fileBytes,
      requests: this.#requests,
    };
  }

  async #writePages(): Promise<void> {
    let nextGfn = 0;
    for (const { gfn, count, mfn } of this.#request.pages) {
      assert(gfn >= nextGfn && count > 0, 'runs of pages are out of order');
      nextGfn = gfn + count;
      const first = this.#map.pageOf(gfn);
      assert(first >= 0 && this.#map.pageOf(nextGfn - 1) === first + count - 1, 'a run of pages is in no bank');
      if (mfn === 'parent') {
        assert(this.#request.parent !== undefined, 'pages of a parent that was not named');
        for (let k = 0; k < count; k++) this.#map.mark(gfn + k, 'parent');
        this.#parentPages += count;
        continue;
      }
      for (let k = 0; k < count; k += REQUEST_PAGES) {
        await this.#addPages(first + k, gfn + k, mfn + k, Math.min(REQUEST_PAGES, count - k));
      }
    }
    await this.#flush();
  }

  async #addPages(page: number, gfn: number, mfn: number, count: number): Promise<void> {
    const checksums = new Uint32Array(2 * count);
    const zeroPages = this.#hasher.hashPages(mfn, count, gfn, checksums, 0);
    for (let k = 0; k < count; k++) {
      if (zeroPages[k]) continue;
      this.#checksums.set(checksums.subarray(2 * k, 2 * k + 2), 2 * this.#pagesWritten++);
      this.#map.mark(gfn + k, 'stored');
      const offset = BLOCK_BYTES + (page + k) * FRAME_BYTES;
      if (this.#batch !== undefined && !this.#reach(this.#batch, offset)) await this.#flush();
      this.#batch ??= { offset, pages: 0, pieces: [] };
      this.#batch.pages++;
      const piece = this.#batch.pieces.at(-1);
      if (typeof piece?.mfn === 'number' && piece.mfn + piece.count === mfn + k) piece.count++;
      else this.#batch.pieces.push({ mfn: mfn + k, count: 1 });
    }
    this.#request.signal?.throwIfAborted();
    this.#request.onProgress?.({
      pagesDone: page + count, pageCount: this.#layout.pageCount, bytesWritten: this.#bytesWritten,
    });
  }

  /** Whether a page at this offset can go with the batch, which a short gap does not prevent. */
  #reach(batch: Batch, offset: number): boolean {
    const gap = (offset - batch.offset) / FRAME_BYTES - batch.pages;
    if (batch.pages + gap >= REQUEST_PAGES || gap > BRIDGE_PAGES) return false;
    if (gap === 0) return true;
    if ((this.#bridgedPages + gap) * BRIDGE_SHARE > this.#pagesWritten) return false;
    this.#bridgedPages += gap;
    batch.pages += gap;
    batch.pieces.push({ mfn: 'zeros', count: gap });
    return true;
  }

  async #flush(): Promise<void> {
    const batch = this.#batch;
    if (batch === undefined) return;
    this.#batch = undefined;
    const { u8 } = this.#request.machine;
    const buffers = batch.pieces.map(({ mfn, count }) => mfn === 'zeros' ? zeros.subarray(0, count * FRAME_BYTES)
      : u8.subarray(mfn * FRAME_BYTES, (mfn + count) * FRAME_BYTES));
    await this.#queue.add(() => this.#write(buffers, batch.offset));
  }

  async #write(buffers: readonly Uint8Array[], offset: number): Promise<void> {
    await this.#file.write(buffers, offset);
    this.#requests++;
    for (const { length } of buffers) this.#bytesWritten += length;
  }

  #notes() {
    const { vcpus, vmcoreinfo, sections } = this.#request;
    const { name, type } = ZAZEN_NOTE;
    const own = (kind: keyof typeof type, bytes: Uint8Array) => ({ name, type: type[kind], bytes });
    const checksums = this.#checksums.subarray(0, 2 * this.#pagesWritten);
    return [
      ...vcpus.flatMap(encodeVcpu),
      ...(vmcoreinfo === undefined ? [] : [{ name: 'VMCOREINFO', type: 0, bytes: vmcoreinfo }]),
      own('header', new TextEncoder().encode(JSON.stringify(this.#header))),
      ...sections.map((section) => own('section', encodeSection(section))),
      own('pageMap', this.#map.bytes),
      own('checksums', new Uint8Array(checksums.buffer, 0, checksums.byteLength)),
    ];
  }

  async #writeNotes(notes: Uint8Array, scratch: Scratch): Promise<Digest> {
    const { notesOffset } = this.#layout;
    let digest = EMPTY_DIGEST;
    for (let at = 0; at < notes.length; at += Scratch.sizeBytes) {
      const part = notes.subarray(at, at + Scratch.sizeBytes);
      const blocks = alignToBlock(part.length) / BLOCK_BYTES;
      scratch.u8.set(part);
      scratch.u8.fill(0, part.length, blocks * BLOCK_BYTES);
      digest = scratch.hasher.digest(0, blocks, digest);
      await this.#write([scratch.blocks(0, blocks)], notesOffset + at);
      this.#request.signal?.throwIfAborted();
    }
    this.#fileBytes = notesOffset + alignToBlock(notes.length);
    return digest;
  }

  async #writeHead(head: Parameters<typeof encodeHead>[1], scratch: Scratch): Promise<Digest> {
    const block = scratch.blocks(0, 1);
    block.fill(0);
    encodeHead(block, head, IMAGE_VERSION, this.#fileBytes);
    const digest = scratch.hasher.digest(0, 1);
    setHeadDigest(block, digest);
    await this.#write([block], 0);
    return digest;
  }
}
