// IPv4 and MAC addresses: numbers inside (an IPv4 address as an unsigned 32-bit number, a MAC address as a 48-bit one),
// text at the edges.

import { ZazenError } from '../base/errors.ts';

export const BROADCAST_MAC = 0xffff_ffff_ffff;
export const BROADCAST_ADDRESS = 0xffff_ffff;
export const LOOPBACK_ADDRESS = 0x7f00_0001;

/** A network's addresses, e.g. 10.0.2.0/24. */
export interface Subnet {
  readonly network: number;
  readonly mask: number;
  readonly prefixLength: number;
}

/** The address that dotted text names, or undefined. */
export function parseAddress(text: string): number | undefined {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (match === null) return undefined;
  const octets = match.slice(1).map(Number);
  if (octets.some((octet) => octet > 255)) return undefined;
  return octets.reduce((address, octet) => address * 256 + octet, 0);
}

export function formatAddress(address: number): string {
  return `${address >>> 24}.${(address >>> 16) & 0xff}.${(address >>> 8) & 0xff}.${address & 0xff}`;
}

export function parseMac(text: string): number | undefined {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) return undefined;
  return Number.parseInt(text.replaceAll(':', ''), 16);
}

export function formatMac(mac: number): string {
  return mac.toString(16).padStart(12, '0').replaceAll(/(..)(?!$)/g, '$1:');
}

/** Group addresses: multicast and broadcast. */
export function isGroupMac(mac: number): boolean {
  return (Math.floor(mac / 2 ** 40) & 1) === 1;
}

/** Parses `10.0.2.0/24`; an operator's word. */
export function parseSubnet(text: string): Subnet {
  const [address, length, ...rest] = text.split('/');
  const network = parseAddress(address ?? '');
  const prefixLength = /^\d{1,2}$/.test(length ?? '') ? Number(length) : NaN;
  if (network === undefined || rest.length > 0 || !(prefixLength >= 8 && prefixLength <= 29)) {
    throw new ZazenError('ZAZEN_NETWORK_SUBNET', `not a subnet: ${text}`, {
      hint: 'write it as 10.0.2.0/24, with 8 to 29 bits of network',
    });
  }
  const mask = (0xffff_ffff << (32 - prefixLength)) >>> 0;
  if ((network & ~mask) !== 0) {
    throw new ZazenError('ZAZEN_NETWORK_SUBNET', `${text} has bits set outside of its mask`, {
      hint: `write ${formatAddress((network & mask) >>> 0)}/${prefixLength}`,
    });
  }
  return { network, mask, prefixLength };
}

export function inSubnet(subnet: Subnet, address: number): boolean {
  return ((address & subnet.mask) >>> 0) === subnet.network;
}

/** The subnet's broadcast address. */
export function subnetBroadcast(subnet: Subnet): number {
  return (subnet.network | ~subnet.mask) >>> 0;
}
