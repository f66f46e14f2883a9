// What becomes of a domain, as programs that embed Zazen see it: shutdown, suspension, and the events that tell of them.

/** Why a guest stopped by itself, for good: SHUTDOWN_* of Xen's public/sched.h. */
export type ShutdownReason = 'poweroff' | 'reboot' | 'crash' | 'watchdog';

/** `suspended` is until `resume`, whether or not it is paused as well. */
export type DomainState = 'running' | 'paused' | 'suspended' | 'shutdown' | 'destroyed';

/** How a guest is suspended: two ways to ask it, which docs/suspend.md describes, and without asking it. */
export type SuspendVia = 'event-channel' | 'store' | 'transparent';

export interface SuspendOptions {
  /**
   * Default `auto`: what the guest offers, the quicker way first, and if it does not answer, transparently. A paused guest
   * cannot be asked.
   */
  readonly via?: SuspendVia | 'auto' | undefined;
  /**
   * How long the guest may take for each step, in each way: over the event channel, until it has suspended itself; over the
   * store, until it has acknowledged, and again until it has suspended itself. Default 10 000.
   */
  readonly timeoutMillis?: number | undefined;
  /** Ends waiting for the guest, which runs on. */
  readonly signal?: AbortSignal | undefined;
}

export interface SuspendAttempt {
  readonly via: SuspendVia;
  /** `not-offered`: the guest does not wait to be asked so. `no-answer`: not in time; it was left running. */
  readonly outcome: 'suspended' | 'not-offered' | 'paused' | 'no-answer';
  readonly micros: number;
}

/** Microseconds of wall time since `requestedAt`. */
export interface SuspendStats {
  /** The way that worked. */
  readonly via: SuspendVia;
  /** Unix time in milliseconds, with fractions. */
  readonly requestedAt: number;
  /** When the guest had taken the request from the store. */
  readonly acknowledgedMicros?: number;
  /** When it was suspended. */
  readonly completedMicros: number;
  /** All ways that were tried, in order; the last one worked. */
  readonly attempts: readonly SuspendAttempt[];
}

export type DomainEventBody =
  | { readonly type: 'started' }
  | { readonly type: 'paused' }
  | { readonly type: 'unpaused' }
  | { readonly type: 'rolledBack' }
  /** It stands still until `resume`. `guest`: it has suspended itself without being asked. */
  | { readonly type: 'suspended'; readonly via: SuspendVia | 'guest' }
  /**
   * It goes on; what a guest that had suspended itself is told. `cancelled`: where it was. `new-place`: it was made from a
   * state in which it was suspended, and has to find its surroundings anew.
   */
  | { readonly type: 'resumed'; readonly reason: 'cancelled' | 'new-place' }
  /** An image of it is complete. */
  | { readonly type: 'saved'; readonly path: string }
  /** It was made from that image. */
  | { readonly type: 'restored'; readonly path: string }
  /** The guest runs no more; its memory is kept until it is destroyed. */
  | { readonly type: 'shutdown'; readonly reason: ShutdownReason }
  /**
   * A vCPU cannot go on because of the host, and the domain is paused. ZAZEN_HOST_OUT_OF_MEMORY: there is no frame for it;
   * ZAZEN_IMAGE_*: it needs a page of the image that it was restored from, which the message names, and which cannot be
   * read. When that is put right, `unpause` goes on as if nothing had happened.
   */
  | { readonly type: 'stalled'; readonly code: string; readonly message: string }
  /** Always the last one. */
  | { readonly type: 'destroyed' };

export type DomainEvent = DomainEventBody & {
  readonly domainId: number;
  /** 1, 2, 3 … within the domain, the same for all subscribers. */
  readonly sequence: number;
  /** Unix time in milliseconds, with fractions. */
  readonly timeMillis: number;
};

/** With the name of the domain. */
export type HostEvent = DomainEvent & { readonly name: string };

export interface SubscribeOptions {
  /** Begin with the past, as far as it is kept: the latest 1000 events. Default true. */
  readonly history?: boolean | undefined;
}

/** Independent of all others. `return()`, as by leaving a loop, ends it, also while it waits. */
export interface EventSubscription<E> extends AsyncIterableIterator<E, undefined> {
  /** Events that it has not seen, because they are no longer kept: it began late or was slow. */
  readonly missed: number;
  return(): Promise<IteratorResult<E, undefined>>;
}