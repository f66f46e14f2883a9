// What the tests of emulated devices share: a small machine with one domain of type hvm, whose registers the test
// accesses as a vCPU would, and whose memory it writes as a driver would. No vCPU runs.

import assert from 'node:assert/strict';
import { HOST_EVENTS, HOST_LISTENER } from '../abi/domain-record.ts';
import type { EventListener } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { GIC_DOMAIN } from '../abi/gic.ts';
import { VCPU_BYTES, scratchOffset } from '../abi/vcpu.ts';
import { GUEST_RAM0_BASE } from '../abi/xen.ts';
import type { Clock } from '../base/clock.ts';
import { audit } from '../memory/audit.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { DomainBuilder } from './domain.ts';
import type { DomainRecord } from './domain-record.ts';
import { DeviceFrame, EmulatedDevices } from './emulated-devices.ts';
import { hostEventsAddress } from './event-delivery.ts';
import type { RegisterModel } from './emulated-devices.ts';
import { GuestRam } from './guest-ram.ts';
import { HypervisorThread, MAIN_THREAD } from './thread.ts';

export const RAM_BASE = GUEST_RAM0_BASE;
export const RAM_BYTES = 512 * FRAME_BYTES;

export class EmulatedRig {
  readonly machine: MachineMemory;
  readonly thread: HypervisorThread;
  readonly domain: DomainRecord;
  readonly devices: EmulatedDevices;
  /** As the host's thread has it. */
  readonly frame: DeviceFrame;
  readonly ram: GuestRam;
  /** Address of the one vCPU that it has. */
  readonly vcpu: number;
  readonly #builder: DomainBuilder;

  constructor(models: readonly RegisterModel[], clock: Clock = { monotonicNanos: () => 0, wallMillis: () => 0 }) {
    this.machine = MachineMemory.create({
      sizeBytes: 12 * 1024 * 1024, pcpuCount: 1, domainCount: 4, codeBytes: 0, vcpuCount: 4,
      vcpuStrideBytes: Math.ceil(VCPU_BYTES / FRAME_BYTES) * FRAME_BYTES,
    });
    Heap.initialize(this.machine);
    this.thread = new HypervisorThread(this.machine, MAIN_THREAD, clock);
    const { channels, grants, domains } = this.thread.hypercalls;
    this.#builder = new DomainBuilder(this.thread.environment, channels, grants);
    assert(this.#builder.initializeHost());
    this.vcpu = this.machine.vcpuAddress(0);
    const made = this.#builder.createDomain({
      vcpuAddresses: [this.vcpu], handle: new Uint8Array(16), maxPages: RAM_BYTES / FRAME_BYTES, hasEmulatedDevices: true,
    });
    assert(made);
    this.domain = made.domain;
    assert(this.#builder.addRam(this.domain, RAM_BASE / FRAME_BYTES, RAM_BYTES / FRAME_BYTES));
    this.thread.gic.resetDomain(this.domain.domid, [this.vcpu]);
    this.devices = new EmulatedDevices(this.thread.gic, domains, models);
    this.frame = new DeviceFrame(this.thread.gic, domains);
    assert(this.frame.select(this.domain.domid));
    this.ram = new GuestRam(this.thread.environment, this.domain);
  }

  // ---- as a vCPU

  load(address: number, sizeBytes = 4): number {
    assert(this.devices.load(this.vcpu, address, sizeBytes), 'no register there');
    const index = (this.vcpu + scratchOffset(0)) / 4;
    return this.machine.u32[index]! + this.machine.u32[index + 1]! * 2 ** 32;
  }
  store(address: number, value: number, sizeBytes = 4): void {
    const index = (this.vcpu + scratchOffset(0)) / 4;
    this.machine.u32[index] = value % 2 ** 32;
    this.machine.u32[index + 1] = Math.floor(value / 2 ** 32);
    assert(this.devices.store(this.vcpu, address, sizeBytes), 'no register there');
  }

  /** Level of a shared interrupt's line. */
  line(intid: number): boolean {
    const { gic } = this.thread;
    const word = gic.get(gic.domainAt(this.domain.domid) + GIC_DOMAIN.at.level + 4 * (intid >>> 5));
    return ((word >>> (intid & 31)) & 1) !== 0;
  }

  /** Whether a device has called the host since the last time. */
  hostWasCalled(): boolean {
    return this.#wasCalled(HOST_LISTENER.main);
  }
  /** Whether a network card has called the network thread. */
  networkWasCalled(): boolean {
    return this.#wasCalled(HOST_LISTENER.network);
  }
  #wasCalled(listener: EventListener): boolean {
    const host = this.thread.hypercalls.domains.record(0);
    const word = (hostEventsAddress(host, listener) + HOST_EVENTS.at.domains) / 4 + (this.domain.domid >>> 5);
    return (Atomics.exchange(this.machine.u32, word, 0) & (1 << this.domain.domid)) !== 0;
  }

  // ---- as a driver

  write(address: number, bytes: Uint8Array): void {
    const pinned = this.ram.pinForWrite([{ address, sizeBytes: bytes.length }]);
    assert(typeof pinned !== 'string', `guest memory at ${address.toString(16)}`);
    pinned.write(bytes);
    pinned.unpin();
  }
  write16(address: number, value: number): void {
    this.write(address, Uint8Array.of(value & 0xff, (value >>> 8) & 0xff));
  }
  read(address: number, sizeBytes: number): Buffer {
    const bytes = Buffer.alloc(sizeBytes);
    assert.equal(this.ram.read({ address, sizeBytes }, bytes), 'done');
    return bytes;
  }

  /** Every frame is accounted for, and nothing is pinned that should not be. */
  audit(): void {
    const claims = [0, 1].map((domid) => this.#builder.claims(this.thread.hypercalls.domains.record(domid)));
    const { problems } = audit(this.thread.heap, {
      roots: claims.flatMap(({ roots }) => [...roots]), held: claims.flatMap(({ held }) => [...held]),
      pins: claims.flatMap(({ pins }) => [...pins]),
    });
    assert.deepEqual(problems, []);
  }
}
