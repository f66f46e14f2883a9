// The audit: walks free lists, caches and every p2m, and proves that each frame of the machine is accounted for
// exactly once: free in one place, or in use by exactly the references that can be found. A leak, a double free and a
// wrong count all show. To be called while nothing changes: no worker in the heap, nothing stale unreleased.

import { FRAME_BYTES, FRAME_STATE, FRAME_WORDS, HEAP_ORDER_MAX, P2M_ENTRIES, P2M_KIND } from '../abi/machine-memory.ts';
import { CLEAN, DIRTY } from './free-lists.ts';
import type { Kind } from './free-lists.ts';
import type { Heap } from './heap.ts';
import { entryKind, entryValue } from './p2m.ts';

export interface AuditClaims {
  /** Roots of all p2m trees in use: of domains and checkpoints. */
  readonly roots: Iterable<number>;
  /** Frames with a mapping held outside any p2m, once for each. */
  readonly held?: Iterable<number>;
  /** Pinned frames, once for each pin. */
  readonly pins?: Iterable<number>;
  /** Also read every clean frame and see that it is zero. */
  readonly readClean?: boolean;
}

export interface AuditReport {
  readonly frames: number;
  readonly clean: number;
  readonly cached: number;
  readonly dirty: number;
  readonly scrubbing: number;
  /** In use by guests or the host, without tables. */
  readonly used: number;
  readonly tables: number;
  /** One line each, at most 50; empty when all is well. */
  readonly problems: readonly string[];
}

const PROBLEMS_MAX = 50;

class Audit {
  readonly #heap: Heap;
  readonly #problems: string[] = [];
  /** By MFN: how often found free, and how many references were found. */
  readonly #free: Uint8Array;
  readonly #mappings: Uint32Array;
  readonly #pins: Uint32Array;
  readonly #counts = { clean: 0, cached: 0, dirty: 0, scrubbing: 0, used: 0, tables: 0 };

  constructor(heap: Heap) {
    this.#heap = heap;
    this.#free = new Uint8Array(heap.memory.frameEnd);
    this.#mappings = new Uint32Array(heap.memory.frameEnd);
    this.#pins = new Uint32Array(heap.memory.frameEnd);
  }

