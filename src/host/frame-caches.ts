// What the host keeps in frames only because it may be wanted again: boot images, memory of images that domains were
// restored from. One rule for all of it: whoever needs room may have it, the least recently used first.
//
//   touch(cache) ──► youngest … oldest ──giveUpOldest()──► cache.giveUp() ──► its tree is taken apart by whoever has time
//
// The host's main thread alone uses this.

/** A p2m tree that is nobody's but the host's, and that it can do without. */
export interface FrameCache {
  /** For the audit. */
  readonly root: number;
  /** In the tree now, tables included; about how many it would give up. */
  readonly frames: number;
  /**
   * Releases the tree (`HostCore.releaseRoot`) and forgets it. May be called from within any allocation of frames.
   * @returns false if it cannot be missed just now
   */
  giveUp(): boolean;
}

export class FrameCaches {
  /** In the order of their last use. */
  readonly #caches = new Set<FrameCache>();

  /** It is new, or has been used just now. */
  touch(cache: FrameCache): void {
    this.#caches.delete(cache);
    this.#caches.add(cache);
  }

  /** It has been released without having been asked. */
  remove(cache: FrameCache): void {
    this.#caches.delete(cache);
  }

  /** Has the least recently used one that can be missed give its frames up. @returns false if there is none */
  giveUpOldest(): boolean {
    for (const cache of this.#caches) {
      if (!cache.giveUp()) continue;
      this.#caches.delete(cache);
      return true;
    }
    return false;
  }

  get frames(): number {
    let frames = 0;
    for (const cache of this.#caches) frames += cache.frames;
    return frames;
  }

  roots(): number[] {
    return Array.from(this.#caches, (cache) => cache.root);
  }
}
