// UDP through the host: outwards, one host socket per socket of a guest; inwards, forwarded ports.
//
//   guest 10.0.2.15:5000 ──► flow (host socket) ──► any address the guest sends to; answers from these addresses alone
//   client ──► forward (host socket) ──► guest:port, from the gateway's address and a port that stands for the client
//
// Flows and clients are bounded and forgotten after a time without traffic, the longest unused first.

import { createSocket } from 'node:dgram';
import type { RemoteInfo, Socket } from 'node:dgram';
import { formatAddress, parseAddress } from './addresses.ts';
import type { PortState } from './port-state.ts';
import type { Scheduler, Timer } from './scheduler.ts';

const MAX_FLOWS_PER_GUEST = 256;
const MAX_PEERS_PER_FLOW = 256;
const MAX_CLIENTS = 1024;
const IDLE_MILLIS = 120_000;
const SWEEP_MILLIS = 15_000;
/** What may wait in a host socket. */
const MAX_WAITING_BYTES = 1 << 20;
const DATAGRAM_OVERHEAD_BYTES = 512;
const FIRST_CLIENT_PORT = 49152;
const MAX_DATAGRAM_BYTES = 65507;

/** A datagram as a guest sees it. */
export interface Datagram {
  readonly guestMac: number;
  readonly guestAddress: number;
  readonly guestPort: number;
  readonly remoteAddress: number;
  readonly remotePort: number;
}

export interface UdpNatOptions {
  readonly scheduler: Scheduler;
  readonly gatewayAddress: number;
  readonly deliver: (port: PortState, datagram: Datagram, payload: Uint8Array) => void;
}

/** A socket with the bytes given to it that have not gone out. */
interface Outlet {
  readonly socket: Socket;
  waitingBytes: number;
}

interface Flow extends Outlet {
  /** By the host's address of a peer: the address that the guest knows it by. */
  readonly peers: Map<number, number>;
  usedMillis: number;
}

/** Who may receive what comes on a forwarded port: a guest, wherever it is just now. */
export interface ForwardTarget {
  readonly port: PortState;
  readonly guestPort: number;
}

interface Client extends Outlet {
  readonly key: string;
  readonly target: ForwardTarget;
  readonly address: string;
  readonly hostPort: number;
  usedMillis: number;
}

export class UdpNat {
  readonly #options: UdpNatOptions;
  /** Flows of a guest by its address and port. */
  readonly #flows = new Map<PortState, Map<number, Flow>>();
  /** Clients of forwarded ports by the gateway port that stands for them, and those ports by client. */
  readonly #clients = new Map<number, Client>();
  readonly #clientPorts = new Map<string, number>();
  readonly #sweep = () => this.#dropIdle();
  #nextClientPort = FIRST_CLIENT_PORT;
  #timer: Timer | undefined;
  readonly counters = { out: 0, in: 0, dropped: 0 };

  constructor(options: UdpNatOptions) {
    this.#options = options;
  }

