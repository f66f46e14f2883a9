// The host's networks and the data path of all cards on them: rings of paravirtual cards, queues of virtio cards. It lives
// in the network thread (network-loop.ts); the main thread has handles of it (networks.ts) and asks by messages, so what
// goes in and out is plain data. Cards have numbers that are given out by who asks, and are never used twice.
//
//   attach ─► served ── hold ──► held ── release ──► served        held: no page of the guest's is in use, no frame under way
//               └──────── detach ──┴──► gone                       what comes meanwhile waits, in ring, queue, or network

import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { NetBackend } from '../devices/net/backend.ts';
import type { NetConnection, NetMetrics } from '../devices/net/backend.ts';
import { VirtioNet } from '../devices/virtio/net.ts';
import { VirtioSlot } from '../devices/virtio/slot.ts';
import type { SlotState, VirtioSlotParts } from '../devices/virtio/slot.ts';
import type { GuestBus } from '../hypervisor/guest-bus.ts';
import type { CardState } from '../network/card-state.ts';
import type { FramePort, GuestLink } from '../network/frame-port.ts';
import { Network } from '../network/network.ts';
import type { NetworkMetrics, NetworkSettings } from '../network/network.ts';
import type { NetworkPort, NetworkPortMetrics } from '../network/network-port.ts';
import type { ActiveForward, PortForward } from '../network/port-forward.ts';

const NETWORKS_MAX = 1024;

/** The guests, as the thread has them that serves their cards. */
export interface CardGuests {
  busOf(domid: number): GuestBus;
  slotOf(domid: number, slot: number): VirtioSlotParts;
}

export interface CardRequest {
  readonly card: number;
  readonly domid: number;
  readonly network: string;
  /** `00:16:3e:12:34:56`; what `state` says comes before that. */
  readonly mac: string;
  readonly name: string;
  readonly address?: string | undefined;
  readonly rateBytesPerSecond?: number | undefined;
  /** Of the guest that this one goes on from. */
  readonly state?: CardState | undefined;
  /** Of a machine with emulated devices: where the card is, and what it goes on from. */
  readonly slot?: { readonly number: number; readonly state: SlotState | undefined } | undefined;
}

export interface AttachedCard {
  readonly mac: string;
  readonly address: string;
  readonly mtuBytes: number;
}

/** What a checkpoint keeps of a card. */
export interface HeldState {
  readonly card: CardState;
  readonly connection: NetConnection | undefined;
  readonly slot: SlotState | undefined;
}

export interface CardMetrics {
  readonly port: NetworkPortMetrics;
  readonly device: NetMetrics;
}

export interface OpenForward {
  readonly number: number;
  readonly forward: PortForward;
}

interface Card {
  readonly domid: number;
  readonly network: NetworkPort;
  readonly backend: NetBackend | undefined;
  readonly slot: VirtioSlot | undefined;
  metrics(): NetMetrics;
  close(): void;
}

export class NetworkService {
  readonly #guests: CardGuests;
  readonly #networks = new Map<string, Network>();
  readonly #cards = new Map<number, Card>();
  /** Slots with virtio cards, by domain. */
  readonly #slots = new Map<number, Set<VirtioSlot>>();
  readonly #forwards = new Map<number, { readonly card: number; readonly active: ActiveForward }>();
  #nextForward = 1;

  constructor(guests: CardGuests) {
    this.#guests = guests;
  }

  // ---- networks

  /** @throws ZazenError ZAZEN_NETWORK_*, and what keeps a capture from being written */
  async createNetwork(name: string, options: NetworkSettings): Promise<void> {
    assert(!this.#networks.has(name), 'a network is created once');
    this.#networks.set(name, await Network.create(options));
  }

  /** Those that nobody has created are private, with the usual options. @throws ZazenError ZAZEN_NETWORK_LIMIT */
  #network(name: string): Network {
    const known = this.#networks.get(name);
    if (known !== undefined) return known;
    if (this.#networks.size >= NETWORKS_MAX) {
      throw new ZazenError('ZAZEN_NETWORK_LIMIT', `a host has ${NETWORKS_MAX} networks at most`);
    }
    const network = Network.open();
    this.#networks.set(name, network);
    return network;
  }

