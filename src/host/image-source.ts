// An image as one thread reads pages of it when they are touched: the main thread, which opened it, and each worker, to
// which it was posted. A worker's event loop never turns, so it looks for what was posted when it meets an image that it
// does not know, or cannot read one that it does.

import { receiveMessageOnPort } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { ZazenError } from '../base/errors.ts';
import { StoredPages } from '../image/stored-pages.ts';
import type { PagesDescription } from '../image/stored-pages.ts';
import { TouchNotes } from '../lifecycle/rehearsal.ts';
import type { ImagePages, ImageSource, PageStretch } from '../memory/image-pages.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';

/** Pages read at once when one is touched: 64 KiB of the guest's memory, as far as they are stored. */
const CLUSTER_PAGES = 16;

/** Indices in the counters, which all threads share. */
export const TOUCH_COUNT = { requests: 0, pages: 1 } as const;
const COUNTERS = 2;
export const newCounters = (): Uint32Array => new Uint32Array(new SharedArrayBuffer(4 * COUNTERS));

/** What is posted to workers. */
export type PostedImage = { readonly image: number } & (
  | { readonly kind: 'file'; readonly root: number; readonly counters: Uint32Array; readonly pages: PagesDescription }
  | { readonly kind: 'frozen'; readonly root: number; readonly notes: TouchNotes['words'] }
  | { readonly kind: 'gone' });

export class TouchedImage implements ImageSource {
  readonly root: number;
  readonly #pages: StoredPages;
  readonly #machine: MachineMemory;
  readonly #counters: Uint32Array;
  /** What is wrong with the last read that failed. */
  failure: ZazenError | undefined;

  constructor(machine: MachineMemory, { root, counters }: { root: number; counters: Uint32Array }, pages: StoredPages) {
    this.#machine = machine;
    this.root = root;
    this.#counters = counters;
    this.#pages = pages;
  }

  cluster(gfn: number): PageStretch {
    const first = gfn - gfn % CLUSTER_PAGES;
    for (const run of this.#pages.runs(first, CLUSTER_PAGES)) {
      if (gfn < run.gfn + run.count) return run;
    }
    return { gfn, count: 1 };
  }

  read(gfn: number, mfns: Uint32Array): boolean {
    try {
      this.#pages.readSync(this.#machine, gfn, mfns);
    } catch (error) {
      if (!(error instanceof ZazenError)) throw error;
      this.failure = error;
      return false;
    }
    Atomics.add(this.#counters, TOUCH_COUNT.requests, 1);
    Atomics.add(this.#counters, TOUCH_COUNT.pages, mfns.length);
    return true;
  }
}

/**
 * Frozen memory in the place of an image, for a rehearsal: all of it is in frames, touches are noted, and what is decoded of
 * a page tells what has run in the rehearsal, since its page is a copy.
 */
export class FrozenPages implements ImageSource {
  readonly copies = true;
  readonly number: number;
  readonly root: number;
  readonly notes: TouchNotes;

  constructor(number: number, root: number, notes = new TouchNotes()) {
    this.number = number;
    this.root = root;
    this.notes = notes;
  }

  cluster(gfn: number): PageStretch {
    return { gfn, count: 1 };
  }
  touched(gfn: number): boolean {
    return this.notes.note(gfn);
  }
  read(): boolean {
    return false;
  }
}

/** The images that a worker was told of. */
export class PostedImages implements ImagePages {
  readonly #machine: MachineMemory;
  readonly #port: MessagePort;
  readonly #sources = new Map<number, TouchedImage | FrozenPages>();

  constructor(machine: MachineMemory, port: MessagePort) {
    this.#machine = machine;
    this.#port = port;
  }

  source(image: number): ImageSource | undefined {
    if (!this.#sources.has(image)) this.#receive();
    const source = this.#sources.get(image);
    if (source === undefined || source instanceof FrozenPages) return source;
    return {
      root: source.root,
      cluster: (gfn) => source.cluster(gfn),
      read: (gfn, mfns) => source.read(gfn, mfns) || this.#readAnew(image, source, gfn, mfns),
    };
  }

  /** The file may have been opened again since. */
  #readAnew(image: number, old: TouchedImage, gfn: number, mfns: Uint32Array): boolean {
    this.#receive();
    const source = this.#sources.get(image);
    return source instanceof TouchedImage && source !== old && source.read(gfn, mfns);
  }

  #receive(): void {
    for (;;) {
      const received = receiveMessageOnPort(this.#port);
      if (received === undefined) return;
      const posted = received.message as PostedImage;
      if (posted.kind === 'gone') this.#sources.delete(posted.image);
      else this.#sources.set(posted.image, this.#sourceOf(posted));
    }
  }
  #sourceOf(posted: Exclude<PostedImage, { kind: 'gone' }>): TouchedImage | FrozenPages {
    return posted.kind === 'frozen' ? new FrozenPages(posted.image, posted.root, new TouchNotes(posted.notes))
      : new TouchedImage(this.#machine, posted, StoredPages.attach(posted.pages));
  }
}
