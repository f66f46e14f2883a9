// Restore: an image becomes memory again. Its *template* is a p2m tree that has every page at once: zero pages are zero,
// stored ones are places in the file, read when somebody touches them (memory/image-pages.ts) or when the loader comes to
// them. A domain is a share of the template, so making it does not depend on what the image holds.

import { setTimeout as delay } from 'node:timers/promises';
import { FRAME_BYTES, P2M_KIND } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { HotArea } from '../image/hot-area.ts';
import type { Image } from '../image/image.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import type { Heap } from '../memory/heap.ts';
import { placeInTemplate } from '../memory/image-pages.ts';
import type { PageStretch } from '../memory/image-pages.ts';
import { entryKind } from '../memory/p2m.ts';

/** Loading beside a guest that runs: small requests, few at a time, so that its own reads wait for little. */
const BESIDE = { readers: 2, pages: 128 } as const;
/** Loading while somebody waits for the end of it. */
const AWAITED = { readers: 8, pages: 1024 } as const;
/** What a guest needs first came with the image: until it has run so long, all cores are its own. */
const BESIDE_AFTER_MILLIS = 20;
/** While guests read for themselves, loading beside them waits so long, so often at most, before each request. */
const GIVE_WAY_MILLIS = 1;
const GIVE_WAY_MAX = 4;
/** Frames that loading beside a guest leaves to guests: 4 MiB. */
const SPARED_FRAMES = 1024;

export interface LoadProgress {
  readonly pagesDone: number;
  readonly pageCount: number;
}

export interface LoadOptions {
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * @param number what image entries call the image
 * @returns the root of the template, which is the caller's
 * @throws ZazenError ZAZEN_IMAGE_PARENT, ZAZEN_HOST_OUT_OF_MEMORY, and then nothing is kept
 */
export function makeTemplate(thread: HypervisorThread, image: Image, number: number): number {
  const { p2m } = thread;
  const root = p2m.create(HOST_ACCOUNT);
  if (root === 0) throw outOfMemory(image.path);
  const check = (isMapped: boolean): void => { if (!isMapped) throw outOfMemory(image.path); };
  try {
    for (const { guestAddress, sizeBytes } of image.banks) {
      check(p2m.mapZeroRange(root, guestAddress / FRAME_BYTES, sizeBytes / FRAME_BYTES));
    }
    for (const { gfn, count } of image.runs()) check(p2m.mapImageRange(root, gfn, count, number, gfn));
    // Nobody has seen what was replaced.
    p2m.releaseStale();
    return root;
  } catch (error) {
    p2m.release(root);
    throw error;
  }
}

export function outOfMemory(path: string): ZazenError {
  return new ZazenError('ZAZEN_HOST_OUT_OF_MEMORY', `the host has no memory left for the guest of image ${path}`,
    { hint: 'destroy a domain or a checkpoint, or start the host with more memory' });
}

/** Hot pages in one request: what has come is checked while the next ones are read. */
const HOT_PAGES_AT_ONCE = 128;

export interface HotPagesTarget {
  readonly image: Image;
  readonly root: number;
  /** Called back when so many, from the one with number `first` on, are in the template, as far as they can be. */
  readonly onPlaced: ((first: number, count: number) => void) | undefined;
}

/** The hot pages of an image on their way into its template: they are one after the other in the file. */
export class HotPages {
  /** How many are in the template by now. */
  placed = 0;
  /** Resolves when the first ones are there: those that the hypervisor works on, and where the guest goes on. */
  readonly begun: Promise<void>;
  /** Resolves when all are there that can be: of the others, who touches one is told what is wrong. */
  readonly done: Promise<unknown>;
  /** Frames that nobody has yet. */
  readonly #inFlight = new Set<number>();
  readonly #target = Promise.withResolvers<HotPagesTarget | undefined>();

