// When blocked vCPUs of one pCPU go on by themselves: a heap in the thread, ordered by time. A vCPU that was woken
// otherwise leaves its entry behind; entries that are not valid any more are dropped when met, and all at once when
// they pile up.

export interface Deadline {
  readonly nanos: number;
  readonly vcpuAddress: number;
  readonly generation: number;
}

const COMPACT_MIN = 64;

export class Deadlines {
  readonly #isValid: (deadline: Deadline) => boolean;
  #heap: Deadline[] = [];
  #compactAt = COMPACT_MIN;

  constructor(isValid: (deadline: Deadline) => boolean) {
    this.#isValid = isValid;
  }

  get size(): number {
    return this.#heap.length;
  }

  add(deadline: Deadline): void {
    if (deadline.nanos === Infinity) return;
    if (this.#heap.length >= this.#compactAt) this.#compact();
    this.#heap.push(deadline);
    this.#siftUp(this.#heap.length - 1);
  }

  /** Time of the first valid entry; Infinity: there is none. */
  next(): number {
    while (this.#heap.length > 0 && !this.#isValid(this.#heap[0]!)) this.#removeFirst();
    return this.#heap[0]?.nanos ?? Infinity;
  }

  /** Takes out the first valid entry that is due. */
  takeDue(now: number): Deadline | undefined {
    return this.next() <= now ? this.#removeFirst() : undefined;
  }

  #compact(): void {
    const valid = this.#heap.filter(this.#isValid).toSorted((a, b) => a.nanos - b.nanos);
    this.#heap = valid;
    this.#compactAt = Math.max(COMPACT_MIN, 2 * valid.length);
  }

  #removeFirst(): Deadline | undefined {
    const first = this.#heap[0];
    const last = this.#heap.pop();
    if (this.#heap.length > 0) {
      this.#heap[0] = last!;
      this.#siftDown(0);
    }
    return first;
  }

  #siftUp(index: number): void {
    const heap = this.#heap;
    const item = heap[index]!;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (heap[parent]!.nanos <= item.nanos) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = item;
  }

  #siftDown(index: number): void {
    const heap = this.#heap;
    const item = heap[index]!;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]!.nanos < heap[child]!.nanos) child++;
      if (heap[child]!.nanos >= item.nanos) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = item;
  }
}
