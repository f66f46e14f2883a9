// A network of guests: a private switch, with a gateway that leads to the host's sockets. No privileges, no device of
// the host, nothing of one network visible in another.
//
//   guest ── card's back end ── NetworkPort ─┐
//   guest ── card's back end ── NetworkPort ─┼─ Switch ─ NetworkGateway ─┬─ TcpStack ── node:net
//                                            │                           ├─ UdpNat ──── node:dgram
//                                         PcapFile                       └─ DnsRelay ── name servers
//
// Connections live in the host's sockets and are not part of a guest's saved state. A guest that runs on keeps them;
// one that is restored, rolled back or forked is told that they are gone (NetworkPort.resetConnections).

import { getServers } from 'node:dns';
import { systemClock } from '../base/clock.ts';
import type { Clock } from '../base/clock.ts';
import { ZazenError } from '../base/errors.ts';
import { systemRandom } from '../base/random.ts';
import type { Random } from '../base/random.ts';
import { AddressAlias, AliasedLink } from './address-alias.ts';
import { AddressTable } from './address-table.ts';
import type { CardState } from './card-state.ts';
import { formatAddress, formatMac, parseAddress, parseMac, parseSubnet } from './addresses.ts';
import type { Subnet } from './addresses.ts';
import { DnsRelay } from './dns-relay.ts';
import { DnsUpstream, parseServer } from './dns-upstream.ts';
import type { GuestLink } from './frame-port.ts';
import { NetworkGateway } from './gateway.ts';
import type { GatewaySettings } from './gateway.ts';
import { HostsFile } from './hosts-file.ts';
import { createPortState, NetworkPort } from './network-port.ts';
import type { NetworkPortMetrics, PortServices } from './network-port.ts';
import { PcapFile } from './pcap.ts';
import { openForward } from './open-forward.ts';
import type { PortState } from './port-state.ts';
import { systemScheduler } from './scheduler.ts';
import type { Scheduler } from './scheduler.ts';
import { Switch } from './switch.ts';
import type { SwitchPort } from './switch.ts';
import { TcpStack } from './tcp-stack.ts';
import type { TcpMetrics } from './tcp-stack.ts';

/** What an operator chooses. */
export interface NetworkSettings {
  /** Default 10.0.2.0/24. */
  readonly subnet?: string;
  /** Default 1500. Super-frames go beyond it. */
  readonly mtuBytes?: number;
  /** Whether guests reach the outside, and names that the host's name servers know. Default true. */
  readonly outbound?: boolean;
  /** Whether the gateway's address leads to services on the host's loopback. Default true. */
  readonly hostLoopback?: boolean;
  /** Guests' names are in this domain. Default `zazen.internal`. */
  readonly domain?: string;
  /** Name servers, as `10.0.0.1` or `10.0.0.1:5353`; default the host's. */
  readonly dnsServers?: readonly string[];
  readonly hostsFile?: string;
  /** Writes every frame to this file. */
  readonly capturePath?: string;
}

export interface NetworkOptions extends NetworkSettings {
  readonly scheduler?: Scheduler;
  readonly clock?: Clock;
  readonly random?: Random;
}

export interface NetworkCardOptions {
  /** `00:16:3e:12:34:56`. */
  readonly mac: string;
  /** The guest's name, for DHCP and DNS. */
  readonly name?: string;
  /** The address that DHCP gives it; by default a free one, the same whenever the card comes back. */
  readonly address?: string;
  /** A guest that bridges guests of its own: it may send from any address that is nobody else's. */
  readonly anyMac?: boolean;
  readonly rateBytesPerSecond?: number;
  /** Most memory that its connections may hold; default 64 MiB. */
  readonly budgetBytes?: number;
  /**
   * Of a guest that this one goes on from. It keeps the saved addresses where they are free; where not, it gets `mac`
   * and an address of its own, and what its guest believes is translated (address-alias.ts).
   */
  readonly state?: CardState;
}

export interface NetworkMetrics {
  readonly ports: readonly NetworkPortMetrics[];
  readonly tcp: TcpMetrics;
  readonly udp: Readonly<NetworkGateway['udp']['counters']> & { readonly flows: number };
  readonly dns: Readonly<DnsRelay['counters']>;
  readonly gateway: Readonly<NetworkGateway['counters']>;
  readonly captureFramesLeftOut: number;
}

const MIN_MTU_BYTES = 576;
const MAX_MTU_BYTES = 65535;
/** Locally administered; the gateway's IPv4 address follows. */
const GATEWAY_MAC_PREFIX = 0x525a;

