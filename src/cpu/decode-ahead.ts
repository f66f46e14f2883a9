// Decoding ahead: what a restored guest will run is known (lifecycle/working-set.ts), and a pCPU that is idle decodes it while
// the main thread still makes the guest, and while the guest begins to run elsewhere (layout: abi/decode-ahead.ts).
//
//   main thread:  offer(owner, pages) ─► arrived(owner, frames) … ─► withdraw(owner), before a frame may go
//   any pCPU:     step(), one page at a time, while it counts as in code
//
// It is advice: what is decoded is what is in the page, whatever the list says, and a slot that is filled by two at once gets
// the same from both (decode-cache.ts). The frames are the owner's, and nobody writes to them before they are withdrawn.

import { AHEAD_PAGES_MAX, AHEAD_RUNS_MAX, DECODE_AHEAD, RUN_FIRST_SHIFT, RUN_LENGTH_MAX } from '../abi/decode-ahead.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { backOff } from '../memory/spin.ts';
import type { DecodeCache } from './decode-cache.ts';

const { at } = DECODE_AHEAD;
const PAGE_WORDS = 1024;

/** Runs of instructions of pages 0, 1, …: those of page n end at `ends[n]`, in `runs`, each as in abi/decode-ahead.ts. */
export interface CodeRuns {
  readonly ends: Uint32Array;
  readonly runs: Uint16Array;
}

/** @param decoded bit n % 32 of word n / 32 for instruction n of a page */
export function runsOf(decoded: Uint32Array): number[] {
  const has = (index: number): boolean => ((decoded[index >>> 5]! >>> (index & 31)) & 1) !== 0;
  const runs: number[] = [];
  for (let first = 0; first < PAGE_WORDS; first++) {
    if (!has(first)) continue;
    let last = first;
    while (last + 1 < PAGE_WORDS && last + 1 < first + RUN_LENGTH_MAX && has(last + 1)) last++;
    runs.push((first << RUN_FIRST_SHIFT) | (last - first));
    first = last;
  }
  return runs;
}

/** Whether such a run lies in a page. */
export const isRun = (run: number): boolean => (run >>> RUN_FIRST_SHIFT) + (run & (RUN_LENGTH_MAX - 1)) < PAGE_WORDS;

export class DecodeAhead {
  readonly #machine: MachineMemory;
  readonly #cache: DecodeCache;
  readonly #base: number;
  /** Main thread only: whose pages they are, and frames of stretches that have come before others in front of them. */
  #owner: object | undefined;
  readonly #early = new Map<number, number>();

  constructor(machine: MachineMemory, cache: DecodeCache) {
    this.#machine = machine;
    this.#cache = cache;
    this.#base = machine.region('decodeAhead').offsetBytes;
  }

  #word(field: 'next' | 'ready' | 'workers'): number { return (this.#base + at[field]) / 4; }
  #load(field: 'next' | 'ready' | 'workers'): number { return Atomics.load(this.#machine.u32, this.#word(field)); }

  // ---- main thread

  /** In place of what was offered before. */
  offer(owner: object, { ends, runs }: CodeRuns): void {
    assert(ends.length <= AHEAD_PAGES_MAX && runs.length <= AHEAD_RUNS_MAX, 'more code than there is room for');
    if (this.#owner !== undefined) this.withdraw(this.#owner);
    this.#owner = owner;
    const { u16, u32 } = this.#machine;
    u32.set(ends, (this.#base + at.ends) / 4);
    u16.set(runs, (this.#base + at.runs) / 2);
  }

  /**
   * Pages from `first` on have frames (0: that one has not), in which they stay until they are withdrawn.
   * @returns whether there is something to do that nobody is at
   */
  arrived(owner: object, first: number, mfns: readonly number[]): boolean {
    if (this.#owner !== owner) return false;
    assert(first + mfns.length <= AHEAD_PAGES_MAX, 'more pages than there is room for');
    const { u32 } = this.#machine;
    u32.set(mfns, (this.#base + at.frames) / 4 + first);
    this.#early.set(first, first + mfns.length);
    for (;;) {
      const end = this.#early.get(this.#load('ready'));
      if (end === undefined || !this.#early.delete(this.#load('ready'))) break;
      Atomics.store(u32, this.#word('ready'), end);
    }
    return this.isWaiting && this.#load('workers') === 0;
  }

  /** When it returns, nobody looks at the owner's pages, nor will. */
  withdraw(owner: object): void {
    if (this.#owner !== owner) return;
    const { u32 } = this.#machine;
    Atomics.store(u32, this.#word('ready'), 0);
    for (let attempt = 0; this.#load('workers') !== 0; attempt++) backOff(attempt);
    Atomics.store(u32, this.#word('next'), 0);
    this.#early.clear();
    this.#owner = undefined;
  }

  // ---- pCPUs

  get isWaiting(): boolean {
    return this.#load('next') < this.#load('ready');
  }

  /** Decodes one page. The thread counts as in code. @returns false if there was none left */
  step(): boolean {
    const { u32 } = this.#machine;
    Atomics.add(u32, this.#word('workers'), 1);
    try {
      for (let page = this.#take(); page >= 0; page = this.#take()) if (this.#decode(page)) return true;
      return false;
    } finally {
      Atomics.sub(u32, this.#word('workers'), 1);
    }
  }

  /** @returns -1: there is none left */
  #take(): number {
    const next = this.#word('next');
    for (;;) {
      const page = this.#load('next');
      if (page >= this.#load('ready')) return -1;
      if (Atomics.compareExchange(this.#machine.u32, next, page, page + 1) === page) return page;
    }
  }

  /** @returns whether there was anything to decode */
  #decode(page: number): boolean {
    const { u16, u32 } = this.#machine;
    const ends = (this.#base + at.ends) / 4;
    const mfn = u32[(this.#base + at.frames) / 4 + page]!;
    const end = u32[ends + page]!;
    const first = page === 0 ? 0 : u32[ends + page - 1]!;
    if (mfn === 0 || first === end) return false;
    const slot = this.#cache.slotFor(mfn);
    // All are in use: whoever needs one has them given back.
    if (slot === 0) return false;
    for (let i = first; i < end; i++) {
      const run = u16[(this.#base + at.runs) / 2 + i]!;
      this.#cache.decodeAhead(slot, run >>> RUN_FIRST_SHIFT, (run & (RUN_LENGTH_MAX - 1)) + 1);
    }
    return true;
  }
}
