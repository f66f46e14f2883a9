// The whole network with real sockets of the host: a guest's card on one side, node:net and node:dgram on the other.

import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { SeededRandom } from '../base/random.ts';
import { HostTcpEnd } from './host-tcp.ts';
import { Network } from './network.ts';
import type { NetworkOptions } from './network.ts';
import type { NetworkPort } from './network-port.ts';
import { parsePortForward } from './port-forward.ts';
import { systemScheduler } from './scheduler.ts';
import { TestGuest } from './test-guest.ts';
import { ALL_FEATURES, createTcpRig, pattern } from './test-tcp-rig.ts';
import type { TcpConnection } from './tcp-connection.ts';
import type { TestTcpPeer } from './test-tcp-peer.ts';

interface Rig {
  readonly network: Network;
  attach(name: string, index?: number): { guest: TestGuest; port: NetworkPort };
}

async function createNetwork(t: TestContext, options: NetworkOptions = {}): Promise<Rig> {
  const network = await Network.create({ random: new SeededRandom(1), dnsServers: [], ...options });
  t.after(() => network.close());
  return {
    network,
    attach(name, index = 1) {
      const mac = `00:16:3e:00:00:0${index}`;
      const address = `10.0.2.${14 + index}`;
      const guest = new TestGuest({ scheduler: systemScheduler, mac, address, features: ALL_FEATURES });
      const port = network.attach(guest, { mac, name });
      guest.port = port;
      return { guest, port };
    },
  };
}

