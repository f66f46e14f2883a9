// The host's networks and cards, as its main thread has them: handles of what the network thread does (network-service.ts).
// Networks that the host was started with options for are there from the start; any other one is made when the first card
// comes to it, private and with the usual defaults.

import { ZazenError } from '../base/errors.ts';
import type { NetConnection } from '../devices/net/backend.ts';
import type { NetCard } from '../devices/net/device.ts';
import type { SlotState } from '../devices/virtio/slot.ts';
import type { CardState } from '../network/card-state.ts';
import type { NetworkMetrics, NetworkSettings } from '../network/network.ts';
import type { ActiveForward, PortForward } from '../network/port-forward.ts';
import type { AttachedCard, CardMetrics, CardRequest, HeldState } from './network-service.ts';
import type { NetworkThread } from './network-thread.ts';

export class HostNetworks {
  readonly #thread: NetworkThread;
  #nextCard = 1;

  constructor(thread: NetworkThread) {
    this.#thread = thread;
  }

  /** Before the first card is attached. */
  begin(): Promise<void> {
    return this.#thread.begin();
  }

  /** @throws ZazenError ZAZEN_NETWORK_*, and what keeps a capture from being written */
  async create(options: Readonly<Record<string, NetworkSettings>>): Promise<void> {
    const networks = Object.entries(options);
    for (const [name] of networks) checkNetworkName(name);
    if (networks.length === 0) return;
    await this.begin();
    for (const [name, wanted] of networks) await this.#thread.ask('createNetwork', name, wanted);
  }

  /** Connects a card. @throws ZazenError ZAZEN_NETWORK_*; nothing has happened then */
  attach(request: Omit<CardRequest, 'card'>): HostCard {
    const card = this.#nextCard++;
    return new HostCard(this.#thread, card, this.#thread.call('attach', { ...request, card }));
  }

  /** When this returns, the cards use no page of their guests', and none until `release`. @param isSaved their states are wanted */
  hold(cards: readonly HostCard[], isSaved: boolean): void {
    const numbers = numbersOf(cards);
    if (numbers.length === 0) return;
    if (!isSaved) return this.#thread.call('hold', numbers);
    const states = this.#thread.call('holdAndSave', numbers);
    cards.forEach((card, i) => { card.held = states[i]!; });
  }
  /** They go on soon. */
  release(cards: readonly HostCard[]): void {
    if (cards.length > 0) this.#thread.post('release', numbersOf(cards));
    for (const card of cards) card.held = undefined;
  }

  /** When this returns, the cards use nothing of their guests' any more. @returns what they have done */
  detach(cards: readonly HostCard[]): CardMetrics[] {
    for (const card of cards) card.wasDetached();
    return cards.length === 0 ? [] : this.#thread.call('detach', numbersOf(cards));
  }
  /** Of cards that are attached, as it is now. */
  cardMetrics(cards: readonly HostCard[]): CardMetrics[] {
    return cards.length === 0 ? [] : this.#thread.call('cardMetrics', numbersOf(cards));
  }
  /** Time that the thread was at work. */
  get busyMillis(): number {
    return this.#thread.busyMillis;
  }
  metrics(): Record<string, NetworkMetrics> {
    return this.#thread.isReady ? this.#thread.call('networkMetrics') : {};
  }

  async close(): Promise<void> {
    await this.#thread.close();
  }
}

const numbersOf = (cards: readonly HostCard[]): number[] => cards.map(({ number }) => number);

/** A card on a network, until it is closed. */
export class HostCard implements NetCard {
  readonly number: number;
  readonly mac: string;
  readonly mtuBytes: number;
  /** While it is held to be saved. */
  held: HeldState | undefined;
  readonly #thread: NetworkThread;
  #isConnected = false;
  #isClosed = false;
  /** How often it was told to be connected or not to be. */
  #changes = 0;

  constructor(thread: NetworkThread, number: number, { mac, mtuBytes }: AttachedCard) {
    this.#thread = thread;
    this.number = number;
    this.mac = mac;
    this.mtuBytes = mtuBytes;
  }

  // ---- of a paravirtual card

  get isConnected(): boolean {
    return this.#isConnected;
  }
  connect(connection: NetConnection): boolean {
    this.#changes++;
    return this.#isConnected = this.#thread.call('connect', this.number, connection);
  }
  goOn(connection: NetConnection, refused: () => void): void {
    void this.#goOn(connection, refused);
  }
  async #goOn(connection: NetConnection, refused: () => void): Promise<void> {
    const change = ++this.#changes;
    this.#isConnected = true;
    const isGood = await this.#thread.ask('goOn', this.number, connection);
    if (isGood || change !== this.#changes || this.#isClosed) return;
    this.#isConnected = false;
    refused();
  }
  wake(): void {
    this.#thread.post('wake', this.number);
  }
  disconnect(): void {
    if (this.#isConnected) this.#thread.call('disconnect', this.number);
    this.#changes++;
    this.#isConnected = false;
  }
  save(): NetConnection | undefined {
    return this.held!.connection;
  }

  // ---- of one in a slot of a machine

  /** Looks at all queues of the domain's cards, soon. */
  serveSlots(domid: number): void {
    this.#thread.post('serveSlots', domid, true);
  }
  /** When the domain's registers are those that go with the state. */
  restoreSlot(state: SlotState | undefined): void {
    this.#thread.post('restoreSlot', this.number, state);
  }

  // ---- of any

  /** The guest is as it was when `state` was taken: its connections are ended. */
  restoreCard(state: CardState): void {
    this.#thread.post('restoreCard', this.number, state);
  }

  /** Opens a port of the host. @throws ZazenError ZAZEN_PORT_IN_USE, ZAZEN_PORT_FORWARD; ZAZEN_NIC_UNKNOWN: it has gone */
  async forward(wanted: PortForward): Promise<ActiveForward> {
    if (this.#isClosed) throw new ZazenError('ZAZEN_NIC_UNKNOWN', 'the network card has gone');
    const { number, forward } = await this.#thread.ask('openForward', this.number, wanted);
    const close = async (): Promise<void> => {
      if (!this.#isClosed) await this.#thread.ask('closeForward', number);
    };
    return { ...forward, close };
  }

  /** It has been detached. */
  wasDetached(): void {
    this.#isClosed = true;
  }
  close(): void {
    if (this.#isClosed) return;
    this.wasDetached();
    this.#thread.call('detach', [this.number]);
  }
}

/** @throws ZazenError ZAZEN_SPEC_NETWORK */
export function checkNetworkName(name: string): void {
  if (/^[A-Za-z0-9_.+-]{1,64}$/.test(name)) return;
  throw new ZazenError('ZAZEN_SPEC_NETWORK', `a network cannot be called "${name.slice(0, 80)}"`, {
    hint: 'use letters, digits, and _ . + -, up to 64',
  });
}
