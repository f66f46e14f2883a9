// A paravirtual disk as guest and host agree on it in the store: who is there, what each can do, and in which state (Xen:
// io/xenbus.h, io/blkif.h). Both halves are below the guest's own part of the store:
//
//   /local/domain/ID/device/vbd/N      the front end's, which the guest may write
//   /local/domain/ID/backends/vbd/N    the host's, which it may read; `backend` names it by a path relative to the domain,
//                                      so that a fork, with another ID, finds its own in the same words
//
//   back end   Initialising ─► InitWait ─────────────────► Connected ─► Closing ─► Closed ─► (InitWait)
//   front end  Initialising ────────────► Initialised ───► Connected ─► Closing ─► Closed ─► (Initialising)

import { BLKIF_RING_PAGES_MAX, VDISK } from '../../abi/xen-block.ts';
import { XENBUS } from '../../abi/xenbus.ts';
import type { Clock } from '../../base/clock.ts';
import type { GuestBus } from '../../hypervisor/guest-bus.ts';
import type { Lane } from '../../lanes/lane.ts';
import type { BlockMetrics } from '../../lanes/metrics.ts';
import type { Store } from '../../xenstore/store.ts';
import { BlockBackend } from './backend.ts';
import type { RingConnection } from './backend.ts';
import type { Disk, DiskState } from './disk.ts';
import { CLUSTER_BYTES } from './layer-format.ts';
import type { RateLimits } from './rate-limit.ts';
import { INDIRECT_SEGMENTS_MAX } from './request.ts';
import type { VirtualDevice } from './vdev.ts';

const SECTOR_BYTES = 512;
const PHYSICAL_SECTOR_BYTES = 4096;
const RING_PAGE_ORDER_MAX = Math.log2(BLKIF_RING_PAGES_MAX);
const REF_MAX = 0xffff_ffff;

export interface BlockDeviceOptions {
  readonly bus: GuestBus;
  readonly store: Store;
  readonly disk: Disk;
  readonly device: VirtualDevice;
  /** Of the operator's file, for who looks into the store. */
  readonly path: string;
  readonly limits?: RateLimits | undefined;
  /** Whether the guest is offered to keep its pages granted, and to copy what it reads and writes. */
  readonly persistent?: boolean | undefined;
  readonly clock?: Clock;
  /** A place at the disk thread for the ring behind a port of the host's; undefined: there is none. */
  readonly openLane?: ((port: number) => Lane | undefined) | undefined;
  /** Of the guest that this one is a fork of, or of before the rollback. */
  readonly state?: BlockDeviceState | undefined;
  /** Resolves when that guest's memory is there; until then it does not run. Default: it is. */
  readonly memoryReady?: Promise<unknown> | undefined;
}

/** Of a paused device, beside the disk's. */
export interface BlockDeviceState {
  readonly connection: (RingConnection & { readonly guestPort: number }) | undefined;
}

export class BlockDevice {
  readonly device: VirtualDevice;
  readonly path: string;
  readonly disk: Disk;
  readonly #bus: GuestBus;
  readonly #store: Store;
  readonly #backend: BlockBackend;
  readonly #isPersistentOffered: boolean;
  readonly #openLane: (port: number) => Lane | undefined;
  #port = 0;
  #guestPort = 0;
  #unwatch: () => void = () => {};
  #isPaused = false;
  #isClosing = false;
  #isClosed = false;
  /** What is to be gone on with, as soon as whoever makes the domain has no more to do. */
  #deferred: BlockDeviceState | undefined;
  #gone = Promise.withResolvers<void>();

  constructor(options: BlockDeviceOptions) {
    const { bus, disk, limits, clock } = options;
    this.device = options.device;
    this.path = options.path;
    this.disk = disk;
    this.#bus = bus;
    this.#store = options.store;
    this.#isPersistentOffered = options.persistent ?? false;
    this.#openLane = options.openLane ?? (() => undefined);
    this.#backend = new BlockBackend({
      disk, limits, ...(clock === undefined ? {} : { clock }),
      guest: {
        memory: bus.memory, map: (ref, write) => bus.map(ref, write), unmap: (page) => bus.unmap(page),
        notify: () => { if (this.#port > 0) bus.notify(this.#port); },
      },
    });
    if (options.state === undefined) {
      this.#introduce();
      this.#watchFront();
    } else {
      // Its ring may have to be read from an image: the guest can run meanwhile, and who waits for it goes on.
      this.#deferred = options.state;
      const settleSoon = (): void => void setImmediate(() => this.#settle());
      if (options.memoryReady === undefined) settleSoon();
      else void options.memoryReady.then(settleSoon);
    }
  }
  #watchFront(): void {
    this.#unwatch = this.#store.watch(`${this.#frontPath}/state`, () => this.#frontChanged(), { depth: 0 });
  }

