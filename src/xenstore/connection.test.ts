// Framing, backpressure, and connections that are saved and go on elsewhere.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { XS_TYPE } from '../abi/xenstore-wire.ts';
import { stringToBytes } from './bytes.ts';
import { message } from './connection.ts';
import { Store } from './store.ts';
import { homes, TestClient } from './test-wire-client.ts';

function guest(quota = {}): { store: Store; client: TestClient } {
  const store = new Store({ quota });
  homes(store, 5, 6);
  return { store, client: new TestClient(store, { domainId: 5 }) };
}

const request = (type: number, payload: string, id = 1) => message(type, id, 0, stringToBytes(payload));

function join(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let position = 0;
  for (const part of parts) {
    bytes.set(part, position);
    position += part.length;
  }
  return bytes;
}

test('a stream of messages means the same however it is cut', () => {
  const stream = join([
    request(XS_TYPE.WRITE, 'a\0value', 1), request(XS_TYPE.READ, 'a\0', 2), request(XS_TYPE.WATCH, 'a\0t\0', 3),
    request(XS_TYPE.GET_FEATURE, '', 4), request(XS_TYPE.RM, 'a\0', 5), request(XS_TYPE.READ, 'a\0', 6),
  ]);
  const whole = guest().client;
  whole.connection.receive(stream);
  const expected = whole.take();
  assert.equal(expected.length, 8);
  fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }), (cuts) => {
    const { client } = guest();
    for (let position = 0, i = 0; position < stream.length; i++) {
      const piece = stream.subarray(position, position + cuts[i % cuts.length]!);
      assert.equal(client.connection.receive(piece), piece.length);
      position += piece.length;
    }
    assert.deepEqual(client.take(), expected);
  }), { numRuns: 50 });
});

test('a payload longer than the protocol allows ends the connection, until it is reset', () => {
  const { store, client } = guest();
  client.ask('WATCH', 'a\0t\0');
  const header = message(XS_TYPE.READ, 1, 0, new Uint8Array(0));
  new DataView(header.buffer).setUint32(12, 4097, true);
  client.connection.receive(header);
  assert.equal(client.connection.state, 'broken');
  assert.equal(client.connection.wantsInput, false);
  assert.equal(client.connection.receive(request(XS_TYPE.READ, 'a\0')), 0);
  client.takeEvents();
  store.write('/local/domain/5/a', 'v');
  assert.deepEqual(client.take(), []);
  client.connection.reset();
  assert.equal(client.ask('READ', 'a\0'), 'v');
  assert.deepEqual(client.takeEvents(), []);
});

test('a payload of exactly the greatest length is answered', () => {
  const { client } = guest({ 'node-size': 0 });
  assert.equal(client.ask('WRITE', `a\0${'v'.repeat(4094)}`), 'OK\0');
  assert.equal(client.ask('READ', 'a\0').length, 4094);
});

test('a client that reads no replies is not read from', () => {
  const { client } = guest({ outstanding: 4 });
  client.room = 10;
  const requests = join(Array.from({ length: 100 }, (_, i) => request(XS_TYPE.GET_DOMAIN_PATH, '1\0', i)));
  let taken = client.connection.receive(requests);
  assert.equal(taken, requests.length / 100 * 4);
  assert.equal(client.connection.wantsInput, false);
  while (taken < requests.length) {
    client.room = 64;
    client.connection.flush();
    taken += client.connection.receive(requests.subarray(taken));
  }
  client.room = Infinity;
  client.connection.flush();
  assert.deepEqual(client.take().map(({ requestId }) => requestId), Array.from({ length: 100 }, (_, i) => i));
  assert.equal(client.connection.queuedBytes, 0);
});

