// PSCI 1.0 (Arm DEN 0022) and the part of the SMC calling convention (DEN 0028) that finds it, over HVC #0: the
// function is in W0, arguments in X1-X3, the result in X0.

import { vcpuOfAffinity } from '../abi/gic.ts';
import { SHUTDOWN } from '../abi/xen.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import type { Gic } from './gic.ts';
import type { VcpuScheduling } from './scheduler.ts';
import type { Timers } from './timer.ts';

/** Function identifiers; those with bit 30 take 64-bit arguments. */
export const PSCI = {
  SMCCC_VERSION: 0x8000_0000, SMCCC_ARCH_FEATURES: 0x8000_0001,
  VERSION: 0x8400_0000, CPU_SUSPEND: 0x8400_0001, CPU_OFF: 0x8400_0002, CPU_ON: 0x8400_0003, AFFINITY_INFO: 0x8400_0004,
  MIGRATE_INFO_TYPE: 0x8400_0006, SYSTEM_OFF: 0x8400_0008, SYSTEM_RESET: 0x8400_0009, FEATURES: 0x8400_000a,
  CPU_SUSPEND_64: 0xc400_0001, CPU_ON_64: 0xc400_0003, AFFINITY_INFO_64: 0xc400_0004,
} as const;

export const PSCI_RESULT = {
  success: 0, notSupported: -1, invalidParameters: -2, alreadyOn: -4, internalFailure: -6, invalidAddress: -9,
} as const;

const PSCI_VERSION_1_0 = 0x1_0000;
const SMCCC_VERSION_1_1 = 0x1_0001;
/** There is no trusted OS, so nothing to migrate. */
const MIGRATE_NOT_REQUIRED = 2;
const AFFINITY_ON = 0;
const AFFINITY_OFF = 1;
const AFFINITY_ON_PENDING = 2;
/** PSCI names a vCPU by Aff3 (bits 39-32) and Aff2-Aff0 (bits 23-0); all other bits are zero. */
const AFFINITY_BITS = 0xff_00ff_ffffn;

export interface PsciHost {
  readonly gic: Gic;
  readonly timers: Timers;
  readonly scheduling: VcpuScheduling;
  /** Puts a vCPU record into its state after reset: EL1, MMU off, interrupts masked, at `entry` with X0 = `context`. */
  resetVcpu(vcpuAddress: number, entry: bigint, context: bigint): void;
  /** The domain ends, for a reason of SHUTDOWN: its vCPUs run no further, the calling one not past the call. */
  shutdownDomain(domid: number, reason: number): void;
}

type Call = (vcpu: VcpuState, x1: bigint, x2: bigint, x3: bigint) => number;

export class Psci {
  readonly #host: PsciHost;
  readonly #calls: ReadonlyMap<number, Call>;

