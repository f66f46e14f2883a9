// The host's networks by name. Those that the host was started with options for are there from the start; any other one
// is made when the first card comes to it, private and with the usual defaults.

import { ZazenError } from '../base/errors.ts';
import { Network } from '../network/network.ts';
import type { NetworkMetrics, NetworkOptions } from '../network/network.ts';

const NETWORKS_MAX = 1024;

export class HostNetworks {
  readonly #networks = new Map<string, Network>();

  /** @throws ZazenError ZAZEN_NETWORK_*, and what keeps a capture from being written */
  static async create(options: Readonly<Record<string, NetworkOptions>> = {}): Promise<HostNetworks> {
    const networks = new HostNetworks();
    try {
      for (const [name, wanted] of Object.entries(options)) {
        checkNetworkName(name);
        networks.#networks.set(name, await Network.create(wanted));
      }
    } catch (error) {
      await networks.close();
      throw error;
    }
    return networks;
  }

  /** @throws ZazenError ZAZEN_NETWORK_LIMIT */
  get(name: string): Network {
    const known = this.#networks.get(name);
    if (known !== undefined) return known;
    if (this.#networks.size >= NETWORKS_MAX) {
      throw new ZazenError('ZAZEN_NETWORK_LIMIT', `a host has ${NETWORKS_MAX} networks at most`);
    }
    const network = Network.open();
    this.#networks.set(name, network);
    return network;
  }

  metrics(): Record<string, NetworkMetrics> {
    return Object.fromEntries([...this.#networks].map(([name, network]) => [name, network.metrics()]));
  }

  async close(): Promise<void> {
    await Promise.all([...this.#networks.values()].map((network) => network.close()));
    this.#networks.clear();
  }
}

/** @throws ZazenError ZAZEN_SPEC_NETWORK */
export function checkNetworkName(name: string): void {
  if (/^[A-Za-z0-9_.+-]{1,64}$/.test(name)) return;
  throw new ZazenError('ZAZEN_SPEC_NETWORK', `a network cannot be called "${name.slice(0, 80)}"`, {
    hint: 'use letters, digits, and _ . + -, up to 64',
  });
}
