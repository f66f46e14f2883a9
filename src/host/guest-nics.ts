// The network cards of one guest: each a device that the guest finds in its store or its registers, and a card in the network
// thread (networks.ts), which moves its frames.
//
//   created    MAC address from the spec, or from the guest's UUID; address from the network
//   forked     its own MAC and IPv4 address; the guest goes on with those in its memory, which are translated
//   restored   those of the saved guest, where they are free; its forwards, too
//   rolled back  the card stays where it is on the network; its connections are ended. One that was taken away since then
//                is attached again, as for a restored guest

import { createHash } from 'node:crypto';
import { ZazenError } from '../base/errors.ts';
import { NetDevice } from '../devices/net/device.ts';
import type { NetDeviceState } from '../devices/net/device.ts';
import { parseNetDeviceState } from '../devices/net/state.ts';
import { parseMac } from '../network/addresses.ts';
import { parseCardState } from '../network/card-state.ts';
import type { CardState } from '../network/card-state.ts';
import { formatForward, parsePortForward } from '../network/port-forward.ts';
import type { ActiveForward } from '../network/port-forward.ts';
import type { EmulatedMachine } from './emulated-machine.ts';
import type { HostCore } from './host-core.ts';
import { DEFAULT_NETWORK } from './network-name.ts';
import type { CardMetrics, CardRequest } from './network-service.ts';
import { checkNetworkName } from './networks.ts';
import type { HostCard } from './networks.ts';
import type { NicSpec, NicStats } from './types.ts';
import { VirtioNic } from './virtio-nic.ts';

/** IEEE's number for Xen. */
const XEN_OUI = '00:16:3e';
export const NICS_MAX = 8;
const DETACH_MILLIS = 5000;
const FORWARDS_MAX = 256;
const HANDLE_LIMIT = 2 ** 16;

export interface NicState {
  readonly handle: number;
  readonly spec: NicSpec;
  readonly device: NetDeviceState;
  readonly card: CardState;
}

interface Nic {
  readonly spec: NicSpec;
  /** A paravirtual one, or the like for a machine with emulated devices. */
  readonly device: Pick<NetDevice, 'askToDetach' | 'close' | 'save' | 'beginRestore' | 'restore'>;
  readonly card: HostCard;
  isConnected(): boolean;
  readonly networkName: string;
  /** As the operator wrote them; undefined: those which the host's port could not be had for. */
  readonly forwards: Map<string, ActiveForward | undefined>;
}

interface Owner {
  readonly domainId: number;
  readonly name: string;
  readonly uuid: string;
}

export class GuestNics {
  readonly #core: HostCore;
  readonly #owner: Owner;
  readonly #machine: EmulatedMachine | undefined;
  readonly #nics = new Map<number, Nic>();
  /** Of a guest that has ended. */
  #last: NicStats[] | undefined;
  /** Came back by a rollback; their forwards are yet to. */
  #broughtBack: Nic[] = [];
  /** Not one that a card had before: Linux would take the new card for the old one, which it may still be removing. */
  #nextHandle = 0;

  /** @param machine of a domain of type hvm */
  constructor(core: HostCore, owner: Owner, machine?: EmulatedMachine) {
    this.#core = core;
    this.#machine = machine;
    this.#owner = owner;
  }

  /** @throws ZazenError ZAZEN_NETWORK_*, ZAZEN_SPEC_NIC; nothing has happened then */
  add(spec: NicSpec): number {
    if (this.#nics.size === NICS_MAX) {
      throw new ZazenError('ZAZEN_SPEC_NIC', `a guest has ${NICS_MAX} network cards at most`);
    }
    const handle = this.#nextHandle;
    this.#open(handle, spec);
    return handle;
  }

  /** Of a guest that this one goes on from; its entries are in the store. */
  takeOver(states: readonly NicState[]): void {
    for (const state of states) this.#open(state.handle, state.spec, state);
  }

