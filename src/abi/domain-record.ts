// The domain record: what the hypervisor knows of a domain, in machine memory, because a hypercall is handled in the
// thread of the pCPU that runs the vCPU. Big tables are frames of the heap that the record points to.
//
//   domain record ──┬─ vcpuFrames ──► 8 vCPU entries each   what Xen's ABI adds to a vCPU (its registers are in
//    (one stride)   │                                       the vCPU record, abi/vcpu.ts)
//                   ├─ portFrames ──► 256 ports each        event channels
//                   ├─ grants ──────► grant table frames    shared with the guest, 512 entries each
//                   ├─ activeFrames ► 512 entries each      which grants are in use, and which frame they hold
//                   ├─ consoleLog ──► a ring of text        what the guest wrote with console_io
//                   ├─ emulated ────► EMULATED              type hvm only: registers of its devices (abi/emulated-devices.ts)
//                   └─ hostEvents ──► HOST_EVENTS           domain 0 only: how guests reach the host's main thread, and from
//                                     └─ network ► another   there such a frame again for the network thread
//
// `lock` covers every table; pending and mask bits change with Atomics. Locks of two domains are taken in the order
// of their ids. Nobody waits for another vCPU (a TLB flush, say) while holding one.

import { assert } from '../base/assert.ts';
import { FRAME_BYTES } from './machine-memory.ts';
import { array, struct, u16, u32, u64, u8 } from './struct.ts';
import { GUEST_MAX_VCPUS, HVM_NR_PARAMS, WATCHDOG_TIMERS } from './xen.ts';
import { EVTCHN_FIFO_MAX_QUEUES, EVTCHN_FIFO_WORDS_PER_PAGE, NR_VIRQS } from './xen-event-channel.ts';
import { GRANT_FRAMES_MAX } from './xen-grant-table.ts';

/** A frame that the domain holds a pin of, and where the guest has it; mfn 0: none. gfn: NO_GFN if it is not mapped. */
export const HELD_FRAME = struct('heldFrame', { mfn: u32, gfn: u32 }, { sizeBytes: 8 });
export const NO_GFN = 0xffff_ffff;

// ---- Ports ----------------------------------------------------------------------------------------------------------

export const PORT = struct('port', {
  /** EVTCHNSTAT. */
  state: u8,
  priority: u8,
  /** An event came while there was no event word for the port. */
  deferred: u8,
  /** The queue that the port was last linked into. */
  linkedPriority: u8,
  /** The vCPU that is notified. */
  vcpu: u16,
  linkedVcpu: u16,
  /** Domain at the other end, or that may bind; the number of a VIRQ. */
  remote: u32,
  remotePort: u32,
}, { sizeBytes: 16 });
export const PORTS_PER_FRAME = FRAME_BYTES / PORT.sizeBytes;
export const PORT_FRAMES_MAX = 64;
/** Port 0 is never used. */
export const PORT_LIMIT = PORT_FRAMES_MAX * PORTS_PER_FRAME;
export const FIFO_PAGES_MAX = PORT_LIMIT / EVTCHN_FIFO_WORDS_PER_PAGE;

/** How events reach the domain. */
export const EVENT_MODE = { twoLevel: 0, fifo: 1, host: 2 } as const;

// ---- vCPUs ----------------------------------------------------------------------------------------------------------

/** Times are nanoseconds as doubles. */
export const VCPU_ENTRY = struct('vcpuEntry', {
  /** Address of the vCPU record; 0: no such vCPU. */
  address: u32,
  infoOffset: u32,
  info: HELD_FRAME,
  control: HELD_FRAME,
  controlOffset: u32,
  /** Non-zero while the vCPU sleeps in SCHEDOP_poll. */
  polling: u32,
  tails: array(u32, EVTCHN_FIFO_MAX_QUEUES),
  virqPorts: array(u32, NR_VIRQS),
  runstate: u32,
  runstateEntryNanos: u64,
  runstateNanos: array(u64, 4),
  /** Guest virtual address; 0: none. */
  runstateArea: u64,
  /** Non-zero: it has suspended the domain, and is to find in x0 how that ended. */
  awaitsResume: u32,
}, { padTo: 512 });
export const VCPUS_PER_FRAME = FRAME_BYTES / VCPU_ENTRY.sizeBytes;

// ---- Grants ---------------------------------------------------------------------------------------------------------

