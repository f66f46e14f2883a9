// What the gateway keeps for one guest: its addresses, how much memory its traffic may hold, and which of its
// connections wait for its card.

import { Ipv4Reassembly } from './ipv4-reassembly.ts';
import type { SwitchPort } from './switch.ts';

/** Most that is held for one guest in buffers of the gateway. */
export const GUEST_BUDGET_BYTES = 64 << 20;

const IP_AND_TCP_HEADER_BYTES = 40;

/** Bytes held on behalf of a guest. What would exceed the bound is dropped or not read, and comes again. */
export class MemoryBudget {
  readonly limitBytes: number;
  usedBytes = 0;
  /** Who stopped reading because the budget was used up; called when there is room again. */
  readonly #waiting = new Set<() => void>();

  constructor(limitBytes: number = GUEST_BUDGET_BYTES) {
    this.limitBytes = limitBytes;
  }

  get exhausted(): boolean {
    return this.usedBytes >= this.limitBytes;
  }

  admits(bytes: number): boolean {
    return this.usedBytes + bytes <= this.limitBytes;
  }

  /** For what cannot be passed on yet: half is left for what can, or nothing would ever be freed. */
  admitsEarly(bytes: number): boolean {
    return this.usedBytes + bytes <= this.limitBytes / 2;
  }

  change(bytes: number): void {
    this.usedBytes += bytes;
    if (bytes >= 0 || this.#waiting.size === 0 || this.usedBytes > this.limitBytes / 2) return;
    const resume = [...this.#waiting];
    this.#waiting.clear();
    for (const callback of resume) callback();
  }

  /** Calls back once, when half of the budget is free. */
  whenFree(callback: () => void): void {
    this.#waiting.add(callback);
  }

  forget(callback: () => void): void {
    this.#waiting.delete(callback);
  }
}

export class PortState {
  readonly port: SwitchPort;
  /** Host name that the operator gave. */
  readonly name: string | undefined;
  /** The address that is kept for the guest, and the one that it uses: another one if it was set by hand. */
  readonly address: number;
  activeAddress: number;
  readonly budget: MemoryBudget;
  readonly reassembly = new Ipv4Reassembly();
  /** TCP payload of a segment that fills the MTU. */
  readonly maxSegmentBytes: number;
  #usesReserved = false;

  constructor(port: SwitchPort, options: { name?: string; address: number; mtuBytes: number; budgetBytes?: number }) {
    this.port = port;
    this.name = options.name;
    this.address = this.activeAddress = options.address;
    this.budget = new MemoryBudget(options.budgetBytes);
    this.maxSegmentBytes = options.mtuBytes - IP_AND_TCP_HEADER_BYTES;
  }

  get congested(): boolean {
    return this.port.congested;
  }

  /** The guest's card has sent from this address. */
  sawAddress(address: number): void {
    // Once the reserved address is in use, it stays the one that is meant by the guest's name and its forwards.
    if (!this.#usesReserved) this.activeAddress = address;
    if (address === this.address) this.#usesReserved = true;
  }

  /** Most TCP payload in one frame: whole segments, many of them if the guest's card cuts or joins them itself. */
  burstBytes(segmentBytes: number): number {
    const { features } = this.port.link;
    if (!features.tsoV4 || !features.checksumPartial) return segmentBytes;
    return Math.max(1, Math.floor((65535 - IP_AND_TCP_HEADER_BYTES) / segmentBytes)) * segmentBytes;
  }
}
