// The interrupt controller (GICv3, Arm IHI 0069) as a domain sees it, and where its state lies in machine memory.
//
// Region `interrupts`:
//   ┌──────────────────────────────┐
//   │ GIC_DOMAIN × domainCount     │ distributor, virtual time, the domain's vCPUs
//   │ GIC_VCPU   × vcpuCount       │ redistributor and CPU interface, in the order of the region `vcpus`
//   └──────────────────────────────┘
//
// INTIDs: 0-15 SGI, 16-31 PPI (a word of bits in GIC_VCPU), 32-255 SPI (words 1-7 of the arrays in GIC_DOMAIN; word 0
// is unused there). All state of a domain and of its vCPUs changes under GIC_DOMAIN.lock.

import { array, struct, u32, u64, u8 } from './struct.ts';
import { GUEST_MAX_VCPUS } from './xen.ts';

// Where the frames are in a guest's physical memory is said by xen.ts (GUEST_GICV3_*), and so are the PPIs.

/** Aff0 counts to 15, then Aff1 goes on: a list of SGI targets has sixteen bits. */
export const GIC_AFF0_COUNT = 16;

export const GIC_INTIDS = 256;
export const GIC_WORDS = GIC_INTIDS / 32;
export const GIC_FIRST_PPI = 16;
export const GIC_FIRST_SPI = 32;
export const GIC_SPURIOUS = 1023;

/** Offsets in the distributor; from IGROUPR to ICFGR the second frame of a redistributor has the same. */
export const GICD = {
  CTLR: 0x0, TYPER: 0x4, IIDR: 0x8,
  IGROUPR: 0x80, ISENABLER: 0x100, ICENABLER: 0x180, ISPENDR: 0x200, ICPENDR: 0x280, ISACTIVER: 0x300, ICACTIVER: 0x380,
  IPRIORITYR: 0x400, ITARGETSR: 0x800, ICFGR: 0xc00, IGRPMODR: 0xd00,
  IROUTER: 0x6000, IDENTIFICATION: 0xffd0, PIDR2: 0xffe8,
} as const;

/** Offsets in the first frame of a redistributor. */
export const GICR = { CTLR: 0x0, IIDR: 0x4, TYPER: 0x8, WAKER: 0x14 } as const;

/** Bits of GICD_CTLR when there is one security state. */
export const GICD_CTLR = { enableGrp0: 1, enableGrp1: 2, are: 0x10, ds: 0x40 } as const;
/** Bits of GICR_WAKER. */
export const GICR_WAKER = { processorSleep: 2, childrenAsleep: 4 } as const;

/** Bits of ICC_CTLR_EL1. */
export const ICC_CTLR = { cbpr: 1, eoiMode: 2, priBitsShift: 8 } as const;

const intidWords = array(u32, GIC_WORDS);

export const GIC_DOMAIN = struct('gicDomain', {
  lock: u32,
  ctlr: u32,
  vcpuCount: u32,
  enabled: intidWords,
  /** Latched: edges, SGIs, writes to ISPENDR; acknowledging clears them. */
  pending: intidWords,
  active: intidWords,
  /** Input lines. */
  level: intidWords,
  /** Configured as edge-triggered. */
  edge: intidWords,
  priority: array(u8, GIC_INTIDS),
  /** GICD_IROUTER: Aff2:Aff1:Aff0. */
  router: array(u32, GIC_INTIDS),
  /** Index of the vCPU that the router names, or GIC_NO_TARGET. */
  target: array(u8, GIC_INTIDS),
  /** Address of each vCPU record. */
  vcpus: array(u32, GUEST_MAX_VCPUS),
  /** Virtual time = host time - timeOffset, in nanoseconds, doubles. timeStopped: host time when it stopped, or 0. */
  timeOffset: u64,
  timeStopped: u64,
});
export const GIC_NO_TARGET = 0xff;

export const GIC_VCPU = struct('gicVcpu', {
  /** The domain it belongs to, and its number there. */
  domid: u32,
  index: u32,
  waker: u32,
  enabled: u32, pending: u32, active: u32, level: u32, edge: u32,
  priority: array(u8, 32),
  // CPU interface
  pmr: u32, bpr0: u32, bpr1: u32, ctlr: u32, igrpen0: u32, igrpen1: u32,
  /** Active priorities: bit n is priority n × 8. */
  ap0r0: u32, ap1r0: u32,
}, { padTo: 128 });

/** MPIDR_EL1 of a vCPU: affinity, with bit 31 as the architecture demands. */
export function mpidrOfVcpu(index: number): number {
  return (0x8000_0000 | affinityOfVcpu(index)) >>> 0;
}
export function affinityOfVcpu(index: number): number {
  return (Math.floor(index / GIC_AFF0_COUNT) << 8) | (index % GIC_AFF0_COUNT);
}
/** @returns the vCPU's index, or -1 if no index has that affinity (Aff2:Aff1:Aff0). */
export function vcpuOfAffinity(affinity: number): number {
  const aff0 = affinity & 0xff;
  return aff0 < GIC_AFF0_COUNT && affinity >>> 16 === 0 ? (affinity >>> 8) * GIC_AFF0_COUNT + aff0 : -1;
}
