// A TCP segment's header (RFC 9293), read from a frame, and arithmetic on sequence numbers.

import { readU16, readU32 } from './wire.ts';

export const TCP_HEADER_BYTES = 20;
export const FIN = 1;
export const SYN = 2;
export const RST = 4;
export const PSH = 8;
export const ACK = 16;

const OPTION_END = 0;
const OPTION_NOP = 1;
const OPTION_MSS = 2;
const OPTION_WINDOW_SCALE = 3;
const MAX_WINDOW_SCALE = 14;
/** RFC 9293: what an end that names no segment size takes. */
const DEFAULT_MSS_BYTES = 536;

/** Signed distance from sequence number b to a: positive if a is later. */
export function distance(a: number, b: number): number {
  return (a - b) | 0;
}

/** One object is used for many segments. */
export class TcpSegment {
  sourcePort = 0;
  destinationPort = 0;
  sequence = 0;
  acknowledgment = 0;
  flags = 0;
  /** As in the header, not scaled. */
  window = 0;
  /** In the frame. */
  payloadOffset = 0;
  payloadEnd = 0;
  /** Options of a SYN. windowScale is -1 where there is none. */
  mss = 0;
  windowScale = -1;

  /** Reads the segment in `start` to `end` of the frame; false if it is malformed. */
  parse(frame: Uint8Array, start: number, end: number): boolean {
    if (start + TCP_HEADER_BYTES > end) return false;
    const payloadOffset = start + (frame[start + 12]! >> 4) * 4;
    if (payloadOffset < start + TCP_HEADER_BYTES || payloadOffset > end) return false;
    this.sourcePort = readU16(frame, start);
    this.destinationPort = readU16(frame, start + 2);
    this.sequence = readU32(frame, start + 4);
    this.acknowledgment = readU32(frame, start + 8);
    this.flags = frame[start + 13]! & 0x3f;
    this.window = readU16(frame, start + 14);
    this.payloadOffset = payloadOffset;
    this.payloadEnd = end;
    if ((this.flags & SYN) !== 0) this.#parseOptions(frame, start + TCP_HEADER_BYTES, payloadOffset);
    return true;
  }

  get payloadBytes(): number {
    return this.payloadEnd - this.payloadOffset;
  }

  /** What the segment takes of the sequence space. */
  get sequenceBytes(): number {
    return this.payloadBytes + ((this.flags & SYN) === 0 ? 0 : 1) + ((this.flags & FIN) === 0 ? 0 : 1);
  }

  /** Malformed options end the list. */
  #parseOptions(frame: Uint8Array, start: number, end: number): void {
    this.mss = DEFAULT_MSS_BYTES;
    this.windowScale = -1;
    for (let at = start; at < end;) {
      const kind = frame[at]!;
      if (kind === OPTION_END) return;
      if (kind === OPTION_NOP) {
        at++;
        continue;
      }
      const length = at + 1 < end ? frame[at + 1]! : 0;
      if (length < 2 || at + length > end) return;
      if (kind === OPTION_MSS && length === 4) this.mss = readU16(frame, at + 2);
      if (kind === OPTION_WINDOW_SCALE && length === 3) this.windowScale = Math.min(MAX_WINDOW_SCALE, frame[at + 2]!);
      at += length;
    }
  }
}
