// Images that domains of this host were restored from: one template each (lifecycle/restore.ts), whatever number of
// domains there are, and whatever names the file goes by. Main thread only.
//
//   file ──open──► LoadedImage ── template (p2m) ◄── shares ── domains, checkpoints: its users
//                      │  └─ loader: reads what nobody has touched yet, the recorded working set first
//                      └─ posted to the workers, which read what their guests touch
//
// An image stays as long as it has users, since their memory may still say "in the image"; a complete one stays after
// them as well, for the next. When the host is short of memory it goes: at once if nobody uses it; if somebody does and
// it is complete, after all users have been given what they share of it. One that is not complete must stay.

import { statSync } from 'node:fs';
import type { BigIntStats } from 'node:fs';
import { FRAME_BYTES, P2M_KIND } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import type { HotArea } from '../image/hot-area.ts';
import { openImage } from '../image/image.ts';
import type { Image } from '../image/image.ts';
import { decodeCode } from '../lifecycle/code-section.ts';
import { HotPages, TemplateLoader, makeTemplate, outOfMemory } from '../lifecycle/restore.ts';
import type { LoadOptions } from '../lifecycle/restore.ts';
import { decodeWorkingSet } from '../lifecycle/working-set.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import { resolveImageLeaves } from '../memory/image-leaves.ts';
import type { ImagePages, ImageSource, PageStretch } from '../memory/image-pages.ts';
import { entryKind, entryValue } from '../memory/p2m.ts';
import type { FrameCache } from './frame-caches.ts';
import type { HostCore } from './host-core.ts';
import { FrozenPages, TOUCH_COUNT, TouchedImage, newCounters } from './image-source.ts';
import type { ImageLoadStats } from './types.ts';

/** A domain or a checkpoint whose memory comes from an image; or somebody who is about to make one, with root 0. */
export interface ImageUser {
  readonly p2mRoot: number;
}

