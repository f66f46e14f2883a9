// A guest's network through user-mode networking, in Zazen and in QEMU (-netdev user, virtio-net) in turn, with the
// same kernel, programs and sockets of the host: bytes a second in and out, and how long the guest takes to answer a
// line. Times are the host's: from a request until the guest has closed, from the first connection until the last
// byte, from a line sent until it is back. What is checked: every byte that arrives is counted, and every line
// compared.

import { createServer as createHttpServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { assert } from '../src/base/assert.ts';
import { prepareGuest } from '../src/guest/initramfs.ts';
import { Host } from '../src/host/index.ts';
import { bootQemu, findQemu, qemuMissing } from './peers/qemu.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const RUNS = 3;
const TRANSFER_BYTES = 64 << 20;
const REPEATS = 3;
const LINES = 300;
const MEMORY_MIB = 256;
const HOST_ADDRESS = '10.0.2.2';
const MIB = 2 ** 20;
const DONE = 'net-bench done';

interface Measured {
  /** MiB a second, each transfer. */
  readonly intoGuest: number[];
  readonly outOfGuest: number[];
  /** Microseconds, each line. */
  readonly answerMicros: number[];
}

async function listening(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

const mibPerSecond = (millis: number): number => TRANSFER_BYTES / MIB / (millis / 1000);

/** The host's half: servers that measure what the guest does with them. */
async function withServers(measured: Measured, work: (command: string) => Promise<void>): Promise<void> {
  const body = Buffer.alloc(TRANSFER_BYTES, 'zazen');
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
      assert(bytes === TRANSFER_BYTES, `${bytes} bytes arrived`);
      socket.end();
    });
  });
  const asker = createServer((socket) => void ask(socket, measured.answerMicros));
  const servers = [source, sink, asker];
  const [sourcePort, sinkPort, askerPort] = await Promise.all(servers.map(listening)) as [number, number, number];
  const times = Array.from({ length: REPEATS }, (_, i) => i).join(' ');
  try {
    await work([
      `for i in ${times}; do wget -q -O /dev/null http://${HOST_ADDRESS}:${sourcePort}/; done`,
      `for i in ${times}; do nc ${HOST_ADDRESS} ${sinkPort} -e dd if=/dev/zero bs=64k count=${TRANSFER_BYTES / 65536} 2>/dev/null; done`,
      `nc ${HOST_ADDRESS} ${askerPort} -e cat`,
      `echo ${DONE}`,
    ].join('; '));
  } finally {
    for (const server of servers) server.close();
  }
}

async function ask(socket: Socket, answerMicros: number[]): Promise<void> {
  socket.setNoDelay(true);
  for (let line = 0; line < LINES; line++) {
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

async function runZazen(command: string): Promise<void> {
  await using host = await Host.start({ memory: '1GiB' });
  const domain = await host.create({ memory: `${MEMORY_MIB}MiB`, cmdline: 'quiet', nics: [{}], exec: command });
  let output = '';
  domain.exec!.output.on('data', (chunk: Buffer) => { output += String(chunk); });
  const { status } = await domain.exec!.result;
  assert(status === 0 && output.includes(DONE), 'the guest did not finish');
  const [nic] = domain.stats().nics;
  assert(nic!.rxBytes > REPEATS * TRANSFER_BYTES && nic!.txBytes > REPEATS * TRANSFER_BYTES, 'bytes are missing');
  assert(nic!.rxErrors + nic!.txErrors === 0, 'there were errors');
}

async function runQemu(qemu: string, command: string): Promise<void> {
  const { kernelPath, initramfsPath } = await prepareGuest({ devices: 'virtio' });
  const { output } = await bootQemu(qemu, {
    kernelPath, initramfsPath, memoryMib: MEMORY_MIB, marker: DONE,
    cmdline: `quiet zazen.exec=${Buffer.from(command).toString('base64')}`,
    devices: ['-netdev', 'user,id=net', '-device', 'virtio-net-device,netdev=net'],
  });
  assert(output.includes(DONE), 'the guest in QEMU did not finish');
}

async function measure(run: (command: string) => Promise<void>): Promise<Measured> {
  const measured: Measured = { intoGuest: [], outOfGuest: [], answerMicros: [] };
  await withServers(measured, run);
  assert(measured.intoGuest.length === REPEATS && measured.outOfGuest.length === REPEATS, 'transfers are missing');
  assert(measured.answerMicros.length === LINES, 'answers are missing');
  return measured;
}

function merge(all: readonly Measured[]) {
  const gather = (pick: (one: Measured) => readonly number[]) => summarize(all.flatMap(pick));
  return {
    intoGuestMibPerSecond: gather(({ intoGuest }) => intoGuest),
    outOfGuestMibPerSecond: gather(({ outOfGuest }) => outOfGuest),
    answerMicros: gather(({ answerMicros }) => answerMicros),
  };
}

const benchmark: Benchmark = {
  name: 'net',
  description: `${TRANSFER_BYTES / MIB} MiB into and out of a guest, and ${LINES} lines answered, in Zazen and QEMU`,
  async run({ log }) {
    const qemu = findQemu();
    if (qemu === undefined) log(qemuMissing);
    const ours: Measured[] = [];
    const theirs: Measured[] = [];
    for (let i = 0; i < RUNS; i++) {
      ours.push(await measure(runZazen));
      if (qemu !== undefined) theirs.push(await measure((command) => runQemu(qemu, command)));
      for (const [name, all] of [['zazen', ours], ['qemu', theirs]] as const) {
        if (all.length === 0) continue;
        const { intoGuestMibPerSecond, outOfGuestMibPerSecond, answerMicros } = merge(all.slice(-1));
        log(`${name}: in ${round(intoGuestMibPerSecond.median)} MiB/s, out ${round(outOfGuestMibPerSecond.median)} MiB/s, `
          + `answer ${round(answerMicros.median)} µs`);
      }
    }
    const zazen = merge(ours);
    if (theirs.length === 0) return { zazen, qemu: qemuMissing };
    const peer = merge(theirs);
    return {
      zazen, qemu: peer,
      timesQemu: {
        intoGuest: round(zazen.intoGuestMibPerSecond.median / peer.intoGuestMibPerSecond.median),
        outOfGuest: round(zazen.outOfGuestMibPerSecond.median / peer.outOfGuestMibPerSecond.median),
        requests: round(peer.answerMicros.median / zazen.answerMicros.median),
      },
    };
  },
};
export default benchmark;
