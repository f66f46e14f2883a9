// Debian's own network programs in guests of both types, xen-netfront and virtio-net: curl, iperf3 and nginx, each with
// a far end on the host's loopback or in another guest. Transfers are compared by checksum and by counts of both ends.
//
// Guests of type hvm are on a network of their own, so that the two kinds must not see each other.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer as createHttpServer, get as httpGet } from 'node:http';
import type { IncomingMessage, Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import { fetchPackages } from '../../src/guest/packages.ts';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { freePort } from '../free-port.ts';
import { FAST_BOOT, limited, testHost } from './guests.ts';
import { IperfServer } from './iperf-server.ts';
import { Shell, SHELL } from './shell.ts';

/** The programs and the libraries that they are linked with, without what only their installation needs. */
const PACKAGES = [
  'curl', 'iperf3', 'nginx', 'libbrotli1', 'libc6', 'libcom-err2', 'libcrypt1', 'libcurl4', 'libffi8', 'libgmp10', 'libgnutls30',
  'libgssapi-krb5-2', 'libhogweed6', 'libidn2-0', 'libiperf0', 'libk5crypto3', 'libkeyutils1', 'libkrb5-3', 'libkrb5support0',
  'libldap-2.5-0', 'libnettle8', 'libnghttp2-14', 'libp11-kit0', 'libpcre2-8-0', 'libpsl5', 'librtmp1', 'libsasl2-2', 'libsctp1',
  'libssh2-1', 'libssl3', 'libtasn1-6', 'libunistring2', 'libzstd1', 'zlib1g',
];
const OUTSIDE = 'outside.example';
/** Of every transfer; ZAZEN_TRANSFER_BYTES for a long run. */
const TRANSFER_BYTES = Number(process.env['ZAZEN_TRANSFER_BYTES'] ?? 2 << 20);
const UDP_BYTES = 1 << 19;
const PART_BYTES = 1 << 17;
const UDP_PAYLOAD_BYTES = 1400;
const REQUESTS = 20;
const CHECKPOINTS = 10;
/** More than is put back page by page. */
const REWRITTEN_BYTES = 12 << 20;

const folder = mkdtempSync(join(tmpdir(), 'zazen-network-programs-'));
after(() => rmSync(folder, { recursive: true }));
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const BODY = randomBytes(TRANSFER_BYTES);

// ---- the host

/** Gives BODY, at /part its beginning, at /slow in pieces, at /never no end; answers what it is sent with its checksum; says who asked. */
const web: Server = createHttpServer((request, response) => {
  if (request.method === 'PUT') {
    const hash = createHash('sha256');
    request.on('data', (chunk: Buffer) => hash.update(chunk)).on('end', () => response.end(hash.digest('hex')));
  } else if (request.url === '/slow') {
    void (async () => {
      for (let at = 0; at < BODY.length; at += 65536) {
        if (!response.write(BODY.subarray(at, at + 65536))) await new Promise((resolve) => response.once('drain', resolve));
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      response.end();
    })();
  } else if (request.url === '/never') response.write(BODY.subarray(0, 1 << 16));
  else if (request.url === '/part') response.end(BODY.subarray(0, PART_BYTES));
  else if (request.url === '/name') response.end(request.headers.host);
  else response.end(BODY);
});
await new Promise<void>((resolve) => web.listen(0, '127.0.0.1', resolve));
const webPort = (web.address() as AddressInfo).port;

/** Over a connection of its own. */
async function download(port: number, path: string): Promise<Buffer> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    httpGet({ port, path, host: '127.0.0.1', agent: false }, resolve).once('error', reject);
  });
  return Buffer.concat(await response.toArray());
}

/** A name server that knows one name: an address record for OUTSIDE, which is the host. */
const nameServer = createSocket('udp4');
const questions: string[] = [];
nameServer.on('message', (query, from) => {
  const labels: string[] = [];
  let at = 12;
  for (; query[at] !== 0; at += 1 + query[at]!) labels.push(String(query.subarray(at + 1, at + 1 + query[at]!)));
  const name = labels.join('.');
  const type = query.readUInt16BE(at + 1);
  questions.push(name);
  const isKnown = name === OUTSIDE;
  const answer = isKnown && type === 1 ? [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 2, 2] : [];
  const head = Buffer.from(query.subarray(0, at + 5));
  head.writeUInt16BE(isKnown ? 0x8180 : 0x8183, 2);
  head.writeUInt16BE(answer.length > 0 ? 1 : 0, 6);
  head.fill(0, 8, 12);
  nameServer.send(Buffer.concat([head, Buffer.from(answer)]), from.port, from.address);
});
await new Promise<void>((resolve) => nameServer.bind(0, '127.0.0.1', resolve));
const iperf = await IperfServer.listen();
after(() => {
  web.closeAllConnections();
  web.close();
  nameServer.close();
  iperf.close();
});

