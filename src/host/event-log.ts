// The events of a domain or of a host, and who follows them: any number of subscribers, each at its own pace. The latest
// events are kept; a subscriber that falls further behind than that misses the oldest, and can see how many.

import type { EventSubscription } from './types.ts';

/** How many events are kept, for subscribers that come late or are slow. */
export const EVENTS_KEPT = 1000;

export class EventLog<E> {
  readonly #events: E[] = [];
  /** How many came before those that are kept. */
  #dropped = 0;
  readonly #waiting = new Set<Subscription<E>>();
  #isEnded = false;

  /** How many there have been. */
  get length(): number {
    return this.#dropped + this.#events.length;
  }
  /** Number of the oldest that is kept, from 0. */
  get first(): number {
    return this.#dropped;
  }
  get isEnded(): boolean {
    return this.#isEnded;
  }
  at(index: number): E {
    return this.#events[index - this.#dropped]!;
  }

  add(event: E): void {
    this.#events.push(event);
    if (this.#events.length > EVENTS_KEPT) {
      this.#events.shift();
      this.#dropped++;
    }
    this.#wake();
  }

  /** No event comes any more. */
  end(): void {
    this.#isEnded = true;
    this.#wake();
  }

  #wake(): void {
    for (const subscription of this.#waiting) if (subscription.wake()) this.#waiting.delete(subscription);
  }

  /** Those that are kept, unless `history` is false, then those to come. */
  subscribe({ history = true }: { history?: boolean } = {}): EventSubscription<E> {
    return new Subscription(this, history ? this.#dropped : this.length);
  }

  /** For subscriptions: of one that waits, until its `wake` says that it does not any more. Nobody else holds it. */
  await(subscription: Subscription<E>): void {
    this.#waiting.add(subscription);
  }
  forget(subscription: Subscription<E>): void {
    this.#waiting.delete(subscription);
  }
}

class Subscription<E> implements EventSubscription<E> {
  readonly #log: EventLog<E>;
  readonly #asked: PromiseWithResolvers<IteratorResult<E, undefined>>[] = [];
  #next: number;
  #missed = 0;
  #isOver = false;

  constructor(log: EventLog<E>, next: number) {
    this.#log = log;
    this.#next = next;
  }

  get missed(): number {
    return this.#missed;
  }

  #take(): IteratorResult<E, undefined> | undefined {
    if (this.#isOver) return { done: true, value: undefined };
    if (this.#next < this.#log.first) {
      this.#missed += this.#log.first - this.#next;
      this.#next = this.#log.first;
    }
    if (this.#next < this.#log.length) return { done: false, value: this.#log.at(this.#next++) };
    return this.#log.isEnded ? { done: true, value: undefined } : undefined;
  }

  /** @returns whether it waits no more */
  wake(): boolean {
    while (this.#asked.length > 0) {
      const result = this.#take();
      if (result === undefined) return false;
      this.#asked.shift()!.resolve(result);
    }
    return true;
  }

  next(): Promise<IteratorResult<E, undefined>> {
    const result = this.#asked.length === 0 ? this.#take() : undefined;
    if (result !== undefined) return Promise.resolve(result);
    const asked = Promise.withResolvers<IteratorResult<E, undefined>>();
    this.#asked.push(asked);
    this.#log.await(this);
    return asked.promise;
  }

  /** Also ends what waits in `next`. */
  return(): Promise<IteratorResult<E, undefined>> {
    this.#isOver = true;
    this.#log.forget(this);
    this.wake();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
