// One virtio device of a domain, the host's end: what it is, in its slot of the domain's frame of devices, and its
// queues. What it does is its model's affair (entropy.ts, console.ts …). Lives in the host's thread, of a network card in the
// network thread, as long as the domain.

import {
  VIRTIO_CONFIG_BYTES, VIRTIO_F, VIRTIO_INTERRUPT, VIRTIO_QUEUES_MAX, VIRTIO_SLOT, VIRTIO_STATUS, virtioQueueAt,
} from '../../abi/emulated-devices.ts';
import { assert } from '../../base/assert.ts';
import type { DeviceFrame } from '../../hypervisor/emulated-devices.ts';
import type { GuestRam } from '../../hypervisor/guest-ram.ts';
import { VirtQueue } from './queue.ts';
import { QueueSlot } from './queue-slot.ts';

const S = VIRTIO_SLOT.at;
/** A page that could not be had is asked for again after this long. */
const RETRY_MILLIS = 20;

/** A kind of device. */
export interface VirtioModel {
  /** VIRTIO_ID. */
  readonly deviceId: number;
  readonly queueCount: number;
  /** Numbers of feature bits, beside those of the transport. */
  readonly features: readonly number[];
  /** The device's configuration space as it is now. */
  config(): Uint8Array;
  /** There may be something to do in a queue, or in any. Must return soon; `again` asks for another turn. */
  serve(slot: VirtioSlot): void;
  /** The driver has reset the device, or the domain was put back: what was begun is forgotten. */
  restarted(slot: VirtioSlot): void;
}

/** What a slot has beside its registers. */
export interface SlotState {
  /** For each queue, the heads that were taken and not completed. */
  readonly inFlight: readonly (readonly number[])[];
}

export interface VirtioSlotParts {
  /** Of this device, or of this thread; of nobody else. */
  readonly frame: DeviceFrame;
  readonly ram: GuestRam;
  readonly domid: number;
  readonly slot: number;
  /** What is done with the machine's memory; in the main thread that needs nothing around it. */
  readonly atWork?: (body: () => void) => void;
}

export class VirtioSlot extends QueueSlot {
  readonly queues: readonly VirtQueue[];
  readonly #domid: number;
  readonly #model: VirtioModel;
  #timer: NodeJS.Timeout | undefined;
  #isScheduled = false;
  #isClosed = false;
  #isHeld = false;
  /** It was to be looked at while it was held. */
  #isMissed = false;
  readonly #atWork: (body: () => void) => void;

  /** The slot is empty, or holds the registers of such a device. */
  constructor({ frame, ram, domid, slot, atWork = (body) => body() }: VirtioSlotParts, model: VirtioModel, state?: SlotState) {
    assert(model.queueCount <= VIRTIO_QUEUES_MAX, 'more queues than a slot has');
    super(frame, ram, slot);
    this.#domid = domid;
    this.#model = model;
    this.#atWork = atWork;
    this.queues = Array.from({ length: model.queueCount }, (_, i) => new VirtQueue(this, this.at + virtioQueueAt(i)));
    this.restore(state);
  }

  // ---- for queues

  override markBroken(): void {
    this.locked(() => {
      if (this.isReset || this.isBroken) return;
      this.frame.set(this.at + S.status, this.status | VIRTIO_STATUS.deviceNeedsReset);
      this.interrupt(VIRTIO_INTERRUPT.configuration);
    });
  }

  override tryLater(): void {
    if (this.#isClosed) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.service(true);
    }, RETRY_MILLIS).unref();
  }

  /** For a model that has more to do than it should do in one turn. */
  again(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      this.service(true);
    });
  }

  // ---- for the host

  /** The driver may have done something. @param always whether or not it has notified of a queue */
  service(always = false): void {
    if (this.#isHeld) this.#isMissed = true;
    else if (!this.#isClosed) this.#atWork(() => this.#service(always));
  }
  #service(always: boolean): void {
    this.#select();
    const { frame } = this;
    if (this.isReset) {
      this.resetsSeen = frame.get(this.at + S.resets);
      for (const queue of this.queues) queue.restart();
      this.#model.restarted(this);
    }
    const kicks = Atomics.exchange(frame.machine.u32, (frame.address + this.at + S.kicks) / 4, 0);
    if (kicks !== 0 || always) this.#model.serve(this);
  }

  /** Until `release` the guest's memory and the registers are somebody else's: nothing of them is used. */
  hold(): void {
    this.#isHeld = true;
  }
  get isHeld(): boolean {
    return this.#isHeld;
  }
  /** Goes on with what has come meanwhile. */
  release(): void {
    this.#isHeld = false;
    if (!this.#isMissed) return;
    this.#isMissed = false;
    this.service(true);
  }

  /** The device has changed its configuration. */
  configChanged(): void {
    this.#select();
    this.locked(() => {
      this.#writeConfig();
      this.frame.set(this.at + S.configGeneration, this.frame.get(this.at + S.configGeneration) + 1);
      if ((this.status & VIRTIO_STATUS.driverOk) !== 0) this.interrupt(VIRTIO_INTERRUPT.configuration);
    });
  }

  save(): SlotState {
    return { inFlight: this.queues.map((queue) => queue.inFlight) };
  }

  /** The registers are those that go with the state, or were never used; says in them again what the device is. */
  restore(state?: SlotState): void {
    this.#atWork(() => this.#restore(state));
  }
  #restore(state?: SlotState): void {
    this.#select();
    const { frame } = this;
    const { deviceId, queueCount, features } = this.#model;
    const set = (field: number, value: number): void => frame.set(this.at + field, value);
    const offered = [VIRTIO_F.VERSION_1, VIRTIO_F.INDIRECT_DESC, VIRTIO_F.EVENT_IDX, ...features];
    const bits = (from: number): number =>
      offered.reduce((mask, bit) => bit >= from && bit < from + 32 ? mask | 2 ** (bit - from) : mask, 0);
    set(S.deviceId, deviceId);
    set(S.queueCount, queueCount);
    set(S.featuresLow, bits(0));
    set(S.featuresHigh, bits(32));
    this.#writeConfig();
    this.resetsSeen = frame.get(this.at + S.resets);
    this.queues.forEach((queue, i) => queue.restart(state?.inFlight[i]));
    this.#model.restarted(this);
  }

  #writeConfig(): void {
    const config = this.#model.config();
    assert(config.length <= VIRTIO_CONFIG_BYTES, 'a configuration larger than the place kept for it');
    this.frame.machine.u8.set(config, this.frame.address + this.at + S.config);
  }

  /** The frame may be another one than last time. */
  #select(): void {
    assert(this.frame.select(this.#domid), 'the domain has emulated devices');
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    for (const queue of this.queues) queue.restart();
  }
}
