// What a guest asks for in a slot of the ring, read from a copy of the slot. Nothing here is believed yet beyond its form:
// grants, and whether the disk has such sectors, are the back end's to check.

import {
  BLKIF_INDIRECT_PAGES_MAX, BLKIF_OP, BLKIF_SECTOR_BYTES, BLKIF_SEGMENTS_MAX, blkifRequest, blkifRequestDiscard,
  blkifRequestIndirect, blkifSegment,
} from '../../abi/xen-block.ts';

const PAGE_BYTES = 4096;
const SECTORS_PER_PAGE = PAGE_BYTES / BLKIF_SECTOR_BYTES;
export const SEGMENTS_PER_PAGE = PAGE_BYTES / blkifSegment.sizeBytes;
/** Pages with more segments than this are not asked for: 1 MiB in one request. */
export const INDIRECT_SEGMENTS_MAX = 256;
/** Beyond every disk; the sum with a count is still exact. */
const SECTOR_LIMIT = 2 ** 44;

export interface Segment {
  readonly ref: number;
  /** Bytes within the page. */
  readonly offset: number;
  readonly sizeBytes: number;
}

export interface BlockRequest {
  readonly idLow: number;
  readonly idHigh: number;
  /** What is to be done, and what the response repeats: one of BLKIF_OP but `indirect`, or anything else. */
  readonly kind: number;
  /** Bytes from the start of the disk; NaN: beyond any. */
  readonly offset: number;
  /** Of segments in all; undefined when there are more than there may be, or none for an operation that needs some. */
  readonly segmentCount: number | undefined;
  /** Of pages that the segments are in; undefined: they are in the slot. */
  readonly indirectRefs: readonly number[] | undefined;
  /** Of a discard. */
  readonly discardBytes: number;
  readonly slot: Uint8Array;
}

const u32 = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;

function sectors(slot: Uint8Array, at: number): number {
  const count = u32(slot, at + 4) * 2 ** 32 + u32(slot, at);
  return count < SECTOR_LIMIT ? count : NaN;
}

/** @param slot a copy that stays as it is */
export function readRequest(slot: Uint8Array): BlockRequest {
  const { at } = blkifRequest;
  const operation = slot[at.operation]!;
  const common = { idLow: u32(slot, at.id), idHigh: u32(slot, at.id + 4), slot, discardBytes: 0, indirectRefs: undefined };
  const offset = sectors(slot, at.sector_number) * BLKIF_SECTOR_BYTES;
  if (operation === BLKIF_OP.indirect) return readIndirect(slot, { ...common, offset });
  if (operation === BLKIF_OP.discard) {
    const discardBytes = sectors(slot, blkifRequestDiscard.at.nr_sectors) * BLKIF_SECTOR_BYTES;
    return { ...common, kind: operation, offset, segmentCount: 0, discardBytes };
  }
  const count = slot[at.nr_segments]!;
  // A barrier or a flush may come without data.
  const isEmptyAllowed = operation === BLKIF_OP.flush_diskcache || operation === BLKIF_OP.write_barrier;
  const isCountGood = count <= BLKIF_SEGMENTS_MAX && (count > 0 || isEmptyAllowed);
  return { ...common, kind: operation, offset, segmentCount: isCountGood ? count : undefined };
}

function readIndirect(slot: Uint8Array, common: Omit<BlockRequest, 'kind' | 'segmentCount'>): BlockRequest {
  const { at } = blkifRequestIndirect;
  const kind = slot[at.indirect_op]!;
  const count = slot[at.nr_segments]! | (slot[at.nr_segments + 1]! << 8);
  const pages = Math.ceil(count / SEGMENTS_PER_PAGE);
  const isGood = (kind === BLKIF_OP.read || kind === BLKIF_OP.write) && count > 0 && count <= INDIRECT_SEGMENTS_MAX
    && pages <= BLKIF_INDIRECT_PAGES_MAX;
  const indirectRefs = Array.from({ length: isGood ? pages : 0 }, (_, i) => u32(slot, at.indirect_grefs + 4 * i));
  return { ...common, kind, segmentCount: isGood ? count : undefined, indirectRefs };
}

/**
 * Segments from a copy of where they are.
 * @returns undefined when one is none: it ends before it begins, or outside its page
 */
export function readSegments(bytes: Uint8Array, at: number, count: number): Segment[] | undefined {
  const segments: Segment[] = [];
  for (let i = 0; i < count; i++) {
    const segment = at + i * blkifSegment.sizeBytes;
    const first = bytes[segment + blkifSegment.at.first_sect]!;
    const last = bytes[segment + blkifSegment.at.last_sect]!;
    if (first > last || last >= SECTORS_PER_PAGE) return undefined;
    segments.push({
      ref: u32(bytes, segment), offset: first * BLKIF_SECTOR_BYTES, sizeBytes: (last + 1 - first) * BLKIF_SECTOR_BYTES,
    });
  }
  return segments;
}
