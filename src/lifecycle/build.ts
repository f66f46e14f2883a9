// Building a domain: its address space with a kernel, an initramfs and a device tree in it, ready for the first
// instruction of vCPU 0. Nothing of it needs a vCPU, an event channel or the store: who calls wires those.
//
//  0x3900_0000 ┌──────────────┐
//              │ console ring │ one frame each, all zero
//              │ store ring   │
//  0x4000_0000 ├──────────────┤ RAM, first bank
//              │ kernel       │ at textOffset, with its zero-initialised data: `imageSize` bytes
//              ├──────────────┤
//              │ free         │
//              ├──────────────┤
//              │ initramfs    │ page-aligned, ending where the device tree begins, so that its place within 2 MiB
//              │              │ depends on its own size alone
//              ├──────────────┤ 2 MiB aligned
//              │ device tree  │ at most 2 MiB
//              └──────────────┘
//
// RAM is one range of untouched memory (the zero frame). Kernel and initramfs are boot images, whose frames are shared
// with all domains that boot from them (boot-image.ts); the device tree is the domain's own.
// Boot protocol (Linux: Documentation/arch/arm64/booting.rst): the kernel lies `textOffset` above a 2 MiB boundary and
// starts at its first byte with the MMU off and interrupts masked, x0 = address of the device tree, x1-x3 = 0; initramfs
// and kernel lie within one window of 32 GiB aligned to 1 GiB; the device tree is 8-byte aligned.

import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES, GFN_LIMIT } from '../abi/machine-memory.ts';
import { GUEST_MAX_VCPUS, GUEST_RAM0_BASE, GUEST_RAM0_SIZE, GUEST_RAM1_BASE } from '../abi/xen.ts';
import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { Heap } from '../memory/heap.ts';
import type { P2m } from '../memory/p2m.ts';
import { mapBootImage, writePages } from './boot-image.ts';
import type { BootImage } from './boot-image.ts';
import { writeDeviceTree } from './device-tree.ts';
import { guestDeviceTree } from './guest-device-tree.ts';
import type { AddressRange, MachineType } from './guest-device-tree.ts';

export interface KernelImage<Contents> {
  /** The raw Image. */
  readonly image: Contents;
  /** Where it goes, in bytes above a 2 MiB boundary. */
  readonly textOffset: number;
  /** Bytes that it needs from there on; at least the image's own. */
  readonly imageSize: number;
}

/** To lay a domain out, sizes of the files are enough; to load it, they must be in frames. */
export interface DomainSpec<Contents extends { readonly sizeBytes: number } = BootImage> {
  readonly kernel: KernelImage<Contents>;
  /** Empty or left out: none. */
  readonly initrd?: Contents | undefined;
  readonly commandLine: string;
  /** Default: pvh. */
  readonly type?: MachineType | undefined;
  /** A multiple of 4 KiB. */
  readonly memoryBytes: number;
  readonly vcpuCount: number;
}

/** Guest physical addresses; what starts there and how many bytes it takes. */
export interface DomainLayout {
  /** RAM, in ascending order. */
  readonly banks: readonly AddressRange[];
  readonly kernel: AddressRange;
  readonly initrd: AddressRange | undefined;
  /** The place that is kept for it; the tree itself is smaller. */
  readonly deviceTree: AddressRange;
}

export interface LoadedDomain extends DomainLayout {
  /** For vCPU 0, with the device tree's address in x0. */
  readonly entryAddress: number;
}

const MIB = 2 ** 20;
const KERNEL_ALIGN = 2 * MIB;
const DEVICE_TREE_MAX_BYTES = 2 * MIB;
/** COMMAND_LINE_SIZE of Linux on arm64, with its NUL. */
const COMMAND_LINE_MAX_BYTES = 2048;
/** What a kernel needs beside its image and initramfs before it can do anything at all. */
const WORKING_BYTES = 16 * MIB;
const RAM_MAX_BYTES = GUEST_RAM0_SIZE + (GFN_LIMIT * FRAME_BYTES - GUEST_RAM1_BASE);