  get flows(): number {
    return [...this.#flows.values()].reduce((sum, flows) => sum + flows.size, 0);
  }

  get clients(): number {
    return this.#clients.size;
  }

  /** Sends a guest's datagram to `hostAddress`, which the guest knows as datagram.remoteAddress. */
  send(port: PortState, datagram: Datagram, hostAddress: number, payload: Uint8Array): void {
    const flow = this.#flowOf(port, datagram);
    flow.usedMillis = this.#options.scheduler.nowMillis();
    if (!flow.peers.has(hostAddress) && flow.peers.size >= MAX_PEERS_PER_FLOW) dropFirst(flow.peers);
    flow.peers.set(hostAddress, datagram.remoteAddress);
    this.#sendBy(flow, payload, datagram.remotePort, formatAddress(hostAddress));
  }

  /** Sends a guest's answer to the client of a forwarded port; false if the gateway's port stands for none. */
  answerClient(port: PortState, datagram: Datagram, payload: Uint8Array): boolean {
    const client = this.#clients.get(datagram.remotePort);
    if (client?.target.port !== port || client.target.guestPort !== datagram.guestPort) return false;
    client.usedMillis = this.#options.scheduler.nowMillis();
    this.#sendBy(client, payload, client.hostPort, client.address);
    return true;
  }

  /** A datagram came on a forwarded port. */
  fromClient(socket: Socket, target: ForwardTarget, payload: Uint8Array, from: RemoteInfo): void {
    const remotePort = this.#clientPort(socket, target, from);
    this.counters.in++;
    this.#options.deliver(target.port, {
      guestMac: target.port.port.mac, guestAddress: target.port.activeAddress, guestPort: target.guestPort,
      remoteAddress: this.#options.gatewayAddress, remotePort,
    }, payload);
  }

  /** Forgets the clients of a forwarded port that is closed. */
  removeForward(socket: Socket): void {
    for (const [gatewayPort, client] of this.#clients) {
      if (client.socket === socket) this.#removeClient(gatewayPort, client);
    }
  }

  /** Closes a guest's flows. */
  remove(port: PortState): void {
    for (const { socket } of this.#flows.get(port)?.values() ?? []) socket.close();
    this.#flows.delete(port);
    for (const [gatewayPort, client] of this.#clients) {
      if (client.target.port === port) this.#removeClient(gatewayPort, client);
    }
  }

  close(): void {
    for (const port of [...this.#flows.keys()]) this.remove(port);
    this.#clients.clear();
    this.#clientPorts.clear();
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #sendBy(outlet: Outlet, payload: Uint8Array, port: number, address: string): void {
    const tooMuch = payload.length > MAX_DATAGRAM_BYTES || outlet.waitingBytes > MAX_WAITING_BYTES;
    if (port === 0 || tooMuch) {
      this.counters.dropped++;
      return;
    }
    this.counters.out++;
    outlet.waitingBytes += payload.length + DATAGRAM_OVERHEAD_BYTES;
    outlet.socket.send(Buffer.from(payload), port, address, (error) => {
      outlet.waitingBytes -= payload.length + DATAGRAM_OVERHEAD_BYTES;
      if (error !== null) this.counters.dropped++;
    });
  }

  #flowOf(port: PortState, datagram: Datagram): Flow {
    let flows = this.#flows.get(port);
    if (flows === undefined) {
      flows = new Map();
      this.#flows.set(port, flows);
    }
    const key = datagram.guestAddress * 65536 + datagram.guestPort;
    let flow = flows.get(key);
    if (flow === undefined) {
      if (flows.size >= MAX_FLOWS_PER_GUEST) dropLongestUnused(flows, (dropped) => dropped.socket.close());
      flow = this.#openFlow(port, datagram, (failed) => {
        if (flows.get(key) === failed && flows.delete(key)) failed.socket.close();
      });
      flows.set(key, flow);
      this.#startSweep();
    }
    return flow;
  }

  #openFlow(port: PortState, datagram: Datagram, failed: (flow: Flow) => void): Flow {
    // Addresses are numbers in text already: nothing is to be looked up.
    const socket = createSocket({ type: 'udp4', lookup: (address, _options, found) => found(null, address, 4) });
    socket.unref();
    const peers = new Map<number, number>();
    const { guestMac, guestAddress, guestPort } = datagram;
    socket.on('message', (payload, from) => {
      const remoteAddress = peers.get(parseAddress(from.address) ?? -1);
      if (remoteAddress === undefined) {
        this.counters.dropped++;
        return;
      }
      flow.usedMillis = this.#options.scheduler.nowMillis();
      this.counters.in++;
      const answer = { guestMac, guestAddress, guestPort, remoteAddress, remotePort: from.port };
      this.#options.deliver(port, answer, payload);
    });
    const flow: Flow = { socket, peers, usedMillis: 0, waitingBytes: 0 };
    socket.on('error', () => failed(flow));
    return flow;
  }

  #clientPort(socket: Socket, target: ForwardTarget, from: RemoteInfo): number {
    const key = `${target.port.port.mac} ${target.guestPort} ${socket.address().port} ${from.address} ${from.port}`;
    const known = this.#clientPorts.get(key);
    const nowMillis = this.#options.scheduler.nowMillis();
    if (known !== undefined) {
      this.#clients.get(known)!.usedMillis = nowMillis;
      return known;
    }
    if (this.#clients.size >= MAX_CLIENTS) {
      dropLongestUnused(this.#clients, (client) => this.#clientPorts.delete(client.key));
    }
    while (this.#clients.has(this.#nextClientPort)) this.#nextClientPort = nextPort(this.#nextClientPort);
    const gatewayPort = this.#nextClientPort;
    this.#nextClientPort = nextPort(gatewayPort);
    this.#clients.set(gatewayPort, {
      key, socket, target, address: from.address, hostPort: from.port, usedMillis: nowMillis, waitingBytes: 0,
    });
    this.#clientPorts.set(key, gatewayPort);
    this.#startSweep();
    return gatewayPort;
  }

  #removeClient(gatewayPort: number, client: Client): void {
    this.#clients.delete(gatewayPort);
    this.#clientPorts.delete(client.key);
  }

  #startSweep(): void {
    this.#timer ??= this.#options.scheduler.after(SWEEP_MILLIS, this.#sweep);
  }

  #dropIdle(): void {
    this.#timer = undefined;
    const before = this.#options.scheduler.nowMillis() - IDLE_MILLIS;
    for (const [port, flows] of this.#flows) {
      for (const [key, flow] of flows) {
        if (flow.usedMillis > before) continue;
        flow.socket.close();
        flows.delete(key);
      }
      if (flows.size === 0) this.#flows.delete(port);
    }
    for (const [gatewayPort, client] of this.#clients) {
      if (client.usedMillis <= before) this.#removeClient(gatewayPort, client);
    }
    if (this.#flows.size > 0 || this.#clients.size > 0) this.#startSweep();
  }
}

function nextPort(port: number): number {
  return port === 65535 ? FIRST_CLIENT_PORT : port + 1;
}

function dropFirst<K>(map: Map<K, unknown>): void {
  for (const key of map.keys()) {
    map.delete(key);
    return;
  }
}

function dropLongestUnused<K, V extends { usedMillis: number }>(map: Map<K, V>, dropped: (value: V) => void): void {
  let oldest: [K, V] | undefined;
  for (const entry of map) if (oldest === undefined || entry[1].usedMillis < oldest[1].usedMillis) oldest = entry;
  if (oldest === undefined) return;
  map.delete(oldest[0]);
  dropped(oldest[1]);
}
