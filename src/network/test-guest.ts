// A guest for tests: a card on a network, with packets built and taken apart apart from the product, and a wire between
// that may lose, double and delay frames.

import assert from 'node:assert/strict';
import type { SeededRandom } from '../base/random.ts';
import { NO_OFFLOAD } from './frame-port.ts';
import type { FramePort, GuestLink, LinkFeatures, Offload } from './frame-port.ts';
import type { Scheduler } from './scheduler.ts';
import { TestTcpPeer } from './test-tcp-peer.ts';
import type { PeerOptions, PeerSegment } from './test-tcp-peer.ts';

export interface Wire {
  readonly random: SeededRandom;
  readonly loss: number;
  readonly doubling: number;
  /** Frames are delayed by 0 to this, and so overtake each other. */
  readonly delayMillis: number;
}

export interface SeenUdp {
  source: string;
  sourcePort: number;
  destination: string;
  destinationPort: number;
  payload: Buffer;
}

export interface SeenIcmp {
  source: string;
  type: number;
  code: number;
  body: Buffer;
}

export interface GuestOptions {
  readonly scheduler: Scheduler;
  readonly mac?: string;
  readonly address?: string;
  readonly gatewayMac?: string;
  readonly features?: LinkFeatures;
  readonly wire?: Wire;
}

export class TestGuest implements GuestLink {
  features: LinkFeatures;
  readonly mac: string;
  readonly address: string;
  readonly frames: { frame: Buffer; offload: Offload }[] = [];
  readonly udp: SeenUdp[] = [];
  readonly icmp: SeenIcmp[] = [];
  readonly arp: { operation: number; senderMac: string; sender: string }[] = [];
  /** Frames that it takes before it refuses more. */
  buffers = Infinity;
  refusals = 0;
  writableCalls = 0;
  /** Called for a TCP segment of no known connection. */
  onSyn: ((segment: PeerSegment, remote: string, remotePort: number, localPort: number) => void) | undefined;
  onReset: ((segment: PeerSegment) => void) | undefined;
  port: FramePort | undefined;
  readonly #options: GuestOptions;
  readonly #peers = new Map<string, TestTcpPeer>();
  readonly #fragments = new Map<number, { offset: number; bytes: Buffer; more: boolean }[]>();

  constructor(options: GuestOptions) {
    this.#options = options;
    this.mac = options.mac ?? '00:16:3e:00:00:01';
    this.address = options.address ?? '10.0.2.15';
    this.features = options.features ?? { checksumPartial: false, tsoV4: false, tsoV6: false };
  }

  receive(frame: Uint8Array, offload: Offload): boolean {
    if (this.buffers <= 0) {
      this.refusals++;
      return false;
    }
    this.buffers--;
    const copy = Buffer.from(frame);
    const kept = { ...offload };
    this.#overWire(() => this.#take(copy, kept));
    return true;
  }

  writable(): void {
    this.writableCalls++;
  }

  /** Posts buffers. */
  post(count: number): void {
    this.buffers = count;
    this.port!.ready();
  }

  send(frame: Uint8Array, offload: Offload = NO_OFFLOAD): void {
    this.#overWire(() => this.port!.send(frame, offload));
  }

