// The machine around a vCPU of a domain, as the CPU sees it (cpu/host.ts): stage 2 through the domain's p2m, the
// interrupt controller's and the timers' registers, hypercalls and PSCI. One for each pCPU thread.

import { sysreg } from '../a64/system-registers.ts';
import { DOMAIN } from '../abi/domain-record.ts';
import { ACTIVITY, vcpuRecord } from '../abi/vcpu.ts';
import { XEN_HYPERCALL_TAG } from '../abi/xen.ts';
import { NO_FRAME } from '../cpu/host.ts';
import type { CpuHost } from '../cpu/host.ts';
import { ANY_ASID, forgetFrame } from '../cpu/tlb-requests.ts';
import type { TlbRequest } from '../cpu/tlb-requests.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import { OUT_OF_FRAMES, PAGE_LOST } from '../memory/p2m.ts';
import type { EmulatedDevices } from './emulated-devices.ts';
import { settleP2m } from './environment.ts';
import type { Environment } from './environment.ts';
import type { GicCpuInterface } from './gic-cpu-interface.ts';
import type { GicRegisters } from './gic-registers.ts';
import type { Gic } from './gic.ts';
import type { Caller } from './guest-struct.ts';
import type { Hypercalls } from './hypercalls.ts';
import type { Psci } from './psci.ts';
import type { Timers } from './timer.ts';

/** What the CPU host is made of; all of the same thread and machine. */
export interface CpuHostParts {
  readonly environment: Environment;
  readonly hypercalls: Hypercalls;
  readonly gic: Gic;
  readonly gicRegisters: GicRegisters;
  readonly devices: EmulatedDevices;
  readonly cpuInterface: GicCpuInterface;
  readonly timers: Timers;
  readonly psci: Psci;
  /** The decode cache is full, or all decoded code is to go: stops all pCPUs, empties it, flushes all TLBs. */
  readonly flushDecodeCache: (regionEpoch?: number) => void;
  /** Stops all pCPUs for an action, and makes those that are in the middle of an instruction leave its code. */
  readonly stopCode: (action: () => void) => void;
  /** Makes all vCPUs of a domain forget translations, but the calling one, which sees to itself. */
  readonly flushOthers: (domid: number, vcpu: VcpuState, request: TlbRequest, asid: number) => void;
  /** Makes a vCPU of this thread forget translations to a frame. */
  readonly forgetFrame: (vcpu: VcpuState, mfn: number) => void;
}


export class DomainCpuHost implements CpuHost {
  readonly #parts: CpuHostParts;
  readonly #callers = new Map<number, Caller>();
  #lostGfn: number | undefined;

  constructor(parts: CpuHostParts) {
    this.#parts = parts;
  }

