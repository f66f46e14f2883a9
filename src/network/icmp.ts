// ICMP messages of the gateway (RFC 792): echo replies, and why a packet cannot be delivered.

import { addBytes, finish } from './checksum.ts';
import { IPV4_HEADER_BYTES } from './packet.ts';
import type { Ipv4Header } from './packet.ts';
import { writeU16 } from './wire.ts';

export const UNREACHABLE_HOST = 1;
export const UNREACHABLE_PROTOCOL = 2;
export const UNREACHABLE_PORT = 3;
/** Communication is administratively prohibited. */
export const UNREACHABLE_PROHIBITED = 13;

const ECHO_REPLY = 0;
const UNREACHABLE = 3;
const ECHO_REQUEST = 8;
const HEADER_BYTES = 8;
/** What a message quotes of the packet's payload: enough to tell whose it is. */
const QUOTED_BYTES = 8;

/** The answer to an echo request in a frame, or undefined if it is none. */
export function answerEcho(header: Ipv4Header, frame: Uint8Array): Uint8Array | undefined {
  const { payloadOffset, end } = header;
  if (end - payloadOffset < HEADER_BYTES || frame[payloadOffset] !== ECHO_REQUEST) return undefined;
  if (finish(addBytes(0, frame, payloadOffset, end)) !== 0) return undefined;
  const message = frame.slice(payloadOffset, end);
  message[0] = ECHO_REPLY;
  return withChecksum(message);
}

/** Says that a packet that begins with these bytes (header and at least 8 bytes more) cannot be delivered. */
export function buildUnreachable(code: number, packet: Uint8Array): Uint8Array {
  const headerBytes = (packet[0]! & 15) * 4;
  const quoted = packet.subarray(0, Math.min(packet.length, headerBytes + QUOTED_BYTES));
  const message = new Uint8Array(HEADER_BYTES + Math.max(quoted.length, IPV4_HEADER_BYTES + QUOTED_BYTES));
  message[0] = UNREACHABLE;
  message[1] = code;
  message.set(quoted, HEADER_BYTES);
  return withChecksum(message);
}

function withChecksum(message: Uint8Array): Uint8Array {
  writeU16(message, 2, 0);
  writeU16(message, 2, finish(addBytes(0, message, 0, message.length)));
  return message;
}