  constructor(host: PsciHost) {
    this.#host = host;
    const low = (value: bigint) => BigInt.asUintN(32, value);
    this.#calls = new Map<number, Call>([
      [PSCI.SMCCC_VERSION, () => SMCCC_VERSION_1_1],
      [PSCI.SMCCC_ARCH_FEATURES, (_vcpu, x1) => this.#archFeatures(Number(low(x1)))],
      [PSCI.VERSION, () => PSCI_VERSION_1_0],
      [PSCI.FEATURES, (_vcpu, x1) => this.#features(Number(low(x1)))],
      [PSCI.CPU_SUSPEND, vcpu => this.#suspend(vcpu)],
      [PSCI.CPU_SUSPEND_64, vcpu => this.#suspend(vcpu)],
      [PSCI.CPU_OFF, vcpu => this.#off(vcpu)],
      [PSCI.CPU_ON, (vcpu, x1, x2, x3) => this.#on(vcpu, low(x1), low(x2), low(x3))],
      [PSCI.CPU_ON_64, (vcpu, x1, x2, x3) => this.#on(vcpu, x1, x2, x3)],
      [PSCI.AFFINITY_INFO, (vcpu, x1, x2) => this.#affinityInfo(vcpu, low(x1), low(x2))],
      [PSCI.AFFINITY_INFO_64, (vcpu, x1, x2) => this.#affinityInfo(vcpu, x1, x2)],
      [PSCI.MIGRATE_INFO_TYPE, () => MIGRATE_NOT_REQUIRED],
      [PSCI.SYSTEM_OFF, vcpu => this.#shutdown(vcpu, SHUTDOWN.poweroff)],
      [PSCI.SYSTEM_RESET, vcpu => this.#shutdown(vcpu, SHUTDOWN.reboot)],
    ]);
  }

  /** Performs the call that the vCPU's registers say; an unknown one answers NOT_SUPPORTED. */
  call(vcpu: VcpuState): void {
    const call = this.#calls.get(Number(BigInt.asUintN(32, vcpu.x(0))));
    const result = call ? call(vcpu, vcpu.x(1), vcpu.x(2), vcpu.x(3)) : PSCI_RESULT.notSupported;
    vcpu.setX(0, BigInt(result));
  }

  #features(id: number): number {
    if (id === PSCI.SMCCC_ARCH_FEATURES) return PSCI_RESULT.notSupported;
    return this.#calls.has(id) ? PSCI_RESULT.success : PSCI_RESULT.notSupported;
  }
  /** No workarounds are offered: ID_AA64PFR0_EL1.CSV2 and CSV3 say that none are needed. */
  #archFeatures(id: number): number {
    const known = id === PSCI.SMCCC_VERSION || id === PSCI.SMCCC_ARCH_FEATURES;
    return known ? PSCI_RESULT.success : PSCI_RESULT.notSupported;
  }

  /** A standby state, entered like WFI; the power-down states of the argument are not told apart. */
  #suspend(vcpu: VcpuState): number {
    this.#host.scheduling.block(vcpu.address, undefined);
    return PSCI_RESULT.success;
  }

  #off(vcpu: VcpuState): number {
    this.#host.scheduling.setOnline(vcpu.address, false);
    return PSCI_RESULT.success;
  }

  /** Address of the vCPU record that an affinity names in the caller's domain, or 0. */
  #find(caller: VcpuState, affinity: bigint): number {
    if ((affinity & ~AFFINITY_BITS) !== 0n || affinity >> 32n !== 0n) return 0;
    const index = vcpuOfAffinity(Number(affinity));
    const { gic } = this.#host;
    const domid = gic.domidOf(caller.address);
    return index >= 0 && index < gic.vcpuCount(domid) ? gic.vcpuOf(domid, index) : 0;
  }

  #on(caller: VcpuState, affinity: bigint, entry: bigint, context: bigint): number {
    const { gic, timers, scheduling } = this.#host;
    const target = this.#find(caller, affinity);
    if (target === 0) return PSCI_RESULT.invalidParameters;
    if ((entry & 3n) !== 0n) return PSCI_RESULT.invalidAddress;
    const started = scheduling.start(target, () => {
      this.#host.resetVcpu(target, entry, context);
      timers.reset(target);
      gic.powerOn(target);
    });
    return started ? PSCI_RESULT.success : PSCI_RESULT.alreadyOn;
  }

  #affinityInfo(caller: VcpuState, affinity: bigint, level: bigint): number {
    const target = this.#find(caller, affinity);
    if (target === 0 || level !== 0n) return PSCI_RESULT.invalidParameters;
    if (this.#host.scheduling.isStarting(target)) return AFFINITY_ON_PENDING;
    return this.#host.scheduling.isOnline(target) ? AFFINITY_ON : AFFINITY_OFF;
  }

  #shutdown(vcpu: VcpuState, reason: number): number {
    this.#host.shutdownDomain(this.#host.gic.domidOf(vcpu.address), reason);
    return PSCI_RESULT.success;
  }
}
