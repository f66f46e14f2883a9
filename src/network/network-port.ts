// A card's place on a network, as its back end and its owner see it: frames, port forwards, what to keep of its
// connections when the guest is saved, and metrics.

import { AddressAlias } from './address-alias.ts';
import type { AliasedLink } from './address-alias.ts';
import { formatAddress, formatMac } from './addresses.ts';
import type { CardState } from './card-state.ts';
import type { Lease } from './dhcp.ts';
import type { FramePort, Offload } from './frame-port.ts';
import type { NetworkCardOptions } from './network.ts';
import { formatForward } from './port-forward.ts';
import type { ActiveForward, PortForward } from './port-forward.ts';
import { PortState } from './port-state.ts';
import type { PortCounters, SwitchPort } from './switch.ts';
import type { ConnectionRecord, TcpStack } from './tcp-stack.ts';

/** A guest's guests that may have addresses of the network. */
const MAX_LEASES_PER_PORT = 64;

export interface NetworkPortMetrics extends Readonly<PortCounters> {
  readonly mac: string;
  readonly address: string;
  readonly bufferedBytes: number;
}

/** What a port needs of its network. */
export interface PortServices {
  readonly link: AliasedLink;
  readonly forward: (forward: PortForward) => Promise<ActiveForward>;
  readonly takeAddress: (mac: number) => number | undefined;
  readonly resetFlows: () => void;
  readonly detached: (addresses: Iterable<number>) => void;
}

export class NetworkPort implements FramePort {
  /** For the network. */
  readonly state: PortState;
  readonly #port: SwitchPort;
  readonly #tcp: TcpStack;
  readonly #services: PortServices;
  readonly #leases = new Map<number, number>();
  readonly #forwards = new Set<ActiveForward>();

  constructor(port: SwitchPort, state: PortState, tcp: TcpStack, services: PortServices) {
    this.#port = port;
    this.state = state;
    this.#tcp = tcp;
    this.#services = services;
    this.#leases.set(port.mac, state.address);
  }

  /** The address that DHCP gives the guest. */
  get address(): string {
    return formatAddress(this.state.address);
  }

  get mac(): string {
    return formatMac(this.#port.mac);
  }

  /** An address of the network as the guest has to use it. */
  addressInside(address: number): number {
    return this.#services.link.alias?.addressInside(address) ?? address;
  }

  send(frame: Uint8Array, offload: Offload): boolean {
    const { alias } = this.#services.link;
    return this.#port.send(alias === undefined ? frame : alias.fromGuest(frame, offload), offload);
  }

  ready(): void {
    this.#port.ready();
  }

  /** Opens a port of the host that leads to the guest, until it is closed or the card is detached. */
  async forward(forward: PortForward): Promise<ActiveForward> {
    const opened = await this.#services.forward(forward);
    const active: ActiveForward = {
      ...opened,
      close: async () => {
        this.#forwards.delete(active);
        await opened.close();
      },
    };
    if (this.#port.closed) await active.close();
    else this.#forwards.add(active);
    return active;
  }

  /** Those in force, as an operator writes them. */
  get forwards(): string[] {
    return [...this.#forwards].map(formatForward);
  }

  /** Plain data to keep with the state of a guest that is saved, for `resetConnections` when it is restored. */
  connections(): ConnectionRecord[] {
    return this.#tcp.records(this.state);
  }

  /**
   * Ends the guest's connections, at both ends, and forgets its UDP flows. After a restore or fork give what
   * `connections` said when the guest was saved: the guest is then asked about those too and told that they are gone,
   * so that nobody in it waits for what will never come.
   */
  resetConnections(saved: readonly ConnectionRecord[] = []): void {
    this.#tcp.end(this.state, 'abort');
    this.#services.resetFlows();
    this.#tcp.probe(this.state, saved);
  }

  /** What a guest that goes on from here needs of its card: plain data. */
  save(): CardState {
    const mac = this.#port.mac;
    const address = this.state.activeAddress;
    return {
      mac, address, guest: this.#services.link.alias?.believed ?? { mac, address }, connections: this.connections(),
    };
  }

  /**
   * The guest is as it was when `saved` was taken, of this card or of one that it is a copy of, and its back end is
   * connected: its connections are ended, those of then as well.
   */
  restore({ mac, address, guest, connections }: CardState): void {
    const own = { mac: this.#port.mac, address: this.state.activeAddress };
    this.#services.link.alias = AddressAlias.of(guest, own);
    this.resetConnections(connections.map((record) => ({
      ...record, guestMac: record.guestMac === mac ? own.mac : record.guestMac,
      guestAddress: record.guestAddress === address ? own.address : record.guestAddress,
    })));
  }

  metrics(): NetworkPortMetrics {
    return {
      ...this.#port.counters, mac: formatMac(this.#port.mac), address: this.address,
      bufferedBytes: this.state.budget.usedBytes,
    };
  }

  /** The address of the card, or of a card behind it. For the network. */
  leaseOf(mac: number): Lease | undefined {
    let address = this.#leases.get(mac);
    if (address === undefined && this.#leases.size < MAX_LEASES_PER_PORT) {
      address = this.#services.takeAddress(mac);
      if (address !== undefined) this.#leases.set(mac, address);
    }
    if (address === undefined) return undefined;
    const { name } = this.state;
    return { address, hostName: mac === this.#port.mac ? name : undefined };
  }

  close(): void {
    if (this.#port.closed) return;
    for (const forward of [...this.#forwards]) void forward.close();
    this.#port.close();
    this.#services.detached(this.#leases.values());
  }
}

/** What the gateway keeps for a card that is attached with these options. */
export function createPortState(
  port: SwitchPort, address: number, mtuBytes: number, options: NetworkCardOptions,
): PortState {
  const name = options.name === undefined ? undefined : hostNameFrom(options.name);
  return new PortState(port, { name, address, mtuBytes, budgetBytes: options.budgetBytes });
}

/** A label that DNS takes: a domain may be called anything. */
function hostNameFrom(name: string): string | undefined {
  const label = name.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-').slice(0, 63).replaceAll(/^-|-$/g, '');
  return label === '' ? undefined : label;
}
