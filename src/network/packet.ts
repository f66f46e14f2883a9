// Headers of Ethernet, IPv4 and UDP: where their fields are, checked reading, writing.
//
//   frame  0        6        12   14                 34 (no options)
//          ┌────────┬────────┬────┬──────────────────┬─────────────────┐
//          │ to     │ from   │type│ IPv4 header      │ TCP, UDP, ICMP  │  padding up to 60 bytes possible
//          └────────┴────────┴────┴──────────────────┴─────────────────┘

import { addBytes, finish, fold, pseudoHeaderSum } from './checksum.ts';
import { readU16, readU32, writeMac, writeU16, writeU32 } from './wire.ts';

export const ETHERNET_HEADER_BYTES = 14;
export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_IPV6 = 0x86dd;

export const IPV4_HEADER_BYTES = 20;
export const IPV4_MAX_BYTES = 65535;
export const UDP_HEADER_BYTES = 8;
export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;

const DONT_FRAGMENT = 0x4000;
const MORE_FRAGMENTS = 0x2000;
const TIME_TO_LIVE = 64;

/** The header fields of an IPv4 packet in a frame. One object is used for many packets. */
export class Ipv4Header {
  source = 0;
  destination = 0;
  protocol = 0;
  id = 0;
  /** Bytes. */
  fragmentOffset = 0;
  moreFragments = false;
  /** In the frame: of the header, of what follows it, and of the packet's end (before Ethernet padding). */
  offset = ETHERNET_HEADER_BYTES;
  payloadOffset = 0;
  end = 0;

  /** Reads the packet that begins at `offset`; false if it is malformed. */
  parse(frame: Uint8Array, offset = ETHERNET_HEADER_BYTES): boolean {
    if (frame.length < offset + IPV4_HEADER_BYTES) return false;
    const headerBytes = (frame[offset]! & 15) * 4;
    const totalBytes = readU16(frame, offset + 2);
    if (frame[offset]! >> 4 !== 4 || headerBytes < IPV4_HEADER_BYTES || totalBytes < headerBytes) return false;
    if (offset + totalBytes > frame.length) return false;
    if (fold(addBytes(0, frame, offset, offset + headerBytes)) !== 0xffff) return false;
    this.offset = offset;
    this.payloadOffset = offset + headerBytes;
    this.end = offset + totalBytes;
    this.id = readU16(frame, offset + 4);
    const fragment = readU16(frame, offset + 6);
    this.fragmentOffset = (fragment & 0x1fff) * 8;
    this.moreFragments = (fragment & MORE_FRAGMENTS) !== 0;
    this.protocol = frame[offset + 9]!;
    this.source = readU32(frame, offset + 12);
    this.destination = readU32(frame, offset + 16);
    return true;
  }

  /** Whether the TCP or UDP checksum of the payload is right. */
  transportChecksumHolds(frame: Uint8Array): boolean {
    const sum = pseudoHeaderSum(this.source, this.destination, this.protocol, this.end - this.payloadOffset);
    return fold(addBytes(sum, frame, this.payloadOffset, this.end)) === 0xffff;
  }
}

export function writeEthernetHeader(frame: Uint8Array, to: number, from: number, etherType: number): void {
  writeMac(frame, 0, to);
  writeMac(frame, 6, from);
  writeU16(frame, 12, etherType);
}

export interface Ipv4Fields {
  readonly source: number;
  readonly destination: number;
  readonly protocol: number;
  /** Header and payload. */
  readonly totalBytes: number;
  /** For fragments; without it the packet says that it may not be fragmented. */
  readonly fragment?: { readonly id: number; readonly offset: number; readonly more: boolean };
}

/** Writes a header without options, with its checksum, behind the Ethernet header. */
export function writeIpv4Header(frame: Uint8Array, fields: Ipv4Fields): void {
  const at = ETHERNET_HEADER_BYTES;
  const { fragment } = fields;
  writeU16(frame, at, 0x4500);
  writeU16(frame, at + 2, fields.totalBytes);
  writeU16(frame, at + 4, fragment?.id ?? 0);
  const more = fragment?.more === true ? MORE_FRAGMENTS : 0;
  writeU16(frame, at + 6, fragment === undefined ? DONT_FRAGMENT : more | (fragment.offset >> 3));
  writeU16(frame, at + 8, (TIME_TO_LIVE << 8) | fields.protocol);
  writeU16(frame, at + 10, 0);
  writeU32(frame, at + 12, fields.source);
  writeU32(frame, at + 16, fields.destination);
  writeU16(frame, at + 10, finish(addBytes(0, frame, at, at + IPV4_HEADER_BYTES)));
}

/** A UDP datagram with its checksum. */
export function buildUdp(
  source: number, sourcePort: number, destination: number, destinationPort: number, payload: Uint8Array,
): Uint8Array {
  const datagram = new Uint8Array(UDP_HEADER_BYTES + payload.length);
  writeU16(datagram, 0, sourcePort);
  writeU16(datagram, 2, destinationPort);
  writeU16(datagram, 4, datagram.length);
  datagram.set(payload, UDP_HEADER_BYTES);
  const sum = pseudoHeaderSum(source, destination, PROTOCOL_UDP, datagram.length);
  const checksum = finish(addBytes(sum, datagram, 0, datagram.length));
  writeU16(datagram, 6, checksum === 0 ? 0xffff : checksum); // 0 would say that there is none
  return datagram;
}
