// The map of the machine memory, as data. One shared WebAssembly.Memory is the memory of the whole machine; host
// address = offset in it, and the machine frame number of an address is address >> 12 (so host address = mfn × 4096).
//
//        0 ┌───────────────────────────┐
//          │ header     (one frame)    │ magic, version, parameters, offset and size of every region
//          ├───────────────────────────┤
//          │ pcpus      64 × 4 KiB     │ one record per pCPU
//          │ domains    count × stride │ one record per domain
//          │ vcpus      count × stride │ one record per vCPU (registers, TLB); untouched records cost no memory
//          │ interrupts see abi/gic.ts │ interrupt controllers and virtual time
//          │ scheduler  abi/scheduler  │ run queue, run state of each vCPU
//          │ code       bytes          │ arena of decoded code
//          │ decodeAhead               │ code to be decoded before a guest runs (abi/decode-ahead.ts)
//          │ frameTable 16 B per frame │ indexed by MFN from 0, so its first records describe this area itself
//          │ heap       see HEAP       │ free lists, caches, accounts
//          ├───────────────────────────┤ firstFrame × 4096; everything above this line ends below 4 GiB
//          │ frames …                  │ the first one is the zero frame, all others belong to the heap
//          └───────────────────────────┘ frameEnd × 4096 = sizeBytes
//
// A worker that attaches finds every region from the header alone. To add a region, add a line to REGIONS.

import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { tuning } from '../base/tuning.ts';
import { DECODE_AHEAD } from './decode-ahead.ts';
import { GIC_DOMAIN, GIC_VCPU } from './gic.ts';
import { DOMAIN_SCHEDULE, SCHEDULER, VCPU_SCHEDULE } from './scheduler.ts';
import { array, struct, u32 } from './struct.ts';
import { VCPU_BYTES } from './vcpu.ts';

export const FRAME_SHIFT = 12;
export const FRAME_BYTES = 4096;
export const FRAME_WORDS = FRAME_BYTES / 4;
const WASM_PAGE_BYTES = 65536;

export const PCPU_MAX = 64;
/** pCPUs, and behind them the host's own threads: those that others may have to wait for have a record like a pCPU's. */
export const THREAD_MAX = PCPU_MAX + 3;
export const PCPU_STRIDE_BYTES = 4096;

export type AddressType = 'i32' | 'i64';
/** Largest machine by address type: what a Wasm engine gives a memory32 and a memory64. */
export const SIZE_MAX_BYTES: Readonly<Record<AddressType, number>> = { i32: 2 ** 32, i64: 2 ** 34 };

export interface MachineParameters {
  /** Whole machine memory, records included; a multiple of 64 KiB. */
  readonly sizeBytes: number;
  readonly addressType: AddressType;
  readonly pcpuCount: number;
  /** Domain ids run from 0 (the host itself) to domainCount - 1. */
  readonly domainCount: number;
  readonly domainStrideBytes: number;
  readonly vcpuCount: number;
  readonly vcpuStrideBytes: number;
  /** The arena of decoded code. */
  readonly codeBytes: number;
}

const VCPUS = 1088;
const VCPUS_LEAST = 64;
/** How many vCPUs there is a place for: a thousand from 2 GiB on. What has less memory has no room for as many forks. */
export const vcpuCountOf = (sizeBytes: number): number => Math.min(VCPUS_LEAST + Math.floor(sizeBytes / 2 ** 21), VCPUS);

/** Right for a 2 GiB host with a thousand forks in it. */
export const defaultMachineParameters: MachineParameters = {
  sizeBytes: 2 ** 31,
  addressType: 'i32',
  pcpuCount: 1,
  domainCount: 1088,
  domainStrideBytes: 8192,
  vcpuCount: VCPUS,
  vcpuStrideBytes: VCPU_BYTES,
  codeBytes: tuning.codeBytes ?? 96 * 1024 * 1024,
};

// ---- Frame table ----------------------------------------------------------------------------------------------------

