// Arguments of hypercalls: a structure in guest memory, copied once before anything in it is believed.

import type { FieldType } from '../abi/struct.ts';
import { xOffset } from '../abi/vcpu.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import type { DomainRecord } from './domain-record.ts';
import type { GuestAccess } from './environment.ts';

/** The vCPU that makes a hypercall. */
export interface Caller {
  readonly vcpu: VcpuState;
  readonly vcpuId: number;
  readonly domain: DomainRecord;
}

export class GuestStruct {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** @returns undefined when the guest may not read there, or the call has to be made again */
  static read(
    guest: GuestAccess, caller: Caller, va: bigint, type: FieldType, willAnswer = false,
  ): GuestStruct | undefined {
    const bytes = guest.copyFromGuest(caller.vcpu, va, type.sizeBytes, willAnswer);
    return bytes === undefined ? undefined : new GuestStruct(bytes);
  }
  /** Of one that is written back: afterwards there is a frame for that. */
  static readToAnswer(guest: GuestAccess, caller: Caller, va: bigint, type: FieldType): GuestStruct | undefined {
    return GuestStruct.read(guest, caller, va, type, true);
  }

  static blank(type: FieldType): GuestStruct {
    return new GuestStruct(new Uint8Array(type.sizeBytes));
  }

  /** Writes all of it back. @returns false when the guest may not write there */
  write(guest: GuestAccess, caller: Caller, va: bigint, isRepeatable = false): boolean {
    return guest.copyToGuest(caller.vcpu, va, this.#bytes, isRepeatable);
  }

  u16(offset: number): number {
    return this.#bytes[offset]! | (this.#bytes[offset + 1]! << 8);
  }

  u32(offset: number): number {
    return (this.u16(offset) | (this.u16(offset + 2) << 16)) >>> 0;
  }

  u64(offset: number): bigint {
    return (BigInt(this.u32(offset + 4)) << 32n) | BigInt(this.u32(offset));
  }

  /** A u64 as a double: exact below 2^53, which every bound that it is compared with is. */
  number(offset: number): number {
    return this.u32(offset + 4) * 2 ** 32 + this.u32(offset);
  }

  set8(offset: number, value: number): void {
    this.#bytes[offset] = value;
  }

  set16(offset: number, value: number): void {
    this.#bytes[offset] = value;
    this.#bytes[offset + 1] = value >>> 8;
  }

  set32(offset: number, value: number): void {
    this.set16(offset, value);
    this.set16(offset + 2, value >>> 16);
  }

  /** A u64 from a whole number below 2^53. */
  setNumber(offset: number, value: number): void {
    this.set32(offset, value);
    this.set32(offset + 4, Math.floor(value / 2 ** 32));
  }

  set64(offset: number, value: bigint): void {
    this.set32(offset, Number(BigInt.asUintN(32, value)));
    this.set32(offset + 4, Number(BigInt.asUintN(32, value >> 32n)));
  }

  bytes(offset: number, sizeBytes: number): Uint8Array {
    return this.#bytes.subarray(offset, offset + sizeBytes);
  }

  /** NUL-terminated text, cut to the size of its field. */
  setText(offset: number, sizeBytes: number, text: string): void {
    this.#bytes.set(new TextEncoder().encode(text).subarray(0, sizeBytes - 1), offset);
  }
}

/** The arguments of one hypercall, from registers or from an entry of a multicall. */
export interface HypercallArguments {
  u32(index: number): number;
  /** As a double: exact below 2^53. */
  number(index: number): number;
  u64(index: number): bigint;
  /** For when the call is made again. */
  set(index: number, value: bigint): void;
}

export class RegisterArguments implements HypercallArguments {
  readonly #vcpu: VcpuState;

  constructor(vcpu: VcpuState) {
    this.#vcpu = vcpu;
  }

  u32(index: number): number {
    return this.#vcpu.get32(xOffset(index));
  }

  number(index: number): number {
    return this.#vcpu.getDouble(xOffset(index));
  }

  u64(index: number): bigint {
    return this.#vcpu.x(index);
  }

  set(index: number, value: bigint): void {
    this.#vcpu.set64(xOffset(index), value);
  }
}