const stampOf = ({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string =>
  [dev, ino, size, mtimeNs, ctimeNs].join(':');

/** In this thread: a question to the file system's cache takes less than handing it to another thread. */
function stampOfFile(path: string): string {
  const status = statSync(path, { bigint: true, throwIfNoEntry: false });
  return status === undefined ? 'missing' : stampOf(status);
}

export interface LoadedImageParts {
  readonly stamp: string;
  readonly number: number;
  /** Under way. */
  readonly hotPages: HotPages;
}

/** This thread has one, the guest's pCPU another: without a third, decoding ahead takes longer than it saves. */
const DECODE_AHEAD_CORES = 3;

export class LoadedImage implements FrameCache {
  readonly number: number;
  readonly root: number;
  readonly path: string;
  /** Device, inode, size and times of the file: another one is another image. */
  readonly stamp: string;
  /** What was taken in when it was opened; its pages may be out of reach by now. */
  image: Image;
  readonly #core: HostCore;
  readonly #users = new Set<ImageUser>();
  readonly #loader: TemplateLoader;
  readonly #counters = newCounters();
  /** Found when it is needed: the guest does not wait for it. */
  #foundWorkingSet: readonly PageStretch[] | undefined;
  #workingSetPages: number | undefined;
  readonly #hotPages: HotPages;
  readonly #forget: () => void;
  #source: TouchedImage;
  #isWhole = false;
  /** Whether it is to be loaded beside its guests, whether that is under way, and what has come in between. */
  #isWanted = false;
  #isLoading = false;
  #failure: ZazenError | undefined;
  #gone: Promise<void> | undefined;

  /** @throws ZazenError ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_IMAGE_PARENT */
  constructor(core: HostCore, image: Image, { stamp, number, hotPages }: LoadedImageParts, forget: () => void) {
    this.#core = core;
    this.image = image;
    this.path = image.path;
    this.stamp = stamp;
    this.number = number;
    this.#forget = forget;
    const { thread } = core;
    this.root = makeTemplate(thread, image, number);
    const code = core.cores >= DECODE_AHEAD_CORES ? decodeCode(image) : undefined;
    if (code !== undefined) core.decodeAhead.offer(this, code);
    hotPages.placeIn({ image, root: this.root, onPlaced: code && ((first, count) => this.#decodeAhead(first, count)) });
    this.#hotPages = hotPages;
    this.#loader = new TemplateLoader(thread, () => this.image, this.root, () => this.#workingSet,
      () => Atomics.load(this.#counters, TOUCH_COUNT.requests));
    this.#source = this.#makeSource();
    core.caches.touch(this);
  }

  #makeSource(): TouchedImage {
    const { image: { pages }, root, number } = this;
    const counters = this.#counters;
    this.#core.postToWorkers({ kind: 'file', image: number, root, counters, pages: pages.describe() });
    return new TouchedImage(this.#core.thread.machine, { root, counters }, pages);
  }

  /** Hot pages are there: an idle pCPU decodes what the guest will run of them, while this thread makes the guest. */
  #decodeAhead(first: number, count: number): void {
    const { thread: { p2m, scheduling }, decodeAhead } = this.#core;
    const mfns = Array.from(this.image.hotGfns.subarray(first, first + count), (gfn) => {
      const entry = p2m.lookup(this.root, gfn);
      return entryKind(entry) === P2M_KIND.frame ? entryValue(entry) : 0;
    });
    if (decodeAhead.arrived(this, first, mfns)) scheduling.wakeIdlePcpu();
  }

  get #workingSet(): readonly PageStretch[] { return this.#foundWorkingSet ??= decodeWorkingSet(this.image); }
  get source(): ImageSource { return this.#source; }
  get isComplete(): boolean { return this.#loader.isComplete; }
  get isGone(): boolean { return this.#gone !== undefined; }
  /** Resolves when there is what the hypervisor needs of it to make a guest. */
  get hotPagesBegun(): Promise<void> { return this.#hotPages.begun; }
  /** Resolves when what a guest needs at once is there. */
  get hotPagesLoaded(): Promise<unknown> { return this.#hotPages.done; }
  get inFlight(): Iterable<number> { return [...this.#hotPages.inFlight, ...this.#loader.inFlight]; }
  get frames(): number { return this.#users.size === 0 ? this.#loader.pageCount : 0; }

  // ---- users

  /** From now on the user's memory may lie in the image. */
  join(user: ImageUser): void {
    this.#users.add(user);
    this.#core.caches.touch(this);
  }
  leave(user: ImageUser): void {
    this.#users.delete(user);
    if (this.#users.size === 0 && !this.isComplete) void this.#drop();
  }

  giveUp(): boolean {
    if (this.#users.size > 0 || !this.isComplete || this.isGone) return false;
    this.#release();
    return true;
  }

  /** Gives up a complete image that is in use. @returns false if that cannot be */
  detach(): boolean {
    if (!this.isComplete || this.isGone) return false;
    const { thread } = this.#core;
    let isDone = false;
    // A worker that is loading a page looks at the template; and nobody may change what is being resolved.
    this.#core.decodeAhead.withdraw(this);
    thread.safePoints.stopWorldAtRest(() => {
      const roots = Array.from(this.#users, ({ p2mRoot }) => p2mRoot).filter((root) => root !== 0);
      isDone = resolveImageLeaves(thread.heap, roots, this.root, this.number);
    });
    if (!isDone) return false;
    this.#release();
    this.#core.caches.remove(this);
    return true;
  }

  /** Of an image that is not complete, when its last user has gone or the host closes. */
  #drop(): Promise<void> {
    return this.#gone ??= this.#endLoading();
  }
  async #endLoading(): Promise<void> {
    await Promise.all([this.#hotPages.done, this.#loader.stop()]);
    // Until here, the audit has to know of the frames that were being read into.
    this.#forget();
    this.#core.caches.remove(this);
    this.#releaseFrames();
    await this.image.close();
  }
  #release(): void {
    this.#forget();
    this.#gone = Promise.resolve();
    this.#releaseFrames();
  }
  #releaseFrames(): void {
    this.#core.decodeAhead.withdraw(this);
    this.#core.releaseRoot(this.root);
    this.#core.postToWorkers({ kind: 'gone', image: this.number });
  }

  /** When it resolves, no read is under way and no file is open. */
  async close(): Promise<void> {
    if (!this.isComplete) await this.#drop();
  }

  // ---- loading

  /** Begins to read all of it, beside the guests that run. */
  loadBeside(): void {
    if (this.isComplete || this.isGone || this.#isLoading) return;
    this.#isLoading = true;
    const ended = (error?: unknown): void => {
      this.#isLoading = false;
      if (error !== undefined && !(error instanceof ZazenError)) throw error;
      this.#failure = error;
      this.#noteWhole();
    };
    this.#hotPages.done.then(() => this.#loader.load()).then(() => ended(), ended);
    this.#isWanted = true;
  }

  /** Goes on with loading that has ended for want of frames. */
  keepHouse(): void {
    const isShort = this.#failure === undefined || this.#failure.code === 'ZAZEN_HOST_OUT_OF_MEMORY';
    if (this.#isWanted && isShort) this.loadBeside();
  }

  /** @throws ZazenError ZAZEN_IMAGE_*, ZAZEN_HOST_OUT_OF_MEMORY; the signal's reason */
  async complete(options: LoadOptions = {}): Promise<void> {
    // Until they are placed, the template must not be given up, as a complete one may be.
    await this.#hotPages.done;
    await this.#loader.complete(options);
    this.#noteWhole();
  }

  /** All is in frames: the file is needed no more. */
  #noteWhole(): void {
    if (!this.isComplete || this.#isWhole) return;
    this.#isWhole = true;
    void this.image.close();
    if (this.#users.size === 0) this.#core.caches.touch(this);
  }

  /** Loads what a frozen memory has in the image, so that all of it is in frames. @throws ZazenError as `complete` */
  async completeFrozen(root: number, options: LoadOptions = {}): Promise<void> {
    // Once given up, it has left nothing in its users.
    if (!this.isGone) await this.complete(options);
    if (!this.isGone && !resolveImageLeaves(this.#core.thread.heap, [root], this.root, this.number)) {
      throw outOfMemory(this.path);
    }
  }

  /** Why a guest that touches a page cannot have it; undefined: it can. */
  lossOf(gfn: number): ZazenError | undefined {
    const { heap } = this.#core.thread;
    const mfn = heap.allocate(HOST_ACCOUNT, true);
    if (mfn === 0) return undefined;
    const isThere = this.isGone || this.#isWhole || this.#source.read(gfn, Uint32Array.of(mfn));
    heap.release(mfn);
    return isThere ? undefined : this.#source.failure;
  }

  /** After a loss: the same image may be in its place again, in another file, or the file be what it was. */
  async lookAgain(): Promise<void> {
    if (this.isComplete || this.isGone) return;
    const again = await openImage(this.path).catch(() => undefined);
    if (again === undefined) return;
    const isSame = again.header.id === this.image.header.id && again.digest === this.image.digest;
    if (!isSame || this.isComplete || this.isGone) await again.close();
    else {
      const old = this.image;
      this.image = again;
      this.#source = this.#makeSource();
      await old.close();
    }
    if (this.#isWanted) this.loadBeside();
  }

  stats(): ImageLoadStats {
    const touchedPages = Atomics.load(this.#counters, TOUCH_COUNT.pages);
    const { pageCount, isComplete } = this.#loader;
    const pagesRead = this.#loader.pagesRead + this.#hotPages.placed;
    return {
      path: this.path, pageCount, isComplete,
      pagesDone: isComplete ? pageCount : Math.min(pageCount, pagesRead + touchedPages),
      workingSetPages: this.#workingSetPages ??= this.#workingSet.reduce((sum, { count }) => sum + count, 0),
      touchedPages, touchRequests: Atomics.load(this.#counters, TOUCH_COUNT.requests),
      bytesRead: (pagesRead + touchedPages) * FRAME_BYTES,
      direct: this.image.direct,
      ...(this.#failure === undefined ? {} : { failure: this.#failure.message }),
    };
  }
}

export class LoadedImages implements ImagePages {
  readonly #core: HostCore;
  readonly #byNumber = new Map<number, LoadedImage>();
  readonly #frozen = new Map<number, FrozenPages>();
  readonly #opening = new Map<string, Promise<LoadedImage>>();
  #lastNumber = 0;

  constructor(core: HostCore) {
    this.#core = core;
  }

  source(number: number): ImageSource | undefined {
    return this.#byNumber.get(number)?.source ?? this.#frozen.get(number);
  }

  /** Frozen memory that is to be read as if it were an image, until `removeFrozen`. */
  addFrozen(root: number): FrozenPages {
    const pages = new FrozenPages(++this.#lastNumber, root);
    this.#frozen.set(pages.number, pages);
    this.#core.postToWorkers({ kind: 'frozen', image: pages.number, root, notes: pages.notes.words });
    return pages;
  }
  removeFrozen({ number }: FrozenPages): void {
    this.#frozen.delete(number);
    this.#core.postToWorkers({ kind: 'gone', image: number });
  }

  /** Frames that reads under way go into, for the audit. */
  *inFlight(): Generator<number> {
    for (const image of this.#byNumber.values()) yield* image.inFlight;
  }

  /**
   * The image of a file, opened now if it is not known, with the caller as a user until it leaves.
   * @throws ZazenError ZAZEN_IMAGE_*, ZAZEN_HOST_OUT_OF_MEMORY
   */
  async open(path: string, user: ImageUser): Promise<LoadedImage> {
    const stamp = stampOfFile(path);
    for (const known of this.#byNumber.values()) {
      if (known.stamp !== stamp || known.isGone) continue;
      known.join(user);
      return known;
    }
    const opening = this.#opening.get(stamp) ?? this.#open(path);
    this.#opening.set(stamp, opening);
    try {
      const image = await opening;
      image.join(user);
      return image;
    } finally {
      this.#opening.delete(stamp);
    }
  }

  async #open(path: string): Promise<LoadedImage> {
    let hotPages: HotPages | undefined;
    let image: Image | undefined;
    // They are on their way while all else is made.
    const atHead = (area: HotArea): void => {
      this.#core.makeRoom(area.pages * FRAME_BYTES);
      hotPages = new HotPages(this.#core.thread, area);
    };
    try {
      image = await openImage(path, { atHead });
      assert(hotPages !== undefined, 'an image was opened without its head');
      const stamp = stampOf(image.status);
      this.#core.makeRoom(image.storedPages * FRAME_BYTES);
      const number = ++this.#lastNumber;
      const forget = (): void => { this.#byNumber.delete(number); };
      const loaded = new LoadedImage(this.#core, image, { stamp, number, hotPages }, forget);
      this.#byNumber.set(number, loaded);
      return loaded;
    } catch (error) {
      await hotPages?.abandon();
      await image?.close();
      throw error;
    }
  }

  /** Gives up some image that is in use, as far as it can be. @returns false if there is none */
  detach(): boolean {
    for (const image of this.#byNumber.values()) if (image.detach()) return true;
    return false;
  }

  keepHouse(): void {
    for (const image of this.#byNumber.values()) image.keepHouse();
  }

  async close(): Promise<void> {
    await Promise.all(Array.from(this.#byNumber.values(), (image) => image.close()));
  }
}
