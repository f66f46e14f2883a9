// One guest from creation to its end, with the person's or program's streams attached: what `run` and `start` share.

import { setTimeout as delay } from 'node:timers/promises';
import type { Writable } from 'node:stream';
import { SIZE_MAX_BYTES } from '../abi/machine-memory.ts';
import { orAborted } from '../base/abort.ts';
import { UsageError, ZazenError } from '../base/errors.ts';
import { initReached } from '../guest/init-script.ts';
import { formatSize, parseSize } from '../host/size.ts';
import type { Domain, DomainSpec, DomainStats, Host, HostOptions, ShutdownReason, StartHost } from '../host/types.ts';
import { Interruption, pump, say } from './io.ts';
import type { Io } from './io.ts';
import { profileTo } from './profile.ts';
import { forwardInput, rawTerminal } from './terminal.ts';

export interface Session {
  readonly spec: DomainSpec;
  readonly networks?: HostOptions['networks'];
  readonly startHost: StartHost;
  /** Serves the host's control socket meanwhile. */
  readonly serve?: (host: Host) => Promise<AsyncDisposable | undefined>;
  /** Where the command's output goes, or the console's when there is no command. */
  readonly output: Writable;
  /** Where the console's other words go when there is a command; undefined: nowhere. */
  readonly log: Writable | undefined;
  /** A person types: raw terminal, and Ctrl-] leaves. */
  readonly interactive: boolean;
  readonly timeoutMillis: number | undefined;
  /** A file for what the guest's time went into. */
  readonly profilePath?: string | undefined;
}

export interface Timings {
  /** Starting the host; then loading the guest (and fetching it, if it was not there). */
  hostMillis: number;
  createMillis: number;
  /** From the guest's first instruction to the first line of its init; only with Zazen's init. */
  initMillis?: number;
  /** From the guest's first instruction to the command's; then the command itself. */
  commandStartMillis?: number;
  commandMillis?: number;
  totalMillis: number;
}

export interface SessionReport {
  readonly status: number;
  /** How it ended: the command gave its status, or the guest stopped for this reason. */
  readonly outcome: 'exit' | ShutdownReason | 'destroyed';
  readonly domain: { readonly name: string; readonly uuid: string };
  readonly timings: Timings;
  readonly stats: DomainStats;
}

const MIB = 2 ** 20;
const HOST_DEFAULT_BYTES = 2048 * MIB;
/** The host's own records, and what building a guest takes. */
const HOST_OVERHEAD_BYTES = 512 * MIB;
/** The least of it. */
const HOST_RECORDS_BYTES = 256 * MIB;
/** After its command a guest needs this long at most to power off; then it is destroyed. */
const POWEROFF_MILLIS = 10_000;

/**
 * Runs a guest to its end. When it returns or throws, the guest is destroyed, no worker is left and the terminal is as
 * it was. Throws what the host throws, and the reason of the interruption.
 */
export async function runSession(io: Io, session: Session): Promise<SessionReport> {
  const begun = performance.now();
  const stop = new AbortController();
  const run = new GuestRun(io, session, stop, AbortSignal.any([io.signal, stop.signal]));
  const timer = startTimeout(session.timeoutMillis, stop);
  try {
    const report = await run.run();
    return { ...report, timings: { ...report.timings, totalMillis: performance.now() - begun } };
  } finally {
    clearTimeout(timer);
  }
}

function startTimeout(millis: number | undefined, stop: AbortController): NodeJS.Timeout | undefined {
  if (millis === undefined) return undefined;
  const message = `the guest took longer than ${millis / 1000} s`;
  return setTimeout(() => stop.abort(new Interruption(message, 124)), millis);
}

/**
 * Enough for the guest. Addresses of 32 bits are the faster ones, so that a guest that they can reach does with less room
 * beside it. @throws UsageError
 */
function hostMemory(spec: DomainSpec): number {
  const guestBytes = spec.memory === undefined ? 0 : parseSize(spec.memory);
  const guestMaxBytes = SIZE_MAX_BYTES.i64 - HOST_OVERHEAD_BYTES;
  if (guestBytes > guestMaxBytes) {
    throw new UsageError(`a guest cannot have ${formatSize(guestBytes)} of memory`, `give at most ${guestMaxBytes / MIB}MiB`);
  }
  const maxBytes = guestBytes + HOST_RECORDS_BYTES <= SIZE_MAX_BYTES.i32 ? SIZE_MAX_BYTES.i32 : SIZE_MAX_BYTES.i64;
  return Math.ceil(Math.min(Math.max(guestBytes + HOST_OVERHEAD_BYTES, HOST_DEFAULT_BYTES), maxBytes) / MIB) * MIB;
}

class GuestRun {
  readonly #io: Io;
  readonly #session: Session;
  readonly #stop: AbortController;
  readonly #signal: AbortSignal;
  readonly #timings: Timings = { hostMillis: 0, createMillis: 0, totalMillis: 0 };
  #startedAt = 0;