  /** Begins to read them, as many as there are frames for. */
  constructor(thread: HypervisorThread, area: HotArea) {
    const mfns = allocateFrames(thread.heap, area.pages);
    for (const mfn of mfns) this.#inFlight.add(mfn);
    const requests: Promise<void>[] = [];
    for (let first = 0; first < mfns.length; first += HOT_PAGES_AT_ONCE) {
      requests.push(this.#take(thread, area, first, mfns.subarray(first, first + HOT_PAGES_AT_ONCE)));
    }
    this.begun = requests[0] ?? Promise.resolve();
    this.done = Promise.all(requests);
  }

  /** Says what they are pages of, and which template they are for, which may be made while they are read. */
  placeIn(target: HotPagesTarget): void {
    this.#target.resolve(target);
  }
  /** Nobody wants them. @returns when no frame is in flight any more */
  async abandon(): Promise<void> {
    this.#target.resolve(undefined);
    await this.done;
  }

  get inFlight(): Iterable<number> { return this.#inFlight; }

  async #take({ heap, p2m, machine }: HypervisorThread, area: HotArea, first: number, mfns: Uint32Array): Promise<void> {
    try {
      const [target] = await Promise.all([this.#target.promise, area.read(machine, first, mfns)]);
      if (target === undefined) return;
      const { image, root } = target;
      const altered = image.findAlteredHotPages(machine, first, mfns);
      for (const [i, mfn] of mfns.entries()) {
        const gfn = image.hotGfns[first + i]!;
        if (altered.has(gfn)) continue;
        if (!placeInTemplate(heap, p2m, root, gfn, mfn)) break;
        this.#inFlight.delete(mfn);
        this.placed++;
      }
      target.onPlaced?.(first, mfns.length);
    } catch (error) {
      if (!(error instanceof ZazenError)) throw error;
    } finally {
      for (const mfn of mfns) if (this.#inFlight.delete(mfn)) heap.release(mfn);
    }
  }
}

/** A quarter of a mebibyte: few pieces to a request, and found in any memory that is not very full. */
const BLOCK_ORDER = 6;

/** Frames in blocks as long as there are such; fewer than asked for when there are no more. */
function allocateFrames(heap: Heap, count: number): Uint32Array {
  const mfns: number[] = [];
  for (let order = BLOCK_ORDER; mfns.length < count;) {
    if (count - mfns.length < 2 ** order) order = 0;
    const first = heap.allocateBlock(HOST_ACCOUNT, order, true);
    if (first !== 0) for (let i = 0; i < 2 ** order; i++) mfns.push(first + i);
    else if (order > 0) order = 0;
    else break;
  }
  return Uint32Array.from(mfns);
}

/** Reads all of an image into its template, in the main thread, beside whoever touches pages first. */
export class TemplateLoader {
  readonly #thread: HypervisorThread;
  readonly #image: () => Image;
  readonly #root: number;
  readonly #first: () => readonly PageStretch[];
  #foundRuns: readonly PageStretch[] | undefined;
  #pageCount: number | undefined;
  /** Counts reads by guests. */
  readonly #touches: () => number;
  /** Frames of reads under way: nobody's yet. */
  readonly #inFlight = new Set<number>();
  readonly #waiting = new Set<LoadOptions>();
  #readers = 0;
  #ended: PromiseWithResolvers<void> | undefined;
  #chunks: Generator<PageStretch> | undefined;
  #chunkPages: number = BESIDE.pages;
  #pagesRead = 0;
  #isPastFirst = false;
  #touchesSeen = 0;
  #isComplete = false;
  #isStopped = false;
  #failure: { readonly error: unknown } | undefined;

  /**
   * @param image asked anew for each request: it may be opened again
   * @param first what to read before everything else; asked when reading begins
   * @param touches counts the reads of guests that touch pages
   */
  constructor(
    thread: HypervisorThread, image: () => Image, root: number, first: () => readonly PageStretch[], touches: () => number,
  ) {
    this.#thread = thread;
    this.#image = image;
    this.#root = root;
    this.#first = first;
    this.#touches = touches;
  }

  /** Found when they are needed: the guest does not wait for it. */
  get #runs(): readonly PageStretch[] {
    return this.#foundRuns ??= Array.from(this.#image().runs(), ({ gfn, count }) => ({ gfn, count }));
  }
  get pageCount(): number { return this.#pageCount ??= this.#countPages(); }
  #countPages(): number {
    const image = this.#image();
    return image.parent === undefined ? image.storedPages : this.#runs.reduce((sum, { count }) => sum + count, 0);
  }

  get isComplete(): boolean { return this.#isComplete; }
  /** Pages that this loader has read; others come by being touched. */
  get pagesRead(): number { return this.#pagesRead; }
  get inFlight(): Iterable<number> { return this.#inFlight; }
  /** What has ended the last attempt. */
  get failure(): unknown { return this.#failure?.error; }

  /**
   * Loads what is missing beside guests that run, after a while; when frames are short it ends without an error, and not
   * complete.
   * @throws ZazenError ZAZEN_IMAGE_READ, _TRUNCATED, _CHECKSUM
   */
  async load(): Promise<void> {
    await delay(BESIDE_AFTER_MILLIS, undefined, { ref: false });
    await this.#load(BESIDE);
  }

  /**
   * Loads what is missing, as fast as it goes.
   * @throws ZazenError as `load`, ZAZEN_HOST_OUT_OF_MEMORY; the signal's reason
   */
  async complete(options: LoadOptions = {}): Promise<void> {
    this.#waiting.add(options);
    try {
      while (!this.#isComplete && !this.#isStopped) {
        options.signal?.throwIfAborted();
        await this.#load(AWAITED);
      }
    } finally {
      this.#waiting.delete(options);
    }
    options.signal?.throwIfAborted();
  }

  /** Ends all reading; when it resolves, no frame is in flight. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#ended?.promise;
  }

  async #load({ readers, pages }: typeof BESIDE | typeof AWAITED): Promise<void> {
    if (this.#isComplete || this.#isStopped) return;
    if (this.#ended === undefined) {
      this.#failure = undefined;
      this.#chunks = this.#missing();
      this.#chunkPages = pages;
      this.#ended = Promise.withResolvers();
    }
    this.#chunkPages = Math.max(this.#chunkPages, pages);
    const { promise } = this.#ended;
    // Each begins later: one that finds nothing to do ends at once, and must have been counted before.
    for (; this.#readers < readers; this.#readers++) queueMicrotask(() => void this.#read());
    await promise;
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  async #read(): Promise<void> {
    try {
      while (!this.#isStopped && this.#failure === undefined && !this.#isAborted && !this.#mustSpare) {
        if (this.#isPastFirst) await this.#giveWay();
        const { value: chunk, done } = this.#chunks!.next();
        if (done === true) break;
        await this.#readChunk(chunk);
        this.#tell(Math.min(this.#pagesRead, this.pageCount));
      }
    } catch (error) {
      this.#failure ??= { error };
    }
    if (--this.#readers === 0) this.#end();
  }

  /** Guests that read for themselves come first, unless somebody waits for all of it. */
  async #giveWay(): Promise<void> {
    for (let i = 0; i < GIVE_WAY_MAX && this.#waiting.size === 0 && !this.#isStopped; i++) {
      const touches = this.#touches();
      if (touches === this.#touchesSeen) return;
      this.#touchesSeen = touches;
      await delay(GIVE_WAY_MILLIS);
    }
  }

  /** Once all readers have ended; the next call begins anew, with what is still missing. */
  #end(): void {
    if (this.#failure === undefined && !this.#isStopped) this.#isComplete = this.#missing().next().done === true;
    if (this.#isComplete) this.#tell(this.pageCount);
    this.#ended!.resolve();
    this.#ended = undefined;
  }

  #tell(pagesDone: number): void {
    for (const { onProgress } of this.#waiting) onProgress?.({ pagesDone, pageCount: this.pageCount });
  }

  /** Whether all that wait have given up: those that load beside guests do not wait. */
  get #isAborted(): boolean {
    return this.#waiting.size > 0 && [...this.#waiting].every(({ signal }) => signal?.aborted === true);
  }
  get #mustSpare(): boolean {
    if (this.#waiting.size > 0 || this.#thread.heap.listedFrames >= SPARED_FRAMES) return false;
    const { total, used } = this.#thread.heap.stats();
    return total - used < SPARED_FRAMES;
  }

  /** Stretches that are not in memory, as they are asked for. */
  *#missing(): Generator<PageStretch> {
    this.#isPastFirst = false;
    for (const stretch of this.#first()) yield* this.#missingIn(stretch);
    this.#isPastFirst = true;
    for (const stretch of this.#runs) yield* this.#missingIn(stretch);
  }
  *#missingIn({ gfn, count }: PageStretch): Generator<PageStretch> {
    const { p2m } = this.#thread;
    let first = gfn;
    for (let page = gfn; page <= gfn + count; page++) {
      const isMissing = page < gfn + count && entryKind(p2m.lookup(this.#root, page)) === P2M_KIND.image;
      if (isMissing && page - first < this.#chunkPages) continue;
      if (page > first) yield { gfn: first, count: page - first };
      first = isMissing ? page : page + 1;
    }
  }

  async #readChunk({ gfn, count }: PageStretch): Promise<void> {
    const { heap, p2m, machine } = this.#thread;
    const mfns = new Uint32Array(count);
    let placed = 0;
    try {
      for (let i = 0; i < count; i++) {
        mfns[i] = heap.allocate(HOST_ACCOUNT, true);
        if (mfns[i] === 0) throw outOfMemory(this.#image().path);
        this.#inFlight.add(mfns[i]!);
      }
      await this.#image().readPages(machine, gfn, mfns);
      for (; placed < count; placed++) {
        if (!placeInTemplate(heap, p2m, this.#root, gfn + placed, mfns[placed]!)) throw outOfMemory(this.#image().path);
      }
      this.#pagesRead += count;
    } finally {
      for (const mfn of mfns) this.#inFlight.delete(mfn);
      for (const mfn of mfns.subarray(placed)) if (mfn !== 0) heap.release(mfn);
    }
  }
}
