// shared_info and what hangs on it, as arm64 guests see them (xen.h, vcpu.h). The arch parts are empty on Arm.
//
//   shared_info    0 ┌──────────────────────┐
//                    │ vcpu_info of vCPU 0  │ until the guest registers one elsewhere
//                 48 ├──────────────────────┤
//                    │ evtchn_pending 64×64 │ two-level event channels
//                560 ├──────────────────────┤
//                    │ evtchn_mask    64×64 │
//               1072 ├──────────────────────┤
//                    │ wall clock           │ version, sec, nsec, sec_hi
//               1088 └──────────────────────┘

import { array, struct, u32, u64, u8 } from './struct.ts';

/** Filled on x86 only; Arm guests take time from the generic timer. */
const vcpuTimeInfo = struct('vcpu_time_info', {
  version: u32, pad0: u32, tsc_timestamp: u64, system_time: u64, tsc_to_system_mul: u32, tsc_shift: u8, flags: u8,
  pad1: array(u8, 2),
}, { sizeBytes: 32 });

export const vcpuInfo = struct('vcpu_info', {
  /** A byte: non-zero while events wait to be looked at. */
  evtchn_upcall_pending: u8,
  pad0: u8,
  /** A bit for each word of evtchn_pending that the guest must look at. */
  evtchn_pending_sel: u64,
  time: vcpuTimeInfo,
}, { sizeBytes: 48 });

export const sharedInfo = struct('shared_info', {
  vcpu_info: vcpuInfo,
  evtchn_pending: array(u64, 64),
  evtchn_mask: array(u64, 64),
  wc_version: u32,
  wc_sec: u32,
  wc_nsec: u32,
  wc_sec_hi: u32,
}, { sizeBytes: 1088 });

export const RUNSTATE = { running: 0, runnable: 1, blocked: 2, offline: 3 } as const;
/** Times are nanoseconds of system time. */
export const vcpuRunstateInfo = struct('vcpu_runstate_info', {
  state: u32, state_entry_time: u64, time: array(u64, 4),
}, { sizeBytes: 48 });
/** Set in state_entry_time while the area is being written, for guests that asked for it (vm_assist). */
export const XEN_RUNSTATE_UPDATE = 1n << 63n;
