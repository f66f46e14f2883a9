// Nodes of p2m trees (memory/p2m.ts), as those change them who hold the tree's lock: paths are made exclusive, nodes copied,
// split and filled, entries replaced. What was taken out stays alive here until no TLB can lead to it any more.
//
//   entry, level 2 or 1:  absent │ zero │ image │ node ──► 512 entries of the level below
//   entry, level 0:       absent │ zero │ image │ frame

import {
  FRAME_STATE, FRAME_WORDS, P2M_ENTRIES, P2M_KIND, P2M_KIND_MASK, P2M_LEVEL_BITS, P2M_VALUE_SHIFT,
} from '../abi/machine-memory.ts';
import { MAPPINGS_NEARLY_FULL } from './frame-table.ts';
import type { FrameTable } from './frame-table.ts';
import { HOST_ACCOUNT } from './heap.ts';
import type { Heap } from './heap.ts';
import { backOff } from './spin.ts';

export const ROOT_LEVEL = 2;
export const INDEX_MASK = P2M_ENTRIES - 1;
const { node: NODE, frame: FRAME, image: IMAGE } = P2M_KIND;

/** Kind of an entry: one of P2M_KIND. */
export const entryKind = (entry: number): number => entry & P2M_KIND_MASK;
/** MFN of a node, frame or zero entry; page in the image of an image entry. */
export const entryValue = (entry: number): number => entry >>> P2M_VALUE_SHIFT;
export const makeEntry = (kind: number, value: number): number => ((value << P2M_VALUE_SHIFT) | kind) >>> 0;
/** GFNs under one entry of a node of that level. */
export const spanOf = (level: number): number => 2 ** (level * P2M_LEVEL_BITS);
export const indexOf = (gfn: number, level: number): number => (gfn >>> (level * P2M_LEVEL_BITS)) & INDEX_MASK;
/** Index in u32 of an entry of a node. */
export const wordOf = (node: number, index: number): number => node * FRAME_WORDS + index * 2;

export class P2mNodes {
  /** Set by a change that makes translations wrong which TLBs may hold; then flush and call `releaseStale`. */
  stale = false;
  readonly #heap: Heap;
  readonly #frames: FrameTable;
  readonly #words: Uint32Array;
  readonly #stalePins: number[] = [];
  readonly #staleNodes: number[] = [];
  /** Nodes that were copied or replaced: their mapping is dropped when the lock is. */
  readonly #copiedNodes: number[] = [];

  /** @param heap of the calling thread, the only one that this object serves */
  constructor(heap: Heap) {
    this.#heap = heap;
    this.#frames = heap.frames;
    this.#words = heap.memory.u32;
  }

