import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GUEST_BUDGET_BYTES } from './port-state.ts';
import { BUFFER_BYTES } from './tcp-connection.ts';
import { ACK, FIN, RST, SYN } from './test-tcp-peer.ts';
import type { PeerOptions, TestTcpPeer } from './test-tcp-peer.ts';
import { ALL_FEATURES, createTcpRig, pattern, RecordingApplication } from './test-tcp-rig.ts';
import type { TcpRig } from './test-tcp-rig.ts';

const REMOTE = '93.184.216.34';
const REMOTE_NUMBER = 0x5db8_d822;

function open(
  rig: TcpRig, options: Partial<PeerOptions> = {},
): { peer: TestTcpPeer; application: RecordingApplication } {
  const peer = rig.guest.tcp(40000 + rig.applications.length, REMOTE, 80, { windowScale: 7, ...options });
  peer.connect();
  const index = rig.applications.length;
  assert.ok(rig.scheduler.until(() => peer.state === 'open' && rig.applications[index]?.isConnected === true));
  return { peer, application: rig.applications[index]! };
}

function assertNothingHeld(rig: TcpRig): void {
  assert.equal(rig.stack.metrics().connections, 0);
  assert.equal(rig.stack.metrics().timeWait, 0);
  assert.equal(rig.stack.deadlines.size, 0);
  assert.equal(rig.state.budget.usedBytes, 0);
}

test('handshake: MSS and window scale are offered, and the scale only to who offers it', () => {
  const rig = createTcpRig();
  const { peer } = open(rig);
  assert.equal(peer.farMss, 1460);
  assert.ok(peer.farScale! > 0);
  const plain = open(rig, { windowScale: undefined });
  assert.equal(plain.peer.farScale, undefined);
  plain.application.connection!.write(pattern(300_000, 1));
  assert.ok(rig.scheduler.until(() => plain.peer.receivedBytes === 300_000));
});

test('bytes go both ways and both ends close, whoever is first', () => {
  for (const first of ['guest', 'host', 'both'] as const) {
    const rig = createTcpRig({ features: ALL_FEATURES });
    const { peer, application } = open(rig);
    const up = pattern(200_000, 2);
    const down = pattern(1_000_000, 3);
    peer.write(up);
    application.connection!.write(down);
    if (first !== 'host') peer.end();
    if (first !== 'guest') application.connection!.end();
    assert.ok(rig.scheduler.until(() => application.receivedBytes === up.length && peer.receivedBytes === down.length));
    if (first === 'host') {
      assert.ok(rig.scheduler.until(() => peer.ended));
      assert.equal(application.closedFor, undefined);
      peer.write(Buffer.from('still half open'));
      peer.end();
    }
    if (first === 'guest') {
      assert.ok(rig.scheduler.until(() => application.isEnded));
      application.connection!.write(Buffer.from('still half open'));
      application.connection!.end();
    }
    assert.ok(rig.scheduler.until(() => application.closedFor !== undefined && peer.ended && peer.finAcknowledged));
    assert.equal(application.closedFor, 'finished');
    assert.ok(application.received.subarray(0, up.length).equals(up));
    assert.ok(peer.read().subarray(0, down.length).equals(down));
    rig.scheduler.advance(5000);
    assertNothingHeld(rig);
    assert.equal(rig.stack.metrics().retransmissions, 0);
  }
});

test('where the ends take turns, an acknowledgment goes with the answer, or alone a little later', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig);
  /** Segments to the guest on account of what `act` does. */
  const segments = (act: () => void): number => {
    const before = rig.stack.metrics().segmentsOut;
    act();
    rig.scheduler.settle();
    return rig.stack.metrics().segmentsOut - before;
  };
  const ask = (): number => segments(() => peer.write(Buffer.from('question')));
  const answer = (): number => segments(() => application.connection!.write(Buffer.from('answer')));
  assert.deepEqual([ask(), answer()], [1, 1]); // it cannot know yet
  for (let turn = 0; turn < 3; turn++) assert.deepEqual([ask(), answer()], [0, 1]);
  assert.deepEqual([application.receivedBytes, application.flushes], [4 * 8, 4]); // given on at once all the same
  // A second one is not kept waiting, and neither is a long one.
  assert.deepEqual([ask(), ask(), answer()], [0, 1, 1]);
  assert.equal(segments(() => peer.write(pattern(5000, 1))) > 0, true);
  answer();
  // Without an answer it goes alone, and the next one at once.
  assert.equal(ask(), 0);
  assert.equal(segments(() => rig.scheduler.advance(10)), 1);
  assert.equal(ask(), 1);
  assert.equal(peer.resends, 0);
  peer.end();
  application.connection!.end();
  rig.scheduler.settle();
  rig.scheduler.advance(5000);
  assertNothingHeld(rig);
});

