// A disk of a guest of type hvm: a virtio block device in a slot of its machine, on a disk as any guest has it. It is
// there from the start of the guest, because the transport knows no coming and going.

import type { Clock } from '../base/clock.ts';
import type { BlockDevice, BlockDeviceState } from '../devices/block/device.ts';
import type { Disk, DiskState } from '../devices/block/disk.ts';
import { RateLimit } from '../devices/block/rate-limit.ts';
import type { RateLimits } from '../devices/block/rate-limit.ts';
import type { VirtualDevice } from '../devices/block/vdev.ts';
import { VirtioBlock } from '../devices/virtio/block.ts';
import type { VirtioSlot } from '../devices/virtio/slot.ts';
import { takeBuffer } from '../lanes/buffers.ts';
import type { Lane } from '../lanes/lane.ts';
import type { BlockMetrics } from '../lanes/metrics.ts';
import type { EmulatedMachine } from './emulated-machine.ts';

export interface VirtioDiskOptions {
  readonly machine: EmulatedMachine;
  readonly disk: Disk;
  readonly device: VirtualDevice;
  readonly path: string;
  readonly limits: RateLimits;
  readonly clock: Clock;
  /** A place at the disk thread for the queue in a slot; undefined: there is none. */
  readonly openLane: (slot: number) => Lane | undefined;
}

export class VirtioDisk {
  readonly device: VirtualDevice;
  readonly path: string;
  readonly disk: Disk;
  readonly #model: VirtioBlock;
  readonly #slot: VirtioSlot;

  constructor({ machine, disk, device, path, limits, clock, openLane }: VirtioDiskOptions) {
    const limit = new RateLimit(limits, clock);
    this.device = device;
    this.path = path;
    this.disk = disk;
    this.#model = new VirtioBlock({
      disk, id: device.name, takeBuffer, clock,
      limit: {
        delayMillis: () => limit.delayMillis(),
        take: (sizeBytes) => {
          limit.takeRequest();
          limit.takeBytes(sizeBytes);
        },
      },
    });
    this.#slot = machine.attachDisk(this.#model);
    // Of limits, who looks after lanes knows nothing.
    const lane = limit.isLimited ? undefined : openLane(this.#slot.number);
    if (lane !== undefined) this.#model.useLane(lane);
  }

  get metrics(): BlockMetrics {
    const { counts } = this.#model;
    return { ...counts, notifications: counts.notifications + this.#slot.interrupts };
  }

  get agreed(): BlockDevice['agreed'] {
    return { ringPages: 0, persistentGrants: false };
  }

  async pause(): Promise<void> {
    await this.#model.pause();
    await this.disk.quiesce();
  }
  /** It holds no pages of the guest's between requests. */
  letGo(): void {}
  resume(): void {
    this.disk.resume();
    this.#model.resume();
  }

  /** Its registers and queues are in the state of the domain. */
  save(): BlockDeviceState {
    return { connection: undefined };
  }
  restore(_state: BlockDeviceState, disk: DiskState): void {
    this.disk.restore(disk);
  }

  async resize(sizeBytes: number): Promise<void> {
    await this.#model.pause();
    try {
      await this.disk.resize(sizeBytes);
    } finally {
      this.#model.resume();
    }
    this.#slot.configChanged();
  }

  /** Nothing in the guest can be asked. */
  askToDetach(): Promise<void> {
    return new Promise(() => {});
  }

  async close(): Promise<void> {
    this.#model.close();
    this.#slot.close();
    await this.#model.pause();
    await this.disk.close();
  }
}
