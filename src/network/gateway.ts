// The station that a network's guests have as router, DHCP and DNS server. It takes IPv4 apart and hands TCP and UDP to
// the host's sockets; there is no packet that the host sends or receives as it is.
//
//   to the gateway's address   ARP, ping; TCP and UDP reach the host's own loopback services, if that is allowed
//   to the DNS address         the relay
//   to the outside             TCP and UDP through host sockets, if that is allowed; anything else is refused by ICMP
//   IPv6                       refused by silence: no router is advertised, so guests use it among themselves alone
//
// Everything in a frame is the guest's word and is checked here: lengths, checksums, and that the source address is
// neither the gateway's nor kept for another guest.

import {
  BROADCAST_ADDRESS, formatAddress, inSubnet, LOOPBACK_ADDRESS, subnetBroadcast,
} from './addresses.ts';
import type { Subnet } from './addresses.ts';
import { answerDhcp, DHCP_CLIENT_PORT, DHCP_SERVER_PORT } from './dhcp.ts';
import type { DhcpSettings, Lease } from './dhcp.ts';
import type { DnsRelay } from './dns-relay.ts';
import { DnsTcpSession } from './dns-tcp.ts';
import { NO_OFFLOAD } from './frame-port.ts';
import type { Offload } from './frame-port.ts';
import { HostTcpEnd } from './host-tcp.ts';
import {
  answerEcho, buildUnreachable, UNREACHABLE_HOST, UNREACHABLE_PORT, UNREACHABLE_PROHIBITED, UNREACHABLE_PROTOCOL,
} from './icmp.ts';
import {
  buildUdp, ETHERNET_HEADER_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER_BYTES, Ipv4Header,
  PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, UDP_HEADER_BYTES, writeEthernetHeader, writeIpv4Header,
} from './packet.ts';
import type { PortState } from './port-state.ts';
import type { Scheduler } from './scheduler.ts';
import type { Gateway, Switch, SwitchPort } from './switch.ts';
import { NOBODY } from './tcp-application.ts';
import type { TcpApplication } from './tcp-application.ts';
import type { TcpConnection } from './tcp-connection.ts';
import type { TcpStack } from './tcp-stack.ts';
import { UdpNat } from './udp-nat.ts';
import type { Datagram } from './udp-nat.ts';
import { readMac, readU16, readU32, writeMac, writeU16, writeU32 } from './wire.ts';

const ARP_BYTES = 28;
const ARP_REQUEST = 1;
const ARP_REPLY = 2;
const DNS_PORT = 53;

export interface GatewaySettings {
  readonly mac: number;
  readonly subnet: Subnet;
  readonly address: number;
  readonly dnsAddress: number;
  readonly domain: string;
  readonly mtuBytes: number;
  /** Whether guests reach anything outside of the network. */
  readonly outbound: boolean;
  /** Whether the gateway's address leads to the host's loopback. */
  readonly hostLoopback: boolean;
}

/** Which guest is where. */
export interface Guests {
  stateOf(port: SwitchPort): PortState | undefined;
  /** Whose address it is: the reserved one of a guest. */
  ownerOf(address: number): PortState | undefined;
  leaseOf(state: PortState, mac: number): Lease | undefined;
}

export class NetworkGateway implements Gateway {
  readonly mac: number;
  readonly udp: UdpNat;
  readonly counters = { malformed: 0, badChecksums: 0, spoofedAddress: 0, ipv6Ignored: 0, unreachable: 0 };
  readonly #settings: GatewaySettings;
  readonly #dhcp: DhcpSettings;
  readonly #switch: Switch;
  readonly #guests: Guests;
  readonly #scheduler: Scheduler;
  readonly #dns: DnsRelay;
  readonly #header = new Ipv4Header();
  #tcp: TcpStack | undefined;
  #nextId = 1;

