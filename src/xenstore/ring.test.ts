// The ring page from the guest's side: a front end as a guest's kernel has it, and one that writes nonsense.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  XENSTORE_CONNECTED, XENSTORE_DOMAIN_INTERFACE, XENSTORE_ERROR, XENSTORE_RECONNECT, XENSTORE_RING_SIZE, XS_TYPE,
} from '../abi/xenstore-wire.ts';
import { stringToBytes } from './bytes.ts';
import { message } from './connection.ts';
import { XenstoreRing } from './ring.ts';
import { Store } from './store.ts';
import { homes, parseMessages } from './test-wire-client.ts';

const { at } = XENSTORE_DOMAIN_INTERFACE;
type Field = 'req_cons' | 'req_prod' | 'rsp_cons' | 'rsp_prod' | 'server_features' | 'connection' | 'error';

test('the interface page is laid out as the header says', () => {
  assert.deepEqual(at, {
    req: 0, rsp: 1024, req_cons: 2048, req_prod: 2052, rsp_cons: 2056, rsp_prod: 2060, server_features: 2064,
    connection: 2068, error: 2072,
  });
});

/** A front end: writes requests as far as there is room, reads what there is. */
class FrontEnd {
  readonly page: Uint8Array;
  readonly store: Store;
  readonly ring: XenstoreRing;
  signals = 0;
  readonly #words: Int32Array;

  constructor(firstIndex = 0) {
    this.page = new Uint8Array(new SharedArrayBuffer(8192), 4096, 4096);
    this.#words = new Int32Array(this.page.buffer, 4096);
    for (const field of ['req_cons', 'req_prod', 'rsp_cons', 'rsp_prod'] as const) this.set(field, firstIndex);
    this.store = new Store();
    homes(this.store, 5);
    this.ring = new XenstoreRing(this.store, { domainId: 5, page: () => this.page, notify: () => this.signals++ });
  }

  get(field: Field): number {
    return this.#words[at[field] / 4]! >>> 0;
  }

  set(field: Field, value: number): void {
    this.#words[at[field] / 4] = value | 0;
  }

  /** Returns how many bytes fitted. */
  put(bytes: Uint8Array): number {
    const produced = this.get('req_prod');
    const room = XENSTORE_RING_SIZE - ((produced - this.get('req_cons')) >>> 0);
    const count = Math.min(room, bytes.length);
    for (let i = 0; i < count; i++) this.page[at.req + ((produced + i) % XENSTORE_RING_SIZE)] = bytes[i]!;
    this.set('req_prod', produced + count);
    return count;
  }

  drain(maxBytes = Infinity): number[] {
    const bytes: number[] = [];
    const consumed = this.get('rsp_cons');
    const count = Math.min(maxBytes, (this.get('rsp_prod') - consumed) >>> 0);
    for (let i = 0; i < count; i++) bytes.push(this.page[at.rsp + ((consumed + i) % XENSTORE_RING_SIZE)]!);
    this.set('rsp_cons', consumed + count);
    return bytes;
  }
}

const request = (type: number, payload: string, id = 1) => message(type, id, 0, stringToBytes(payload));

test('requests and replies larger than the ring pass through it, across the wrap of the indices', () => {
  const guest = new FrontEnd(0xfffffe00);
  assert.equal(guest.get('server_features'), 7);
  const value = Array.from({ length: 2000 }, (_, i) => String.fromCharCode(33 + (i % 90))).join('');
  const stream = [request(XS_TYPE.WRITE, `big\0${value}`, 1), request(XS_TYPE.READ, 'big\0', 2)];
  const received: number[] = [];
  for (const bytes of stream) {
    for (let sent = 0; sent < bytes.length;) {
      sent += guest.put(bytes.subarray(sent));
      guest.ring.service();
    }
    for (let count = -1; count !== received.length;) {
      count = received.length;
      received.push(...guest.drain(100));
      guest.ring.service();
    }
  }
  const replies = parseMessages(Uint8Array.from(received));
  assert.deepEqual(replies.map(({ payload }) => payload), ['OK\0', value]);
  assert.ok(guest.get('req_prod') < 0x1000, 'the index has wrapped');
  assert.ok(guest.signals > 0);
});

test('events come without being asked for, and signal the guest', () => {
  const guest = new FrontEnd();
  guest.put(request(XS_TYPE.WATCH, 'w\0t\0'));
  guest.ring.service();
  assert.equal(guest.signals, 1);
  guest.drain();
  guest.store.write('/local/domain/6', 'v');
  assert.equal(guest.signals, 1, 'nothing to tell');
  guest.store.write('/local/domain/5/w', 'v');
  assert.equal(guest.signals, 2);
  assert.equal(parseMessages(Uint8Array.from(guest.drain()))[0]!.type, XS_TYPE.WATCH_EVENT);
});

