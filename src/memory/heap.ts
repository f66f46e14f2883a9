// The heap: the allocator of frames, used by every thread of the host on the same state in machine memory.
//
// A freed frame holds another guest's data, so a free block is clean (all zero) or dirty. Frames are freed dirty at
// once; idle pCPUs scrub (`scrubStep`); an allocation prefers clean frames and scrubs a dirty one itself when it must,
// exactly what it returns and never under the heap lock, which covers list surgery only.
//
// Each thread is an *agent* with a number of its own. An agent keeps a few clean frames in a cache, so that most
// page faults take no lock. The slots of a cache are emptied with Atomics.exchange: whoever gets the MFN owns it, so
// an agent that finds the heap empty may rob the others.
//
// A chunk under scrubbing stays in reach of allocators. Its agent's `scrubProgress` splits the chunk in four:
//
//        0 … first      taken by allocators
//    first … done       clean: an allocator may take the lowest        (first + 1)
//     done              being scrubbed by the agent, nobody else's     (done + 1 when it is clean)
//   done+1 … end        dirty: an allocator may take the highest, and scrubs it itself   (end - 1)
//
// All change the word by compare-and-swap; allocators only under the heap lock, under which the agent opens and
// closes its chunk, so that they know which chunk the word speaks of. So an allocator waits for at most one frame.

import {
  FRAME_STATE, HEAP, HEAP_AGENT, HEAP_AGENT_MAX, HEAP_CACHE_FRAMES, HEAP_ORDER_MAX, HEAP_SCRUB_FRAMES,
} from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { FrameTable } from './frame-table.ts';
import { CLEAN, DIRTY, FreeLists } from './free-lists.ts';
import type { Kind } from './free-lists.ts';
import type { MachineMemory } from './machine-memory.ts';
import { backOff, spinLock, spinUnlock } from './spin.ts';
import { TearDown } from './tear-down.ts';

/** The account of frames that belong to no guest. */
export const HOST_ACCOUNT = 0;

const REFILL_FRAMES = 16;
const FREE_BATCH = 64;
/** How often an allocator that sees only frames in the hands of scrubbers looks again before it reports failure. */
const SCRUBBER_WAITS = 20_000;

const firstOf = (progress: number) => progress & 0xff;
const doneOf = (progress: number) => (progress >>> 8) & 0xff;
const endOf = (progress: number) => progress >>> 16;
const FIRST_STEP = 1;
const DONE_STEP = 1 << 8;
const END_STEP = 1 << 16;

/** All in frames. total = clean + cached + dirty + scrubbing + used, up to what other threads do meanwhile. */
export interface HeapStats {
  readonly total: number;
  /** In the clean lists. */
  readonly clean: number;
  /** Clean, in the caches of agents. */
  readonly cached: number;
  readonly dirty: number;
  readonly scrubbing: number;
  /** Handed out, or on the way to or from a list. */
  readonly used: number;
  /** Used, with more than one mapping. */
  readonly shared: number;
}

const never = () => false;

export class Heap {
  readonly memory: MachineMemory;
  readonly frames: FrameTable;
  /** Reads as zero, belongs to nobody, is never written and never freed. */
  readonly zeroMfn: number;
  readonly lists: FreeLists;
  readonly tearDown: TearDown;
  /** Asked when no frame is left: releases some tree that can be missed, and says whether there was one. */
  reclaim: () => boolean = never;
  readonly #words: Uint32Array;
  readonly #at: number;
  readonly #agent: number;
  /** Cache slots from here up are empty; those below may have been robbed. */
  #cacheTop = 0;
  readonly #batch = new Uint32Array(FREE_BATCH);
  #batchCount = 0;

