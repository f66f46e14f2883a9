// A card whose guest believes in other addresses than the network knows it by: a fork has its original's MAC and IPv4
// address in its memory, and nobody tells a running guest of new ones. So they are exchanged on the way, for as long as
// the guest uses the old ones:
//
//   guest's MAC      ◄──► port's MAC        Ethernet header, ARP, DHCP's hardware address
//   guest's address  ◄──► port's address    ARP, IPv4 header, what an ICMP error quotes; checksums adjusted
//
// The two IPv4 addresses change places everywhere: what the guest takes for its own is the original's, and the original
// is to be found, from inside, where the guest itself is on the network.
//
// A guest that asks for an address anew (DHCP) gets the port's, and when it sends from that one, or from the port's
// MAC, that passes as it is. IPv6 is left alone, but for the Ethernet header.

import { fold } from './checksum.ts';
import { MAX_FRAME_BYTES } from './frame-port.ts';
import type { GuestLink, LinkFeatures, Offload } from './frame-port.ts';
import {
  ETHERNET_HEADER_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4_HEADER_BYTES, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
} from './packet.ts';
import { readMac, readU16, readU32, writeMac, writeU16, writeU32 } from './wire.ts';

const ARP_BYTES = 28;
const ARP_SENDER_MAC = 8;
const ARP_SENDER_ADDRESS = 14;
const ARP_TARGET_MAC = 18;
const ARP_TARGET_ADDRESS = 24;
const ICMP_HEADER_BYTES = 8;
const ICMP_ERRORS = new Set([3, 11, 12]);
/** Ports of a datagram as one number. */
const FROM_CLIENT = (68 << 16) | 67;
const FROM_SERVER = (67 << 16) | 68;
const DHCP_CHADDR = 28;
const DHCP_FIXED_BYTES = 240;

export interface CardAddresses {
  readonly mac: number;
  readonly address: number;
}

export class AddressAlias {
  readonly guest: CardAddresses;
  readonly #port: CardAddresses;
  readonly #scratch = new Uint8Array(MAX_FRAME_BYTES);
  /** The guest has learned the port's addresses. */
  #isMacKnown: boolean;
  #isAddressKnown: boolean;

  /** None, where both are the same. */
  static of(guest: CardAddresses, port: CardAddresses): AddressAlias | undefined {
    return guest.mac === port.mac && guest.address === port.address ? undefined : new AddressAlias(guest, port);
  }

  constructor(guest: CardAddresses, port: CardAddresses) {
    this.guest = guest;
    this.#port = port;
    this.#isMacKnown = guest.mac === port.mac;
    this.#isAddressKnown = guest.address === port.address;
  }

  /** As the guest has them now. */
  get believed(): CardAddresses {
    return {
      mac: this.#isMacKnown ? this.#port.mac : this.guest.mac,
      address: this.#isAddressKnown ? this.#port.address : this.guest.address,
    };
  }

  /** An address as the guest has to be told it. */
  addressInside(address: number): number {
    if (this.#isAddressKnown) return address;
    if (address === this.#port.address) return this.guest.address;
    return address === this.guest.address ? this.#port.address : address;
  }

  /** @returns the frame in a buffer that holds until the next call */
  fromGuest(frame: Uint8Array, offload: Offload): Uint8Array {
    if (frame.length > MAX_FRAME_BYTES) return frame; // the switch refuses it
    const out = this.#copy(frame);
    if (out.length < ETHERNET_HEADER_BYTES) return out;
    const { mac, address } = this.#port;
    const source = senderOf(out);
    if (source === address) this.#isAddressKnown = true;
    if (readMac(out, 6) === mac) this.#isMacKnown = true;
    exchangeMac(out, 6, this.guest.mac, mac);
    this.#translate(out, offload, this.guest.mac, mac, ARP_SENDER_MAC);
    return out;
  }

  /** @returns the frame in a buffer that holds until the next call */
  toGuest(frame: Uint8Array, offload: Offload): Uint8Array {
    const out = this.#copy(frame);
    const { mac } = this.believed;
    exchangeMac(out, 0, this.#port.mac, mac);
    this.#translate(out, offload, this.#port.mac, mac, ARP_TARGET_MAC);
    return out;
  }

  #copy(frame: Uint8Array): Uint8Array {
    this.#scratch.set(frame);
    return this.#scratch.subarray(0, frame.length);
  }

  #translate(frame: Uint8Array, offload: Offload, fromMac: number, toMac: number, arpMac: number): void {
    const etherType = frame.length < ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES ? 0 : readU16(frame, 12);
    if (etherType === ETHERTYPE_ARP && frame.length >= ETHERNET_HEADER_BYTES + ARP_BYTES) {
      exchangeMac(frame, ETHERNET_HEADER_BYTES + arpMac, fromMac, toMac);
      for (const field of [ARP_SENDER_ADDRESS, ARP_TARGET_ADDRESS]) this.#swap(frame, ETHERNET_HEADER_BYTES + field);
    } else if (etherType === ETHERTYPE_IPV4) this.#translateIpv4(frame, offload, fromMac, toMac);
  }

  /** @returns what that adds to a checksum's sum */
  #swap(frame: Uint8Array, field: number): number {
    const before = readU32(frame, field);
    const after = this.addressInside(before);
    if (before === after) return 0;
    writeU32(frame, field, after);
    // RFC 1624
    return (~(before >>> 16) & 0xffff) + (~before & 0xffff) + (after >>> 16) + (after & 0xffff);
  }

