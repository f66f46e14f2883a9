// The Xen guest ABI on arm64, as data: numbers of hypercalls and operations, error numbers, and the guest physical
// memory map. Names and values are those of Xen's public headers (xen.h, version.h, sched.h, vcpu.h, hvm/params.h,
// errno.h, arch-arm.h); the structures of event channels, grant tables, memory_op and shared_info are in the files
// xen-*.ts beside this one.

import { array, struct, u16, u32, u64, u8 } from './struct.ts';

/** Immediate of the HVC instruction: number in x16, arguments in x0-x4, result in x0. */
export const XEN_HYPERCALL_TAG = 0xea1;

export const HYPERVISOR = {
  memory_op: 12,
  multicall: 13,
  xen_version: 17,
  console_io: 18,
  grant_table_op: 20,
  vm_assist: 21,
  vcpu_op: 24,
  sched_op: 29,
  event_channel_op: 32,
  hvm_op: 34,
} as const;

/** Xen's errno.h. A hypercall answers with the negative of one. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  E2BIG: 7,
  ENOMEM: 12,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EINVAL: 22,
  ENOSPC: 28,
  ENOSYS: 38,
  ENODATA: 61,
  EOPNOTSUPP: 95,
} as const;

// ---- Domain ids -----------------------------------------------------------------------------------------------------

export const DOMID_SELF = 0x7ff0;
/** Ids from here up never name a domain. */
export const DOMID_FIRST_RESERVED = 0x7ff0;
export const GUEST_MAX_VCPUS = 128;

// ---- Guest physical memory map (arch-arm.h; the device tree tells it to the guest) ----------------------------------

//   0x0300_1000 ┌─────────────────────────┐
//               │ GIC distributor   64 KiB│
//   0x0302_0000 ├─────────────────────────┤
//               │ redistributors   16 MiB │ 128 KiB each
//   0x3800_0000 ├─────────────────────────┤
//               │ grant table      16 MiB │ free for the guest to map its grant table into
//   0x3900_0000 ├─────────────────────────┤
//               │ magic pages             │ console ring, xenstore ring
//   0x4000_0000 ├─────────────────────────┤
//               │ RAM, first bank  ≤ 3 GiB│
// 0x2_0000_0000 ├─────────────────────────┤
//               │ RAM, second bank        │

export const GUEST_GICV3_GICD_BASE = 0x0300_1000;
export const GUEST_GICV3_GICD_SIZE = 0x0001_0000;
export const GUEST_GICV3_GICR0_BASE = 0x0302_0000;
export const GUEST_GICV3_GICR0_SIZE = 0x0100_0000;
export const GUEST_GICV3_GICR_STRIDE = 0x0002_0000;
export const GUEST_PL011_BASE = 0x2200_0000;
export const GUEST_PL011_SIZE = 0x0000_1000;
export const GUEST_GNTTAB_BASE = 0x3800_0000;
export const GUEST_GNTTAB_SIZE = 0x0100_0000;
export const GUEST_MAGIC_BASE = 0x3900_0000;
export const GUEST_MAGIC_SIZE = 0x0100_0000;
export const GUEST_CONSOLE_GFN = GUEST_MAGIC_BASE / 4096;
export const GUEST_XENSTORE_GFN = GUEST_CONSOLE_GFN + 1;
export const GUEST_RAM0_BASE = 0x4000_0000;
export const GUEST_RAM0_SIZE = 0xc000_0000;
export const GUEST_RAM1_BASE = 0x2_0000_0000;

/** Interrupt numbers: PPI n of the device tree is INTID n + 16. */
export const GUEST_TIMER_VIRT_PPI = 27;
export const GUEST_TIMER_PHYS_S_PPI = 29;
export const GUEST_TIMER_PHYS_NS_PPI = 30;
export const GUEST_EVTCHN_PPI = 31;
export const GUEST_VPL011_SPI = 32;

// ---- xen_version ----------------------------------------------------------------------------------------------------

