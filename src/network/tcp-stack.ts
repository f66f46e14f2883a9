// TCP of the gateway: finds the connection of a segment, makes one for a SYN, answers what belongs to none with a
// reset, and builds the frames that connections send. Bounded: connections of a guest, those that still open, and
// those in TIME-WAIT.

import type { Random } from '../base/random.ts';
import { addBytes, finish, fold, pseudoHeaderSum } from './checksum.ts';
import { DeadlineQueue } from './deadline-queue.ts';
import { CHECKSUM_PARTIAL, MAX_FRAME_BYTES, NO_OFFLOAD } from './frame-port.ts';
import type { Offload } from './frame-port.ts';
import {
  ETHERNET_HEADER_BYTES, ETHERTYPE_IPV4, IPV4_HEADER_BYTES, PROTOCOL_TCP, writeEthernetHeader,
} from './packet.ts';
import type { Ipv4Header } from './packet.ts';
import type { PortState } from './port-state.ts';
import type { Scheduler } from './scheduler.ts';
import type { SwitchPort } from './switch.ts';
import { NOBODY } from './tcp-application.ts';
import type { TcpApplication } from './tcp-application.ts';
import { TcpConnection, WINDOW_SHIFT } from './tcp-connection.ts';
import type { TcpAddresses, TcpEnvironment } from './tcp-connection.ts';
import { ACK, distance, FIN, RST, SYN, TCP_HEADER_BYTES, TcpSegment } from './tcp-segment.ts';
import { readMac, writeU16, writeU32 } from './wire.ts';

const MAX_CONNECTIONS_PER_GUEST = 4096;
/** Connections of one guest that wait for the host's end. */
const MAX_OPENING_PER_GUEST = 512;
const MAX_TIME_WAIT = 1024;
const BUCKETS = 4096;

const TCP_OFFSET = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES;
const MSS_OPTION = 0x0204_0004;
const WINDOW_SCALE_OPTION = 0x0103_0300 | WINDOW_SHIFT;

export interface TcpStackOptions {
  readonly scheduler: Scheduler;
  readonly random: Random;
  readonly mac: number;
  readonly mtuBytes: number;
  /** Gives a frame to a guest, now or later. */
  readonly deliver: (port: SwitchPort, frame: Uint8Array, offload: Offload) => void;
  /** Gives a frame to a guest now; false if it cannot be. */
  readonly offer: (port: SwitchPort, frame: Uint8Array, offload: Offload) => boolean;
  /** A guest wants to talk to `connection.addresses`: gives the application, which accepts or aborts in time. */
  readonly opening: (connection: TcpConnection) => TcpApplication;
}

/** What identifies a connection to a guest that still believes in it; plain data, to be kept with a saved guest. */
export interface ConnectionRecord extends TcpAddresses {
  /** The number of the oldest byte that the guest had not acknowledged. */
  readonly una: number;
}

export interface TcpMetrics {
  readonly connections: number;
  readonly timeWait: number;
  readonly retransmissions: number;
  readonly segmentsIn: number;
  readonly segmentsOut: number;
  readonly badChecksums: number;
  readonly malformed: number;
  readonly resetsSent: number;
  /** SYNs that were not answered because a bound was reached. */
  readonly refusedByBounds: number;
}

interface GuestConnections {
  readonly all: Set<TcpConnection>;
  /** Connections whose data the guest's card had no room for. */
  readonly waiting: Set<TcpConnection>;
}