const dnsServers = [`127.0.0.1:${nameServer.address().port}`];
const host = await testHost({ memory: '2GiB', networks: { default: { dnsServers }, blue: { dnsServers } } });

// ---- guests

const TYPES = ['pvh', 'hvm'] as const;
type Type = typeof TYPES[number];
const booted = new Map<Type, Checkpoint>();
before(async () => {
  const tree = await fetchPackages(PACKAGES);
  for (const type of TYPES) {
    const { initramfsPath } = await prepareGuest({ trees: [tree], devices: type === 'hvm' ? 'virtio' : 'xen' });
    const domain = await host.create({
      type, name: type, memory: '192MiB', initrd: initramfsPath, cmdline: FAST_BOOT, exec: SHELL,
      nics: [{ network: type === 'hvm' ? 'blue' : 'default' }],
    });
    domain.exec!.output.resume();
    await limited(domain, async () => {
      await domain.exec!.started;
      // What every test uses is loaded once, before the guest is forked.
      const warm = await new Shell(domain, 'first').ask('curl --version | head -c 4; iperf3 --version | head -c 5');
      assert.equal(warm, 'curliperf');
      booted.set(type, await domain.checkpoint());
    });
    await domain.destroy();
  }
});

async function withForks(type: Type, names: readonly string[], work: (...shells: Shell[]) => Promise<void>): Promise<void> {
  const forks = await booted.get(type)!.fork(names.map((name) => ({ name: `${name}-${type}` })));
  try {
    await limited(forks[0]!, () => work(...forks.map((fork) => new Shell(fork, fork.name))));
  } finally {
    await Promise.all(forks.map((fork) => fork.destroy()));
  }
}

const addressOf = (domain: Domain): string => domain.stats().nics[0]!.address;
const HOST_URL = `http://10.0.2.2:${webPort}`;
const NGINX_CONFIGURATION = 'user root; pid /www/tmp/pid; error_log /www/tmp/errors; events {}\n'
  + 'http { access_log off; sendfile on; keepalive_timeout 20; client_body_temp_path /www/tmp/1; proxy_temp_path /www/tmp/2;\n'
  + 'fastcgi_temp_path /www/tmp/3; uwsgi_temp_path /www/tmp/4; scgi_temp_path /www/tmp/5; server { listen 80; root /www; } }\n';
const START_NGINX = `mkdir -p /www/tmp; echo ${Buffer.from(NGINX_CONFIGURATION).toString('base64')} | base64 -d >/www/tmp/conf; `
  + 'nginx -e /www/tmp/errors -c /www/tmp/conf';