export const XENVER = {
  version: 0,
  extraversion: 1,
  compile_info: 2,
  capabilities: 3,
  changeset: 4,
  platform_parameters: 5,
  get_features: 6,
  pagesize: 7,
  guest_handle: 8,
  commandline: 9,
  build_id: 10,
} as const;

export const XEN_EXTRAVERSION_LEN = 16;
export const XEN_CAPABILITIES_INFO_LEN = 1024;
export const XEN_CHANGESET_INFO_LEN = 64;
export const XEN_COMMANDLINE_LEN = 1024;
export const xenCompileInfo = struct('xen_compile_info', {
  compiler: array(u8, 64), compile_by: array(u8, 16), compile_domain: array(u8, 32), compile_date: array(u8, 32),
}, { sizeBytes: 144 });
export const xenFeatureInfo = struct('xen_feature_info', { submap_idx: u32, submap: u32 }, { sizeBytes: 8 });

/** Bit numbers; submap n holds features 32n … 32n+31. */
export const XENFEAT = {
  auto_translated_physmap: 2,
  not_direct_mapped: 16,
} as const;

// ---- sched_op -------------------------------------------------------------------------------------------------------

export const SCHEDOP = {
  yield: 0, block: 1, shutdown: 2, poll: 3, remote_shutdown: 4, shutdown_code: 5, watchdog: 6,
} as const;

export const SHUTDOWN = { poweroff: 0, reboot: 1, suspend: 2, crash: 3, watchdog: 4, soft_reset: 5 } as const;
export const SHUTDOWN_MAX = 5;

export const schedShutdown = struct('sched_shutdown', { reason: u32 }, { sizeBytes: 4 });
export const schedPoll = struct('sched_poll', { ports: u64, nr_ports: u32, timeout: u64 }, { sizeBytes: 24 });
export const schedRemoteShutdown = struct('sched_remote_shutdown', { domain_id: u16, reason: u32 }, { sizeBytes: 8 });
/** Timeout in seconds. */
export const schedWatchdog = struct('sched_watchdog', { id: u32, timeout: u32 }, { sizeBytes: 8 });
export const SCHED_POLL_PORTS_MAX = 128;
/** Watchdogs of a domain, numbered from 1. */
export const WATCHDOG_TIMERS = 2;

// ---- vcpu_op --------------------------------------------------------------------------------------------------------

export const VCPUOP = {
  initialise: 0,
  up: 1,
  down: 2,
  is_up: 3,
  get_runstate_info: 4,
  register_runstate_memory_area: 5,
  register_vcpu_info: 10,
} as const;
export const vcpuRegisterVcpuInfo =
  struct('vcpu_register_vcpu_info', { mfn: u64, offset: u32, rsvd: u32 }, { sizeBytes: 16 });
export const vcpuRegisterRunstateMemoryArea =
  struct('vcpu_register_runstate_memory_area', { addr: u64 }, { sizeBytes: 8 });

// ---- Others ---------------------------------------------------------------------------------------------------------

export const VMASST_CMD = { enable: 0, disable: 1 } as const;
export const VMASST_TYPE_RUNSTATE_UPDATE_FLAG = 5;

export const CONSOLEIO = { write: 0, read: 1 } as const;

export const multicallEntry =
  struct('multicall_entry', { op: u64, result: u64, args: array(u64, 6) }, { sizeBytes: 64 });

export const HVMOP = { set_param: 0, get_param: 1 } as const;
export const xenHvmParam =
  struct('xen_hvm_param', { domid: u16, pad: u16, index: u32, value: u64 }, { sizeBytes: 16 });
export const HVM_PARAM = {
  CALLBACK_IRQ: 0,
  STORE_PFN: 1,
  STORE_EVTCHN: 2,
  CONSOLE_PFN: 17,
  CONSOLE_EVTCHN: 18,
} as const;
export const HVM_NR_PARAMS = 39;
/** Value of CALLBACK_IRQ that names a PPI: type in bits 56-63, flags (2: level, active low) in 8-15, INTID in 0-7. */
export const HVM_PARAM_CALLBACK_TYPE_PPI = 2n << 56n;
export const HVM_PARAM_CALLBACK_PPI_LOW_LEVEL = 2n << 8n;
