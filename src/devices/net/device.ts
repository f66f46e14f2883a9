// A paravirtual network card as guest and host agree on it in the store: who is there, what each can do, and in which
// state (Xen: io/xenbus.h, io/netif.h). Both halves are below the guest's own part of the store:
//
//   /local/domain/ID/device/vif/N      the front end's, which the guest may write
//   /local/domain/ID/backends/vif/N    the host's, which it may read; `backend` names it by a path relative to the
//                                      domain, so that a fork, with another ID, finds its own in the same words
//
//   back end   InitWait ──────────────────► Connected ─► Closing ─► Closed ─► (InitWait)
//   front end  Initialising ─► Connected ──────────────► Closing ─► Closed ─► (Initialising)

import { XENBUS } from '../../abi/xenbus.ts';
import type { Store } from '../../xenstore/store.ts';
import { NET_QUEUES_MAX } from './backend.ts';
import type { NetConnection } from './backend.ts';
import { readFrontEnd } from './front-end-entries.ts';

/** A card's rings (backend.ts) and its place on a network, which may be another thread's to serve. */
export interface NetCard {
  readonly isConnected: boolean;
  connect(connection: NetConnection): boolean;
  /** Soon, instead of what it was connected to. @param refused called when it has not got the event channels, unless something else came after it */
  goOn(connection: NetConnection, refused: () => void): void;
  /** Soon. */
  wake(): void;
  /** When it returns, no page of the guest's is in use. */
  disconnect(): void;
  /** Of a card that is held. */
  save(): NetConnection | undefined;
  /** It has no page of the guest's any more, and no place on the network. */
  close(): void;
}

export interface NetDeviceOptions {
  readonly domainId: number;
  readonly store: Store;
  readonly card: NetCard;
  /** Of this card among those that the guest has and had. */
  readonly handle: number;
  /** `00:16:3e:12:34:56`; what the guest is told. */
  readonly mac: string;
  readonly mtuBytes: number;
  /** Name of the network, for who looks into the store. */
  readonly network: string;
  /** Of the guest that this one is a fork of; its entries are in the store. */
  readonly state?: NetDeviceState | undefined;
}

export interface NetDeviceState {
  readonly connection: NetConnection | undefined;
}

export class NetDevice {
  readonly handle: number;
  readonly #options: NetDeviceOptions;
  readonly #domainId: number;
  readonly #store: Store;
  readonly #card: NetCard;
  readonly #gone = Promise.withResolvers<void>();
  readonly #unwatch: () => void;
  #isDetaching = false;
  /** The store is being put back. */
  #isHeld = false;

  constructor(options: NetDeviceOptions) {
    this.#options = options;
    this.handle = options.handle;
    this.#domainId = options.domainId;
    this.#store = options.store;
    this.#card = options.card;
    if (options.state === undefined) this.#introduce();
    else this.#goOn(options.state);
    this.#unwatch = this.#store.watch(`${this.#frontPath}/state`, () => this.#frontChanged(), { depth: 0 });
  }

