// DNS for the guests of a network: names of guests and of the host's hosts file are answered here, everything else goes
// to the host's name servers. Without any, local names still work.
//
// Names: `web` and `web.<domain>` for a guest that the operator called `web` (what a guest calls itself counts for
// nothing: it could call itself another guest); `gateway` and `host` for the gateway's address. Addresses of 127/8 in
// the hosts file are the host's own: a guest is told the gateway's address for them, if that leads to the host.

import { inSubnet, LOOPBACK_ADDRESS, parseAddress } from './addresses.ts';
import type { Subnet } from './addresses.ts';
import {
  buildAnswer, encodeName, NAME_ERROR, NO_ERROR, parseQuery, REFUSED, SERVER_FAILURE, TYPE_A, TYPE_ANY, TYPE_PTR,
} from './dns-message.ts';
import type { DnsQuery, DnsRecord } from './dns-message.ts';
import type { DnsTransport, DnsUpstream } from './dns-upstream.ts';
import type { HostsFile } from './hosts-file.ts';
import { writeU32 } from './wire.ts';

const MAX_PENDING = 256;
const MAX_PENDING_PER_GUEST = 32;
/** An answer over UDP to a query that does not say that it takes more. */
const PLAIN_UDP_BYTES = 512;

export interface DnsRelayOptions {
  readonly domain: string;
  readonly subnet: Subnet;
  readonly gatewayAddress: number;
  /** Whether the gateway's address leads to the host's loopback. */
  readonly hostLoopback: boolean;
  readonly hosts: HostsFile;
  /** Without it, only local names have answers. */
  readonly upstream: DnsUpstream | undefined;
  /** As the guest that asks has to use it. */
  readonly addressOfGuest: (name: string, asker: object) => number | undefined;
  readonly guestOfAddress: (address: number, asker: object) => string | undefined;
}

interface LocalAnswer {
  readonly code: number;
  readonly records: readonly DnsRecord[];
}

export class DnsRelay {
  readonly #options: DnsRelayOptions;
  readonly #suffix: string;
  /** Questions under way upstream, by guest. */
  readonly #pending = new Map<object, number>();
  #total = 0;
  readonly counters = { local: 0, forwarded: 0, failed: 0, dropped: 0 };

  constructor(options: DnsRelayOptions) {
    this.#options = options;
    this.#suffix = `.${options.domain}`;
  }

  /** Answers a message of `guest` by calling `reply` once, now or later. False: never; it is no query, or too many. */
  query(guest: object, message: Uint8Array, transport: DnsTransport, reply: (answer: Uint8Array) => void): boolean {
    const query = parseQuery(message);
    if (query === undefined) {
      this.counters.dropped++;
      return false;
    }
    const local = this.#answerLocally(query, guest);
    if (local !== undefined) {
      this.counters.local++;
      const answer = buildAnswer(message, query, local.code, local.records);
      reply(transport === 'udp' && answer.length > PLAIN_UDP_BYTES ? truncated(message, query) : answer);
      return true;
    }
    return this.#forward(guest, message, query, transport, reply);
  }

  #forward(
    guest: object, message: Uint8Array, query: DnsQuery, transport: DnsTransport, reply: (answer: Uint8Array) => void,
  ): boolean {
    const { upstream } = this.#options;
    if (upstream === undefined) {
      reply(buildAnswer(message, query, REFUSED, []));
      return true;
    }
    const pending = this.#pending.get(guest) ?? 0;
    if (this.#total >= MAX_PENDING || pending >= MAX_PENDING_PER_GUEST) {
      this.counters.dropped++;
      return false;
    }
    this.counters.forwarded++;
    this.#pending.set(guest, pending + 1);
    this.#total++;
    const question = message.slice();
    upstream.ask(question, query, transport, (answer) => {
      this.#total--;
      const left = this.#pending.get(guest)! - 1;
      if (left === 0) this.#pending.delete(guest);
      else this.#pending.set(guest, left);
      if (answer === undefined) this.counters.failed++;
      reply(answer ?? buildAnswer(question, query, SERVER_FAILURE, []));
    });
    return true;
  }

  #answerLocally(query: DnsQuery, asker: object): LocalAnswer | undefined {
    if (query.name.endsWith('.in-addr.arpa')) return this.#answerReverse(query, asker);
    const { domain } = this.#options;
    const inDomain = query.name === domain || query.name.endsWith(this.#suffix);
    const label = inDomain ? query.name.slice(0, -this.#suffix.length) : query.name;
    const addresses = this.#addressesOf(label, asker) ?? (inDomain ? undefined : this.#hostAddresses(query.name));
    if (addresses !== undefined) {
      const asked = query.type === TYPE_A || query.type === TYPE_ANY;
      return { code: NO_ERROR, records: asked ? addresses.map(addressRecord) : [] };
    }
    return inDomain ? { code: query.name === domain ? NO_ERROR : NAME_ERROR, records: [] } : undefined;
  }

  #addressesOf(label: string, asker: object): number[] | undefined {
    if (label === 'gateway' || label === 'host') return [this.#options.gatewayAddress];
    const address = this.#options.addressOfGuest(label, asker);
    return address === undefined ? undefined : [address];
  }

  #hostAddresses(name: string): number[] | undefined {
    if (name === 'localhost') return [LOOPBACK_ADDRESS];
    const addresses = this.#options.hosts.lookUp(name);
    if (addresses === undefined) return undefined;
    const seen = addresses.map((address) => {
      return address >>> 24 === 127 && this.#options.hostLoopback ? this.#options.gatewayAddress : address;
    });
    return [...new Set(seen)];
  }

  #answerReverse(query: DnsQuery, asker: object): LocalAnswer | undefined {
    const octets = query.name.split('.').slice(0, -2).reverse();
    const address = parseAddress(octets.join('.'));
    if (address === undefined || !inSubnet(this.#options.subnet, address)) return undefined;
    const name = address === this.#options.gatewayAddress ? 'gateway' : this.#options.guestOfAddress(address, asker);
    if (name === undefined) return { code: NAME_ERROR, records: [] };
    const asked = query.type === TYPE_PTR || query.type === TYPE_ANY;
    return { code: NO_ERROR, records: asked ? [{ type: TYPE_PTR, data: encodeName(name + this.#suffix) }] : [] };
  }
}

/** Says: ask again over TCP. */
function truncated(message: Uint8Array, query: DnsQuery): Uint8Array {
  const answer = buildAnswer(message, query, NO_ERROR, []);
  answer[2]! |= 2;
  return answer;
}

function addressRecord(address: number): DnsRecord {
  const data = new Uint8Array(4);
  writeU32(data, 0, address);
  return { type: TYPE_A, data };
}

