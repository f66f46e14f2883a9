// Writes an image: guest pages in large requests, several of them in flight (page-writer.ts), behind them the notes and
// the head; then the name.

import * as nodeFiles from 'node:fs/promises';
import { randomUUID } from 'node:crypto';
import { basename, dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { EMPTY_DIGEST, formatDigest } from './checksum.ts';
import type { Digest, PageMemory } from './checksum.ts';
import { RequestQueue, Scratch } from './direct-file.ts';
import type { DirectFile, FileSystem } from './direct-file.ts';
import { encodeHead, encodeNotes, encodeVcpu, setHeadDigest } from './elf.ts';
import {
  BLOCK_BYTES, HOT_PAGES_MAX, IMAGE_VERSION, VCPUS_MAX, alignToBlock, findBankFault, findWindowFault, imageError,
  layoutImage,
} from './format.ts';
import type {
  Bank, ImageHeader, ImageLayout, JsonValue, KernelWindow, ParentReference, StateSection, VcpuRegisters,
} from './format.ts';
import { ZAZEN_NOTE, encodeSection, notesBytesMax } from './notes.ts';
import { PageWriter } from './page-writer.ts';
import type { PageFrame, PageRun, ParentPages, WriteProgress } from './page-writer.ts';
import { PartialFile } from './partial-file.ts';

export interface LaterContent extends Pick<WriteImageRequest, 'vmcoreinfo' | 'kernelWindow'> {
  readonly sections: readonly StateSection[];
  /** What a restored guest needs first, in that order: as many of them as an image may are stored twice. */
  readonly hotPages?: readonly PageFrame[];
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
  readonly vmcoreinfo?: Uint8Array | undefined;
  /** For readers that look at the guest with its kernel's eyes. */
  readonly kernelWindow?: KernelWindow | undefined;
  readonly sections: readonly StateSection[];
  /** What takes time to find, beside the above: asked for once, while pages are on their way to the disk. */
  readonly later?: () => Promise<LaterContent>;
  /** `Image.reference` of the parent, or `ImageWritten.reference`; needed if any run says 'parent'. */
  readonly parent?: ParentReference | undefined;
  /** Pages that the parent has like this are left to it, beside those of runs that say so. */
  readonly parentPages?: ParentPages | undefined;
  /** Told about a hundred times, the last time when all pages are done. */
  readonly onProgress?: (progress: WriteProgress) => void;
  readonly signal?: AbortSignal;
  readonly files?: FileSystem;
  readonly wallMillis?: () => number;
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
  const looking = files.stat(path).then((status) => !status.isFile(), () => false);
  const creating = PartialFile.create(files, path);
  if (await looking) {
    await creating.then((unwanted) => unwanted.discard(), () => {});
    throw imageError('CREATE', path, 'there is something else than a file of this name');
  }
  const partial = await creating.catch((cause: unknown) => { throw asImageError(path, cause, 'CREATE'); });
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

async function makeHeader(request: WriteImageRequest): Promise<ImageHeader> {
  const { path, parent, parentPages, domain, wallMillis = Date.now } = request;
  const header = { id: randomUUID(), createdMillis: wallMillis(), domain };
  if (parent === undefined) return header;
  const real = (file: string) => nodeFiles.realpath(file).catch(() => resolve(file));
  const folder = await real(dirname(resolve(path)));
  const chain = await Promise.all((parentPages?.paths ?? [parent.path]).map(real));
  if (chain.includes(join(folder, basename(path)))) {
    throw imageError('CREATE', path, 'would replace an image that it builds on', { hint: 'give it another name' });
  }
  const relativePath = relative(folder, chain[0]!);
  assert(!isAbsolute(relativePath), 'a relative path is absolute');
  return { ...header, parent: { ...parent, path: relativePath } };
}

/** Of the memory for notes and head, the last block is the head's. */
const NOTES_PART_BYTES = Scratch.sizeBytes - BLOCK_BYTES;

class ImageWriting {
  readonly #request: WriteImageRequest;
  readonly #queue = new RequestQueue();
  readonly #file: DirectFile;
  readonly #header: ImageHeader;
  #layout: ImageLayout;
  readonly #pages: PageWriter;
  #stateBytes = 0;
  #stateRequests = 0;
  #fileBytes = 0;

  constructor(request: WriteImageRequest, file: DirectFile, header: ImageHeader) {
    this.#request = request;
    this.#file = file;
    this.#header = header;
    this.#layout = layoutImage(request.banks);
    const { machine, banks, parentPages, onProgress, signal } = request;
    this.#pages = new PageWriter({ file, queue: this.#queue, machine, banks, parent: parentPages, onProgress, signal });
  }

  /** @returns the digest of the head */
  async run(): Promise<Digest> {
    const scratch = Scratch.take();
    try {
      const digest = await this.#submitAll(scratch);
      await this.#queue.settle();
      this.#pages.finish();
      return digest;
    } finally {
      // The memory is in use until then.
      await this.#queue.settle().finally(() => {
        this.#pages.release();
        Scratch.give(scratch);
      });
    }
  }

  /** Nothing waits for its turn but for memory and for a place in the queue: the file has no name yet. */
  async #submitAll(scratch: Scratch): Promise<Digest> {
    // So that no page's write has to move the end; whichever of them comes first, the file is as long in the end.
    const growing = this.#file.handle.truncate(this.#layout.hotOffset);
    growing.catch(() => {});
    const content = await this.#submitPages();
    assert(this.#pages.parentPages === 0 || this.#request.parent !== undefined, 'pages of a parent that was not named');
    const hotPages = await this.#submitHotPages(content.hotPages ?? []);
    const notes = encodeNotes(this.#notes(content, hotPages));
    assert(notes.length <= notesBytesMax(this.#layout.pageCount), 'more state than an image can hold');
    await growing;
    const notesDigest = await this.#submitNotes(notes, scratch);
    const { banks } = this.#request;
    const { kernelWindow } = content;
    assert(kernelWindow === undefined || findWindowFault(kernelWindow, banks) === undefined,
      'a window to what is not there');
    return this.#submitHead({ banks, kernelWindow, hotPages: hotPages.length, notesBytes: notes.length, notesDigest }, scratch);
  }

  counts() {
    const { pagesWritten, parentPages, bytesWritten, requests } = this.#pages;
    return {
      pagesWritten, parentPages,
      zeroPages: this.#layout.pageCount - pagesWritten - parentPages,
      bytesWritten: bytesWritten + this.#stateBytes,
      requests: requests + this.#stateRequests,
      fileBytes: this.#fileBytes,
    };
  }

  async #submit(blocks: Uint8Array, offset: number): Promise<void> {
    await this.#queue.add(() => this.#file.write([blocks], offset));
    this.#stateBytes += blocks.length;
    this.#stateRequests++;
  }

  async #submitPages(): Promise<LaterContent> {
    const { pages, later, vmcoreinfo, kernelWindow, sections } = this.#request;
    const writing = this.#pages.write(pages);
    // Its failure is told below; meanwhile it is nobody's.
    writing.catch(() => {});
    let found: LaterContent | undefined;
    try {
      await new Promise(setImmediate);
      found = await later?.();
    } finally {
      await writing;
    }
    return { vmcoreinfo, kernelWindow, ...found, sections: [...sections, ...found?.sections ?? []] };
  }

  /** @returns those that are stored: others are zero */
  async #submitHotPages(wanted: readonly PageFrame[]): Promise<readonly PageFrame[]> {
    const { map } = this.#pages;
    const stored = wanted.filter(({ gfn }) => map.state(gfn) === 'stored').slice(0, HOT_PAGES_MAX);
    this.#layout = layoutImage(this.#request.banks, stored.length);
    await this.#pages.writeCopies(stored, this.#layout.hotOffset);
    return stored;
  }

  #notes({ vmcoreinfo, sections }: LaterContent, hotPages: readonly PageFrame[]) {
    const { vcpus } = this.#request;
    const { name, type } = ZAZEN_NOTE;
    const own = (kind: keyof typeof type, bytes: Uint8Array) => ({ name, type: type[kind], bytes });
    const { map, checksums } = this.#pages;
    return [
      ...vcpus.flatMap(encodeVcpu),
      ...(vmcoreinfo === undefined ? [] : [{ name: 'VMCOREINFO', type: 0, bytes: vmcoreinfo }]),
      own('header', new TextEncoder().encode(JSON.stringify(this.#header))),
      ...sections.map((section) => own('section', encodeSection(section))),
      own('pageMap', map.bytes),
      own('checksums', new Uint8Array(checksums.buffer, 0, checksums.byteLength)),
      own('hotPages', new Uint8Array(Uint32Array.from(hotPages, ({ gfn }) => gfn).buffer)),
    ];
  }

  async #submitNotes(notes: Uint8Array, scratch: Scratch): Promise<Digest> {
    const { notesOffset } = this.#layout;
    let digest = EMPTY_DIGEST;
    for (let at = 0; at < notes.length; at += NOTES_PART_BYTES) {
      if (at > 0) await this.#queue.settle(); // the part before lies where this one is to lie
      const part = notes.subarray(at, at + NOTES_PART_BYTES);
      const blocks = alignToBlock(part.length) / BLOCK_BYTES;
      scratch.u8.set(part);
      scratch.u8.fill(0, part.length, blocks * BLOCK_BYTES);
      digest = scratch.hasher.digest(0, blocks, digest);
      await this.#submit(scratch.blocks(0, blocks), notesOffset + at);
      this.#request.signal?.throwIfAborted();
    }
    this.#fileBytes = notesOffset + alignToBlock(notes.length);
    return digest;
  }

  async #submitHead(head: Parameters<typeof encodeHead>[1], scratch: Scratch): Promise<Digest> {
    const number = NOTES_PART_BYTES / BLOCK_BYTES;
    const block = scratch.blocks(number, 1);
    block.fill(0);
    encodeHead(block, head, IMAGE_VERSION, this.#fileBytes);
    const digest = scratch.hasher.digest(number, 1);
    setHeadDigest(block, digest);
    await this.#submit(block, 0);
    return digest;
  }
}
