// The events of a domain: a list that only grows at its end, and any number of readers, each at its own pace.

import type { DomainEvent } from './types.ts';

export class EventLog {
  readonly #events: DomainEvent[] = [];
  readonly #waiting = new Set<() => void>();
  #ended = false;

  get length(): number {
    return this.#events.length;
  }

  add(event: DomainEvent): void {
    this.#events.push(event);
    this.#wake();
  }

  /** No event comes any more. */
  end(): void {
    this.#ended = true;
    this.#wake();
  }

  #wake(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }

  /** All events so far, then those to come. */
  async *read(): AsyncIterableIterator<DomainEvent> {
    for (let next = 0; ; next++) {
      while (next === this.#events.length) {
        if (this.#ended) return;
        await new Promise<void>(resolve => this.#waiting.add(resolve));
      }
      yield this.#events[next]!;
    }
  }
}
