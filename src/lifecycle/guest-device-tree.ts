// The device tree of a guest of Xen on Arm, as `xl` gives it to one (libxl_arm.c; Documentation/devicetree/bindings of
// Linux: arm/xen.txt, arm/cpus.yaml, arm/psci.yaml, timer/arm,arch_timer.yaml, interrupt-controller/arm,gic-v3.yaml), and
// that of a machine of type hvm, which has emulated devices in place of the hypervisor (serial/pl011.yaml, rtc/arm,pl031.yaml,
// virtio/mmio.yaml). Everything that it names is at the addresses of abi/xen.ts and abi/emulated-devices.ts.

import {
  GUEST_PL011_BASE, GUEST_PL011_SIZE, GUEST_PL011_SPI, GUEST_PL031_BASE, GUEST_PL031_SIZE, GUEST_PL031_SPI,
  GUEST_VIRTIO_MMIO_BASE, VIRTIO_MMIO_BYTES, VIRTIO_SLOTS, virtioIntid,
} from '../abi/emulated-devices.ts';
import { GIC_FIRST_SPI, affinityOfVcpu } from '../abi/gic.ts';
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

/** As xl has them: with Xen's interfaces, or with devices that need no driver for Xen. */
export type MachineType = 'pvh' | 'hvm';

export interface GuestDescription {
  /** Default: pvh. */
  readonly type?: MachineType | undefined;
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
const SPI_CELL = 0;
const PPI_CELL = 1;
const FIRST_PPI_INTID = 16;
/** Flags of a PPI: active low, level-sensitive, on the first four CPUs (a mask that GICv3 ignores). */
const PPI_FLAGS = 0xf08;
/** Flags of an SPI: level-sensitive, active high. */
const SPI_FLAGS = 4;
/** Of the serial port's clock: any that all baud rates can be made of. */
const PERIPHERAL_CLOCK_HZ = 24_000_000;
const SERIAL_NAME = `pl011@${GUEST_PL011_BASE.toString(16)}`;
const EXTENDED_REGION_ALIGN = 2 ** 21;
/** Smaller ones are of no use to Linux, which takes a section of memory at a time. */
const EXTENDED_REGION_MIN_BYTES = 64 * 2 ** 20;

export function guestDeviceTree(guest: GuestDescription): DeviceTreeNode {
  const interruptController = interruptControllerNode(guest.vcpuCount);
  const isHvm = guest.type === 'hvm';
  return {
    name: '',
    properties: {
      ...(isHvm ? { model: 'Zazen', compatible: ['linux,dummy-virt'] }
        : { model: `XENVM-${XEN_VERSION}`, compatible: [`xen,xenvm-${XEN_VERSION}`, 'xen,xenvm'] }),
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
      ...(isHvm ? emulatedNodes() : [hypervisorNode(guest.banks)]),
    ],
  };
}

function chosenNode({ type, commandLine, initrd, random }: GuestDescription): DeviceTreeNode {
  const seed = (words: number) => Array.from({ length: words }, () => random.u32());
  return {
    name: 'chosen',
    properties: {
      bootargs: commandLine,
      ...(type === 'hvm' && { 'stdout-path': `/${SERIAL_NAME}` }),
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

const spiCells = (intid: number) => [SPI_CELL, intid - GIC_FIRST_SPI, SPI_FLAGS];

function emulatedNodes(): DeviceTreeNode[] {
  const clock: DeviceTreeNode = {
    name: 'apb-pclk',
    properties: { compatible: 'fixed-clock', '#clock-cells': [0], 'clock-frequency': [PERIPHERAL_CLOCK_HZ] },
  };
  const serial: DeviceTreeNode = {
    name: SERIAL_NAME,
    properties: {
      compatible: ['arm,pl011', 'arm,primecell'],
      reg: cells64(GUEST_PL011_BASE, GUEST_PL011_SIZE),
      interrupts: spiCells(GUEST_PL011_SPI),
      clocks: [clock, clock],
      'clock-names': ['uartclk', 'apb_pclk'],
    },
  };
  const realTimeClock: DeviceTreeNode = {
    name: `pl031@${GUEST_PL031_BASE.toString(16)}`,
    properties: {
      compatible: ['arm,pl031', 'arm,primecell'],
      reg: cells64(GUEST_PL031_BASE, GUEST_PL031_SIZE),
      interrupts: spiCells(GUEST_PL031_SPI),
      clocks: [clock],
      'clock-names': 'apb_pclk',
    },
  };
  return [clock, serial, realTimeClock, ...Array.from({ length: VIRTIO_SLOTS }, (_, slot) => virtioNode(slot))];
}

/** A slot without a device says so itself: device number 0. */
function virtioNode(slot: number): DeviceTreeNode {
  const address = GUEST_VIRTIO_MMIO_BASE + slot * VIRTIO_MMIO_BYTES;
  return {
    name: `virtio@${address.toString(16)}`,
    properties: {
      compatible: 'virtio,mmio',
      reg: cells64(address, VIRTIO_MMIO_BYTES),
      interrupts: spiCells(virtioIntid(slot)),
      'dma-coherent': true,
    },
  };
}

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
