// Bulk TCP through the stack in one process: no sockets, no rings, a far end that does the least it can. Megabytes a
// second each way, with super-frames and blank checksums, and without either. Every byte is compared.
//
//   node src/network/tcp-stack.bench.ts
//
// Beside each figure: how long a plain copy of the same bytes takes, in the same run, and the ratio of the two.

import { assert } from '../base/assert.ts';
import { addBytes, finish, pseudoHeaderSum } from './checksum.ts';
import type { GuestLink, Offload } from './frame-port.ts';
import { CHECKSUM_PARTIAL, NO_FEATURES, NO_OFFLOAD } from './frame-port.ts';
import { Ipv4Header, writeEthernetHeader, writeIpv4Header } from './packet.ts';
import { PortState } from './port-state.ts';
import { Switch } from './switch.ts';
import type { TcpConnection } from './tcp-connection.ts';
import { TcpStack } from './tcp-stack.ts';
import { TestScheduler } from './test-scheduler.ts';
import { ALL_FEATURES, GATEWAY_MAC, pattern, RecordingApplication } from './test-tcp-rig.ts';
import { readU32, writeU16, writeU32 } from './wire.ts';

const TOTAL_BYTES = 128 << 20;
const CHUNK_BYTES = 65536;
const ROUNDS = 5;
const GUEST_MAC = 0x0016_3e00_0001;
const GUEST = 0x0a00_020f;
const REMOTE = 0x5db8_d822;
const SYN = 2;
const ACK = 16;
const source = Buffer.concat(Array.from({ length: 3 }, () => pattern(CHUNK_BYTES, 1)));
const copyTarget = new Uint8Array(CHUNK_BYTES);

interface Rig {
  readonly scheduler: TestScheduler;
  readonly connection: TcpConnection;
  readonly application: RecordingApplication;
  readonly send: (sequence: number, acknowledgment: number, payload: Uint8Array, offload: Offload) => void;
  /** Next number of the gateway's that the guest expects. */
  readonly expects: () => number;
}

class Counter extends RecordingApplication {
  override receive(bytes: Uint8Array): void {
    assert(Buffer.compare(bytes, sourceAt(this.receivedBytes, bytes.length)) === 0, 'other bytes than were sent');
    this.receivedBytes += bytes.length;
  }
}

/** The endless stream of the source. */
function sourceAt(offset: number, length: number): Buffer {
  const start = offset % CHUNK_BYTES;
  return source.subarray(start, start + length);
}

function open(offloads: boolean): Rig {
  const scheduler = new TestScheduler();
  const fabric = new Switch({ mtuBytes: 1500, scheduler });
  const application = new Counter();
  let expects = 0;
  let received = 0;
  let started = false;
  const frame = new Uint8Array(65600);
  const header = new Ipv4Header();
  const stack: TcpStack = new TcpStack({
    scheduler, mac: GATEWAY_MAC, mtuBytes: 1500, random: { u32: () => 1_000_000 },
    deliver: (port, bytes, offload) => fabric.fromGateway(port, bytes, offload),
    offer: (port, bytes, offload) => fabric.offerFromGateway(port, bytes, offload),
    opening: (connection) => {
      application.connection = connection;
      connection.accept();
      return application;
    },
  });
  fabric.gateway = {
    mac: GATEWAY_MAC, portReady() {}, portClosed() {},
    receive: (_port, bytes, offload) => {
      if (header.parse(bytes)) stack.input(state, header, bytes, offload.checksumPartial);
    },
  };
  const link: GuestLink = {
    features: offloads ? ALL_FEATURES : NO_FEATURES,
    receive(bytes, offload) {
      const length = bytes.length - 54;
      if (!started) {
        started = true;
        expects = (readU32(bytes, 38) + 1) >>> 0;
        return true;
      }
      if (length === 0) return true;
      if (!offload.checksumPartial) {
        const sum = pseudoHeaderSum(REMOTE, GUEST, 6, length + 20);
        assert(finish(addBytes(sum, bytes, 34, bytes.length)) === 0, 'a wrong checksum');
      }
      assert(readU32(bytes, 38) === expects, 'out of order');
      assert(Buffer.compare(bytes.subarray(54), sourceAt(received, length)) === 0, 'other bytes than were sent');
      received += length;
      expects = (expects + length) >>> 0;
      const at = expects;
      scheduler.soon(() => send(1001, at, EMPTY, offloads ? CHECKSUM_PARTIAL : NO_OFFLOAD));
      return true;
    },
    writable() {},
  };
  const port = fabric.attach(link, { mac: GUEST_MAC });
  const state = new PortState(port, { address: GUEST, mtuBytes: 1500 });
  const send = (sequence: number, acknowledgment: number, payload: Uint8Array, offload: Offload, syn = false): void => {
    const tcpBytes = (syn ? 28 : 20) + payload.length;
    writeEthernetHeader(frame, GATEWAY_MAC, GUEST_MAC, 0x0800);
    writeIpv4Header(frame, { source: GUEST, destination: REMOTE, protocol: 6, totalBytes: 20 + tcpBytes });
    writeU32(frame, 34, (1234 << 16) | 80);
    writeU32(frame, 38, sequence);
    writeU32(frame, 42, acknowledgment);
    writeU16(frame, 46, syn ? 0x7000 | SYN : 0x5000 | ACK);
    writeU32(frame, 48, 0xffff_0000);
    writeU16(frame, 52, 0);
    if (syn) frame.set([2, 4, 5, 0xb4, 1, 3, 3, 7], 54);
    frame.set(payload, 34 + tcpBytes - payload.length);
    if (!offload.checksumPartial) {
      const sum = pseudoHeaderSum(GUEST, REMOTE, 6, tcpBytes);
      writeU16(frame, 50, finish(addBytes(sum, frame, 34, 34 + tcpBytes)));
    }
    port.send(frame.subarray(0, 34 + tcpBytes), offload);
  };
  send(1000, 0, EMPTY, NO_OFFLOAD, true);
  send(1001, expects, EMPTY, NO_OFFLOAD);
  scheduler.settle();
  assert(application.isConnected, 'no connection');
  return { scheduler, connection: application.connection!, application, send, expects: () => expects };
}