test('indices that can\'t be break the connection until the guest asks for a reset', () => {
  for (const [producer, consumer] of [['req_prod', 'req_cons'], ['rsp_prod', 'rsp_cons']] as const) {
    const guest = new FrontEnd();
    guest.put(request(XS_TYPE.READ, 'a\0'));
    guest.set(producer, guest.get(consumer) + XENSTORE_RING_SIZE + 1);
    if (producer === 'rsp_prod') guest.set('rsp_cons', 0);
    guest.ring.service();
    assert.equal(guest.get('error'), XENSTORE_ERROR.RINGIDX);
    assert.equal(guest.ring.connection.state, 'broken');
    assert.ok(guest.signals > 0);
    guest.ring.service();
    guest.set('connection', XENSTORE_RECONNECT);
    guest.ring.service();
    assert.equal(guest.get('connection'), XENSTORE_CONNECTED);
    assert.equal(guest.get('error'), XENSTORE_ERROR.NONE);
    assert.equal(guest.get(producer), 0);
    guest.put(request(XS_TYPE.GET_DOMAIN_PATH, '5\0', 9));
    guest.ring.service();
    assert.equal(parseMessages(Uint8Array.from(guest.drain()))[0]!.requestId, 9);
  }
});

test('a reset drops watches, transactions and half a message', () => {
  const guest = new FrontEnd();
  guest.store.setPerms('/local/domain/5', ['n5']);
  guest.put(request(XS_TYPE.WATCH, 'w\0t\0'));
  guest.put(request(XS_TYPE.READ, 'w\0').subarray(0, 17));
  guest.ring.service();
  guest.set('connection', XENSTORE_RECONNECT);
  guest.ring.service();
  guest.store.write('/local/domain/5/w', 'v');
  guest.put(request(XS_TYPE.READ, 'w\0', 3));
  guest.ring.service();
  assert.deepEqual(parseMessages(Uint8Array.from(guest.drain())).map(({ requestId }) => requestId), [3]);
});

test('too long a payload is told in the page', () => {
  const guest = new FrontEnd();
  const header = request(XS_TYPE.READ, '');
  new DataView(header.buffer).setUint32(12, 0xffffffff, true);
  guest.put(header);
  guest.ring.service();
  assert.equal(guest.get('error'), XENSTORE_ERROR.PROTO);
});

test('a guest that writes without end is left after a bounded time', () => {
  const guest = new FrontEnd();
  const flood = request(XS_TYPE.RESET_WATCHES, '\0');
  const options = { domainId: 5, page: () => endless(guest, flood), notify: () => {} };
  const ring = new XenstoreRing(guest.store, options);
  endless(guest, flood);
  assert.equal(ring.service(), true);
});

/** As if another processor of the guest wrote requests and read replies all the time. */
function endless(guest: FrontEnd, bytes: Uint8Array): Uint8Array {
  guest.drain();
  while (XENSTORE_RING_SIZE - ((guest.get('req_prod') - guest.get('req_cons')) >>> 0) >= bytes.length) guest.put(bytes);
  return guest.page;
}

test('whatever the page holds, nothing throws and no bytes but the ring\'s are written', () => {
  const field = fc.constantFrom<Field>('req_cons', 'req_prod', 'rsp_cons', 'rsp_prod', 'connection', 'error');
  const near = fc.integer({ min: -1030, max: 1030 });
  const step = fc.oneof(
    fc.record({ set: field, to: fc.oneof(near, fc.integer()) }),
    fc.record({ put: fc.uint8Array({ maxLength: 64 }) }),
    fc.record({ ask: fc.integer({ min: 0, max: 28 }), payload: fc.constantFrom('', '\0', 'a\0', 'a\0b\0', 'T\0') }),
  );
  fc.assert(fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
    const guest = new FrontEnd();
    const tail = guest.page.subarray(XENSTORE_DOMAIN_INTERFACE.sizeBytes);
    for (const one of steps) {
      if ('set' in one) guest.set(one.set, one.to);
      else if ('put' in one) guest.page.set(one.put, at.req);
      else if (((guest.get('req_prod') - guest.get('req_cons')) >>> 0) <= XENSTORE_RING_SIZE) {
        guest.put(request(one.ask, one.payload));
      }
      guest.ring.service();
      guest.store.write('/local/domain/5/a', 'v');
    }
    assert.ok(tail.every((byte) => byte === 0));
    assert.deepEqual(guest.store.audit(), []);
    guest.set('connection', XENSTORE_RECONNECT);
    guest.ring.service();
    guest.put(request(XS_TYPE.GET_DOMAIN_PATH, '5\0', 4242));
    guest.ring.service();
    assert.equal(parseMessages(Uint8Array.from(guest.drain())).at(-1)?.requestId, 4242, 'a reset always helps');
  }), { numRuns: 150 });
});
