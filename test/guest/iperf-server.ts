// The far end of iperf3's transfers, written from its protocol: a guest runs Debian's iperf3 against it.
//
//   control connection (TCP)                       streams (TCP or UDP, to the same port)
//   cookie, 37 bytes                     ◄──
//   PARAM_EXCHANGE ──►  length, JSON     ◄──
//   CREATE_STREAMS ──►                             each begins with the cookie, or with a word that is answered
//   TEST_START, TEST_RUNNING ──►                   data, by the guest, or with `reverse` by this end
//   TEST_END                             ◄──
//   EXCHANGE_RESULTS ──►  length, JSON   ◄──  then ours ──►
//   DISPLAY_RESULTS ──►  IPERF_DONE      ◄──       closed
//
// One test at a time, as with iperf3 itself.

import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import type { RemoteInfo, Socket as UdpSocket } from 'node:dgram';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { freePort } from '../free-port.ts';

const COOKIE_BYTES = 37;
const STATE = {
  start: 1, running: 2, end: 4, paramExchange: 9, createStreams: 10, exchangeResults: 13, displayResults: 14, done: 16,
} as const;
const UDP_HELLO = 0x3637_3839;
const UDP_ANSWER = 0x3938_3736;
/** Sent one after the other before the loop is left to others. */
const DATAGRAMS_A_TURN = 4;

export interface IperfResult {
  /** Of payload that this end has received, all of it, whenever it came. */
  readonly receivedBytes: number;
  readonly sentBytes: number;
  /** Of UDP: received, and counted by the sender. */
  readonly packets: number;
  readonly sentPackets: number;
  /** What the other end says of its streams. */
  readonly theirBytes: number;
}

interface Parameters {
  readonly udp?: boolean;
  readonly reverse?: boolean;
  readonly parallel: number;
  readonly len: number;
}

export class IperfServer {
  readonly #server: Server;
  readonly #udp: UdpSocket = createSocket('udp4');
  readonly #results: IperfResult[] = [];
  #waiting: ((result: IperfResult) => void) | undefined;
  #test: IperfTest | undefined;

  private constructor() {
    this.#server = createServer((socket) => void this.#accept(socket));
    this.#udp.on('message', (payload, from) => this.#test?.datagram(this.#udp, payload, from));
  }

