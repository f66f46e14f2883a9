// Event channels (event_channel.h): operations, and what guest and hypervisor share in FIFO mode.
//
//   event word     31      30     29     28    27    17 16        0
//                ┌───────┬──────┬──────┬──────┬────────┬───────────┐
//                │PENDING│MASKED│LINKED│ BUSY │   0    │   link    │  one u32 per port, 1024 to a page that the guest
//                └───────┴──────┴──────┴──────┴────────┴───────────┘  gives (expand_array)
//
//   control block: ready (a bit for each priority with a new head), then the heads of 16 queues; one for each vCPU,
//   in guest memory (init_control). A queue is a list through the link fields from its head; link 0 ends it.

import { array, struct, u16, u32, u64, u8 } from './struct.ts';

export const EVTCHNOP = {
  bind_interdomain: 0,
  bind_virq: 1,
  bind_pirq: 2,
  close: 3,
  send: 4,
  status: 5,
  alloc_unbound: 6,
  bind_ipi: 7,
  bind_vcpu: 8,
  unmask: 9,
  reset: 10,
  init_control: 11,
  expand_array: 12,
  set_priority: 13,
} as const;

export const EVTCHNSTAT = { closed: 0, unbound: 1, interdomain: 2, pirq: 3, virq: 4, ipi: 5 } as const;

export const evtchnAllocUnbound =
  struct('evtchn_alloc_unbound', { dom: u16, remote_dom: u16, port: u32 }, { sizeBytes: 8 });
export const evtchnBindInterdomain =
  struct('evtchn_bind_interdomain', { remote_dom: u16, remote_port: u32, local_port: u32 }, { sizeBytes: 12 });
export const evtchnBindVirq = struct('evtchn_bind_virq', { virq: u32, vcpu: u32, port: u32 }, { sizeBytes: 12 });
export const evtchnBindIpi = struct('evtchn_bind_ipi', { vcpu: u32, port: u32 }, { sizeBytes: 8 });
/** close, send and unmask alike. */
export const evtchnPort = struct('evtchn_close', { port: u32 }, { sizeBytes: 4 });
export const evtchnStatus = struct('evtchn_status', {
  dom: u16, port: u32, status: u32, vcpu: u32,
  /** A union: remote domain of an unbound or interdomain channel; VIRQ. */
  uDom: u32,
  uPort: u32,
}, { sizeBytes: 24 });
export const evtchnBindVcpu = struct('evtchn_bind_vcpu', { port: u32, vcpu: u32 }, { sizeBytes: 8 });
export const evtchnReset = struct('evtchn_reset', { dom: u16 }, { sizeBytes: 2 });
export const evtchnInitControl = struct('evtchn_init_control', {
  control_gfn: u64, offset: u32, vcpu: u32, link_bits: u8, pad: array(u8, 7),
}, { sizeBytes: 24 });
export const evtchnExpandArray = struct('evtchn_expand_array', { array_gfn: u64 }, { sizeBytes: 8 });
export const evtchnSetPriority = struct('evtchn_set_priority', { port: u32, priority: u32 }, { sizeBytes: 8 });

export const EVTCHN_2L_NR_CHANNELS = 4096;

export const EVTCHN_FIFO_PRIORITY_DEFAULT = 7;
export const EVTCHN_FIFO_PRIORITY_MIN = 15;
export const EVTCHN_FIFO_MAX_QUEUES = 16;
export const EVTCHN_FIFO_PENDING = 0x8000_0000;
export const EVTCHN_FIFO_MASKED = 0x4000_0000;
export const EVTCHN_FIFO_LINKED = 0x2000_0000;
export const EVTCHN_FIFO_LINK_BITS = 17;
export const EVTCHN_FIFO_LINK_MASK = 2 ** EVTCHN_FIFO_LINK_BITS - 1;
export const EVTCHN_FIFO_WORDS_PER_PAGE = 1024;
export const evtchnFifoControlBlock = struct('evtchn_fifo_control_block', {
  ready: u32, rsvd: u32, head: array(u32, EVTCHN_FIFO_MAX_QUEUES),
}, { sizeBytes: 72 });

export const NR_VIRQS = 24;
export const VIRQ = { TIMER: 0, DEBUG: 1, XENOPROF: 7, XENPMU: 13 } as const;
/** VIRQs that each vCPU binds for itself; all others are bound on vCPU 0. */
export const PER_VCPU_VIRQS: ReadonlySet<number> = new Set(Object.values(VIRQ));
