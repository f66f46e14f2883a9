// The entropy device (OASIS Virtual I/O Device 1.2, 5.4): fills what the driver gives it with the host's randomness.

import { VIRTIO_ID } from '../../abi/emulated-devices.ts';
import type { Random } from '../../base/random.ts';
import type { Chain } from './queue.ts';
import type { VirtioModel, VirtioSlot } from './slot.ts';

/** A driver that asks for more gets so much at a time. */
const REQUEST_MAX_BYTES = 1024;
const REQUESTS_PER_TURN = 64;

export class VirtioEntropy implements VirtioModel {
  readonly deviceId = VIRTIO_ID.entropy;
  readonly queueCount = 1;
  readonly features = [];
  readonly #random: Random;
  /** One that is to be answered again, since a page could not be had. */
  #pending: Chain | undefined;

  constructor(random: Random) {
    this.#random = random;
  }

  config(): Uint8Array {
    return new Uint8Array(0);
  }
  restarted(): void {
    this.#pending = undefined;
  }

  serve(slot: VirtioSlot): void {
    const queue = slot.queues[0]!;
    for (let count = 0; count < REQUESTS_PER_TURN; count++) {
      const chain = this.#pending ?? queue.take();
      this.#pending = undefined;
      if (chain === undefined) return;
      const sizeBytes = Math.min(chain.writableBytes, REQUEST_MAX_BYTES);
      const words = Uint32Array.from({ length: sizeBytes / 4 + 1 }, () => this.#random.u32());
      const bytes = new Uint8Array(words.buffer, 0, sizeBytes);
      if (!queue.complete(chain, bytes)) {
        this.#pending = chain;
        return;
      }
    }
    slot.again();
  }
}
