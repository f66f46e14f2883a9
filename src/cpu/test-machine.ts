// A machine for tests of the CPU: flat guest memory without stage 2, no devices, no hypervisor. Guest physical memory
// starts at GUEST_BASE and is a run of frames at the end of the machine memory.

import { systemRegister } from '../a64/system-registers.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { Engine } from './engine.ts';
import type { CpuHost } from './host.ts';
import { interpreterLayout } from './handlers.ts';
import { buildInterpreter } from './interpreter.ts';
import { resetVcpu } from './reset.ts';
import { ForcedRegions, LocalTranslator } from './test-regions.ts';
import type { ForcedOptions, TestRegionOptions } from './test-regions.ts';
import { mustHear, postTlbRequest } from './tlb-requests.ts';
import type { TlbRequest } from './tlb-requests.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
/** Guest physical address of the first byte of memory. */
export const GUEST_BASE = 0x4000_0000;

export class TestHost implements CpuHost {
  readonly machine: MachineMemory;
  /** HVC immediates in the order they were made; the run stops at each. */
  readonly hypercalls: number[] = [];
  engine: Engine | undefined;
  /** Emulated registers for tests of MMIO: physical address → value. */
  readonly registers = new Map<number, bigint>();
  /** CNTVCT_EL0. */
  counter = 0;

  /** All vCPUs of the machine, those of other engines among them. */
  readonly vcpus: VcpuState[];

  constructor(machine: MachineMemory, vcpus: VcpuState[]) {
    this.machine = machine;
    this.vcpus = vcpus;
  }

  stageTwoRootAddress(): number {
    return 0;
  }
  frameForRead(_vcpu: VcpuState, guestFrame: number): number {
    const mfn = this.machine.firstFrame + guestFrame - GUEST_BASE / 4096;
    return mfn >= this.machine.firstFrame && mfn < this.machine.frameEnd ? mfn : 0;
  }
  frameForWrite(vcpu: VcpuState, guestFrame: number): number {
    return this.frameForRead(vcpu, guestFrame);
  }
  mmioLoad(vcpu: VcpuState, physicalAddress: number, _sizeBytes: number): boolean {
    const value = this.registers.get(physicalAddress);
    if (value === undefined) return false;
    vcpu.set64(at.scratch, value);
    return true;
  }
  mmioStore(vcpu: VcpuState, physicalAddress: number, _sizeBytes: number): boolean {
    if (!this.registers.has(physicalAddress)) return false;
    this.registers.set(physicalAddress, vcpu.get64(at.scratch));
    return true;
  }
  readSystemRegister(vcpu: VcpuState, encoding: number, slot: number): boolean {
    if (encoding !== systemRegister(3, 3, 14, 0, 0)) return false;
    vcpu.setHalves(slot, 62_500_000, 0);
    return true;
  }
  readCounter(): number {
    return this.counter;
  }
  writeSystemRegister(): boolean {
    return false;
  }
  hvc(_vcpu: VcpuState, immediate: number): boolean {
    this.hypercalls.push(immediate);
    this.engine!.requestExit('host');
    return true;
  }
  broadcastTlbInvalidate(vcpu: VcpuState, request: TlbRequest, asid: number): void {
    for (const other of this.vcpus) {
      if (other.address !== vcpu.address && mustHear(other, other.address, request, asid)) postTlbRequest(other, other.address, request);
    }
  }
  whileOthersStopped(_vcpu: VcpuState, action: () => void): void {
    action();
  }
  flushDecodeCache(_vcpu: VcpuState, regionEpoch?: number): void {
    this.engine!.decodeCache.empty(regionEpoch);
    for (const vcpu of this.vcpus) this.engine!.flushTlb(vcpu);
  }
}

/** A vCPU on an engine of its own. */
export interface TestVcpu {
  readonly host: TestHost;
  readonly engine: Engine;
  readonly vcpu: VcpuState;
}

export interface TestMachine extends TestVcpu {
  readonly machine: MachineMemory;
  readonly translator: LocalTranslator | undefined;
  /** Guest physical memory. */
  readonly ram: Uint8Array;
  /** Writes instruction words at a guest physical address. Decoded code of those addresses is dropped. */
  load(physicalAddress: number, words: readonly number[]): void;
  /** Another vCPU (1 to 3), reset, that shares the memory. */
  addVcpu(index: number): TestVcpu;
}

