// Deadlines of many connections on one timer. A connection moves its deadline with every segment, nearly always to a
// later time, so that costs a store: the heap keeps the old, earlier key, and finds the new one when the old one falls
// due. Moving a deadline to an earlier time and removing it cost the logarithm of their number.

import type { Scheduler, Timer } from './scheduler.ts';

export class Deadline {
  /** When to fire; Infinity: not. */
  atMillis = Infinity;
  readonly fire: () => void;
  /** Place in the heap, -1 for none, and the key there: never later than atMillis. Owned by DeadlineQueue. */
  heapIndex = -1;
  keyMillis = Infinity;

  constructor(fire: () => void) {
    this.fire = fire;
  }
}

/** A finer timer than this is not worth a wake-up of the process. */
const SLACK_MILLIS = 1;

export class DeadlineQueue {
  readonly #scheduler: Scheduler;
  readonly #heap: Deadline[] = [];
  readonly #onTimer = () => this.#run();
  #timer: Timer | undefined;
  #timerMillis = Infinity;

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  /** Deadlines held, for audits. */
  get size(): number {
    return this.#heap.length;
  }

  set(deadline: Deadline, atMillis: number): void {
    deadline.atMillis = atMillis;
    if (atMillis >= deadline.keyMillis) return;
    deadline.keyMillis = atMillis;
    if (deadline.heapIndex < 0) {
      deadline.heapIndex = this.#heap.length;
      this.#heap.push(deadline);
    }
    this.#up(deadline.heapIndex);
    if (deadline.heapIndex === 0) this.#arm();
  }

  remove(deadline: Deadline): void {
    deadline.atMillis = Infinity;
    const index = deadline.heapIndex;
    if (index < 0) return;
    deadline.heapIndex = -1;
    deadline.keyMillis = Infinity;
    const last = this.#heap.pop()!;
    if (last === deadline) return;
    this.#place(last, index);
    this.#up(index);
    this.#down(last.heapIndex);
  }

  /** Forgets all of them. */
  close(): void {
    while (this.#heap.length > 0) this.remove(this.#heap[0]!);
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#timerMillis = Infinity;
  }

  #run(): void {
    this.#timer = undefined;
    this.#timerMillis = Infinity;
    const nowMillis = this.#scheduler.nowMillis();
    for (let top = this.#heap[0]; top !== undefined && top.keyMillis <= nowMillis; top = this.#heap[0]) {
      if (top.atMillis <= nowMillis) {
        this.remove(top);
        top.fire();
      } else if (top.atMillis === Infinity) {
        this.remove(top);
      } else {
        top.keyMillis = top.atMillis;
        this.#down(0);
      }
    }
    this.#arm();
  }

  #arm(): void {
    const top = this.#heap[0];
    if (top === undefined || top.keyMillis >= this.#timerMillis) return;
    this.#timer?.cancel();
    this.#timerMillis = top.keyMillis;
    const delayMillis = Math.max(SLACK_MILLIS, Math.ceil(top.keyMillis - this.#scheduler.nowMillis()));
    this.#timer = this.#scheduler.after(delayMillis, this.#onTimer);
  }

  #place(deadline: Deadline, index: number): void {
    this.#heap[index] = deadline;
    deadline.heapIndex = index;
  }

  #up(from: number): void {
    const deadline = this.#heap[from]!;
    let index = from;
    while (index > 0) {
      const parent = this.#heap[(index - 1) >> 1]!;
      if (parent.keyMillis <= deadline.keyMillis) break;
      this.#place(parent, index);
      index = (index - 1) >> 1;
    }
    this.#place(deadline, index);
  }

  #down(from: number): void {
    const deadline = this.#heap[from]!;
    let index = from;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= this.#heap.length) break;
      if (child + 1 < this.#heap.length && this.#heap[child + 1]!.keyMillis < this.#heap[child]!.keyMillis) child++;
      if (this.#heap[child]!.keyMillis >= deadline.keyMillis) break;
      this.#place(this.#heap[child]!, index);
      index = child;
    }
    this.#place(deadline, index);
  }
}
