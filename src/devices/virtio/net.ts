// The network card (OASIS Virtual I/O Device 1.2, 5.1): one pair of queues, frames on their way between the driver and
// a place on a network (network/frame-port.ts). The driver may leave checksums and segmentation of what it sends to the
// network; what it receives is complete frames of at most the MTU.
//
//   every frame, both ways:  virtio_net_hdr, 12 bytes │ Ethernet frame

import { VIRTIO_ID, VIRTIO_STATUS } from '../../abi/emulated-devices.ts';
import { CHECKSUM_PARTIAL, MAX_FRAME_BYTES, NO_FEATURES, NO_OFFLOAD } from '../../network/frame-port.ts';
import type { FramePort, GuestLink, Offload } from '../../network/frame-port.ts';
import type { Chain } from './queue.ts';
import type { VirtioModel, VirtioSlot } from './slot.ts';

const F = { CSUM: 0, GUEST_CSUM: 1, MTU: 3, MAC: 5, HOST_TSO4: 11, HOST_TSO6: 12, STATUS: 16 } as const;
const CONFIG = { mac: 0, status: 6, mtu: 10, sizeBytes: 12 } as const;
const LINK_UP = 1;
const HEADER = { flags: 0, gsoType: 1, gsoSize: 4, numBuffers: 10, sizeBytes: 12 } as const;
const FLAGS = { needsChecksum: 1, dataValid: 2 } as const;
const GSO = { none: 0, tcpv4: 1, tcpv6: 4, ecn: 0x80 } as const;
const RECEIVE_QUEUE = 0;
const TRANSMIT_QUEUE = 1;
const ETHERNET_HEADER_BYTES = 14;
const FRAMES_PER_TURN = 256;

export interface VirtioNetOptions {
  /** Six bytes. */
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
  readonly features = [F.CSUM, F.GUEST_CSUM, F.MTU, F.MAC, F.HOST_TSO4, F.HOST_TSO6, F.STATUS];
  readonly counts = { txErrors: 0, rxErrors: 0, txStalls: 0, rxStalls: 0 };
  /** What the network knows the card by. */
  readonly link: GuestLink = {
    features: NO_FEATURES,
    receive: (frame) => this.#receive(frame),
    writable: () => this.#slot?.again(),
  };
  readonly #options: VirtioNetOptions;
  #slot: VirtioSlot | undefined;
  /** One that the network has no room for, or that a page could not be had for. */
  #sending: Sending | undefined;
  /** A buffer that a page could not be had for, with what goes into it. */
  #receiving: { readonly chain: Chain; readonly pieces: readonly Uint8Array[] } | undefined;
  /** The network keeps frames until there are buffers. */
  #isWaitedFor = false;

  constructor(options: VirtioNetOptions) {
    this.#options = options;
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

  #receive(frame: Uint8Array): boolean {
    const slot = this.#slot;
    const chain = this.#receiving === undefined ? slot?.queues[RECEIVE_QUEUE]!.take() : undefined;
    if (slot === undefined || chain === undefined) {
      this.counts.rxStalls++;
      this.#isWaitedFor = true;
      return false;
    }
    const header = new Uint8Array(HEADER.sizeBytes);
    header[HEADER.flags] = slot.hasFeature(F.GUEST_CSUM) ? FLAGS.dataValid : 0;
    header[HEADER.numBuffers] = 1;
    const fits = chain.writableBytes >= HEADER.sizeBytes + frame.length;
    if (!fits) this.counts.rxErrors++;
    // What does not fit is lost; the driver gets its buffer back with an empty frame.
    const pieces = fits ? [header, frame.slice()] : [header.subarray(0, Math.min(header.length, chain.writableBytes))];
    this.#receiving = { chain, pieces };
    this.#finishReceiving(slot);
    return true;
  }

  #finishReceiving(slot: VirtioSlot): void {
    const { chain, pieces } = this.#receiving!;
    if (slot.queues[RECEIVE_QUEUE]!.complete(chain, ...pieces)) this.#receiving = undefined;
  }
}
