// The device tree of a guest of Xen on Arm, as `xl` gives it to one (libxl_arm.c; Documentation/devicetree/bindings of
// Linux: arm/xen.txt, arm/cpus.yaml, arm/psci.yaml, timer/arm,arch_timer.yaml, interrupt-controller/arm,gic-v3.yaml).
// Everything that it names is at the addresses of abi/xen.ts.

import { affinityOfVcpu } from '../abi/gic.ts';
import { FRAME_BYTES, GFN_LIMIT } from '../abi/machine-memory.ts';
import {
  GUEST_EVTCHN_PPI, GUEST_GICV3_GICD_BASE, GUEST_GICV3_GICD_SIZE, GUEST_GICV3_GICR0_BASE, GUEST_GICV3_GICR_STRIDE,
  GUEST_GNTTAB_BASE, GUEST_GNTTAB_SIZE, GUEST_RAM0_BASE, GUEST_RAM0_SIZE, GUEST_RAM1_BASE, GUEST_TIMER_PHYS_NS_PPI,
  GUEST_TIMER_PHYS_S_PPI, GUEST_TIMER_VIRT_PPI,
} from '../abi/xen.ts';
import type { Random } from '../base/random.ts';
import { cells64 } from './device-tree.ts';
import type { DeviceTreeNode } from './device-tree.ts';

/** Guest physical memory, in bytes. */
export interface AddressRange {
  readonly address: number;
  readonly sizeBytes: number;
}

export interface GuestDescription {
  readonly commandLine: string;
  readonly vcpuCount: number;
  /** RAM, in ascending order. */
  readonly banks: readonly AddressRange[];
  readonly initrd?: AddressRange | undefined;
  /** For the guest's random number generator and address space layout: it has no other entropy when it starts. */
  readonly random: Random;
}

/** The version of Xen's ABI that guests are told. */
const XEN_VERSION = '4.17';
const RNG_SEED_WORDS = 16;
const KASLR_SEED_WORDS = 2;
const PPI_CELL = 1;
const FIRST_PPI_INTID = 16;
/** Flags of a PPI: active low, level-sensitive, on the first four CPUs (a mask that GICv3 ignores). */
const PPI_FLAGS = 0xf08;
const EXTENDED_REGION_ALIGN = 2 ** 21;
/** Smaller ones are of no use to Linux, which takes a section of memory at a time. */
const EXTENDED_REGION_MIN_BYTES = 64 * 2 ** 20;

export function guestDeviceTree(guest: GuestDescription): DeviceTreeNode {
  const interruptController = interruptControllerNode(guest.vcpuCount);
  return {
    name: '',
    properties: {
      model: `XENVM-${XEN_VERSION}`,
      compatible: [`xen,xenvm-${XEN_VERSION}`, 'xen,xenvm'],
      'interrupt-parent': [interruptController],
      '#address-cells': [2],
      '#size-cells': [2],
    },
    children: [
      chosenNode(guest),
      cpusNode(guest.vcpuCount),
      { name: 'psci', properties: { compatible: ['arm,psci-1.0', 'arm,psci-0.2'], method: 'hvc' } },
      ...guest.banks.map(memoryNode),
      interruptController,
      timerNode,
      hypervisorNode(guest.banks),
    ],
  };
}

function chosenNode({ commandLine, initrd, random }: GuestDescription): DeviceTreeNode {
  const seed = (words: number) => Array.from({ length: words }, () => random.u32());
  return {
    name: 'chosen',
    properties: {
      bootargs: commandLine,
      ...(initrd !== undefined && {
        'linux,initrd-start': cells64(initrd.address),
        'linux,initrd-end': cells64(initrd.address + initrd.sizeBytes),
      }),
      'rng-seed': seed(RNG_SEED_WORDS),
      'kaslr-seed': seed(KASLR_SEED_WORDS),
    },
  };
}

function cpusNode(vcpuCount: number): DeviceTreeNode {
  const cpuNode = (vcpu: number): DeviceTreeNode => ({
    name: `cpu@${affinityOfVcpu(vcpu).toString(16)}`,
    properties: {
      device_type: 'cpu',
      compatible: 'arm,armv8',
      'enable-method': 'psci',
      reg: [affinityOfVcpu(vcpu)],
    },
  });
  return {
    name: 'cpus',
    properties: { '#address-cells': [1], '#size-cells': [0] },
    children: Array.from({ length: vcpuCount }, (_, vcpu) => cpuNode(vcpu)),
  };
}

function memoryNode({ address, sizeBytes }: AddressRange): DeviceTreeNode {
  return {
    name: `memory@${address.toString(16)}`,
    properties: { device_type: 'memory', reg: cells64(address, sizeBytes) },
  };
}

function interruptControllerNode(vcpuCount: number): DeviceTreeNode {
  return {
    name: `interrupt-controller@${GUEST_GICV3_GICD_BASE.toString(16)}`,
    properties: {
      compatible: 'arm,gic-v3',
      '#interrupt-cells': [3],
      '#address-cells': [0],
      'interrupt-controller': true,
      reg: cells64(GUEST_GICV3_GICD_BASE, GUEST_GICV3_GICD_SIZE,
        GUEST_GICV3_GICR0_BASE, GUEST_GICV3_GICR_STRIDE * vcpuCount),
    },
  };
}

const ppiCells = (...intids: readonly number[]) =>
  intids.flatMap((intid) => [PPI_CELL, intid - FIRST_PPI_INTID, PPI_FLAGS]);

/** The frequency is not said: CNTFRQ_EL0 has it. */
const timerNode: DeviceTreeNode = {
  name: 'timer',
  properties: {
    compatible: 'arm,armv8-timer',
    interrupts: ppiCells(GUEST_TIMER_PHYS_S_PPI, GUEST_TIMER_PHYS_NS_PPI, GUEST_TIMER_VIRT_PPI),
  },
};

function hypervisorNode(banks: readonly AddressRange[]): DeviceTreeNode {
  const { address, sizeBytes } = extendedRegion(banks);
  return {
    name: 'hypervisor',
    properties: {
      compatible: [`xen,xen-${XEN_VERSION}`, 'xen,xen'],
      reg: cells64(GUEST_GNTTAB_BASE, GUEST_GNTTAB_SIZE, address, sizeBytes),
      interrupts: ppiCells(GUEST_EVTCHN_PPI),
    },
  };
}

/**
 * Addresses without memory, for pages of other domains that the guest maps: what RAM leaves of the first bank, or of
 * the second, which has RAM only when the first is full.
 */
function extendedRegion(banks: readonly AddressRange[]): AddressRange {
  const places = [
    { start: GUEST_RAM0_BASE, end: GUEST_RAM0_BASE + GUEST_RAM0_SIZE },
    { start: GUEST_RAM1_BASE, end: GFN_LIMIT * FRAME_BYTES },
  ];
  const regions = places.map(({ start, end }) => {
    const ramEnd = Math.max(start, ...banks.map((bank) => bank.address + bank.sizeBytes));
    const address = Math.ceil(ramEnd / EXTENDED_REGION_ALIGN) * EXTENDED_REGION_ALIGN;
    return { address, sizeBytes: end - address };
  });
  return regions.find(({ sizeBytes }) => sizeBytes >= EXTENDED_REGION_MIN_BYTES)!;
}
