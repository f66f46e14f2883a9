// The requests in a virtio disk's queue, for a lane (lanes/lane-queue.ts): the queue and its rules are those of the host's
// thread (queue.ts), on registers of which this thread has a view of its own. What the host looks after is left to it: a
// driver that breaks the rules, one that has reset the device, a page that cannot be had now, whatever is no plain
// transfer. It finds the request in the queue, as if nobody had looked.
//
// Data goes by way of a buffer, as in the host's thread: when the driver has reset the device, nothing of its memory is
// written any more, also when the disk has not answered yet.

import { virtioQueueAt, virtioSlotAt } from '../../abi/emulated-devices.ts';
import { assert } from '../../base/assert.ts';
import type { DeviceFrame } from '../../hypervisor/emulated-devices.ts';
import type { GuestRam } from '../../hypervisor/guest-ram.ts';
import type { Loan } from '../../lanes/lane.ts';
import { SMALL_MAX_BYTES, TRANSFER_MAX_BYTES } from '../../lanes/lane-queue.ts';
import type { LaneGuard, LaneQueue, LentQueue, Transfer } from '../../lanes/lane-queue.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { BLOCK_HEADER_BYTES, BLOCK_STATUS, BLOCK_TYPE, sectorOf, typeOf } from './block-request.ts';
import { VirtQueue } from './queue.ts';
import type { Chain } from './queue.ts';
import { QueueSlot } from './queue-slot.ts';

/** The guest behind a queue, for the thread that serves it. */
export interface VirtioGuest {
  /** Of this queue alone. */
  readonly frame: DeviceFrame;
  readonly ram: GuestRam;
  /** What is done with the machine's memory. */
  atWork<T>(body: () => T): T;
}

const DONE = Uint8Array.of(BLOCK_STATUS.ok);
const NOTHING: Uint8Array = new Uint8Array(0);
const SECTOR_BYTES = 512;

/** Says what is not for this thread. */
class LentSlot extends QueueSlot {
  isForHost = false;

  constructor({ frame, ram }: VirtioGuest, slot: number, resets: number) {
    super(frame, ram, slot);
    this.resetsSeen = resets;
  }
  override markBroken(): void {
    this.isForHost = true;
  }
  override tryLater(): void {
    this.isForHost = true;
  }
}

export class VirtqueueOfLane implements LaneQueue {
  position: number;
  readonly #within: LaneGuard;
  readonly #bufferOf: (sizeBytes: number) => Uint8Array;
  readonly #slot: LentSlot;
  readonly #queue: VirtQueue;
  #chain: Chain | undefined;
  #transfer: Transfer | undefined;
  /** What a read gives. */
  #data: Uint8Array = NOTHING;

  /** @param slot of the domain's machine */
  constructor(guest: VirtioGuest, domid: number, slot: number, { loan, guard, bufferOf }: LentQueue) {
    this.position = loan.position;
    this.#bufferOf = bufferOf;
    this.#slot = new LentSlot(guest, slot, loan.resets);
    this.#queue = new VirtQueue(this.#slot, virtioSlotAt(slot) + virtioQueueAt(0));
    this.#within = (body) => guest.atWork(() => guard(() => {
      // Found each time: a rollback may have given the domain another frame since this queue was lent.
      assert(guest.frame.select(domid), 'the domain has emulated devices');
      return body();
    }));
  }

  goOnAt(position: number): void {
    this.position = position;
    this.#queue.restart();
  }

  peek(): boolean {
    const slot = this.#slot;
    slot.isForHost = false;
    this.#chain = this.#within(() => {
      if (slot.isReset) slot.isForHost = true;
      return slot.isForHost ? undefined : this.#queue.peek();
    });
    return this.#chain !== undefined || slot.isForHost;
  }
  get waiting(): number {
    return this.#within(() => this.#queue.waiting) ?? 0;
  }
  get isSmall(): boolean {
    return this.#chain !== undefined && this.#chain.readableBytes + this.#chain.writableBytes <= SMALL_MAX_BYTES + BLOCK_HEADER_BYTES + 1;
  }
  /** Where an index cannot be, the device must be reset, and the host says so. */
  takeBadIndices(): number {
    return 0;
  }

  check({ sizeBytes: diskBytes, isReadOnly, isVolatile }: Loan): Transfer | undefined {
    const chain = this.#chain;
    if (chain === undefined) return undefined;
    const header = this.#within(() => this.#queue.read(chain, 0, BLOCK_HEADER_BYTES));
    if (header === undefined || chain.readableBytes < BLOCK_HEADER_BYTES) return undefined;
    const type = typeOf(header);
    const isWrite = type === BLOCK_TYPE.out;
    this.#data = NOTHING;
    if (type === BLOCK_TYPE.flush && isVolatile && chain.readableBytes === BLOCK_HEADER_BYTES && chain.writableBytes === DONE.length) {
      this.#transfer = { isWrite, offset: 0, sizeBytes: 0 };
      return this.#transfer;
    }
    if ((!isWrite && type !== BLOCK_TYPE.in) || (isWrite && isReadOnly)) return undefined;
    const written = chain.readableBytes - BLOCK_HEADER_BYTES;
    const read = chain.writableBytes - DONE.length;
    const sizeBytes = isWrite ? written : read;
    const isPlain = (isWrite ? read : written) === 0 && sizeBytes > 0 && sizeBytes % SECTOR_BYTES === 0 && sizeBytes <= TRANSFER_MAX_BYTES;
    const offset = sectorOf(header) * SECTOR_BYTES;
    if (!isPlain || !(offset + sizeBytes <= diskBytes)) return undefined;
    this.#transfer = { isWrite, offset, sizeBytes };
    return this.#transfer;
  }

  hold(): Pieces | undefined {
    const { isWrite, sizeBytes } = this.#transfer!;
    const buffer = this.#bufferOf(sizeBytes);
    if (isWrite) return this.copyTo(buffer) ? [buffer] : undefined;
    this.#data = buffer;
    return [buffer];
  }
  letGo(): void {}

  fill(bytes: Uint8Array): boolean {
    this.#data = bytes;
    return true;
  }
  copyTo(bytes: Uint8Array): boolean {
    return this.#within(() => this.#queue.read(this.#chain!, BLOCK_HEADER_BYTES, bytes.length, bytes)) !== undefined;
  }

  answer(): number | undefined {
    const before = this.#slot.interrupts;
    const isDone = this.#within(() => this.#queue.complete(this.#chain!, this.#data, DONE));
    this.#data = NOTHING;
    // Of a queue that has been taken away, nothing is anybody's.
    if (isDone === undefined) return 0;
    if (!isDone || this.#slot.isForHost) return undefined;
    this.position = (this.position + 1) >>> 0;
    return this.#slot.interrupts - before;
  }
}
