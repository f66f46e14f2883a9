// Suspending a domain: asks the guest in the ways that it offers, one after the other and each for a limited time, and
// if it comes to that stops it without asking. What the guest and the host say to each other is lifecycle/suspend.ts.
//
//                 suspend                  the guest stops itself, or is stopped
//   running ────────────────► asked ──────────────────────────────────────────────► suspended ──resume──► running
//      ▲                        │ time-out, cancelled                                  ▲
//      └────────────────────────┴── the guest stops itself unasked ────────────────────┘
//                                   (too late an answer: resumed at once)

import { EVTCHNSTAT } from '../abi/xen-event-channel.ts';
import { ZazenError } from '../base/errors.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import {
  SUSPEND_REQUEST, delayWatchdogs, endSuspend, isSuspended, shutdownPath, suspendPort, watchesForSuspend,
} from '../lifecycle/suspend.ts';
import { setWallClock } from './checkpoint.ts';
import type { HostCore } from './host-core.ts';
import type { DomainEventBody, SuspendAttempt, SuspendOptions, SuspendStats, SuspendVia } from './types.ts';

/** In the order in which they are tried. */
const WAYS: readonly SuspendVia[] = ['event-channel', 'store', 'transparent'];
const TIMEOUT_MILLIS = 10_000;
/** A timer takes no more. */
const TIMEOUT_MAX_MILLIS = 2 ** 31 - 1;
/** How long this thread sleeps for the answer to an event: most guests take a third of that, hearing it later half of it. */
const AT_ONCE_MILLIS = 0.3;
const MICROS_PER_MILLI = 1000;

export interface SuspendedDomain {
  readonly name: string;
  readonly record: DomainRecord;
  /** Its vCPUs cannot run and so not answer. */
  isPaused(): boolean;
  /** @throws ZazenError ZAZEN_DOMAIN_GONE, ZAZEN_DOMAIN_SHUTDOWN */
  assertRunnable(): void;
  emit(event: DomainEventBody): void;
}

type Outcome = SuspendAttempt['outcome'];

/** A request that the guest has not answered yet. */
interface Request {
  readonly via: SuspendVia;
  answer(): void;
  fail(error: unknown): void;
}

export class Suspension {
  readonly #core: HostCore;
  readonly #domain: SuspendedDomain;
  #isUnderWay = false;
  #request: Request | undefined;
  /** A request that was given up, and may still be answered. */
  #givenUp: SuspendVia | undefined;
  #acknowledgedAt: number | undefined;
  #port: number | undefined;
  #via: SuspendVia | 'guest' | undefined;
  #sinceNanos = 0;

  constructor(core: HostCore, domain: SuspendedDomain) {
    this.#core = core;
    this.#domain = domain;
  }

  /** How it came to be suspended, `guest`: nobody had asked; undefined: it is not. */
  get via(): SuspendVia | 'guest' | undefined {
    return this.#via;
  }

