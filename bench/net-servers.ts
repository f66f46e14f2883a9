// The host's half of the network benchmark, in a thread of its own, so that what it does is not on the thread that
// works for a guest's card: servers that measure what the guest does with them. Says its ports, and when it is asked,
// what it measured.

import { createServer as createHttpServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../src/base/assert.ts';

/** What is to be measured. */
export interface ServersWork {
  readonly transferBytes: number;
  readonly lines: number;
}

const MIB = 2 ** 20;

export interface Measured {
  /** MiB a second, each transfer. */
  readonly intoGuest: number[];
  readonly outOfGuest: number[];
  /** Microseconds, each line. */
  readonly answerMicros: number[];
}

const { transferBytes, lines } = workerData as ServersWork;
const measured: Measured = { intoGuest: [], outOfGuest: [], answerMicros: [] };

async function listening(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

const mibPerSecond = (millis: number): number => transferBytes / MIB / (millis / 1000);

const body = Buffer.alloc(transferBytes, 'zazen');
const source = createHttpServer((_request, response: ServerResponse) => {
  const start = performance.now();
  response.socket!.once('close', () => measured.intoGuest.push(mibPerSecond(performance.now() - start)));
  response.setHeader('Connection', 'close').end(body);
});
const sink = createServer({ allowHalfOpen: true }, (socket) => {
  const start = performance.now();
  let bytes = 0;
  socket.on('data', (chunk: Buffer) => { bytes += chunk.length; }).on('end', () => {
    measured.outOfGuest.push(mibPerSecond(performance.now() - start));
    assert(bytes === transferBytes, `${bytes} bytes arrived`);
    socket.end();
  });
});
const asker = createServer((socket) => void ask(socket, measured.answerMicros));

async function ask(socket: Socket, answerMicros: number[]): Promise<void> {
  socket.setNoDelay(true);
  for (let line = 0; line < lines; line++) {
    const text = `line ${line}\n`;
    const start = performance.now();
    socket.write(text);
    for (let answer = ''; answer.length < text.length;) {
      answer += String(await new Promise<Buffer>((resolve) => socket.once('data', resolve)));
      if (answer.length >= text.length) assert(answer === text, 'the guest answered something else');
    }
    answerMicros.push((performance.now() - start) * 1000);
  }
  socket.end();
}

const all = [source, sink, asker];
parentPort!.postMessage(await Promise.all(all.map(listening)));
parentPort!.once('message', () => parentPort!.postMessage(measured));