const alignUp = (value: number, align: number) => Math.ceil(value / align) * align;
const alignDown = (value: number, align: number) => Math.floor(value / align) * align;
const mib = (bytes: number) => `${Math.ceil(bytes / MIB)} MiB`;

/**
 * Checks a specification and says where everything goes; takes no memory.
 * @throws ZazenError ZAZEN_MEMORY_SIZE, ZAZEN_VCPU_COUNT, ZAZEN_CMDLINE, ZAZEN_KERNEL_TOO_LARGE,
 *   ZAZEN_INITRD_TOO_LARGE, ZAZEN_MEMORY_TOO_SMALL
 */
export function layoutDomain(spec: DomainSpec<{ readonly sizeBytes: number }>): DomainLayout {
  const { kernel, memoryBytes } = spec;
  checkNumbers(spec);
  assert(kernel.imageSize >= kernel.image.sizeBytes && kernel.textOffset >= 0, 'kernel is larger than it says');
  // All that the kernel is handed lies in the first bank.
  const bank0Bytes = Math.min(memoryBytes, GUEST_RAM0_SIZE);
  const initrdBytes = spec.initrd?.sizeBytes ?? 0;
  const kernelEnd = kernel.textOffset + kernel.imageSize;
  const placedBytes = alignUp(kernelEnd, KERNEL_ALIGN) + alignUp(initrdBytes, FRAME_BYTES) + 2 * DEVICE_TREE_MAX_BYTES;
  const minimum = `it needs at least ${mib(placedBytes + WORKING_BYTES)} with this kernel and initramfs`;
  const hint = `give the guest more memory: ${minimum}`;
  if (kernelEnd > bank0Bytes) {
    throw new ZazenError('ZAZEN_KERNEL_TOO_LARGE',
      `the kernel takes ${mib(kernelEnd)}, the guest has ${mib(bank0Bytes)} of memory to put it in`, { hint });
  }
  if (kernelEnd + initrdBytes > bank0Bytes) {
    throw new ZazenError('ZAZEN_INITRD_TOO_LARGE', `the initramfs takes ${mib(initrdBytes)}, the guest has `
      + `${mib(bank0Bytes - kernelEnd)} of memory beside the kernel to put it in`, { hint });
  }
  if (placedBytes + WORKING_BYTES > bank0Bytes) {
    throw new ZazenError('ZAZEN_MEMORY_TOO_SMALL', `${mib(bank0Bytes)} is too little memory for the guest: ${minimum}`,
      { hint: 'give the guest more memory' });
  }
  const treeAt = alignDown(GUEST_RAM0_BASE + bank0Bytes, DEVICE_TREE_MAX_BYTES) - DEVICE_TREE_MAX_BYTES;
  const initrdAt = treeAt - alignUp(initrdBytes, FRAME_BYTES);
  const rest = memoryBytes - bank0Bytes;
  return {
    banks: [
      { address: GUEST_RAM0_BASE, sizeBytes: bank0Bytes },
      ...(rest > 0 ? [{ address: GUEST_RAM1_BASE, sizeBytes: rest }] : []),
    ],
    kernel: { address: GUEST_RAM0_BASE + kernel.textOffset, sizeBytes: kernel.imageSize },
    initrd: initrdBytes > 0 ? { address: initrdAt, sizeBytes: initrdBytes } : undefined,
    deviceTree: { address: treeAt, sizeBytes: DEVICE_TREE_MAX_BYTES },
  };
}