  get metrics(): BlockMetrics {
    return this.#backend.metrics;
  }
  /** What the guest has agreed to; no pages: it has not connected. */
  get agreed(): { readonly ringPages: number; readonly persistentGrants: boolean } {
    return this.#backend.agreed;
  }
  get #frontPath(): string {
    return `/local/domain/${this.#bus.domainId}/device/vbd/${this.device.number}`;
  }
  get #backPath(): string {
    return `/local/domain/${this.#bus.domainId}/${this.#relativeBackPath}`;
  }
  get #relativeBackPath(): string {
    return `backends/vbd/${this.device.number}`;
  }

  // ---- the store ----------------------------------------------------------------------------------------------------

  #introduce(): void {
    const { domainId } = this.#bus;
    const { isReadOnly, canDiscard } = this.disk;
    const front = {
      backend: this.#relativeBackPath, 'backend-id': 0, state: XENBUS.initialising, 'virtual-device': this.device.number,
      'device-type': 'disk', 'event-channel': '',
    };
    const back = {
      frontend: this.#frontPath, 'frontend-id': domainId, online: 1, removable: 0, bootable: 1, dev: this.device.name,
      type: 'phy', mode: isReadOnly ? 'r' : 'w', 'device-type': 'disk', params: this.path, 'hotplug-status': 'connected',
      'feature-flush-cache': 1, 'feature-barrier': 1, 'feature-persistent': this.#isPersistentOffered ? 1 : 0,
      'feature-max-indirect-segments': INDIRECT_SEGMENTS_MAX, 'max-ring-page-order': RING_PAGE_ORDER_MAX,
      'feature-discard': canDiscard ? 1 : 0,
      ...(canDiscard ? { 'discard-granularity': CLUSTER_BYTES, 'discard-alignment': 0, 'discard-secure': 0 } : {}),
      ...this.#shape(), state: XENBUS.initWait,
    };
    this.#store.transaction((view) => {
      const write = (base: string, permissions: readonly string[], entries: Record<string, string | number>) => {
        view.write(base, '');
        view.setPerms(base, permissions);
        for (const [name, value] of Object.entries(entries)) {
          if (value !== '') view.write(`${base}/${name}`, String(value));
        }
      };
      // The front end's entries are made first: a guest that hears of the back end finds both.
      write(this.#backPath, ['n0', `r${domainId}`], back);
      write(this.#frontPath, [`n${domainId}`], front);
    });
  }

  #shape(): Record<string, number> {
    return {
      'sector-size': SECTOR_BYTES, 'physical-sector-size': PHYSICAL_SECTOR_BYTES,
      sectors: this.disk.sizeBytes / SECTOR_BYTES, info: this.disk.isReadOnly ? VDISK.readonly : 0,
    };
  }

  #setState(state: number): void {
    const path = `${this.#backPath}/state`;
    if (this.#store.read(path) !== String(state)) this.#store.write(path, String(state));
  }
  #readNumber(name: string): number | undefined {
    const text = this.#store.read(`${this.#frontPath}/${name}`)?.trim();
    return text !== undefined && /^\d{1,10}$/.test(text) && Number(text) <= REF_MAX ? Number(text) : undefined;
  }

  #frontChanged(): void {
    // While paused the store may be being put back; `resume` looks again.
    if (this.#isPaused || this.#isClosed) return;
    // A device whose nodes the guest has removed has been given up by it.
    const state = this.#readNumber('state') ?? XENBUS.closed;
    if (state === XENBUS.initialised || (state === XENBUS.connected && this.#port === 0)) this.#connect();
    else if (state === XENBUS.closing) this.#frontClosing();
    else if (state === XENBUS.closed) this.#frontClosed();
    else if (state === XENBUS.initialising && !this.#isClosing && this.#port === 0) this.#setState(XENBUS.initWait);
  }

  #connect(): void {
    if (this.#port > 0 || this.#isClosing) return;
    const ringRefs = this.#readRingRefs();
    const guestPort = this.#readNumber('event-channel');
    const protocol = this.#store.read(`${this.#frontPath}/protocol`) ?? 'arm-abi';
    if (ringRefs === undefined || guestPort === undefined || protocol !== 'arm-abi') return this.#refuse('the front end has no ring');
    const isPersistent = this.#isPersistentOffered && this.#readNumber('feature-persistent') === 1;
    const isUsable = this.#backend.connect({ ringRefs, isPersistent, position: 0 }) && this.#bind(guestPort);
    if (!isUsable) return this.#refuse('the ring or its port cannot be used');
    for (const [name, value] of Object.entries(this.#shape())) this.#store.write(`${this.#backPath}/${name}`, String(value));
    this.#setState(XENBUS.connected);
    if (!this.#isPaused) this.#backend.service();
  }

  #readRingRefs(): number[] | undefined {
    const order = this.#readNumber('ring-page-order');
    if (order === undefined) {
      const ref = this.#readNumber('ring-ref');
      return ref === undefined ? undefined : [ref];
    }
    if (order > RING_PAGE_ORDER_MAX) return undefined;
    // A ring of one page may be named either way.
    const refs = Array.from({ length: 2 ** order }, (_, i) => this.#readNumber(`ring-ref${i}`) ?? (order === 0 ? this.#readNumber('ring-ref') : undefined));
    return refs.every((ref) => ref !== undefined) ? refs : undefined;
  }

  /** For the back end's connection, which ends if the port is none. */
  #bind(guestPort: number): boolean {
    const port = this.#bus.bind(guestPort, () => this.#backend.service());
    if (port <= 0) {
      this.#backend.disconnect();
      return false;
    }
    this.#port = port;
    this.#guestPort = guestPort;
    const lane = this.#openLane(port);
    if (lane !== undefined) this.#backend.useLane(lane);
    return true;
  }

  #refuse(why: string): void {
    this.#store.write(`${this.#backPath}/error`, why);
    this.#setState(XENBUS.closed);
  }

  #drop(): void {
    this.#backend.disconnect();
    if (this.#port > 0) this.#bus.close(this.#port);
    this.#port = 0;
  }

  #frontClosing(): void {
    this.#drop();
    this.#setState(XENBUS.closing);
  }

  #frontClosed(): void {
    this.#drop();
    this.#setState(XENBUS.closed);
    if (this.#isClosing) this.#gone.resolve();
  }

  // ---- the operator -------------------------------------------------------------------------------------------------

  /** Tells the guest of another size; a front end that is connected looks again. @throws ZazenError ZAZEN_DISK_* */
  async resize(sizeBytes: number): Promise<void> {
    this.#settle();
    await this.#backend.pause();
    try {
      await this.disk.resize(sizeBytes);
    } finally {
      if (!this.#isPaused) this.#backend.resume();
    }
    this.#store.write(`${this.#backPath}/sectors`, String(this.disk.sizeBytes / SECTOR_BYTES));
    // The same state once more makes a front end look.
    if (this.#port > 0) this.#store.write(`${this.#backPath}/state`, String(XENBUS.connected));
  }

  setLimits(limits: RateLimits): void {
    this.#backend.setLimits(limits);
  }

  /** Asks the guest to let go of the disk. Resolves when it has; the device can still be closed when it never does. */
  askToDetach(): Promise<void> {
    this.#settle();
    this.#isClosing = true;
    this.#store.write(`${this.#backPath}/online`, '0');
    if (this.#port > 0) this.#setState(XENBUS.closing);
    else this.#gone.resolve();
    return this.#gone.promise;
  }

  /**
   * Ends the device, and the disk when its last request has.
   * @param entries what the store says of it goes, too
   */
  async close(entries: 'keep' | 'remove'): Promise<void> {
    this.#unwatch();
    this.#isClosed = this.#isClosing = true;
    this.#drop();
    this.#gone.resolve();
    if (entries === 'remove') for (const path of [this.#frontPath, this.#backPath]) this.#store.rm(path);
    await this.#backend.pause();
    await this.disk.close();
  }

  // ---- checkpoints --------------------------------------------------------------------------------------------------

  /** Resolves when no request is under way and none will be begun. Guests may go on putting requests into the ring. */
  async pause(): Promise<void> {
    this.#settle();
    this.#isPaused = true;
    await this.#backend.pause();
    await this.disk.quiesce();
  }
  /** Gives back all pages of the guest, so that its memory can be frozen. While paused. */
  letGo(): void {
    this.#backend.letGo();
  }
  resume(): void {
    this.#isPaused = false;
    this.disk.resume();
    this.#backend.resume();
    this.#frontChanged();
  }

  /** While paused. */
  save(): BlockDeviceState {
    const connection = this.#backend.save();
    return { connection: connection && { ...connection, guestPort: this.#guestPort } };
  }

  /** The guest's memory and the store are as they were when `state` was taken, and its port waits for the host. While paused. */
  restore(state: BlockDeviceState, disk: DiskState): void {
    this.disk.restore(disk);
    this.#drop();
    this.#isClosing = false;
    this.#goOn(state);
  }

  /** Does now what was put off, if it was. */
  #settle(): void {
    const state = this.#deferred;
    if (state === undefined || this.#isClosed) return;
    this.#deferred = undefined;
    // A fork's entries are its original's, with that one's number in them.
    this.#store.write(`${this.#backPath}/frontend`, this.#frontPath);
    this.#store.write(`${this.#backPath}/frontend-id`, String(this.#bus.domainId));
    this.#goOn(state);
    // Which looks at once.
    this.#watchFront();
  }

  #goOn({ connection }: BlockDeviceState): void {
    if (connection === undefined) return;
    this.#backend.goOn(connection);
    if (!this.#bind(connection.guestPort)) return this.#refuse('its event channel cannot be used any more');
    // An event of before may have been on its way, in either direction.
    this.#bus.notify(this.#port);
    if (!this.#isPaused) this.#backend.service();
  }
}
