// Frames that mean harm: random bytes, mutated good frames, and nonsense in TCP. The network never throws, never loops,
// holds a bounded amount of memory, and serves the next honest guest.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SeededRandom } from '../base/random.ts';
import { answerDhcp } from './dhcp.ts';
import { parseQuery } from './dns-message.ts';
import type { GsoType } from './frame-port.ts';
import { Network } from './network.ts';
import { TestGuest, tcpSegment } from './test-guest.ts';
import { createTcpRig } from './test-tcp-rig.ts';
import { TestScheduler } from './test-scheduler.ts';

const RUNS = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 300);
const seed = Number(process.env['ZAZEN_SEED'] ?? 20261121);
console.log(`seed ${seed}, ${RUNS} runs; ZAZEN_SEED and ZAZEN_FUZZ_RUNS change them`);
const REMOTE = '127.0.0.1'; // never reached: addresses of loopback are refused
const offload = fc.record({
  checksumPartial: fc.boolean(),
  gsoSize: fc.oneof(fc.constant(0), fc.integer({ min: -5, max: 70000 })),
  gsoType: fc.constantFrom<GsoType>('none', 'tcpv4', 'tcpv6'),
});

/** A network that reaches nothing of the host, with a guest that attacks and one that listens. */
async function createNetwork() {
  const scheduler = new TestScheduler();
  const network = await Network.create({
    scheduler, random: new SeededRandom(1), outbound: false, hostLoopback: false, hostsFile: '/nonexistent/hosts',
  });
  const attacker = new TestGuest({ scheduler });
  const other = new TestGuest({ scheduler, mac: '00:16:3e:00:00:02', address: '10.0.2.16' });
  attacker.port = network.attach(attacker, { mac: attacker.mac, name: 'attacker', anyMac: true });
  other.port = network.attach(other, { mac: other.mac, name: 'other' });
  return { network, scheduler, attacker, other };
}

/** Good frames of all kinds, to be mutated. */
async function goodFrames(): Promise<Buffer[]> {
  const scheduler = new TestScheduler();
  const guest = new TestGuest({ scheduler });
  const frames: Buffer[] = [];
  guest.port = { send: (frame) => frames.push(Buffer.from(frame)) > 0, ready() {}, close() {} };
  guest.sendArp('10.0.2.2');
  guest.ping('10.0.2.2', Buffer.from('ping'));
  const dhcp = Buffer.alloc(300);
  dhcp.set([1, 1, 6, 0]);
  dhcp.set(Buffer.from('00163e000001', 'hex'), 28);
  dhcp.set([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 50, 4, 10, 0, 2, 15, 255], 236);
  guest.sendUdp(68, '255.255.255.255', 67, dhcp, { source: '0.0.0.0', toMac: 'ff:ff:ff:ff:ff:ff' });
  guest.sendUdp(7000, '10.0.2.3', 53, Buffer.from('\0\x01\x01\0\0\x01\0\0\0\0\0\0\x05other\0\0\x01\0\x01', 'latin1'));
  guest.sendIpv4(17, '10.0.2.2', Buffer.alloc(1480), { id: 5, fragment: 0x2000 });
  guest.sendIpv4(17, '10.0.2.2', Buffer.alloc(800), { id: 5, fragment: 185 });
  guest.tcp(1, '10.0.2.3', 53, { windowScale: 7 }).connect();
  const rest = { flags: 24, sequence: 5, acknowledgment: 9, window: 5 };
  guest.sendSegment(2, '10.0.2.3', 53, { ...rest, payload: Buffer.alloc(100) });
  const large = tcpSegment(1, 2, { ...rest, payload: Buffer.alloc(9000) });
  guest.sendIpv4(6, '10.0.2.16', large, { toMac: '00:16:3e:00:00:02' });
  guest.sendUdp(1, '10.0.2.16', 2, Buffer.from('x'), { toMac: '00:16:3e:00:00:02' });
  scheduler.settle();
  return frames;
}

test('random frames', async () => {
  const { network, scheduler, attacker } = await createNetwork();
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), offload, (bytes, how) => {
    attacker.port!.send(bytes, how);
    scheduler.settle();
  }), { seed, numRuns: RUNS });
  await network.close();
});

