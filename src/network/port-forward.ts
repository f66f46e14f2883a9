// Ports of the host that lead to a guest: `-p 8080:80`. They listen on the host's loopback unless another address is
// named.
//
//   [ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]        8080:80   0.0.0.0:2222:22   5353:53/udp   0:80 (any free port)

import { createSocket } from 'node:dgram';
import { createServer, isIPv4 } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { UsageError, ZazenError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { HostTcpEnd } from './host-tcp.ts';
import type { PortState } from './port-state.ts';
import type { Scheduler } from './scheduler.ts';
import type { TcpStack } from './tcp-stack.ts';
import type { UdpNat } from './udp-nat.ts';

const FIRST_EPHEMERAL = 49152;
const EPHEMERAL_PORTS = 65536 - FIRST_EPHEMERAL;
const PORT_TRIES = 64;

export interface PortForward {
  readonly protocol: 'tcp' | 'udp';
  readonly hostAddress: string;
  /** 0: a free one. */
  readonly hostPort: number;
  readonly guestPort: number;
}

/** A forward that is in force. */
export interface ActiveForward extends PortForward {
  close(): Promise<void>;
}

export interface ForwardContext {
  readonly tcp: TcpStack;
  readonly udp: UdpNat;
  readonly gatewayAddress: number;
  readonly scheduler: Scheduler;
  readonly random: Random;
}

export function parsePortForward(text: string): PortForward {
  const match = /^(?:([^:]+):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/.exec(text);
  const hostPort = Number(match?.[2]);
  const guestPort = Number(match?.[3]);
  const hostAddress = match?.[1] ?? '127.0.0.1';
  if (match === null || hostPort > 65535 || guestPort > 65535 || guestPort === 0 || !isIPv4(hostAddress)) {
    throw new UsageError(`not a port forward: ${text}`, 'write it as [ADDRESS:]HOSTPORT:GUESTPORT[/udp], e.g. 8080:80');
  }
  return { protocol: match[4] === 'udp' ? 'udp' : 'tcp', hostAddress, hostPort, guestPort };
}

export function formatForward({ protocol, hostAddress, hostPort, guestPort }: PortForward): string {
  return `${hostAddress}:${hostPort}:${guestPort}/${protocol}`;
}

/** Listens on the host's port until the forward is closed. @throws ZazenError ZAZEN_PORT_IN_USE, ZAZEN_PORT_FORWARD */
export async function openForward(
  forward: PortForward, port: PortState, context: ForwardContext,
): Promise<ActiveForward> {
  return forward.protocol === 'tcp' ? openTcp(forward, port, context) : openUdp(forward, port, context);
}

async function openTcp(forward: PortForward, port: PortState, context: ForwardContext): Promise<ActiveForward> {
  const server: Server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    connectGuest(socket, forward, port, context);
  });
  await listening(forward, (failed) => {
    server.once('error', failed);
    return new Promise((resolve) => server.listen(forward.hostPort, forward.hostAddress, resolve));
  });
  server.on('error', () => {}); // a client that was gone before it was accepted
  const { port: hostPort } = server.address() as AddressInfo;
  return {
    ...forward,
    hostPort,
    // Not waiting for connections: those end with their guest.
    close: async () => {
      server.close();
    },
  };
}

function connectGuest(socket: Socket, forward: PortForward, port: PortState, context: ForwardContext): void {
  const end = HostTcpEnd.over(socket, { scheduler: context.scheduler, unreachable: () => {} });
  for (let tries = 0; tries < PORT_TRIES; tries++) {
    const connection = context.tcp.connect(port, {
      guestMac: port.port.mac, guestAddress: port.activeAddress, guestPort: forward.guestPort,
      remoteAddress: context.gatewayAddress, remotePort: FIRST_EPHEMERAL + context.random.u32() % EPHEMERAL_PORTS,
    }, end);
    if (connection === undefined) continue;
    end.attach(connection);
    return;
  }
  socket.resetAndDestroy(); // as many connections as there may be
}

async function openUdp(forward: PortForward, port: PortState, context: ForwardContext): Promise<ActiveForward> {
  const socket = createSocket('udp4');
  await listening(forward, (failed) => {
    socket.once('error', failed);
    return new Promise((resolve) => socket.bind(forward.hostPort, forward.hostAddress, resolve));
  });
  socket.on('error', () => {});
  const target = { port, guestPort: forward.guestPort };
  socket.on('message', (payload, from) => context.udp.fromClient(socket, target, payload, from));
  let open = true;
  return {
    ...forward,
    hostPort: socket.address().port,
    close: async () => {
      if (!open) return;
      open = false;
      context.udp.removeForward(socket);
      socket.close();
    },
  };
}

/** Waits for a socket to listen, and says why in the operator's words if it cannot. */
async function listening(
  forward: PortForward, listen: (failed: (error: Error) => void) => Promise<void>,
): Promise<void> {
  const place = `${forward.hostAddress}:${forward.hostPort}/${forward.protocol}`;
  await new Promise<void>((resolve, reject) => {
    void listen((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'EADDRINUSE') {
        reject(new ZazenError('ZAZEN_PORT_IN_USE', `port ${place} of the host is in use`, {
          hint: 'choose another host port, or 0 for any free one', cause,
        }));
      } else {
        reject(new ZazenError('ZAZEN_PORT_FORWARD', `cannot listen on ${place}: ${cause.message}`, { cause }));
      }
    }).then(resolve);
  });
}
