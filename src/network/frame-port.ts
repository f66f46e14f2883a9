// The seam between a network and the back end of a guest's network card (xen-netfront, virtio-net): Ethernet frames,
// without preamble and FCS, and what the card left undone about them.
//
//   back end ── FramePort.send ───► network          guest transmits
//   back end ◄── GuestLink.receive ─ network         guest receives
//
// Frames are borrowed: valid, and not to be changed by anybody, until the call returns; who keeps one copies it. The
// back end has copied them out of guest memory before `send`, so that the guest cannot change them any more. `receive`
// and `writable` do not call `send` before they return: neither side then has to expect to be entered again.
//
// Back-pressure: where `send` returns false the frame was not taken; the back end leaves it in the ring until
// `writable`. Where `receive` returns false the guest has no buffers; the network keeps the frame (up to a bound) and
// waits for `ready`.

/** How a frame longer than the MTU is to be cut into segments: by TCP over IPv4 or IPv6, or not at all. */
export type GsoType = 'none' | 'tcpv4' | 'tcpv6';

/** What is not yet done about a frame. */
export interface Offload {
  /** The TCP or UDP checksum covers the pseudo-header alone or nothing: not to be verified, to be filled if needed. */
  readonly checksumPartial: boolean;
  /** TCP payload bytes per segment; 0 where gsoType is `none`. */
  readonly gsoSize: number;
  readonly gsoType: GsoType;
}

/** An ordinary frame: complete, with valid checksums. */
export const NO_OFFLOAD: Offload = { checksumPartial: false, gsoSize: 0, gsoType: 'none' };
/** A frame of at most the MTU without its checksum. */
export const CHECKSUM_PARTIAL: Offload = { checksumPartial: true, gsoSize: 0, gsoType: 'none' };

/** What the guest's card takes in frames that it receives, as negotiated with the guest's driver. */
export interface LinkFeatures {
  readonly checksumPartial: boolean;
  readonly tsoV4: boolean;
  readonly tsoV6: boolean;
}

export const NO_FEATURES: LinkFeatures = { checksumPartial: false, tsoV4: false, tsoV6: false };

/** The guest's side of a port; the back end implements it. */
export interface GuestLink {
  /** Read for every frame: it changes when the guest's driver connects anew. */
  readonly features: LinkFeatures;
  /** Gives a frame to the guest. False: no buffers now, nothing was taken; call FramePort.ready when there are. */
  receive(frame: Uint8Array, offload: Offload): boolean;
  /** After a `send` that returned false: frames are taken again. */
  writable(): void;
}

/** The network's side of a port; the network makes it. */
export interface FramePort {
  /** Takes a frame from the guest, whatever is in it. False: not now, keep it until GuestLink.writable. */
  send(frame: Uint8Array, offload: Offload): boolean;
  /** The guest has posted receive buffers. */
  ready(): void;
  /** Forgets the guest: its connections end, its address is free. */
  close(): void;
}

/** Ethernet header and the longest IP packet. */
export const MAX_FRAME_BYTES = 14 + 65535;