test('what the host writes before the guest has completed the handshake is sent when it has', () => {
  const rig = createTcpRig({ opening: (connection) => {
    connection.accept();
    connection.write(Buffer.from('welcome'));
  } });
  const peer = rig.guest.tcp(1, REMOTE, 2);
  peer.connect();
  rig.scheduler.settle();
  assert.equal(String(peer.read()), 'welcome');
});

test('super-frames both ways when the card takes them, segments of at most the MSS when not', () => {
  const large = createTcpRig({ features: ALL_FEATURES });
  const { peer, application } = open(large, { segmentBytes: 60_000 });
  application.connection!.write(pattern(500_000, 4));
  peer.write(pattern(500_000, 5));
  assert.ok(large.scheduler.until(() => peer.receivedBytes === 500_000 && application.receivedBytes === 500_000));
  assert.equal(peer.largestPayload, 44 * 1460);
  const small = createTcpRig();
  const second = open(small, { mss: 1000 });
  second.application.connection!.write(pattern(50_000, 6));
  assert.ok(small.scheduler.until(() => second.peer.receivedBytes === 50_000));
  assert.equal(second.peer.largestPayload, 1000);
});

for (const wire of [
  { loss: 0.02, doubling: 0.02, delayMillis: 3 }, { loss: 0.15, doubling: 0.1, delayMillis: 20 },
  { loss: 0, doubling: 0.3, delayMillis: 50 }, { loss: 0.3, doubling: 0, delayMillis: 0 },
]) {
  test(`loss, doubling and reordering: ${JSON.stringify(wire)}`, () => {
    for (let seed = 1; seed <= 6; seed++) {
      const features = seed % 2 === 0 ? ALL_FEATURES : undefined;
      const rig = createTcpRig({ seed, wire, features });
      const { peer, application } = open(rig, features === undefined ? {} : { segmentBytes: 20_000 });
      const up = pattern(120_000, seed);
      const down = pattern(150_000, seed + 100);
      peer.write(up);
      peer.end();
      for (let at = 0; at < down.length; at += 7000) application.connection!.write(down.subarray(at, at + 7000));
      application.connection!.end();
      const done = rig.scheduler.until(() => application.closedFor !== undefined && peer.ended && peer.finAcknowledged);
      assert.ok(done, `seed ${seed}: ${application.receivedBytes} up, ${peer.receivedBytes} down`);
      assert.equal(application.closedFor, 'finished', `seed ${seed}`);
      assert.ok(application.received.equals(up), `seed ${seed}`);
      assert.ok(peer.read().equals(down), `seed ${seed}`);
      rig.scheduler.advance(10_000);
      assertNothingHeld(rig);
    }
  });
}

test('a lost segment is sent again after three duplicate acknowledgments, before any timeout', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig);
  const startMillis = rig.scheduler.nowMillis();
  const take = peer.input.bind(peer);
  let data = 0;
  peer.input = (segment) => {
    if (segment.payload.length > 0 && ++data === 2) return;
    take(segment);
  };
  application.connection!.write(pattern(30_000, 9));
  rig.scheduler.settle();
  assert.equal(peer.receivedBytes, 30_000);
  assert.equal(rig.scheduler.nowMillis(), startMillis);
  assert.equal(rig.stack.metrics().retransmissions, 1);
});

