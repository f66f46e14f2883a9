// A disk of a guest of type hvm: a virtio block device in a slot of its machine, on a disk as any guest has it. It is
// there from the start of the guest, because the transport knows no coming and going.

import type { Clock } from '../base/clock.ts';
import { takeBuffer } from '../devices/block/buffers.ts';
import type { BlockMetrics } from '../devices/block/backend.ts';
import type { BlockDevice, BlockDeviceState } from '../devices/block/device.ts';
import type { Disk, DiskState } from '../devices/block/disk.ts';
import { RateLimit } from '../devices/block/rate-limit.ts';
import type { RateLimits } from '../devices/block/rate-limit.ts';
import type { VirtualDevice } from '../devices/block/vdev.ts';
import { VirtioBlock } from '../devices/virtio/block.ts';
import type { VirtioSlot } from '../devices/virtio/slot.ts';
import type { EmulatedMachine } from './emulated-machine.ts';

export interface VirtioDiskOptions {
  readonly machine: EmulatedMachine;
  readonly disk: Disk;
  readonly device: VirtualDevice;
  readonly path: string;
  readonly limits: RateLimits;
  readonly clock: Clock;
}

export class VirtioDisk {
  readonly device: VirtualDevice;
  readonly path: string;
  readonly disk: Disk;
  readonly #model: VirtioBlock;
  readonly #slot: VirtioSlot;

  constructor({ machine, disk, device, path, limits, clock }: VirtioDiskOptions) {
    const limit = new RateLimit(limits, clock);
    this.device = device;
    this.path = path;
    this.disk = disk;
    this.#model = new VirtioBlock({
      disk, id: device.name, takeBuffer, nowNanos: () => clock.monotonicNanos(),
      limit: {
        delayMillis: () => limit.delayMillis(),
        take: (sizeBytes) => {
          limit.takeRequest();
          limit.takeBytes(sizeBytes);
        },
      },
    });
    this.#slot = machine.attachDisk(this.#model);
  }

  get metrics(): BlockMetrics {
    return { ...this.#model.counts, notifications: this.#slot.interrupts, badIndices: 0, byDiskThread: 0, byVcpus: 0 };
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
    await this.disk.resize(sizeBytes);
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
