// A network card of a guest of type hvm: a virtio network device in a slot of its machine, with a place on a network as
// any guest's card has it. It is there from the start of the guest, because the transport knows no coming and going.

import type { NetMetrics } from '../devices/net/backend.ts';
import type { NetDeviceState } from '../devices/net/device.ts';
import { VirtioNet } from '../devices/virtio/net.ts';
import type { VirtioSlot } from '../devices/virtio/slot.ts';
import type { FramePort, GuestLink } from '../network/frame-port.ts';
import type { EmulatedMachine } from './emulated-machine.ts';

export interface VirtioNicOptions {
  readonly machine: EmulatedMachine;
  /** `00:16:3e:12:34:56`. */
  readonly mac: string;
  readonly mtuBytes: number;
  readonly attach: (link: GuestLink) => FramePort;
}

export class VirtioNic {
  readonly #model: VirtioNet;
  readonly #slot: VirtioSlot;
  readonly #port: FramePort;

  constructor({ machine, mac, mtuBytes, attach }: VirtioNicOptions) {
    const bytes = Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
    this.#model = new VirtioNet({ mac: bytes, mtuBytes, port: () => this.#port });
    this.#port = attach(this.#model.link);
    this.#slot = machine.attachNic(this.#model);
  }

  get metrics(): NetMetrics {
    return { ...this.#model.counts, notifications: this.#slot.interrupts, badIndices: 0 };
  }
  get isConnected(): boolean {
    return this.#model.isConnected;
  }

  /** Nothing in the guest can be asked. */
  askToDetach(): Promise<void> {
    return new Promise(() => {});
  }

  /** It holds no pages of the guest's between frames. */
  letGo(): void {}
  /** Its registers and queues are in the state of the domain. */
  save(): NetDeviceState {
    return { connection: undefined };
  }
  beginRestore(): void {}
  restore(): void {}

  close(): void {
    this.#slot.close();
    this.#port.close();
  }
}