  #open(handle: number, spec: NicSpec, state?: NicState): Nic {
    const networkName = spec.network ?? DEFAULT_NETWORK;
    const nic: Nic = { ...this.#openDevice(handle, networkName, spec, state), spec, networkName, forwards: new Map() };
    this.#nics.set(handle, nic);
    this.#nextHandle = Math.max(this.#nextHandle, handle + 1);
    if (state === undefined) return nic;
    nic.card.restoreCard(state.card);
    // For a front end that asks again; the guest goes on with what it has.
    this.#core.store.write(`/local/domain/${this.#owner.domainId}/device/vif/${handle}/mac`, nic.card.mac);
    return nic;
  }

  #openDevice(handle: number, networkName: string, spec: NicSpec, state?: NicState): Pick<Nic, 'device' | 'card' | 'isConnected'> {
    const { store, thread: { hypercalls: { domains } } } = this.#core;
    const { domainId } = this.#owner;
    const attach = (slot?: CardRequest['slot']): HostCard => this.#attach(handle, networkName, spec, state, slot);
    if (this.#machine === undefined) {
      const card = attach();
      const { mac, mtuBytes } = card;
      const device = new NetDevice({ domainId, store, card, handle, mac, mtuBytes, network: networkName, state: state?.device });
      return { device, card, isConnected: () => card.isConnected };
    }
    return this.#machine.attachNic((slot, record, slotState) => {
      const card = attach({ number: slot, state: slotState });
      const device = new VirtioNic({ card, slot, record, host: domains.record(0) });
      return { device, card, inSlot: device.inSlot, isConnected: () => device.isConnected };
    });
  }

  #attach(handle: number, network: string, spec: NicSpec, state: NicState | undefined, slot: CardRequest['slot']): HostCard {
    const { address, rateBytesPerSecond } = spec;
    const { domainId: domid, name } = this.#owner;
    const wantedMac = state === undefined ? spec.mac : undefined;
    for (let attempt = 0; ; attempt++) {
      const mac = wantedMac ?? this.#ownMac(handle, attempt);
      try {
        return this.#core.networks.attach({ domid, network, mac, name, address, rateBytesPerSecond, state: state?.card, slot });
      } catch (error) {
        const isTaken = error instanceof ZazenError && error.code === 'ZAZEN_NETWORK_MAC_IN_USE';
        if (wantedMac !== undefined || !isTaken) throw error;
      }
    }
  }

  /** Of the guest's own, the same each time; the first one that nobody has. */
  #ownMac(handle: number, attempt: number): string {
    const digest = createHash('sha256').update(`${this.#owner.uuid} ${handle} ${attempt}`).digest('hex');
    return `${XEN_OUI}:${digest.slice(0, 2)}:${digest.slice(2, 4)}:${digest.slice(4, 6)}`;
  }

  /** Those of the specs. @throws ZazenError ZAZEN_PORT_IN_USE, ZAZEN_PORT_FORWARD */
  async openForwards(handle?: number): Promise<void> {
    for (const [number, nic] of this.#nics) {
      if (handle !== undefined && number !== handle) continue;
      for (const forward of nic.spec.forwards ?? []) await openForwardOf(nic, forward);
    }
  }

  /**
   * As `openForwards`, for a restored guest, or for cards that a rollback has brought back: one whose port of the host
   * cannot be had is missing, and said to be.
   */
  async takeBackForwards(whose: 'all' | 'broughtBack'): Promise<void> {
    const nics = whose === 'all' ? this.#nics.values() : this.#broughtBack.splice(0);
    for (const nic of nics) {
      for (const forward of nic.spec.forwards ?? []) {
        try {
          await openForwardOf(nic, forward);
        } catch (error) {
          if (!(error instanceof ZazenError)) throw error;
          nic.forwards.set(forward, undefined);
          this.#core.log(`${this.#owner.name}: ${error.message}; it goes on without ${forward}`);
        }
      }
    }
  }

  /**
   * @param handle default: the first card
   * @returns it as it is in force
   * @throws ZazenError ZAZEN_NIC_UNKNOWN, ZAZEN_PORT_IN_USE, ZAZEN_PORT_FORWARD, ZAZEN_SPEC_NIC
   */
  async addForward(forward: string, handle = this.#nics.keys().next().value ?? 0): Promise<string> {
    const nic = this.#find(handle);
    if (nic.forwards.size >= FORWARDS_MAX) {
      throw new ZazenError('ZAZEN_SPEC_NIC', `a network card has ${FORWARDS_MAX} forwards at most`);
    }
    return openForwardOf(nic, forward);
  }

  /** By what it is in force, or as it was asked for. @throws ZazenError ZAZEN_FORWARD_UNKNOWN */
  async removeForward(text: string): Promise<void> {
    const wanted = formatForward(parsePortForward(text));
    for (const { forwards } of this.#nics.values()) {
      for (const [asked, active] of forwards) {
        const names = [asked, ...(active === undefined ? [] : [active])].map((one) =>
          formatForward(typeof one === 'string' ? parsePortForward(one) : one));
        if (!names.includes(wanted)) continue;
        forwards.delete(asked);
        return active?.close();
      }
    }
    throw new ZazenError('ZAZEN_FORWARD_UNKNOWN', `no port is forwarded to ${this.#owner.name} as ${text}`, {
      hint: 'zazen network-list shows those that are',
    });
  }

  /**
   * Asks the guest to let go of a card, then takes it away, in any case after some seconds.
   * @throws ZazenError ZAZEN_NIC_UNKNOWN
   */
  async remove(handle: number): Promise<void> {
    const nic = this.#find(handle);
    const timeout = Promise.withResolvers<void>();
    const timer = setTimeout(timeout.resolve, DETACH_MILLIS);
    await Promise.race([nic.device.askToDetach(), timeout.promise]);
    clearTimeout(timer);
    // The guest may have been destroyed, or the card gone, meanwhile.
    if (this.#nics.get(handle) !== nic) return;
    this.#nics.delete(handle);
    nic.device.close('remove');
  }

  #find(handle: number): Nic {
    const nic = this.#nics.get(handle);
    if (nic !== undefined) return nic;
    throw new ZazenError('ZAZEN_NIC_UNKNOWN', `${this.#owner.name} has no network card ${handle}`, {
      hint: 'zazen network-list shows those there are',
    });
  }

  get #cards(): HostCard[] {
    return Array.from(this.#nics.values(), ({ card }) => card);
  }
  /**
   * The cards use none of the guest's pages until `release`, so that its memory can be frozen or put back.
   * @param isSaved `save` will be called
   */
  hold(isSaved: boolean): void {
    this.#core.networks.hold(this.#cards, isSaved);
  }
  release(): void {
    this.#core.networks.release(this.#cards);
  }

  /** With the cards held. */
  save(): NicState[] {
    return [...this.#nics].map(([handle, { spec, device, card, forwards }]) =>
      ({ handle, spec: { ...spec, forwards: [...forwards.keys()] }, device: device.save(), card: card.held!.card }));
  }

  /** The guest is about to be as it was: whatever the store says meanwhile is not looked at. */
  beginRestore(): void {
    for (const { device } of this.#nics.values()) device.beginRestore();
  }

  /**
   * Guest and store are as they were when `states` was taken.
   * @param isOwn of this very guest: a card that comes back has its forwards back by the next `takeBackForwards`. One of
   *     another's has none, as with a fork
   */
  restore(states: readonly NicState[], isOwn: boolean): void {
    const wanted = new Map(states.map((state) => [state.handle, state]));
    for (const [handle, nic] of this.#nics) {
      const state = wanted.get(handle);
      if (state !== undefined && (state.spec.network ?? DEFAULT_NETWORK) === nic.networkName) continue;
      this.#nics.delete(handle);
      nic.device.close('keep');
    }
    for (const [handle, state] of wanted) {
      const nic = this.#nics.get(handle);
      if (nic === undefined) {
        const back = this.#open(handle, state.spec, state);
        if (isOwn) this.#broughtBack.push(back);
      } else {
        nic.device.restore(state.device);
        nic.card.restoreCard(state.card);
      }
    }
  }

  /** After `detach`, as it was then. */
  stats(): NicStats[] {
    return this.#last ?? this.#statsOf(this.#core.networks.cardMetrics(this.#cards));
  }
  #statsOf(all: readonly CardMetrics[]): NicStats[] {
    return [...this.#nics].map(([handle, { networkName, forwards, isConnected }], i) => {
      const { mac, address, txFrames, txBytes, rxFrames, rxBytes, rxDropped, txSpoofed, txMalformed } = all[i]!.port;
      const { txErrors, rxErrors, notifications } = all[i]!.device;
      return {
        handle, network: networkName, mac, address, isConnected: isConnected(),
        txFrames, txBytes, rxFrames, rxBytes, rxDropped, rxErrors, notifications,
        txErrors: txErrors + txSpoofed + txMalformed,
        forwards: [...forwards.values()].flatMap((active) => active === undefined ? [] : [formatForward(active)]),
        missingForwards: [...forwards].flatMap(([asked, active]) => active === undefined ? [asked] : []),
      };
    });
  }

  /** Of a guest that ends: its cards use nothing of it any more. */
  detach(): void {
    this.#last ??= this.#statsOf(this.#core.networks.detach(this.#cards));
  }
  close(): void {
    this.detach();
    for (const { device } of this.#nics.values()) device.close('keep');
    this.#nics.clear();
  }
}

