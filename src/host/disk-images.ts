// The disks of a saved guest. An image has with it what may change: for each disk that the guest can write to, a layer file
// beside the image with all that any file held that the guest, or another one, might write to later. What no disk may write
// to, it names, and knows it again by what a layer knows its backing by.
//
//   web.core                        the image: guest, and of each disk name, ring and file
//   web.core.xvda.1a2b3c4d.layer    contents of xvda; may lie on a file that was opened for reading only

import { randomBytes } from 'node:crypto';
import { readdir, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { referenceTo } from '../devices/block/chain.ts';
import { copyState, writtenOn } from '../devices/block/copying.ts';
import type { BlockDeviceState } from '../devices/block/device.ts';
import { diskError } from '../devices/block/errors.ts';
import { Layer } from '../devices/block/layer.ts';
import { openState } from '../devices/block/open-disk.ts';
import { virtualDevice } from '../devices/block/vdev.ts';
import type { SavedDisk } from './guest-disks.ts';
import { releaseDisks } from './guest-disks.ts';
import type { DiskSpec } from './types.ts';

/** As JSON in the image. */
export interface ImageDisk {
  readonly spec: DiskSpec;
  readonly state: BlockDeviceState;
  /** Undefined: left out, as of a core dump. */
  readonly file: ImageDiskFile | undefined;
}

interface ImageDiskFile {
  /** Of a layer that belongs to the image: relative to its folder. */
  readonly path: string;
  readonly kind: 'raw' | 'layer';
  readonly uuid?: string;
  readonly sizeBytes?: number;
  /** Decimal. */
  readonly modifiedNanos?: string;
}

const RING_PAGES_MAX = 16;
const layerName = /^(?:xvd|sd|hd)[a-z]{1,2}\d{0,2}\.[0-9a-f]{8}\.layer$/;

/** @throws ZazenError ZAZEN_DISK_* */
export async function saveDisks(imagePath: string, saved: readonly SavedDisk[], isLeftOut: boolean): Promise<ImageDisk[]> {
  const disks: ImageDisk[] = [];
  try {
    for (const disk of saved) {
      const file = isLeftOut ? undefined : await (disk.disk.isReadOnly ? nameDisk(disk) : writeDisk(imagePath, disk));
      disks.push({ spec: disk.spec, state: disk.state, file });
    }
    return disks;
  } catch (error) {
    await removeDisks(imagePath, disks);
    throw error;
  }
}

async function nameDisk({ spec, disk }: SavedDisk): Promise<ImageDiskFile> {
  const reference = await referenceTo(disk.node.store, '/');
  return reference.kind === 'layer' ? { kind: 'layer', path: spec.path, uuid: reference.uuid }
    : { kind: 'raw', path: spec.path, sizeBytes: reference.sizeBytes, modifiedNanos: String(reference.modifiedNanos) };
}

async function writeDisk(imagePath: string, { device, disk }: SavedDisk): Promise<ImageDiskFile> {
  const path = `${imagePath}.${device.name}.${randomBytes(4).toString('hex')}.layer`;
  const basis = writtenOn(disk.node);
  const backing = basis && await referenceTo(basis.store, dirname(path));
  const layer = await Layer.create(path, { sizeBytes: disk.sizeBytes, backing });
  try {
    await copyState(disk, layer, basis);
    await layer.close();
    return { kind: 'layer', path: basename(path), uuid: layer.header.uuid };
  } catch (error) {
    await layer.file.close();
    await unlink(path).catch(() => {});
    throw error;
  }
}

/** Of an image that was not written after all. */
export async function removeDisks(imagePath: string, disks: readonly ImageDisk[]): Promise<void> {
  for (const { spec, file } of disks) {
    if (file !== undefined && !(spec.readOnly ?? false)) await unlink(join(dirname(imagePath), file.path)).catch(() => {});
  }
}

/** Layers of the image that has this name before a new one gets it. */
export async function findOldDisks(imagePath: string): Promise<string[]> {
  const start = `${basename(imagePath)}.`;
  const names = await readdir(dirname(imagePath)).catch((): string[] => []);
  return names.filter((name) => name.startsWith(start) && layerName.test(name.slice(start.length)))
    .map((name) => join(dirname(imagePath), name));
}

/** @param old as `findOldDisks` has found them; those of the new image are not among what goes */
export async function removeOldDisks(old: readonly string[], disks: readonly ImageDisk[]): Promise<void> {
  const used = new Set(disks.map(({ file }) => file?.path));
  for (const path of old) if (!used.has(basename(path))) await unlink(path).catch(() => {});
}

/**
 * Opens the disks of an image. Whoever gets them releases their states.
 * @param disks as the image has them: may be anything
 * @throws ZazenError ZAZEN_DISK_*
 */
export async function loadDisks(imagePath: string, disks: unknown): Promise<SavedDisk[]> {
  if (disks === undefined) return [];
  if (!Array.isArray(disks)) throw unreadable(imagePath);
  const checked = (disks as unknown[]).map((disk) => checkedDisk(imagePath, disk));
  const loading = await Promise.allSettled(checked.map((disk) => loadDisk(imagePath, disk)));
  const loaded = loading.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = loading.find((result) => result.status === 'rejected');
  if (failed === undefined) return loaded;
  await releaseDisks(loaded);
  throw failed.reason;
}

const unreadable = (path: string) => diskError('FORMAT', path, 'the image says of its disks what cannot be read');

function checkedDisk(imagePath: string, given: unknown): ImageDisk {
  const { spec, state, file } = (given ?? {}) as Partial<ImageDisk>;
  const connection = state?.connection;
  const isNumber = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 32;
  const isConnection = connection === undefined || (Array.isArray(connection.ringRefs) && connection.ringRefs.every(isNumber)
    && [1, 2, 4, 8, RING_PAGES_MAX].includes(connection.ringRefs.length) && typeof connection.isPersistent === 'boolean'
    && isNumber(connection.position) && isNumber(connection.guestPort));
  const isFile = file === undefined || (typeof file.path === 'string' && (file.kind === 'raw' || file.kind === 'layer'));
  if (typeof spec?.path !== 'string' || typeof spec.target !== 'string' || state === undefined || !isConnection || !isFile) {
    throw unreadable(imagePath);
  }
  return { spec, state, file };
}

async function loadDisk(imagePath: string, { spec, state, file }: ImageDisk): Promise<SavedDisk> {
  const device = virtualDevice(spec.target!);
  if (file === undefined) throw diskError('MISSING', imagePath, `${device.name} was left out of this image: it is a core dump`);
  const isReadOnly = spec.readOnly === true;
  const path = isReadOnly ? file.path : join(dirname(imagePath), basename(file.path));
  const disk = await openState({ path, format: file.kind, isReadOnly });
  const found = await referenceTo(disk.node.store, '/');
  const isSame = found.kind === 'layer' ? found.uuid === file.uuid
    : found.sizeBytes === file.sizeBytes && String(found.modifiedNanos) === file.modifiedNanos;
  if (isSame) return { device, spec, state, disk };
  await disk.release();
  throw diskError('BACKING', path, 'is not what it was when the guest was saved');
}
