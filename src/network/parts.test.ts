// The parts below the protocols: checksums, queues, deadlines, reassembly, segmentation, the switch.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SeededRandom } from '../base/random.ts';
import { formatAddress, formatMac, parseAddress, parseMac, parseSubnet } from './addresses.ts';
import { addBytes, finish } from './checksum.ts';
import { Deadline, DeadlineQueue } from './deadline-queue.ts';
import { CHECKSUM_PARTIAL, NO_FEATURES, NO_OFFLOAD } from './frame-port.ts';
import type { Offload } from './frame-port.ts';
import { Ipv4Header } from './packet.ts';
import { Segmenter } from './segmentation.ts';
import { Switch } from './switch.ts';
import { Reassembly } from './tcp-reassembly.ts';
import { SendQueue } from './tcp-send-queue.ts';
import { mac, parseSegment, slowChecksum, tcpSegment, TestGuest, transportChecksum } from './test-guest.ts';
import { TestScheduler } from './test-scheduler.ts';
import { ALL_FEATURES, GATEWAY_MAC, pattern } from './test-tcp-rig.ts';

const seed = 20261121;

test('checksum: as the plain definition, for every length and alignment', () => {
  fc.assert(fc.property(fc.nat(70_000), fc.nat(3), fc.nat(), (length, start, number) => {
    const bytes = pattern(length + 4, number);
    if (number % 3 === 0) bytes.fill(0xff);
    const part = bytes.subarray(start, start + length);
    assert.equal(finish(addBytes(0, bytes, start, start + length)), slowChecksum(part));
  }), { seed, numRuns: 60 });
});

test('addresses in text and back', () => {
  assert.equal(formatAddress(parseAddress('10.0.2.255')!), '10.0.2.255');
  assert.equal(formatAddress(parseAddress('255.255.255.255')!), '255.255.255.255');
  assert.deepEqual(['1.2.3', '1.2.3.256', '1.2.3.4.5', ' 1.2.3.4', ''].map(parseAddress), Array(5).fill(undefined));
  assert.equal(formatMac(parseMac('fe:16:3E:00:00:0a')!), 'fe:16:3e:00:00:0a');
  assert.equal(parseMac('fe163e00000a'), undefined);
  assert.throws(() => parseSubnet('10.0.0.0/30'), { code: 'ZAZEN_NETWORK_SUBNET' });
});

test('send queue: what is copied is what was pushed, wherever', () => {
  const random = new SeededRandom(seed);
  const queue = new SendQueue();
  let expected = Buffer.alloc(0);
  const target = Buffer.alloc(5000);
  for (let step = 0; step < 3000; step++) {
    const chunk = pattern(random.below(200), step);
    queue.push(chunk);
    expected = Buffer.concat([expected, chunk]);
    const offset = random.below(expected.length + 1);
    const count = random.below(Math.min(5000, expected.length - offset) + 1);
    queue.copy(offset, count, target, 0);
    assert.ok(target.subarray(0, count).equals(expected.subarray(offset, offset + count)));
    const drop = random.below(Math.min(400, expected.length + 1));
    queue.drop(drop);
    expected = expected.subarray(drop);
    assert.equal(queue.length, expected.length);
  }
});

test('early segments come out once, in order, whatever overlaps', () => {
  const piece = fc.tuple(fc.nat(300), fc.integer({ min: 1, max: 80 }));
  fc.assert(fc.property(fc.nat(0xffff_ffff), fc.array(piece, { maxLength: 60 }), (base, pieces) => {
    const bytes = pattern(400, 5);
    const early = new Reassembly();
    const here = new Set<number>();
    for (const [start, length] of pieces) {
      early.insert((base + start) >>> 0, bytes.subarray(start, start + length));
      for (let at = start; at < Math.min(400, start + length); at++) here.add(at);
    }
    let kept = 0;
    for (let at = 0; at < 400;) {
      const part = early.take((base + at) >>> 0);
      if (part === undefined) {
        assert.ok(!here.has(at), `${at}`);
        at++;
        continue;
      }
      assert.ok(bytes.subarray(at, at + part.length).equals(part));
      at += part.length;
      kept += part.length;
    }
    assert.equal(kept, here.size);
    assert.equal(early.bytes, 0);
  }), { seed, numRuns: 300 });
});