/** Regions of what is loaded together at most. */
const FORCED_ENTRIES = 64;

/** The module depends on the shape of the memory only; tests that make many machines share it. */
const modules = new Map<string, WebAssembly.Module>();

export interface TestMachineOptions {
  readonly sizeBytes?: number;
  readonly addressType?: 'i32' | 'i64';
  /** Hot code is compiled; without this all is interpreted. */
  readonly regions?: TestRegionOptions;
  /** All that is loaded is compiled at once, with regions that begin at every instruction of a short program. */
  readonly forced?: ForcedOptions;
}

export function createTestMachine(options: TestMachineOptions = {}): TestMachine {
  const addressType = options.addressType ?? 'i32';
  const machine = MachineMemory.create({
    sizeBytes: options.sizeBytes ?? 64 * 2 ** 20, addressType, domainCount: 1, vcpuCount: 4, codeBytes: 8 * 2 ** 20,
  });
  const pages = machine.parameters.sizeBytes / 65536;
  const key = `${addressType} ${pages}`;
  let module = modules.get(key);
  if (!module) {
    const bytes = buildInterpreter({ addressType, minPages: 1, maxPages: pages }, interpreterLayout(machine));
    modules.set(key, module = new WebAssembly.Module(bytes));
  }
  const vcpus: VcpuState[] = [];
  const translator = options.regions && new LocalTranslator(machine, options.regions);
  const forced = options.forced && new ForcedRegions(machine, options.forced);
  const addVcpu = (index: number): TestVcpu => {
    const host = new TestHost(machine, vcpus);
    const engine = new Engine(machine, host, module, { pcpu: index, ...(translator && { regions: translator.client() }) });
    host.engine = engine;
    forced?.serve(engine);
    const vcpu = engine.vcpu(machine.vcpuAddress(index));
    vcpus.push(vcpu);
    resetVcpu(vcpu, index);
    return { host, engine, vcpu };
  };
  const { host, engine, vcpu } = addVcpu(0);
  const start = machine.firstFrame * 4096;
  const ram = machine.u8.subarray(start);
  return {
    machine, host, engine, vcpu, ram, addVcpu, translator,
    load(physicalAddress, words) {
      const offset = physicalAddress - GUEST_BASE;
      words.forEach((word, i) => { machine.u32[(start + offset) / 4 + i] = word; });
      for (let i = 0; i < words.length * 4 + 64; i += 64) {
        engine.decodeCache.invalidateLine(machine.firstFrame + Math.floor((offset + i) / 4096), (offset + i) & 0xfff, 64, action => action());
      }
      const step = Math.ceil(words.length / FORCED_ENTRIES);
      forced?.compile(words.filter((_, i) => i % step === 0).map((_, i) => {
        const place = offset + 4 * i * step;
        return { mfn: machine.firstFrame + Math.floor(place / 4096), offsetInPage: place & 0xfff };
      }));
    },
  };
}

/** ESR_EL1.EC after an exception. */
export function exceptionClassOf(vcpu: VcpuState): number {
  return vcpu.get32(at.esrEl1) >>> 26;
}

export interface SliceOptions {
  /** Instructions; not always so many, or slices might always end at the same place of a loop. */
  readonly instructions: number;
  /** Reaching this is a failure. */
  readonly slicesMax: number;
  readonly afterSlice?: () => void;
}

/**
 * Runs code from an address on, in slices, until it makes a hypercall.
 * @returns instructions retired by that
 */
export function runToHypercall({ vcpu, engine, host }: TestVcpu, address: number, options: SliceOptions): bigint {
  const before = vcpu.get64(at.instructionsRetired);
  vcpu.set32(at.record, 0);
  vcpu.set64(at.pcBase, BigInt(address));
  const calls = host.hypercalls.length;
  for (let slices = 0; host.hypercalls.length === calls; slices++) {
    assert(slices < options.slicesMax, 'the code does not end');
    engine.run(vcpu, options.instructions + slices % 19);
    options.afterSlice?.();
  }
  return vcpu.get64(at.instructionsRetired) - before;
}
