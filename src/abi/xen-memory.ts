// memory_op (memory.h). A handle (XEN_GUEST_HANDLE) is a 64-bit guest virtual address.

import { struct, u16, u32, u64 } from './struct.ts';

export const XENMEM = {
  increase_reservation: 0,
  decrease_reservation: 1,
  maximum_ram_page: 2,
  current_reservation: 3,
  maximum_reservation: 4,
  populate_physmap: 6,
  add_to_physmap: 7,
  maximum_gpfn: 14,
  remove_from_physmap: 15,
  add_to_physmap_batch: 23,
} as const;

export const XENMAPSPACE = { shared_info: 0, grant_table: 1, gmfn: 2, gmfn_range: 3, gmfn_foreign: 4 } as const;

export const xenMemoryReservation = struct('xen_memory_reservation', {
  extent_start: u64, nr_extents: u64, extent_order: u32, mem_flags: u32, domid: u16,
}, { sizeBytes: 32 });
export const xenAddToPhysmap = struct('xen_add_to_physmap', {
  domid: u16, size: u16, space: u32, idx: u64, gpfn: u64,
}, { sizeBytes: 24 });
export const xenAddToPhysmapBatch = struct('xen_add_to_physmap_batch', {
  domid: u16, space: u16, size: u16, foreign_domid: u16, idxs: u64, gpfns: u64, errs: u64,
}, { sizeBytes: 32 });
export const xenRemoveFromPhysmap = struct('xen_remove_from_physmap', { domid: u16, gpfn: u64 }, { sizeBytes: 16 });