test('deadlines fire in order, once, when moved or removed as well', () => {
  const random = new SeededRandom(seed);
  const scheduler = new TestScheduler();
  const queue = new DeadlineQueue(scheduler);
  const fired: number[] = [];
  const due = new Map<number, number>();
  const all = Array.from({ length: 200 }, (_, i) => new Deadline(() => {
    assert.ok(due.get(i)! <= scheduler.nowMillis() && due.get(i)! > scheduler.nowMillis() - 3, `${i}`);
    due.delete(i);
    fired.push(i);
  }));
  for (let step = 0; step < 5000; step++) {
    const index = random.below(all.length);
    if (random.below(4) === 0) {
      queue.remove(all[index]!);
      due.delete(index);
    } else {
      const atMillis = scheduler.nowMillis() + random.below(1000);
      queue.set(all[index]!, atMillis);
      due.set(index, atMillis);
    }
    if (random.below(3) === 0) scheduler.advance(random.below(20));
  }
  scheduler.advance(2000);
  assert.equal(due.size, 0);
  assert.ok(fired.length > 500);
  assert.equal(queue.size, 0);
  assert.equal(scheduler.timers, 0);
});

function superFrame(payload: Buffer, to = '00:16:3e:00:00:02'): Buffer {
  const segment = tcpSegment(1, 2, { flags: 0x19, sequence: 0xffff_ff00, acknowledgment: 9, window: 5, payload });
  const frame = Buffer.alloc(34);
  frame.set(mac(to), 0);
  frame.set(mac('00:16:3e:00:00:01'), 6);
  frame.writeUInt16BE(0x0800, 12);
  frame.set([0x45, 0, 0, 0, 0xff, 0xff, 0, 0, 64, 6], 14);
  frame.writeUInt16BE(20 + segment.length, 16);
  frame.set([10, 0, 2, 15, 10, 0, 2, 16], 26);
  frame.writeUInt16BE(slowChecksum(frame.subarray(14, 34)), 24);
  return Buffer.concat([frame, segment]);
}

test('a super-frame becomes segments with right lengths, numbers, flags and checksums', () => {
  const payload = pattern(10_000, 8);
  const gso: Offload = { checksumPartial: true, gsoSize: 1460, gsoType: 'tcpv4' };
  const parts: { segment: ReturnType<typeof parseSegment>; offload: Offload }[] = [];
  const header = new Ipv4Header();
  assert.ok(new Segmenter().adapt(superFrame(payload), gso, NO_FEATURES, (frame, offload) => {
    assert.ok(header.parse(frame) && frame.length === header.end && frame.length <= 1514);
    const bytes = Buffer.from(frame.subarray(34));
    assert.equal(transportChecksum(6, '10.0.2.15', '10.0.2.16', bytes), 0);
    parts.push({ segment: parseSegment(bytes), offload });
  }));
  assert.equal(parts.length, 7);
  assert.ok(Buffer.concat(parts.map(({ segment }) => segment.payload)).equals(payload));
  parts.forEach(({ segment, offload }, i) => {
    assert.equal(segment.sequence, (0xffff_ff00 + 1460 * i) >>> 0);
    assert.equal(segment.flags, i === 6 ? 0x19 : 0x10);
    assert.deepEqual(offload, NO_OFFLOAD);
  });
  const nothing = (): void => assert.fail('no frame');
  assert.equal(new Segmenter().adapt(superFrame(payload), { ...gso, gsoSize: 4 }, NO_FEATURES, nothing), false);
  assert.equal(new Segmenter().adapt(superFrame(payload).subarray(0, 60), gso, NO_FEATURES, nothing), false);
});

function createSwitch() {
  const scheduler = new TestScheduler();
  const fabric = new Switch({ mtuBytes: 1500, scheduler });
  const toGateway: number[] = [];
  fabric.gateway = {
    mac: GATEWAY_MAC, receive: (_port, frame) => toGateway.push(frame.length), portReady() {}, portClosed() {},
  };
  const attach = (index: number, more: object = {}): TestGuest => {
    const guest = new TestGuest({ scheduler, mac: `00:16:3e:00:00:0${index}`, features: ALL_FEATURES });
    guest.port = fabric.attach(guest, { mac: parseMac(guest.mac)!, ...more });
    guest.receive = (frame, offload) => {
      if (guest.buffers-- <= 0) return false;
      guest.frames.push({ frame: Buffer.from(frame), offload });
      return true;
    };
    return guest;
  };
  return { scheduler, toGateway, attach };
}

function frameOf(to: string, from: string, length = 60): Buffer {
  return Buffer.concat([mac(to), mac(from), Buffer.alloc(length - 12)]);
}

