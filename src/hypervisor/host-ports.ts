// The host's end of event channels: backends bind a callback to a port of domain 0 and notify the guest at the other end.
// Guests' events are bits in HOST_EVENTS of the thread that has bound the port, the main thread or the network thread, which
// sleeps on its doorbell there.

import { DOMAIN, HOST_EVENTS, HOST_DOMAINS_MAX, HOST_LISTENER, PORT } from '../abi/domain-record.ts';
import type { EventListener } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { canSleep, ringBell } from '../memory/spin.ts';
import type { DomainRecord } from './domain-record.ts';
import type { EventChannels } from './event-channels.ts';
import { hostEventsAddress, ringDiskThread } from './event-delivery.ts';

export type PortCallback = () => void;

export class HostPorts {
  readonly #channels: EventChannels;
  readonly #host: DomainRecord;
  readonly #callbacks = new Map<number, PortCallback>();
  readonly #onDomain: (domid: number) => void;
  readonly #listener: EventListener;

  /**
   * @param onDomain called with the id of a domain whose shutdown state or console_io log has changed; in the network
   *     thread, of one whose virtio cards have something to do
   */
  constructor(channels: EventChannels, onDomain: (domid: number) => void, listener: EventListener = HOST_LISTENER.main) {
    this.#channels = channels;
    this.#host = channels.domains.record(0);
    this.#listener = listener;
    assert(this.#host.get(DOMAIN.at.hostEvents) !== 0, 'domain 0 is not initialized');
    this.#onDomain = onDomain;
  }

  /** Binds to a port that a guest has allocated for the host. @returns the host's port, or a negative errno */
  bind(domid: number, remotePort: number, callback: PortCallback): number {
    const port = this.#channels.bindInterdomain(this.#host, domid, remotePort, this.#listener);
    if (port > 0) this.#callbacks.set(port, callback);
    return port;
  }

  /** Of a port that the host has already, e.g. those that `createDomain` made. */
  listen(port: number, callback: PortCallback): void {
    this.#callbacks.set(port, callback);
  }

  /** Tells the guest. */
  notify(port: number): void {
    this.#channels.send(this.#host, port);
  }

  /** Says who a port's events are for from now on: the main thread, or whoever has a disk's ring. */
  route(port: number, lane: number | undefined): void {
    this.#host.memory.u16[(this.#host.port(port) + PORT.at.vcpu) / 2] = lane === undefined ? HOST_LISTENER.main : HOST_LISTENER.firstLane + lane;
  }

  /** Wakes the disk thread, as the events do that are for it. */
  ringDiskThread(): void {
    ringDiskThread(this.#host);
  }
  /** What the disk thread sleeps on, an index into the memory's words. */
  get diskDoorbellIndex(): number {
    return (this.#host.get(DOMAIN.at.hostEvents) * FRAME_BYTES + HOST_EVENTS.at.diskDoorbell) / 4;
  }

  close(port: number): void {
    this.#callbacks.delete(port);
    this.#channels.close(this.#host, port);
  }

  /** Calls back for everything that has happened since the last time. */
  deliver(): void {
    const { u32 } = this.#host.memory;
    const events = this.#eventsAddress / 4;
    const pending = events + HOST_EVENTS.at.pending / 4;
    forEachBit(u32, events + HOST_EVENTS.at.domains / 4, HOST_DOMAINS_MAX / 32, this.#onDomain);
    forEachBit(u32, events + HOST_EVENTS.at.selector / 4, (HOST_EVENTS.at.pending - HOST_EVENTS.at.selector) / 4,
      (word) => forEachBit(u32, pending + word, 1, (bit) => this.#callbacks.get(word * 32 + bit)?.()));
  }

  /** Value of the doorbell; take it before `deliver`, and sleep only while it is still the same. */
  get doorbell(): number {
    return Atomics.load(this.#host.memory.i32, this.#doorbellIndex);
  }

  /** Resolves when the doorbell has not (or no longer) the value `seen`, or after `timeoutMillis`. */
  async untilDoorbell(seen: number, timeoutMillis?: number): Promise<void> {
    const wait = Atomics.waitAsync(this.#host.memory.i32, this.#doorbellIndex, seen, timeoutMillis);
    if (wait.async) await wait.value;
  }

  /**
   * Sleeps in this thread and calls back, until `isDone` or for so long: for an answer that takes less time than the
   * way through the event loop. Where a thread may not sleep, only calls back.
   * @param seen the doorbell before what is to be answered
   */
  deliverWithin(seen: number, millis: number, isDone: () => boolean): void {
    const end = performance.now() + millis;
    for (let heard = seen; ;) {
      const left = end - performance.now();
      if (canSleep && left > 0) Atomics.wait(this.#host.memory.i32, this.#doorbellIndex, heard, left);
      heard = this.doorbell;
      this.deliver();
      if (isDone() || left <= 0 || !canSleep) return;
    }
  }

  /** Ends the wait of `untilDoorbell`. */
  ring(): void {
    ringBell(this.#host.memory.i32, this.#doorbellIndex);
  }

  get #doorbellIndex(): number {
    return (this.#eventsAddress + HOST_EVENTS.at.doorbell) / 4;
  }
  get #eventsAddress(): number {
    return hostEventsAddress(this.#host, this.#listener);
  }
}

/** Takes all bits of a bitmap and calls back with the number of each. */
function forEachBit(u32: Uint32Array, index: number, words: number, visit: (bit: number) => void): void {
  for (let word = 0; word < words; word++) {
    if (Atomics.load(u32, index + word) === 0) continue;
    let bits = Atomics.exchange(u32, index + word, 0);
    while (bits !== 0) {
      const bit = 31 - Math.clz32(bits & -bits);
      bits &= bits - 1;
      visit(word * 32 + bit);
    }
  }
}
