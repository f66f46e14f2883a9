// Checkpoints in files: what a checkpoint has beside the domain's own state, as sections of an image, and back.

import { openImage } from '../image/image.ts';
import type { Image } from '../image/image.ts';
import { imageError } from '../image/format.ts';
import type { StateSection } from '../image/format.ts';
import { thawImage } from '../lifecycle/restore.ts';
import { saveFrozen } from '../lifecycle/save.ts';
import type { ConnectionState } from '../xenstore/connection.ts';
import { dumpNodes } from '../xenstore/dump.ts';
import type { TreeDump } from '../xenstore/dump.ts';
import type { StoreSnapshot } from '../xenstore/snapshot.ts';
import type { DomainState as StoreDomainState } from '../xenstore/store.ts';
import { checkName, checkUuid } from './domain-spec.ts';
import type { CheckpointParts } from './checkpoint.ts';
import type { DeviceState, DomainIdentity } from './guest-devices.ts';
import type { HostCore } from './host-core.ts';
import type { RestoreOptions, SaveOptions, SaveStats } from './types.ts';

const HISTORY_BYTES_MAX = 2 ** 20;
/** Where nodes of an image stand while they become a snapshot; nobody watches it. */
const SCRATCH_PATH = '/zazen-restore';

interface SavedDevices {
  readonly identity: DomainIdentity;
  readonly domainId: number;
  readonly connection: ConnectionState;
  readonly storeDomain: StoreDomainState;
  readonly domainNodes: TreeDump | null;
  readonly vmNodes: TreeDump | null;
}

/** @throws ZazenError ZAZEN_IMAGE_*; the signal's reason */
export async function saveCheckpoint(core: HostCore, parts: CheckpointParts, path: string, options: SaveOptions): Promise<SaveStats> {
  const { frozen, devices, origin } = parts;
  const { name, uuid, memoryBytes, vcpus } = origin;
  const { reference: _reference, ...stats } = await saveFrozen(core.thread.machine, {
    path, frozen, sections: deviceSections(devices, origin),
    domain: { name, uuid, memoryBytes, vcpus },
    onProgress: options.onProgress, signal: options.signal,
  });
  return stats;
}

function deviceSections(devices: DeviceState, { name, uuid, memoryBytes, vcpus }: DomainIdentity): StateSection[] {
  const dump = (nodes: StoreSnapshot | undefined): TreeDump | null => nodes === undefined ? null : dumpNodes(nodes);
  const saved: SavedDevices = {
    identity: { name, uuid, memoryBytes, vcpus },
    domainId: devices.domainId, connection: devices.connection, storeDomain: devices.storeDomain,
    domainNodes: dump(devices.domainNodes), vmNodes: dump(devices.vmNodes),
  };
  return [
    { name: 'devices', bytes: Buffer.from(JSON.stringify(saved)) },
    { name: 'devices/console-history', bytes: devices.console.history },
  ];
}

/**
 * A checkpoint as it was saved. Its origin has the name and UUID that the restored domain is to have.
 * @throws ZazenError ZAZEN_IMAGE_*, ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_STORE_*; the signal's reason
 */
export async function loadCheckpoint(core: HostCore, path: string, options: RestoreOptions): Promise<CheckpointParts> {
  const start = performance.now();
  const image = await openImage(path);
  try {
    const { devices, identity } = decodeDevices(core, image);
    const frozen = await thawImage(core.thread, image, options);
    return {
      frozen, devices, origin: { ...identity, id: devices.domainId }, family: Symbol(identity.name),
      stats: { stopMicros: 0, downtimeMicros: 0, totalMicros: (performance.now() - start) * 1000 },
    };
  } finally {
    await image.close();
  }
}

function decodeDevices(core: HostCore, image: Image): { devices: DeviceState; identity: DomainIdentity } {
  const unreadable = (cause?: unknown) => imageError('FORMAT', image.path, 'has devices that cannot be read', { cause });
  let saved: Partial<SavedDevices>;
  try {
    saved = JSON.parse(Buffer.from(image.section('devices')).toString()) as Partial<SavedDevices>;
  } catch (cause) {
    throw unreadable(cause);
  }
  const { identity, domainId, connection, storeDomain, domainNodes, vmNodes } = saved;
  const history = image.section('devices/console-history');
  const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) > 0;
  if (typeof identity?.name !== 'string' || typeof identity.uuid !== 'string' || !isCount(identity.memoryBytes)
    || !isCount(identity.vcpus) || !isCount(domainId) || connection === undefined || storeDomain === undefined
    || history.length > HISTORY_BYTES_MAX) throw unreadable();
  checkName(identity.name);
  checkUuid(identity.uuid);
  return {
    identity,
    devices: {
      domainId: domainId!, connection, storeDomain, connectionChanges: 0, ring: undefined,
      console: { history: history.slice() },
      domainNodes: snapshotOf(core, domainNodes), vmNodes: snapshotOf(core, vmNodes),
    },
  };
}

/** Nodes as the store has them, made by putting them into it for a moment. */
function snapshotOf({ store }: HostCore, dump: TreeDump | null | undefined): StoreSnapshot | undefined {
  if (dump === null || dump === undefined) return undefined;
  store.restore(SCRATCH_PATH, dump);
  try {
    return store.snapshot(SCRATCH_PATH);
  } finally {
    store.rm(SCRATCH_PATH);
  }
}