  /** @throws as Domain.suspend */
  async suspend(
    { via = 'auto', timeoutMillis = TIMEOUT_MILLIS, signal }: SuspendOptions = {},
  ): Promise<SuspendStats> {
    const { name } = this.#domain;
    if (!(timeoutMillis >= 0 && timeoutMillis <= TIMEOUT_MAX_MILLIS)) {
      throw new ZazenError('ZAZEN_SUSPEND_TIMEOUT_RANGE', `a guest cannot be given ${timeoutMillis} ms for it`);
    }
    if (this.#via !== undefined) throw new ZazenError('ZAZEN_DOMAIN_SUSPENDED', `domain ${name} is suspended already`);
    if (this.#isUnderWay) {
      throw new ZazenError('ZAZEN_SUSPEND_UNDER_WAY', `domain ${name} has been asked to suspend itself already`);
    }
    signal?.throwIfAborted();
    this.#isUnderWay = true;
    this.#acknowledgedAt = undefined;
    const start = performance.now();
    const passedMicros = (since: number): number => (performance.now() - since) * MICROS_PER_MILLI;
    const attempts: SuspendAttempt[] = [];
    try {
      for (const way of via === 'auto' ? WAYS : [via]) {
        const begun = performance.now();
        const outcome = await this.#try(way, via === 'auto', timeoutMillis, signal);
        attempts.push({ via: way, outcome, micros: passedMicros(begun) });
        if (outcome !== 'suspended') continue;
        return {
          via: way, attempts, requestedAt: performance.timeOrigin + start, completedMicros: passedMicros(start),
          ...(this.#acknowledgedAt === undefined ? {}
            : { acknowledgedMicros: (this.#acknowledgedAt - start) * MICROS_PER_MILLI }),
        };
      }
    } finally {
      this.#isUnderWay = false;
    }
    throw refusal(name, attempts[0]!);
  }

  #try(
    via: SuspendVia, isOptional: boolean, timeoutMillis: number, signal: AbortSignal | undefined,
  ): Promise<Outcome> | Outcome {
    this.#domain.assertRunnable();
    if (via === 'transparent') return this.#stop();
    if (this.#domain.isPaused()) return 'paused';
    if (via === 'store') return this.#askByStore(isOptional, timeoutMillis, signal);
    return this.#askByEvent(timeoutMillis, signal);
  }

  async #askByEvent(timeoutMillis: number, signal: AbortSignal | undefined): Promise<Outcome> {
    const port = this.#bind();
    if (port === undefined) return 'not-offered';
    const { ports } = this.#core;
    const heard = ports.doorbell;
    // While the guest gets ready, so does this thread, which hears no answer before it listens.
    ports.notify(port);
    using request = this.#ask('event-channel', timeoutMillis, signal);
    ports.deliverWithin(heard, AT_ONCE_MILLIS, () => this.#via !== undefined);
    let outcome: Outcome | undefined;
    try {
      return outcome = await request.outcome;
    } finally {
      if (outcome !== 'suspended') this.close();
    }
  }

  /** @returns the host's end of the guest's channel, which is kept for the next time; undefined: there is none */
  #bind(): number | undefined {
    const { ports, store, thread: { hypercalls: { channels } } } = this.#core;
    const { domid } = this.#domain.record;
    const remotePort = suspendPort(store, domid);
    // The guest may have closed it, or been put back to before it was bound.
    const bound = this.#port === undefined ? undefined : channels.status(channels.domains.record(0), this.#port);
    if (bound?.status === EVTCHNSTAT.interdomain && bound.remotePort === remotePort) return this.#port;
    this.close();
    const port = remotePort === undefined ? -1 : ports.bind(domid, remotePort, () => {});
    this.#port = port < 0 ? undefined : port;
    return this.#port;
  }

  /** Lets go of the guest's channel. */
  close(): void {
    if (this.#port !== undefined) this.#core.ports.close(this.#port);
    this.#port = undefined;
  }

  /** @param isOptional if so, a guest is asked only that says that it understands */
  async #askByStore(
    isOptional: boolean, timeoutMillis: number, signal: AbortSignal | undefined,
  ): Promise<Outcome> {
    const { store } = this.#core;
    const { domid } = this.#domain.record;
    if (isOptional && !watchesForSuspend(store, domid)) return 'not-offered';
    const path = shutdownPath(domid);
    store.write(path, SUSPEND_REQUEST);
    using request = this.#ask('store', timeoutMillis, signal);
    const unwatch = store.watch(path, () => {
      if (this.#acknowledgedAt !== undefined || store.read(path) === SUSPEND_REQUEST) return;
      this.#acknowledgedAt = performance.now();
      request.extend();
    });
    try {
      return await request.outcome;
    } finally {
      unwatch();
      // A guest that has not seen it is not to see it later.
      if (store.read(path) === SUSPEND_REQUEST) store.write(path, '');
    }
  }

  /** Waits for the guest, which is asked next. Disposed: waits no more. */
  #ask(via: SuspendVia, timeoutMillis: number, signal: AbortSignal | undefined) {
    const settled = Promise.withResolvers<Outcome>();
    let timer: NodeJS.Timeout;
    const end = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
      if (this.#request === request) this.#request = undefined;
    };
    const giveUp = (): void => {
      this.#givenUp = via;
      end();
    };
    const expire = (): void => { giveUp(); settled.resolve('no-answer'); };
    const abort = (): void => { giveUp(); settled.reject(signal!.reason); };
    const request: Request = {
      via,
      answer: () => { end(); settled.resolve('suspended'); },
      fail: (error) => { end(); settled.reject(error); },
    };
    const extend = (): void => {
      clearTimeout(timer);
      if (this.#request === request) timer = setTimeout(expire, timeoutMillis);
    };
    this.#request = request;
    signal?.addEventListener('abort', abort, { once: true });
    extend();
    return { outcome: settled.promise, extend, [Symbol.dispose]: end };
  }

  /** Without asking. A guest that is just then stopping itself is not hindered: `resume` sees what it did. */
  #stop(): Outcome {
    const { scheduling } = this.#core.thread;
    const { domid } = this.#domain.record;
    scheduling.pauseDomain(domid);
    scheduling.waitUntilStopped(domid);
    this.#enter('transparent');
    return 'suspended';
  }

  #enter(via: SuspendVia | 'guest'): void {
    const { timers, clock } = this.#core.thread;
    timers.stopTime(this.#domain.record.domid);
    this.#sinceNanos = clock.monotonicNanos();
    this.#via = via;
    this.#domain.emit({ type: 'suspended', via });
  }

  /** The guest has stopped itself; its vCPUs are out of their pCPUs' hands. */
  guestSuspended(): void {
    const request = this.#request;
    const late = this.#givenUp;
    if (request !== undefined) {
      this.#enter(request.via);
      request.answer();
    } else if (late !== undefined) {
      this.#givenUp = undefined;
      this.#enter(late);
      this.resume();
    } else this.#enter('guest');
  }

  /** The domain ends in another way; whoever waits for it to be suspended learns so. */
  ended(error: ZazenError): void {
    this.#request?.fail(error);
  }

  /** The guest goes on where it was, unless something else keeps it. */
  resume(): void {
    const { thread } = this.#core;
    const { record } = this.#domain;
    const via = this.#leave();
    delayWatchdogs(record, thread.clock.monotonicNanos() - this.#sinceNanos);
    if (isSuspended(record)) {
      // What it was doing when it was stopped was its late answer.
      if (via === 'transparent') this.#givenUp = undefined;
      endSuspend(thread, record);
    }
    setWallClock(this.#core, record);
    this.#letGo(via);
    this.#domain.emit({ type: 'resumed', reason: 'cancelled' });
  }

  /** The domain has been put back to a state, which may be one in which the guest has suspended itself. */
  rolledBack(): void {
    this.#givenUp = undefined;
    if (this.#via !== undefined) this.#letGo(this.#leave());
    if (isSuspended(this.#domain.record)) this.#enter('guest');
  }

  #leave(): SuspendVia | 'guest' {
    const via = this.#via!;
    this.#via = undefined;
    this.#core.thread.timers.startTime(this.#domain.record.domid);
    return via;
  }
  #letGo(via: SuspendVia | 'guest'): void {
    const { scheduling } = this.#core.thread;
    const { domid } = this.#domain.record;
    if (via === 'transparent') scheduling.unpauseDomain(domid);
    else scheduling.pauseChanged(domid);
  }
}

function refusal(name: string, { via, outcome }: SuspendAttempt): ZazenError {
  const [code, message, hint] = REFUSALS[outcome as keyof typeof REFUSALS];
  return new ZazenError(`ZAZEN_SUSPEND_${code}`, `the guest of domain ${name} ${message} (${via})`, { hint });
}

const OTHERWISE = 'auto stops a guest that does not co-operate without asking it';
const REFUSALS = {
  'paused': ['PAUSED', 'is paused and cannot be asked', 'unpause it first'],
  'not-offered': ['NOT_OFFERED', 'does not wait to be asked so', OTHERWISE],
  'no-answer': ['NO_ANSWER', 'has not suspended itself when asked; it runs on', OTHERWISE],
} as const;
