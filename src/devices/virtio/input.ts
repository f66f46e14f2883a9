// The input device (OASIS Virtual I/O Device 1.2, 5.8): the machine's buttons. Pressing one gives the driver four events,
// the key down and up, each with a mark that what belongs together ends. What the guest then does is its own affair.

import { VIRTIO_ID, VIRTIO_STATUS } from '../../abi/emulated-devices.ts';
import { EV, KEY } from './input-config.ts';
import type { Chain, VirtQueue } from './queue.ts';
import type { VirtioModel, VirtioSlot } from './slot.ts';

const EVENT_BYTES = 8;
/** Events that a driver has not fetched; more are not kept for it. */
const WAITING_MAX = 16;
const STATUSES_PER_TURN = 64;

export class VirtioInput implements VirtioModel {
  readonly deviceId = VIRTIO_ID.input;
  readonly queueCount = 2;
  readonly features = [];
  readonly #waiting: Uint8Array[] = [];
  /** Where the first of them is to go. */
  #chain: Chain | undefined;

  /** The driver chooses what it reads there, and what it has chosen is in its registers. */
  config(): Uint8Array {
    return new Uint8Array(0);
  }
  restarted(): void {
    this.#waiting.length = 0;
    this.#chain = undefined;
  }

  /** @returns whether a driver has taken the device, and has room for it */
  press(slot: VirtioSlot, key: keyof typeof KEY): boolean {
    slot.service();
    const isDriven = (slot.status & VIRTIO_STATUS.driverOk) !== 0 && !slot.isBroken;
    if (!isDriven || this.#waiting.length + 4 > WAITING_MAX) return false;
    for (const isDown of [1, 0]) this.#waiting.push(event(EV.KEY, KEY[key], isDown), event(EV.SYN, 0, 0));
    this.#give(slot.queues[0]!);
    return true;
  }

  serve(slot: VirtioSlot): void {
    this.#give(slot.queues[0]!);
    // Lamps and sounds, of which there are none.
    for (let count = 0; count < STATUSES_PER_TURN; count++) {
      const status = slot.queues[1]!.take();
      if (status === undefined) return;
      slot.queues[1]!.complete(status);
    }
    slot.again();
  }

  #give(queue: VirtQueue): void {
    while (this.#waiting.length > 0) {
      const chain = this.#chain ?? queue.take();
      this.#chain = chain;
      if (chain === undefined || !queue.complete(chain, this.#waiting[0]!)) return;
      this.#chain = undefined;
      this.#waiting.shift();
    }
  }
}

function event(type: number, code: number, value: number): Uint8Array {
  const bytes = Buffer.alloc(EVENT_BYTES);
  bytes.writeUInt16LE(type, 0);
  bytes.writeUInt16LE(code, 2);
  bytes.writeInt32LE(value, 4);
  return bytes;
}
