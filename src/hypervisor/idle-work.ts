// What an idle pCPU does before it sleeps: it takes the p2m trees of dead domains apart, then scrubs what has become
// free. In pieces of some ten microseconds, left at once for a vCPU that wants to run or a world that is to stop.

import type { Heap } from '../memory/heap.ts';
import type { IdleWork } from './pcpu.ts';
import type { SafePoints } from './safe-points.ts';
import type { VcpuScheduling } from './scheduler.ts';

const STEP_FRAMES = 128;

export class HeapIdleWork implements IdleWork {
  readonly #heap: Heap;
  readonly #scheduling: VcpuScheduling;
  readonly #safePoints: SafePoints;
  readonly #shouldStop = (): boolean =>
    this.#scheduling.hasWaiting || this.#scheduling.isBriefStop || this.#safePoints.isWorldStopped || this.#scheduling.isClosing;

  constructor(heap: Heap, scheduling: VcpuScheduling, safePoints: SafePoints) {
    this.#heap = heap;
    this.#scheduling = scheduling;
    this.#safePoints = safePoints;
  }

  get isWaiting(): boolean {
    return this.#heap.hasIdleWork;
  }

  step(): boolean {
    if (!this.isWaiting) return false;
    this.#safePoints.enterIdleWork();
    try {
      if (!this.#heap.tearDown.step(STEP_FRAMES, this.#shouldStop)) this.#heap.scrubStep(STEP_FRAMES, this.#shouldStop);
      // A node's children, or the frames that it held: there may be enough for others.
      else if (this.isWaiting) this.#scheduling.wakeIdlePcpus();
    } finally {
      this.#safePoints.leave();
    }
    return true;
  }
}