/** The test's own time limit ends what never comes. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await nextTurn();
}

async function listen(t: TestContext, serve: (socket: Socket) => void): Promise<number> {
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    t.after(() => socket.destroy());
    serve(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

async function open(guest: TestGuest, localPort: number, port: number): Promise<TestTcpPeer> {
  const peer = guest.tcp(localPort, '10.0.2.2', port, { windowScale: 7, segmentBytes: 30_000 });
  peer.connect();
  await until(() => peer.state === 'open' || peer.state === 'reset');
  return peer;
}

const LIMIT = { timeout: PATIENCE_MILLIS };

test('TCP out: an echo of megabytes, half-close, and nothing left', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  const port = await listen(t, (socket) => {
    socket.pipe(socket); // ends when the other side does
  });
  const peer = await open(guest, 5000, port);
  const bytes = pattern(4_000_000, 1);
  peer.write(bytes);
  peer.end();
  await until(() => peer.ended && peer.finAcknowledged);
  assert.ok(peer.read().equals(bytes));
  await until(() => network.metrics().tcp.connections === network.metrics().tcp.timeWait);
  assert.equal(network.metrics().tcp.retransmissions, 0);
  assert.equal(network.metrics().ports[0]!.bufferedBytes, 0);
});

test('TCP: a host that does not read stops the guest, and memory stays bounded', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  let server: Socket | undefined;
  const port = await listen(t, (socket) => {
    server = socket;
    socket.pause();
  });
  const peer = await open(guest, 5000, port);
  const total = 40_000_000;
  peer.write(Buffer.alloc(total, 7));
  // Until the guest has seen its window shut and what is held no longer changes.
  await until(() => peer.farWindow < 30_000);
  assert.ok(network.metrics().ports[0]!.bufferedBytes <= 600_000, `${network.metrics().ports[0]!.bufferedBytes}`);
  assert.ok(!peer.sentAll);
  let seen = 0;
  server!.on('data', (chunk) => (seen += chunk.length));
  server!.resume();
  await until(() => seen === total);
});

test('TCP: a guest that does not read stops the host', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  const bytes = pattern(20_000_000, 2);
  let sent = false;
  const port = await listen(t, (socket) => {
    socket.write(bytes, () => (sent = true));
  });
  const peer = guest.tcp(5000, '10.0.2.2', port, { windowScale: 7, bufferBytes: 100_000, autoRead: false });
  peer.connect();
  await until(() => peer.receivedBytes >= 99_000 && network.metrics().ports[0]!.bufferedBytes >= 512 * 1024);
  for (let turn = 0; turn < 200; turn++) await nextTurn();
  assert.ok(network.metrics().ports[0]!.bufferedBytes < 2 * 512 * 1024);
  assert.equal(sent, false);
  const parts: Buffer[] = [];
  let count = 0;
  while (count < bytes.length) {
    await nextTurn();
    const part = peer.read();
    parts.push(part);
    count += part.length;
  }
  assert.ok(Buffer.concat(parts).equals(bytes));
});

test('TCP: a guest that ends and then resets leaves no socket behind, at whatever moment', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  const served = new Set<Socket>();
  const port = await listen(t, (socket) => {
    served.add(socket);
    socket.resume().on('close', () => served.delete(socket)).on('end', () => socket.end());
  });
  const openFiles = (): number => readdirSync('/proc/self/fd').length;
  const before = openFiles();
  for (let turns = 0; turns < 6; turns++) {
    const ending = await open(guest, 5000 + turns, port);
    ending.end();
    for (let turn = 0; turn < turns; turn++) await nextTurn();
    ending.abort();
    await until(() => network.metrics().tcp.connections === 0);
  }
  await until(() => served.size === 0 && openFiles() <= before);
});

test('TCP: refused, reset by the host, reset by the guest, not allowed', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  let errors = 0;
  const port = await listen(t, (socket) => {
    socket.on('error', () => errors++);
    socket.once('data', () => socket.resetAndDestroy());
  });
  const closed = await listen(t, () => {});
  const refused = await open(guest, 5000, port === 1 ? closed : 1);
  assert.equal(refused.state, 'reset');
  const reset = await open(guest, 5001, port);
  reset.write(Buffer.from('x'));
  await until(() => reset.state === 'reset');
  const aborting = await open(guest, 5002, port);
  aborting.abort();
  await until(() => errors === 1);
  await until(() => network.metrics().tcp.connections === 0);
  const { attach: attachInside } = await createNetwork(t, { hostLoopback: false, outbound: false });
  const inside = attachInside('web').guest;
  assert.equal((await open(inside, 5000, port)).state, 'reset');
  inside.tcp(5001, '93.184.216.34', 80).connect();
  await until(() => inside.icmp.length === 1);
  assert.deepEqual([inside.icmp[0]!.type, inside.icmp[0]!.code], [3, 13]);
});

test('TCP: a host that cannot be reached is no refusal', LIMIT, async () => {
  const failed: TcpConnection[] = [];
  const rig = createTcpRig({
    opening: (connection) => HostTcpEnd.connect(connection, '255.255.255.255', 80, {
      scheduler: systemScheduler, unreachable: (unreachable) => failed.push(unreachable),
    }),
  });
  const peer = rig.guest.tcp(5000, '93.184.216.34', 80);
  peer.connect();
  rig.scheduler.settle();
  await until(() => failed.length === 1);
  assert.equal(rig.stack.metrics().connections, 0);
  assert.equal(peer.state, 'syn-sent'); // no reset: an ICMP message says why, which is the caller's to send
});

test('TCP: hundreds of connections at once, each with its own bytes', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  const port = await listen(t, (socket) => {
    socket.pipe(socket);
  });
  const peers = Array.from({ length: 300 }, (_, i) => guest.tcp(6000 + i, '10.0.2.2', port, { windowScale: 7 }));
  peers.forEach((peer, i) => {
    peer.connect();
    peer.write(pattern(20_000, i));
    peer.end();
  });
  await until(() => peers.every((peer) => peer.ended && peer.finAcknowledged));
  peers.forEach((peer, i) => assert.ok(peer.read().equals(pattern(20_000, i)), `${i}`));
  await until(() => network.metrics().tcp.connections === network.metrics().tcp.timeWait);
  assert.equal(network.metrics().ports[0]!.bufferedBytes, 0);
});

test('resetAll ends both ends; a new connection works', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest, port: card } = attach('web');
  const sockets: Socket[] = [];
  const port = await listen(t, (socket) => sockets.push(socket));
  const peer = await open(guest, 5000, port);
  await until(() => sockets.length === 1);
  assert.equal(card.connections().length, 1);
  network.resetAll();
  await until(() => peer.state === 'reset' && sockets[0]!.destroyed);
  assert.equal(network.metrics().tcp.connections, 0);
  assert.equal((await open(guest, 5001, port)).state, 'open');
});

test('port forwards: TCP and UDP in, an address in use, closing', LIMIT, async (t) => {
  const { attach } = await createNetwork(t);
  const { guest, port: card } = attach('web');
  const forward = await card.forward(parsePortForward('0:80'));
  let peer: TestTcpPeer | undefined;
  guest.onSyn = (segment, remote, remotePort, localPort) => {
    assert.equal(remote, '10.0.2.2');
    assert.equal(localPort, 80);
    peer = guest.tcp(80, remote, remotePort, { windowScale: 7, segmentBytes: 30_000 });
    peer.input(segment);
  };
  const client = connect(forward.hostPort, '127.0.0.1');
  t.after(() => client.destroy());
  const answer = pattern(1_000_000, 3);
  client.end('GET /');
  await until(() => peer?.ended === true);
  assert.equal(peer!.read().toString(), 'GET /');
  peer!.write(answer);
  peer!.end();
  const chunks: Buffer[] = [];
  for await (const chunk of client) chunks.push(chunk as Buffer);
  assert.ok(Buffer.concat(chunks).equals(answer));

  await assert.rejects(card.forward({ ...forward }), { code: 'ZAZEN_PORT_IN_USE' });
  await forward.close();
  const udp = await card.forward(parsePortForward('0:53/udp'));
  const socket = createSocket('udp4');
  t.after(() => socket.close());
  socket.send('question', udp.hostPort, '127.0.0.1');
  await until(() => guest.udp.length === 1);
  const [seen] = guest.udp;
  assert.deepEqual([seen!.source, seen!.destinationPort, seen!.payload.toString()], ['10.0.2.2', 53, 'question']);
  const message = once(socket, 'message');
  guest.sendUdp(53, '10.0.2.2', seen!.sourcePort, Buffer.from('answer'));
  assert.equal(String((await message)[0]), 'answer');
  assert.throws(() => parsePortForward('80'), { code: 'ZAZEN_USAGE' });
  assert.throws(() => parsePortForward('1.2.3:80:80'), { code: 'ZAZEN_USAGE' });
  assert.deepEqual(parsePortForward('0.0.0.0:2222:22/tcp'),
    { protocol: 'tcp', hostAddress: '0.0.0.0', hostPort: 2222, guestPort: 22 });
});

test('UDP out to the host: answers come back, also longer ones than the MTU, strangers do not', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest } = attach('web');
  const server = createSocket('udp4');
  t.after(() => server.close());
  let guestSocket = 0;
  server.on('message', (payload, from) => {
    guestSocket = from.port;
    server.send(Buffer.concat([payload, Buffer.alloc(5000, 9)]), from.port, from.address);
  });
  server.bind(0, '127.0.0.1');
  await once(server, 'listening');
  guest.sendUdp(6000, '10.0.2.2', server.address().port, Buffer.from('hello'));
  await until(() => guest.udp.length === 1);
  const [answer] = guest.udp;
  assert.deepEqual([answer!.source, answer!.sourcePort, answer!.destinationPort],
    ['10.0.2.2', server.address().port, 6000]);
  assert.ok(answer!.payload.equals(Buffer.concat([Buffer.from('hello'), Buffer.alloc(5000, 9)])));
  // The same in fragments from the guest.
  const datagram = Buffer.alloc(2808);
  datagram.writeUInt16BE(6000, 0);
  datagram.writeUInt16BE(server.address().port, 2);
  datagram.writeUInt16BE(2808, 4);
  guest.sendIpv4(17, '10.0.2.2', datagram.subarray(1480), { id: 7, fragment: 185 });
  guest.sendIpv4(17, '10.0.2.2', datagram.subarray(0, 1480), { id: 7, fragment: 0x2000 });
  await until(() => guest.udp.length === 2);
  assert.equal(guest.udp[1]!.payload.length, 7800);
  const stranger = createSocket('udp4');
  t.after(() => stranger.close());
  stranger.bind(0, '127.0.0.2');
  await once(stranger, 'listening');
  stranger.send('spoof', guestSocket, '127.0.0.1');
  await until(() => network.metrics().udp.dropped === 1);
  assert.equal(guest.udp.length, 2);
  assert.equal(network.metrics().udp.flows, 1);
});

test('ARP, ping, DHCP', LIMIT, async (t) => {
  const { attach } = await createNetwork(t);
  const { guest } = attach('Web Server_1');
  guest.sendArp('10.0.2.2');
  guest.sendArp('10.0.2.3');
  guest.sendArp('10.0.2.99');
  guest.ping('10.0.2.2', Buffer.from('ping'));
  guest.ping('8.8.8.8', Buffer.from('ping'));
  await until(() => guest.icmp.length === 2);
  assert.deepEqual(guest.arp.map(({ operation, sender, senderMac }) => [operation, sender, senderMac]),
    [[2, '10.0.2.2', '52:5a:0a:00:02:02'], [2, '10.0.2.3', '52:5a:0a:00:02:02']]);
  assert.deepEqual(guest.icmp.map(({ type, code }) => [type, code]), [[0, 0], [3, 13]]);
  assert.equal(guest.icmp[0]!.body.subarray(4).toString(), 'ping');

  const ask = async (type: number, requested?: number[]): Promise<Buffer> => {
    const message = Buffer.alloc(300);
    message.set([1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    message.set(Buffer.from(guest.mac.replaceAll(':', ''), 'hex'), 28);
    const wanted = requested === undefined ? [] : [50, 4, ...requested];
    message.set([0x63, 0x82, 0x53, 0x63, 53, 1, type, ...wanted, 255], 236);
    const before = guest.udp.length;
    guest.sendUdp(68, '255.255.255.255', 67, message, { source: '0.0.0.0', toMac: 'ff:ff:ff:ff:ff:ff' });
    await until(() => guest.udp.length > before);
    return guest.udp.at(-1)!.payload;
  };
  const offer = await ask(1);
  assert.deepEqual([...offer.subarray(16, 20)], [10, 0, 2, 15]);
  const options = new Map<number, Buffer>();
  for (let at = 240; offer[at] !== 255; at += 2 + offer[at + 1]!) {
    options.set(offer[at]!, offer.subarray(at + 2, at + 2 + offer[at + 1]!));
  }
  assert.deepEqual([...options.get(53)!], [2]);
  assert.deepEqual([...options.get(3)!], [10, 0, 2, 2]);
  assert.deepEqual([...options.get(6)!], [10, 0, 2, 3]);
  assert.equal(options.get(26)!.readUInt16BE(), 1500);
  assert.equal(options.get(12)!.toString(), 'web-server-1');
  assert.equal(options.get(15)!.toString(), 'zazen.internal');
  assert.deepEqual([...(await ask(3, [10, 0, 2, 15])).subarray(240, 243)], [53, 1, 5]);
  assert.deepEqual([...(await ask(3, [10, 0, 2, 77])).subarray(240, 243)], [53, 1, 6]);
});

function dnsQuery(id: number, name: string, type = 1): Buffer {
  const labels = name.split('.').flatMap((label) => [label.length, ...Buffer.from(label)]);
  return Buffer.from([id >> 8, id & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...labels, 0, 0, type, 0, 1]);
}

test('DNS: guests, the hosts file and the host\'s servers, over UDP and TCP', LIMIT, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-dns-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const hostsFile = join(folder, 'hosts');
  writeFileSync(hostsFile, '127.0.0.1 localhost devbox # me\n192.0.2.7 Printer printer.lan\n::1 six\n');
  const server = createSocket('udp4');
  t.after(() => server.close());
  server.on('message', (query, from) => {
    const forged = Buffer.from(query);
    forged[0]! ^= 1;
    forged[2] = 0x81;
    server.send(forged, from.port, from.address); // another id: not an answer
    const answer = Buffer.concat([query, Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 203, 0, 113, 5])]);
    answer[2] = 0x81;
    answer[7] = 1;
    server.send(answer, from.port, from.address);
  });
  server.bind(0, '127.0.0.1');
  await once(server, 'listening');
  const { attach } = await createNetwork(t, { hostsFile, dnsServers: [`127.0.0.1:${server.address().port}`] });
  const { guest } = attach('web');
  attach('db', 2);
  const ask = async (name: string, type?: number): Promise<{ code: number; last: string }> => {
    const before = guest.udp.length;
    guest.sendUdp(7000, '10.0.2.3', 53, dnsQuery(0x1234, name, type));
    await until(() => guest.udp.length > before);
    const answer = guest.udp.at(-1)!.payload;
    assert.equal(answer.readUInt16BE(0), 0x1234);
    return { code: answer[3]! & 15, last: answer.readUInt16BE(6) === 0 ? '' : [...answer.subarray(-4)].join('.') };
  };
  assert.deepEqual(await ask('db'), { code: 0, last: '10.0.2.16' });
  assert.deepEqual(await ask('DB.zazen.internal'), { code: 0, last: '10.0.2.16' });
  assert.deepEqual(await ask('db', 28), { code: 0, last: '' });
  assert.deepEqual(await ask('nobody.zazen.internal'), { code: 3, last: '' });
  assert.deepEqual(await ask('host'), { code: 0, last: '10.0.2.2' });
  assert.deepEqual(await ask('printer'), { code: 0, last: '192.0.2.7' });
  assert.deepEqual(await ask('devbox'), { code: 0, last: '10.0.2.2' });
  assert.deepEqual(await ask('localhost'), { code: 0, last: '127.0.0.1' });
  assert.deepEqual(await ask('example.com'), { code: 0, last: '203.0.113.5' });
  assert.equal((await ask('16.2.0.10.in-addr.arpa', 12)).code, 0);
  assert.ok(guest.udp.at(-1)!.payload.includes('\x02db\x05zazen\x08internal'));

  const tcp = guest.tcp(7001, '10.0.2.3', 53);
  tcp.connect();
  await until(() => tcp.state === 'open');
  const query = dnsQuery(5, 'db');
  const framed = Buffer.concat([Buffer.of(0, query.length), query]);
  tcp.write(Buffer.concat(Array.from({ length: 3000 }, () => framed))); // many at once: no stack grows, none is lost
  tcp.end();
  await until(() => tcp.ended);
  assert.equal(tcp.read().length, 3000 * (framed.length + 16));
});

test('DNS without servers and without the outside still knows local names', LIMIT, async (t) => {
  const { attach } = await createNetwork(t, { outbound: false, hostsFile: '/nonexistent/hosts' });
  const { guest } = attach('web');
  guest.sendUdp(7000, '10.0.2.3', 53, dnsQuery(1, 'web'));
  guest.sendUdp(7000, '10.0.2.3', 53, dnsQuery(2, 'example.com'));
  await until(() => guest.udp.length === 2);
  assert.deepEqual(guest.udp.map(({ payload }) => payload[3]! & 15), [0, 5]);
});

test('the capture is a pcap file with every frame', LIMIT, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-pcap-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const capturePath = join(folder, 'net.pcap');
  const clock = { monotonicNanos: () => 0, wallMillis: () => 1_700_000_000_123.5 };
  const { network, attach } = await createNetwork(t, { capturePath, clock });
  const { guest } = attach('web');
  guest.sendArp('10.0.2.2');
  await until(() => guest.arp.length === 1);
  await network.close();
  const file = readFileSync(capturePath);
  assert.deepEqual([file.readUInt32LE(0), file.readUInt16LE(4), file.readUInt16LE(6), file.readUInt32LE(20)],
    [0xa1b2c3d4, 2, 4, 1]);
  const lengths: number[] = [];
  for (let at = 24; at < file.length; at += 16 + file.readUInt32LE(at + 8)) {
    assert.deepEqual([file.readUInt32LE(at), file.readUInt32LE(at + 4)], [1_700_000_000, 123_500]);
    lengths.push(file.readUInt32LE(at + 12));
  }
  assert.deepEqual(lengths, [60, 42]);
  await assert.rejects(Network.create({ capturePath: join(folder, 'no', 'such') }), { code: 'ZAZEN_CAPTURE_FILE' });
});

test('what an operator gets wrong is said', LIMIT, async (t) => {
  const { network, attach } = await createNetwork(t);
  const { guest, port } = attach('web');
  assert.equal(port.address, '10.0.2.15');
  const mac = '00:16:3e:00:00:09';
  assert.throws(() => attach('again'), { code: 'ZAZEN_NETWORK_MAC_IN_USE' });
  assert.throws(() => network.attach(guest, { mac: '01:16:3e:00:00:01' }), { code: 'ZAZEN_NETWORK_MAC' });
  assert.throws(() => network.attach(guest, { mac: 'web' }), { code: 'ZAZEN_NETWORK_MAC' });
  assert.throws(() => network.attach(guest, { mac, address: '10.0.2.15' }), { code: 'ZAZEN_NETWORK_ADDRESS_IN_USE' });
  assert.throws(() => network.attach(guest, { mac, address: '10.0.3.15' }), { code: 'ZAZEN_NETWORK_ADDRESS' });
  await assert.rejects(Network.create({ subnet: '10.0.2.1/24' }), { code: 'ZAZEN_NETWORK_SUBNET' });
  await assert.rejects(Network.create({ mtuBytes: 100 }), { code: 'ZAZEN_NETWORK_MTU' });
  const other = network.attach(guest, { mac });
  assert.equal(other.address, '10.0.2.16');
  port.close();
  other.close();
  assert.equal(network.attach(guest, { mac }).address, '10.0.2.16'); // the card's address is remembered
});