function checkNumbers({ memoryBytes, vcpuCount, commandLine }: Omit<DomainSpec, 'kernel' | 'initrd'>): void {
  if (!Number.isSafeInteger(memoryBytes) || memoryBytes <= 0 || memoryBytes % FRAME_BYTES !== 0) {
    throw new ZazenError('ZAZEN_MEMORY_SIZE', `guest memory of ${memoryBytes} bytes is not a multiple of 4 KiB`,
      { hint: 'give a size like 400MiB' });
  }
  if (memoryBytes > RAM_MAX_BYTES) {
    throw new ZazenError('ZAZEN_MEMORY_SIZE', `guest memory of ${mib(memoryBytes)} is more than a guest can have`,
      { hint: `give at most ${mib(RAM_MAX_BYTES)}` });
  }
  if (!Number.isInteger(vcpuCount) || vcpuCount < 1 || vcpuCount > GUEST_MAX_VCPUS) {
    throw new ZazenError('ZAZEN_VCPU_COUNT', `a guest cannot have ${vcpuCount} vCPUs`,
      { hint: `give 1 to ${GUEST_MAX_VCPUS}` });
  }
  const commandLineBytes = Buffer.byteLength(commandLine);
  if (commandLineBytes >= COMMAND_LINE_MAX_BYTES) {
    throw new ZazenError('ZAZEN_CMDLINE', `the kernel command line is ${commandLineBytes} bytes long`,
      { hint: `give at most ${COMMAND_LINE_MAX_BYTES - 1} bytes` });
  }
  if (commandLine.includes('\0')) {
    throw new ZazenError('ZAZEN_CMDLINE', 'the kernel command line has a NUL character in it');
  }
}

/**
 * Fills the memory of a new domain with nothing in it yet. If that fails, what it has is given back by tearing the domain down.
 * @param p2m of the calling thread, over `heap`, with nothing stale in it
 * @param domain from DomainBuilder.createDomain: it has a p2m with the rings in it, and no RAM
 * @param random where the guest's first entropy comes from
 * @throws ZazenError what `layoutDomain` throws, ZAZEN_HOST_OUT_OF_MEMORY
 */
export function loadDomain(p2m: P2m, heap: Heap, domain: DomainRecord, spec: DomainSpec, random: Random): LoadedDomain {
  assert(!p2m.stale, 'stale translations of other domains are still to be flushed');
  const layout = layoutDomain(spec);
  const { banks, initrd } = layout;
  const { commandLine, vcpuCount, type } = spec;
  const tree = writeDeviceTree(guestDeviceTree({ type, commandLine, vcpuCount, banks, initrd, random }));
  assert(tree.length <= DEVICE_TREE_MAX_BYTES, 'the device tree is larger than the place kept for it');

  const root = domain.get(DOMAIN.at.p2mRoot);
  const complete = banks.every((bank) =>
    p2m.mapZeroRange(root, bank.address / FRAME_BYTES, bank.sizeBytes / FRAME_BYTES))
    && mapBootImage(p2m, root, layout.kernel.address, spec.kernel.image)
    && (initrd === undefined || mapBootImage(p2m, root, initrd.address, spec.initrd!))
    && writePages(p2m, heap, root, layout.deviceTree.address, tree);
  // No TLB has seen this tree yet.
  p2m.releaseStale();
  if (!complete) throw outOfMemory(heap, spec.memoryBytes);
  const lastBank = banks.at(-1)!;
  domain.set(DOMAIN.at.pages, domain.get(DOMAIN.at.pages) + spec.memoryBytes / FRAME_BYTES);
  domain.set(DOMAIN.at.maxGfn, (lastBank.address + lastBank.sizeBytes) / FRAME_BYTES - 1);
  return { ...layout, entryAddress: layout.kernel.address };
}

function freeBytes(heap: Heap): number {
  const { total, used } = heap.stats();
  return (total - used) * FRAME_BYTES;
}

export function outOfMemory(heap: Heap, memoryBytes: number): ZazenError {
  return new ZazenError('ZAZEN_HOST_OUT_OF_MEMORY',
    `a guest of ${mib(memoryBytes)} does not fit in the host, which has ${Math.floor(freeBytes(heap) / MIB)} MiB left`,
    { hint: 'give the guest less memory, destroy another one, or start the host with more' });
}

/**
 * Memory costs nothing before it is touched, but a guest that could never have it all must be refused at once: before
 * anything is allocated for it.
 * @throws ZazenError ZAZEN_HOST_OUT_OF_MEMORY
 */
export function checkHostMemory(heap: Heap, memoryBytes: number): void {
  if (memoryBytes <= heap.listedFrames * FRAME_BYTES || memoryBytes <= freeBytes(heap)) return;
  throw outOfMemory(heap, memoryBytes);
}