/** One for each grant reference: how often the grant is in use, and the frame that is pinned for it meanwhile. */
export const ACTIVE_GRANT = struct('activeGrant', { readers: u16, writers: u16, mfn: u32 }, { sizeBytes: 8 });

// ---- Domain ---------------------------------------------------------------------------------------------------------

export const STALL_OUT_OF_FRAMES = 1;
export const STALL_LOST_PAGE = 2;

export const DOMAIN_STATE = { free: 0, building: 1, live: 2, dying: 3 } as const;

export const DOMAIN = struct('domain', {
  lock: u32,
  state: u32,
  /** Counts the domains that have had this id, and how often their tables of grants in use began anew. */
  incarnation: u32,
  /** Reasons for the vCPUs not to run. */
  pauseCount: u32,
  /**
   * Non-zero: one of the pauses is because a vCPU could not get a frame, and the host's main thread has not taken it over
   * yet. STALL_OUT_OF_FRAMES, or STALL_LOST_PAGE plus the GFN of a page that cannot be read from its image.
   */
  stalled: u32,
  /** Why it shut down, plus 1; 0: it has not. */
  shutdown: u32,
  /** The reason that SCHEDOP_shutdown_code set, plus 1. */
  shutdownCode: u32,
  p2mRoot: u32,
  /** Guest pages: the most the domain may have, and what it has (whether they cost a frame or not). */
  maxPages: u32,
  pages: u32,
  maxGfn: u32,
  handle: array(u8, 16),
  vcpuCount: u32,
  vmAssist: u32,
  vcpuFrames: array(u32, Math.ceil(GUEST_MAX_VCPUS / VCPUS_PER_FRAME)),
  sharedInfo: HELD_FRAME,
  console: HELD_FRAME,
  xenstore: HELD_FRAME,
  consoleLog: u32,
  emulated: u32,
  hostEvents: u32,

  eventMode: u32,
  /** vCPUs that sleep in SCHEDOP_poll, or did. */
  pollers: u32,
  /** No port below this one is free. */
  portHint: u32,
  fifoPages: u32,
  portFrames: array(u32, PORT_FRAMES_MAX),
  fifoArray: array(HELD_FRAME, FIFO_PAGES_MAX),

  grantFrames: u32,
  grants: array(HELD_FRAME, GRANT_FRAMES_MAX),
  activeFrames: array(u32, GRANT_FRAMES_MAX),

  hvmParams: array(u64, HVM_NR_PARAMS),
  /** When each watchdog fires, nanoseconds as doubles; 0: it is off. */
  watchdogNanos: array(u64, WATCHDOG_TIMERS),
});
assert(DOMAIN.sizeBytes <= 8192, 'the domain record is larger than the place kept for it');

// ---- Text log, host events ------------------------------------------------------------------------------------------

/** `written` counts all bytes ever, modulo 2^32; byte n is at data[n % CONSOLE_LOG_BYTES]. */
export const CONSOLE_LOG_BYTES = 2048;
export const CONSOLE_LOG = struct('consoleLog', { written: u32, data: array(u8, CONSOLE_LOG_BYTES) });

export const HOST_DOMAINS_MAX = 2048;
/**
 * The host's end of all event channels. The main thread sleeps on `doorbell`, which every event adds to. Ports whose `vcpu` is
 * HOST_LISTENER.network are the network thread's: it has a frame like this of its own. Those of HOST_LISTENER.firstLane or
 * more, for the ring of that number behind it, add to the disk thread's bell, and leave no bit.
 */
export const HOST_LISTENER = { main: 0, network: 1, firstLane: 2 } as const;
/** Who has such a frame. */
export type EventListener = typeof HOST_LISTENER.main | typeof HOST_LISTENER.network;
export const HOST_EVENTS = struct('hostEvents', {
  doorbell: u32,
  /** In the main thread's only, as the next two. */
  diskDoorbell: u32,
  nextDomid: u32,
  /** The network thread's frame. */
  network: u32,
  /** A bit for each domain whose state or log changed; for the network thread, whose virtio cards have something to do. */
  domains: array(u32, HOST_DOMAINS_MAX / 32),
  /** A bit for each word of `pending` that is not zero. */
  selector: array(u32, PORT_LIMIT / 32 / 32),
  /** A bit for each port of domain 0. */
  pending: array(u32, PORT_LIMIT / 32),
}, { padTo: FRAME_BYTES });
