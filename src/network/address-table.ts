// Which address of a network is kept for which card: the lowest free one at first, and the same again whenever the card
// comes back, until another needs it.
//
//   10.0.2.0/24:  .2 gateway, .3 DNS, guests from .15 on (small subnets: from .4)

import { ZazenError } from '../base/errors.ts';
import { formatAddress, formatMac, inSubnet, subnetBroadcast } from './addresses.ts';
import type { Subnet } from './addresses.ts';

const GATEWAY_HOST = 2;
const DNS_HOST = 3;
/** From here on an operator may choose; others are given out from the next on. */
const FIRST_HOST = 4;
const FIRST_GUEST_HOST = 15;
const FIRST_GUEST_HOST_SMALL = 4;
const SMALL_PREFIX = 27;
/** Cards that are away and whose addresses are kept all the same. */
const MAX_REMEMBERED = 4096;

export class AddressTable {
  readonly gatewayAddress: number;
  readonly dnsAddress: number;
  readonly #subnet: Subnet;
  /** By address, the card that holds it. */
  readonly #held = new Map<number, number>();
  /** By card, the address that it had last. */
  readonly #remembered = new Map<number, number>();

  constructor(subnet: Subnet) {
    this.#subnet = subnet;
    this.gatewayAddress = subnet.network + GATEWAY_HOST;
    this.dnsAddress = subnet.network + DNS_HOST;
  }

  /** Whether a guest may have the address, and none has. */
  isFree(address: number): boolean {
    return this.#isForGuests(address) && !this.#held.has(address);
  }

  #isForGuests(address: number): boolean {
    return inSubnet(this.#subnet, address) && address >= this.#subnet.network + FIRST_HOST
      && address < subnetBroadcast(this.#subnet);
  }

  /** Takes `wanted` for a card; an operator's choice, so that it fails if it cannot be. */
  takeExactly(mac: number, wanted: number): number {
    const first = this.#subnet.network + FIRST_HOST;
    if (!this.#isForGuests(wanted)) {
      throw new ZazenError('ZAZEN_NETWORK_ADDRESS', `${formatAddress(wanted)} is no guest's address in this network`, {
        hint: `choose one from ${formatAddress(first)} to ${formatAddress(subnetBroadcast(this.#subnet) - 1)}`,
      });
    }
    const holder = this.#held.get(wanted);
    if (holder !== undefined) {
      const message = `${formatAddress(wanted)} is kept for ${formatMac(holder)}`;
      throw new ZazenError('ZAZEN_NETWORK_ADDRESS_IN_USE', message, {
        hint: 'choose another address, or none to be given a free one',
      });
    }
    return this.#take(mac, wanted);
  }

  /** Takes an address for a card; undefined if none is left. */
  take(mac: number): number | undefined {
    const before = this.#remembered.get(mac);
    if (before !== undefined && !this.#held.has(before)) return this.#take(mac, before);
    const away = new Set(this.#remembered.values());
    let second: number | undefined;
    const small = this.#subnet.prefixLength >= SMALL_PREFIX;
    const end = subnetBroadcast(this.#subnet);
    for (let at = this.#subnet.network + (small ? FIRST_GUEST_HOST_SMALL : FIRST_GUEST_HOST); at < end; at++) {
      if (this.#held.has(at)) continue;
      if (!away.has(at)) return this.#take(mac, at);
      second ??= at;
    }
    return second === undefined ? undefined : this.#take(mac, second);
  }

  release(address: number): void {
    this.#held.delete(address);
  }

  #take(mac: number, address: number): number {
    this.#held.set(address, mac);
    this.#remembered.delete(mac);
    this.#remembered.set(mac, address);
    if (this.#remembered.size > MAX_REMEMBERED) {
      for (const oldest of this.#remembered.keys()) {
        this.#remembered.delete(oldest);
        break;
      }
    }
    return address;
  }
}
