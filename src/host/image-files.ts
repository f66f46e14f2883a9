// Checkpoints in files: what a checkpoint has beside the domain's own state, as sections of an image, and back.

import { VIRTIO_QUEUES_MAX, VIRTIO_QUEUE_NUM_MAX, VIRTIO_SLOTS } from '../abi/emulated-devices.ts';
import type { Image } from '../image/image.ts';
import { imageError } from '../image/format.ts';
import type { ParentReference, StateSection } from '../image/format.ts';
import { ParentImage } from '../image/parent-image.ts';
import type { DomainState } from '../lifecycle/domain-state.ts';
import { decodeState } from '../lifecycle/image-state.ts';
import { outOfMemory } from '../lifecycle/restore.ts';
import { saveFrozen } from '../lifecycle/save.ts';
import { workingSetOf } from '../lifecycle/working-set.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import { OUT_OF_FRAMES, PAGE_LOST } from '../memory/p2m.ts';
import type { ConnectionState } from '../xenstore/connection.ts';
import { dumpNodes } from '../xenstore/dump.ts';
import type { TreeDump } from '../xenstore/dump.ts';
import type { StoreSnapshot } from '../xenstore/snapshot.ts';
import type { DomainState as StoreDomainState } from '../xenstore/store.ts';
import { checkName, checkUuid } from './domain-spec.ts';
import type { CheckpointParts } from './checkpoint.ts';
import { findOldDisks, loadDisks, removeDisks, removeOldDisks, saveDisks } from './disk-images.ts';
import type { ImageDisk } from './disk-images.ts';
import type { EmulatedState } from './emulated-machine.ts';
import type { DeviceState, DomainIdentity } from './guest-devices.ts';
import { releaseDisks } from './guest-disks.ts';
import type { SavedDisk } from './guest-disks.ts';
import { parseNicStates } from './guest-nics.ts';
import type { NicState } from './guest-nics.ts';
import type { HostCore } from './host-core.ts';
import { Rehearsal } from './rehearsals.ts';
import { formatSize } from './size.ts';
import type { LoadedImage } from './loaded-images.ts';
import type { LoadOptions, SaveOptions, SaveStats } from './types.ts';

const HISTORY_BYTES_MAX = 2 ** 20;
const VIRTIO_HISTORY = 'devices/virtio-console-history';

interface SavedDevices {
  readonly identity: DomainIdentity;
  readonly domainId: number;
  readonly connection: ConnectionState;
  readonly storeDomain: StoreDomainState;
  readonly domainNodes: TreeDump | null;
  readonly vmNodes: TreeDump | null;
  /** Type hvm only; the history is in a section of its own. */
  readonly emulated?: Omit<EmulatedState, 'console'>;
  readonly disks: readonly ImageDisk[];
  readonly nics: readonly NicState[];
}

/** With the parent opened. */
export interface SaveToParent extends Omit<SaveOptions, 'parent'> {
  readonly parent?: ParentImage | undefined;
  /** Of the checkpoint that was saved as the parent, if it is held; it must be until this is over. */
  readonly parentRoot?: number | undefined;
  /** For those who only want to look at the guest's memory: without its disks, and without what makes restoring it fast. */
  readonly isDump?: boolean | undefined;
}

export interface Saved {
  readonly reference: ParentReference;
  readonly stats: SaveStats;
}

/** @throws ZazenError ZAZEN_IMAGE_*; the signal's reason */
export async function saveCheckpoint(
  core: HostCore, parts: CheckpointParts, path: string, options: SaveToParent,
): Promise<Saved> {
  const { frozen, devices, origin, family } = parts;
  const { isDump = false, parent, parentRoot, onProgress, signal } = options;
  await family.image?.completeFrozen(frozen.root, { signal });
  const { name, uuid, memoryBytes, vcpus } = origin;
  const { machine, heap } = core.thread;
  const oldDisks = findOldDisks(path);
  let rehearsal: Rehearsal | undefined;
  const workingSet = () => workingSetOf(machine, heap.frames, frozen,
    { ...(rehearsal?.end() ?? { touched: [], code: new Map() }), inTlbs: parts.hotFrames ?? new Set() }, parent === undefined);
  const disks = await saveDisks(path, devices.disks, isDump);
  const later = async () => {
    const own = deviceSections(devices, origin, disks);
    await new Promise(setImmediate);
    if (isDump) return { sections: own };
    const { sections, hotPages } = workingSet();
    return { sections: [...own, ...sections], hotPages };
  };
  try {
    const saving = saveFrozen(machine, {
      path, frozen, later, domain: { name, uuid, memoryBytes, vcpus }, parent, parentRoot, onProgress, signal,
    });
    // While the file is being opened; an incremental image is to take no time, and stores nothing twice.
    if (parent === undefined && !isDump) rehearsal = Rehearsal.begin(core, frozen);
    const { reference, ...stats } = await saving;
    await removeOldDisks(await oldDisks, disks);
    return { reference, stats };
  } catch (error) {
    await removeDisks(path, disks);
    throw error;
  } finally {
    rehearsal?.end();
  }
}

