// Time as the network sees it, injected so that tests decide what time it is.

export interface Timer {
  cancel(): void;
}

export interface Scheduler {
  /** Milliseconds since an arbitrary origin, never going back. */
  nowMillis(): number;
  /** Calls back once, not before `delayMillis` have passed. */
  after(delayMillis: number, callback: () => void): Timer;
  /** Calls back once the present turn of the event loop's code has returned: the end of a batch of frames. */
  soon(callback: () => void): void;
}

/** Real time. Its timers do not keep the process alive. */
export const systemScheduler: Scheduler = {
  nowMillis: () => performance.now(),
  after(delayMillis, callback) {
    const timer = setTimeout(callback, delayMillis).unref();
    return { cancel: () => clearTimeout(timer) };
  },
  soon: (callback) => queueMicrotask(callback),
};