test('switch: known, unknown and group addresses, and nobody\'s frames but one\'s own', () => {
  const { toGateway, attach } = createSwitch();
  const [a, b, c] = [attach(1), attach(2), attach(3)] as [TestGuest, TestGuest, TestGuest];
  const bridge = attach(4, { anyMac: true });
  const counts = (): number[] => [a, b, c, bridge].map(({ frames }) => frames.length);
  a.port!.send(frameOf(b.mac, a.mac), NO_OFFLOAD);
  assert.deepEqual([...counts(), toGateway.length], [0, 1, 0, 0, 0]);
  a.port!.send(frameOf('ff:ff:ff:ff:ff:ff', a.mac), NO_OFFLOAD);
  assert.deepEqual([...counts(), toGateway.length], [0, 2, 1, 1, 1]);
  a.port!.send(frameOf('33:33:00:00:00:01', a.mac), NO_OFFLOAD);
  assert.deepEqual([...counts(), toGateway.length], [0, 3, 2, 2, 1]);
  a.port!.send(frameOf('00:16:3e:99:99:99', a.mac), NO_OFFLOAD); // unknown: only the bridge may have it
  assert.deepEqual(counts(), [0, 3, 2, 3]);
  b.port!.send(frameOf(a.mac, c.mac), NO_OFFLOAD);
  assert.deepEqual(counts(), [0, 3, 2, 3]);
  bridge.port!.send(frameOf(a.mac, '00:16:3e:99:99:99'), NO_OFFLOAD);
  bridge.port!.send(frameOf(a.mac, b.mac), NO_OFFLOAD); // not the bridge's
  assert.deepEqual(counts(), [1, 3, 2, 3]);
  c.port!.close();
  a.port!.send(frameOf(c.mac, a.mac), NO_OFFLOAD);
  assert.deepEqual(counts(), [1, 3, 2, 4]);
  a.port!.send(frameOf(b.mac, a.mac, 1519), NO_OFFLOAD);
  a.port!.send(frameOf(b.mac, a.mac, 13), NO_OFFLOAD);
  assert.deepEqual(counts(), [1, 3, 2, 4]);
});

test('switch: a learned address goes after a time without frames, and is not taken away before', () => {
  const { attach, scheduler } = createSwitch();
  const a = attach(1);
  const bridges = [attach(2, { anyMac: true }), attach(3, { anyMac: true })] as [TestGuest, TestGuest];
  const inner = '02:00:00:00:00:99';
  bridges[0].port!.send(frameOf(a.mac, inner), NO_OFFLOAD);
  bridges[1].port!.send(frameOf(a.mac, inner), NO_OFFLOAD);
  assert.equal(a.frames.length, 1);
  scheduler.advance(300_001);
  bridges[1].port!.send(frameOf(a.mac, inner), NO_OFFLOAD);
  a.port!.send(frameOf(inner, a.mac), NO_OFFLOAD);
  assert.deepEqual([a.frames.length, bridges[0].frames.length, bridges[1].frames.length], [2, 0, 1]);
});

test('switch: frames wait for a guest without buffers up to a bound, in order', () => {
  const { attach } = createSwitch();
  const [a, b] = [attach(1), attach(2)] as [TestGuest, TestGuest];
  b.buffers = 3;
  for (let i = 0; i < 1000; i++) a.port!.send(frameOf(b.mac, a.mac, 100 + (i % 1000)), NO_OFFLOAD);
  assert.equal(b.frames.length, 3);
  b.post(2);
  assert.equal(b.frames.length, 5);
  b.post(1e6);
  assert.equal(b.frames.length, 3 + 512);
  b.frames.forEach(({ frame }, i) => assert.equal(frame.length, 100 + i));
});

test('switch: a guest that takes no offloads gets plain frames from one that does', () => {
  const { attach } = createSwitch();
  const [a, b] = [attach(1), attach(2)] as [TestGuest, TestGuest];
  const gso: Offload = { checksumPartial: true, gsoSize: 1000, gsoType: 'tcpv4' };
  const frame = superFrame(pattern(5000, 1));
  a.port!.send(frame, gso);
  assert.deepEqual(b.frames.map((seen) => [seen.frame.length, seen.offload.gsoSize]), [[frame.length, 1000]]);
  b.features = { ...ALL_FEATURES, tsoV4: false };
  a.port!.send(frame, gso);
  assert.deepEqual(b.frames.slice(1).map(({ offload }) => offload), Array(5).fill(CHECKSUM_PARTIAL));
  b.features = NO_FEATURES;
  a.port!.send(frame, gso);
  assert.deepEqual(b.frames.slice(6).map(({ offload }) => offload), Array(5).fill(NO_OFFLOAD));
});

test('switch: a rate holds a guest back and lets it on', () => {
  const { attach, scheduler } = createSwitch();
  const a = attach(1, { rateBytesPerSecond: 100_000 });
  const b = attach(2);
  const startMillis = scheduler.nowMillis();
  let sent = 0;
  while (sent < 200) {
    if (a.port!.send(frameOf(b.mac, a.mac, 1000), NO_OFFLOAD)) sent++;
    else assert.ok(scheduler.until(() => a.writableCalls > 0));
    a.writableCalls = 0;
  }
  const millis = scheduler.nowMillis() - startMillis;
  assert.ok(millis >= 1900 && millis <= 2100, `${millis}`);
});
