// Ports of the host that lead to a guest (port-forward.ts): listening, and a connection or a flow for each client.

import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { ZazenError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { HostTcpEnd } from './host-tcp.ts';
import type { ActiveForward, PortForward } from './port-forward.ts';
import type { PortState } from './port-state.ts';
import type { Scheduler } from './scheduler.ts';
import type { TcpStack } from './tcp-stack.ts';
import type { UdpNat } from './udp-nat.ts';

const FIRST_EPHEMERAL = 49152;
const EPHEMERAL_PORTS = 65536 - FIRST_EPHEMERAL;
const PORT_TRIES = 64;

export interface ForwardContext {
  readonly tcp: TcpStack;
  readonly udp: UdpNat;
  readonly gatewayAddress: number;
  readonly scheduler: Scheduler;
  readonly random: Random;
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
