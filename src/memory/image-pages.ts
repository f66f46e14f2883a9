// Pages that lie in image files until somebody touches them. A p2m leaf may be a place in an image; whoever meets one, in
// whatever thread, loads the page itself and goes on, so guests, hypercalls and back ends need not know.
//
// Each image in use has a tree of its own, the *template*: its memory as far as it was read. All domains restored from
// the image began as shares of the template, and each page is read once for all of them:
//
//   template ──┬─► node ──► frame   loaded: whoever shares the node has it
//              ├─► node ──► image   not yet: read it, put the frame into this very node
//   domain  ───┴─► node'──► image   a node of the domain's own: take the frame from the template
//
// A page of an image is named by the GFN that it had, which is its place in the template.

import { P2M_KIND } from '../abi/machine-memory.ts';
import { HOST_ACCOUNT } from './heap.ts';
import type { Heap } from './heap.ts';
import { OUT_OF_FRAMES, PAGE_LOST, entryKind, entryValue } from './p2m.ts';
import type { P2m } from './p2m.ts';

/** GFNs gfn … gfn+count-1. */
export interface PageStretch {
  readonly gfn: number;
  readonly count: number;
}

/** One image as a thread sees it. */
export interface ImageSource {
  /** Root of the template. */
  readonly root: number;
  /** Stored pages around one of them, itself included, that are well read together. */
  cluster(gfn: number): PageStretch;
  /**
   * Reads pages and checks them, without leaving the thread.
   * @param mfns frames for pages gfn, gfn+1 …, which hold anything after a failure
   * @returns false when they cannot be read, or are not what was written
   */
  read(gfn: number, mfns: Uint32Array): boolean;
  /** Who touches a page gets one of his own: its frame is not shared. */
  readonly copies?: boolean;
  /** Somebody has touched a page that is in the template. @returns false if he is not to have it, nor any other */
  touched?(gfn: number): boolean;
}

export interface ImagePages {
  /** By the number that image entries have. */
  source(image: number): ImageSource | undefined;
}

export class PageLoader {
  readonly #heap: Heap;
  readonly #p2m: P2m;
  readonly #images: ImagePages;

  /** All of one thread. */
  constructor(heap: Heap, p2m: P2m, images: ImagePages) {
    this.#heap = heap;
    this.#p2m = p2m;
    this.#images = images;
  }

  /**
   * Makes a guest frame that lies in an image one that lies in memory.
   * @returns 1 when the caller is to look again; OUT_OF_FRAMES; PAGE_LOST
   */
  load(root: number, gfn: number): number {
    for (;;) {
      const place = this.#p2m.imagePlace(root, gfn);
      if (place === undefined) return 1;
      const source = this.#images.source(place.image);
      if (source === undefined) return PAGE_LOST;
      const page = entryValue(place.entry);
      const loaded = this.#p2m.lookup(source.root, page);
      if (entryKind(loaded) !== P2M_KIND.image && source.touched?.(page) === false) return OUT_OF_FRAMES;
      if (entryKind(loaded) === P2M_KIND.frame) {
        return this.#takeOver(root, gfn, place.entry, entryValue(loaded), source.copies === true);
      }
      if (entryKind(loaded) === P2M_KIND.zero) {
        return this.#p2m.replaceImagePage(root, gfn, place.entry, 0) === 'outOfFrames' ? OUT_OF_FRAMES : 1;
      }
      if (entryKind(loaded) !== P2M_KIND.image) return PAGE_LOST;
      const read = this.#readAround(source, page);
      if (read <= 0) return read;
    }
  }

  /** The template's frame becomes the domain's too, copied when one of them writes, unless it is to be copied now. */
  #takeOver(root: number, gfn: number, entry: number, mfn: number, copies: boolean): number {
    let frame = mfn;
    if (copies || !this.#heap.frames.retain(mfn)) {
      frame = this.#heap.allocate(this.#heap.frames.owner(root), true);
      if (frame === 0) return OUT_OF_FRAMES;
      this.#heap.memory.copyFrame(frame, mfn);
    }
    const outcome = this.#p2m.replaceImagePage(root, gfn, entry, frame);
    if (outcome === 'mapped') return 1;
    this.#heap.release(frame);
    return outcome === 'changed' ? 1 : OUT_OF_FRAMES;
  }

  #readAround(source: ImageSource, page: number): number {
    const isMissing = (gfn: number): boolean => entryKind(this.#p2m.lookup(source.root, gfn)) === P2M_KIND.image;
    const cluster = source.cluster(page);
    let first = page;
    while (first > cluster.gfn && isMissing(first - 1)) first--;
    let end = page + 1;
    while (end < cluster.gfn + cluster.count && isMissing(end)) end++;
    const read = this.#read(source, first, end - first);
    // A neighbour that is damaged, or for which there is no frame, is nobody's business yet.
    if (read > 0 || end - first === 1 || !isMissing(page)) return read > 0 || !isMissing(page) ? 1 : read;
    const alone = this.#read(source, page, 1);
    return alone > 0 || !isMissing(page) ? 1 : alone;
  }

  #read(source: ImageSource, gfn: number, count: number): number {
    const mfns = new Uint32Array(count);
    let placed = 0;
    let result = 1;
    for (let i = 0; i < count && result > 0; i++) {
      mfns[i] = this.#heap.allocate(HOST_ACCOUNT, true);
      if (mfns[i] === 0) result = OUT_OF_FRAMES;
    }
    if (result > 0 && !source.read(gfn, mfns)) result = PAGE_LOST;
    for (; result > 0 && placed < count; placed++) {
      if (!placeInTemplate(this.#heap, this.#p2m, source.root, gfn + placed, mfns[placed]!)) {
        result = OUT_OF_FRAMES;
        break;
      }
    }
    for (const mfn of mfns.subarray(placed)) if (mfn !== 0) this.#heap.release(mfn);
    return result;
  }
}

/**
 * Puts a page that was read where it belongs. A page that another thread was faster with is as good.
 * @returns false when out of frames for nodes: the frame is still the caller's
 */
export function placeInTemplate(heap: Heap, p2m: P2m, root: number, gfn: number, mfn: number): boolean {
  const entry = p2m.lookup(root, gfn);
  const outcome = entryKind(entry) === P2M_KIND.image ? p2m.replaceImagePage(root, gfn, entry, mfn) : 'changed';
  if (outcome === 'changed') heap.release(mfn);
  return outcome !== 'outOfFrames';
}
