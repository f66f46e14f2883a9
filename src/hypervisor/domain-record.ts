// Access to domain records (drawn in abi/domain-record.ts) from TypeScript: fields, locks, table entries. Objects of
// this class hold no state of the domain, so any number of threads may have one for the same record.

import { DOMAIN, DOMAIN_STATE, PORT, PORTS_PER_FRAME, VCPUS_PER_FRAME, VCPU_ENTRY } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { spinLock, spinUnlock } from '../memory/spin.ts';

export class DomainRecord {
  readonly memory: MachineMemory;
  readonly domid: number;
  readonly address: number;

  constructor(memory: MachineMemory, domid: number) {
    assert(domid >= 0 && domid < memory.parameters.domainCount, 'no such domain record');
    assert(memory.parameters.domainStrideBytes >= DOMAIN.sizeBytes, 'domain records do not fit their stride');
    this.memory = memory;
    this.domid = domid;
    this.address = memory.domainAddress(domid);
  }

  /** A u32 field. */
  get(offset: number): number {
    return Atomics.load(this.memory.u32, (this.address + offset) / 4);
  }

  set(offset: number, value: number): void {
    Atomics.store(this.memory.u32, (this.address + offset) / 4, value);
  }

  getDouble(offset: number): number {
    return this.memory.f64[(this.address + offset) / 8]!;
  }

  setDouble(offset: number, value: number): void {
    this.memory.f64[(this.address + offset) / 8] = value;
  }

  get isLive(): boolean {
    return this.get(DOMAIN.at.state) === DOMAIN_STATE.live;
  }

  /** Runs `body` with the domain's lock. Not re-entrant. */
  locked<T>(body: () => T): T {
    spinLock(this.memory.u32, (this.address + DOMAIN.at.lock) / 4);
    try {
      return body();
    } finally {
      spinUnlock(this.memory.u32, (this.address + DOMAIN.at.lock) / 4);
    }
  }

  get vcpuCount(): number {
    return this.get(DOMAIN.at.vcpuCount);
  }

  /** Address of the VCPU_ENTRY of a vCPU that exists. */
  vcpuEntry(vcpuId: number): number {
    assert(vcpuId >= 0 && vcpuId < this.vcpuCount, 'no such vCPU');
    const frame = this.get(DOMAIN.at.vcpuFrames + 4 * Math.floor(vcpuId / VCPUS_PER_FRAME));
    return frame * FRAME_BYTES + (vcpuId % VCPUS_PER_FRAME) * VCPU_ENTRY.sizeBytes;
  }

  /** Address of the vCPU record. */
  vcpuAddress(vcpuId: number): number {
    return this.memory.u32[(this.vcpuEntry(vcpuId) + VCPU_ENTRY.at.address) / 4]!;
  }

  /** Address of a port's PORT, or 0 when the table does not reach that far. */
  port(port: number): number {
    const index = Math.floor(port / PORTS_PER_FRAME);
    if (!(port > 0 && index < (DOMAIN.at.fifoArray - DOMAIN.at.portFrames) / 4)) return 0;
    const frame = this.get(DOMAIN.at.portFrames + 4 * index);
    return frame === 0 ? 0 : frame * FRAME_BYTES + (port % PORTS_PER_FRAME) * PORT.sizeBytes;
  }

  /** EVTCHNSTAT of a port; closed for one that does not exist. */
  portState(port: number): number {
    const at = this.port(port);
    return at === 0 ? 0 : this.memory.u8[at + PORT.at.state]!;
  }
}

/** With the locks of two domains, which may be the same one; in the order of their ids, so that nobody deadlocks. */
export function lockedBoth<T>(a: DomainRecord, b: DomainRecord, body: () => T): T {
  if (a.domid === b.domid) return a.locked(body);
  const [first, second] = a.domid < b.domid ? [a, b] : [b, a];
  return first.locked(() => second.locked(body));
}

/** The records of a machine, by id, made when first asked for. */
export class DomainTable {
  readonly #memory: MachineMemory;
  readonly #records: DomainRecord[] = [];

  constructor(memory: MachineMemory) {
    this.#memory = memory;
  }

  /** Whatever its state. */
  record(domid: number): DomainRecord {
    return this.#records[domid] ??= new DomainRecord(this.#memory, domid);
  }

  /** @returns undefined unless a domain with this id, which may be a guest's word, is alive */
  live(domid: number): DomainRecord | undefined {
    if (!(domid >= 0 && domid < this.#memory.parameters.domainCount)) return undefined;
    const record = this.record(domid);
    return record.isLive ? record : undefined;
  }
}