test('a full guest stops the host: zero window, probes, and on when it reads', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig, { bufferBytes: 20_000, autoRead: false, windowScale: 0 });
  const bytes = pattern(100_000, 10);
  application.connection!.write(bytes);
  rig.scheduler.advance(200);
  assert.equal(peer.receivedBytes, 20_000);
  const before = rig.guest.frames.length;
  rig.scheduler.advance(3_600_000);
  const probes = rig.guest.frames.length - before;
  assert.ok(probes >= 10 && probes < 500, `${probes} probes in an hour`);
  assert.equal(application.closedFor, undefined); // a guest that answers may take its time
  assert.equal(peer.receivedBytes, 20_000);
  const parts: Buffer[] = [];
  while (parts.reduce((sum, part) => sum + part.length, 0) < bytes.length) {
    parts.push(peer.read());
    rig.scheduler.advance(1000);
  }
  assert.ok(Buffer.concat(parts).equals(bytes));
});

test('a window update that is lost is found by a probe', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig, { bufferBytes: 5000, autoRead: false, windowScale: 0 });
  application.connection!.write(pattern(8000, 10));
  rig.scheduler.advance(100);
  const port = rig.guest.port!;
  rig.guest.port = { ...port, send: () => true };
  peer.read();
  rig.scheduler.settle();
  rig.guest.port = port;
  assert.ok(rig.scheduler.until(() => peer.receivedBytes === 8000, 5000));
});

test('a slow host stops the guest: what is held stays within the window, and the window opens again', () => {
  const rig = createTcpRig({ features: ALL_FEATURES });
  const { peer, application } = open(rig, { segmentBytes: 30_000 });
  application.keeps = true;
  peer.write(pattern(2_000_000, 11));
  rig.scheduler.advance(100);
  assert.ok(application.held > BUFFER_BYTES / 2 && application.held <= BUFFER_BYTES, `${application.held}`);
  rig.scheduler.advance(10_000);
  assert.ok(application.held <= BUFFER_BYTES);
  application.release();
  rig.scheduler.settle();
  assert.ok(rig.scheduler.until(() => application.receivedBytes === 2_000_000, 5000));
});

test('a card without buffers loses nothing and costs no retransmission', () => {
  const rig = createTcpRig({ features: ALL_FEATURES });
  const { peer, application } = open(rig);
  rig.guest.buffers = 0;
  const bytes = pattern(900_000, 12);
  application.connection!.write(bytes);
  rig.scheduler.advance(120_000); // a paused guest
  assert.equal(peer.receivedBytes, 0);
  assert.equal(application.closedFor, undefined);
  for (let round = 0; peer.receivedBytes < bytes.length && round < 1000; round++) {
    rig.guest.post(2);
    rig.scheduler.settle();
  }
  assert.ok(peer.read().equals(bytes));
  assert.equal(rig.stack.metrics().retransmissions, 0);
});

test('a silent guest is given up after many tries, with all that was held', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig);
  peer.input = () => {};
  application.connection!.write(pattern(100_000, 13));
  assert.ok(rig.scheduler.until(() => application.closedFor !== undefined, 3_600_000));
  assert.equal(application.closedFor, 'timeout');
  assertNothingHeld(rig);
});

test('a guest that vanished without traffic is found by keepalive', () => {
  const rig = createTcpRig();
  const { application } = open(rig);
  rig.scheduler.advance(7_000_000 * 3);
  assert.equal(application.closedFor, undefined); // this one answers
  const other = open(rig);
  other.peer.input = () => {};
  rig.scheduler.advance(7_200_000 * 2);
  assert.equal(other.application.closedFor, 'timeout');
});

test('resets: from the guest, from the host, in answer to what belongs to nothing', () => {
  const rig = createTcpRig();
  const first = open(rig);
  first.peer.abort();
  rig.scheduler.settle();
  assert.equal(first.application.closedFor, 'reset');
  const second = open(rig);
  second.application.connection!.write(pattern(5000, 1));
  rig.scheduler.settle();
  second.application.connection!.abort();
  rig.scheduler.settle();
  assert.equal(second.peer.state, 'reset');
  const resets: { flags: number; sequence: number; acknowledgment: number }[] = [];
  rig.guest.onReset = (segment) => resets.push(segment);
  const stray = { window: 1000, payload: Buffer.from('abc'), sequence: 77, acknowledgment: 99 };
  rig.guest.sendSegment(5, REMOTE, 6, { ...stray, flags: ACK });
  rig.guest.sendSegment(5, REMOTE, 6, { ...stray, flags: FIN });
  rig.guest.sendSegment(5, REMOTE, 6, { ...stray, flags: RST });
  rig.scheduler.settle();
  assert.deepEqual(resets.map(({ flags, sequence, acknowledgment }) => [flags, sequence, acknowledgment]),
    [[RST, 99, 0], [RST | ACK, 0, 81]]);
  assertNothingHeld(rig);
});

