// Who writes where at this moment. A write that must read first what is around it has its place to itself; others may
// overlap, as they may on a real disk.

interface Held {
  readonly start: number;
  readonly end: number;
  readonly isExclusive: boolean;
  readonly released: Promise<void>;
  readonly release: () => void;
}

export class RangeLocks {
  readonly #held = new Set<Held>();

  /** @returns the release; a promise of it only if somebody has to be waited for */
  lock(start: number, end: number, isExclusive: boolean): (() => void) | Promise<() => void> {
    const conflict = this.#conflict(start, end, isExclusive);
    return conflict === undefined ? this.#hold(start, end, isExclusive) : this.#wait(conflict, start, end, isExclusive);
  }

  async #wait(first: Held, start: number, end: number, isExclusive: boolean): Promise<() => void> {
    for (let conflict: Held | undefined = first; conflict; conflict = this.#conflict(start, end, isExclusive)) {
      await conflict.released;
    }
    return this.#hold(start, end, isExclusive);
  }

  #conflict(start: number, end: number, isExclusive: boolean): Held | undefined {
    for (const held of this.#held) {
      if (held.start < end && start < held.end && (isExclusive || held.isExclusive)) return held;
    }
    return undefined;
  }

  #hold(start: number, end: number, isExclusive: boolean): () => void {
    const { promise: released, resolve } = Promise.withResolvers<void>();
    const held: Held = {
      start, end, isExclusive, released,
      release: () => {
        this.#held.delete(held);
        resolve();
      },
    };
    this.#held.add(held);
    return held.release;
  }
}