/**
 * The image that one of this guest is to build on.
 * @throws ZazenError ZAZEN_IMAGE_*; _PARENT when it is of a guest of another shape, or its chain is full
 */
export async function openParent(path: string, { memoryBytes, vcpus }: DomainIdentity): Promise<ParentImage> {
  const parent = await ParentImage.open(path);
  const { domain } = parent.header;
  if (domain['memoryBytes'] === memoryBytes && domain['vcpus'] === vcpus) return parent;
  const size = (bytes: unknown): string => typeof bytes === 'number' ? formatSize(bytes) : 'an unknown size';
  const count = (cpus: unknown): string => typeof cpus === 'number' ? String(cpus) : 'some';
  const shape = (bytes: unknown, cpus: unknown): string => `${size(bytes)} of memory and ${count(cpus)} vCPUs`;
  throw imageError('PARENT', path,
    `is of a guest with ${shape(domain['memoryBytes'], domain['vcpus'])}, and this one has ${shape(memoryBytes, vcpus)}`,
    { hint: 'take an image of the same guest, or save without a parent' });
}

function deviceSections(
  devices: DeviceState, { name, uuid, memoryBytes, vcpus }: DomainIdentity, disks: readonly ImageDisk[],
): StateSection[] {
  const dump = (nodes: StoreSnapshot | undefined): TreeDump | null => nodes === undefined ? null : dumpNodes(nodes);
  const saved: SavedDevices = {
    identity: { name, uuid, memoryBytes, vcpus },
    domainId: devices.domainId, connection: devices.connection, storeDomain: devices.storeDomain,
    domainNodes: dump(devices.domainNodes), vmNodes: dump(devices.vmNodes), disks, nics: devices.nics,
    ...(devices.emulated === undefined ? {} : { emulated: { slots: devices.emulated.slots } }),
  };
  return [
    { name: 'devices', bytes: Buffer.from(JSON.stringify(saved)) },
    { name: 'devices/console-history', bytes: devices.console.history },
    ...(devices.emulated === undefined ? [] : [{ name: VIRTIO_HISTORY, bytes: devices.emulated.console.history }]),
  ];
}

interface ImageContents {
  readonly state: DomainState;
  /** Without its disks. */
  readonly devices: DeviceState;
  readonly identity: DomainIdentity;
  readonly disks: unknown;
}
/** Many domains may be restored from one image. */
const contentsOfImages = new WeakMap<LoadedImage, ImageContents>();

function contentsOf(core: HostCore, loaded: LoadedImage): ImageContents {
  const known = contentsOfImages.get(loaded);
  if (known !== undefined) return known;
  const state = decodeState(loaded.image);
  const contents = { ...decodeDevices(core, loaded.image, state.emulated !== undefined), state };
  contentsOfImages.set(loaded, contents);
  return contents;
}

export interface LoadedCheckpoint {
  readonly parts: CheckpointParts;
  /** To be called when the checkpoint has joined the users of its image, or is given up. */
  readonly done: () => void;
}

/**
 * A checkpoint as it was saved. Its origin has the name and UUID that the restored domain is to have.
 * @throws ZazenError ZAZEN_IMAGE_*, ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_STORE_*; the signal's reason
 */