/**
 * One record per frame.
 *
 *   state   bits 0-3 FRAME_STATE, bits 4-7 order (only in the first frame of a free block), bits 8-31 the next node
 *           (only in a p2m node that waits to be taken apart)
 *   owner   the account that the frame is charged to; in a free block's first frame: next block of its list
 *   count   bits 0-15  mappings: p2m entries (or owning callers) that refer to the frame
 *           bits 16-30 pins: uses by the hypervisor and the backends
 *           bit 31     free block: bits 0-30 are the previous block of its list
 *   decode  index of the frame's decoded code + 1, or 0; belongs to the cpu room, the heap clears it;
 *           in the root of a p2m: its lock (bit 0) and sequence (bits 1-31)
 */
export const FRAME = struct('frame', { state: u32, owner: u32, count: u32, decode: u32 }, { sizeBytes: 16 });

export const FRAME_STATE_MASK = 0xf;
export const FRAME_STATE = {
  /** Not the first frame of a free block, being scrubbed, or not a frame of the heap. */
  none: 0,
  /** First frame of a free block that is all zero. */
  clean: 1,
  /** First frame of a free block that holds old data. */
  dirty: 2,
  /** Clean, in the cache of an agent. */
  cached: 3,
  used: 4,
  /** A node of a p2m. */
  table: 5,
  /** The one frame that all untouched guest memory reads from. */
  zero: 6,
} as const;

export const FRAME_MAPPING = 1;
export const FRAME_MAPPING_MASK = 0xffff;
export const FRAME_PIN = 0x10000;
export const FRAME_COUNT_FREE = 0x80000000;

// ---- Heap -----------------------------------------------------------------------------------------------------------

/** Largest block: 512 frames, 2 MiB, what one entry of a p2m's middle level covers. */
export const HEAP_ORDER_MAX = 9;
const HEAP_ORDERS = HEAP_ORDER_MAX + 1;
/** An agent is a thread that uses the heap: agent n < 64 is pCPU n, the rest are the host's other threads. */
export const HEAP_AGENT_MAX = PCPU_MAX + 8;
export const HEAP_CACHE_FRAMES = 32;
/** Frames that are scrubbed as one piece; each index in `scrubProgress` has 8 bits. */
export const HEAP_SCRUB_FRAMES = 128;

/** Per agent. scrubProgress: bits 0-7 first, 8-15 done, 16-23 end, relative to scrubMfn (see memory/heap.ts). */
export const HEAP_AGENT = struct('heapAgent', {
  scrubMfn: u32,
  scrubProgress: u32,
  cache: array(u32, HEAP_CACHE_FRAMES),
}, { padTo: 192 });

/** Lists by [dirty ? 1 : 0][order]; a mask bit says that the list of that order is not empty. */
export const HEAP = struct('heap', {
  lock: u32,
  zeroMfn: u32,
  totalFrames: u32,
  sharedFrames: u32,
  freeFrames: array(u32, 2),
  /** The queue of p2m nodes to take apart (memory/tear-down.ts): its first node, and how many are in it or in hand. */
  tearDownLock: u32,
  tearDownHead: u32,
  tearDownNodes: u32,
  tearDownSteps: u32,
  orderMask: array(u32, 2),
  lists: array(u32, 2 * HEAP_ORDERS),
  agents: array(HEAP_AGENT, HEAP_AGENT_MAX),
  /**
   * Frames charged to each account; account n is domain n, 0 the host itself. After them, again by account: nodes
   * charged to it that are to be taken apart.
   */
  accounts: u32,
});

// ---- p2m ------------------------------------------------------------------------------------------------------------

/**
 * A p2m is a radix tree of three levels; a node is one frame of 512 entries of two u32, low half first:
 *
 *   GFN  26        18 17         9 8          0
 *       ┌────────────┬────────────┬────────────┐
 *       │   root     │   middle   │    leaf    │     index in the node of that level
 *       └────────────┴────────────┴────────────┘
 *   low  bits 0-2 P2M_KIND, bit 3 read-only, bits 4-31 MFN (node, frame, zero) or page in the image file
 *   high image: number of the image; otherwise 0 (kept for a dirty epoch)
 *
 * Zero, absent and image entries may stand at any level and then cover all GFNs below them; the page of an image
 * entry is that of the first GFN.
 */
