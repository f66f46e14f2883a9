// The pages of an image on their way into its file. They are copied out of the machine memory into chunks of a few
// megabytes, as many pages as follow each other in the file to a chunk; there they are hashed while they are in the
// caches; and from there each chunk goes out in one request, or a few where it holds long stretches of zeros.
//
//   machine memory   ▓▓ ▓   ▓ ▓▓▓   ▓  frames, anywhere        parent's checksums
//                      ╲ ╲ ╱ ╱ ╱                                      │
//   chunk            ▓▓▓▓▓▓▓  ▓▓▓▓▓▓▓  as in the file  ──hash──► stored, zero, or the parent's
//                    └──────┘ └─────┘
//                    request  request  three in flight
//
// Straight out of the frames costs more than the copy: a guest's frames follow each other hardly ever, so a request was
// of a thousand pieces, and Node and the kernel look at each (docs/performance.md).

import { FRAME_BYTES, FRAME_SHIFT } from '../abi/machine-memory.ts';
import type { AddressType } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { bulkMemory, i32, i64 } from '../wasm/scalar.ts';
import type { I32 } from '../wasm/types.ts';
import type { PageMemory } from './checksum.ts';
import { RequestQueue, Scratch, REQUESTS_IN_FLIGHT } from './direct-file.ts';
import type { DirectFile } from './direct-file.ts';
import { BLOCK_BYTES, BRIDGE_PAGES } from './format.ts';
import type { Bank } from './format.ts';
import { PageMap } from './page-map.ts';

/**
 * Guest pages gfn … gfn+count-1: in consecutive machine frames from `mfn` on, or as they are in the parent image.
 * Frames must not change until the write is over.
 */
export interface PageRun {
  readonly gfn: number;
  readonly count: number;
  readonly mfn: number | 'parent';
}

/** A guest page and the machine frame that holds it. */
export interface PageFrame {
  readonly gfn: number;
  readonly mfn: number;
}

/** Knows pages of the parent by their checksums. */
export interface ParentPages {
  /** The files of its chain, its own first. */
  readonly paths: readonly string[];
  /** Whether the parent, or a parent of its own, stores this page with this checksum. */
  has(gfn: number, low: number, high: number): boolean;
}

export interface WriteProgress {
  /** Pages of the guest that are dealt with, of all of them. */
  readonly pagesDone: number;
  readonly pageCount: number;
  readonly bytesWritten: number;
}