export class TcpStack implements TcpEnvironment {
  readonly deadlines: DeadlineQueue;
  readonly nowMillis: () => number;
  readonly #options: TcpStackOptions;
  readonly #buckets: (TcpConnection | undefined)[] = Array.from({ length: BUCKETS });
  readonly #guests = new Map<PortState, GuestConnections>();
  readonly #timeWait = new Set<TcpConnection>();
  readonly #secret: number;
  readonly #segment = new TcpSegment();
  readonly #frame = new Uint8Array(MAX_FRAME_BYTES);
  readonly #flush = () => this.#flushDirty();
  readonly #counts = {
    retransmissions: 0, segmentsIn: 0, segmentsOut: 0, badChecksums: 0, malformed: 0, resetsSent: 0, refusedByBounds: 0,
  };
  #dirty: TcpConnection[] = [];
  #connections = 0;

  constructor(options: TcpStackOptions) {
    this.#options = options;
    this.#secret = options.random.u32();
    this.deadlines = new DeadlineQueue(options.scheduler);
    this.nowMillis = () => options.scheduler.nowMillis();
  }

  metrics(): TcpMetrics {
    let { retransmissions } = this.#counts;
    for (const { all } of this.#guests.values()) {
      for (const { sender } of all) retransmissions += sender.retransmissions;
    }
    return { ...this.#counts, retransmissions, connections: this.#connections, timeWait: this.#timeWait.size };
  }

  /** A TCP packet from a guest. */
  input(port: PortState, header: Ipv4Header, frame: Uint8Array, checksumPartial: boolean): void {
    const segment = this.#segment;
    this.#counts.segmentsIn++;
    if (!segment.parse(frame, header.payloadOffset, header.end)) {
      this.#counts.malformed++;
      return;
    }
    if (!checksumPartial && !header.transportChecksumHolds(frame)) {
      this.#counts.badChecksums++;
      return;
    }
    let connection = this.#find(port, header.source, segment.sourcePort, header.destination, segment.destinationPort);
    const isNew = (segment.flags & (SYN | ACK | RST)) === SYN;
    if (connection?.state === 'time-wait' && isNew && distance(segment.sequence, connection.rcvNxt) > 0) {
      connection.forget(); // the guest uses its port again
      connection = undefined;
    }
    if (connection !== undefined) connection.input(segment, frame);
    else if (isNew) this.#open(port, header, segment, readMac(frame, 6));
    else if ((segment.flags & RST) === 0) this.#reset(port, header, segment, readMac(frame, 6));
  }

  /** Begins a connection to a guest; undefined if it has too many, or this one already. */
  connect(
    port: PortState, addresses: TcpAddresses, application: TcpApplication,
  ): TcpConnection | undefined {
    const { guestAddress, guestPort, remoteAddress, remotePort } = addresses;
    if (this.#of(port).all.size >= MAX_CONNECTIONS_PER_GUEST) return undefined;
    if (this.#find(port, guestAddress, guestPort, remoteAddress, remotePort) !== undefined) return undefined;
    const sequence = this.#options.random.u32();
    const connection = new TcpConnection(this, port, addresses, sequence, application, 'syn-sent');
    this.#add(connection);
    connection.connect();
    return connection;
  }

  /** Connections of a guest, as it would have to be told about after it is restored. */
  records(port: PortState): ConnectionRecord[] {
    return [...this.#of(port).all]
      .filter(({ state }) => state === 'open' || state === 'syn-received')
      .map(({ addresses, sender }) => ({ ...addresses, una: sender.una }));
  }

  /**
   * Asks the guest about connections that it may still believe in. Its answer, from a connection that is not here, is
   * answered with a reset that fits, whatever the guest sent or received since.
   */
  probe(port: PortState, records: readonly ConnectionRecord[]): void {
    for (const record of records.slice(0, MAX_CONNECTIONS_PER_GUEST)) {
      this.#write(port, record, ACK, (record.una - 1) >>> 0, 0, 1);
    }
  }

  /** Aborts all connections of a guest (both ends are told), or forgets them if the guest is gone. */
  end(port: PortState, how: 'abort' | 'forget'): void {
    for (const connection of [...this.#of(port).all]) {
      const { application } = connection;
      if (how === 'abort') connection.abort();
      else connection.forget();
      application.closed('aborted');
    }
  }

  remove(port: PortState): void {
    this.end(port, 'forget');
    this.#guests.delete(port);
  }

  /** The guest's card has room again. */
  portReady(port: PortState): void {
    const { waiting } = this.#of(port);
    for (const connection of waiting) this.markDirty(connection);
    waiting.clear();
  }

  close(): void {
    for (const port of [...this.#guests.keys()]) this.remove(port);
    this.deadlines.close();
  }

  transmit(connection: TcpConnection, flags: number, sequence: number, offset: number, length: number): boolean {
    const { port, sender } = connection;
    const { link } = port.port;
    const partial = link.features.checksumPartial;
    const syn = (flags & SYN) !== 0;
    const headerBytes = TCP_HEADER_BYTES + (syn ? (connection.scaled ? 8 : 4) : 0);
    if (length > 0) sender.queue.copy(offset, length, this.#frame, TCP_OFFSET + headerBytes);
    const acknowledgment = (flags & ACK) === 0 ? 0 : connection.rcvNxt;
    const end = this.#build(connection.addresses, flags, sequence, acknowledgment,
      connection.advertise(syn), headerBytes, length, partial);
    const frame = this.#frame.subarray(0, end);
    const plain = partial ? CHECKSUM_PARTIAL : NO_OFFLOAD;
    if (length === 0 && (flags & FIN) === 0) {
      this.#options.deliver(port.port, frame, plain);
    } else if (!this.#options.offer(port.port, frame, length > sender.mss ? connection.gsoOffload : plain)) {
      this.#of(port).waiting.add(connection);
      return false;
    }
    this.#counts.segmentsOut++;
    if ((flags & RST) !== 0) this.#counts.resetsSent++;
    return true;
  }

  markDirty(connection: TcpConnection): void {
    if (connection.dirty) return;
    connection.dirty = true;
    if (this.#dirty.length === 0) this.#options.scheduler.soon(this.#flush);
    this.#dirty.push(connection);
  }

  enteredTimeWait(connection: TcpConnection): void {
    this.#timeWait.add(connection);
    if (this.#timeWait.size <= MAX_TIME_WAIT) return;
    for (const oldest of this.#timeWait) {
      oldest.forget();
      break;
    }
  }

  removed(connection: TcpConnection): void {
    const guest = this.#of(connection.port);
    guest.all.delete(connection);
    guest.waiting.delete(connection);
    this.#timeWait.delete(connection);
    this.#counts.retransmissions += connection.sender.retransmissions;
    this.#connections--;
    const bucket = this.#bucketOf(connection.addresses);
    let at = this.#buckets[bucket];
    if (at === connection) {
      this.#buckets[bucket] = connection.next;
      return;
    }
    while (at !== undefined && at.next !== connection) at = at.next;
    if (at !== undefined) at.next = connection.next;
  }

  #flushDirty(): void {
    const dirty = this.#dirty;
    this.#dirty = [];
    for (const connection of dirty) {
      connection.dirty = false;
      if (connection.state !== 'closed') connection.output();
    }
  }

  #of(port: PortState): GuestConnections {
    let guest = this.#guests.get(port);
    if (guest === undefined) {
      guest = { all: new Set(), waiting: new Set() };
      this.#guests.set(port, guest);
    }
    return guest;
  }

  #find(
    port: PortState, guestAddress: number, guestPort: number, remoteAddress: number, remotePort: number,
  ): TcpConnection | undefined {
    let connection = this.#buckets[hash(this.#secret, guestPort, remoteAddress, remotePort)];
    for (; connection !== undefined; connection = connection.next) {
      const { addresses } = connection;
      if (addresses.guestPort === guestPort && addresses.remotePort === remotePort
        && addresses.remoteAddress === remoteAddress && addresses.guestAddress === guestAddress
        && connection.port === port) return connection;
    }
    return undefined;
  }

  #bucketOf({ guestPort, remoteAddress, remotePort }: TcpAddresses): number {
    return hash(this.#secret, guestPort, remoteAddress, remotePort);
  }

  #add(connection: TcpConnection): void {
    const bucket = this.#bucketOf(connection.addresses);
    connection.next = this.#buckets[bucket];
    this.#buckets[bucket] = connection;
    this.#of(connection.port).all.add(connection);
    this.#connections++;
  }

  #open(port: PortState, header: Ipv4Header, segment: TcpSegment, guestMac: number): void {
    const { all } = this.#of(port);
    let opening = 0;
    if (all.size >= MAX_OPENING_PER_GUEST) for (const { state } of all) if (state === 'opening') opening++;
    if (all.size >= MAX_CONNECTIONS_PER_GUEST || opening >= MAX_OPENING_PER_GUEST) {
      this.#counts.refusedByBounds++;
      this.#reset(port, header, segment, guestMac);
      return;
    }
    const addresses = addressesOf(header, segment, guestMac);
    const connection = new TcpConnection(this, port, addresses, this.#options.random.u32(), NOBODY, 'opening');
    connection.synReceived(segment);
    this.#add(connection);
    connection.application = this.#options.opening(connection);
  }

  /** Answers a segment that belongs to no connection. */
  #reset(port: PortState, header: Ipv4Header, segment: TcpSegment, guestMac: number): void {
    const addresses = addressesOf(header, segment, guestMac);
    this.#counts.resetsSent++;
    if ((segment.flags & ACK) !== 0) {
      this.#write(port, addresses, RST, segment.acknowledgment, 0, 0);
    } else {
      const acknowledgment = (segment.sequence + segment.sequenceBytes) >>> 0;
      this.#write(port, addresses, RST | ACK, 0, acknowledgment, 0);
    }
  }

  /** Sends a segment without data that belongs to no connection here. */
  #write(
    port: PortState, addresses: TcpAddresses, flags: number, sequence: number, acknowledgment: number, window: number,
  ): void {
    this.#counts.segmentsOut++;
    const end = this.#build(addresses, flags, sequence, acknowledgment, window, TCP_HEADER_BYTES, 0, false);
    this.#options.deliver(port.port, this.#frame.subarray(0, end), NO_OFFLOAD);
  }

  /** Puts headers before the payload, which is in place already, and returns where the frame ends. */
  #build(
    addresses: TcpAddresses, flags: number, sequence: number, acknowledgment: number, window: number,
    headerBytes: number, length: number, partial: boolean,
  ): number {
    const frame = this.#frame;
    const { guestMac, guestAddress, remoteAddress } = addresses;
    const tcpBytes = headerBytes + length;
    writeEthernetHeader(frame, guestMac, this.#options.mac, ETHERTYPE_IPV4);
    writeTcpPacketHeader(frame, remoteAddress, guestAddress, IPV4_HEADER_BYTES + tcpBytes);
    const at = TCP_OFFSET;
    writeU16(frame, at, addresses.remotePort);
    writeU16(frame, at + 2, addresses.guestPort);
    writeU32(frame, at + 4, sequence);
    writeU32(frame, at + 8, acknowledgment);
    frame[at + 12] = (headerBytes >> 2) << 4;
    frame[at + 13] = flags;
    writeU16(frame, at + 14, window);
    writeU32(frame, at + 16, 0);
    if (headerBytes > TCP_HEADER_BYTES) {
      writeU32(frame, at + 20, MSS_OPTION);
      writeU16(frame, at + 22, this.#options.mtuBytes - IPV4_HEADER_BYTES - TCP_HEADER_BYTES);
      if (headerBytes > TCP_HEADER_BYTES + 4) writeU32(frame, at + 24, WINDOW_SCALE_OPTION);
    }
    const pseudo = pseudoHeaderSum(remoteAddress, guestAddress, PROTOCOL_TCP, tcpBytes);
    writeU16(frame, at + 16, partial ? fold(pseudo) : finish(addBytes(pseudo, frame, at, at + tcpBytes)));
    return at + tcpBytes;
  }
}

/** As writeIpv4Header, with the checksum from the fields at hand. */
function writeTcpPacketHeader(frame: Uint8Array, source: number, destination: number, totalBytes: number): void {
  const at = ETHERNET_HEADER_BYTES;
  writeU32(frame, at, 0x4500_0000 + totalBytes);
  writeU32(frame, at + 4, 0x4000);
  writeU16(frame, at + 8, 0x4006);
  const sum = 0x4500 + totalBytes + 0x4000 + 0x4006
    + (source >>> 16) + (source & 0xffff) + (destination >>> 16) + (destination & 0xffff);
  writeU16(frame, at + 10, finish(sum));
  writeU32(frame, at + 12, source);
  writeU32(frame, at + 16, destination);
}

function addressesOf(header: Ipv4Header, segment: TcpSegment, guestMac: number): TcpAddresses {
  return {
    guestMac, guestAddress: header.source, guestPort: segment.sourcePort,
    remoteAddress: header.destination, remotePort: segment.destinationPort,
  };
}

/** Each word is mixed with the secret before the next one comes in, so that a guest cannot choose a bucket. */
function hash(secret: number, guestPort: number, remoteAddress: number, remotePort: number): number {
  let mixed = mix(secret ^ remoteAddress);
  mixed = mix(mixed ^ secret ^ ((guestPort << 16) | remotePort));
  return mixed & (BUCKETS - 1);
}

function mix(word: number): number {
  let mixed = Math.imul(word ^ (word >>> 16), 0x85eb_ca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
  return mixed ^ (mixed >>> 16);
}