  constructor(io: Io, session: Session, stop: AbortController, signal: AbortSignal) {
    this.#io = io;
    this.#session = session;
    this.#stop = stop;
    this.#signal = signal;
  }

  async run(): Promise<SessionReport> {
    const { spec, startHost, serve, networks } = this.#session;
    const signal = this.#signal;
    signal.throwIfAborted();
    const begun = performance.now();
    const log = (line: string): void => say(this.#io, line);
    await using host = await startHost({ memory: hostMemory(spec), log, ...(networks === undefined ? {} : { networks }) });
    this.#timings.hostMillis = performance.now() - begun;
    await using _ = await serve?.(host);
    for (;;) {
      const creating = performance.now();
      const domain = await orAborted(host.create(spec, { signal, log }), signal);
      this.#startedAt = performance.now();
      this.#timings.createMillis = this.#startedAt - creating;
      void this.#watch(domain);
      const ended = await this.#profiled(domain, async () =>
        domain.exec === undefined ? await this.#attachConsole(domain) : await this.#attachCommand(domain));
      const stats = domain.stats();
      await domain.destroy();
      // A person who reboots wants to see it come up again; a guest left alone might do so for ever.
      if (ended.outcome !== 'reboot' || !this.#session.interactive) {
        return { ...ended, domain: { name: domain.name, uuid: domain.uuid }, timings: this.#timings, stats };
      }
    }
  }

  async #profiled<T>(domain: Domain, work: () => Promise<T>): Promise<T> {
    const { profilePath } = this.#session;
    const finish = profilePath === undefined ? undefined : await profileTo(profilePath, domain, this.#io);
    try {
      return await work();
    } finally {
      await finish?.();
    }
  }

  /** A guest that cannot go on for want of something ends the session. */
  async #watch(domain: Domain): Promise<void> {
    for await (const event of domain.events()) {
      if (event.type === 'stalled') this.#stop.abort(new ZazenError('ZAZEN_DOMAIN_STALLED', event.message));
      if (event.type === 'suspended') {
        say(this.#io, `the guest is suspended; zazen resume ${domain.name} lets it go on`);
      }
    }
  }

  #sinceStart(): number {
    return performance.now() - this.#startedAt;
  }

  /** Looks for the first line of init. */
  #lookForInit(): (chunk: Buffer) => void {
    let seen = '';
    return (chunk) => {
      if (this.#timings.initMillis !== undefined) return;
      seen += chunk.toString('latin1');
      if (seen.includes(initReached)) this.#timings.initMillis = this.#sinceStart();
      seen = seen.slice(-initReached.length);
    };
  }

  async #attachConsole(domain: Domain): Promise<{ status: number; outcome: ShutdownReason | 'destroyed' }> {
    const { output } = this.#session;
    delete this.#timings.initMillis;
    const letGo = this.#attachInput(domain.console, 0);
    try {
      const copied = pump(domain.console, output, this.#signal, this.#lookForInit());
      const [outcome] = await Promise.all([orAborted(domain.waitForShutdown(), this.#signal), copied]);
      return { outcome, status: outcome === 'poweroff' ? 0 : 1 };
    } finally {
      letGo();
    }
  }

  async #attachCommand(domain: Domain): Promise<{ status: number; outcome: 'exit' }> {
    const { output, log } = this.#session;
    const signal = this.#signal;
    const exec = domain.exec!;
    const copied = pump(exec.output, output, signal);
    const logged = pump(exec.log, log, signal, this.#lookForInit());
    // Whatever ends them early ends what is waited for here as well.
    copied.catch(() => {});
    logged.catch(() => {});
    await orAborted(exec.started, signal);
    this.#timings.commandStartMillis = this.#sinceStart();
    const letGo = this.#attachInput(exec.input, 130);
    try {
      const { status } = await orAborted(exec.result, signal);
      this.#timings.commandMillis = this.#sinceStart() - this.#timings.commandStartMillis;
      await copied;
      await this.#waitForPoweroff(domain, logged);
      return { status, outcome: 'exit' };
    } finally {
      letGo();
    }
  }

  /** The command has ended; the guest still writes back what its file systems hold. */
  async #waitForPoweroff(domain: Domain, logged: Promise<void>): Promise<void> {
    const timer = new AbortController();
    const tooLong = delay(POWEROFF_MILLIS, undefined, { signal: timer.signal }).catch(() => {});
    const stopped = Promise.all([domain.waitForShutdown(), logged]);
    await orAborted(Promise.race([stopped, tooLong]), this.#signal).finally(() => timer.abort());
  }

  /** @param leaveStatus exit status when the person leaves with Ctrl-] */
  #attachInput(sink: Writable, leaveStatus: number): () => void {
    if (!this.#session.interactive) return forwardInput(this.#io.stdin, sink);
    const leave = (): void => this.#stop.abort(new Interruption('left the guest; it is destroyed', leaveStatus));
    const restore = rawTerminal(this.#io, this.#signal);
    const letGo = forwardInput(this.#io.stdin, sink, leave);
    return () => {
      letGo();
      restore();
    };
  }
}
