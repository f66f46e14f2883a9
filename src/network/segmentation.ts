// What a card's offloads left undone, done for a card that did not negotiate them: fills blank checksums and cuts a
// super-frame into segments of the size that its sender asked for. TCP over IPv4 or IPv6, UDP for the checksum alone.
//
//   super-frame  │ headers │ payload 1 │ payload 2 │ rest │
//   becomes      │ headers │ payload 1 │   │ headers │ payload 2 │   │ headers │ rest │     lengths, sequence numbers,
//                                                                        IPv4 ids, flags and checksums adjusted

import { addBytes, finish, pseudoHeaderSum } from './checksum.ts';
import { CHECKSUM_PARTIAL, MAX_FRAME_BYTES, NO_OFFLOAD } from './frame-port.ts';
import type { LinkFeatures, Offload } from './frame-port.ts';
import {
  ETHERNET_HEADER_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER_BYTES, PROTOCOL_TCP, PROTOCOL_UDP,
  UDP_HEADER_BYTES,
} from './packet.ts';
import { readU16, readU32, writeU16, writeU32 } from './wire.ts';

/** Linux goes no lower; it bounds how many frames one super-frame becomes (1365). */
export const MIN_GSO_BYTES = 48;

const IPV6_HEADER_BYTES = 40;
const TCP_HEADER_BYTES = 20;
const TCP_FIN = 1;
const TCP_PSH = 8;
const TCP_CWR = 0x80;

/** Offsets in a frame, once found and checked. */
interface Layout {
  readonly version: 4 | 6;
  readonly protocol: number;
  readonly transport: number;
  readonly payload: number;
  readonly end: number;
}

/** True if the link takes the frame as it is. */
export function linkTakes(offload: Offload, features: LinkFeatures): boolean {
  if (offload.checksumPartial && !features.checksumPartial) return false;
  if (offload.gsoType === 'none') return true;
  return offload.gsoType === 'tcpv4' ? features.tsoV4 : features.tsoV6;
}

export class Segmenter {
  readonly #scratch = new Uint8Array(MAX_FRAME_BYTES);