test('blind resets and SYNs within the window do not end a connection', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig);
  const blind = { window: 0, payload: Buffer.alloc(0), acknowledgment: 0 };
  rig.guest.sendSegment(40000, REMOTE, 80, { ...blind, flags: RST, sequence: peer.sequence + 100 });
  rig.guest.sendSegment(40000, REMOTE, 80, { ...blind, flags: SYN, sequence: peer.sequence + 10 });
  rig.guest.sendSegment(40000, REMOTE, 80, { ...blind, flags: RST, sequence: (peer.sequence - 5) >>> 0 });
  rig.scheduler.settle();
  peer.write(Buffer.from('alive'));
  rig.scheduler.settle();
  assert.equal(application.received.toString(), 'alive');
});

test('sequence numbers wrap', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig, { initialSequence: 0xffff_f000 });
  peer.write(pattern(100_000, 14));
  peer.end();
  assert.ok(rig.scheduler.until(() => application.isEnded));
  assert.ok(application.received.equals(pattern(100_000, 14)));
});

test('a connection to the guest: accepted, refused, and never answered', () => {
  const rig = createTcpRig();
  const addresses = {
    guestMac: 0x0016_3e00_0001, guestAddress: rig.state.address, guestPort: 22,
    remoteAddress: REMOTE_NUMBER, remotePort: 5000,
  };
  const peer = rig.guest.tcp(22, REMOTE, 5000, { windowScale: 3 });
  const open22 = connectTo(rig, addresses);
  assert.ok(rig.scheduler.until(() => open22.isConnected));
  open22.connection!.write(Buffer.from('hello guest'));
  peer.write(Buffer.from('hello host'));
  rig.scheduler.settle();
  assert.equal(peer.read().toString(), 'hello guest');
  assert.equal(open22.received.toString(), 'hello host');
  assert.equal(rig.stack.connect(rig.state, addresses, open22), undefined); // it exists
  const refused = connectTo(rig, { ...addresses, guestPort: 23 });
  rig.guest.onSyn = (segment) => rig.guest.sendSegment(23, REMOTE, 5000, {
    flags: RST | ACK, sequence: 0, acknowledgment: segment.sequence + 1, window: 0, payload: Buffer.alloc(0),
  });
  rig.scheduler.settle();
  assert.equal(refused.closedFor, 'refused');
  rig.guest.onSyn = undefined;
  const silent = connectTo(rig, { ...addresses, guestPort: 24 });
  assert.ok(rig.scheduler.until(() => silent.closedFor !== undefined, 300_000));
  assert.equal(silent.closedFor, 'timeout');
});

test('a host that is slow to answer: the SYN waits, again and again, and is answered once', () => {
  let accept = (): void => {};
  const rig = createTcpRig({ opening: (connection) => (accept = () => connection.accept()) });
  const peer = rig.guest.tcp(40000, REMOTE, 80);
  peer.connect();
  rig.scheduler.advance(2000);
  assert.ok(peer.resends > 2);
  assert.equal(rig.applications.length, 1);
  assert.equal(peer.state, 'syn-sent');
  accept();
  rig.scheduler.settle();
  assert.equal(peer.state, 'open');
});

test('a host that refuses resets the SYN', () => {
  const rig = createTcpRig({ opening: (connection) => connection.abort() });
  const peer = rig.guest.tcp(40000, REMOTE, 80);
  peer.connect();
  rig.scheduler.settle();
  assert.equal(peer.state, 'reset');
  assertNothingHeld(rig);
});