  sendIpv4(protocol: number, destination: string, payload: Uint8Array, options: {
    source?: string; id?: number; fragment?: number; offload?: Offload; toMac?: string;
  } = {}): void {
    const frame = Buffer.alloc(34 + payload.length);
    frame.set(mac(options.toMac ?? this.#options.gatewayMac ?? '52:5a:0a:00:02:02'), 0);
    frame.set(mac(this.mac), 6);
    frame.writeUInt16BE(0x0800, 12);
    frame[14] = 0x45;
    frame.writeUInt16BE(20 + payload.length, 16);
    frame.writeUInt16BE(options.id ?? 0, 18);
    frame.writeUInt16BE(options.fragment ?? 0, 20);
    frame[22] = 64;
    frame[23] = protocol;
    frame.set(ip(options.source ?? this.address), 26);
    frame.set(ip(destination), 30);
    frame.writeUInt16BE(slowChecksum(frame.subarray(14, 34)), 24);
    frame.set(payload, 34);
    this.send(frame, options.offload);
  }

  sendUdp(sourcePort: number, destination: string, destinationPort: number, payload: Uint8Array, options: {
    source?: string; toMac?: string;
  } = {}): void {
    this.sendIpv4(17, destination, udpDatagram(options.source ?? this.address, sourcePort, destination, destinationPort,
      payload), options);
  }

  sendArp(target: string, sender = this.address): void {
    const frame = Buffer.alloc(60);
    frame.fill(0xff, 0, 6);
    frame.set(mac(this.mac), 6);
    frame.set([8, 6, 0, 1, 8, 0, 6, 4, 0, 1], 12);
    frame.set(mac(this.mac), 22);
    frame.set(ip(sender), 28);
    frame.set(ip(target), 38);
    this.send(frame);
  }

  ping(destination: string, payload: Uint8Array): void {
    const message = Buffer.concat([Buffer.of(8, 0, 0, 0, 1, 2, 3, 4), payload]);
    message.writeUInt16BE(slowChecksum(message), 2);
    this.sendIpv4(1, destination, message);
  }

  /** A TCP end of the guest; segments for its addresses go to it. */
  tcp(localPort: number, remote: string, remotePort: number, options: Partial<PeerOptions> = {}): TestTcpPeer {
    const peer = new TestTcpPeer({
      scheduler: this.#options.scheduler, ...options,
      send: (segment) => this.sendSegment(localPort, remote, remotePort, segment),
    });
    this.#peers.set(`${localPort} ${remote} ${remotePort}`, peer);
    return peer;
  }

  sendSegment(localPort: number, remote: string, remotePort: number, segment: PeerSegment): void {
    const bytes = tcpSegment(localPort, remotePort, segment);
    const partial = segment.payload.length > 1460;
    if (!partial) bytes.writeUInt16BE(transportChecksum(6, this.address, remote, bytes), 16);
    const offload: Offload = partial ? { checksumPartial: true, gsoSize: 1460, gsoType: 'tcpv4' } : NO_OFFLOAD;
    this.sendIpv4(6, remote, bytes, { offload });
  }

  #overWire(deliver: () => void): void {
    const { wire, scheduler } = this.#options;
    if (wire === undefined) {
      scheduler.soon(deliver);
      return;
    }
    if (wire.random.below(1000) < wire.loss * 1000) return;
    const copies = wire.random.below(1000) < wire.doubling * 1000 ? 2 : 1;
    for (let i = 0; i < copies; i++) scheduler.after(wire.random.below(wire.delayMillis + 1), deliver);
  }

  #take(frame: Buffer, offload: Offload): void {
    this.frames.push({ frame, offload });
    const to = frame.subarray(0, 6);
    assert.ok(to.equals(mac(this.mac)) || to.equals(mac('ff:ff:ff:ff:ff:ff')));
    const type = frame.readUInt16BE(12);
    if (type === 0x0806) {
      this.arp.push({ operation: frame.readUInt16BE(20), senderMac: text(frame, 22), sender: ipText(frame, 28) });
    } else if (type === 0x0800) {
      this.#takeIpv4(frame, offload);
    }
  }

  #takeIpv4(frame: Buffer, offload: Offload): void {
    assert.equal(slowChecksum(frame.subarray(14, 34)), 0, 'IPv4 header checksum');
    assert.equal(frame[14], 0x45);
    assert.equal(14 + frame.readUInt16BE(16), frame.length);
    const fragment = frame.readUInt16BE(20);
    let payload: Buffer = frame.subarray(34);
    if ((fragment & 0x3fff) !== 0) {
      const whole = this.#join(frame.readUInt16BE(18), (fragment & 0x1fff) * 8, (fragment & 0x2000) !== 0, payload);
      if (whole === undefined) return;
      payload = whole;
    }
    const source = ipText(frame, 26);
    const destination = ipText(frame, 30);
    const protocol = frame[23]!;
    if (protocol === 1) {
      assert.equal(slowChecksum(payload), 0, 'ICMP checksum');
      this.icmp.push({ source, type: payload[0]!, code: payload[1]!, body: payload.subarray(4) });
      return;
    }
    if (!offload.checksumPartial) {
      assert.equal(transportChecksum(protocol, source, destination, payload), 0, 'checksum');
    } else {
      const field = payload.readUInt16BE(protocol === 6 ? 16 : 6);
      const pseudo = pseudoHeader(protocol, source, destination, payload.length);
      assert.equal(field, ~slowChecksum(pseudo) & 0xffff, 'partial checksum');
    }
    if (protocol === 17) {
      this.udp.push({
        source, destination, sourcePort: payload.readUInt16BE(0), destinationPort: payload.readUInt16BE(2),
        payload: payload.subarray(8),
      });
    } else if (protocol === 6) {
      this.#takeTcp(payload, source, offload);
    }
  }

  #takeTcp(bytes: Buffer, source: string, offload: Offload): void {
    const segment = parseSegment(bytes);
    if (segment.payload.length > 1460) assert.ok(offload.gsoType === 'tcpv4' && offload.gsoSize > 0);
    const [remotePort, localPort] = [bytes.readUInt16BE(0), bytes.readUInt16BE(2)];
    const peer = this.#peers.get(`${localPort} ${source} ${remotePort}`);
    if (peer !== undefined) peer.input(segment);
    else if ((segment.flags & 2) !== 0) this.onSyn?.(segment, source, remotePort, localPort);
    else if ((segment.flags & 4) !== 0) this.onReset?.(segment);
  }

  #join(id: number, offset: number, more: boolean, bytes: Buffer): Buffer | undefined {
    const parts = this.#fragments.get(id) ?? [];
    parts.push({ offset, bytes, more });
    this.#fragments.set(id, parts);
    const sorted = parts.toSorted((a, b) => a.offset - b.offset);
    let end = 0;
    for (const part of sorted) {
      if (part.offset !== end) return undefined;
      end += part.bytes.length;
    }
    if (sorted.at(-1)!.more) return undefined;
    this.#fragments.delete(id);
    return Buffer.concat(sorted.map((part) => part.bytes));
  }
}