  #root(vcpu: VcpuState): number {
    const { gic, hypercalls } = this.#parts;
    return hypercalls.domains.record(gic.domidOf(vcpu.address)).get(DOMAIN.at.p2mRoot);
  }

  stageTwoRootAddress(vcpu: VcpuState): number {
    const { environment, gic } = this.#parts;
    return environment.memory.domainAddress(gic.domidOf(vcpu.address)) + DOMAIN.at.p2mRoot;
  }

  frameForRead(vcpu: VcpuState, guestFrame: number): number {
    const mfn = this.#parts.environment.p2m.frameForRead(this.#root(vcpu), guestFrame);
    return mfn > 0 ? mfn : this.#noFrame(mfn, guestFrame);
  }

  frameForWrite(vcpu: VcpuState, guestFrame: number): number {
    const { environment } = this.#parts;
    for (;;) {
      const mfn = environment.p2m.frameForWrite(this.#root(vcpu), guestFrame);
      if (!environment.p2m.stale) return mfn > 0 ? mfn : this.#noFrame(mfn, guestFrame);
      // This thread may count as out of code while it waits for others, and they may take the very frame away.
      this.#settle(vcpu);
    }
  }

  /** A page that was shared has been copied: only what was made from that page goes. */
  #settle(vcpu: VcpuState): void {
    const { environment, gic, forgetFrame: forget, flushOthers } = this.#parts;
    const domid = gic.domidOf(vcpu.address);
    const replaced = environment.p2m.onlyStaleFrame;
    if (replaced === 0) return settleP2m(environment, domid);
    if (gic.vcpuCount(domid) > 1) flushOthers(domid, vcpu, forgetFrame(replaced), ANY_ASID);
    environment.p2m.releaseStale();
    forget(vcpu, replaced);
  }

  #noFrame(answer: number, guestFrame: number): number {
    if (answer !== OUT_OF_FRAMES && answer !== PAGE_LOST) return 0;
    this.#lostGfn = answer === PAGE_LOST ? guestFrame : undefined;
    return NO_FRAME;
  }
  /** What the last NO_FRAME was about: a guest frame that cannot be read from its image; undefined: want of frames. */
  get lostGfn(): number | undefined {
    return this.#lostGfn;
  }

  mmioLoad(vcpu: VcpuState, physicalAddress: number, sizeBytes: number): boolean {
    vcpu.set32(vcpuRecord.at.activity, ACTIVITY.devices);
    return this.#parts.gicRegisters.load(vcpu.address, physicalAddress, sizeBytes)
      || this.#parts.devices.load(vcpu.address, physicalAddress, sizeBytes);
  }
  mmioStore(vcpu: VcpuState, physicalAddress: number, sizeBytes: number): boolean {
    vcpu.set32(vcpuRecord.at.activity, ACTIVITY.devices);
    return this.#parts.gicRegisters.store(vcpu.address, physicalAddress, sizeBytes)
      || this.#parts.devices.store(vcpu.address, physicalAddress, sizeBytes);
  }

  readSystemRegister(vcpu: VcpuState, encoding: number, slot: number): boolean {
    const { cpuInterface, timers } = this.#parts;
    if (isTimer(encoding)) return timers.read(vcpu, encoding, slot);
    const value = cpuInterface.read(vcpu.address, encoding);
    if (value !== undefined) vcpu.setHalves(slot, value, 0);
    return value !== undefined;
  }
  readCounter(vcpuAddress: number): number {
    return this.#parts.timers.counter(vcpuAddress);
  }
  writeSystemRegister(vcpu: VcpuState, encoding: number, slot: number): boolean {
    const { cpuInterface, timers } = this.#parts;
    const low = vcpu.get32(slot);
    const high = vcpu.get32(slot + 4);
    return isTimer(encoding)
      ? timers.write(vcpu.address, encoding, low, high)
      : cpuInterface.write(vcpu.address, encoding, low, high);
  }

  hvc(vcpu: VcpuState, immediate: number): boolean {
    if (immediate === XEN_HYPERCALL_TAG) {
      vcpu.set32(vcpuRecord.at.hypercalls, vcpu.get32(vcpuRecord.at.hypercalls) + 1);
      this.#parts.hypercalls.serve(this.caller(vcpu));
      return true;
    }
    if (immediate !== 0) return false;
    this.#parts.psci.call(vcpu);
    return true;
  }

  /** The domain's record may be that of another domain than last time; it is looked up by its id each time. */
  caller(vcpu: VcpuState): Caller {
    const { gic, hypercalls } = this.#parts;
    const domid = gic.domidOf(vcpu.address);
    const vcpuId = gic.indexOf(vcpu.address);
    const known = this.#callers.get(vcpu.address);
    if (known && known.domain.domid === domid && known.vcpuId === vcpuId) return known;
    const caller = { vcpu, vcpuId, domain: hypercalls.domains.record(domid) };
    this.#callers.set(vcpu.address, caller);
    return caller;
  }

  broadcastTlbInvalidate(vcpu: VcpuState, request: TlbRequest, asid: number): void {
    const domid = this.#parts.gic.domidOf(vcpu.address);
    if (this.#parts.gic.vcpuCount(domid) > 1) this.#parts.flushOthers(domid, vcpu, request, asid);
  }
  whileOthersStopped(vcpu: VcpuState, action: () => void): void {
    const { gic, stopCode } = this.#parts;
    if (gic.vcpuCount(gic.domidOf(vcpu.address)) > 1) stopCode(action);
    else action();
  }
  flushDecodeCache(_vcpu: VcpuState, regionEpoch?: number): void {
    this.#parts.flushDecodeCache(regionEpoch);
  }
}

function isTimer(encoding: number): boolean {
  return encoding >>> 7 === sysreg.CNTFRQ_EL0 >>> 7;
}