export const P2M_KIND = { absent: 0, node: 1, frame: 2, zero: 3, image: 4 } as const;
export const P2M_KIND_MASK = 7;
export const P2M_READ_ONLY = 8;
export const P2M_VALUE_SHIFT = 4;
export const P2M_LEVEL_BITS = 9;
export const P2M_ENTRIES = 512;
export const GFN_LIMIT = 2 ** 27;

// ---- Regions --------------------------------------------------------------------------------------------------------

interface RegionSpec {
  readonly name: string;
  readonly sizeBytes: (parameters: MachineParameters) => number;
}

const REGIONS = [
  { name: 'header', sizeBytes: () => FRAME_BYTES },
  { name: 'pcpus', sizeBytes: () => THREAD_MAX * PCPU_STRIDE_BYTES },
  { name: 'domains', sizeBytes: (p) => p.domainCount * p.domainStrideBytes },
  { name: 'vcpus', sizeBytes: (p) => p.vcpuCount * p.vcpuStrideBytes },
  { name: 'interrupts', sizeBytes: (p) => p.domainCount * GIC_DOMAIN.sizeBytes + p.vcpuCount * GIC_VCPU.sizeBytes },
  {
    name: 'scheduler',
    sizeBytes: (p) => SCHEDULER.sizeBytes + p.vcpuCount * VCPU_SCHEDULE.sizeBytes + p.domainCount * DOMAIN_SCHEDULE.sizeBytes,
  },
  { name: 'code', sizeBytes: (p) => p.codeBytes },
  { name: 'decodeAhead', sizeBytes: () => DECODE_AHEAD.sizeBytes },
  { name: 'frameTable', sizeBytes: (p) => (p.sizeBytes / FRAME_BYTES) * FRAME.sizeBytes },
  { name: 'heap', sizeBytes: (p) => HEAP.at.accounts + p.domainCount * 8 },
] as const satisfies readonly RegionSpec[];

export type RegionName = (typeof REGIONS)[number]['name'] | 'frames';

export interface Region {
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

export type MachineRegions = Readonly<Record<RegionName, Region>>;

const REGION_NAMES: readonly RegionName[] = [...REGIONS.map((region) => region.name), 'frames'];
const HEADER_REGIONS = 32;
assert(REGION_NAMES.length <= HEADER_REGIONS, 'more regions than the header has room for');

/** Sizes and offsets are in frames where they could pass 4 GiB. */
export const MACHINE_HEADER = struct('machineHeader', {
  magic: u32,
  version: u32,
  addressBits: u32,
  sizeFrames: u32,
  pcpuCount: u32,
  domainCount: u32,
  domainStrideBytes: u32,
  vcpuCount: u32,
  vcpuStrideBytes: u32,
  codeBytes: u32,
  regionCount: u32,
  regionFrames: array(u32, 2 * HEADER_REGIONS),
  /** Taken around 128-bit exclusives and compare-and-swaps, of which emitted code has no atomic form. */
  pairLock: u32,
  /** Counts what the translator has sent to the pCPUs' threads (cpu/jit/region-parcels.ts). */
  regionParcels: u32,
  /** How many regions of guest code the translator has compiled and not given up. */
  compiledRegions: u32,
  /** Regions in the store (cpu/jit/region-store.ts), those of them that this host has made use of, and those it has added. */
  storedRegions: u32,
  foundRegions: u32,
  addedRegions: u32,
}, { padTo: FRAME_BYTES });

/** 'ZZMM', little-endian. */
export const MACHINE_MAGIC = 0x4d4d5a5a;
export const MACHINE_VERSION = 1;

const mib = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;
const sizeError = (message: string, hint: string) => new ZazenError('ZAZEN_HOST_MEMORY_SIZE', message, { hint });

/** @throws ZazenError ZAZEN_HOST_MEMORY_SIZE when the parameters do not fit the address type or leave no frames. */
export function layoutMachine(parameters: MachineParameters): MachineRegions {
  const { sizeBytes, addressType } = parameters;
  const maxBytes = SIZE_MAX_BYTES[addressType];
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % WASM_PAGE_BYTES !== 0) {
    throw sizeError(`host memory of ${sizeBytes} bytes is not a multiple of 64 KiB`, 'give a size like 2GiB');
  }
  if (sizeBytes > maxBytes) {
    throw sizeError(`host memory of ${mib(sizeBytes)} is more than the ${mib(maxBytes)} that a host can have`
      + (addressType === 'i32' ? ' with 32-bit addresses' : ''), `give at most ${maxBytes / 2 ** 30}GiB`);
  }
  assert(parameters.pcpuCount >= 1 && parameters.pcpuCount <= PCPU_MAX, 'pCPU count out of range');
  assert(parameters.domainCount >= 1, 'domain 0 is the host itself');
  const regions: Partial<Record<RegionName, Region>> = {};
  let offsetBytes = 0;
  for (const region of REGIONS) {
    regions[region.name] = { offsetBytes, sizeBytes: region.sizeBytes(parameters) };
    offsetBytes += Math.ceil(region.sizeBytes(parameters) / WASM_PAGE_BYTES) * WASM_PAGE_BYTES;
  }
  if (offsetBytes + WASM_PAGE_BYTES > sizeBytes) {
    throw sizeError(`host memory of ${mib(sizeBytes)} leaves no room for guests: the host's records take ${mib(offsetBytes)}`,
      'give the host more memory, such as 1GiB');
  }
  assert(offsetBytes < 2 ** 32, 'records of the machine end above 4 GiB');
  regions.frames = { offsetBytes, sizeBytes: sizeBytes - offsetBytes };
  return regions as MachineRegions;
}

