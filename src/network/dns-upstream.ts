// Asks the host's name servers: one socket, source port and id per question, so that a stranger cannot guess what
// answer is awaited. A server that is silent or fails is followed by the next one.

import { createSocket } from 'node:dgram';
import { connect, isIPv6 } from 'node:net';
import type { Random } from '../base/random.ts';
import { isAnswer } from './dns-message.ts';
import type { DnsQuery } from './dns-message.ts';
import type { Scheduler } from './scheduler.ts';
import { readU16, writeU16 } from './wire.ts';

export interface DnsServer {
  readonly address: string;
  readonly port: number;
}

export type DnsTransport = 'udp' | 'tcp';

const ATTEMPT_MILLIS = 2500;
const MAX_ATTEMPTS = 4;

/** Parses what node:dns lists: `10.0.0.1`, `10.0.0.1:5353`, `::1`, `[::1]:5353`. */
export function parseServer(text: string): DnsServer {
  const bracketed = /^\[(.+)\]:(\d+)$/.exec(text) ?? /^([^:]+):(\d+)$/.exec(text);
  return bracketed === null ? { address: text, port: 53 } : { address: bracketed[1]!, port: Number(bracketed[2]) };
}

export class DnsUpstream {
  readonly #servers: readonly DnsServer[];
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #cancels = new Set<() => void>();

  constructor(servers: readonly DnsServer[], scheduler: Scheduler, random: Random) {
    this.#servers = servers;
    this.#scheduler = scheduler;
    this.#random = random;
  }

  /** Calls `done` once: with the answer, its id as in the query, or with undefined if there is none. */
  ask(message: Uint8Array, query: DnsQuery, transport: DnsTransport, done: (answer?: Uint8Array) => void): void {
    const question = message.slice();
    this.#attempt(question, query, transport, 0, (answer) => {
      if (answer !== undefined) writeU16(answer, 0, query.id);
      done(answer);
    });
  }

  /** Gives up on all questions; their `done` is not called. */
  close(): void {
    for (const cancel of [...this.#cancels]) cancel();
    this.#cancels.clear();
  }

  #attempt(
    question: Uint8Array, query: DnsQuery, transport: DnsTransport, index: number, done: (answer?: Uint8Array) => void,
  ): void {
    if (this.#servers.length === 0 || index >= Math.min(MAX_ATTEMPTS, 2 * this.#servers.length)) {
      done();
      return;
    }
    const server = this.#servers[index % this.#servers.length]!;
    const id = this.#random.u32() & 0xffff;
    writeU16(question, 0, id);
    let stop = (): void => {};
    const settle = (answer?: Uint8Array): void => {
      if (!this.#cancels.delete(cancel)) return;
      cancel();
      if (answer !== undefined) done(answer);
      else this.#attempt(question, query, transport, index + 1, done);
    };
    const timer = this.#scheduler.after(ATTEMPT_MILLIS, () => settle());
    const cancel = (): void => {
      timer.cancel();
      stop();
    };
    this.#cancels.add(cancel);
    const accept = (answer: Uint8Array): void => {
      if (isAnswer(answer, question, query.questionEnd, id)) settle(answer);
    };
    const ask = transport === 'udp' ? askByUdp : askByTcp;
    stop = ask(server, question, accept, () => settle());
  }
}

/** Both of them give a function that stops. */
function askByUdp(
  server: DnsServer, question: Uint8Array, accept: (answer: Uint8Array) => void, fail: () => void,
): () => void {
  const socket = createSocket(isIPv6(server.address) ? 'udp6' : 'udp4');
  socket.unref();
  socket.on('error', fail);
  socket.on('message', (answer) => accept(new Uint8Array(answer)));
  socket.connect(server.port, server.address, (error?: Error | null) => {
    if (error === undefined || error === null) socket.send(question);
    else fail();
  });
  let open = true;
  return () => {
    if (open) socket.close();
    open = false;
  };
}

function askByTcp(
  server: DnsServer, question: Uint8Array, accept: (answer: Uint8Array) => void, fail: () => void,
): () => void {
  const socket = connect({ host: server.address, port: server.port });
  socket.unref();
  socket.on('error', fail);
  socket.on('close', fail);
  socket.write(Buffer.concat([Buffer.of(question.length >> 8, question.length & 0xff), question]));
  let received = Buffer.alloc(0);
  socket.on('data', (chunk: Buffer) => {
    received = Buffer.concat([received, chunk]);
    if (received.length < 2 || received.length < 2 + readU16(received, 0)) return;
    accept(new Uint8Array(received.subarray(2, 2 + readU16(received, 0))));
  });
  return () => socket.destroy();
}