  get #frontPath(): string {
    return `/local/domain/${this.#domainId}/device/vif/${this.handle}`;
  }
  get #relativeBackPath(): string {
    return `backends/vif/${this.handle}`;
  }
  get #backPath(): string {
    return `/local/domain/${this.#domainId}/${this.#relativeBackPath}`;
  }

  // ---- the store ----------------------------------------------------------------------------------------------------

  #introduce(): void {
    const domainId = this.#domainId;
    const { mac, mtuBytes, network } = this.#options;
    const front = {
      backend: this.#relativeBackPath, 'backend-id': 0, state: XENBUS.initialising, handle: this.handle, mac,
      mtu: mtuBytes,
    };
    const back = {
      frontend: this.#frontPath, 'frontend-id': domainId, online: 1, handle: this.handle, mac, bridge: network,
      type: 'vif', 'hotplug-status': 'connected',
      'feature-sg': 1, 'feature-gso-tcpv4': 1, 'feature-gso-tcpv6': 1, 'feature-ipv6-csum-offload': 1,
      'feature-rx-copy': 1, 'feature-rx-flip': 0, 'feature-split-event-channels': 1,
      'multi-queue-max-queues': NET_QUEUES_MAX, state: XENBUS.initWait,
    };
    this.#store.transaction((view) => {
      const write = (base: string, permissions: readonly string[], entries: Record<string, string | number>): void => {
        view.write(base, '');
        view.setPerms(base, permissions);
        for (const [name, value] of Object.entries(entries)) view.write(`${base}/${name}`, String(value));
      };
      write(this.#backPath, ['n0', `r${domainId}`], back);
      write(this.#frontPath, [`n${domainId}`], front);
    });
  }

  #setState(state: number): void {
    const path = `${this.#backPath}/state`;
    if (this.#store.read(path) !== String(state)) this.#store.write(path, String(state));
  }

  #frontChanged(): void {
    if (this.#isHeld) return;
    const text = this.#store.read(`${this.#frontPath}/state`)?.trim() ?? '';
    // A card whose nodes the guest has removed has been given up by it.
    const state = /^\d{1,2}$/.test(text) ? Number(text) : XENBUS.closed;
    if (state === XENBUS.initialised || state === XENBUS.connected) this.#connect();
    else if (state === XENBUS.closing) this.#drop(XENBUS.closing);
    else if (state === XENBUS.closed) {
      this.#drop(XENBUS.closed);
      if (this.#isDetaching) this.#gone.resolve();
    } else if (state === XENBUS.initialising && !this.#isDetaching) this.#drop(XENBUS.initWait);
  }

  #connect(): void {
    if (this.#card.isConnected || this.#isDetaching) return;
    const connection = readFrontEnd((name) => this.#store.read(`${this.#frontPath}/${name}`));
    if (typeof connection === 'string') return this.#refuse(connection);
    if (!this.#card.connect(connection)) return this.#refuse('its rings or event channels cannot be used');
    this.#setState(XENBUS.connected);
    this.#card.wake();
  }

  #refuse(why: string): void {
    this.#store.write(`${this.#backPath}/error`, why);
    this.#setState(XENBUS.closed);
  }

  #drop(state: number): void {
    this.#card.disconnect();
    this.#setState(state);
  }

  // ---- the operator -------------------------------------------------------------------------------------------------

  /** Asks the guest to let go of the card. Resolves when it has; the card can still be closed when it never does. */
  askToDetach(): Promise<void> {
    this.#isDetaching = true;
    this.#store.write(`${this.#backPath}/online`, '0');
    if (this.#card.isConnected) this.#setState(XENBUS.closing);
    else this.#gone.resolve();
    return this.#gone.promise;
  }

  /** @param entries what the store says of it goes, too */
  close(entries: 'keep' | 'remove'): void {
    this.#unwatch();
    this.#isDetaching = true;
    this.#card.close();
    this.#gone.resolve();
    if (entries === 'keep') return;
    for (const path of [this.#frontPath, this.#backPath]) if (this.#store.exists(path)) this.#store.rm(path);
  }

  // ---- checkpoints --------------------------------------------------------------------------------------------------

  /** With the card held. */
  save(): NetDeviceState {
    return { connection: this.#card.save() };
  }

  /** Memory and store of the guest, whose card is held, are about to be put back: until `restore`, nothing is made of what they say. */
  beginRestore(): void {
    this.#isHeld = true;
  }

  /** The guest's memory and store are as they were when `state` was taken, and its ports wait for the host. */
  restore(state: NetDeviceState): void {
    this.#isHeld = false;
    this.#isDetaching = false;
    this.#goOn(state);
  }

  #goOn({ connection }: NetDeviceState): void {
    if (connection === undefined) return this.#card.disconnect();
    this.#card.goOn(connection, () => this.#refuse('its event channels cannot be used any more'));
    // An event of before may have been on its way, in either direction.
    this.#card.wake();
  }
}