  networkMetrics(): Record<string, NetworkMetrics> {
    return Object.fromEntries([...this.#networks].map(([name, network]) => [name, network.metrics()]));
  }

  async close(): Promise<void> {
    this.detach([...this.#cards.keys()]);
    await Promise.all([...this.#networks.values()].map((network) => network.close()));
    this.#networks.clear();
  }

  // ---- cards

  /** @throws ZazenError ZAZEN_NETWORK_*; nothing has happened then */
  attach(request: CardRequest): AttachedCard {
    assert(!this.#cards.has(request.card), 'a card has a number of its own');
    const network = this.#network(request.network);
    const { mac, name, address, rateBytesPerSecond, state } = request;
    const attach = (link: GuestLink): NetworkPort => network.attach(link, { mac, name, address, rateBytesPerSecond, state });
    const card = request.slot === undefined ? this.#openXen(request.domid, attach)
      : this.#openVirtio(request.domid, request.slot, network.mtuBytes, attach);
    this.#cards.set(request.card, card);
    return { mac: card.network.mac, address: card.network.address, mtuBytes: network.mtuBytes };
  }

  #openXen(domid: number, attach: (link: GuestLink) => NetworkPort): Card {
    const backend = new NetBackend(this.#guests.busOf(domid), () => network);
    const network = attach(backend);
    return {
      domid, network, backend, slot: undefined,
      metrics: () => backend.metrics,
      close: () => {
        backend.disconnect();
        network.close();
      },
    };
  }

  #openVirtio(
    domid: number, at: NonNullable<CardRequest['slot']>, mtuBytes: number, attach: (link: GuestLink) => NetworkPort,
  ): Card {
    const parts = this.#guests.slotOf(domid, at.number);
    const atWork = parts.atWork ?? ((body) => body());
    const port = (): FramePort => network;
    const model = new VirtioNet({ get mac() { return bytesOfMac(network.mac); }, mtuBytes, port });
    const { link } = model;
    const network = attach({
      get features() { return link.features; },
      receive: (frame, offload) => {
        let isTaken = false;
        atWork(() => { isTaken = link.receive(frame, offload); });
        return isTaken;
      },
      writable: () => link.writable(),
    });
    const slot = new VirtioSlot(parts, model, at.state);
    const slots = this.#slots.get(domid) ?? new Set();
    this.#slots.set(domid, slots.add(slot));
    return {
      domid, network, slot, backend: undefined,
      metrics: () => ({ ...model.counts, notifications: slot.interrupts, badIndices: 0 }),
      close: () => {
        slots.delete(slot);
        if (slots.size === 0) this.#slots.delete(domid);
        slot.close();
        network.close();
      },
    };
  }

  #card(number: number): Card {
    const card = this.#cards.get(number);
    assert(card !== undefined, 'there is no such card');
    return card;
  }

  /** The guest has done something with a virtio card. @param always whether or not it has notified of a queue */
  serveSlots(domid: number, always = false): void {
    for (const slot of this.#slots.get(domid) ?? []) slot.service(always);
  }

  /** When this returns, nothing of the guests' is used any more. @returns what the cards have done */
  detach(cards: readonly number[]): CardMetrics[] {
    const metrics = this.cardMetrics(cards);
    for (const number of cards) {
      this.#card(number).close();
      this.#cards.delete(number);
      for (const [forward, { card }] of this.#forwards) if (card === number) this.#forwards.delete(forward);
    }
    return metrics;
  }

  connect(card: number, connection: NetConnection): boolean {
    return this.#card(card).backend!.connect(connection);
  }
  /** Instead of what it was connected to before. */
  goOn(card: number, connection: NetConnection): boolean {
    const backend = this.#card(card).backend!;
    backend.disconnect();
    return backend.goOn(connection);
  }
  wake(card: number): void {
    this.#card(card).backend!.wake();
  }
  disconnect(card: number): void {
    this.#card(card).backend!.disconnect();
  }

  /** When this returns, no page of the guests' is in use, and none is until `release`. */
  hold(cards: readonly number[]): void {
    for (const number of cards) {
      const { backend, slot } = this.#card(number);
      backend?.hold();
      slot?.hold();
    }
  }
  /** The same, and what a guest that goes on from here needs of its cards. */
  holdAndSave(cards: readonly number[]): HeldState[] {
    this.hold(cards);
    return cards.map((number) => {
      const { network, backend, slot } = this.#card(number);
      return { card: network.save(), connection: backend?.save(), slot: slot?.save() };
    });
  }
  release(cards: readonly number[]): void {
    for (const number of cards) {
      const card = this.#cards.get(number);
      card?.backend?.release();
      card?.slot?.release();
    }
  }

  /** The domain's registers are those that go with the state. */
  restoreSlot(card: number, state: SlotState | undefined): void {
    this.#card(card).slot!.restore(state);
  }
  /** The guest is as it was when `state` was taken: its connections are ended. */
  restoreCard(card: number, state: CardState): void {
    this.#card(card).network.restore(state);
  }

  cardMetrics(cards: readonly number[]): CardMetrics[] {
    return cards.map((number) => {
      const card = this.#card(number);
      return { port: card.network.metrics(), device: card.metrics() };
    });
  }

  // ---- forwards

  /** @throws ZazenError ZAZEN_PORT_IN_USE, ZAZEN_PORT_FORWARD */
  async openForward(card: number, wanted: PortForward): Promise<OpenForward> {
    const active = await this.#card(card).network.forward(wanted);
    const number = this.#nextForward++;
    // One whose card has gone meanwhile is closed already.
    if (this.#cards.has(card)) this.#forwards.set(number, { card, active });
    const { protocol, hostAddress, hostPort, guestPort } = active;
    return { number, forward: { protocol, hostAddress, hostPort, guestPort } };
  }
  /** Closed twice, or with its card, is closed. */
  async closeForward(number: number): Promise<void> {
    const forward = this.#forwards.get(number);
    this.#forwards.delete(number);
    await forward?.active.close();
  }
}

function bytesOfMac(mac: string): Uint8Array {
  return Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
}
