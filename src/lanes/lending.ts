// A disk and its ring, lent to a lane (lane.ts) while nothing else is asked of them: the host's side of it, for any kind of
// ring. What there is to lend, and when nothing is under way, its owner knows.
//
//   lend ─► … ─► takeBack, or the lane by itself ─► onBack        a request under way: onAwait first, and onBack when it has ended

import type { Clock } from '../base/clock.ts';
import { LANE_COUNTERS, LANE_RETURN } from './lane.ts';
import type { Lane, LaneCounter, LaneReturn, Loan } from './lane.ts';
import type { MapPages } from './map-pages.ts';
import type { BlockMetrics } from './metrics.ts';

/** What is lent for reading and writing inside it, in multiples of `alignBytes`: a file, or a chain of them. */
export interface LentFile {
  /** That is written to. */
  readonly fd: number;
  /** As in `Loan`. */
  readonly chain: number;
  readonly alignBytes: number;
  readonly sizeBytes: number;
  readonly isWritable: boolean;
  readonly isOwn: boolean;
  readonly isVolatile: boolean;
  /** It is on a disk, or is one, and not on another machine. */
  readonly isLocal: boolean;
  /**
   * Once.
   * @param wasWritten whether there is something for `sync` to do
   * @param isLost something that counted as written was not; no `sync` succeeds any more
   */
  giveBack(wasWritten: boolean, isLost?: boolean): void;
}

/** Who gets a disk. */
export interface Borrower {
  /** For what is said of it. */
  readonly maps: MapPages;
  /** The disk is wanted: it is given back at once, or when a request that is under way has ended. */
  takeBack(): void;
}

/** A disk that may be lent. */
export interface Lendable {
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  readonly isInLayers?: boolean;
  /** The whole disk, while nothing else is asked of it; undefined: it cannot be had now. */
  lend?(borrower: Borrower): LentFile | undefined;
}

export interface LendingOptions {
  /** Closed when the lending ends. */
  readonly lane: Lane;
  readonly disk: Lendable;
  readonly clock: Pick<Clock, 'monotonicNanos'>;
  readonly metrics: BlockMetrics;
  /** A request is under way there, which counts as one of the owner's until `onBack`. */
  readonly onAwait: () => void;
  /** Disk and ring are the owner's again; not the ring, if the lending had been ended. */
  readonly onBack: (wasAwaited: boolean) => void;
}

/** After the disk was found slow, the disk thread is not asked for so long. */
const SLOW_REST_NANOS = 1e9;

interface CurrentLoan {
  readonly file: LentFile;
  readonly writesBefore: number;
  isAwaited: boolean;
}

export class Lending {
  readonly #options: LendingOptions;
  #loan: CurrentLoan | undefined;
  #lendFromNanos = 0;
  /** What the metrics have of the lane's counters. */
  readonly #counted = new Map<LaneCounter, number>();

  constructor(options: LendingOptions) {
    this.#options = options;
  }

  get isLent(): boolean {
    return this.#loan !== undefined;
  }
  /** How far the ring is, when it has come back. */
  get position(): number {
    return this.#options.lane.position;
  }

  /** When nothing is under way and nothing waits: lends it, if it can be lent. */
  lend(what: Pick<Loan, 'ringMfns' | 'position' | 'resets'>): void {
    const { lane, disk, clock, metrics } = this.#options;
    if (clock.monotonicNanos() < this.#lendFromNanos) return;
    // A guest that goes on from an image begins to run at this moment: nobody need start the thread for it before it asks for something.
    if (disk.isInLayers === true && metrics.reads + metrics.writes === 0) return;
    const file = disk.lend?.({ maps: lane.maps, takeBack: () => this.takeBack() });
    if (file === undefined) return;
    // Not asked before: for a disk that cannot be had, nobody need start the thread.
    if (!lane.isReady) return file.giveBack(false);
    const loan = { file, writesBefore: lane.counter('writes'), isAwaited: false };
    this.#loan = loan;
    lane.lend({
      ...what, fd: file.fd, chain: file.chain, isOwn: file.isOwn, isVolatile: file.isVolatile, alignBytes: file.alignBytes, sizeBytes: Math.min(disk.sizeBytes, file.sizeBytes),
      isReadOnly: disk.isReadOnly || !file.isWritable, isLocal: file.isLocal,
    }, (why) => this.#back(loan, why));
  }

  takeBack(): void {
    const loan = this.#loan;
    if (loan === undefined || loan.isAwaited) return;
    const { lane } = this.#options;
    if (lane.recall()) this.#back(loan, lane.why);
    else this.#await(loan);
  }
  #await(loan: CurrentLoan): void {
    if (!loan.isAwaited) this.#options.onAwait();
    loan.isAwaited = true;
  }

  #back(loan: CurrentLoan, why: LaneReturn): void {
    const { lane, clock, metrics, onBack } = this.#options;
    const isLost = why === LANE_RETURN.lost;
    if (isLost) metrics.failures++;
    loan.file.giveBack(lane.counter('writes') > loan.writesBefore, isLost);
    if (why === LANE_RETURN.slow) this.#lendFromNanos = clock.monotonicNanos() + SLOW_REST_NANOS;
    this.#loan = undefined;
    onBack(loan.isAwaited);
  }

  /** From when this returns, ring and guest are not touched any more. */
  end(): void {
    const loan = this.#loan;
    const { lane } = this.#options;
    if (loan !== undefined) {
      if (lane.revoke()) this.#back(loan, lane.why);
      else this.#await(loan);
    }
    this.count();
    lane.close();
  }

  /** Brings the metrics up to date. */
  count(): void {
    const { lane, metrics } = this.#options;
    for (const name of LANE_COUNTERS) {
      const now = lane.counter(name);
      const more = now - (this.#counted.get(name) ?? 0);
      if (name === 'latencyMicrosMax') metrics[name] = Math.max(metrics[name], now);
      else metrics[name] += more;
      if (name === 'reads' || name === 'writes' || name === 'flushes') metrics.byDiskThread += more;
      if (name === 'byVcpus') metrics.byDiskThread -= more;
      this.#counted.set(name, now);
    }
  }
}
