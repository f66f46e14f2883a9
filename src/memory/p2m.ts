// The p2m: a domain's map from guest frames (GFN) to machine frames (MFN), a radix tree of three levels whose nodes
// are frames of the heap (drawn in abi/machine-memory.ts). It is named by the MFN of its root, which stays the same
// for its whole life and is never shared; nodes below may be shared by any number of trees, counted in the frame
// table like frames are. Sharing a tree therefore copies only the root; the first write below copies the nodes on
// its path and then the frame.
//
//    root A ─┐                        A frame may be written in place when every node on its path, and itself, has
//            ├─► node (2) ─► frame    exactly one mapping: counts say "how many parents", so a count of one below a
//    root B ─┘                        shared node does not mean exclusive.
//
// Concurrency. Reads take no lock: they walk, and walk again if the tree's sequence moved meanwhile (a node may have
// been replaced and freed under them). Changes of one tree take its lock; frames are allocated, scrubbed and copied
// outside it, and whoever finds that another thread was faster gives its frame back. Lock and sequence are the
// `decode` word of the root's record: bit 0 is the lock, and every unlock adds to the rest.
//
// One change is made in a shared node, under the lock of any tree that it is in, by compare-and-swap: a place in an image
// becomes the frame that was read from there, or a node of such places. It means the same in every tree, so that all
// that share the node have the page at once. (Whoever copies a node takes each entry once, to count what it copies.)
//
// Translations are cached in TLBs. A change that makes an older translation wrong sets `stale`; what it took out of
// the tree stays alive (pinned, in the hands of this object) until the caller has had all TLBs of the domain forget
// it and calls `releaseStale`. So an MFN from `lookup` or `frameForWrite` is good for a pCPU until it next answers a
// request to flush; a thread that answers no such requests (a backend) must use `pinForRead` and `pinForWrite`.
// The zero frame is never put into a TLB, so the first write to untouched memory makes nothing stale.

import {
  FRAME_BYTES, FRAME_STATE, FRAME_WORDS, GFN_LIMIT, P2M_ENTRIES, P2M_KIND, P2M_KIND_MASK, P2M_READ_ONLY, P2M_VALUE_SHIFT,
} from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { MAPPINGS_NEARLY_FULL } from './frame-table.ts';
import type { FrameTable } from './frame-table.ts';
import type { Heap } from './heap.ts';
import { INDEX_MASK, P2mNodes, ROOT_LEVEL, entryKind, entryValue, indexOf, makeEntry, spanOf, wordOf } from './p2m-nodes.ts';

export { entryKind, entryValue } from './p2m-nodes.ts';

const { absent: ABSENT, node: NODE, frame: FRAME, zero: ZERO, image: IMAGE } = P2M_KIND;

/** What `frameForWrite` returns instead of an MFN. */
export const OUT_OF_FRAMES = 0;
/** No memory is there (or the GFN is out of range). */
export const NOT_MEMORY = -1;
/** The page is in an image and cannot be read from there; for now, or for good. */
export const PAGE_LOST = -2;
export const READ_ONLY = -3;

export class P2m {
  /** Loads pages that are in images; without one, they are lost. */
  loader: { load(root: number, gfn: number): number } | undefined;
  readonly #heap: Heap;
  readonly #frames: FrameTable;
  readonly #words: Uint32Array;
  readonly #nodes: P2mNodes;

  /** @param heap of the calling thread; a P2m object serves all trees, but only one thread */
  constructor(heap: Heap) {
    this.#heap = heap;
    this.#frames = heap.frames;
    this.#words = heap.memory.u32;
    this.#nodes = new P2mNodes(heap);
  }

