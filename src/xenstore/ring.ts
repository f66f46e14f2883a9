// The guest's end of the wire: moves bytes between a connection and the ring page that the guest shares (layout in
// abi/xenstore-wire.ts). All that is known of the rings is in the page itself, so a page that is saved and restored
// needs nothing beside it.
//
// The guest can write anything there at any time. Indices are read once and checked: a producer more than a ring ahead
// of its consumer breaks the connection, with the cause in the page's `error`, until the guest asks for a reset through
// `connection`. Bytes are copied out before they are looked at. Nothing here throws because of what the page holds.

import { assert } from '../base/assert.ts';
import {
  XENSTORE_CONNECTED, XENSTORE_DOMAIN_INTERFACE, XENSTORE_ERROR, XENSTORE_RECONNECT, XENSTORE_RING_SIZE,
} from '../abi/xenstore-wire.ts';
import type { Connection, ConnectionState } from './connection.ts';
import type { Store } from './store.ts';

const { at, sizeBytes: INTERFACE_BYTES } = XENSTORE_DOMAIN_INTERFACE;
/** Most that one `service` reads: a guest that never stops writing must not hold its caller for ever. */
const SERVICE_BYTES = 16384;
const FIRST_WORD = at.req_cons;
type Field = 'req_cons' | 'req_prod' | 'rsp_cons' | 'rsp_prod' | 'server_features' | 'connection' | 'error';

export interface RingOptions {
  readonly domainId: number;
  /**
   * The ring page, at least the 2076 bytes of the interface, 4-byte aligned, in shared memory. It is asked for anew at
   * each use, since copy-on-write may move it; a page that was handed out is written to.
   */
  page(): Uint8Array;
  /** Signals the guest's event channel. It must not call back. */
  notify(): void;
  /** To go on where `saveState` stood. */
  readonly state?: ConnectionState;
}

export class XenstoreRing {
  readonly connection: Connection;
  readonly #options: RingOptions;
  #page: Uint8Array | undefined;
  #words!: Int32Array;
  #serving = false;
  /** The connection was ended here, for what the indices say, and not for what the guest sent. */
  #failed = false;
  #signalDue = false;

  /** Advertises the server's features in the page; call `service` then, for the guest may have been quicker. */
  constructor(store: Store, options: RingOptions) {
    this.#options = options;
    this.#map();
    this.#store('server_features', store.features(options.domainId));
    if (options.state === undefined) this.#store('error', XENSTORE_ERROR.NONE);
    const { domainId, state } = options;
    this.connection = store.connect({ domainId, state, send: (bytes) => this.#send(bytes) });
  }

  /**
   * Does what there is to do: call it when the guest has signalled.
   * @returns whether more input was there than one call takes; call again soon.
   */
  service(): boolean {
    if (this.connection.state === 'closed') return false;
    this.#serving = true;
    try {
      this.#map();
      if (this.#load('connection') === XENSTORE_RECONNECT) this.#reconnect();
      this.connection.flush();
      return this.#receive();
    } finally {
      this.#serving = false;
      this.#signal();
    }
  }

  close(): void {
    this.connection.close();
  }

  /** Whether the guest is still to be signalled for what has been done. */
  get owesEvent(): boolean {
    return this.#serving || this.#signalDue;
  }

  #receive(): boolean {
    for (let budgetBytes = SERVICE_BYTES; this.connection.wantsInput; ) {
      this.#map();
      const consumed = this.#load('req_cons');
      const available = (this.#load('req_prod') - consumed) >>> 0;
      if (available > XENSTORE_RING_SIZE) {
        this.#fail(XENSTORE_ERROR.RINGIDX);
        return false;
      }
      if (available === 0) return false;
      if (budgetBytes <= 0) return true;
      const taken = this.connection.receive(this.#copyOut(at.req, consumed, available));
      budgetBytes -= taken;
      this.#store('req_cons', consumed + taken);
      this.#signalDue = true;
      if (this.connection.state === 'broken' && !this.#failed) this.#announce(XENSTORE_ERROR.PROTO);
    }
    return false;
  }

  #send(bytes: Uint8Array): number {
    this.#map();
    const produced = this.#load('rsp_prod');
    const waiting = (produced - this.#load('rsp_cons')) >>> 0;
    if (waiting > XENSTORE_RING_SIZE) {
      this.#fail(XENSTORE_ERROR.RINGIDX);
      return 0;
    }
    const count = Math.min(bytes.length, XENSTORE_RING_SIZE - waiting);
    if (count === 0) return 0;
    this.#copyIn(at.rsp, produced, bytes.subarray(0, count));
    this.#store('rsp_prod', produced + count);
    this.#signalDue = true;
    this.#signal();
    return count;
  }

  /** The guest asked for a clean start and looks at nothing but `connection` until it is back. */
  #reconnect(): void {
    this.connection.reset();
    this.#failed = false;
    for (const field of ['req_cons', 'req_prod', 'rsp_cons', 'rsp_prod'] as const) this.#store(field, 0);
    this.#store('error', XENSTORE_ERROR.NONE);
    this.#store('connection', XENSTORE_CONNECTED);
    this.#signalDue = true;
  }

  #fail(error: number): void {
    if (this.connection.state !== 'open') return;
    this.#failed = true;
    this.connection.fail();
    this.#announce(error);
  }

  #announce(error: number): void {
    this.#store('error', error);
    this.#signalDue = true;
    this.#signal();
  }

  /** Once a service; at once for what others' changes send. */
  #signal(): void {
    if (this.#serving || !this.#signalDue) return;
    this.#signalDue = false;
    this.#options.notify();
  }

  // -- The page ----------------------------------------------------------------------------------------------------

  #map(): Uint8Array {
    const page = this.#options.page();
    if (page !== this.#page) {
      assert(page.length >= INTERFACE_BYTES && page.byteOffset % 4 === 0, 'the ring page is whole and aligned');
      this.#page = page;
      this.#words = new Int32Array(page.buffer, page.byteOffset + FIRST_WORD, (INTERFACE_BYTES - FIRST_WORD) / 4);
    }
    return page;
  }

  #load(field: Field): number {
    return Atomics.load(this.#words, (at[field] - FIRST_WORD) >> 2) >>> 0;
  }

  /** Indices run free: the value wraps at 2^32. */
  #store(field: Field, value: number): void {
    Atomics.store(this.#words, (at[field] - FIRST_WORD) >> 2, value | 0);
  }

  #copyOut(ringOffset: number, index: number, count: number): Uint8Array {
    const bytes = new Uint8Array(count);
    const start = index % XENSTORE_RING_SIZE;
    const first = Math.min(count, XENSTORE_RING_SIZE - start);
    const page = this.#page!;
    bytes.set(page.subarray(ringOffset + start, ringOffset + start + first));
    bytes.set(page.subarray(ringOffset, ringOffset + count - first), first);
    return bytes;
  }

  #copyIn(ringOffset: number, index: number, bytes: Uint8Array): void {
    const start = index % XENSTORE_RING_SIZE;
    const first = Math.min(bytes.length, XENSTORE_RING_SIZE - start);
    const page = this.#page!;
    page.set(bytes.subarray(0, first), ringOffset + start);
    page.set(bytes.subarray(first), ringOffset);
  }
}