  lock(root: number): void {
    const index = this.#frames.decodeIndex(root);
    for (let attempt = 0; ; attempt++) {
      const sequence = Atomics.load(this.#words, index);
      if ((sequence & 1) === 0 && Atomics.compareExchange(this.#words, index, sequence, sequence | 1) === sequence) {
        return;
      }
      backOff(attempt);
    }
  }

  /** Moves the sequence on, and only then lets go of nodes that a reader may be in. */
  unlock(root: number): void {
    Atomics.add(this.#words, this.#frames.decodeIndex(root), 1);
    while (this.#copiedNodes.length > 0) this.#releaseNode(this.#copiedNodes.pop()!);
  }

  /** The leaf node of a GFN with its path made exclusive, or 0 when out of frames. */
  leafNode(root: number, gfn: number): number {
    let node = root;
    for (let level = ROOT_LEVEL; level > 0 && node !== 0; level--) {
      node = this.ownChild(node, indexOf(gfn, level), level);
    }
    return node;
  }

  /** The node under an entry, made if there is none and copied if it is shared; 0 when out of frames. */
  ownChild(node: number, index: number, level: number): number {
    const word = wordOf(node, index);
    const entry = this.#words[word]!;
    const isNode = entryKind(entry) === NODE;
    if (isNode && this.#frames.mappings(entryValue(entry)) === 1) return entryValue(entry);
    const child = this.#heap.allocate(this.#frames.owner(node), true);
    if (child === 0) return 0;
    if (!isNode) this.#splitEntry(word, level, child);
    else if (this.copyEntries(entryValue(entry), child)) this.#copiedNodes.push(entryValue(entry));
    else {
      this.#heap.release(child);
      return 0;
    }
    this.store(word, makeEntry(NODE, child), 0);
    return child;
  }

  /** Fills GFNs from … end-1 as far as they are below this node, whose first GFN is `base`. */
  fillNode(
    node: number, level: number, base: number, from: number, end: number, entry: number, high: number,
  ): boolean {
    const span = spanOf(level);
    const nodeEnd = base + span * P2M_ENTRIES;
    for (let gfn = Math.max(from, base); gfn < end && gfn < nodeEnd;) {
      const index = indexOf(gfn, level);
      const entryBase = base + index * span;
      const next = entryBase + span;
      const offset = entryKind(entry) === IMAGE ? (gfn - from) << P2M_VALUE_SHIFT : 0;
      // What is there already needs no node: else a guest that unmaps what it has not got would spend frames.
      if (this.#words[wordOf(node, index)] === entry && entryKind(entry) !== IMAGE) {
        gfn = next;
        continue;
      }
      if (gfn === entryBase && next <= end) this.replace(wordOf(node, index), (entry + offset) >>> 0, high);
      else {
        const child = this.ownChild(node, index, level);
        if (child === 0) return false;
        const below = (entry + offset) >>> 0;
        if (!this.fillNode(child, level - 1, entryBase, gfn, Math.min(end, next), below, high)) return false;
      }
      gfn = next;
    }
    return true;
  }

  /** Fills a new node with what one entry of the level above stands for. */
  #splitEntry(word: number, level: number, child: number): void {
    const entry = this.#words[word]!;
    const high = this.#words[word + 1]!;
    const step = entryKind(entry) === IMAGE ? spanOf(level - 1) << P2M_VALUE_SHIFT : 0;
    for (let i = 0; i < P2M_ENTRIES; i++) {
      this.#words[wordOf(child, i)] = (entry + i * step) >>> 0;
      this.#words[wordOf(child, i) + 1] = high;
    }
    this.#frames.setState(child, FRAME_STATE.table);
  }

  /** An image entry of a node that may be shared becomes a node of image entries. @returns false when out of frames */
  splitInPlace(word: number, level: number): boolean {
    const entry = Atomics.load(this.#words, word);
    if (entryKind(entry) !== IMAGE) return true;
    const child = this.#heap.allocate(HOST_ACCOUNT, true);
    if (child === 0) return false;
    this.#splitEntry(word, level, child);
    if (!this.swap(word, entry, makeEntry(NODE, child))) this.#heap.release(child);
    return true;
  }

  swap(word: number, entry: number, wanted: number): boolean {
    return Atomics.compareExchange(this.#words, word, entry, wanted) === entry;
  }

  /**
   * Copies a node and counts what it refers to once more. Image entries may turn into frames meanwhile.
   * @returns false, with nothing counted, if a count is full
   */
  copyEntries(from: number, to: number): boolean {
    const words = this.#words;
    const frames = this.#frames;
    const first = wordOf(from, 0);
    const copy = wordOf(to, 0);
    let shared = 0;
    let full = -1;
    for (let i = 0; i < 2 * P2M_ENTRIES && full < 0; i += 2) {
      const entry = words[first + i]!;
      words[copy + i] = entry;
      words[copy + i + 1] = words[first + i + 1]!;
      const kind = entry & P2M_KIND_MASK;
      if (kind !== NODE && kind !== FRAME) continue;
      const mappings = frames.addMapping(entry >>> P2M_VALUE_SHIFT);
      if (mappings === 1) shared++;
      if (mappings >= MAPPINGS_NEARLY_FULL) full = i;
    }
    frames.noteShared(shared);
    if (full >= 0) {
      for (let i = 0; i <= full; i += 2) this.#releaseEntry(words[copy + i]!);
      return false;
    }
    frames.setState(to, FRAME_STATE.table);
    return true;
  }

  /** Overwrites an entry; what it held stays alive until `releaseStale`. */
  replace(word: number, entry: number, high: number): void {
    const old = this.#words[word]!;
    this.store(word, entry, high);
    const kind = entryKind(old);
    if (kind === FRAME) {
      this.#frames.mappingToPin(entryValue(old));
      this.#stalePins.push(entryValue(old));
    } else if (kind === NODE) this.#staleNodes.push(entryValue(old));
    if (kind === FRAME || kind === NODE) this.stale = true;
  }

  /** `replace` where no TLB matters: what the entry held is dropped; frames with `flushReleases`, nodes with the lock. */
  putInPlaceOf(word: number, entry: number, high: number): void {
    const old = this.#words[word]!;
    this.store(word, entry, high);
    if (entryKind(old) === FRAME) this.#heap.releaseLater(entryValue(old));
    else if (entryKind(old) === NODE) this.#copiedNodes.push(entryValue(old));
  }

  /** A frame that was replaced, and pinned, in another way. */
  holdStale(mfn: number): void {
    this.#stalePins.push(mfn);
    this.stale = true;
  }

  /** Readers look at the low half only, so the order does not matter to them. */
  store(word: number, entry: number, high: number): void {
    this.#words[word + 1] = high;
    Atomics.store(this.#words, word, entry);
  }

  /** As P2m.onlyStaleFrame. */
  get onlyStaleFrame(): number {
    return this.#stalePins.length === 1 && this.#staleNodes.length === 0 ? this.#stalePins[0]! : 0;
  }
  /** Frees what changes through this object have replaced; call when no TLB of the domains concerned holds it. */
  releaseStale(): void {
    this.stale = false;
    while (this.#stalePins.length > 0) this.#heap.unpinLater(this.#stalePins.pop()!);
    this.#heap.flushReleases();
    while (this.#staleNodes.length > 0) this.#releaseNode(this.#staleNodes.pop()!);
  }

  #releaseEntry(entry: number): void {
    if (entryKind(entry) === NODE) this.#releaseNode(entryValue(entry));
    else if (entryKind(entry) === FRAME) this.#heap.releaseLater(entryValue(entry));
  }

  /** Drops a mapping of a node; if it was the last one, all below goes when somebody has time. */
  #releaseNode(node: number): void {
    if (!this.#frames.dropMappingIfShared(node)) this.#heap.tearDown.add(node);
  }
}