/** @returns it as it is in force @throws ZazenError ZAZEN_PORT_IN_USE, ZAZEN_PORT_FORWARD */
async function openForwardOf({ card, forwards }: Nic, forward: string): Promise<string> {
  // One that is there already keeps its name: the next restored guest is to have both.
  const active = await card.forward(parsePortForward(forward));
  const asked = forwards.get(forward) === undefined ? forward : formatForward(active);
  forwards.set(asked, active);
  return formatForward(active);
}

/** From an image, which may say anything. @returns undefined when they are none */
export function parseNicStates(value: unknown): NicState[] | undefined {
  if (!Array.isArray(value) || value.length > NICS_MAX) return undefined;
  const states: NicState[] = [];
  for (const { handle, spec, device, card } of (value as Partial<NicState>[]).map((state) => state ?? {})) {
    const parsed = { device: parseNetDeviceState(device), card: parseCardState(card), spec: parseSpec(spec) };
    const isHandle = Number.isInteger(handle) && handle! >= 0 && handle! < HANDLE_LIMIT;
    if (!isHandle || states.some((state) => state.handle === handle)) return undefined;
    if (parsed.device === undefined || parsed.card === undefined || parsed.spec === undefined) return undefined;
    states.push({ handle: handle!, device: parsed.device, card: parsed.card, spec: parsed.spec });
  }
  return states;
}