  /** Set by a change that makes translations wrong which TLBs may hold; then flush and call `releaseStale`. */
  get stale(): boolean { return this.#nodes.stale; }
  /** The frame whose replacement is all that is stale; 0: more than that is. */
  get onlyStaleFrame(): number { return this.#nodes.onlyStaleFrame; }
  /** Frees what changes through this object have replaced; call when no TLB of the domains concerned holds it. */
  releaseStale(): void {
    this.#nodes.releaseStale();
  }

  // ---- Trees --------------------------------------------------------------------------------------------------------

  /** @returns the root of an empty tree, charged to `owner` like all it will allocate; 0 when out of frames */
  create(owner: number): number {
    const root = this.#heap.allocate(owner);
    if (root !== 0) this.#frames.setState(root, FRAME_STATE.table);
    return root;
  }

  /**
   * A second tree with the same contents, for a checkpoint or fork; costs one frame. From then on both copy what they
   * write. No vCPU of the domain may run between this call and the flush of its write translations. Pinned frames are
   * shared like all others: who holds a pin in order to write, or to see what the guest writes, must give it up for
   * one from `pinForWrite` before the domain runs on.
   * @returns its root, or 0 when out of frames
   */
  share(root: number, owner: number): number {
    const copy = this.#heap.allocate(owner, true);
    if (copy === 0) return 0;
    this.#nodes.lock(root);
    const complete = this.#nodes.copyEntries(root, copy);
    this.#nodes.unlock(root);
    if (complete) return copy;
    this.#heap.release(copy);
    return 0;
  }

  /** Moves with each change of the tree. */
  sequence(root: number): number {
    return Atomics.load(this.#words, this.#frames.decodeIndex(root));
  }
  /** Whether nothing has changed in a tree since `sequence`, nor was changing then. */
  isAsOf(root: number, sequence: number): boolean {
    return (sequence & 1) === 0 && this.sequence(root) === sequence;
  }

  /**
   * What makes a tree equal to another one that it was once shared with: places in nodes of its own, as few as there
   * are. Allocates nothing. Nobody may change the wanted tree; if the other one changes meanwhile, or before the places
   * are used, they are worth nothing (`isAsOf`).
   * @param places gets pairs of indices in u32: of an entry, and of the one to be put there
   * @returns the number of pairs; -1 when there are more than fit
   */
  differences(root: number, wanted: number, places: Uint32Array): number {
    return this.#compare(root, wanted, ROOT_LEVEL, places, 0);
  }

  #compare(node: number, wanted: number, level: number, places: Uint32Array, found: number): number {
    const words = this.#words;
    const { memory } = this.#heap;
    for (let at = memory.nextDifference(node, wanted, 0); at < FRAME_BYTES;) {
      const own = node * FRAME_WORDS + at / 4;
      const other = wanted * FRAME_WORDS + at / 4;
      const entry = words[own]!;
      const wantedEntry = words[other]!;
      // What was a node may be anything by now, if the tree changes meanwhile.
      const descend = level > 0 && (entry & P2M_KIND_MASK) === NODE && (wantedEntry & P2M_KIND_MASK) === NODE
        && entry >>> P2M_VALUE_SHIFT < memory.frameEnd && this.#frames.mappings(entry >>> P2M_VALUE_SHIFT) === 1;
      // The second word means something in an image entry only.
      const isSame = entry === wantedEntry && (entry & P2M_KIND_MASK) !== IMAGE;
      if (descend) {
        found = this.#compare(entry >>> P2M_VALUE_SHIFT, wantedEntry >>> P2M_VALUE_SHIFT, level - 1, places, found);
        if (found < 0) return -1;
      } else if (!isSame) {
        if (2 * found + 1 >= places.length) return -1;
        places[2 * found] = own;
        places[2 * found + 1] = other;
        found++;
      }
      at += 8;
      if (at < FRAME_BYTES) at = memory.nextDifference(node, wanted, at);
    }
    return found;
  }

  /**
   * Puts entries in place that `differences` has found, or some of them. What was there is given back at once: nobody
   * runs in the tree, and whoever has TLBs of it flushes them before he does.
   * @returns false, with nothing done, when something is counted too often to be shared once more
   */
  applyDifferences(root: number, places: Uint32Array, count: number): boolean {
    const isCounted = (entry: number) => entryKind(entry) === NODE || entryKind(entry) === FRAME;
    for (let i = 1; i < 2 * count; i += 2) {
      const entry = this.#words[places[i]!]!;
      if (isCounted(entry) && this.#frames.mappings(entryValue(entry)) >= MAPPINGS_NEARLY_FULL) return false;
    }
    this.#nodes.lock(root);
    let shared = 0;
    for (let i = 0; i < 2 * count; i += 2) {
      const entry = this.#words[places[i + 1]!]!;
      if (isCounted(entry) && this.#frames.addMapping(entryValue(entry)) === 1) shared++;
      this.#nodes.putInPlaceOf(places[i]!, entry, this.#words[places[i + 1]! + 1]!);
    }
    this.#frames.noteShared(shared);
    this.#nodes.unlock(root);
    this.#heap.flushReleases();
    return true;
  }

  /**
   * Gives up a tree that no vCPU, TLB or backend uses any more. Returns at once: threads that have time, or need frames,
   * take it apart (`heap.tearDown`).
   */
  release(root: number): void {
    this.#heap.tearDown.add(root);
  }

  // ---- Reading ------------------------------------------------------------------------------------------------------

  /**
   * @returns the entry of a GFN, taken apart by `entryKind` and `entryValue`; bit 3 (P2M_READ_ONLY) says that writes
   *   are refused. 0 (absent) for a GFN out of range. A zero entry names the zero frame, so reads need not know.
   *   A frame entry says nothing about writing: ask `frameForWrite`.
   */
  lookup(root: number, gfn: number): number {
    if (!(gfn >= 0 && gfn < GFN_LIMIT)) return ABSENT;
    const sequenceIndex = this.#frames.decodeIndex(root);
    for (;;) {
      const sequence = Atomics.load(this.#words, sequenceIndex) | 1;
      const entry = this.#walk(root, gfn);
      if ((Atomics.load(this.#words, sequenceIndex) | 1) === sequence) return entry;
    }
  }

  /** Number of the image that a guest frame lies in, and the entry as `lookup` gives it; undefined for other entries. */
  imagePlace(root: number, gfn: number): { image: number; entry: number } | undefined {
    if (!(gfn >= 0 && gfn < GFN_LIMIT)) return undefined;
    this.#nodes.lock(root);
    const { word, level } = this.#find(root, gfn);
    const entry = this.#within(Atomics.load(this.#words, word), gfn, level);
    const image = this.#words[word + 1]!;
    this.#nodes.unlock(root);
    return entryKind(entry) === IMAGE ? { image, entry } : undefined;
  }

  /**
   * The frame that a guest frame reads from, the zero frame included; from an image if need be.
   * @returns its MFN > 0, or OUT_OF_FRAMES, NOT_MEMORY, PAGE_LOST
   */
  frameForRead(root: number, gfn: number): number {
    for (;;) {
      const entry = this.lookup(root, gfn);
      const kind = entryKind(entry);
      if (kind === FRAME || kind === ZERO) return entryValue(entry);
      if (kind === ABSENT) return NOT_MEMORY;
      const loaded = this.#load(root, gfn);
      if (loaded <= 0) return loaded;
    }
  }

  #load(root: number, gfn: number): number {
    return this.loader === undefined ? PAGE_LOST : this.loader.load(root, gfn);
  }

  // ---- Writing to guest memory --------------------------------------------------------------------------------------

  /**
   * The frame to write a guest frame in: the present one if it is exclusive, else a new one (zero: a clean frame;
   * shared: a copy). Sets `stale` when it is a new one.
   * @returns its MFN > 0, or OUT_OF_FRAMES, NOT_MEMORY, PAGE_LOST, READ_ONLY
   */
  frameForWrite(root: number, gfn: number): number {
    for (;;) {
      const exclusive = this.#exclusiveFrame(root, gfn);
      if (exclusive !== 0) return exclusive;
      const entry = this.lookup(root, gfn);
      const kind = entryKind(entry);
      if (kind === ABSENT) return NOT_MEMORY;
      if (kind === IMAGE) {
        const loaded = this.#load(root, gfn);
        if (loaded <= 0) return loaded;
        continue;
      }
      if ((entry & P2M_READ_ONLY) !== 0) return READ_ONLY;
      const mfn = this.#breakSharing(root, gfn, entry);
      if (mfn >= 0) return mfn;
    }
  }

  /**
   * Pins the frame that a guest frame reads from (the zero frame included), against everything other threads do.
   * @returns its MFN, for `heap.unpin`; 0 when there is no frame
   */
  pinForRead(root: number, gfn: number): number {
    for (;;) {
      const entry = this.lookup(root, gfn);
      const kind = entryKind(entry);
      if (kind === IMAGE && this.#load(root, gfn) > 0) continue;
      if (kind !== FRAME && kind !== ZERO) return 0;
      const mfn = entryValue(entry);
      const pinned = this.#heap.pin(mfn);
      if (this.lookup(root, gfn) === entry) return pinned ? mfn : 0;
      if (pinned) this.#heap.unpin(mfn);
    }
  }

  /**
   * Pins the frame to write a guest frame in; may set `stale` as `frameForWrite` does.
   * @returns its MFN, for `heap.unpin`, or what `frameForWrite` returns instead; OUT_OF_FRAMES also when the frame is
   *   pinned too often
   */
  pinForWrite(root: number, gfn: number): number {
    for (;;) {
      const mfn = this.frameForWrite(root, gfn);
      if (mfn <= 0) return mfn;
      const pinned = this.#heap.pin(mfn);
      if (this.#exclusiveFrame(root, gfn) === mfn) return pinned ? mfn : OUT_OF_FRAMES;
      if (pinned) this.#heap.unpin(mfn);
    }
  }

  // ---- Changing the map ---------------------------------------------------------------------------------------------

  /**
   * Puts a frame at a GFN, whatever was there. The tree takes over one mapping of the frame from the caller: the one
   * that `heap.allocate` gave, or one from `heap.frames.retain` for a frame that several trees are to share.
   * @returns false when out of frames for nodes, or the GFN is out of range; the mapping is then still the caller's
   */
  mapFrame(root: number, gfn: number, mfn: number, readOnly = false): boolean {
    if (!(gfn >= 0 && gfn < GFN_LIMIT)) return false;
    this.#nodes.lock(root);
    const node = this.#nodes.leafNode(root, gfn);
    if (node !== 0) {
      this.#nodes.replace(wordOf(node, gfn & INDEX_MASK), makeEntry(FRAME, mfn) | (readOnly ? P2M_READ_ONLY : 0), 0);
    }
    this.#nodes.unlock(root);
    return node !== 0;
  }

  /** Puts untouched memory at GFNs gfn … gfn+count-1. Whole aligned ranges of 2 MiB and 1 GiB take one entry. */
  mapZeroRange(root: number, gfn: number, count: number): boolean {
    return this.#fill(root, gfn, count, makeEntry(ZERO, this.#heap.zeroMfn), 0);
  }

  /** GFNs gfn … gfn+count-1 are to be read from pages page … page+count-1 of an image. */
  mapImageRange(root: number, gfn: number, count: number, image: number, page: number): boolean {
    return this.#fill(root, gfn, count, makeEntry(IMAGE, page), image);
  }

  /**
   * Puts at `gfn` what another tree, which nobody changes, has from its GFN 0 on, by sharing its leaf nodes: each is
   * 2 MiB and costs one count. What is written later is copied, as after `share`. All of it is memory in the other tree.
   * @param gfn a multiple of 512
   * @param nodes how many times 512 GFNs
   * @returns false when out of frames for nodes, or a node is shared too often; part of it may be done
   */
  graft(root: number, gfn: number, source: number, nodes: number): boolean {
    assert(gfn % P2M_ENTRIES === 0 && gfn >= 0 && gfn + nodes * P2M_ENTRIES <= GFN_LIMIT, 'graft out of place');
    this.#nodes.lock(root);
    let done = 0;
    while (done < nodes && this.#graftNode(root, gfn + done * P2M_ENTRIES, source, done * P2M_ENTRIES)) done++;
    this.#nodes.unlock(root);
    return done === nodes;
  }

  #graftNode(root: number, gfn: number, source: number, sourceGfn: number): boolean {
    const parent = this.#words[wordOf(source, indexOf(sourceGfn, ROOT_LEVEL))]!;
    let entry = parent;
    if (entryKind(parent) === NODE) entry = this.#words[wordOf(entryValue(parent), indexOf(sourceGfn, 1))]!;
    assert(entryKind(entry) === NODE || entryKind(entry) === ZERO, 'graft of what is neither memory nor nodes');
    const node = this.#nodes.ownChild(root, indexOf(gfn, ROOT_LEVEL), ROOT_LEVEL);
    if (node === 0) return false;
    if (entryKind(entry) === NODE && !this.#frames.retain(entryValue(entry))) return false;
    this.#nodes.replace(wordOf(node, indexOf(gfn, 1)), entry, 0);
    return true;
  }

  /** Takes GFNs gfn … gfn+count-1 out of the map. */
  unmap(root: number, gfn: number, count = 1): boolean {
    return this.#fill(root, gfn, count, ABSENT, 0);
  }

  /**
   * Puts a frame where an image page was, for all trees that share the place, unless another thread was faster or the
   * guest frame is something else now.
   * @param entry the image entry that `lookup` gave and whose page is in the frame
   * @param mfn the frame, whose mapping goes to the tree; 0: the page is all zero, map the zero frame
   * @returns 'mapped'; 'changed' or 'outOfFrames' when the mapping is still the caller's
   */
  replaceImagePage(root: number, gfn: number, entry: number, mfn: number): 'mapped' | 'changed' | 'outOfFrames' {
    assert(entryKind(entry) === IMAGE, 'not an image entry');
    const loaded = mfn === 0 ? makeEntry(ZERO, this.#heap.zeroMfn) : makeEntry(FRAME, mfn);
    this.#nodes.lock(root);
    let outcome: 'mapped' | 'changed' | 'outOfFrames' | undefined;
    while (outcome === undefined) {
      const { word, level } = this.#find(root, gfn);
      const present = Atomics.load(this.#words, word);
      if (this.#within(present, gfn, level) !== entry) outcome = 'changed';
      else if (level > 0) outcome = this.#nodes.splitInPlace(word, level) ? undefined : 'outOfFrames';
      else if (this.#nodes.swap(word, present, loaded)) outcome = 'mapped';
    }
    this.#nodes.unlock(root);
    return outcome;
  }

  /** Where the entry is that stands for a GFN: its index in u32, and the level of its node. With the lock. */
  #find(root: number, gfn: number): { word: number; level: number } {
    let level = ROOT_LEVEL;
    let word = wordOf(root, indexOf(gfn, level));
    for (let entry = Atomics.load(this.#words, word); entryKind(entry) === NODE; entry = Atomics.load(this.#words, word)) {
      level--;
      word = wordOf(entryValue(entry), indexOf(gfn, level));
    }
    return { word, level };
  }

  // ---- Walks --------------------------------------------------------------------------------------------------------

  #walk(root: number, gfn: number): number {
    const words = this.#words;
    let entry = Atomics.load(words, wordOf(root, gfn >>> 18));
    if ((entry & P2M_KIND_MASK) !== NODE) return this.#within(entry, gfn, ROOT_LEVEL);
    entry = Atomics.load(words, wordOf(entryValue(entry), (gfn >>> 9) & INDEX_MASK));
    if ((entry & P2M_KIND_MASK) !== NODE) return this.#within(entry, gfn, 1);
    // A node that was freed under us may say anything; the caller will see the sequence and walk again.
    if (entryValue(entry) >= this.#heap.memory.frameEnd) return ABSENT;
    return Atomics.load(words, wordOf(entryValue(entry), gfn & INDEX_MASK)) >>> 0;
  }

  /** The entry that a GFN would have if the entry above it were split. */
  #within(entry: number, gfn: number, level: number): number {
    if ((entry & P2M_KIND_MASK) !== IMAGE) return entry >>> 0;
    return (entry + ((gfn & (spanOf(level) - 1)) << P2M_VALUE_SHIFT)) >>> 0;
  }

  /** @returns the MFN of a writable frame whose path was all exclusive at one moment of this call, or 0 */
  #exclusiveFrame(root: number, gfn: number): number {
    if (!(gfn >= 0 && gfn < GFN_LIMIT)) return 0;
    const sequenceIndex = this.#frames.decodeIndex(root);
    const sequence = Atomics.load(this.#words, sequenceIndex);
    if ((sequence & 1) !== 0) return 0;
    let mfn = root;
    for (let level = ROOT_LEVEL; level >= 0; level--) {
      const entry = Atomics.load(this.#words, wordOf(mfn, indexOf(gfn, level)));
      if ((entry & (P2M_KIND_MASK | P2M_READ_ONLY)) !== (level === 0 ? FRAME : NODE)) return 0;
      mfn = entryValue(entry);
      if (mfn >= this.#heap.memory.frameEnd || this.#frames.mappings(mfn) !== 1) return 0;
    }
    return Atomics.load(this.#words, sequenceIndex) === sequence ? mfn : 0;
  }

  // ---- Changes ------------------------------------------------------------------------------------------------------

  /** @returns an MFN, OUT_OF_FRAMES, or -1 when the entry is another one by now */
  #breakSharing(root: number, gfn: number, entry: number): number {
    const isZero = entryKind(entry) === ZERO;
    // First the path: only then do the frame's mappings say whether it is shared.
    const before = this.#install(root, gfn, entry, 0);
    if (before !== NEEDS_FRAME) return before;
    const fresh = this.#heap.allocate(this.#frames.owner(root), !isZero);
    if (fresh === 0) return OUT_OF_FRAMES;
    if (!isZero) this.#heap.memory.copyFrame(fresh, entryValue(entry));
    const mfn = this.#install(root, gfn, entry, fresh);
    if (mfn === fresh) return fresh;
    if (isZero) this.#heap.releaseUntouched(fresh);
    else this.#heap.release(fresh);
    return mfn;
  }

  /**
   * Under the lock: makes the path exclusive and puts `fresh` in place of `entry` if that is still what is there and
   * still shared. @returns the MFN there; NEEDS_FRAME if a frame is needed and `fresh` is 0; OUT_OF_FRAMES (for
   * nodes); -1 when there is another entry
   */
  #install(root: number, gfn: number, entry: number, fresh: number): number {
    this.#nodes.lock(root);
    let result = -1;
    if (this.#walk(root, gfn) === entry) {
      const node = this.#nodes.leafNode(root, gfn);
      const old = entryValue(entry);
      if (node === 0) result = OUT_OF_FRAMES;
      else if (fresh === 0) {
        result = entryKind(entry) === FRAME && this.#frames.mappings(old) === 1 ? old : NEEDS_FRAME;
      } else if (entryKind(entry) === FRAME && !this.#frames.mappingToPinIfShared(old)) result = old;
      else {
        if (entryKind(entry) === FRAME) this.#nodes.holdStale(old);
        this.#nodes.store(wordOf(node, gfn & INDEX_MASK), makeEntry(FRAME, fresh), 0);
        result = fresh;
      }
    }
    this.#nodes.unlock(root);
    return result;
  }

  #fill(root: number, gfn: number, count: number, entry: number, high: number): boolean {
    if (!(gfn >= 0 && count >= 0 && gfn + count <= GFN_LIMIT)) return false;
    this.#nodes.lock(root);
    const complete = this.#nodes.fillNode(root, ROOT_LEVEL, 0, gfn, gfn + count, entry, high);
    this.#nodes.unlock(root);
    return complete;
  }
}

/** `#install`'s answer that the caller must bring a frame. */
const NEEDS_FRAME = -2;