  run(claims: AuditClaims): AuditReport {
    this.#walkLists(CLEAN, claims.readClean === true);
    this.#walkLists(DIRTY, false);
    const readClean = claims.readClean === true;
    this.#heap.forEachCached((mfn) => {
      this.#counts.cached++;
      this.#foundFree(mfn, readClean);
      this.#expect(this.#heap.frames.state(mfn) === FRAME_STATE.cached, mfn, 'is in a cache but not marked so');
    });
    this.#heap.forEachScrubbing((mfn) => {
      this.#counts.scrubbing++;
      this.#foundFree(mfn, false);
    });
    for (const root of claims.roots) this.#foundMapping(root, true);
    this.#heap.tearDown.forEach((node) => this.#foundMapping(node, true));
    for (const mfn of claims.held ?? []) this.#foundMapping(mfn, false);
    for (const mfn of claims.pins ?? []) {
      if (mfn !== this.#heap.zeroMfn && this.#isFrame(mfn, 'a pin')) this.#pins[mfn]!++;
    }
    this.#checkFrames();
    const frames = this.#heap.memory.frameEnd - this.#heap.memory.firstFrame - 1;
    return { frames, ...this.#counts, problems: this.#problems };
  }

  #problem(text: string): void {
    if (this.#problems.length < PROBLEMS_MAX) this.#problems.push(text);
  }

  #expect(condition: boolean, mfn: number, what: string): void {
    if (!condition) this.#problem(`frame ${mfn} ${what}`);
  }

  #isFrame(mfn: number, by: string): boolean {
    const { firstFrame, frameEnd } = this.#heap.memory;
    const inside = mfn > firstFrame && mfn < frameEnd;
    if (!inside) this.#problem(`${by} refers to ${mfn}, which is no frame`);
    return inside;
  }

  #foundFree(mfn: number, readClean: boolean): void {
    if (!this.#isFrame(mfn, 'the heap')) return;
    this.#free[mfn]!++;
    if (!readClean) return;
    const { memory, zeroMfn } = this.#heap;
    const at = memory.nextDifference(mfn, zeroMfn, 0);
    if (at < FRAME_BYTES) this.#problem(`clean frame ${mfn} is not zero from byte ${at} on`);
  }

  #walkLists(kind: Kind, readClean: boolean): void {
    const { lists, frames, memory } = this.#heap;
    let found = 0;
    for (let order = 0; order <= HEAP_ORDER_MAX; order++) {
      for (let mfn = lists.first(kind, order); mfn !== 0 && found < memory.frameEnd; mfn = lists.next(mfn)) {
        this.#expect(frames.state(mfn) === FRAME_STATE.clean + kind, mfn, 'is in a list of the other kind');
        this.#expect(frames.order(mfn) === order, mfn, 'is in the list of another order');
        this.#expect(mfn % 2 ** order === 0, mfn, 'starts a block that is not aligned');
        for (let i = 0; i < 1 << order; i++) this.#foundFree(mfn + i, readClean);
        found += 1 << order;
      }
    }
    const counted = lists.count(kind);
    if (found !== counted) this.#problem(`${found} frames in lists of kind ${kind}, but ${counted} are counted`);
    if (kind === CLEAN) this.#counts.clean = found;
    else this.#counts.dirty = found;
  }

  /** Counts a reference to a frame or node; goes into a node the first time it is found. */
  #foundMapping(mfn: number, isTable: boolean): void {
    if (!this.#isFrame(mfn, 'a reference')) return;
    const isFirst = this.#mappings[mfn] === 0;
    this.#mappings[mfn]!++;
    if (!isTable || !isFirst) return;
    this.#expect(this.#heap.frames.state(mfn) === FRAME_STATE.table, mfn, 'is used as a node but not marked so');
    const words = this.#heap.memory.u32;
    for (let i = 0; i < P2M_ENTRIES; i++) {
      const entry = words[mfn * FRAME_WORDS + 2 * i]!;
      const kind = entryKind(entry);
      if (kind === P2M_KIND.node || kind === P2M_KIND.frame) {
        this.#foundMapping(entryValue(entry), kind === P2M_KIND.node);
      }
    }
  }

  #checkFrames(): void {
    const { memory, frames } = this.#heap;
    const charged = new Uint32Array(memory.parameters.domainCount);
    let shared = 0;
    for (let mfn = memory.firstFrame + 1; mfn < memory.frameEnd; mfn++) {
      const references = this.#mappings[mfn]! + this.#pins[mfn]!;
      if (this.#free[mfn] !== 0) {
        this.#expect(this.#free[mfn] === 1, mfn, 'is free in more than one place');
        this.#expect(references === 0, mfn, 'is free and in use');
        continue;
      }
      this.#expect(references > 0, mfn, 'is neither free nor in use: leaked');
      if (references === 0) continue;
      const isTable = frames.state(mfn) === FRAME_STATE.table;
      this.#expect(isTable || frames.state(mfn) === FRAME_STATE.used, mfn, 'is in use but not marked so');
      this.#expect(frames.mappings(mfn) === this.#mappings[mfn], mfn,
        `has ${this.#mappings[mfn]} mappings, but counts ${frames.mappings(mfn)}`);
      this.#expect(frames.pins(mfn) === this.#pins[mfn], mfn,
        `has ${this.#pins[mfn]} pins, but counts ${frames.pins(mfn)}`);
      if (isTable) this.#counts.tables++;
      else this.#counts.used++;
      if (this.#mappings[mfn]! > 1) shared++;
      const owner = frames.owner(mfn);
      if (owner < charged.length) charged[owner]!++;
      else this.#problem(`frame ${mfn} is charged to ${owner}, which is no account`);
    }
    charged.forEach((count, owner) => {
      const counted = this.#heap.chargedFrames(owner);
      if (count !== counted) this.#problem(`account ${owner} has ${count} frames, but counts ${counted}`);
    });
    const countedShared = this.#heap.stats().shared;
    if (shared !== countedShared) this.#problem(`${shared} frames are shared, but ${countedShared} are counted`);
  }
}

/**
 * @param heap of any agent
 * @internal
 */
export function audit(heap: Heap, claims: AuditClaims): AuditReport {
  return new Audit(heap).run(claims);
}