export async function loadCheckpoint(core: HostCore, path: string, options: LoadOptions): Promise<LoadedCheckpoint> {
  const start = performance.now();
  const holder = { p2mRoot: 0 };
  const image = await core.images.open(path, holder);
  const done = (): void => image.leave(holder);
  try {
    const { state, devices, identity, disks: savedDisks } = contentsOf(core, image);
    // Their files are opened while pages are read.
    const disksLoading = loadDisks(path, savedDisks);
    disksLoading.catch(() => {});
    let root = 0;
    try {
      await image.hotPagesBegun;
      if (options.lazy === false) await image.complete(options);
      readHeldPages(core, image, state);
      // A guest whose time goes on before it runs has timers to make up for, and needs pages that nobody has foreseen.
      await core.firstPcpuRuns;
      options.signal?.throwIfAborted();
      root = core.thread.p2m.share(image.root, HOST_ACCOUNT);
      if (root === 0) throw outOfMemory(path);
    } catch (error) {
      await disksLoading.then(releaseDisks, () => {});
      throw error;
    }
    let disks: SavedDisk[];
    try {
      disks = await disksLoading;
    } catch (error) {
      core.releaseRoot(root);
      throw error;
    }
    if (options.readAhead !== false) image.loadBeside();
    const parts = {
      frozen: { root, state }, devices: { ...devices, disks }, origin: { ...identity, id: devices.domainId }, family: { image },
      memoryReady: image.hotPagesLoaded,
      stats: { stopMicros: 0, downtimeMicros: 0, totalMicros: (performance.now() - start) * 1000 },
    };
    return { parts, done };
  } catch (error) {
    done();
    throw error;
  }
}

/** Pages that the hypervisor works on are there before the domain is made: what is wrong with them is said here. */
function readHeldPages({ thread }: HostCore, image: LoadedImage, { held }: DomainState): void {
  for (const { gfn, bytes } of held) {
    if (bytes !== undefined) continue;
    const mfn = thread.p2m.frameForRead(image.root, gfn);
    if (mfn === OUT_OF_FRAMES) throw outOfMemory(image.path);
    if (mfn === PAGE_LOST) throw image.lossOf(gfn) ?? outOfMemory(image.path);
    if (mfn < 0) throw imageError('FORMAT', image.path, `has no memory where the hypervisor had page ${gfn}`);
  }
}

function decodeDevices(core: HostCore, image: Image, isEmulated: boolean): Omit<ImageContents, 'state'> {
  const unreadable = (cause?: unknown) => imageError('FORMAT', image.path, 'has devices that cannot be read', { cause });
  let saved: Partial<SavedDevices>;
  try {
    saved = JSON.parse(Buffer.from(image.section('devices')).toString()) as Partial<SavedDevices>;
  } catch (cause) {
    throw unreadable(cause);
  }
  const { identity, domainId, connection, storeDomain, domainNodes, vmNodes, disks } = saved;
  const nics = parseNicStates(saved.nics ?? []);
  const history = image.section('devices/console-history');
  const snapshotOf = (dump: TreeDump | null | undefined) =>
    dump === null || dump === undefined ? undefined : core.store.snapshotOf(dump);
  const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) > 0;
  if (typeof identity?.name !== 'string' || typeof identity.uuid !== 'string' || !isCount(identity.memoryBytes)
    || !isCount(identity.vcpus) || !isCount(domainId) || connection === undefined || storeDomain === undefined || nics === undefined
    || history.length > HISTORY_BYTES_MAX) throw unreadable();
  if (isEmulated !== (saved.emulated !== undefined)) throw unreadable();
  checkName(identity.name);
  checkUuid(identity.uuid);
  return {
    identity, disks,
    devices: {
      domainId: domainId!, connection, storeDomain, connectionChanges: 0, ring: undefined, storeRoot: undefined,
      console: { history: history.slice() },
      domainNodes: snapshotOf(domainNodes), vmNodes: snapshotOf(vmNodes),
      emulated: saved.emulated && decodeEmulated(image, saved.emulated, unreadable),
      disks: [], nics, owesEvents: true,
    },
  };
}

/** Heads of requests, which are looked at as the guest's own when they are taken again. */
function decodeEmulated(image: Image, { slots }: Partial<EmulatedState>, unreadable: () => Error): EmulatedState {
  const isList = (value: unknown, max: number): value is unknown[] => Array.isArray(value) && value.length <= max;
  const isHead = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 0xffff;
  const history = image.section(VIRTIO_HISTORY);
  if (!isList(slots, VIRTIO_SLOTS) || history.length > HISTORY_BYTES_MAX
    || !slots.every((slot) => isList(slot?.inFlight, VIRTIO_QUEUES_MAX)
      && slot.inFlight.every((heads) => isList(heads, VIRTIO_QUEUE_NUM_MAX) && heads.every(isHead)))) throw unreadable();
  return { slots, console: { history: history.slice() } };
}