  #translateIpv4(frame: Uint8Array, offload: Offload, fromMac: number, toMac: number): void {
    const ip = ETHERNET_HEADER_BYTES;
    const transport = ip + (frame[ip]! & 15) * 4;
    const isFirst = (readU16(frame, ip + 6) & 0x1fff) === 0;
    const protocol = frame[ip + 9]!;
    const change = this.#swap(frame, ip + 12) + this.#swap(frame, ip + 16);
    if (change !== 0) adjust(frame, ip + 10, change);
    if (!isFirst || transport < ip + IPV4_HEADER_BYTES) return;
    if (protocol === PROTOCOL_TCP && transport + 18 <= frame.length) {
      if (change !== 0) adjustTransport(frame, transport + 16, change, offload.checksumPartial);
    } else if (protocol === PROTOCOL_UDP && transport + 8 <= frame.length) {
      const hasChecksum = offload.checksumPartial || readU16(frame, transport + 6) !== 0;
      if (change !== 0 && hasChecksum) adjustTransport(frame, transport + 6, change, offload.checksumPartial);
      translateDhcp(frame, transport, fromMac, toMac);
    } else if (protocol === PROTOCOL_ICMP) this.#translateQuote(frame, transport);
  }

  /** An ICMP error quotes the packet that it is about. */
  #translateQuote(frame: Uint8Array, icmp: number): void {
    const quote = icmp + ICMP_HEADER_BYTES;
    if (quote + IPV4_HEADER_BYTES > frame.length || !ICMP_ERRORS.has(frame[icmp]!)) return;
    const change = this.#swap(frame, quote + 12) + this.#swap(frame, quote + 16);
    if (change === 0) return;
    const before = readU16(frame, quote + 10);
    adjust(frame, quote + 10, change);
    adjust(frame, icmp + 2, change + (~before & 0xffff) + readU16(frame, quote + 10));
  }
}

/** The IPv4 address that a frame is from, or 0. */
function senderOf(frame: Uint8Array): number {
  if (frame.length < ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES) return 0;
  const etherType = readU16(frame, 12);
  if (etherType === ETHERTYPE_IPV4) return readU32(frame, ETHERNET_HEADER_BYTES + 12);
  return etherType === ETHERTYPE_ARP ? readU32(frame, ETHERNET_HEADER_BYTES + ARP_SENDER_ADDRESS) : 0;
}

function exchangeMac(frame: Uint8Array, at: number, from: number, to: number): void {
  if (readMac(frame, at) === from) writeMac(frame, at, to);
}

/** DHCP names the card inside of its message; such a datagram goes without a checksum, as IPv4 allows. */
function translateDhcp(frame: Uint8Array, udp: number, from: number, to: number): void {
  const ports = readU32(frame, udp);
  if (ports !== FROM_CLIENT && ports !== FROM_SERVER) return;
  const card = udp + 8 + DHCP_CHADDR;
  if (udp + 8 + DHCP_FIXED_BYTES > frame.length || readMac(frame, card) !== from) return;
  writeMac(frame, card, to);
  writeU16(frame, udp + 6, 0);
}

function adjust(frame: Uint8Array, at: number, change: number): void {
  writeU16(frame, at, ~fold((~readU16(frame, at) & 0xffff) + change) & 0xffff);
}

/** A partial checksum is the sum itself, of the pseudo-header. */
function adjustTransport(frame: Uint8Array, at: number, change: number, isPartial: boolean): void {
  if (isPartial) writeU16(frame, at, fold(readU16(frame, at) + change));
  else adjust(frame, at, change);
}

/** A guest's link behind an alias, or without one. */
export class AliasedLink implements GuestLink {
  alias: AddressAlias | undefined;
  readonly #link: GuestLink;

  constructor(link: GuestLink) {
    this.#link = link;
  }

  get features(): LinkFeatures {
    return this.#link.features;
  }
  receive(frame: Uint8Array, offload: Offload): boolean {
    return this.#link.receive(this.alias === undefined ? frame : this.alias.toGuest(frame, offload), offload);
  }
  writable(): void {
    this.#link.writable();
  }
}