test('events to a client that does not read are bounded, and none of its watches stays silent', () => {
  const { store, client } = guest();
  const deep = 'x'.repeat(500);
  for (let i = 0; i < 128; i++) client.ask('WATCH', `w\0token-${i}\0`);
  client.takeEvents();
  client.room = 0;
  for (let i = 0; i < 50; i++) store.write(`/local/domain/5/w/${deep}${i}`, 'v');
  assert.ok(client.connection.queuedBytes < 65536);
  assert.equal(client.connection.wantsInput, false);
  client.room = Infinity;
  client.connection.flush();
  const tokens = new Set(client.takeEvents().map((event) => event.split(' ')[1]));
  assert.equal(tokens.size, 128);
  assert.equal(client.connection.queuedBytes, 0);
  assert.equal(client.ask('READ', 'w\0'), '', 'and it is served again');
});

test('an event that waits already stands for the next one alike', () => {
  const { store, client } = guest();
  client.ask('WATCH', 'w\0t\0');
  client.takeEvents();
  client.room = 0;
  for (let i = 0; i < 10; i++) store.write('/local/domain/5/w', String(i));
  client.room = Infinity;
  client.connection.flush();
  assert.deepEqual(client.takeEvents(), ['w t']);
});

test('a saved connection goes on where it stood', () => {
  const { store, client } = guest();
  client.ask('WATCH', 'w\0t\x002\0');
  client.ask('WATCH', '/local/domain/5/v\0u\0');
  client.takeEvents();
  const tx = client.begin();
  client.ask('WRITE', 'n\0v', tx);
  client.room = 0;
  store.write('/local/domain/5/w', 'v');
  const half = request(XS_TYPE.GET_DOMAIN_PATH, '5\0', 77);
  client.connection.receive(half.subarray(0, 17));
  const saved = JSON.parse(JSON.stringify({
    connection: client.connection.saveState(), tree: store.dump('/'), domain: store.saveDomain(5),
  }));

  const elsewhere = new Store();
  elsewhere.restoreSnapshot('/', elsewhere.snapshotOf(saved.tree)!);
  elsewhere.restoreDomain(5, saved.domain);
  elsewhere.domainIntroduced(5);
  const again = new TestClient(elsewhere, { domainId: 5, state: saved.connection });
  again.connection.flush();
  assert.deepEqual(again.takeEvents(), ['w t']);
  again.connection.receive(half.subarray(17));
  assert.deepEqual(again.take().map(({ requestId, payload }) => [requestId, payload]), [[77, '/local/domain/5\0']]);
  assert.equal(again.ask('WRITE', 'm\0v', tx), 'OK\0');
  assert.equal(again.ask('TRANSACTION_END', 'T\0', tx), 'EAGAIN');
  assert.equal(again.ask('WATCH', 'w\0t\0'), 'EEXIST');
  elsewhere.write('/local/domain/5/v/x', '');
  elsewhere.write('/local/domain/5/w/1/2/3', '');
  assert.deepEqual(again.takeEvents(), ['/local/domain/5/v/x u']);
});

test('a saved state that is none is refused', () => {
  const { store, client } = guest();
  const state = client.connection.saveState();
  const broken = [
    { ...state, input: 'x'.repeat(17) },
    { ...state, input: 7 as never },
    { ...state, output: [{ event: false, bytes: '\u{100}' }] },
    { ...state, watches: [null as never] },
    { ...state, watches: [{ path: 'w', token: '', depth: null, pending: false }, { path: '//', token: '' } as never] },
    { ...state, transactionIds: undefined as never },
  ];
  for (const bad of broken) {
    assert.throws(() => new TestClient(store, { domainId: 5, state: bad }), { code: 'ZAZEN_STORE_EINVAL' });
  }
  assert.equal(store.stats().watches, 0);
});

test('a closed connection leaves no watch behind', () => {
  const { store, client } = guest();
  client.ask('WATCH', 'w\0t\0');
  client.takeEvents();
  assert.equal(store.stats().watches, 1);
  client.connection.close();
  assert.equal(store.stats().watches, 0);
  store.write('/local/domain/5/w', 'v');
  assert.deepEqual(client.take(), []);
  assert.equal(client.connection.receive(request(XS_TYPE.READ, 'w\0')), 0);
});
