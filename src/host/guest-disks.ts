// The disks of one domain: opened, attached, and taken along by checkpoint, rollback, fork and image.
//
// A checkpoint needs the guest's memory to itself, and the disks as they are at the same moment: `quiesced` ends all
// requests under way (the guest runs on, and what it asks meanwhile waits in its rings), gives its pages back, and does the
// work. They are mapped again as the disks go on.

import { resolve } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { BlockDevice } from '../devices/block/device.ts';
import type { BlockDeviceState } from '../devices/block/device.ts';
import { Disk } from '../devices/block/disk.ts';
import type { DiskState } from '../devices/block/disk.ts';
import { openDisk } from '../devices/block/open-disk.ts';
import { freeDevice, virtualDevice } from '../devices/block/vdev.ts';
import type { VirtualDevice } from '../devices/block/vdev.ts';
import { DomainBus } from '../hypervisor/guest-bus.ts';
import type { EmulatedMachine } from './emulated-machine.ts';
import type { HostCore } from './host-core.ts';
import type { DiskSpec, DiskStats } from './types.ts';
import { VirtioDisk } from './virtio-disk.ts';

export interface OpenedDisk {
  readonly device: VirtualDevice;
  readonly spec: DiskSpec;
  readonly disk: Disk;
}

/** A disk as part of a checkpoint. Whoever holds it releases the disk's state. */
export interface SavedDisk {
  readonly device: VirtualDevice;
  readonly spec: DiskSpec;
  readonly state: BlockDeviceState;
  readonly disk: DiskState;
}

/** Chooses names for disks that have none. @throws ZazenError ZAZEN_DISK_SPEC */
function devicesFor(specs: readonly DiskSpec[], attached: Iterable<number>): VirtualDevice[] {
  const taken = new Set(attached);
  const devices = specs.map(({ target }) => (target === undefined ? undefined : virtualDevice(target)));
  const claim = (device: VirtualDevice): VirtualDevice => {
    if (taken.has(device.number)) throw new ZazenError('ZAZEN_DISK_SPEC', `two disks are to be ${device.name}`);
    taken.add(device.number);
    return device;
  };
  for (const device of devices) if (device !== undefined) claim(device);
  return devices.map((device) => device ?? claim(freeDevice(taken)));
}

/** All at once; if one cannot be opened, none stays open. @throws ZazenError ZAZEN_DISK_* */
export async function openDisks(specs: readonly DiskSpec[], attached: Iterable<number> = []): Promise<OpenedDisk[]> {
  const devices = devicesFor(specs, attached);
  const opened = await Promise.allSettled(specs.map(async (given, i): Promise<OpenedDisk> => {
    const spec = { ...given, path: resolve(given.path), target: devices[i]!.name };
    return { device: devices[i]!, spec, disk: await openDisk({
      path: spec.path, format: spec.format, isReadOnly: spec.readOnly, mayDiscard: spec.discard,
    }) };
  }));
  const failed = opened.find((result) => result.status === 'rejected');
  const disks = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  if (failed === undefined) return disks;
  await closeDisks(disks);
  throw failed.reason;
}

export async function closeDisks(disks: readonly OpenedDisk[]): Promise<void> {
  await Promise.allSettled(disks.map(({ disk }) => disk.close()));
}

/** Resolves when layers that only they needed have been put away. */
export async function releaseDisks(saved: readonly SavedDisk[]): Promise<void> {
  await Promise.all(saved.map(({ disk }) => disk.release()));
}

/** A paravirtual one, or the like for a machine with emulated devices. */
type DiskDevice = Pick<BlockDevice, 'device' | 'path' | 'disk' | 'metrics' | 'agreed' | 'pause' | 'letGo' | 'resume' | 'save'
  | 'restore' | 'askToDetach' | 'close' | 'resize'>;

/** A virtio-mmio transport cannot say that a slot has been filled or emptied (docs/hvm.md). */
export function hvmFixed(devices: string): ZazenError {
  return new ZazenError('ZAZEN_HVM_FIXED', `${devices} of a guest of type hvm neither come nor go while it runs`,
    { hint: 'name them when the guest is created, or create it with type pvh' });
}

/** That a domain begins with. */
interface FirstDisks {
  readonly opened: readonly OpenedDisk[];
  /** Of the domain that it is a fork of; and when that one's memory is there, if it is not yet. */
  readonly saved: readonly SavedDisk[];
  readonly memoryReady?: Promise<unknown> | undefined;
}

interface Attached {
  readonly device: DiskDevice;
  readonly spec: DiskSpec;
}

export class GuestDisks {
  readonly #core: HostCore;
  readonly #bus: DomainBus;
  readonly #attached = new Map<number, Attached>();
  readonly #machine: EmulatedMachine | undefined;
  #turn: Promise<unknown> = Promise.resolve();
  #isClosed = false;

  /** @param machine of a domain of type hvm */
  constructor(core: HostCore, domainId: number, { opened, saved, memoryReady }: FirstDisks, machine?: EmulatedMachine) {
    this.#core = core;
    this.#machine = machine;
    this.#bus = new DomainBus(core.thread, core.ports, domainId);
    for (const disk of opened) this.#add(disk, undefined);
    for (const disk of saved) this.#add({ ...disk, disk: Disk.fork(disk.disk) }, disk.state, memoryReady);
  }