test('mutated frames of every protocol; the other guest is served all the same', async () => {
  const frames = await goodFrames();
  const { network, scheduler, attacker, other } = await createNetwork();
  const honest = other.receive.bind(other);
  attacker.receive = other.receive = () => true; // what reaches them need not be good
  const mutation = fc.record({ at: fc.nat(), value: fc.integer({ min: 0, max: 255 }) });
  fc.assert(fc.property(fc.nat(frames.length - 1), fc.array(mutation, { maxLength: 4 }), fc.boolean(),
    fc.option(fc.nat(2000)), offload, (index, mutations, fix, length, how) => {
      const frame = Buffer.from(frames[index]!);
      // Half of them in the headers, where it matters.
      mutations.forEach(({ at, value }, i) => {
        frame[at % Math.min(i % 2 === 0 ? frame.length : 60, frame.length)] = value;
      });
      if (fix) frame.set(frames[index]!.subarray(0, 12));
      attacker.port!.send(length === null ? frame : frame.subarray(0, length), how);
      scheduler.advance(1);
    }), { seed, numRuns: RUNS * 5 });
  const metrics = network.metrics();
  assert.ok(metrics.ports.reduce((sum, port) => sum + port.bufferedBytes, 0) < 1 << 20);
  assert.ok(metrics.tcp.connections <= 4096);
  other.receive = honest;
  const before = other.udp.length;
  other.sendUdp(7000, '10.0.2.3', 53, Buffer.from('\0\x01\x01\0\0\x01\0\0\0\0\0\0\x05other\0\0\x01\0\x01', 'latin1'));
  scheduler.settle();
  assert.equal(other.udp.length, before + 1);
  await network.close();
  scheduler.advance(10_000);
  assert.equal(scheduler.timers, 0);
});

test('nonsense within an open TCP connection', () => {
  const segment = fc.record({
    flags: fc.integer({ min: 0, max: 255 }),
    sequence: fc.oneof(fc.integer({ min: -70_000, max: 700_000 }), fc.integer()),
    acknowledgment: fc.oneof(fc.integer({ min: -10, max: 70_000 }), fc.integer()),
    window: fc.integer({ min: 0, max: 65535 }),
    payload: fc.uint8Array({ maxLength: 60 }),
  });
  const what = fc.oneof(segment, fc.constantFrom('write', 'end', 'wait', 'abort', 'release') as fc.Arbitrary<string>);
  fc.assert(fc.property(fc.array(what, { maxLength: 40 }), fc.nat(), (steps, number) => {
    const rig = createTcpRig({ seed: number, budgetBytes: 50_000 });
    const peer = rig.guest.tcp(1, REMOTE, 2, { windowScale: number % 15 });
    peer.connect();
    rig.scheduler.settle();
    const [application] = rig.applications;
    const [sequence, expects] = [peer.sequence, peer.expects];
    peer.input = () => {};
    for (const step of steps) {
      if (typeof step === 'object') {
        rig.guest.sendSegment(1, REMOTE, 2, {
          ...step, sequence: (sequence + step.sequence) >>> 0, acknowledgment: (expects + step.acknowledgment) >>> 0,
        });
      } else if (step === 'write') application!.connection!.write(Buffer.alloc(3000));
      else if (step === 'end') application!.connection!.end();
      else if (step === 'abort') application!.connection!.abort();
      else if (step === 'release') application!.release();
      else rig.scheduler.advance(700);
      rig.scheduler.settle();
      assert.ok(rig.state.budget.usedBytes >= 0 && rig.guest.frames.length < 2000);
    }
    rig.stack.end(rig.state, 'abort');
    rig.scheduler.advance(5000);
    assert.equal(rig.stack.metrics().connections, 0);
    assert.equal(rig.state.budget.usedBytes, 0);
  }), { seed, numRuns: RUNS });
});

test('parsers of DHCP and DNS take any bytes', () => {
  const settings = { server: 1, mask: 2, broadcast: 3, router: 4, dns: 5, mtuBytes: 1500, domain: 'x' };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
    parseQuery(bytes);
    answerDhcp(bytes, 0, settings, () => ({ address: 9 }));
    if (bytes.length < 240) return;
    bytes.set([1, 1, 6], 0);
    bytes.fill(0, 28, 34);
    bytes.set([0x63, 0x82, 0x53, 0x63], 236);
    answerDhcp(bytes, 0, settings, () => ({ address: 9 }));
  }), { seed, numRuns: RUNS * 3 });
});

test('addresses of others are not a guest\'s to use', async () => {
  const { network, scheduler, attacker, other } = await createNetwork();
  const plain = network.attach(attacker, { mac: '00:16:3e:00:00:03' });
  attacker.sendUdp(7000, '10.0.2.3', 53, Buffer.from('\0\x01\x01\0\0\x01\0\0\0\0\0\0\x05other\0\0\x01\0\x01', 'latin1'),
    { source: '10.0.2.16' });
  attacker.sendArp('10.0.2.2', '10.0.2.16');
  attacker.sendUdp(1, '10.0.2.2', 1, Buffer.from('x'), { source: '10.0.2.2' });
  scheduler.settle();
  assert.equal(network.metrics().gateway.spoofedAddress, 3);
  assert.equal(other.frames.filter(({ frame }) => frame.readUInt16BE(12) === 0x0800).length, 0);
  const frame = Buffer.alloc(60);
  frame.set(Buffer.from('00163e00000200163e0000010800', 'hex'));
  plain.send(frame, { checksumPartial: false, gsoSize: 0, gsoType: 'none' });
  assert.equal(plain.metrics().txSpoofed, 1);
  await network.close();
});