  static async listen(): Promise<IperfServer> {
    const server = new IperfServer();
    const port = await freePort();
    await new Promise<void>((resolve) => server.#server.listen(port, '127.0.0.1', resolve));
    await new Promise<void>((resolve) => server.#udp.bind(port, '127.0.0.1', resolve));
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Of the next test that ends, or the first one that nobody has asked for. */
  async result(): Promise<IperfResult> {
    return this.#results.shift() ?? new Promise((resolve) => { this.#waiting = resolve; });
  }

  close(): void {
    this.#server.close();
    this.#udp.close();
  }

  async #accept(socket: Socket): Promise<void> {
    socket.on('error', () => {});
    const reader = new Reader(socket);
    const cookie = String(await reader.take(COOKIE_BYTES));
    if (this.#test?.cookie === cookie) return this.#test.stream(socket, reader);
    assert(this.#test === undefined, 'two tests at once');
    const test = this.#test = new IperfTest(cookie, socket, reader);
    const result = await test.run();
    this.#test = undefined;
    if (this.#waiting === undefined) this.#results.push(result);
    else this.#waiting(result);
    this.#waiting = undefined;
  }
}

class IperfTest {
  readonly cookie: string;
  readonly #control: Socket;
  readonly #reader: Reader;
  readonly #streams: Socket[] = [];
  readonly #peers: RemoteInfo[] = [];
  readonly #streamsThere = Promise.withResolvers<void>();
  #parameters!: Parameters;
  readonly #closed: Promise<unknown>[] = [];
  #hasEnded = false;
  #receivedBytes = 0;
  #sentBytes = 0;
  #packets = 0;
  #sentPackets = 0;

  constructor(cookie: string, control: Socket, reader: Reader) {
    this.cookie = cookie;
    this.#control = control;
    this.#reader = reader;
  }

  async run(): Promise<IperfResult> {
    this.#say(STATE.paramExchange);
    this.#parameters = await this.#readJson() as unknown as Parameters;
    this.#say(STATE.createStreams);
    await this.#streamsThere.promise;
    this.#say(STATE.start);
    this.#say(STATE.running);
    const sending = this.#parameters.reverse === true ? this.#send() : undefined;
    await this.#expect(STATE.end);
    this.#hasEnded = true;
    await sending;
    this.#say(STATE.exchangeResults);
    const theirs = await this.#readJson() as { streams: { bytes: number; packets: number }[] };
    const streams = Array.from({ length: this.#parameters.parallel }, (_, i) => ({
      id: 2 * i + 1, bytes: i === 0 ? this.#sentBytes + this.#receivedBytes : 0, retransmits: -1, jitter: 0, errors: 0,
      packets: i === 0 ? Math.max(this.#packets, this.#sentPackets) : 0, start_time: 0, end_time: 1,
    }));
    const results = JSON.stringify({ cpu_util_total: 0, cpu_util_user: 0, cpu_util_system: 0, sender_has_retransmits: -1, streams });
    const length = Buffer.alloc(4);
    length.writeUInt32BE(results.length);
    this.#control.write(Buffer.concat([length, Buffer.from(results)]));
    this.#say(STATE.displayResults);
    await this.#expect(STATE.done);
    this.#control.end();
    await Promise.all(this.#closed);
    return {
      receivedBytes: this.#receivedBytes, sentBytes: this.#sentBytes, packets: this.#packets, sentPackets: this.#sentPackets,
      theirBytes: theirs.streams.reduce((sum, { bytes }) => sum + bytes, 0),
    };
  }

  stream(socket: Socket, reader: Reader): void {
    this.#closed.push(new Promise((resolve) => socket.once('close', resolve)));
    this.#streams.push(socket);
    this.#receivedBytes += reader.rest((chunk) => { this.#receivedBytes += chunk.length; });
    if (this.#streams.length === this.#parameters.parallel) this.#streamsThere.resolve();
  }

  datagram(socket: UdpSocket, payload: Buffer, from: RemoteInfo): void {
    if (payload.length === 4 && payload.readUInt32LE() === UDP_HELLO) {
      const answer = Buffer.alloc(4);
      answer.writeUInt32LE(UDP_ANSWER);
      socket.send(answer, from.port, from.address);
      this.#peers.push(from);
      this.#udp = socket;
      if (this.#peers.length === this.#parameters.parallel) this.#streamsThere.resolve();
      return;
    }
    // Seconds, microseconds and the packet's number: 32 bits each.
    assert.equal(payload.length, this.#parameters.len);
    this.#receivedBytes += payload.length;
    this.#packets++;
    this.#sentPackets = Math.max(this.#sentPackets, payload.readUInt32BE(8));
  }
  #udp: UdpSocket | undefined;

  /** Until the guest has what it wants. */
  async #send(): Promise<void> {
    const payload = Buffer.alloc(this.#parameters.len, 'zazen');
    while (!this.#hasEnded) {
      for (const stream of this.#streams) {
        if (stream.writableNeedDrain) continue;
        stream.write(payload);
        this.#sentBytes += payload.length;
      }
      for (const { port, address } of this.#peers) for (let i = 0; i < DATAGRAMS_A_TURN; i++) {
        const datagram = Buffer.from(payload);
        datagram.writeUInt32BE(++this.#sentPackets, 8);
        this.#udp!.send(datagram, port, address);
        this.#sentBytes += datagram.length;
      }
      await turn();
    }
    for (const stream of this.#streams) stream.end();
  }

  #say(state: number): void {
    this.#control.write(Uint8Array.of(state));
  }
  async #expect(state: number): Promise<void> {
    assert.deepEqual([...await this.#reader.take(1)], [state]);
  }
  async #readJson(): Promise<object> {
    const length = (await this.#reader.take(4)).readUInt32BE();
    return JSON.parse(String(await this.#reader.take(length))) as object;
  }
}

/** So many bytes of a socket at a time. */
class Reader {
  readonly #socket: Socket;
  #held = Buffer.alloc(0);
  #arrived = Promise.withResolvers<void>();
  #onData = (chunk: Buffer): void => {
    this.#held = Buffer.concat([this.#held, chunk]);
    this.#arrived.resolve();
  };

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', this.#onData).once('close', () => this.#arrived.reject(new Error('the connection has ended')));
    this.#arrived.promise.catch(() => {});
  }

  async take(count: number): Promise<Buffer> {
    while (this.#held.length < count) {
      await this.#arrived.promise;
      this.#arrived = Promise.withResolvers();
      this.#arrived.promise.catch(() => {});
      if (this.#socket.destroyed && this.#held.length < count) throw new Error('the connection has ended');
    }
    const taken = this.#held.subarray(0, count);
    this.#held = this.#held.subarray(count);
    return taken;
  }

  /** All that is yet to come goes there. @returns bytes that were here */
  rest(onData: (chunk: Buffer) => void): number {
    this.#socket.off('data', this.#onData).on('data', onData);
    return this.#held.length;
  }
}