const headerIndex = (field: keyof typeof MACHINE_HEADER.at) => MACHINE_HEADER.at[field] >>> 2;

export function writeMachineHeader(u32s: Uint32Array, parameters: MachineParameters, regions: MachineRegions): void {
  const set = (field: keyof typeof MACHINE_HEADER.at, value: number) => { u32s[headerIndex(field)] = value; };
  set('version', MACHINE_VERSION);
  set('addressBits', parameters.addressType === 'i64' ? 64 : 32);
  set('sizeFrames', parameters.sizeBytes / FRAME_BYTES);
  set('pcpuCount', parameters.pcpuCount);
  set('domainCount', parameters.domainCount);
  set('domainStrideBytes', parameters.domainStrideBytes);
  set('vcpuCount', parameters.vcpuCount);
  set('vcpuStrideBytes', parameters.vcpuStrideBytes);
  set('codeBytes', parameters.codeBytes);
  set('regionCount', REGION_NAMES.length);
  REGION_NAMES.forEach((name, i) => {
    const at = headerIndex('regionFrames') + 2 * i;
    u32s[at] = regions[name].offsetBytes / FRAME_BYTES;
    u32s[at + 1] = Math.ceil(regions[name].sizeBytes / FRAME_BYTES);
  });
  Atomics.store(u32s, headerIndex('magic'), MACHINE_MAGIC);
}

export function readMachineHeader(u32s: Uint32Array): { parameters: MachineParameters; regions: MachineRegions } {
  const get = (field: keyof typeof MACHINE_HEADER.at) => u32s[headerIndex(field)]!;
  assert(Atomics.load(u32s, headerIndex('magic')) === MACHINE_MAGIC, 'not a machine memory');
  assert(get('version') === MACHINE_VERSION, 'machine memory of another version');
  assert(get('regionCount') === REGION_NAMES.length, 'machine memory with other regions');
  const regions: Partial<Record<RegionName, Region>> = {};
  REGION_NAMES.forEach((name, i) => {
    const at = headerIndex('regionFrames') + 2 * i;
    regions[name] = { offsetBytes: u32s[at]! * FRAME_BYTES, sizeBytes: u32s[at + 1]! * FRAME_BYTES };
  });
  const parameters: MachineParameters = {
    sizeBytes: get('sizeFrames') * FRAME_BYTES,
    addressType: get('addressBits') === 64 ? 'i64' : 'i32',
    pcpuCount: get('pcpuCount'),
    domainCount: get('domainCount'),
    domainStrideBytes: get('domainStrideBytes'),
    vcpuCount: get('vcpuCount'),
    vcpuStrideBytes: get('vcpuStrideBytes'),
    codeBytes: get('codeBytes'),
  };
  return { parameters, regions: regions as MachineRegions };
}