export class Network {
  readonly #settings: GatewaySettings;
  readonly #addresses: AddressTable;
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #switch: Switch;
  readonly #gateway: NetworkGateway;
  readonly #tcp: TcpStack;
  readonly #dns: DnsRelay;
  readonly #upstream: DnsUpstream | undefined;
  readonly #capture: PcapFile | undefined;
  readonly #ports = new Map<SwitchPort, NetworkPort>();
  /** Addresses kept for cards. */
  readonly #owners = new Map<number, PortState>();

  static async create(options: NetworkOptions = {}): Promise<Network> {
    const clock = options.clock ?? systemClock;
    const { capturePath } = options;
    return new Network(options, capturePath === undefined ? undefined : await PcapFile.create(capturePath, clock));
  }

  /** At once, without a capture. */
  static open(options: Omit<NetworkOptions, 'capturePath'> = {}): Network {
    return new Network(options, undefined);
  }

  private constructor(options: NetworkOptions, capture: PcapFile | undefined) {
    const scheduler = options.scheduler ?? systemScheduler;
    const random = options.random ?? systemRandom;
    this.#scheduler = scheduler;
    this.#random = random;
    this.#capture = capture;
    const subnet = parseSubnet(options.subnet ?? '10.0.2.0/24');
    this.#addresses = new AddressTable(subnet);
    this.#settings = settingsFrom(options, subnet, this.#addresses);
    const { mac, mtuBytes, outbound } = this.#settings;
    const servers = (options.dnsServers ?? getServers()).map(parseServer);
    this.#upstream = outbound ? new DnsUpstream(servers, scheduler, random) : undefined;
    this.#dns = this.#createRelay(options, subnet);
    this.#switch = new Switch({
      mtuBytes, scheduler, capture: capture === undefined ? undefined : (frame) => capture.write(frame),
    });
    const guests = {
      stateOf: (port: SwitchPort) => this.#ports.get(port)?.state,
      ownerOf: (address: number) => this.#owners.get(address),
      leaseOf: (state: PortState, client: number) => this.#ports.get(state.port)?.leaseOf(client),
    };
    this.#gateway = new NetworkGateway(this.#settings, this.#switch, guests, this.#dns, scheduler);
    this.#switch.gateway = this.#gateway;
    this.#tcp = new TcpStack({
      scheduler, random, mac, mtuBytes,
      deliver: (port, frame, offload) => this.#switch.fromGateway(port, frame, offload),
      offer: (port, frame, offload) => this.#switch.offerFromGateway(port, frame, offload),
      opening: (connection) => this.#gateway.opening(connection),
    });
    this.#gateway.tcp = this.#tcp;
  }

  get gatewayAddress(): string {
    return formatAddress(this.#settings.address);
  }

  get dnsAddress(): string {
    return formatAddress(this.#settings.dnsAddress);
  }

  get mtuBytes(): number {
    return this.#settings.mtuBytes;
  }

  /** Whether a card may come with this address. */
  isFree(mac: string): boolean {
    return this.#switch.isFree(requireMac(mac));
  }

  /** Connects a card. `link` is called from then on. */
  attach(link: GuestLink, options: NetworkCardOptions): NetworkPort {
    const { anyMac, rateBytesPerSecond, state: saved } = options;
    const isFree = saved !== undefined && this.#switch.isFree(saved.mac);
    const mac = isFree ? saved.mac : requireMac(options.mac);
    const aliased = new AliasedLink(link);
    const port = this.#switch.attach(aliased, { mac, anyMac, rateBytesPerSecond });
    try {
      const isKept = isFree && this.#addresses.isFree(saved.address);
      const address = isKept ? this.#addresses.takeExactly(mac, saved.address)
        : this.#chooseAddress(mac, saved === undefined ? options.address : undefined);
      const state = createPortState(port, address, this.mtuBytes, options);
      if (saved !== undefined) aliased.alias = AddressAlias.of(saved.guest, { mac, address });
      const networkPort = new NetworkPort(port, state, this.#tcp, this.#servicesFor(port, state, aliased));
      this.#ports.set(port, networkPort);
      this.#owners.set(address, state);
      return networkPort;
    } catch (error) {
      port.close();
      throw error;
    }
  }

  /** Ends all connections of all guests: both ends are told. */
  resetAll(): void {
    for (const port of this.#ports.values()) port.resetConnections();
  }

  metrics(): NetworkMetrics {
    return {
      ports: [...this.#ports.values()].map((port) => port.metrics()),
      tcp: this.#tcp.metrics(),
      udp: { ...this.#gateway.udp.counters, flows: this.#gateway.udp.flows },
      dns: { ...this.#dns.counters },
      gateway: { ...this.#gateway.counters },
      captureFramesLeftOut: this.#capture?.framesLeftOut ?? 0,
    };
  }

  /** Detaches all cards and closes everything that the network has opened on the host. */
  async close(): Promise<void> {
    for (const port of [...this.#ports.values()]) port.close();
    this.#tcp.close();
    this.#gateway.udp.close();
    this.#upstream?.close();
    await this.#capture?.close();
  }

  #servicesFor(port: SwitchPort, state: PortState, link: AliasedLink): PortServices {
    return {
      link,
      forward: (forward) => openForward(forward, state, {
        tcp: this.#tcp, udp: this.#gateway.udp, gatewayAddress: this.#settings.address, scheduler: this.#scheduler,
        random: this.#random,
      }),
      takeAddress: (client) => this.#takeAddress(client, state),
      resetFlows: () => this.#gateway.udp.remove(state),
      detached: (addresses) => this.#detached(port, addresses),
    };
  }

  #createRelay(options: NetworkOptions, subnet: Subnet): DnsRelay {
    const { domain, address, hostLoopback } = this.#settings;
    return new DnsRelay({
      domain, subnet, gatewayAddress: address, hostLoopback, upstream: this.#upstream,
      hosts: new HostsFile(options.hostsFile ?? '/etc/hosts', this.#scheduler),
      addressOfGuest: (name, asker) => {
        const found = this.#findState((state) => state.name === name)?.activeAddress;
        return found === undefined ? undefined : this.#addressInside(asker, found);
      },
      guestOfAddress: (wanted, asker) => {
        const outside = this.#addressInside(asker, wanted);
        return this.#findState((state) => state.activeAddress === outside)?.name;
      },
    });
  }

  /** Names are told to a guest in the addresses that it uses; the exchange is its own inverse. */
  #addressInside(asker: object, address: number): number {
    for (const port of this.#ports.values()) if (port.state === asker) return port.addressInside(address);
    return address;
  }

  #findState(matches: (state: PortState) => boolean): PortState | undefined {
    for (const { state } of this.#ports.values()) if (matches(state)) return state;
    return undefined;
  }

  #chooseAddress(mac: number, wanted: string | undefined): number {
    if (wanted !== undefined) {
      const address = parseAddress(wanted);
      if (address === undefined) {
        throw new ZazenError('ZAZEN_NETWORK_ADDRESS', `not an IPv4 address: ${wanted}`, {
          hint: 'write it as 10.0.2.20',
        });
      }
      return this.#addresses.takeExactly(mac, address);
    }
    const address = this.#addresses.take(mac);
    if (address === undefined) {
      throw new ZazenError('ZAZEN_NETWORK_FULL', `no address is left for ${formatMac(mac)}`, {
        hint: 'give the network a larger subnet',
      });
    }
    return address;
  }

  #takeAddress(mac: number, state: PortState): number | undefined {
    const address = this.#addresses.take(mac);
    if (address !== undefined) this.#owners.set(address, state);
    return address;
  }

  #detached(port: SwitchPort, addresses: Iterable<number>): void {
    for (const address of addresses) {
      this.#addresses.release(address);
      this.#owners.delete(address);
    }
    this.#ports.delete(port);
  }
}

function requireMac(text: string): number {
  const mac = parseMac(text);
  if (mac !== undefined) return mac;
  throw new ZazenError('ZAZEN_NETWORK_MAC', `not a MAC address: ${text}`, { hint: 'write it as 00:16:3e:12:34:56' });
}

function settingsFrom(options: NetworkOptions, subnet: Subnet, addresses: AddressTable): GatewaySettings {
  const mtuBytes = options.mtuBytes ?? 1500;
  if (!Number.isInteger(mtuBytes) || mtuBytes < MIN_MTU_BYTES || mtuBytes > MAX_MTU_BYTES) {
    throw new ZazenError('ZAZEN_NETWORK_MTU', `the MTU cannot be ${mtuBytes}`, {
      hint: `choose ${MIN_MTU_BYTES} to ${MAX_MTU_BYTES} bytes`,
    });
  }
  return {
    mac: GATEWAY_MAC_PREFIX * 2 ** 32 + addresses.gatewayAddress,
    subnet, mtuBytes,
    address: addresses.gatewayAddress,
    dnsAddress: addresses.dnsAddress,
    domain: (options.domain ?? 'zazen.internal').toLowerCase(),
    outbound: options.outbound ?? true,
    hostLoopback: options.hostLoopback ?? true,
  };
}