for (const type of TYPES) {
  test(`${type}: curl, by address and by name, both ways, and what is not there`, () => withForks(type, ['curl'], async (shell) => {
    assert.equal(await shell.ask(`curl -s ${HOST_URL}/ | sha256sum`), `${sha256(BODY)}  -`);
    const [digest, answer] = (await shell.ask(`head -c ${TRANSFER_BYTES} /dev/urandom >/f; sha256sum </f; curl -s -T /f ${HOST_URL}/`)).split('\n');
    assert.equal(answer, digest!.split(' ')[0]);
    questions.length = 0;
    assert.equal(await shell.ask(`curl -s http://${OUTSIDE}:${webPort}/name`), `${OUTSIDE}:${webPort}`);
    assert(questions.includes(OUTSIDE));
    // By the name that the network itself knows: nobody outside is asked.
    questions.length = 0;
    assert.equal(await shell.ask(`curl -s http://host.zazen.internal:${webPort}/name`), `host.zazen.internal:${webPort}`);
    assert.deepEqual(questions, []);
    // curl's statuses: no such name, and a port at which nobody listens.
    assert.equal(await shell.ask('curl -s http://nobody.example/; echo $?'), '6');
    assert.equal(await shell.ask('curl -s http://10.0.2.2:1/; echo $?'), '7');
  }));

  test(`${type}: iperf3 to and from the host, TCP and UDP`, () => withForks(type, ['iperf'], async (shell) => {
    const run = async (options: string) => {
      const said = shell.ask(`iperf3 -J -c 10.0.2.2 -p ${iperf.port} ${options}`);
      const result = await iperf.result();
      const { error, end } = JSON.parse(await said);
      assert.equal(error, undefined);
      return { ...result, end };
    };
    const out = await run(`-n ${TRANSFER_BYTES} -P 2`);
    assert.equal(out.receivedBytes, out.theirBytes);
    assert(out.receivedBytes >= TRANSFER_BYTES);
    const into = await run(`-R -n ${TRANSFER_BYTES}`);
    assert(into.theirBytes >= TRANSFER_BYTES && into.theirBytes <= into.sentBytes);
    const udp = `-u -b 20M -l ${UDP_PAYLOAD_BYTES} -n ${UDP_BYTES}`;
    const udpOut = await run(udp);
    assert.equal(udpOut.receivedBytes, udpOut.packets * UDP_PAYLOAD_BYTES);
    // A host that is busy may lose most of what comes at a fixed rate, but not what its socket can hold.
    assert(udpOut.sentPackets >= UDP_BYTES / UDP_PAYLOAD_BYTES && udpOut.packets >= udpOut.sentPackets / 10, JSON.stringify(udpOut));
    const udpInto = await run(`-R ${udp}`);
    assert(udpInto.theirBytes >= UDP_BYTES && udpInto.theirBytes <= udpInto.sentBytes, JSON.stringify(udpInto));
    const [nic] = shell.domain.stats().nics;
    assert.deepEqual([nic!.txErrors, nic!.rxErrors], [0, 0]);
  }));

  test(`${type}: iperf3 between two guests`, () => withForks(type, ['one', 'two'], async (one, two) => {
    await two.ask('iperf3 -s -D; until netstat -ltn | grep -q :5201; do usleep 20000; done');
    // The sender is done when its own system has taken the last byte, and the receiver counts no more: in small buffers little is left.
    for (const options of ['-w 64K', '-w 64K -R', `-u -b 20M -l ${UDP_PAYLOAD_BYTES}`]) {
      const isUdp = options.includes('-u');
      const bytes = isUdp ? UDP_BYTES : TRANSFER_BYTES;
      const { error, end } = JSON.parse(await one.ask(`iperf3 -J -c ${addressOf(two.domain)} -n ${bytes} ${options}`));
      assert.equal(error, undefined);
      assert(end.sum_sent === undefined || end.sum_sent.bytes >= bytes, options);
      const received = isUdp ? end.sum.bytes - end.sum.lost_packets * UDP_PAYLOAD_BYTES : end.sum_received.bytes;
      // A guest that is kept from its core may lose most of what comes at a fixed rate, but not what its socket can hold.
      assert(received >= bytes / (isUdp ? 10 : 2), `${options}: ${received}`);
    }
  }));

  test(`${type}: transfers outlive checkpoints; a rollback, a fork and a restore reset them cleanly`, () => withForks(type, ['talker'], async (shell) => {
    const { domain } = shell;
    const transfer = shell.ask(`curl -s ${HOST_URL}/slow | sha256sum`);
    for (let i = 0; i < CHECKPOINTS; i++) {
      await using _ = await domain.checkpoint();
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.equal(await transfer, `${sha256(BODY)}  -`);

    // A download that never ends: curl says 56, receive error, once it is reset.
    const half = new Promise<void>((resolve) => web.once('request', () => resolve()));
    await shell.ask(`(curl -s -o /half ${HOST_URL}/never; echo $? >/ended) & until [ -s /half ]; do usleep 20000; done`);
    await half;
    const ended = 'until [ -s /ended ]; do usleep 20000; done; cat /ended';
    await using checkpoint = await domain.checkpoint();
    const path = join(folder, `${type}.core`);
    await checkpoint.save(path);
    const goesOn = async (where: Shell): Promise<void> => {
      assert.equal(await where.ask(ended), '56');
      assert.equal(await where.ask(`curl -s ${HOST_URL}/ | sha256sum`), `${sha256(BODY)}  -`);
    };
    const [fork] = await checkpoint.fork([{ name: `forked-${type}` }]) as [Domain];
    await limited(fork, () => goesOn(new Shell(fork, fork.name)));
    await fork.destroy();
    assert.equal(await shell.ask('[ -e /ended ] || echo it goes on'), 'it goes on');
    // The rings move on, and so much is written that the guest gets its memory and its card's registers in other frames.
    assert.equal(await shell.ask(`curl -s ${HOST_URL}/ | tee /again | sha256sum`), `${sha256(BODY)}  -`);
    await shell.ask(`head -c ${REWRITTEN_BYTES} /dev/urandom >/rewritten`);
    await domain.rollback(checkpoint);
    await goesOn(shell);
    const restored = await host.restore(path, { name: `restored-${type}` });
    await limited(restored, () => goesOn(new Shell(restored, restored.name)));
    await restored.destroy();
  }));
}

test('hvm: ten guests at once, each with its own address', () =>
  withForks('hvm', Array.from({ length: 10 }, (_, i) => `guest${i}`), async (...shells) => {
    assert.equal(new Set(shells.map(({ domain }) => addressOf(domain))).size, 10);
    const ask = (path: string) => Promise.all(shells.map((shell) => shell.ask(`wget -q -O - --header "Host: ${shell.name}" ${HOST_URL}${path}`)));
    assert.deepEqual(await ask('/name'), shells.map(({ name }) => name));
    assert.deepEqual(new Set(await ask('/part | sha256sum')), new Set([`${sha256(BODY.subarray(0, PART_BYTES))}  -`]));
  }));

for (const type of TYPES) {
  test(`${type}: nginx in a guest, reached through ports of the host; what becomes of those`, () => withForks(type, ['nginx'], async (shell) => {
    const { domain } = shell;
    await shell.ask(`${START_NGINX}; head -c ${TRANSFER_BYTES} /dev/urandom >/www/file; echo it is me >/www/index.html`);
    // Asked for by its number, as an operator would.
    const port = await freePort();
    const asked = `${port}:80`;
    const forward = await domain.addForward(asked);
    const get = async (path = '/', at = port): Promise<string> => String(await download(at, path));
    assert.deepEqual(new Set(await Promise.all(Array.from({ length: REQUESTS }, () => get()))), new Set(['it is me\n']));
    const [file, digest] = await Promise.all([download(port, '/file'), shell.ask('sha256sum </www/file')]);
    assert.equal(`${sha256(file)}  -`, digest);

    await domain.removeForward(forward);
    await assert.rejects(get());
    await assert.rejects(domain.removeForward(forward), { code: 'ZAZEN_FORWARD_UNKNOWN' });
    assert.equal(await domain.addForward(asked), forward);
    await assert.rejects(domain.addForward(asked), { code: 'ZAZEN_PORT_IN_USE' });
    await assert.rejects(domain.addForward(asked, 1), { code: 'ZAZEN_NIC_UNKNOWN' });
    const path = join(folder, `nginx-${type}.core`);
    await domain.save(path);

    // A fork has no ports, another one as soon as it is given one; a restored guest has its own where it is free.
    await using checkpoint = await domain.checkpoint();
    const [fork] = await checkpoint.fork() as [Domain];
    assert.deepEqual(fork.stats().nics[0]!.forwards, []);
    const forkPort = (await fork.addForward('0:80')).split(':')[1]!;
    assert.equal(await get('/', Number(forkPort)), 'it is me\n');
    const without = await host.restore(path, { name: `without-${type}` });
    assert.deepEqual(without.stats().nics.map(({ forwards, missingForwards }) => [forwards, missingForwards]), [[[], [asked]]]);
    // What it does not have now it is to have the next time.
    const again = join(folder, `again-${type}.core`);
    await without.save(again);
    await domain.removeForward(asked);
    await Promise.all([without.destroy(), fork.destroy()]);
    const restored = await host.restore(again, { name: `with-${type}` });
    assert.deepEqual(restored.stats().nics.map(({ forwards, missingForwards }) => [forwards, missingForwards]), [[[forward], []]]);
    assert.equal(await get(), 'it is me\n');
    await restored.destroy();
    await assert.rejects(get());
  }));
}

test('nginx in a guest: its neighbour reaches it, a guest of another network does not', () =>
  withForks('pvh', ['server', 'neighbour'], (server, neighbour) => withForks('hvm', ['stranger'], async (stranger) => {
    await server.ask(`${START_NGINX}; echo it is me >/www/index.html`);
    const get = (place: string, seconds: number): string => `curl -s --connect-timeout ${seconds} http://${place}/; echo "<$?>"`;
    // By name, because a fork may find another one under a different address than others do.
    assert.equal(await neighbour.ask(get(server.domain.name, 250)), 'it is me\n<0>');
    for (const place of [server.domain.name, addressOf(server.domain), addressOf(neighbour.domain)]) {
      if (place !== addressOf(stranger.domain)) assert.match(await stranger.ask(get(place, 3)), /^<(6|7|28)>$/);
    }
  })));