function parseSpec(value: unknown): NicSpec | undefined {
  const { network, mac, address, forwards = [], rateBytesPerSecond } = (value ?? {}) as NicSpec;
  const isText = (text: unknown): boolean => text === undefined || typeof text === 'string';
  const isRate = rateBytesPerSecond === undefined || Number.isFinite(rateBytesPerSecond) && rateBytesPerSecond > 0;
  if (![network, mac, address].every(isText) || !isRate) return undefined;
  if (!Array.isArray(forwards) || forwards.length > FORWARDS_MAX || !forwards.every(isText)) return undefined;
  try {
    const spec = { network, mac, address, forwards, rateBytesPerSecond };
    checkNics([spec]);
    return spec;
  } catch {
    return undefined;
  }
}

/** @throws ZazenError ZAZEN_SPEC_NIC, ZAZEN_SPEC_NETWORK; UsageError for a forward */
export function checkNics(specs: readonly NicSpec[]): void {
  const refuse = (message: string, hint: string): never => {
    throw new ZazenError('ZAZEN_SPEC_NIC', message, { hint });
  };
  if (specs.length > NICS_MAX) refuse(`a guest cannot have ${specs.length} network cards`, `give up to ${NICS_MAX}`);
  for (const { network, mac, forwards = [] } of specs) {
    if (network !== undefined) checkNetworkName(network);
    if (mac !== undefined && parseMac(mac) === undefined) {
      refuse(`not a MAC address: ${mac}`, 'write it as 00:16:3e:12:34:56');
    }
    for (const forward of forwards) parsePortForward(forward);
  }
}
