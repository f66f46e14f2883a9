// Grant tables, version 1 (grant_table.h). The guest writes entries into its table; 512 entries to a frame.
//
//   entry   0       2       4           8
//           ┌───────┬───────┬───────────┐
//           │ flags │ domid │ frame     │  GTF_reading and GTF_writing are set by the hypervisor while a grant is in
//           └───────┴───────┴───────────┘  use; the guest may take a grant back only by compare-and-swap without them

import { struct, u16, u32, u64 } from './struct.ts';

export const grantEntryV1 = struct('grant_entry_v1', { flags: u16, domid: u16, frame: u32 }, { sizeBytes: 8 });
export const GRANTS_PER_FRAME = 512;
/** What Xen gives by default, and Linux asks for. */
export const GRANT_FRAMES_MAX = 64;

export const GTF_PERMIT_ACCESS = 1;
export const GTF_TYPE_MASK = 3;
export const GTF_READONLY = 4;
export const GTF_READING = 8;
export const GTF_WRITING = 16;

export const GNTTABOP = {
  map_grant_ref: 0,
  unmap_grant_ref: 1,
  setup_table: 2,
  copy: 5,
  query_size: 6,
  unmap_and_replace: 7,
  set_version: 8,
  get_version: 10,
  swap_grant_ref: 11,
} as const;

export const GNTST = {
  okay: 0,
  general_error: -1,
  bad_domain: -2,
  bad_gntref: -3,
  bad_handle: -4,
  permission_denied: -8,
  bad_page: -9,
  bad_copy_arg: -10,
  eagain: -12,
} as const;

export const gnttabMapGrantRef = struct('gnttab_map_grant_ref', {
  host_addr: u64, flags: u32, ref: u32, dom: u16, status: u16, handle: u32, dev_bus_addr: u64,
}, { sizeBytes: 32 });
export const gnttabUnmapGrantRef = struct('gnttab_unmap_grant_ref', {
  host_addr: u64, dev_bus_addr: u64, handle: u32, status: u16,
}, { sizeBytes: 24 });
export const gnttabUnmapAndReplace = struct('gnttab_unmap_and_replace', {
  host_addr: u64, new_addr: u64, handle: u32, status: u16,
}, { sizeBytes: 24 });
export const gnttabSetupTable = struct('gnttab_setup_table', {
  dom: u16, nr_frames: u32, status: u16, frame_list: u64,
}, { sizeBytes: 24 });
const copySide = struct('gnttab_copy_ptr', { ref: u64, domid: u16, offset: u16 }, { sizeBytes: 16 });
/** The `ref` of a side is a u32 grant reference or a u64 guest frame, by the flags. */
export const gnttabCopy = struct('gnttab_copy', {
  source: copySide, dest: copySide, len: u16, flags: u16, status: u16,
}, { sizeBytes: 40 });
export const gnttabCopySide = copySide.at;
export const GNTCOPY_SOURCE_GREF = 1;
export const GNTCOPY_DEST_GREF = 2;
export const gnttabQuerySize = struct('gnttab_query_size', {
  dom: u16, nr_frames: u32, max_nr_frames: u32, status: u16,
}, { sizeBytes: 16 });
export const gnttabSetVersion = struct('gnttab_set_version', { version: u32 }, { sizeBytes: 4 });
export const gnttabGetVersion = struct('gnttab_get_version', { dom: u16, pad: u16, version: u32 }, { sizeBytes: 8 });
export const gnttabSwapGrantRef =
  struct('gnttab_swap_grant_ref', { ref_a: u32, ref_b: u32, status: u16 }, { sizeBytes: 12 });