test('a port that waits out TIME-WAIT may be used again with a later sequence number', () => {
  const rig = createTcpRig();
  const { peer, application } = open(rig);
  application.connection!.end();
  rig.scheduler.settle();
  peer.end();
  rig.scheduler.settle();
  assert.equal(application.closedFor, 'finished');
  assert.equal(rig.stack.metrics().timeWait, 1);
  const again = rig.guest.tcp(40000, REMOTE, 80, { initialSequence: 500_000 });
  again.connect();
  assert.ok(rig.scheduler.until(() => again.state === 'open', 100));
  assert.equal(rig.applications.length, 2);
});

test('thousands of connections: bounded, found again, closed', () => {
  const rig = createTcpRig({ features: ALL_FEATURES });
  const peers: TestTcpPeer[] = [];
  for (let i = 0; i < 4200; i++) {
    const peer = rig.guest.tcp(1000 + i, REMOTE, 80);
    peers.push(peer);
    peer.connect();
  }
  rig.scheduler.settle();
  assert.equal(rig.stack.metrics().connections, 4096);
  assert.equal(peers.filter(({ state }) => state === 'open').length, 4096);
  assert.equal(peers.filter(({ state }) => state === 'reset').length, 4200 - 4096);
  peers.forEach((peer, i) => peer.write(Buffer.from(`${i}`)));
  rig.scheduler.settle();
  rig.applications.forEach((application, i) => assert.equal(application.received.toString(), `${i}`));
  peers.forEach((peer) => peer.end());
  rig.applications.forEach(({ connection }) => connection!.end());
  rig.scheduler.advance(10_000);
  assertNothingHeld(rig);
});

test('half-open connections are bounded', () => {
  const rig = createTcpRig({ opening: () => {} });
  for (let i = 0; i < 1000; i++) rig.guest.tcp(1000 + i, REMOTE, 80).connect();
  rig.scheduler.settle();
  assert.equal(rig.applications.length, 512);
  assert.ok(rig.stack.metrics().refusedByBounds >= 488);
});

test('memory: early segments and held bytes stay within the guest\'s budget', () => {
  const budgetBytes = 200_000;
  const rig = createTcpRig({ features: ALL_FEATURES, budgetBytes });
  let most = 0;
  const ends = Array.from({ length: 20 }, () => open(rig));
  ends.forEach(({ peer, application }, i) => {
    application.keeps = true;
    const base = peer.sequence;
    peer.input = () => {}; // segments are made by hand from here on
    for (let piece = 0; piece < 20; piece++) { // with holes between
      rig.guest.sendSegment(40000 + i, REMOTE, 80, {
        flags: ACK, sequence: base + 3000 * piece + (i % 2 === 0 ? 1000 : 0),
        acknowledgment: peer.expects, window: 1000,
        payload: pattern(1400, piece),
      });
      rig.scheduler.settle();
      most = Math.max(most, rig.state.budget.usedBytes);
    }
  });
  assert.ok(most > budgetBytes / 4 && most <= budgetBytes, `${most}`);
  assert.ok(GUEST_BUDGET_BYTES > budgetBytes);
  rig.stack.end(rig.state, 'abort');
  rig.scheduler.advance(1000);
  assertNothingHeld(rig);
});

test('after a restore a guest is asked about its connections and told that they are gone', () => {
  const before = createTcpRig();
  const idle = open(before);
  idle.application.connection!.write(pattern(5000, 1));
  idle.peer.write(pattern(100, 1));
  before.scheduler.settle();
  const records = before.stack.records(before.state);
  assert.equal(records.length, 1);
  // The guest goes on with another stack, which knows nothing.
  const after = createTcpRig({ seed: 2 });
  const seen: number[] = [];
  const back = after.guest.tcp(40000, REMOTE, 80);
  back.input = (segment) => {
    seen.push(segment.flags);
    idle.peer.input(segment);
  };
  before.guest.port = after.port; // what the guest's old end sends goes to the new stack
  after.stack.probe(after.state, JSON.parse(JSON.stringify(records)));
  after.scheduler.settle();
  before.scheduler.settle();
  after.scheduler.settle();
  assert.equal(idle.peer.state, 'reset');
  assert.deepEqual(seen, [ACK, RST]);
});

function connectTo(rig: TcpRig, addresses: Parameters<TcpRig['stack']['connect']>[1]): RecordingApplication {
  const application = new RecordingApplication();
  application.connection = rig.stack.connect(rig.state, addresses, application);
  return application;
}
