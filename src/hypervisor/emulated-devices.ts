// Emulated registers of domains of type hvm, served in the thread of the pCPU that makes the access: nothing is sent to
// another thread, nothing is allocated, and the registers lie in a frame that was set up when the domain was built
// (abi/emulated-devices.ts). What a device has for the host's thread to do, it says by the domain's bit in HOST_EVENTS,
// as the emergency console does. Models of devices are in devices/*; the host wires them.

import { DOMAIN, HOST_LISTENER } from '../abi/domain-record.ts';
import { EMULATED } from '../abi/emulated-devices.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { scratchOffset } from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { spinLock, spinUnlock } from '../memory/spin.ts';
import type { DomainRecord, DomainTable } from './domain-record.ts';
import { notifyHostOf } from './event-delivery.ts';
import type { Gic } from './gic.ts';

/** The frame of a domain's devices, as a model sees it. One object serves all accesses of a thread. */
export class DeviceFrame {
  readonly machine: MachineMemory;
  readonly #gic: Gic;
  readonly #domains: DomainTable;
  #record: DomainRecord | undefined;
  #address = 0;

  constructor(gic: Gic, domains: DomainTable) {
    this.machine = gic.machine;
    this.#gic = gic;
    this.#domains = domains;
  }

  /** @returns false for a domain without emulated devices */
  select(domid: number): boolean {
    this.#record = this.#domains.record(domid);
    this.#address = this.#record.get(DOMAIN.at.emulated) * FRAME_BYTES;
    return this.#address !== 0;
  }

  get record(): DomainRecord {
    return this.#record!;
  }
  /** Byte address in machine memory. */
  get address(): number {
    return this.#address;
  }

  /** A word of the frame. */
  get(offset: number): number {
    return this.machine.u32[(this.#address + offset) / 4]!;
  }
  set(offset: number, value: number): void {
    this.#assertHere();
    this.machine.u32[(this.#address + offset) / 4] = value;
  }
  count(offset: number): void {
    Atomics.add(this.machine.u32, (this.#address + offset) / 4, 1);
  }

  lock(offset: number): void {
    this.#assertHere();
    spinLock(this.machine.u32, (this.#address + offset) / 4);
  }
  unlock(offset: number): void {
    spinUnlock(this.machine.u32, (this.#address + offset) / 4);
  }

  /** A rollback may give a domain another frame, and the one that it had is anybody's then. */
  #assertHere(): void {
    assert(this.#record!.get(DOMAIN.at.emulated) * FRAME_BYTES === this.#address, 'the devices\' registers have moved');
  }

  /** Drives an interrupt line. With the device's lock, so that the last word about it is the right one. */
  setLine(intid: number, level: boolean): void {
    this.#gic.setSpiLevel(this.#record!.domid, intid, level);
  }

  /** The network thread looks soon at the domain's virtio cards. */
  callNetwork(): void {
    notifyHostOf(this.#domains.record(0), this.#record!.domid, HOST_LISTENER.network);
  }
  /** The host's thread looks at the domain soon, and at all its devices. */
  callHost(): void {
    this.count(EMULATED.at.hostCalls);
    notifyHostOf(this.#domains.record(0), this.#record!.domid);
  }
}

/** The registers of a kind of device, in one range of guest physical addresses. */
export interface RegisterModel {
  readonly base: number;
  readonly sizeBytes: number;
  /** @param offset from `base`, a multiple of 4. @returns the word that is there */
  load(frame: DeviceFrame, offset: number): number;
  /** @param sizeBytes 1, 2 or 4; the offset is a multiple of it */
  store(frame: DeviceFrame, offset: number, value: number, sizeBytes: number): void;
}

export class EmulatedDevices {
  readonly frame: DeviceFrame;
  readonly #gic: Gic;
  readonly #models: readonly RegisterModel[];

  constructor(gic: Gic, domains: DomainTable, models: readonly RegisterModel[]) {
    this.frame = new DeviceFrame(gic, domains);
    this.#gic = gic;
    this.#models = models;
  }

  #modelAt(physicalAddress: number): RegisterModel | undefined {
    for (let i = 0; i < this.#models.length; i++) {
      const model = this.#models[i]!;
      if (physicalAddress >= model.base && physicalAddress < model.base + model.sizeBytes) return model;
    }
    return undefined;
  }

  /**
   * A load by a vCPU; the value goes to scratch words 0 and 1 of its record, zero-extended.
   * @param sizeBytes 1, 2, 4 or 8; the address is a multiple of it
   * @returns false if no device of the domain is there
   */
  load(vcpuAddress: number, physicalAddress: number, sizeBytes: number): boolean {
    const model = this.#modelAt(physicalAddress);
    if (model === undefined || !this.frame.select(this.#gic.domidOf(vcpuAddress))) return false;
    this.frame.count(EMULATED.at.accesses);
    const { u32 } = this.frame.machine;
    const offset = physicalAddress - model.base;
    const within = offset % 4;
    const word = model.load(this.frame, offset - within) >>> (8 * within);
    const index = (vcpuAddress + scratchOffset(0)) >>> 2;
    u32[index] = sizeBytes >= 4 ? word : word & (2 ** (8 * sizeBytes) - 1);
    u32[index + 1] = sizeBytes === 8 ? model.load(this.frame, offset + 4) : 0;
    return true;
  }

  /** A store by a vCPU of scratch words 0 and 1 of its record. @returns as `load` */
  store(vcpuAddress: number, physicalAddress: number, sizeBytes: number): boolean {
    const model = this.#modelAt(physicalAddress);
    if (model === undefined || !this.frame.select(this.#gic.domidOf(vcpuAddress))) return false;
    this.frame.count(EMULATED.at.accesses);
    const { u32 } = this.frame.machine;
    const offset = physicalAddress - model.base;
    const index = (vcpuAddress + scratchOffset(0)) >>> 2;
    const low = u32[index]!;
    const value = sizeBytes >= 4 ? low : low & (2 ** (8 * sizeBytes) - 1);
    model.store(this.frame, offset, value, Math.min(sizeBytes, 4));
    if (sizeBytes === 8) model.store(this.frame, offset + 4, u32[index + 1]!, 4);
    return true;
  }
}
