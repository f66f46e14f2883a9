// The network card (OASIS Virtual I/O Device 1.2, 5.1): one pair of queues, frames on their way between the driver and
// a place on a network (network/frame-port.ts). Checksums and segmentation of what the driver sends may be left to the
// network; and a driver that takes them gets frames of up to 64 KiB with blank checksums, spread over several buffers if it
// takes that, too.
//
//   every frame, both ways:  virtio_net_hdr, 12 bytes │ Ethernet frame

import { VIRTIO_ID, VIRTIO_STATUS } from '../../abi/emulated-devices.ts';
import { CHECKSUM_PARTIAL, MAX_FRAME_BYTES, NO_FEATURES, NO_OFFLOAD } from '../../network/frame-port.ts';
import type { FramePort, GuestLink, LinkFeatures, Offload } from '../../network/frame-port.ts';
import { beginChecksum } from '../../network/segmentation.ts';
import type { Chain, Completion } from './queue.ts';
import type { VirtioModel, VirtioSlot } from './slot.ts';

const F = {
  CSUM: 0, GUEST_CSUM: 1, MTU: 3, MAC: 5, GUEST_TSO4: 7, GUEST_TSO6: 8, HOST_TSO4: 11, HOST_TSO6: 12, MRG_RXBUF: 15, STATUS: 16,
} as const;
const CONFIG = { mac: 0, status: 6, mtu: 10, sizeBytes: 12 } as const;
const LINK_UP = 1;
const HEADER = {
  flags: 0, gsoType: 1, headerBytes: 2, gsoSize: 4, checksumStart: 6, checksumOffset: 8, numBuffers: 10, sizeBytes: 12,
} as const;
const FLAGS = { needsChecksum: 1, dataValid: 2 } as const;
const GSO = { none: 0, tcpv4: 1, tcpv6: 4, ecn: 0x80 } as const;
const RECEIVE_QUEUE = 0;
const TRANSMIT_QUEUE = 1;
const ETHERNET_HEADER_BYTES = 14;
const FRAMES_PER_TURN = 256;

export interface VirtioNetOptions {
  /** Six bytes, when the driver is told them. */
  readonly mac: Uint8Array;
  readonly mtuBytes: number;
  readonly port: () => FramePort;
}

type Sending = {
  readonly chain: Chain;
  /** Undefined: it is not known yet; empty: it was sent, or was none, and the buffer is to be given back. */
  readonly frame: Uint8Array | undefined;
  readonly offload: Offload;
};

const SENT = new Uint8Array(0);

export class VirtioNet implements VirtioModel {
  readonly deviceId = VIRTIO_ID.net;
  readonly queueCount = 2;
  readonly features = Object.values(F);
  readonly counts = { txErrors: 0, rxErrors: 0, txStalls: 0, rxStalls: 0 };
  /** What the network knows the card by. */
  readonly link: GuestLink;
  readonly #options: VirtioNetOptions;
  #slot: VirtioSlot | undefined;
  /** One that the network has no room for, or that a page could not be had for. */
  #sending: Sending | undefined;
  /** Buffers for what is received next. */
  #buffers: Chain[] = [];
  /** Buffers that a page could not be had for, with what goes into them. */
  #receiving: readonly Completion[] | undefined;
  /** The network keeps frames until there are buffers. */
  #isWaitedFor = false;

  constructor(options: VirtioNetOptions) {
    this.#options = options;
    const features = (): LinkFeatures => this.#linkFeatures;
    this.link = {
      get features() { return features(); },
      receive: (frame, offload) => this.#receive(frame, offload),
      writable: () => this.#slot?.again(),
    };
  }

