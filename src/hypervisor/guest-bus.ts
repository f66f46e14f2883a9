// What the host's half of a paravirtual device has of its guest: pages that the guest has granted to the host, and
// ends of its event channels.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import type { GrantMapping } from './grant-table.ts';
import type { HostPorts } from './host-ports.ts';
import type { HypervisorThread } from './thread.ts';

/** A page of the guest's in use, from `map` to `unmap`. */
export interface GuestPage {
  readonly mfn: number;
}

export interface GuestBus {
  readonly domainId: number;
  /** All frames; frame N is the 4096 bytes from 4096 × N on. */
  readonly memory: Uint8Array;
  /** @returns the page, or a negative GNTST; `eagain`: there is no frame for it now */
  map(ref: number, write: boolean): GuestPage | number;
  unmap(page: GuestPage): void;
  /** Binds to a port that the guest has allocated for the host. @returns the host's port, or a negative errno */
  bind(remotePort: number, callback: () => void): number;
  notify(port: number): void;
  close(port: number): void;
}

type AtWork = <T>(body: () => T) => T;

export class DomainBus implements GuestBus {
  readonly domainId: number;
  readonly memory: Uint8Array;
  readonly #thread: HypervisorThread;
  readonly #ports: HostPorts;
  readonly #atWork: AtWork;

  /** @param atWork around what is done with the machine's memory; in the main thread that needs nothing */
  constructor(thread: HypervisorThread, ports: HostPorts, domainId: number, atWork: AtWork = (body) => body()) {
    this.#thread = thread;
    this.#ports = ports;
    this.#atWork = atWork;
    this.domainId = domainId;
    this.memory = thread.machine.u8;
    assert(this.memory.length % FRAME_BYTES === 0, 'the machine has whole frames');
  }

  map(ref: number, write: boolean): GrantMapping | number {
    return this.#atWork(() => this.#thread.hypercalls.grants.map(this.domainId, ref, write));
  }
  unmap(page: GuestPage): void {
    this.#atWork(() => this.#thread.hypercalls.grants.unmap(page as GrantMapping));
  }
  bind(remotePort: number, callback: () => void): number {
    return this.#atWork(() => this.#ports.bind(this.domainId, remotePort, callback));
  }
  notify(port: number): void {
    this.#atWork(() => this.#ports.notify(port));
  }
  close(port: number): void {
    this.#atWork(() => this.#ports.close(port));
  }
}