  #add({ device, spec, disk }: OpenedDisk, state: BlockDeviceState | undefined, memoryReady?: Promise<unknown>): void {
    const { store, thread: { clock } } = this.#core;
    const machine = this.#machine;
    const { domainId: domid } = this.#bus;
    const openLane = (end: { port: number } | { slot: number }) => this.#core.diskThread.openLane({ domid, ...end });
    const limits = { bytesPerSecond: spec.bytesPerSecond, requestsPerSecond: spec.requestsPerSecond };
    this.#attached.set(device.number, {
      spec,
      device: machine !== undefined ? new VirtioDisk({
        machine, disk, device, path: spec.path, limits, clock, openLane: (slot) => openLane({ slot }),
      })
        : new BlockDevice({
          bus: this.#bus, store, disk, device, path: spec.path, state, memoryReady, persistent: spec.persistentGrants, limits,
          openLane: (port) => openLane({ port }),
        }),
    });
  }

  get isEmpty(): boolean {
    return this.#attached.size === 0;
  }

  #find(target: string): Attached {
    const { number } = virtualDevice(target);
    const found = this.#attached.get(number);
    if (found !== undefined) return found;
    throw new ZazenError('ZAZEN_DISK_NOT_ATTACHED', `the domain has no disk ${target}`);
  }

  // ---- standing still -----------------------------------------------------------------------------------------------

  /** Does work that needs every page of the guest's, with the disks at rest; one after the other. */
  quiesced<T>(work: () => T): Promise<T> {
    return this.#inTurn(async () => {
      const devices = [...this.#attached.values()].map(({ device }) => device);
      try {
        await Promise.all(devices.map((device) => device.pause()));
        for (const device of devices) device.letGo();
        return work();
      } finally {
        for (const device of devices) device.resume();
      }
    });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => {});
    return done;
  }

  /** When quiesced. */
  save(): SavedDisk[] {
    return [...this.#attached.values()].map(({ device, spec }) =>
      ({ device: device.device, spec, state: device.save(), disk: device.disk.freeze() }));
  }

  /** When quiesced, and memory and store are as they were. Disks that were attached since go; detached ones come back. */
  restore(saved: readonly SavedDisk[]): void {
    const wanted = new Map(saved.map((disk) => [disk.device.number, disk]));
    for (const [number, { device }] of this.#attached) {
      if (wanted.has(number)) continue;
      this.#attached.delete(number);
      this.#closeLater(device);
    }
    for (const [number, disk] of wanted) {
      const attached = this.#attached.get(number);
      if (attached === undefined) this.#add({ ...disk, disk: Disk.fork(disk.disk) }, disk.state);
      else attached.device.restore(disk.state, disk.disk);
    }
  }

  #closeLater(device: DiskDevice): void {
    device.close('keep').catch((error: unknown) => {
      this.#core.log(error instanceof Error ? error.message : String(error));
    });
  }

  #assertPluggable(): void {
    if (this.#machine === undefined) return;
    throw hvmFixed('disks');
  }

  // ---- coming and going ---------------------------------------------------------------------------------------------

  /** @throws ZazenError ZAZEN_DISK_* */
  attach(spec: DiskSpec): Promise<string> {
    this.#assertPluggable();
    return this.#inTurn(async () => {
      const [opened] = await openDisks([spec], this.#attached.keys());
      if (this.#isClosed) {
        await closeDisks([opened!]);
        throw new ZazenError('ZAZEN_DOMAIN_GONE', 'the domain has been destroyed');
      }
      this.#add(opened!, undefined);
      return opened!.device.name;
    });
  }

  /** @throws ZazenError ZAZEN_DISK_NOT_ATTACHED; _BUSY when the guest does not let go in time */
  async detach(target: string, { timeoutMillis, force }: { timeoutMillis: number; force: boolean }): Promise<void> {
    const { device } = this.#find(target);
    this.#assertPluggable();
    const timeout = Promise.withResolvers<'late'>();
    const timer = setTimeout(() => timeout.resolve('late'), timeoutMillis);
    const answer = await Promise.race([device.askToDetach(), timeout.promise]);
    clearTimeout(timer);
    if (answer === 'late' && !force) {
      throw new ZazenError('ZAZEN_DISK_BUSY', `the guest does not let go of ${target}`, { hint: 'unmount it in the guest, or detach it by force' });
    }
    await this.#inTurn(async () => {
      if (this.#attached.get(device.device.number)?.device !== device) return;
      this.#attached.delete(device.device.number);
      await device.close('remove');
    });
  }

  resize(target: string, sizeBytes: number): Promise<void> {
    return this.#inTurn(() => this.#find(target).device.resize(sizeBytes));
  }

  stats(): DiskStats[] {
    return [...this.#attached.values()].map(({ device, spec }) => {
      const { disk, metrics } = device;
      const { latencyMicrosSum, ...counts } = metrics;
      const requests = metrics.reads + metrics.writes + metrics.flushes + metrics.discards;
      return {
        target: device.device.name, device: device.device.number, path: spec.path, sizeBytes: disk.sizeBytes,
        readOnly: disk.isReadOnly, lasting: disk.isLasting, direct: disk.isDirect, discard: disk.canDiscard,
        ...device.agreed,
        layers: disk.files().map(({ path }) => path), ...counts,
        latencyMicrosMean: requests === 0 ? 0 : latencyMicrosSum / requests,
      };
    });
  }

  /** The domain is gone. Resolves when all that it wrote is where it belongs. */
  async close(): Promise<void> {
    const devices = [...this.#attached.values()].map(({ device }) => device);
    this.#attached.clear();
    this.#isClosed = true;
    const closed = await Promise.allSettled(devices.map((device) => device.close('keep')));
    for (const result of closed) if (result.status === 'rejected') this.#core.log(String((result.reason as Error).message));
  }
}