  /**
   * @param agent this thread's number: n < 64 for pCPU n, 64 … 71 for the host's other threads; no two threads may
   *   use one number at the same time
   */
  constructor(memory: MachineMemory, agent: number) {
    assert(agent >= 0 && agent < HEAP_AGENT_MAX, 'agent number out of range');
    this.memory = memory;
    this.frames = new FrameTable(memory);
    this.lists = new FreeLists(memory, this.frames);
    this.tearDown = new TearDown(memory, this.frames, this);
    this.#words = memory.u32;
    this.#at = memory.region('heap').offsetBytes / 4;
    this.#agent = agent;
    this.zeroMfn = this.#words[this.#at + HEAP.at.zeroMfn / 4]!;
    assert(this.zeroMfn !== 0, 'heap is not initialized');
    for (let slot = 0; slot < HEAP_CACHE_FRAMES; slot++) {
      if (this.#words[this.#cacheIndex(agent) + slot] !== 0) this.#cacheTop = slot + 1;
    }
  }

  /** Gives all frames of a new machine to the heap; once, before any agent exists. Fresh Wasm memory is zero. */
  static initialize(memory: MachineMemory): void {
    const at = memory.region('heap').offsetBytes / 4;
    assert(memory.u32[at + HEAP.at.zeroMfn / 4] === 0, 'heap is already initialized');
    const frames = new FrameTable(memory);
    frames.claim(memory.firstFrame, FRAME_STATE.zero, HOST_ACCOUNT);
    memory.u32[at + HEAP.at.zeroMfn / 4] = memory.firstFrame;
    const total = memory.frameEnd - memory.firstFrame - 1;
    memory.u32[at + HEAP.at.totalFrames / 4] = total;
    new FreeLists(memory, frames).put(CLEAN, memory.firstFrame + 1, total);
  }

  /**
   * One frame, with one mapping, which is the caller's to hand on or `release`.
   * @param owner account to charge: a domain's id or HOST_ACCOUNT
   * @param overwritten the caller promises to overwrite the whole frame before any guest can see it, so it may come
   *   with old data. If the caller fails half-way it just calls `release`.
   * @returns its MFN, or 0 when the machine is out of frames. All zero unless `overwritten`.
   */
  allocate(owner: number, overwritten = false): number {
    if (overwritten && this.lists.count(DIRTY) !== 0) {
      const mfn = this.#takeListed(DIRTY, 0);
      if (mfn !== 0) return this.#handOut(mfn, 1, owner);
    }
    let mfn = this.#takeCached();
    if (mfn === 0) mfn = this.#takeCleanAndRefill();
    if (mfn === 0) mfn = this.#takeAndScrub(0, overwritten);
    if (mfn === 0) mfn = this.#takeScarce(overwritten);
    while (mfn === 0 && this.reclaim()) mfn = this.#takeScarce(overwritten);
    return mfn === 0 ? 0 : this.#handOut(mfn, 1, owner);
  }

  /**
   * 2^order contiguous frames, aligned to their size, each with a record and a mapping of its own, so that each may
   * be released by itself. May fail from fragmentation while single frames are left.
   * @param order 0 … HEAP_ORDER_MAX
   */
  allocateBlock(owner: number, order: number, overwritten = false): number {
    assert(order >= 0 && order <= HEAP_ORDER_MAX, 'order out of range');
    if (order === 0) return this.allocate(owner, overwritten);
    let mfn = this.#takeListed(overwritten ? DIRTY : CLEAN, order);
    if (mfn === 0 && overwritten) mfn = this.#takeListed(CLEAN, order);
    if (mfn === 0) mfn = this.#takeAndScrub(order, overwritten);
    if (mfn === 0 && this.#emptyCaches()) mfn = this.#takeListed(CLEAN, order);
    while (mfn === 0 && this.tearDown.step(Infinity)) mfn = this.#takeAndScrub(order, overwritten);
    return mfn === 0 ? 0 : this.#handOut(mfn, 2 ** order, owner);
  }

  /** Drops a mapping; the last use frees the frame, dirty. The zero frame has no count. */
  release(mfn: number): void {
    if (mfn !== this.zeroMfn && this.frames.dropMapping(mfn)) this.#free(mfn);
  }

  /** Gives back a frame from `allocate` without `overwritten` that nobody has written or seen: it is still clean. */
  releaseUntouched(mfn: number): void {
    // A reader that followed an old translation may have it pinned for a moment, and will free it (dirty) itself.
    if (!this.frames.dropMapping(mfn)) return;
    this.#uncharge(mfn);
    if (this.#cacheTop < HEAP_CACHE_FRAMES) this.#cache(mfn);
    else this.#putListed(CLEAN, mfn);
  }

  /** `release` for many frames: takes the heap lock once for 64 of them. Call `flushReleases` at the end. */
  releaseLater(mfn: number): void {
    if (mfn !== this.zeroMfn && this.frames.dropMapping(mfn)) this.#freeLater(mfn);
  }

  /** Likewise `unpin`. */
  unpinLater(mfn: number): void {
    if (mfn !== this.zeroMfn && this.frames.dropPin(mfn)) this.#freeLater(mfn);
  }

  #freeLater(mfn: number): void {
    this.#uncharge(mfn);
    this.#batch[this.#batchCount++] = mfn;
    if (this.#batchCount === FREE_BATCH) this.flushReleases();
  }

  flushReleases(): void {
    if (this.#batchCount === 0) return;
    spinLock(this.#words, this.#at);
    for (let i = 0; i < this.#batchCount;) i += this.#putRun(i);
    spinUnlock(this.#words, this.#at);
    this.#batchCount = 0;
  }

  /** Neighbours, upwards or downwards, go back as one. @returns how many */
  #putRun(start: number): number {
    const batch = this.#batch;
    const first = batch[start]!;
    let end = start + 1;
    const step = end < this.#batchCount && batch[end]! < first ? -1 : 1;
    while (end < this.#batchCount && batch[end] === first + (end - start) * step) end++;
    this.lists.put(DIRTY, Math.min(first, batch[end - 1]!), end - start);
    return end - start;
  }

  /**
   * Keeps a frame alive for the hypervisor or a backend, whatever becomes of its mappings.
   * @returns false when the frame is free or pinned too often (16383 times)
   */
  pin(mfn: number): boolean {
    return mfn === this.zeroMfn || this.frames.pin(mfn);
  }

  unpin(mfn: number): void {
    if (mfn !== this.zeroMfn && this.frames.dropPin(mfn)) this.#free(mfn);
  }

  /**
   * Scrubs one chunk of dirty frames; what an idle pCPU calls again and again until it returns 0.
   * @param maxFrames upper bound of the chunk; at most 128 (about 80 µs of work) are taken at a time
   * @param shouldStop asked after every frame (4 KiB); must not use the heap
   * @returns frames scrubbed: 0 when nothing is dirty or the answer was to stop at once
   */
  scrubStep(maxFrames: number = HEAP_SCRUB_FRAMES, shouldStop: () => boolean = never): number {
    if (maxFrames < 1 || this.lists.count(DIRTY) === 0 || shouldStop()) return 0;
    const chunk = this.#openChunk(Math.min(maxFrames, HEAP_SCRUB_FRAMES));
    if (chunk === 0) return 0;
    const progressIndex = this.#scrubIndex(this.#agent) + 1;
    let done = 0;
    let progress: number;
    do {
      this.memory.zeroFrame(chunk + done);
      progress = Atomics.add(this.#words, progressIndex, DONE_STEP) + DONE_STEP;
      done++;
    } while (done < endOf(progress) && !shouldStop());
    this.#closeChunk(chunk, progressIndex);
    return done;
  }

  /** Whether there is something to scrub or to take apart. */
  get hasIdleWork(): boolean {
    return this.tearDown.isWaiting || this.lists.count(DIRTY) !== 0;
  }

  /** So many frames at least are free; what `stats` adds to them (in caches, under scrubbing) takes long to count. */
  get listedFrames(): number {
    return this.lists.count(CLEAN) + this.lists.count(DIRTY);
  }

  /** Frames charged to an account. A frame stays with the account it was allocated for until it is free. */
  chargedFrames(owner: number): number {
    return Atomics.load(this.#words, this.#accountIndex(owner));
  }

  stats(): HeapStats {
    const words = this.#words;
    spinLock(words, this.#at);
    const clean = this.lists.count(CLEAN);
    const dirty = this.lists.count(DIRTY);
    let cached = 0;
    let scrubbing = 0;
    for (let agent = 0; agent < HEAP_AGENT_MAX; agent++) {
      const progress = Atomics.load(words, this.#scrubIndex(agent) + 1);
      scrubbing += endOf(progress) - firstOf(progress);
      for (let slot = 0; slot < HEAP_CACHE_FRAMES; slot++) {
        if (Atomics.load(words, this.#cacheIndex(agent) + slot) !== 0) cached++;
      }
    }
    spinUnlock(words, this.#at);
    const total = words[this.#at + HEAP.at.totalFrames / 4]!;
    const shared = Atomics.load(words, this.#at + HEAP.at.sharedFrames / 4);
    return { total, clean, cached, dirty, scrubbing, used: total - clean - cached - dirty - scrubbing, shared };
  }

  /** Calls back with every frame in the caches; for the audit, while no other agent is at work. */
  forEachCached(visit: (mfn: number) => void): void {
    for (let agent = 0; agent < HEAP_AGENT_MAX; agent++) {
      for (let slot = 0; slot < HEAP_CACHE_FRAMES; slot++) {
        const mfn = Atomics.load(this.#words, this.#cacheIndex(agent) + slot);
        if (mfn !== 0) visit(mfn);
      }
    }
  }

  /** Likewise every frame of the chunks under scrubbing. */
  forEachScrubbing(visit: (mfn: number) => void): void {
    for (let agent = 0; agent < HEAP_AGENT_MAX; agent++) {
      const chunk = this.#words[this.#scrubIndex(agent)]!;
      const progress = Atomics.load(this.#words, this.#scrubIndex(agent) + 1);
      for (let i = firstOf(progress); i < endOf(progress); i++) visit(chunk + i);
    }
  }

  #agentIndex(agent: number): number {
    return this.#at + (HEAP.at.agents + agent * HEAP_AGENT.sizeBytes) / 4;
  }

  #cacheIndex(agent: number): number {
    return this.#agentIndex(agent) + HEAP_AGENT.at.cache / 4;
  }

  /** Index of scrubMfn; scrubProgress follows it. */
  #scrubIndex(agent: number): number {
    return this.#agentIndex(agent) + HEAP_AGENT.at.scrubMfn / 4;
  }

  #accountIndex(owner: number): number {
    assert(owner >= 0 && owner < this.memory.parameters.domainCount, 'no such account');
    return this.#at + HEAP.at.accounts / 4 + owner;
  }

  #handOut(mfn: number, count: number, owner: number): number {
    for (let i = 0; i < count; i++) this.frames.claim(mfn + i, FRAME_STATE.used, owner);
    Atomics.add(this.#words, this.#accountIndex(owner), count);
    return mfn;
  }

  #uncharge(mfn: number): void {
    Atomics.sub(this.#words, this.#accountIndex(this.frames.owner(mfn)), 1);
    this.frames.disclaim(mfn);
  }

  #free(mfn: number): void {
    this.#uncharge(mfn);
    this.#putListed(DIRTY, mfn);
  }

  #takeListed(kind: Kind, order: number): number {
    spinLock(this.#words, this.#at);
    const mfn = this.lists.take(kind, order);
    spinUnlock(this.#words, this.#at);
    return mfn;
  }

  #putListed(kind: Kind, mfn: number): void {
    spinLock(this.#words, this.#at);
    this.lists.put(kind, mfn, 1);
    spinUnlock(this.#words, this.#at);
  }

  #takeCached(): number {
    const cache = this.#cacheIndex(this.#agent);
    while (this.#cacheTop > 0) {
      const mfn = Atomics.exchange(this.#words, cache + --this.#cacheTop, 0);
      if (mfn !== 0) return mfn;
    }
    return 0;
  }

  #cache(mfn: number): void {
    this.frames.setState(mfn, FRAME_STATE.cached);
    Atomics.store(this.#words, this.#cacheIndex(this.#agent) + this.#cacheTop++, mfn);
  }

  /** Takes a clean frame from the lists and, as the lock is held anyway, some more for the (empty) cache. */
  #takeCleanAndRefill(): number {
    if (this.lists.count(CLEAN) === 0) return 0;
    spinLock(this.#words, this.#at);
    const mfn = this.lists.take(CLEAN, 0);
    for (let wanted = REFILL_FRAMES; wanted > 0;) {
      const smallest = this.lists.smallestOrder(CLEAN);
      if (smallest < 0) break;
      const order = Math.min(smallest, 31 - Math.clz32(wanted));
      const block = this.lists.take(CLEAN, order);
      for (let i = 0; i < 1 << order; i++) this.#cache(block + i);
      wanted -= 1 << order;
    }
    spinUnlock(this.#words, this.#at);
    return mfn;
  }

  #takeAndScrub(order: number, overwritten: boolean): number {
    if (this.lists.count(DIRTY) === 0) return 0;
    const mfn = this.#takeListed(DIRTY, order);
    if (mfn !== 0 && !overwritten) for (let i = 0; i < 1 << order; i++) this.memory.zeroFrame(mfn + i);
    return mfn;
  }

  /**
   * The lists looked empty: rob caches, then chunks under scrubbing, help taking trees apart, and wait for a frame in the
   * hands of a scrubber or of another thread that takes a tree apart.
   */
  #takeScarce(overwritten: boolean): number {
    for (let attempt = 0; attempt < SCRUBBER_WAITS; attempt++) {
      let mfn = this.#robCaches();
      if (mfn === 0) mfn = this.#takeListed(CLEAN, 0);
      if (mfn === 0) mfn = this.#takeAndScrub(0, overwritten);
      if (mfn !== 0) return mfn;
      // Before the lists are looked at again: what is not pending any more then is in them.
      const isPending = this.tearDown.isPending;
      const robbed = this.#robScrubbers(overwritten);
      if (robbed > 0 || (robbed === 0 && !isPending)) return robbed;
      if (this.tearDown.step(FREE_BATCH)) attempt = 0;
      else backOff(attempt);
    }
    return 0;
  }

  #robCaches(): number {
    for (let agent = 0; agent < HEAP_AGENT_MAX; agent++) {
      const cache = this.#cacheIndex(agent);
      for (let slot = 0; slot < HEAP_CACHE_FRAMES; slot++) {
        if (Atomics.load(this.#words, cache + slot) === 0) continue;
        const mfn = Atomics.exchange(this.#words, cache + slot, 0);
        if (mfn !== 0) return mfn;
      }
    }
    return 0;
  }

  /** Puts all cached frames back in the lists, where they may merge to blocks. @returns whether there were any */
  #emptyCaches(): boolean {
    let any = false;
    for (let mfn = this.#robCaches(); mfn !== 0; mfn = this.#robCaches()) {
      this.frames.disclaim(mfn);
      this.#putListed(CLEAN, mfn);
      any = true;
    }
    return any;
  }

  /** @returns a frame; 0 when no chunk is open; -1 when all that is left is being scrubbed at this moment */
  #robScrubbers(overwritten: boolean): number {
    const words = this.#words;
    let open = false;
    let mfn = 0;
    let scrub = false;
    spinLock(words, this.#at);
    // A chunk that was closed just before we took the lock is in the lists now.
    if (this.lists.count(CLEAN) !== 0 || this.lists.count(DIRTY) !== 0) open = true;
    for (let agent = 0; agent < HEAP_AGENT_MAX && mfn === 0; agent++) {
      const index = this.#scrubIndex(agent);
      for (;;) {
        const progress = Atomics.load(words, index + 1);
        if (progress === 0) break;
        open = true;
        const isClean = firstOf(progress) < doneOf(progress);
        const isDirty = endOf(progress) - 1 > doneOf(progress);
        if (!isClean && !isDirty) break;
        const after = isClean ? progress + FIRST_STEP : progress - END_STEP;
        if (Atomics.compareExchange(words, index + 1, progress, after) !== progress) continue;
        mfn = words[index]! + (isClean ? firstOf(progress) : endOf(progress) - 1);
        scrub = !isClean && !overwritten;
        break;
      }
    }
    spinUnlock(words, this.#at);
    if (mfn === 0) return open ? -1 : 0;
    if (scrub) this.memory.zeroFrame(mfn);
    return mfn;
  }

  #openChunk(maxFrames: number): number {
    const words = this.#words;
    spinLock(words, this.#at);
    const order = Math.min(this.lists.largestOrder(DIRTY), 31 - Math.clz32(maxFrames));
    const chunk = order < 0 ? 0 : this.lists.take(DIRTY, order);
    if (chunk !== 0) {
      const index = this.#scrubIndex(this.#agent);
      words[index] = chunk;
      Atomics.store(words, index + 1, END_STEP << order);
    }
    spinUnlock(words, this.#at);
    return chunk;
  }

  #closeChunk(chunk: number, progressIndex: number): void {
    spinLock(this.#words, this.#at);
    const progress = Atomics.exchange(this.#words, progressIndex, 0);
    const done = doneOf(progress);
    this.lists.put(CLEAN, chunk + firstOf(progress), done - firstOf(progress));
    this.lists.put(DIRTY, chunk + done, endOf(progress) - done);
    spinUnlock(this.#words, this.#at);
  }
}
