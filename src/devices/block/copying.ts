// From one store to another: a layer into what lies below it, and the contents of a disk's state into a file of their own.

import { takeBuffer } from '../../lanes/buffers.ts';
import { BlockFile } from './block-file.ts';
import { readFrom } from './chain.ts';
import type { DiskNode } from './chain.ts';
import type { DiskState } from './disk.ts';
import { settled } from './layer.ts';
import type { Layer } from './layer.ts';
import { GRANULE_BYTES } from './layer-format.ts';
import { RUN } from './store.ts';

const COPY_BYTES = 2 ** 20;

/** Puts all that a layer has into the store below it. */
export async function copyLayer(layer: Layer, below: DiskNode): Promise<void> {
  if (below.store.sizeBytes < layer.sizeBytes) await below.store.resize(layer.sizeBytes);
  for (const run of layer.allRuns()) {
    const end = Math.min(run.offset + run.sizeBytes, Math.ceil(layer.sizeBytes / GRANULE_BYTES) * GRANULE_BYTES);
    if (run.kind === RUN.zero && await below.store.discard(run.offset, end - run.offset)) continue;
    for (let offset = run.offset; offset < end; offset += COPY_BYTES) {
      using buffer = takeBuffer(Math.min(COPY_BYTES, end - offset));
      if (run.kind === RUN.zero) buffer.bytes.fill(0);
      else await layer.file.read([buffer.bytes], run.at + offset - run.offset);
      const isRaw = below.store.kind === 'raw';
      const bytes = isRaw ? Math.min(buffer.bytes.length, layer.sizeBytes - offset) : buffer.bytes.length;
      if (bytes > 0) await below.store.write([buffer.bytes.subarray(0, bytes)], offset);
    }
  }
}

/**
 * Copies what a state has in the stores above `basis` into a layer, which then needs only that.
 * Nothing is written for pages of zeros that nothing lies under.
 * @param basis undefined: everything
 */
export async function copyState(
  state: Pick<DiskState, 'node' | 'sizeBytes'>, layer: Layer, basis: DiskNode | undefined, signal?: AbortSignal,
): Promise<void> {
  for (let offset = 0; offset < state.sizeBytes; offset += COPY_BYTES) {
    signal?.throwIfAborted();
    const sizeBytes = Math.min(COPY_BYTES, state.sizeBytes - offset);
    using buffer = takeBuffer(Math.ceil(sizeBytes / GRANULE_BYTES) * GRANULE_BYTES);
    for (const part of changedRuns(state.node, basis, offset, buffer.bytes.length)) {
      const bytes = buffer.bytes.subarray(part.offset - offset, part.offset - offset + part.sizeBytes);
      const reads: Promise<void>[] = [];
      readFrom(state.node, [bytes], part.offset, reads);
      await settled(reads);
      await writeGranules(layer, bytes, part.offset, basis !== undefined);
    }
  }
}

/** Writes all of a state into a raw file that has nothing yet; pages of zeros become holes. */
export async function copyToRaw(state: Pick<DiskState, 'node' | 'sizeBytes'>, file: BlockFile, signal?: AbortSignal): Promise<void> {
  await file.truncate(state.sizeBytes);
  for (let offset = 0; offset < state.sizeBytes; offset += COPY_BYTES) {
    signal?.throwIfAborted();
    const sizeBytes = Math.min(COPY_BYTES, state.sizeBytes - offset);
    using buffer = takeBuffer(Math.ceil(sizeBytes / GRANULE_BYTES) * GRANULE_BYTES);
    const reads: Promise<void>[] = [];
    readFrom(state.node, [buffer.bytes], offset, reads);
    await settled(reads);
    for (let at = 0; at < sizeBytes; at += GRANULE_BYTES) {
      if (!isZeroAt(buffer.bytes, at)) await file.write([buffer.bytes.subarray(at, Math.min(sizeBytes, at + GRANULE_BYTES))], offset + at);
    }
  }
  await file.sync();
}

/** The first store of a chain that no disk may write to; undefined: none. */
export function writtenOn(node: DiskNode): DiskNode | undefined {
  let basis: DiskNode | undefined = node;
  while (basis !== undefined && (basis.store.file.isWritable || basis.origin !== 'given')) basis = basis.below;
  return basis;
}

/** Parts of a disk that the stores above `basis` answer for. */
function changedRuns(node: DiskNode, basis: DiskNode | undefined, offset: number, sizeBytes: number): Part[] {
  if (node === basis) return [];
  const parts: Part[] = [];
  for (const run of node.store.runs(offset, sizeBytes)) {
    const below = run.kind !== RUN.below ? [run]
      : node.below === undefined ? [] : changedRuns(node.below, basis, run.offset, run.sizeBytes);
    for (const { offset: start, sizeBytes: bytes } of below) {
      const last = parts.at(-1);
      if (last !== undefined && last.offset + last.sizeBytes === start) last.sizeBytes += bytes;
      else parts.push({ offset: start, sizeBytes: bytes });
    }
  }
  return parts;
}
interface Part {
  readonly offset: number;
  sizeBytes: number;
}

async function writeGranules(layer: Layer, bytes: Uint8Array, offset: number, isZeroNoted: boolean): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const isZero = isZeroAt(bytes, at);
    let end = at + GRANULE_BYTES;
    while (end < bytes.length && isZeroAt(bytes, end) === isZero) end += GRANULE_BYTES;
    if (!isZero) await layer.write([bytes.subarray(at, end)], offset + at);
    else if (isZeroNoted) await layer.discard(offset + at, end - at);
    at = end;
  }
}

function isZeroAt(bytes: Uint8Array, at: number): boolean {
  const words = new Float64Array(bytes.buffer, bytes.byteOffset + at, GRANULE_BYTES / 8);
  // Minus zero is not all zero bits.
  return words.every((word) => Object.is(word, 0));
}
