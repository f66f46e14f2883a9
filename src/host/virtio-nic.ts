// A network card of a guest of type hvm, as the host's main thread has it: a slot of the machine whose queues the network
// thread serves (network-service.ts). It is there from the start of the guest, because the transport knows no coming and going.
// Notifications go to that thread straight away; what else the driver does in the slot's registers it is told from here.

import { DOMAIN, HOST_LISTENER } from '../abi/domain-record.ts';
import { VIRTIO_SLOT, VIRTIO_STATUS, virtioSlotAt } from '../abi/emulated-devices.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import type { NetDeviceState } from '../devices/net/device.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { notifyHostOf } from '../hypervisor/event-delivery.ts';
import type { MachineSlot } from './emulated-machine.ts';
import type { HostCard } from './networks.ts';

const S = VIRTIO_SLOT.at;

export interface VirtioNicOptions {
  readonly card: HostCard;
  readonly slot: number;
  readonly record: DomainRecord;
  /** Of domain 0. */
  readonly host: DomainRecord;
}

export class VirtioNic {
  readonly #card: HostCard;
  readonly #slot: number;
  readonly #record: DomainRecord;
  readonly #host: DomainRecord;
  /** What the driver had done when the network thread was last told. */
  #seen = '';

  constructor({ card, slot, record, host }: VirtioNicOptions) {
    this.#card = card;
    this.#slot = slot;
    this.#record = record;
    this.#host = host;
  }

  #register(field: number): number {
    const { u32 } = this.#record.memory;
    return u32[(this.#record.get(DOMAIN.at.emulated) * FRAME_BYTES + virtioSlotAt(this.#slot) + field) / 4]!;
  }
  get isConnected(): boolean {
    return (this.#register(S.status) & VIRTIO_STATUS.driverOk) !== 0;
  }

  /** What the machine has of it. */
  get inSlot(): MachineSlot {
    return {
      service: (always) => this.#service(always === true),
      save: () => this.#card.held!.slot!,
      restore: (state) => this.#card.restoreSlot(state),
      // It goes with its place on the network.
      close: () => {},
    };
  }
  #service(always: boolean): void {
    if (always) return this.#card.serveSlots(this.#record.domid);
    const now = `${this.#register(S.status)} ${this.#register(S.resets)}`;
    if (now === this.#seen) return;
    this.#seen = now;
    notifyHostOf(this.#host, this.#record.domid, HOST_LISTENER.network);
  }

  /** Nothing in the guest can be asked. */
  askToDetach(): Promise<void> {
    return new Promise(() => {});
  }

  /** Its registers and queues are in the state of the domain. */
  save(): NetDeviceState {
    return { connection: undefined };
  }
  beginRestore(): void {}
  restore(): void {}

  close(): void {
    this.#card.close();
  }
}