function toGuest(rig: Rig): void {
  const { connection } = rig;
  let written = 0;
  const start = connection.sender.una;
  while (((connection.sender.una - start) >>> 0) < TOTAL_BYTES) {
    while (written < TOTAL_BYTES && connection.sender.queue.length < 8 * CHUNK_BYTES) {
      connection.write(source.subarray(0, CHUNK_BYTES));
      written += CHUNK_BYTES;
    }
    rig.scheduler.settle();
  }
}

function fromGuest(rig: Rig, segmentBytes: number, offload: Offload): void {
  for (let sent = 0; sent < TOTAL_BYTES;) {
    for (let batch = 0; batch < 4 * CHUNK_BYTES && sent < TOTAL_BYTES;) {
      const length = Math.min(segmentBytes, TOTAL_BYTES - sent);
      rig.send((1001 + sent) >>> 0, rig.expects(), sourceAt(sent, length), offload);
      sent += length;
      batch += length;
    }
    rig.scheduler.settle();
  }
  assert(rig.application.receivedBytes === TOTAL_BYTES, 'bytes are missing');
}

function copy(): void {
  for (let done = 0; done < TOTAL_BYTES; done += CHUNK_BYTES) copyTarget.set(source.subarray(0, CHUNK_BYTES), 0);
}

function medianMillis(run: () => void): number {
  const samples = Array.from({ length: ROUNDS }, () => {
    const started = performance.now();
    run();
    return performance.now() - started;
  });
  return samples.toSorted((a, b) => a - b)[ROUNDS >> 1]!;
}

const EMPTY = new Uint8Array(0);
const gso: Offload = { checksumPartial: true, gsoSize: 1460, gsoType: 'tcpv4' };
const copyMillis = medianMillis(copy);
const rows: [string, () => void][] = [
  ['to the guest, super-frames', () => toGuest(open(true))],
  ['to the guest, plain segments', () => toGuest(open(false))],
  ['from the guest, super-frames', () => fromGuest(open(true), 44 * 1460, gso)],
  ['from the guest, plain segments', () => fromGuest(open(false), 1460, NO_OFFLOAD)],
];
for (const [name, run] of rows) {
  const millis = medianMillis(run);
  const megabytes = Math.round(TOTAL_BYTES / 1e3 / millis);
  const ratio = (millis / copyMillis).toFixed(1);
  console.log(`${name.padEnd(32)} ${String(megabytes).padStart(6)} MB/s   ${ratio} × a plain copy`);
}
