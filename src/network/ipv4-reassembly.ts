// Fragments of IPv4 packets put together again (RFC 791, 5722). Of one guest a few packets at a time, each for a short
// time; fragments that overlap spoil their packet, since only attackers send such.

import { addBytes, finish } from './checksum.ts';
import { ETHERNET_HEADER_BYTES, IPV4_HEADER_BYTES, IPV4_MAX_BYTES } from './packet.ts';
import type { Ipv4Header } from './packet.ts';
import { writeU16 } from './wire.ts';

const MAX_PACKETS = 16;
const MAX_FRAGMENTS = 64;
const KEPT_MILLIS = 15_000;

interface Fragment {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

interface Packet {
  readonly untilMillis: number;
  readonly fragments: Fragment[];
  receivedBytes: number;
  /** Payload bytes of the whole, once the last fragment is here. */
  totalBytes: number | undefined;
  /** The first fragment's Ethernet and IPv4 header. */
  headers: Uint8Array | undefined;
}

/** Of one guest. */
export class Ipv4Reassembly {
  readonly #packets = new Map<string, Packet>();

  /** Packets that are not complete. */
  get size(): number {
    return this.#packets.size;
  }

  /** Takes a fragment; gives the frame of the whole packet when it completes it. */
  add(header: Ipv4Header, frame: Uint8Array, nowMillis: number): Uint8Array | undefined {
    this.#dropOld(nowMillis);
    const key = `${header.source} ${header.destination} ${header.protocol} ${header.id}`;
    const packet = this.#packets.get(key) ?? this.#begin(key, nowMillis);
    const bytes = frame.slice(header.payloadOffset, header.end);
    if (!insert(packet, header, bytes)) {
      this.#packets.delete(key);
      return undefined;
    }
    if (header.fragmentOffset === 0) {
      packet.headers = frame.slice(0, ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES); // options are not needed any more
    }
    if (packet.receivedBytes !== packet.totalBytes || packet.headers === undefined) return undefined;
    this.#packets.delete(key);
    return join(packet.headers, packet.fragments, packet.totalBytes);
  }

  #begin(key: string, nowMillis: number): Packet {
    if (this.#packets.size >= MAX_PACKETS) {
      for (const oldest of this.#packets.keys()) {
        this.#packets.delete(oldest);
        break;
      }
    }
    const packet: Packet = {
      untilMillis: nowMillis + KEPT_MILLIS, fragments: [], receivedBytes: 0, totalBytes: undefined, headers: undefined,
    };
    this.#packets.set(key, packet);
    return packet;
  }

  #dropOld(nowMillis: number): void {
    for (const [key, packet] of this.#packets) {
      if (packet.untilMillis > nowMillis) return; // in order of their beginning
      this.#packets.delete(key);
    }
  }
}

/** False if the fragment does not fit with the others. */
function insert(packet: Packet, header: Ipv4Header, bytes: Uint8Array): boolean {
  const start = header.fragmentOffset;
  const end = start + bytes.length;
  if (bytes.length === 0 || end > IPV4_MAX_BYTES - IPV4_HEADER_BYTES) return false;
  if (packet.fragments.length >= MAX_FRAGMENTS) return false;
  if (header.moreFragments && bytes.length % 8 !== 0) return false;
  if (!header.moreFragments) {
    if (packet.totalBytes !== undefined) return false;
    if (packet.fragments.some((other) => other.offset + other.bytes.length > end)) return false;
    packet.totalBytes = end;
  } else if (packet.totalBytes !== undefined && end > packet.totalBytes) {
    return false;
  }
  if (packet.fragments.some((other) => start < other.offset + other.bytes.length && other.offset < end)) return false;
  packet.fragments.push({ offset: start, bytes });
  packet.receivedBytes += bytes.length;
  return true;
}

function join(headers: Uint8Array, fragments: readonly Fragment[], totalBytes: number): Uint8Array {
  const frame = new Uint8Array(headers.length + totalBytes);
  frame.set(headers);
  for (const { offset, bytes } of fragments) frame.set(bytes, headers.length + offset);
  const at = ETHERNET_HEADER_BYTES;
  frame[at] = 0x45;
  writeU16(frame, at + 2, IPV4_HEADER_BYTES + totalBytes);
  writeU16(frame, at + 6, 0);
  writeU16(frame, at + 10, 0);
  writeU16(frame, at + 10, finish(addBytes(0, frame, at, at + IPV4_HEADER_BYTES)));
  return frame;
}