export interface PageWriterOptions {
  readonly file: DirectFile;
  readonly queue: RequestQueue;
  readonly machine: PageMemory;
  readonly banks: readonly Bank[];
  /** Pages that it has are left to it. */
  readonly parent?: ParentPages | undefined;
  readonly onProgress?: ((progress: WriteProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

const CHUNK_PAGES = Scratch.sizeBytes / FRAME_BYTES;
/** The first ones are small, so that the disk has something to do at once. */
const FIRST_CHUNK_PAGES = 64;
const CHUNK_GROWTH = 4;
/** One is filled while the others are on their way. */
const CHUNKS = REQUESTS_IN_FLIGHT + 1;
/** Copied and hashed at a time, so that they are hashed out of the caches. */
const PIECE_PAGES = 16;
/** In the place of an MFN: nothing is to be stored there. */
const GAP = 0xffff_ffff;
/**
 * A request costs as much time as some hundred kilobytes (docs/formats/image.md), so that a short gap is written as
 * zeros; but of all that is stored only an eighth may be such zeros, lest the file lose its holes.
 */
const BRIDGE_SHARE = 8;
const PROGRESS_STEPS = 100;
const PROGRESS_PAGES_MAX = 2 ** 14;
/** So long others wait for their turn at most, where nothing is written. */
const TURN_MILLIS = 4;

interface Chunk {
  readonly scratch: Scratch;
  /** Copies frames to pages of the chunk. */
  readonly copy: (mfn: number, count: number, page: number) => void;
  requests: Promise<void>[];
}

export class PageWriter {
  readonly map: PageMap;
  readonly #options: PageWriterOptions;
  /** In ascending order of the stored pages, packed. */
  readonly #checksums: Uint32Array;
  readonly #chunks: Chunk[] = [];
  #chunksFilled = 0;
  /** Pages that the next chunk takes. */
  #room = FIRST_CHUNK_PAGES;
  /** What goes into the next chunk: the first page of all pages, and for each page behind it GFN and MFN. */
  #firstPage = 0;
  #pages = 0;
  readonly #gfns = new Uint32Array(CHUNK_PAGES);
  readonly #mfns = new Uint32Array(CHUNK_PAGES);
  #bridgedPages = 0;
  #pagesReported = 0;
  #lastTurn = performance.now();
  pagesWritten = 0;
  parentPages = 0;
  bytesWritten = 0;
  requests = 0;

  constructor(options: PageWriterOptions) {
    this.#options = options;
    this.map = new PageMap(options.banks);
    this.#checksums = new Uint32Array(2 * this.map.pageCount);
  }

  get checksums(): Uint32Array {
    return this.#checksums.subarray(0, 2 * this.pagesWritten);
  }

  /** When the queue has settled. */
  finish(): void {
    if (this.#pagesReported < this.map.pageCount) this.#report(this.map.pageCount);
  }
  /** When no request is under way any more, however it ended. */
  release(): void {
    for (const { scratch } of this.#chunks) Scratch.give(scratch);
  }

  /** Puts all pages on their way; to be called once. What is known of them is complete when it is over. */
  async write(runs: Iterable<PageRun>): Promise<void> {
    let nextGfn = 0;
    for (const { gfn, count, mfn } of runs) {
      assert(gfn >= nextGfn && count > 0, 'runs of pages are out of order');
      nextGfn = gfn + count;
      const first = this.map.pageOf(gfn);
      assert(first >= 0 && this.map.pageOf(nextGfn - 1) === first + count - 1, 'a run of pages is in no bank');
      if (mfn === 'parent') {
        for (let k = 0; k < count; k++) this.#leaveToParent(gfn + k);
        await this.#takeTurns();
      } else await this.#addFrames(first, gfn, mfn, count);
    }
    await this.#flush();
  }

  #leaveToParent(gfn: number): void {
    this.map.mark(gfn, 'parent');
    this.parentPages++;
  }

  /** Puts pages on their way once more, one after the other, at most a chunk's; when `write` is over. */
  async writeCopies(pages: readonly PageFrame[], offset: number): Promise<void> {
    if (pages.length === 0) return;
    const chunk = await this.#nextChunk();
    pages.forEach(({ mfn }, page) => chunk.copy(mfn, 1, page));
    await this.#submitBlocks(chunk, chunk.scratch.blocks(0, pages.length), offset);
  }

  async #addFrames(page: number, gfn: number, mfn: number, count: number): Promise<void> {
    for (let done = 0; done < count;) {
      const gap = page + done - this.#firstPage - this.#pages;
      if (this.#pages > 0 && (gap > BRIDGE_PAGES || this.#pages + gap >= this.#room)) await this.#flush();
      if (this.#pages === 0) this.#firstPage = page + done;
      else {
        this.#mfns.fill(GAP, this.#pages, this.#pages + gap);
        this.#pages += gap;
      }
      const fitting = Math.min(count - done, this.#room - this.#pages);
      for (const end = done + fitting; done < end; done++) {
        this.#gfns[this.#pages] = gfn + done;
        this.#mfns[this.#pages++] = mfn + done;
      }
    }
  }

  /** What was put together goes on its way. */
  async #flush(): Promise<void> {
    if (this.#pages === 0) return;
    const chunk = await this.#nextChunk();
    this.#options.signal?.throwIfAborted();
    const isStored = this.#fill(chunk);
    const end = this.#pages;
    this.#pages = 0;
    this.#room = Math.min(CHUNK_GROWTH * this.#room, CHUNK_PAGES);
    let from = 0;
    let to = 0;
    for (let k = 0; k < end; k++) {
      if (!isStored[k]) continue;
      if (to > from && !this.#bridge(chunk, to, k)) {
        await this.#submit(chunk, from, to);
        from = k;
      } else if (to === from) from = k;
      to = k + 1;
    }
    if (to > from) await this.#submit(chunk, from, to);
    else await this.#takeTurns();
    const done = this.#firstPage + end;
    const step = Math.min(this.map.pageCount / PROGRESS_STEPS, PROGRESS_PAGES_MAX);
    if (done - this.#pagesReported >= step) this.#report(done);
  }

  async #nextChunk(): Promise<Chunk> {
    const number = this.#chunksFilled++ % CHUNKS;
    const chunk = this.#chunks[number] ??= makeChunk(this.#options.machine);
    await Promise.allSettled(chunk.requests);
    chunk.requests = [];
    return chunk;
  }

  /** Copies and hashes the pages. @returns for each of them whether it is to be stored */
  #fill({ scratch, copy }: Chunk): Uint8Array {
    const count = this.#pages;
    const gfns = this.#gfns;
    const mfns = this.#mfns;
    const isStored = new Uint8Array(count);
    const sums = new Uint32Array(2 * PIECE_PAGES);
    for (let k = 0; k < count;) {
      if (mfns[k] === GAP) {
        k++;
        continue;
      }
      // A piece goes on as long as its GFNs do; within it, frames that follow each other are copied at once.
      let end = k;
      while (end < count && end - k < PIECE_PAGES && mfns[end] !== GAP && gfns[end] === gfns[k]! + end - k) {
        const first = end++;
        while (end < count && end - k < PIECE_PAGES
          && mfns[end] === mfns[end - 1]! + 1 && gfns[end] === gfns[end - 1]! + 1) end++;
        copy(mfns[first]!, end - first, first);
      }
      const zeroPages = scratch.hasher.hashPages(k, end - k, gfns[k]!, sums, 0);
      for (let at = k; at < end; at++) {
        if (!zeroPages[at - k]) isStored[at] = this.#take(gfns[at]!, sums[2 * (at - k)]!, sums[2 * (at - k) + 1]!);
      }
      k = end;
    }
    return isStored;
  }

  /** Enters a page that is not zero into the tables. @returns 1 if it is to be stored here */
  #take(gfn: number, low: number, high: number): number {
    if (this.#options.parent?.has(gfn, low, high)) {
      this.#leaveToParent(gfn);
      return 0;
    }
    this.map.mark(gfn, 'stored');
    this.#checksums[2 * this.pagesWritten] = low;
    this.#checksums[2 * this.pagesWritten++ + 1] = high;
    return 1;
  }

  /** Whether the pages of a chunk from `from` to `to`, not stored, are to be written, as zeros, lest a request end. */
  #bridge({ scratch }: Chunk, from: number, to: number): boolean {
    const gap = to - from;
    if (gap === 0) return true;
    if (gap > BRIDGE_PAGES || (this.#bridgedPages + gap) * BRIDGE_SHARE > this.pagesWritten) return false;
    this.#bridgedPages += gap;
    scratch.blocks(from, gap).fill(0);
    return true;
  }

  async #submit(chunk: Chunk, from: number, to: number): Promise<void> {
    const offset = BLOCK_BYTES + (this.#firstPage + from) * FRAME_BYTES;
    await this.#submitBlocks(chunk, chunk.scratch.blocks(from, to - from), offset);
  }
  async #submitBlocks(chunk: Chunk, blocks: Uint8Array, offset: number): Promise<void> {
    await this.#options.queue.add(() => {
      const request = this.#request(blocks, offset);
      chunk.requests.push(request);
      return request;
    });
    this.#lastTurn = performance.now();
  }

  async #request(pages: Uint8Array, offset: number): Promise<void> {
    await this.#options.file.write([pages], offset);
    this.requests++;
    this.bytesWritten += pages.length;
  }

  async #takeTurns(): Promise<void> {
    if (performance.now() - this.#lastTurn < TURN_MILLIS) return;
    await new Promise(setImmediate);
    this.#options.signal?.throwIfAborted();
    this.#lastTurn = performance.now();
  }

  #report(pagesDone: number): void {
    this.#pagesReported = pagesDone;
    this.#options.onProgress?.({ pagesDone, pageCount: this.map.pageCount, bytesWritten: this.bytesWritten });
  }
}