  /**
   * Calls `emit` with frames that a link with these features takes. False, and no call, if the frame is no such packet
   * as its offloads say.
   */
  adapt(
    frame: Uint8Array, offload: Offload, features: LinkFeatures, emit: (frame: Uint8Array, offload: Offload) => void,
  ): boolean {
    const layout = findLayout(frame);
    if (layout === undefined) return false;
    if (offload.gsoType === 'none') {
      this.#scratch.set(frame);
      fillChecksum(this.#scratch, layout, layout.end);
      emit(this.#scratch.subarray(0, frame.length), NO_OFFLOAD);
      return true;
    }
    if (layout.protocol !== PROTOCOL_TCP || layout.version !== (offload.gsoType === 'tcpv4' ? 4 : 6)) return false;
    if (offload.gsoSize < MIN_GSO_BYTES) return false;
    this.#split(frame, layout, offload.gsoSize, features, emit);
    return true;
  }

  #split(
    frame: Uint8Array, layout: Layout, gsoSize: number, features: LinkFeatures,
    emit: (frame: Uint8Array, offload: Offload) => void,
  ): void {
    const out = this.#scratch;
    const sequence = readU32(frame, layout.transport + 4);
    const flags = frame[layout.transport + 13]!;
    const id = readU16(frame, ETHERNET_HEADER_BYTES + 4);
    out.set(frame.subarray(0, layout.payload));
    for (let at = layout.payload, index = 0; index === 0 || at < layout.end; at += gsoSize, index++) {
      const last = at + gsoSize >= layout.end;
      const payloadEnd = last ? layout.end : at + gsoSize;
      const end = layout.payload + payloadEnd - at;
      out.set(frame.subarray(at, payloadEnd), layout.payload);
      setLengths(out, layout, end, (id + index) & 0xffff);
      writeU32(out, layout.transport + 4, (sequence + at - layout.payload) >>> 0);
      out[layout.transport + 13] = flags & ~(last ? 0 : TCP_FIN | TCP_PSH) & ~(index === 0 ? 0 : TCP_CWR);
      if (features.checksumPartial) fillPseudoSum(out, layout, end);
      else fillChecksum(out, layout, end);
      emit(out.subarray(0, end), features.checksumPartial ? CHECKSUM_PARTIAL : NO_OFFLOAD);
    }
  }
}

/** Where in a frame its TCP or UDP segment begins, the segment's checksum, and its payload. */
export interface SegmentPlaces {
  readonly segment: number;
  readonly checksum: number;
  readonly payload: number;
}

/**
 * Of a frame whose checksum is blank: puts the sum of the pseudo-header there, for a card that adds the rest.
 * @returns undefined, with nothing done, if it is no TCP or UDP packet
 */
export function beginChecksum(frame: Uint8Array): SegmentPlaces | undefined {
  const layout = findLayout(frame);
  if (layout === undefined) return undefined;
  fillPseudoSum(frame, layout, layout.end);
  return { segment: layout.transport, checksum: checksumOffset(layout), payload: layout.payload };
}

/** Fragments, IPv6 extension headers and VLAN tags never carry partial checksums here. */
function findLayout(frame: Uint8Array): Layout | undefined {
  if (frame.length < ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES) return undefined;
  const etherType = readU16(frame, 12);
  const ip = ETHERNET_HEADER_BYTES;
  if (etherType === ETHERTYPE_IPV4) {
    const headerBytes = (frame[ip]! & 15) * 4;
    if (headerBytes < IPV4_HEADER_BYTES || (readU16(frame, ip + 6) & 0x3fff) !== 0) return undefined;
    return findTransport(frame, 4, frame[ip + 9]!, ip + headerBytes, ip + readU16(frame, ip + 2));
  }
  if (etherType !== ETHERTYPE_IPV6) return undefined;
  const end = ip + IPV6_HEADER_BYTES + readU16(frame, ip + 4);
  return findTransport(frame, 6, frame[ip + 6]!, ip + IPV6_HEADER_BYTES, end);
}

function findTransport(
  frame: Uint8Array, version: 4 | 6, protocol: number, transport: number, end: number,
): Layout | undefined {
  const least = protocol === PROTOCOL_TCP ? TCP_HEADER_BYTES : UDP_HEADER_BYTES;
  if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP || end > frame.length || transport + least > end) {
    return undefined;
  }
  const headerBytes = protocol === PROTOCOL_TCP ? (frame[transport + 12]! >> 4) * 4 : UDP_HEADER_BYTES;
  if (headerBytes < least || transport + headerBytes > end) return undefined;
  return { version, protocol, transport, payload: transport + headerBytes, end };
}

function setLengths(frame: Uint8Array, layout: Layout, end: number, id: number): void {
  const ip = ETHERNET_HEADER_BYTES;
  if (layout.version === 6) {
    writeU16(frame, ip + 4, end - ip - IPV6_HEADER_BYTES);
    return;
  }
  writeU16(frame, ip + 2, end - ip);
  writeU16(frame, ip + 4, id);
  writeU16(frame, ip + 10, 0);
  writeU16(frame, ip + 10, finish(addBytes(0, frame, ip, layout.transport)));
}

function pseudoSum(frame: Uint8Array, layout: Layout, end: number): number {
  const ip = ETHERNET_HEADER_BYTES;
  const lengthBytes = end - layout.transport;
  if (layout.version === 6) return addBytes(layout.protocol + lengthBytes, frame, ip + 8, ip + IPV6_HEADER_BYTES);
  return pseudoHeaderSum(readU32(frame, ip + 12), readU32(frame, ip + 16), layout.protocol, lengthBytes);
}

function checksumOffset(layout: Layout): number {
  return layout.transport + (layout.protocol === PROTOCOL_TCP ? 16 : 6);
}

/** A partial checksum, as the card that completes it expects it: the sum of the pseudo-header. */
function fillPseudoSum(frame: Uint8Array, layout: Layout, end: number): void {
  writeU16(frame, checksumOffset(layout), ~finish(pseudoSum(frame, layout, end)) & 0xffff);
}

function fillChecksum(frame: Uint8Array, layout: Layout, end: number): void {
  const at = checksumOffset(layout);
  writeU16(frame, at, 0);
  const checksum = finish(addBytes(pseudoSum(frame, layout, end), frame, layout.transport, end));
  writeU16(frame, at, checksum === 0 && layout.protocol === PROTOCOL_UDP ? 0xffff : checksum);
}
