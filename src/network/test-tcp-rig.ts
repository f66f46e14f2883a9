// For tests: the gateway's TCP with one guest, time in the test's hand, and applications that record what happens.

import { SeededRandom } from '../base/random.ts';
import { parseSubnet } from './addresses.ts';
import type { LinkFeatures } from './frame-port.ts';
import { Ipv4Header } from './packet.ts';
import { PortState } from './port-state.ts';
import { Switch } from './switch.ts';
import type { CloseReason, TcpApplication } from './tcp-application.ts';
import type { TcpConnection } from './tcp-connection.ts';
import { TcpStack } from './tcp-stack.ts';
import { TestGuest } from './test-guest.ts';
import type { Wire } from './test-guest.ts';
import { TestScheduler } from './test-scheduler.ts';

export const GATEWAY_MAC = 0x525a_0a00_0202;
export const ALL_FEATURES: LinkFeatures = { checksumPartial: true, tsoV4: true, tsoV6: true };

export class RecordingApplication implements TcpApplication {
  connection: TcpConnection | undefined;
  isConnected = false;
  chunks: Buffer[] = [];
  receivedBytes = 0;
  isEnded = false;
  closedFor: CloseReason | undefined;
  /** What it says that it has not passed on. */
  held = 0;
  /** Keeps all that it receives until `release`. */
  keeps = false;
  flushes = 0;

  connected(): void {
    this.isConnected = true;
  }

  receive(bytes: Uint8Array): void {
    this.chunks.push(Buffer.from(bytes));
    this.receivedBytes += bytes.length;
    if (this.keeps) this.held += bytes.length;
  }

  flush(): void {
    this.flushes++;
  }

  heldBytes(): number {
    return this.held;
  }

  ended(): void {
    this.isEnded = true;
  }

  drained(): void {}

  closed(reason: CloseReason): void {
    this.closedFor = reason;
  }

  release(): void {
    this.held = 0;
    this.keeps = false;
    this.connection!.released();
  }

  get received(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

export interface TcpRig {
  readonly scheduler: TestScheduler;
  readonly guest: TestGuest;
  readonly stack: TcpStack;
  readonly state: PortState;
  readonly port: PortState['port'];
  /** In order of the guest's SYNs. */
  readonly applications: RecordingApplication[];
}

export function createTcpRig(options: {
  seed?: number; features?: LinkFeatures; wire?: Omit<Wire, 'random'>; budgetBytes?: number; mtuBytes?: number;
  /** By default every connection is accepted at once. */
  opening?: (connection: TcpConnection, application: RecordingApplication) => void;
} = {}): TcpRig {
  const random = new SeededRandom(options.seed ?? 1);
  const scheduler = new TestScheduler();
  const mtuBytes = options.mtuBytes ?? 1500;
  const fabric = new Switch({ mtuBytes, scheduler });
  const applications: RecordingApplication[] = [];
  const stack: TcpStack = new TcpStack({
    scheduler, random, mac: GATEWAY_MAC, mtuBytes,
    deliver: (port, frame, offload) => fabric.fromGateway(port, frame, offload),
    offer: (port, frame, offload) => fabric.offerFromGateway(port, frame, offload),
    opening: (connection) => {
      const application = new RecordingApplication();
      application.connection = connection;
      applications.push(application);
      if (options.opening === undefined) connection.accept();
      else options.opening(connection, application);
      return application;
    },
  });
  const header = new Ipv4Header();
  fabric.gateway = {
    mac: GATEWAY_MAC,
    receive: (_port, frame, offload) => {
      if (header.parse(frame)) stack.input(state, header, frame, offload.checksumPartial);
    },
    portReady: () => stack.portReady(state),
    portClosed: () => stack.remove(state),
  };
  const wire = options.wire === undefined ? undefined : { ...options.wire, random };
  const guest = new TestGuest({ scheduler, features: options.features, wire });
  const port = fabric.attach(guest, { mac: 0x0016_3e00_0001 });
  guest.port = port;
  const address = parseSubnet('10.0.2.0/24').network + 15;
  const state = new PortState(port, { address, mtuBytes, budgetBytes: options.budgetBytes });
  return { scheduler, guest, stack, state, port, applications };
}

/** Bytes that show where they belong. */
export function pattern(count: number, seed: number): Buffer {
  const random = new SeededRandom(seed);
  const bytes = Buffer.alloc(count + 3);
  for (let i = 0; i < count; i += 4) bytes.writeUInt32LE(random.u32(), i);
  return bytes.subarray(0, count);
}
