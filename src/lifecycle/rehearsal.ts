// A rehearsal: a frozen guest is forked once more, where nobody sees it, and run for some milliseconds, to find out which
// pages a guest that is restored from this state will touch first, and in which order. For this its memory begins as
// places in an image, the image being the frozen memory itself (memory/image-pages.ts): each first touch comes by the
// loader of pages, which notes it. When there are too many, the loader refuses, and the guest stops as one does that is
// out of frames.
//
//   frozen root ───────────────► nodes ─► frames          read, never changed
//        ▲ where the pages are                ▲
//   template, all places in an image          │ a page that was touched
//        └─► share: the guest that rehearses ─┘ copied when it is written
//
// Nothing that it does gets out: nobody listens at the host's ends of its event channels, and when it is over all of it
// goes. This file makes the tree and keeps the notes; host/rehearsals.ts runs the guest.

import type { HypervisorThread } from '../hypervisor/thread.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import { mappedStretches } from '../memory/p2m-ranges.ts';

/** Pages that are noted, and that a rehearsal may have, at most: 8 MiB. */
const NOTES_MAX = 2048;

/** What came of one. */
export interface Rehearsed {
  /** GFNs of pages, in the order of their first touch. */
  readonly touched: readonly number[];
  /** By GFN, which instructions of the page it has got to: bit n % 32 of word n / 32 for instruction n. */
  readonly code: ReadonlyMap<number, Uint32Array>;
}

/** First touches in their order, by whatever thread; lies in memory that threads share. */
export class TouchNotes {
  /** Count, then GFNs. */
  readonly words: Int32Array;

  /** @param words of another thread's notes, to write into the same */
  constructor(words?: Int32Array) {
    this.words = words ?? new Int32Array(new SharedArrayBuffer(4 * (1 + NOTES_MAX)));
  }

  /** @returns false when there is no room left */
  note(gfn: number): boolean {
    const place = Atomics.add(this.words, 0, 1) + 1;
    if (place > NOTES_MAX) return false;
    this.words[place] = gfn;
    return true;
  }

  /** What has been noted until now; a page that several vCPUs touched at once comes once. */
  get gfns(): number[] {
    const count = Math.min(Atomics.load(this.words, 0), NOTES_MAX);
    return [...new Set(this.words.subarray(1, 1 + count))];
  }
}

/**
 * @param number what image entries call the frozen memory
 * @returns root of a tree that has each page of the frozen memory as a place in an image, the caller's; 0 when out of frames
 */
export function placesOf({ machine, p2m }: HypervisorThread, frozenRoot: number, number: number): number {
  const root = p2m.create(HOST_ACCOUNT);
  if (root === 0) return 0;
  const isMapped = mappedStretches(machine, frozenRoot)
    .every(({ gfn, count }) => p2m.mapImageRange(root, gfn, count, number, gfn));
  // Nobody has seen what was replaced.
  p2m.releaseStale();
  if (isMapped) return root;
  p2m.release(root);
  return 0;
}
