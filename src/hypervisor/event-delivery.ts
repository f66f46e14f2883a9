// From "an event happened on a port" to the interrupt: pending bits in the way the domain has chosen, the upcall flag
// of the vCPU, interrupt PPI 31, and waking a vCPU that sleeps. For domain 0, the host itself, a bit and a doorbell.

import { DOMAIN, EVENT_MODE, HELD_FRAME, HOST_EVENTS, HOST_LISTENER, PORT, VCPU_ENTRY } from '../abi/domain-record.ts';
import type { EventListener } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { EVTCHN_2L_NR_CHANNELS, EVTCHN_FIFO_PENDING } from '../abi/xen-event-channel.ts';
import { sharedInfo, vcpuInfo } from '../abi/xen-shared-info.ts';
import { GUEST_EVTCHN_PPI } from '../abi/xen.ts';
import { ringBell } from '../memory/spin.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { fifoRaise, fifoUnmask, fifoWord } from './event-fifo.ts';

type DeliveryEnvironment = Pick<Environment, 'memory' | 'interrupts' | 'scheduler'>;

/** Sets bit n of a bitmap at a byte address. @returns whether it was set already */
function setBit(u32: Uint32Array, address: number, bit: number): boolean {
  const mask = 1 << (bit & 31);
  return (Atomics.or(u32, address / 4 + (bit >>> 5), mask) & mask) !== 0;
}

function testBit(u32: Uint32Array, address: number, bit: number): boolean {
  return ((Atomics.load(u32, address / 4 + (bit >>> 5)) >>> (bit & 31)) & 1) !== 0;
}

const sharedInfoAddress = (record: DomainRecord) =>
  record.get(DOMAIN.at.sharedInfo + HELD_FRAME.at.mfn) * FRAME_BYTES;

/** Byte address of a vCPU's vcpu_info, 0 while it has none. */
export function vcpuInfoAddress(record: DomainRecord, vcpuId: number): number {
  const { u32 } = record.memory;
  const entry = record.vcpuEntry(vcpuId);
  const mfn = Atomics.load(u32, (entry + VCPU_ENTRY.at.info + HELD_FRAME.at.mfn) / 4);
  if (mfn !== 0) return mfn * FRAME_BYTES + u32[(entry + VCPU_ENTRY.at.infoOffset) / 4]!;
  return vcpuId === 0 ? sharedInfoAddress(record) + sharedInfo.at.vcpu_info : 0;
}

export class EventDelivery {
  readonly #environment: DeliveryEnvironment;

  constructor(environment: DeliveryEnvironment) {
    this.#environment = environment;
  }

  /** Makes a port of a domain pending; with its lock held, and the port in use. */
  raise(record: DomainRecord, port: number): void {
    const mode = record.get(DOMAIN.at.eventMode);
    if (mode === EVENT_MODE.host) {
      raiseHost(record, port);
      return;
    }
    const portAt = record.port(port);
    if (mode === EVENT_MODE.fifo) this.#setUpcall(record, fifoRaise(record, port, portAt));
    else this.#raiseTwoLevel(record, port, portAt);
    this.#wakePollers(record);
  }

  unmask(record: DomainRecord, port: number): void {
    const portAt = record.port(port);
    if (record.get(DOMAIN.at.eventMode) === EVENT_MODE.fifo) {
      this.#setUpcall(record, fifoUnmask(record, port, portAt));
      return;
    }
    const { u32 } = record.memory;
    const address = sharedInfoAddress(record);
    Atomics.and(u32, (address + sharedInfo.at.evtchn_mask) / 4 + (port >>> 5), ~(1 << (port & 31)));
    if (testBit(u32, address + sharedInfo.at.evtchn_pending, port)) this.#select(record, port, portAt);
  }

  isPending(record: DomainRecord, port: number): boolean {
    const { u8, u32 } = record.memory;
    if (record.get(DOMAIN.at.eventMode) === EVENT_MODE.twoLevel) {
      return testBit(u32, sharedInfoAddress(record) + sharedInfo.at.evtchn_pending, port);
    }
    if (u8[record.port(port) + PORT.at.deferred] !== 0) return true;
    const word = fifoWord(record, port);
    return word !== 0 && (Atomics.load(u32, word) & EVTCHN_FIFO_PENDING) !== 0;
  }

  /** A port is being closed: an old event must not look like one of whoever uses the port next. */
  clearPending(record: DomainRecord, port: number): void {
    const { u8, u32 } = record.memory;
    const mode = record.get(DOMAIN.at.eventMode);
    u8[record.port(port) + PORT.at.deferred] = 0;
    const clear = (bitmap: number): void => { Atomics.and(u32, bitmap / 4 + (port >>> 5), ~(1 << (port & 31))); };
    if (mode === EVENT_MODE.host) {
      for (const listener of EVENT_LISTENERS) clear(hostEventsAddress(record, listener) + HOST_EVENTS.at.pending);
    } else if (mode === EVENT_MODE.twoLevel) clear(sharedInfoAddress(record) + sharedInfo.at.evtchn_pending);
    else {
      const word = fifoWord(record, port);
      if (word !== 0) Atomics.and(u32, word, ~EVTCHN_FIFO_PENDING);
    }
  }

  /** Tells a vCPU to look at everything: it has a new vcpu_info. */
  markAllPending(record: DomainRecord, vcpuId: number): void {
    const { u32 } = record.memory;
    const info = (vcpuInfoAddress(record, vcpuId) + vcpuInfo.at.evtchn_pending_sel) / 4;
    Atomics.store(u32, info, 0xffff_ffff);
    Atomics.store(u32, info + 1, 0xffff_ffff);
    this.#setUpcall(record, vcpuId);
  }