export function udpDatagram(
  source: string, sourcePort: number, destination: string, destinationPort: number, payload: Uint8Array,
): Buffer {
  const bytes = Buffer.alloc(8 + payload.length);
  bytes.writeUInt16BE(sourcePort, 0);
  bytes.writeUInt16BE(destinationPort, 2);
  bytes.writeUInt16BE(bytes.length, 4);
  bytes.set(payload, 8);
  bytes.writeUInt16BE(transportChecksum(17, source, destination, bytes) || 0xffff, 6);
  return bytes;
}

export function tcpSegment(sourcePort: number, destinationPort: number, segment: PeerSegment): Buffer {
  const options = (segment.flags & 2) === 0 ? [] : [
    ...(segment.mss === undefined ? [] : [2, 4, segment.mss >> 8, segment.mss & 255]),
    ...(segment.windowScale === undefined ? [] : [1, 3, 3, segment.windowScale]),
  ];
  const bytes = Buffer.alloc(20 + options.length + segment.payload.length);
  bytes.writeUInt16BE(sourcePort, 0);
  bytes.writeUInt16BE(destinationPort, 2);
  bytes.writeUInt32BE(segment.sequence, 4);
  bytes.writeUInt32BE(segment.acknowledgment, 8);
  bytes[12] = ((20 + options.length) / 4) << 4;
  bytes[13] = segment.flags;
  bytes.writeUInt16BE(segment.window, 14);
  bytes.set(options, 20);
  bytes.set(segment.payload, 20 + options.length);
  return bytes;
}

export function parseSegment(bytes: Buffer): PeerSegment {
  const header = (bytes[12]! >> 4) * 4;
  const segment: PeerSegment = {
    sequence: bytes.readUInt32BE(4), acknowledgment: bytes.readUInt32BE(8), flags: bytes[13]!,
    window: bytes.readUInt16BE(14), payload: bytes.subarray(header),
  };
  for (let at = 20; at < header && bytes[at] !== 0;) {
    if (bytes[at] === 2) segment.mss = bytes.readUInt16BE(at + 2);
    if (bytes[at] === 3) segment.windowScale = bytes[at + 2]!;
    at += bytes[at] === 1 ? 1 : bytes[at + 1]!;
  }
  return segment;
}

export function transportChecksum(protocol: number, source: string, destination: string, bytes: Uint8Array): number {
  return slowChecksum(Buffer.concat([pseudoHeader(protocol, source, destination, bytes.length), bytes]));
}

function pseudoHeader(protocol: number, source: string, destination: string, length: number): Buffer {
  return Buffer.concat([ip(source), ip(destination), Buffer.of(0, protocol, length >> 8, length & 255)]);
}

export function slowChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += bytes[i]! * 256 + (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return 0xffff - sum;
}

export function mac(address: string): Buffer {
  return Buffer.from(address.replaceAll(':', ''), 'hex');
}

export function ip(address: string): Buffer {
  return Buffer.from(address.split('.').map(Number));
}

function text(bytes: Buffer, at: number): string {
  return bytes.subarray(at, at + 6).toString('hex').replaceAll(/(..)(?!$)/g, '$1:');
}

function ipText(bytes: Buffer, at: number): string {
  return [...bytes.subarray(at, at + 4)].join('.');
}