  get #linkFeatures(): LinkFeatures {
    const slot = this.#slot;
    // Without whole checksums there is no segmentation, by the rules.
    if (slot === undefined || !this.isConnected || !slot.hasFeature(F.GUEST_CSUM)) return NO_FEATURES;
    return { checksumPartial: true, tsoV4: slot.hasFeature(F.GUEST_TSO4), tsoV6: slot.hasFeature(F.GUEST_TSO6) };
  }

  get isConnected(): boolean {
    return this.#slot !== undefined && (this.#slot.status & VIRTIO_STATUS.driverOk) !== 0;
  }

  config(): Uint8Array {
    const { mac, mtuBytes } = this.#options;
    const config = new DataView(new ArrayBuffer(CONFIG.sizeBytes));
    mac.forEach((byte, i) => config.setUint8(CONFIG.mac + i, byte));
    config.setUint16(CONFIG.status, LINK_UP, true);
    config.setUint16(CONFIG.mtu, mtuBytes, true);
    return new Uint8Array(config.buffer);
  }

  restarted(slot: VirtioSlot): void {
    this.#slot = slot;
    this.#sending = undefined;
    this.#receiving = undefined;
    this.#buffers = [];
  }

  serve(slot: VirtioSlot): void {
    if (this.#receiving !== undefined) this.#finishReceiving(slot);
    this.#transmit(slot);
    if (!this.#isWaitedFor || this.#receiving !== undefined || !slot.queues[RECEIVE_QUEUE]!.hasNext) return;
    this.#isWaitedFor = false;
    this.#options.port().ready();
  }

  // ---- guest to network

  #transmit(slot: VirtioSlot): void {
    const queue = slot.queues[TRANSMIT_QUEUE]!;
    for (let count = 0; count < FRAMES_PER_TURN; count++) {
      const chain = this.#sending?.chain ?? queue.take();
      if (chain === undefined) return;
      this.#sending = this.#sending?.frame === undefined ? this.#readFrame(slot, chain) : this.#sending;
      const { frame, offload } = this.#sending;
      if (frame === undefined) {
        if (slot.isBroken) this.#sending = undefined;
        return;
      }
      if (frame.length > 0 && !this.#options.port().send(frame, offload)) {
        this.counts.txStalls++;
        return;
      }
      this.#sending = { chain, frame: SENT, offload };
      if (!queue.complete(chain)) return;
      this.#sending = undefined;
    }
    slot.again();
  }

  #readFrame(slot: VirtioSlot, chain: Chain): Sending {
    const frameBytes = chain.readableBytes - HEADER.sizeBytes;
    if (frameBytes < ETHERNET_HEADER_BYTES || frameBytes > MAX_FRAME_BYTES) {
      this.counts.txErrors++;
      return { chain, frame: SENT, offload: NO_OFFLOAD };
    }
    const bytes = slot.queues[TRANSMIT_QUEUE]!.read(chain, 0, chain.readableBytes);
    if (bytes === undefined) return { chain, frame: undefined, offload: NO_OFFLOAD };
    const frame = bytes.subarray(HEADER.sizeBytes);
    const gsoType = bytes[HEADER.gsoType]! & ~GSO.ecn;
    const gsoSize = bytes[HEADER.gsoSize]! | (bytes[HEADER.gsoSize + 1]! << 8);
    const checksumPartial = (bytes[HEADER.flags]! & FLAGS.needsChecksum) !== 0;
    if (gsoType === GSO.none) return { chain, frame, offload: checksumPartial ? CHECKSUM_PARTIAL : NO_OFFLOAD };
    const isGood = (gsoType === GSO.tcpv4 || gsoType === GSO.tcpv6) && gsoSize > 0 && checksumPartial;
    if (!isGood) this.counts.txErrors++;
    if (!isGood) return { chain, frame: SENT, offload: NO_OFFLOAD };
    return { chain, frame, offload: { checksumPartial, gsoSize, gsoType: gsoType === GSO.tcpv4 ? 'tcpv4' : 'tcpv6' } };
  }

  // ---- network to guest

  #receive(frame: Uint8Array, offload: Offload): boolean {
    const slot = this.#slot;
    // Afterwards it looks whether there are buffers.
    if (slot?.isHeld === true) slot.service(true);
    if (slot === undefined || slot.isHeld || this.#receiving !== undefined) return this.#letWait();
    const buffersMax = slot.hasFeature(F.MRG_RXBUF) ? Infinity : 1;
    const queue = slot.queues[RECEIVE_QUEUE]!;
    let roomBytes = this.#buffers.reduce((sum, { writableBytes }) => sum + writableBytes, -HEADER.sizeBytes);
    while (roomBytes < frame.length && this.#buffers.length < buffersMax) {
      const chain = queue.take();
      if (chain === undefined && this.#buffers.length > 0 && queue.isExhausted) break;
      if (chain === undefined) return this.#letWait();
      this.#buffers.push(chain);
      roomBytes += chain.writableBytes;
    }
    const bytes = roomBytes < frame.length ? undefined : withHeader(frame, offload, slot.hasFeature(F.GUEST_CSUM));
    if (bytes === undefined) this.counts.rxErrors++;
    // What does not fit, or is not what it is said to be, is lost; the driver gets a buffer back with an empty frame.
    this.#receiving = this.#spread(bytes ?? EMPTY_FRAME.subarray(0, this.#buffers[0]!.writableBytes));
    this.#finishReceiving(slot);
    return true;
  }

  #letWait(): false {
    this.counts.rxStalls++;
    this.#isWaitedFor = true;
    return false;
  }

  /** Into as many of the buffers as it takes, and at least one. */
  #spread(bytes: Uint8Array): Completion[] {
    const filled: Completion[] = [];
    for (let at = 0; filled.length === 0 || at < bytes.length;) {
      const chain = this.#buffers.shift()!;
      const piece = bytes.subarray(at, at + chain.writableBytes);
      filled.push({ chain, pieces: [piece] });
      at += piece.length;
    }
    if (bytes.length >= HEADER.sizeBytes) viewOf(bytes).setUint16(HEADER.numBuffers, filled.length, true);
    return filled;
  }

  #finishReceiving(slot: VirtioSlot): void {
    if (slot.queues[RECEIVE_QUEUE]!.completeTogether(this.#receiving!)) this.#receiving = undefined;
  }
}

const EMPTY_FRAME = new Uint8Array(HEADER.sizeBytes);

const viewOf = ({ buffer, byteOffset, byteLength }: Uint8Array): DataView => new DataView(buffer, byteOffset, byteLength);

/**
 * @param isChecked whether the driver believes checksums to be right if it is told so
 * @returns a copy behind what is to be known of it; undefined when it is no such packet as its offloads say
 */
function withHeader(frame: Uint8Array, { checksumPartial, gsoSize, gsoType }: Offload, isChecked: boolean): Uint8Array | undefined {
  const bytes = new Uint8Array(HEADER.sizeBytes + frame.length);
  bytes.set(frame, HEADER.sizeBytes);
  if (!checksumPartial) {
    bytes[HEADER.flags] = isChecked ? FLAGS.dataValid : 0;
    return bytes;
  }
  const places = beginChecksum(bytes.subarray(HEADER.sizeBytes));
  if (places === undefined) return undefined;
  const { segment, checksum, payload } = places;
  const header = viewOf(bytes);
  bytes[HEADER.flags] = FLAGS.needsChecksum;
  bytes[HEADER.gsoType] = GSO[gsoType];
  header.setUint16(HEADER.headerBytes, payload, true);
  header.setUint16(HEADER.gsoSize, gsoSize, true);
  header.setUint16(HEADER.checksumStart, segment, true);
  header.setUint16(HEADER.checksumOffset, checksum - segment, true);
  return bytes;
}
