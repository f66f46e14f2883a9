// A guest's network through user-mode networking, in Zazen and in QEMU (-netdev user, virtio-net) in turn, with the
// same kernel, programs and sockets of the host: bytes a second in and out, and how long the guest takes to answer a
// line. Times are the host's: from a request until the guest has closed, from the first connection until the last
// byte, from a line sent until it is back. What is checked: every byte that arrives is counted, and every line
// compared.

import { Worker } from 'node:worker_threads';
import { assert } from '../src/base/assert.ts';
import { prepareGuest } from '../src/guest/initramfs.ts';
import { Host } from '../src/host/index.ts';
import type { Measured, ServersWork } from './net-servers.ts';
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

/** With the servers in a thread of their own. */
async function withServers(work: (command: string) => Promise<void>): Promise<Measured> {
  const workerData: ServersWork = { transferBytes: TRANSFER_BYTES, lines: LINES };
  const servers = new Worker(new URL('./net-servers.ts', import.meta.url), { execArgv: [], workerData });
  const failed = new Promise<never>((_resolve, reject) => { servers.once('error', reject); });
  const message = <T>(): Promise<T> =>
    Promise.race([failed, new Promise<T>((resolve) => { servers.once('message', resolve); })]);
  try {
    const [source, sink, asker] = await message<[number, number, number]>();
    const times = Array.from({ length: REPEATS }, (_, i) => i).join(' ');
    await Promise.race([failed, work([
      `for i in ${times}; do wget -q -O /dev/null http://${HOST_ADDRESS}:${source}/; done`,
      `for i in ${times}; do nc ${HOST_ADDRESS} ${sink} -e dd if=/dev/zero bs=64k count=${TRANSFER_BYTES / 65536} 2>/dev/null; done`,
      `nc ${HOST_ADDRESS} ${asker} -e cat`,
      `echo ${DONE}`,
    ].join('; '))]);
    servers.postMessage('measured?');
    return await message<Measured>();
  } finally {
    await servers.terminate();
  }
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
  const measured = await withServers(run);
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
