// The paravirtual block device (io/blkif.h, io/ring.h), for 64-bit guests. Guest and host share a ring of requests and
// responses; a response is written into the place of a request that has been taken. Indices run free and wrap at 2^32.
//
//      0 ┌───────────┬───────────┬───────────┬───────────┐
//        │ req_prod  │ req_event │ rsp_prod  │ rsp_event │  the guest moves req_prod and rsp_event, the host the others
//     16 ├───────────┴───────────┴───────────┴───────────┤
//        │ not used                                      │
//     64 ├───────────────────────────────────────────────┤
//        │ 32 slots of 112 bytes in a page; 64, 128 … in a ring of 2, 4 … pages, which need not lie side by side in the
//        └── guest's memory, so that a slot may lie in two of them

import { array, struct, u16, u32, u64, u8 } from './struct.ts';

export const BLKIF_SEGMENTS_MAX = 11;
/** Grants of pages that hold segments; each page has room for 512. */
export const BLKIF_INDIRECT_PAGES_MAX = 8;
/** What hosts offer: an order of 4. */
export const BLKIF_RING_PAGES_MAX = 16;
export const BLKIF_SECTOR_BYTES = 512;

export const BLKIF_OP = { read: 0, write: 1, write_barrier: 2, flush_diskcache: 3, discard: 5, indirect: 6 } as const;
export const BLKIF_RSP = { okay: 0, error: -1, eopnotsupp: -2 } as const;
/** Bits of the store's `info`. */
export const VDISK = { cdrom: 1, removable: 2, readonly: 4 } as const;

export const blkifSring = struct('blkif_sring', { req_prod: u32, req_event: u32, rsp_prod: u32, rsp_event: u32 },
  { padTo: 64 });

export const blkifSegment = struct('blkif_request_segment', { gref: u32, first_sect: u8, last_sect: u8, pad: u16 },
  { sizeBytes: 8 });

export const blkifRequest = struct('blkif_request', {
  operation: u8, nr_segments: u8, handle: u16, id: u64, sector_number: u64, seg: array(blkifSegment, BLKIF_SEGMENTS_MAX),
}, { sizeBytes: 112 });

export const blkifRequestDiscard = struct('blkif_request_discard', {
  operation: u8, flag: u8, handle: u16, id: u64, sector_number: u64, nr_sectors: u64,
}, { sizeBytes: 32 });

export const blkifRequestIndirect = struct('blkif_request_indirect', {
  operation: u8, indirect_op: u8, nr_segments: u16, id: u64, sector_number: u64, handle: u16, pad: u16,
  indirect_grefs: array(u32, BLKIF_INDIRECT_PAGES_MAX),
}, { sizeBytes: 64 });

export const blkifResponse = struct('blkif_response', { id: u64, operation: u8, status: u16 }, { sizeBytes: 16 });

/** Slots of a ring of so many bytes: the largest power of two that fits. */
export function blkifRingSlots(ringBytes: number): number {
  return 2 ** Math.floor(Math.log2((ringBytes - blkifSring.sizeBytes) / blkifRequest.sizeBytes));
}
