// Taking p2m trees apart that nobody uses any more: little by little, by any number of threads at once. The queue is in
// machine memory, so whoever has time (an idle pCPU) or need (an allocator that finds no frame) takes the next step.
//
//   add(root) ──► queue of nodes ──step──► frames to the heap, dirty
//                      ▲            │
//                      └── nodes below that had no other parent
//
// A node in the queue has one mapping, the queue's, and is linked through its record's state word. A step takes one node
// out, empties it, or as much of it as it may, and frees it or puts it back: between steps every node is in the queue,
// where the audit finds it.

import {
  FRAME_STATE, FRAME_WORDS, HEAP, P2M_ENTRIES, P2M_KIND, P2M_KIND_MASK, P2M_VALUE_SHIFT,
} from '../abi/machine-memory.ts';
import type { FrameTable } from './frame-table.ts';
import type { MachineMemory } from './machine-memory.ts';
import { backOff, spinLock, spinUnlock } from './spin.ts';

/** Where the frames go: the heap, in the calling thread. */
export interface FrameReleaser {
  releaseLater(mfn: number): void;
  flushReleases(): void;
}

const LINK_SHIFT = 8;
/** So often the wish to stop is looked at, in frames: a few microseconds. */
const STOP_EVERY = 16;
const never = () => false;

export class TearDown {
  readonly #words: Uint32Array;
  readonly #frames: FrameTable;
  readonly #releaser: FrameReleaser;
  readonly #lockIndex: number;
  readonly #head: number;
  readonly #nodes: number;
  readonly #steps: number;
  readonly #counts: number;

  constructor(memory: MachineMemory, frames: FrameTable, releaser: FrameReleaser) {
    const heap = memory.region('heap').offsetBytes;
    this.#words = memory.u32;
    this.#frames = frames;
    this.#releaser = releaser;
    this.#lockIndex = (heap + HEAP.at.tearDownLock) / 4;
    this.#head = (heap + HEAP.at.tearDownHead) / 4;
    this.#nodes = (heap + HEAP.at.tearDownNodes) / 4;
    this.#steps = (heap + HEAP.at.tearDownSteps) / 4;
    this.#counts = (heap + HEAP.at.accounts) / 4 + memory.parameters.domainCount;
  }

  /** Takes over a node (a root, for a whole tree) with the caller's mapping of it, which is the only one. */
  add(node: number): void {
    const account = this.#frames.owner(node);
    this.#lock();
    Atomics.add(this.#words, this.#counts + account, 1);
    Atomics.add(this.#words, this.#nodes, 1);
    this.#push(node);
    this.#unlock();
  }

  /** Whether there are nodes in the queue, or in the hands of a thread. */
  get isPending(): boolean {
    return Atomics.load(this.#words, this.#nodes) !== 0;
  }

  /** Whether there is something to do for a thread that has time. */
  get isWaiting(): boolean {
    return Atomics.load(this.#words, this.#head) !== 0;
  }

  /** Counts steps by anybody, modulo 2^32: it stands still while nobody works. */
  get steps(): number {
    return Atomics.load(this.#words, this.#steps);
  }

  /** Whether a node that is charged to the account is still to go. */
  isReleasing(account: number): boolean {
    return Atomics.load(this.#words, this.#counts + account) !== 0;
  }

  /**
   * Works on one node: at most 512 frames.
   * @param maxFrames how many frames and nodes to drop at most
   * @param shouldStop asked now and then; must not use the heap
   * @returns false when there was nothing to do, though another thread may have nodes in hand (`isPending`)
   */
  step(maxFrames: number, shouldStop: () => boolean = never): boolean {
    if (!this.isWaiting) return false;
    const node = this.#take();
    if (node === 0) return false;
    Atomics.add(this.#words, this.#steps, 1);
    const account = this.#frames.owner(node);
    const isEmpty = this.#empty(node, maxFrames, shouldStop);
    if (isEmpty) this.#releaser.releaseLater(node);
    this.#releaser.flushReleases();
    this.#lock();
    if (isEmpty) {
      Atomics.sub(this.#words, this.#nodes, 1);
      Atomics.sub(this.#words, this.#counts + account, 1);
    } else this.#push(node);
    this.#unlock();
    return true;
  }

  /** Takes apart all that is pending, and waits for what others have in hand. Takes as long as it takes. */
  finish(): void {
    for (let attempt = 0; this.isPending; attempt++) if (!this.step(Infinity)) backOff(attempt);
  }

  /** Calls back with every node in the queue; for the audit, while nobody is at work. */
  forEach(visit: (node: number) => void): void {
    for (let node = this.#words[this.#head]!; node !== 0; node = this.#next(node)) visit(node);
  }

  /** @returns false if it stopped before the end */
  #empty(node: number, maxFrames: number, shouldStop: () => boolean): boolean {
    const words = this.#words;
    let dropped = 0;
    for (let i = 0; i < P2M_ENTRIES; i++) {
      const word = node * FRAME_WORDS + 2 * i;
      const entry = words[word]!;
      const kind = entry & P2M_KIND_MASK;
      if (kind !== P2M_KIND.frame && kind !== P2M_KIND.node) continue;
      if (dropped === maxFrames || (dropped % STOP_EVERY === STOP_EVERY - 1 && shouldStop())) return false;
      words[word] = P2M_KIND.absent;
      const mfn = entry >>> P2M_VALUE_SHIFT;
      if (kind === P2M_KIND.frame) this.#releaser.releaseLater(mfn);
      else if (!this.#frames.dropMappingIfShared(mfn)) this.add(mfn);
      dropped++;
    }
    return true;
  }

  #next(node: number): number {
    return this.#words[this.#frames.recordIndex(node)]! >>> LINK_SHIFT;
  }

  #push(node: number): void {
    this.#frames.setState(node, (FRAME_STATE.table | (this.#words[this.#head]! << LINK_SHIFT)) >>> 0);
    Atomics.store(this.#words, this.#head, node);
  }

  #take(): number {
    this.#lock();
    const node = this.#words[this.#head]!;
    if (node !== 0) Atomics.store(this.#words, this.#head, this.#next(node));
    this.#unlock();
    return node;
  }

  #lock(): void {
    spinLock(this.#words, this.#lockIndex);
  }
  #unlock(): void {
    spinUnlock(this.#words, this.#lockIndex);
  }
}