  constructor(settings: GatewaySettings, fabric: Switch, guests: Guests, dns: DnsRelay, scheduler: Scheduler) {
    this.mac = settings.mac;
    this.#settings = settings;
    this.#switch = fabric;
    this.#guests = guests;
    this.#scheduler = scheduler;
    this.#dns = dns;
    this.#dhcp = {
      server: settings.address, mask: settings.subnet.mask, broadcast: subnetBroadcast(settings.subnet),
      router: settings.address, dns: settings.dnsAddress, mtuBytes: settings.mtuBytes, domain: settings.domain,
    };
    this.udp = new UdpNat({
      scheduler, gatewayAddress: settings.address,
      deliver: (port, datagram, payload) => this.#sendDatagram(port, datagram, payload),
    });
  }

  /** The stack calls `opening` below, so each needs the other. */
  set tcp(stack: TcpStack) {
    this.#tcp = stack;
  }

  receive(port: SwitchPort, frame: Uint8Array, offload: Offload): void {
    const state = this.#guests.stateOf(port);
    if (state === undefined) return;
    switch (readU16(frame, 12)) {
      case ETHERTYPE_IPV4:
        this.#receiveIpv4(state, frame, offload.checksumPartial);
        break;
      case ETHERTYPE_ARP:
        this.#receiveArp(state, frame);
        break;
      case ETHERTYPE_IPV6:
        this.counters.ipv6Ignored++;
        break;
    }
  }

  portReady(port: SwitchPort): void {
    const state = this.#guests.stateOf(port);
    if (state !== undefined) this.#tcp?.portReady(state);
  }

  portClosed(port: SwitchPort): void {
    const state = this.#guests.stateOf(port);
    if (state === undefined) return;
    this.#tcp?.remove(state);
    this.udp.remove(state);
  }

  /** Gives a guest's new connection its far end. */
  opening(connection: TcpConnection): TcpApplication {
    const { remoteAddress, remotePort } = connection.addresses;
    const { address, dnsAddress, hostLoopback } = this.#settings;
    if (remoteAddress === dnsAddress && remotePort === DNS_PORT) {
      const session = new DnsTcpSession(connection, this.#dns);
      connection.accept();
      return session;
    }
    const target = remoteAddress === address && hostLoopback ? LOOPBACK_ADDRESS : remoteAddress;
    if (remotePort === 0 || remoteAddress === dnsAddress || target === address) {
      connection.abort();
      return NOBODY;
    }
    return HostTcpEnd.connect(connection, formatAddress(target), remotePort, {
      scheduler: this.#scheduler, unreachable: (failed) => this.#connectionFailed(failed),
    });
  }

  #receiveArp(state: PortState, frame: Uint8Array): void {
    const at = ETHERNET_HEADER_BYTES;
    if (frame.length < at + ARP_BYTES) return;
    if (readU32(frame, at) !== 0x0001_0800 || readU16(frame, at + 4) !== 0x0604) return;
    const senderMac = readMac(frame, at + 8);
    const sender = readU32(frame, at + 14);
    const target = readU32(frame, at + 24);
    if (senderMac !== readMac(frame, 6)) return;
    if (sender !== 0 && !this.#mayUse(state, senderMac, sender)) return; // 0: it probes whether an address is free
    if (readU16(frame, at + 6) !== ARP_REQUEST) return;
    if (target !== this.#settings.address && target !== this.#settings.dnsAddress) return;
    const reply = new Uint8Array(at + ARP_BYTES);
    writeEthernetHeader(reply, senderMac, this.mac, ETHERTYPE_ARP);
    writeU32(reply, at, 0x0001_0800);
    writeU16(reply, at + 4, 0x0604);
    writeU16(reply, at + 6, ARP_REPLY);
    writeMac(reply, at + 8, this.mac);
    writeU32(reply, at + 14, target);
    writeMac(reply, at + 18, senderMac);
    writeU32(reply, at + 24, sender);
    this.#switch.fromGateway(state.port, reply, NO_OFFLOAD);
  }

  #receiveIpv4(state: PortState, frame: Uint8Array, checksumPartial: boolean): void {
    const header = this.#header;
    if (!header.parse(frame)) {
      this.counters.malformed++;
      return;
    }
    const { source, destination } = header;
    if (source === 0) {
      // Only a client that has no address yet sends so.
      const isClient = header.protocol === PROTOCOL_UDP && destination === BROADCAST_ADDRESS;
      if (isClient) this.#receiveUdp(state, frame, checksumPartial);
      return;
    }
    if (!this.#mayUse(state, readMac(frame, 6), source)) return;
    if (header.moreFragments || header.fragmentOffset > 0) {
      const whole = state.reassembly.add(header, frame, this.#scheduler.nowMillis());
      if (whole === undefined || !header.parse(whole)) return;
      this.#dispatch(state, whole, false);
      return;
    }
    this.#dispatch(state, frame, checksumPartial);
  }

  #dispatch(state: PortState, frame: Uint8Array, checksumPartial: boolean): void {
    const header = this.#header;
    const { destination } = header;
    if (this.#isGroup(destination)) {
      if (header.protocol === PROTOCOL_UDP) this.#receiveUdp(state, frame, checksumPartial);
      return;
    }
    const code = this.#refusal(destination);
    if (code !== undefined) {
      this.#sendUnreachable(state, frame, code);
      return;
    }
    switch (header.protocol) {
      case PROTOCOL_TCP:
        this.#tcp?.input(state, header, frame, checksumPartial);
        break;
      case PROTOCOL_UDP:
        this.#receiveUdp(state, frame, checksumPartial);
        break;
      case PROTOCOL_ICMP:
        this.#receiveIcmp(state, frame);
        break;
      default:
        this.#sendUnreachable(state, frame, UNREACHABLE_PROTOCOL);
    }
  }

  /** Why nothing goes to an address, as an ICMP code; undefined if it does. */
  #refusal(destination: number): number | undefined {
    const { subnet, address, dnsAddress, outbound } = this.#settings;
    if (destination === address || destination === dnsAddress) return undefined;
    if (inSubnet(subnet, destination)) return UNREACHABLE_HOST; // a guest there would have been sent to directly
    const network = destination >>> 24;
    if (network === 0 || network === 127 || network >= 240) return UNREACHABLE_HOST;
    return outbound ? undefined : UNREACHABLE_PROHIBITED;
  }

  #isGroup(destination: number): boolean {
    return destination === BROADCAST_ADDRESS || destination === this.#dhcp.broadcast || destination >>> 28 === 14;
  }

  /** Whether the sender may have this address; if so, notes that it has. */
  #mayUse(state: PortState, mac: number, address: number): boolean {
    const { subnet, address: gatewayAddress, dnsAddress } = this.#settings;
    const reserved = address === gatewayAddress || address === dnsAddress || address === subnet.network
      || address === this.#dhcp.broadcast;
    const owner = this.#guests.ownerOf(address);
    if (!inSubnet(subnet, address) || reserved || (owner !== undefined && owner !== state)) {
      this.counters.spoofedAddress++;
      return false;
    }
    if (mac === state.port.mac) state.sawAddress(address);
    return true;
  }

  #receiveIcmp(state: PortState, frame: Uint8Array): void {
    const { address, dnsAddress } = this.#settings;
    const { destination, source } = this.#header;
    if (destination !== address && destination !== dnsAddress) {
      this.#sendUnreachable(state, frame, UNREACHABLE_PROHIBITED); // the host sends no ICMP without privileges
      return;
    }
    const reply = answerEcho(this.#header, frame);
    if (reply !== undefined) this.#sendIpv4(state, readMac(frame, 6), destination, source, PROTOCOL_ICMP, reply);
  }

  #receiveUdp(state: PortState, frame: Uint8Array, checksumPartial: boolean): void {
    const header = this.#header;
    const at = header.payloadOffset;
    const length = at + UDP_HEADER_BYTES <= header.end ? readU16(frame, at + 4) : 0;
    if (length < UDP_HEADER_BYTES || at + length > header.end) {
      this.counters.malformed++;
      return;
    }
    header.end = at + length;
    if (!checksumPartial && readU16(frame, at + 6) !== 0 && !header.transportChecksumHolds(frame)) {
      this.counters.badChecksums++;
      return;
    }
    const payload = frame.subarray(at + UDP_HEADER_BYTES, header.end);
    const datagram: Datagram = {
      guestMac: readMac(frame, 6), guestAddress: header.source, guestPort: readU16(frame, at),
      remoteAddress: header.destination, remotePort: readU16(frame, at + 2),
    };
    if (!this.#dispatchUdp(state, datagram, payload)) this.#sendUnreachable(state, frame, UNREACHABLE_PORT);
  }

  /** False: nobody listens there. */
  #dispatchUdp(state: PortState, datagram: Datagram, payload: Uint8Array): boolean {
    const { address, dnsAddress, hostLoopback } = this.#settings;
    const { remoteAddress, remotePort } = datagram;
    const group = this.#isGroup(remoteAddress);
    if (remotePort === DHCP_SERVER_PORT && (group || remoteAddress === address)) {
      this.#receiveDhcp(state, datagram, payload);
      return true;
    }
    if (group || datagram.guestAddress === 0) return true; // nobody here, but not to be answered
    if (remoteAddress === dnsAddress) {
      if (remotePort !== DNS_PORT) return false;
      this.#dns.query(state, payload, 'udp', (answer) => this.#sendDatagram(state, datagram, answer));
      return true;
    }
    if (remoteAddress !== address) {
      this.udp.send(state, datagram, remoteAddress, payload);
      return true;
    }
    if (this.udp.answerClient(state, datagram, payload)) return true;
    if (hostLoopback) this.udp.send(state, datagram, LOOPBACK_ADDRESS, payload);
    return hostLoopback;
  }

  #receiveDhcp(state: PortState, datagram: Datagram, payload: Uint8Array): void {
    const mac = datagram.guestMac;
    const reply = answerDhcp(payload, mac, this.#dhcp, (client) => this.#guests.leaseOf(state, client));
    if (reply === undefined) return;
    const destination = reply.broadcast ? BROADCAST_ADDRESS : reply.address;
    const { address } = this.#settings;
    const message = buildUdp(address, DHCP_SERVER_PORT, destination, DHCP_CLIENT_PORT, reply.message);
    this.#sendIpv4(state, mac, address, destination, PROTOCOL_UDP, message);
  }

  #sendDatagram(state: PortState, datagram: Datagram, payload: Uint8Array): void {
    const { remoteAddress, remotePort, guestAddress, guestPort, guestMac } = datagram;
    const message = buildUdp(remoteAddress, remotePort, guestAddress, guestPort, payload);
    this.#sendIpv4(state, guestMac, remoteAddress, guestAddress, PROTOCOL_UDP, message);
  }

  #connectionFailed(connection: TcpConnection): void {
    const { guestMac, guestAddress, guestPort, remoteAddress, remotePort } = connection.addresses;
    // The guest looks for its SYN in what is quoted.
    const frame = new Uint8Array(ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + 20);
    const fields = { source: guestAddress, destination: remoteAddress, protocol: PROTOCOL_TCP };
    writeIpv4Header(frame, { ...fields, totalBytes: frame.length - ETHERNET_HEADER_BYTES });
    const at = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES;
    writeU16(frame, at, guestPort);
    writeU16(frame, at + 2, remotePort);
    writeU32(frame, at + 4, (connection.rcvNxt - 1) >>> 0);
    this.counters.unreachable++;
    const message = buildUnreachable(UNREACHABLE_HOST, frame.subarray(ETHERNET_HEADER_BYTES));
    this.#sendIpv4(connection.port, guestMac, this.#settings.address, guestAddress, PROTOCOL_ICMP, message);
  }

  /** Answers the packet in the frame, which the header describes, unless it must not be answered (RFC 1122). */
  #sendUnreachable(state: PortState, frame: Uint8Array, code: number): void {
    const { offset, payloadOffset, end, source, protocol } = this.#header;
    const isError = protocol === PROTOCOL_ICMP && frame[payloadOffset] !== 8;
    if (isError || end - payloadOffset < 8) return;
    this.counters.unreachable++;
    const message = buildUnreachable(code, frame.subarray(offset, end));
    this.#sendIpv4(state, readMac(frame, 6), this.#settings.address, source, PROTOCOL_ICMP, message);
  }

  /** Sends a packet, in fragments if it is longer than the MTU. */
  #sendIpv4(
    state: PortState, to: number, source: number, destination: number, protocol: number, payload: Uint8Array,
  ): void {
    const room = this.#settings.mtuBytes - IPV4_HEADER_BYTES;
    const whole = payload.length <= room;
    const step = whole ? room : room - (room % 8);
    const id = whole ? 0 : this.#nextId++ & 0xffff;
    for (let offset = 0; offset < payload.length; offset += step) {
      const part = payload.subarray(offset, offset + step);
      const frame = new Uint8Array(ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + part.length);
      const more = offset + part.length < payload.length;
      writeEthernetHeader(frame, to, this.mac, ETHERTYPE_IPV4);
      writeIpv4Header(frame, {
        source, destination, protocol, totalBytes: IPV4_HEADER_BYTES + part.length,
        fragment: whole ? undefined : { id, offset, more },
      });
      frame.set(part, ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES);
      this.#switch.fromGateway(state.port, frame, NO_OFFLOAD);
    }
  }
}