  upcallPending(record: DomainRecord, vcpuId: number): boolean {
    const info = vcpuInfoAddress(record, vcpuId);
    return info !== 0 && Atomics.load(record.memory.u8, info + vcpuInfo.at.evtchn_upcall_pending) !== 0;
  }

  /**
   * Sets the interrupt's level to what the guest's upcall flag says now. The guest clears the flag without telling
   * anybody, so the interrupt controller asks when the guest ends or acknowledges the interrupt. Takes no lock.
   */
  syncUpcall(record: DomainRecord, vcpuId: number): void {
    const { interrupts } = this.#environment;
    const address = record.vcpuAddress(vcpuId);
    const pending = this.upcallPending(record, vcpuId);
    interrupts.setInterruptLevel(address, GUEST_EVTCHN_PPI, pending);
    // An event that came in between has raised the level before we took it down.
    if (!pending && this.upcallPending(record, vcpuId)) {
      interrupts.setInterruptLevel(address, GUEST_EVTCHN_PPI, true);
    }
  }

  #raiseTwoLevel(record: DomainRecord, port: number, portAt: number): void {
    const { u8, u32 } = record.memory;
    if (port >= EVTCHN_2L_NR_CHANNELS) return;
    u8[portAt + PORT.at.deferred] = 0;
    const address = sharedInfoAddress(record);
    if (setBit(u32, address + sharedInfo.at.evtchn_pending, port)) return;
    if (!testBit(u32, address + sharedInfo.at.evtchn_mask, port)) this.#select(record, port, portAt);
  }

  #select(record: DomainRecord, port: number, portAt: number): void {
    const vcpuId = record.memory.u16[(portAt + PORT.at.vcpu) / 2]!;
    const info = vcpuInfoAddress(record, vcpuId);
    if (info === 0) return;
    const selected = setBit(record.memory.u32, info + vcpuInfo.at.evtchn_pending_sel, port >>> 6);
    if (!selected) this.#setUpcall(record, vcpuId);
  }

  /** @param vcpuId -1: of none */
  #setUpcall(record: DomainRecord, vcpuId: number): void {
    if (vcpuId < 0) return;
    const info = vcpuInfoAddress(record, vcpuId);
    if (info === 0) return;
    if (Atomics.exchange(record.memory.u8, info + vcpuInfo.at.evtchn_upcall_pending, 1) !== 0) return;
    const address = record.vcpuAddress(vcpuId);
    this.#environment.interrupts.setInterruptLevel(address, GUEST_EVTCHN_PPI, true);
    this.#environment.scheduler.wake(address);
  }

  #wakePollers(record: DomainRecord): void {
    if (record.get(DOMAIN.at.pollers) === 0) return;
    const { u32 } = record.memory;
    for (let vcpuId = 0; vcpuId < record.vcpuCount; vcpuId++) {
      const polling = (record.vcpuEntry(vcpuId) + VCPU_ENTRY.at.polling) / 4;
      if (Atomics.exchange(u32, polling, 0) === 0) continue;
      Atomics.sub(u32, (record.address + DOMAIN.at.pollers) / 4, 1);
      this.#environment.scheduler.wake(record.vcpuAddress(vcpuId));
    }
  }
}

const EVENT_LISTENERS: readonly EventListener[] = [HOST_LISTENER.main, HOST_LISTENER.network];

/** Byte address of the frame with the events that a thread listens to. */
export function hostEventsAddress(host: DomainRecord, listener: EventListener): number {
  const main = host.get(DOMAIN.at.hostEvents) * FRAME_BYTES;
  return listener === HOST_LISTENER.main ? main : host.memory.u32[(main + HOST_EVENTS.at.network) / 4]! * FRAME_BYTES;
}

function ringDoorbell(record: DomainRecord, events: number): void {
  ringBell(record.memory.i32, (events + HOST_EVENTS.at.doorbell) / 4);
}

/** The ring of a disk that a port of domain 0 is for, if it is not the main thread that hears of it. With the lock. */
export function laneOf(host: DomainRecord, port: number): number | undefined {
  if (host.get(DOMAIN.at.eventMode) !== EVENT_MODE.host) return undefined;
  const listener = host.memory.u16[(host.port(port) + PORT.at.vcpu) / 2]!;
  return listener < HOST_LISTENER.firstLane ? undefined : listener - HOST_LISTENER.firstLane;
}

/** Wakes the thread that looks after disks' rings. */
export function ringDiskThread(host: DomainRecord): void {
  ringBell(host.memory.i32, (host.get(DOMAIN.at.hostEvents) * FRAME_BYTES + HOST_EVENTS.at.diskDoorbell) / 4);
}

function raiseHost(host: DomainRecord, port: number): void {
  const { u16, u32 } = host.memory;
  const listener = u16[(host.port(port) + PORT.at.vcpu) / 2]!;
  if (listener >= HOST_LISTENER.firstLane) return ringDiskThread(host);
  const events = hostEventsAddress(host, listener as EventListener);
  if (setBit(u32, events + HOST_EVENTS.at.pending, port)) return;
  setBit(u32, events + HOST_EVENTS.at.selector, port >>> 5);
  ringDoorbell(host, events);
}

/** Tells the host's main thread that a domain's state or log has changed, or the network thread to look at its virtio cards. */
export function notifyHostOf(host: DomainRecord, domid: number, listener: EventListener = HOST_LISTENER.main): void {
  const events = hostEventsAddress(host, listener);
  if (!setBit(host.memory.u32, events + HOST_EVENTS.at.domains, domid)) ringDoorbell(host, events);
}
