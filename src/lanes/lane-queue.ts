// A guest's requests, as the thread that serves a lane sees them (lane-server.ts): one at a time, from the ring of a
// paravirtual disk (devices/block/ring-queue.ts) or from the queue of a virtio disk (devices/virtio/lane-queue.ts).
//
//   peek ─► check ─► hold, or fill, or copyTo ─► answer        nothing is taken from the guest before it is answered
//
// Nothing that a guest writes is believed: what is looked at is copied first, and what is not a plain transfer, or cannot be
// had now, is none of a lane's affairs. Rings and queues are touched only within `LaneGuard`.

import type { LaneEnd, Loan } from './lane.ts';
import type { Pieces } from './pieces.ts';

/** A plain read or write, bytes of the disk; none: a flush that has nothing to do. */
export interface Transfer {
  readonly isWrite: boolean;
  readonly offset: number;
  readonly sizeBytes: number;
}

/** What a transfer may be at most to be one of a lane. */
export const TRANSFER_MAX_BYTES = 2 ** 21;
/** What a vCPU waits for: as much as fits into a slot of a ring without more pages. */
export const SMALL_MAX_BYTES = 11 * 4096;

/** Does something with the guest's ring or queue, with the lane's lock. @returns undefined: the ring has been revoked */
export type LaneGuard = <T>(body: () => T) => T | undefined;

/** What a thread gets to serve. */
export interface LentQueue {
  readonly end: LaneEnd;
  readonly loan: Loan;
  readonly guard: LaneGuard;
  /** For the data of one request; page-aligned. All queues of a thread have the same. @param sizeBytes at most TRANSFER_MAX_BYTES */
  bufferOf(sizeBytes: number): Uint8Array;
}

export interface LaneQueue {
  /** Requests that have been answered. */
  readonly position: number;
  /** Somebody else has answered some meanwhile. */
  goOnAt(position: number): void;
  /** Copies the next request. When there is none, the guest is asked to tell of the next one. @returns whether there is one */
  peek(): boolean;
  /** How many there are. */
  readonly waiting: number;
  /** Whether the one that was copied is no larger than SMALL_MAX_BYTES, as far as one can see so far. */
  readonly isSmall: boolean;
  /** How often the guest's index could not be, since the last time. */
  takeBadIndices(): number;
  /** What was copied. @returns undefined: it is not a plain transfer of what is lent */
  check(loan: Loan): Transfer | undefined;

  // Of the transfer that was checked last. `undefined`, false: its memory cannot be had now.

  /** Memory for its data; until `letGo`. Of a write, the data is in it. */
  hold(): Pieces | undefined;
  letGo(): void;
  /** A read gets this. `bytes` stay as they are until it is answered. */
  fill(bytes: Uint8Array): boolean;
  /** Copies what is to be written. */
  copyTo(bytes: Uint8Array): boolean;
  /** It has been done. @returns how often the guest was told; undefined: it is still in the queue, as if nothing had been done */
  answer(): number | undefined;
}