const copyModules = new Map<AddressType, WebAssembly.Module>();

/** One function: copies frames of the machine memory to pages of a chunk. */
function copyModule(addressType: AddressType): WebAssembly.Module {
  const known = copyModules.get(addressType);
  if (known !== undefined) return known;
  const chunkMemory = { addressType: 'i32', minPages: 1, maxPages: Scratch.sizeBytes / 65536 } as const;
  const module = new ModuleBuilder({ params: [], results: [] },
    { addressType, minPages: 1, maxPages: addressType === 'i32' ? 65536 : 2 ** 18 }, chunkMemory);
  const copy = module.function({ params: ['i32', 'i32', 'i32'], results: [] });
  const [mfn, count, page] = [0, 1, 2].map((index) => copy.param(index, 'i32')) as [I32, I32, I32];
  const shift = i32.const(FRAME_SHIFT);
  const from = addressType === 'i32' ? i32.shl(mfn, shift) : i64.shl(i64.extendI32U(mfn), i64.const(FRAME_SHIFT));
  copy.do(bulkMemory.copyToSecond(i32.shl(page, shift), from, i32.shl(count, shift)));
  module.export('copy', copy);
  const compiled = new WebAssembly.Module(module.encode());
  copyModules.set(addressType, compiled);
  return compiled;
}

function makeChunk({ memory, parameters }: PageMemory): Chunk {
  const scratch = Scratch.take();
  const { exports } = new WebAssembly.Instance(copyModule(parameters.addressType), {
    env: { memory, memory1: scratch.memory },
  });
  return { scratch, copy: exports['copy'] as Chunk['copy'], requests: [] };
}
