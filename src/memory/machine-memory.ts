// The machine memory: one shared WebAssembly.Memory with typed views over all of it, created once by the host and
// attached to by every worker. Where things are in it is said by abi/machine-memory.ts.
//
// Every view covers the whole memory, up to 16 GiB: an index is a plain number (a double beyond 2^31, which typed
// arrays accept). Compute indices with * and Math, not with 32-bit shifts, wherever an MFN or address goes in.

import {
  FRAME_BYTES, PCPU_STRIDE_BYTES, defaultMachineParameters, layoutMachine, readMachineHeader, vcpuCountOf, writeMachineHeader,
} from '../abi/machine-memory.ts';
import type { MachineParameters, MachineRegions, Region, RegionName } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';
import { frameOperations } from './frame-operations.ts';
import type { FrameOperations } from './frame-operations.ts';

const WASM_PAGE_BYTES = 65536;

function createWasmMemory({ sizeBytes, addressType }: MachineParameters): WebAssembly.Memory {
  const pages = sizeBytes / WASM_PAGE_BYTES;
  try {
    if (addressType === 'i32') return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    const bigPages = BigInt(pages);
    return new WebAssembly.Memory({ initial: bigPages, maximum: bigPages, shared: true, address: 'i64' });
  } catch (cause) {
    throw new ZazenError('ZAZEN_HOST_MEMORY_UNAVAILABLE', `cannot reserve ${sizeBytes} bytes of host memory`,
      { cause, hint: 'give the host less memory, or raise the address space limit (ulimit -v)' });
  }
}

export class MachineMemory {
  readonly memory: WebAssembly.Memory;
  readonly parameters: MachineParameters;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
  readonly f64: Float64Array;
  /** MFNs of guest-usable frames: firstFrame ≤ mfn < frameEnd. */
  readonly firstFrame: number;
  readonly frameEnd: number;
  readonly #regions: MachineRegions;
  readonly #operations: FrameOperations;

  private constructor(memory: WebAssembly.Memory, parameters: MachineParameters, regions: MachineRegions) {
    const { buffer } = memory;
    this.memory = memory;
    this.parameters = parameters;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.f64 = new Float64Array(buffer);
    this.#regions = regions;
    this.#operations = frameOperations(memory, parameters.addressType);
    this.firstFrame = regions.frames.offsetBytes / FRAME_BYTES;
    this.frameEnd = parameters.sizeBytes / FRAME_BYTES;
  }

  /**
   * Reserves the memory and writes its header; all else is zero. Nothing is committed before it is touched.
   * @throws ZazenError ZAZEN_HOST_MEMORY_SIZE, ZAZEN_HOST_MEMORY_UNAVAILABLE
   */
  static create(parameters: Partial<MachineParameters> = {}): MachineMemory {
    const { sizeBytes } = { ...defaultMachineParameters, ...parameters };
    const complete = { ...defaultMachineParameters, vcpuCount: vcpuCountOf(sizeBytes), ...parameters };
    const regions = layoutMachine(complete);
    const memory = createWasmMemory(complete);
    writeMachineHeader(new Uint32Array(memory.buffer), complete, regions);
    return MachineMemory.attach(memory);
  }

  /** For a worker that was posted the memory. */
  static attach(memory: WebAssembly.Memory): MachineMemory {
    const { parameters, regions } = readMachineHeader(new Uint32Array(memory.buffer));
    return new MachineMemory(memory, parameters, regions);
  }

  /** Offset and size in bytes of a region; sizes are rounded up to whole frames. */
  region(name: RegionName): Region {
    return this.#regions[name];
  }

  pcpuAddress(pcpu: number): number {
    return this.#regions.pcpus.offsetBytes + pcpu * PCPU_STRIDE_BYTES;
  }

  domainAddress(domain: number): number {
    return this.#regions.domains.offsetBytes + domain * this.parameters.domainStrideBytes;
  }

  vcpuAddress(vcpu: number): number {
    return this.#regions.vcpus.offsetBytes + vcpu * this.parameters.vcpuStrideBytes;
  }

  /** A view of one frame; for slow paths, as it makes an object. */
  frameBytes(mfn: number): Uint8Array {
    return this.u8.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES);
  }

  zeroFrame(mfn: number): void {
    this.#operations.zero(mfn);
  }

  copyFrame(to: number, from: number): void {
    this.#operations.copy(to, from);
  }

  /** Offset of the first 8 bytes that differ in two frames, from `fromBytes` (a multiple of 8) on; or FRAME_BYTES. */
  nextDifference(a: number, b: number, fromBytes: number): number {
    return this.#operations.nextDifference(a, b, fromBytes);
  }
}
