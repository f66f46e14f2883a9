// The network card's back end against a front end written apart from it, and against rings full of nonsense.
// ZAZEN_FUZZ_RUNS: how many hostile guests there are; ZAZEN_SEED: which.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { NETIF_RSP, NETRXF, NETTXF, netifRxRequest, netifTxRequest } from '../../abi/xen-net.ts';
import { NO_OFFLOAD } from '../../network/frame-port.ts';
import type { Offload } from '../../network/frame-port.ts';
import { NetBackend } from './backend.ts';
import type { NetConnection } from './backend.ts';
import { readFrontEnd } from './front-end-entries.ts';
import { parseNetDeviceState } from './state.ts';
import { TestGuest, TestNetwork, TestRing, gsoSlot, txSlot } from './test-front-end.ts';

const PAGES = 64;
const TX_PAGE = 60;
const RX_PAGE = 61;
const FEATURES = { checksumPartial: true, tsoV4: true, tsoV6: true };
const OKAY = NETIF_RSP.okay & 0xffff;
const ERROR = NETIF_RSP.error & 0xffff;

function connection(position = 0, isSplit = false): NetConnection {
  const queue = {
    txRef: TX_PAGE, rxRef: RX_PAGE, txPort: 3, rxPort: isSplit ? 4 : 3, txPosition: position, rxPosition: position,
  };
  return { queues: [queue], features: FEATURES, scatterGather: true };
}

/** A card that is connected, its guest with two rings, and a network. */
function rig(position = 0, isSplit = false) {
  const guest = new TestGuest(PAGES);
  const network = new TestNetwork();
  const tx = new TestRing(guest, TX_PAGE, netifTxRequest.sizeBytes, position);
  const rx = new TestRing(guest, RX_PAGE, netifRxRequest.sizeBytes, position);
  const backend = new NetBackend(guest, () => network);
  assert(backend.connect(connection(position, isSplit)));
  const fill = (page: number, seed: number): void => {
    guest.granted.set(page, true);
    for (let i = 0; i < 4096; i++) guest.memory[page * 4096 + i] = seed + i * 7;
  };
  /** Buffers for what is received, granted: pages from `first` on. */
  const post = (first: number, count: number): void => {
    for (let i = 0; i < count; i++) {
      guest.granted.set(first + i, true);
      rx.put(first + i, first + i); // its id, and its grant
    }
    rx.push();
  };
  return { guest, network, tx, rx, backend, fill, post };
}

const statusOf = (slot: Buffer): number => slot.readUInt16LE(2);

for (const position of [0, 0xffff_fff0]) {
  test(`frames of one slot and of several, from index ${position}`, () => {
    const { guest, network, tx, fill } = rig(position);
    for (const page of [1, 2, 3]) fill(page, page);
    tx.put(...txSlot(1, 100, 0, 11, 60));
    tx.put(...txSlot(1, 0, NETTXF.csum_blank | NETTXF.data_validated | NETTXF.extra_info | NETTXF.more_data, 12, 9000));
    tx.put(...gsoSlot(1, 1, 1460));
    tx.put(...txSlot(2, 0, NETTXF.more_data, 13, 4096));
    tx.put(...txSlot(3, 8, 0, 14, 1000));
    tx.push();
    guest.kick();
    assert.deepEqual(network.frames.map(({ bytes }) => bytes.length), [60, 9000]);
    const [small, large] = network.frames as [(typeof network.frames)[0], (typeof network.frames)[0]];
    assert.deepEqual(small.bytes, guest.page(1).subarray(100, 160));
    assert.deepEqual(small.offload, NO_OFFLOAD);
    // Sizes of the other slots say how much the first one has.
    const parts = [guest.page(1).subarray(0, 3904), guest.page(2), guest.page(3).subarray(8, 1008)];
    assert.deepEqual(large.bytes, Buffer.concat(parts));
    assert.deepEqual(large.offload, { checksumPartial: true, gsoSize: 1460, gsoType: 'tcpv4' });
    const responses = tx.responses();
    assert.deepEqual(responses.map(statusOf), [OKAY, OKAY, NETIF_RSP.null, OKAY, OKAY]);
    assert.deepEqual([0, 1, 3, 4].map((i) => responses[i]!.readUInt16LE(0)), [11, 12, 13, 14]);
    assert.equal(guest.inUse, 2); // the rings

    assert.equal(tx.get('req_event'), (position + 6) >>> 0); // it wants to hear of the next one
    assert.deepEqual(guest.notified, [1]);
  });

  test(`frames to the guest, with and without offloads, from index ${position}`, () => {
    const { guest, backend, rx, post } = rig(position);
    const frame = Buffer.from(Array.from({ length: 9000 }, (_, i) => (i * 13) & 0xff));
    assert.equal(backend.receive(frame, NO_OFFLOAD), false);
    assert.equal(rx.get('req_event'), (position + 3) >>> 0);
    post(10, 5);
    assert(backend.receive(frame, { checksumPartial: true, gsoSize: 1448, gsoType: 'tcpv6' }));
    assert(backend.receive(frame.subarray(0, 100), NO_OFFLOAD));
    const [first, extra, second, third, plain] = rx.responses() as [Buffer, Buffer, Buffer, Buffer, Buffer];
    const fields = (slot: Buffer): number[] =>
      [slot.readUInt16LE(0), slot.readUInt16LE(2), slot.readUInt16LE(4), slot.readInt16LE(6)];
    const { csum_blank, data_validated, more_data, extra_info } = NETRXF;
    assert.deepEqual(fields(first), [10, 0, csum_blank | data_validated | more_data | extra_info, 4096]);
    assert.deepEqual([extra[0], extra[1], extra.readUInt16LE(2), extra[4]], [1, 0, 1448, 2]);
    assert.deepEqual(fields(second), [12, 0, more_data, 4096]);
    assert.deepEqual(fields(third), [13, 0, 0, 808]);
    assert.deepEqual(fields(plain), [14, 0, 0, 100]);
    const bytes = Buffer.concat([guest.page(10), guest.page(12), guest.page(13).subarray(0, 808)]);
    assert.deepEqual(bytes, frame);
    assert.equal(guest.inUse, 2);
  });
}

/** A frame of so many bytes, sent; answered, and looked at by the guest only where it says so. */
function sender({ tx, guest, fill }: ReturnType<typeof rig>): (sizeBytes: number) => void {
  fill(1, 1);
  return (sizeBytes) => {
    tx.put(...txSlot(1, 0, 0, 5, sizeBytes));
    tx.push();
    guest.kick();
  };
}
const millis = (count: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, count));

test('that a short frame was sent is told later, and only to a guest that has not seen it by then', async () => {
  const card = rig();
  const { guest, tx, backend } = card;
  const send = sender(card);
  send(1000);
  assert.equal(guest.notified.length, 1);
  assert.equal(tx.responses().length, 1);
  // It looks by itself.
  send(60);
  assert.equal(tx.responses().length, 1);
  // It does not, and sends more meanwhile: told once, of all of them. That it was not told of the first is seen by that.
  send(60);
  send(60);
  assert.equal(guest.notified.length, 1);
  while (guest.notified.length === 1) await millis(1);
  assert.equal(tx.responses().length, 2);
  // One that sees them all before the time comes is not told.
  const { notifications } = backend.metrics;
  send(60);
  assert.equal(tx.responses().length, 1);
  send(2000);
  assert.equal(backend.metrics.notifications, notifications + 1);
  assert.equal(tx.responses().length, 1);
  await millis(10);
  assert.equal(backend.metrics.notifications, notifications + 1);
  backend.disconnect();
});

test('a guest that is to be frozen is told before; later nothing is told and no page is used', async () => {
  const card = rig();
  const { guest, tx, backend } = card;
  const send = sender(card);
  send(60);
  assert.equal(guest.notified.length, 0);
  backend.letGo();
  assert.equal(guest.notified.length, 1);
  assert.equal(guest.inUse, 0);
  await millis(10);
  assert.deepEqual([guest.notified.length, guest.inUse], [1, 0]);
  // It goes on where it was.
  send(60);
  assert.equal(tx.responses().length, 2);
  // One that has seen all is not told, and neither is one whose card goes.
  backend.letGo();
  assert.equal(guest.notified.length, 1);
  send(60);
  backend.disconnect();
  await millis(10);
  assert.deepEqual([guest.notified.length, guest.inUse], [1, 0]);
});

test('while it is held no page of the guest is used; what comes meanwhile is seen to afterwards', async () => {
  const card = rig();
  const { guest, network, tx, rx, backend, post } = card;
  const send = sender(card);
  send(60);
  assert.equal(backend.receive(new Uint8Array(64), NO_OFFLOAD), false);
  backend.hold();
  assert.deepEqual([guest.inUse, guest.notified.length], [0, 1]);
  const { shortage } = guest;
  // Whatever would have it look at the rings does not.
  const granted = new Map(guest.granted);
  guest.granted.clear();
  send(70);
  post(10, 2);
  backend.writable();
  backend.wake();
  assert.equal(backend.receive(new Uint8Array(80), NO_OFFLOAD), false);
  await millis(10);
  assert.deepEqual([guest.inUse, guest.shortage, network.frames.length, backend.metrics.badIndices], [0, shortage, 1, 0]);
  assert.deepEqual(backend.save()!.queues[0], { ...connection().queues[0], txPosition: 1, rxPosition: 0 });
  for (const [ref, mayWrite] of granted) guest.granted.set(ref, mayWrite);
  const before = network.readies;
  backend.release();
  assert.deepEqual(network.frames.map(({ bytes }) => bytes.length), [60, 70]);
  assert(network.readies > before);
  assert(backend.receive(new Uint8Array(80), NO_OFFLOAD));
  assert.deepEqual([tx.responses().length, rx.responses().length], [2, 1]);
  backend.disconnect();
});

test('a card that nothing has come for does not look at its rings when it is released', () => {
  const { guest, backend } = rig();
  backend.hold();
  backend.release();
  backend.release();
  assert.equal(guest.inUse, 0);
  backend.disconnect();
});

test('back-pressure: what is not taken stays in the ring; the network is told of buffers only when it waits', async () => {
  const { guest, network, backend, tx, fill, post } = rig(0, true);
  fill(1, 1);
  network.isFull = true;
  tx.put(...txSlot(1, 0, 0, 5, 64));
  tx.push();
  guest.kick();
  assert.deepEqual(tx.responses(), []);
  assert.equal(backend.metrics.txStalls, 1);
  network.isFull = false;
  backend.writable();
  await new Promise<void>((resolve) => setImmediate(resolve));
  assert.deepEqual(tx.responses().map(statusOf), [OKAY]);
  post(10, 1);
  guest.kick();
  assert.equal(network.readies, 0);
  assert.equal(backend.receive(new Uint8Array(5000), NO_OFFLOAD), false);
  guest.kick();
  assert.equal(network.readies, 0); // one buffer is not two
  post(11, 1);
  guest.kick();
  assert.equal(network.readies, 1);
});

test('what is no frame is answered slot for slot, and nothing stays in use', () => {
  const { more_data, extra_info, csum_blank } = NETTXF;
  const bad: Readonly<Record<string, number[][]>> = {
    'not granted': [txSlot(40, 0, 0, 1, 64)],
    'beyond the page': [txSlot(1, 4090, 0, 1, 64)],
    'too short': [txSlot(1, 0, 0, 1, 13)],
    'parts larger than the whole': [txSlot(1, 0, more_data, 1, 64), txSlot(1, 0, 0, 2, 65)],
    'nothing left for the first': [txSlot(1, 0, more_data, 1, 64), txSlot(1, 0, 0, 2, 64)],
    'no end': [txSlot(1, 0, more_data, 1, 640), txSlot(1, 0, more_data, 2, 64)],
    'no extra': [txSlot(1, 0, extra_info, 1, 64)],
    'unknown extra': [txSlot(1, 0, extra_info, 1, 64), gsoSlot(2, 1, 1460)],
    'unknown segmentation': [txSlot(1, 0, extra_info | csum_blank, 1, 64), gsoSlot(1, 3, 1460)],
    'segments of nothing': [txSlot(1, 0, extra_info | csum_blank, 1, 64), gsoSlot(1, 1, 0)],
    'extra of a part': [txSlot(1, 0, more_data, 1, 164), txSlot(1, 0, extra_info, 2, 64)],
    'too many parts': Array.from({ length: 30 }, (_, i) => txSlot(1, 0, i < 29 ? more_data : 0, i, i === 0 ? 4000 : 1)),
  };
  for (const [name, slots] of Object.entries(bad)) {
    const { guest, network, tx, backend, fill } = rig();
    fill(1, 1);
    for (const slot of slots) tx.put(...slot);
    tx.push();
    guest.kick();
    assert.deepEqual(network.frames, [], name);
    const answers = tx.responses().map(statusOf);
    assert.equal(answers.length, slots.length, name);
    assert(answers.every((status) => status === ERROR || status === NETIF_RSP.null), name);
    assert.equal(backend.metrics.txErrors, 1, name);
    assert.equal(guest.inUse, 2, name);
    // The next frame is one again.
    tx.put(...txSlot(1, 0, 0, 9, 64));
    tx.push();
    guest.kick();
    assert.equal(network.frames.length, 1, name);
  }
});

test('a buffer that is not granted any more makes a frame with an error; an index that cannot be is waited out', () => {
  const { guest, rx, tx, backend, post } = rig();
  post(10, 3);
  guest.granted.delete(11);
  assert(backend.receive(new Uint8Array(9000), NO_OFFLOAD));
  assert.deepEqual(rx.responses().map((slot) => slot.readInt16LE(6)), [4096, NETIF_RSP.error, 808]);
  assert.equal(backend.metrics.rxErrors, 1);
  tx.set('req_prod', 300);
  guest.kick();
  assert.equal(tx.get('rsp_prod'), 0);
  assert(backend.metrics.badIndices > 0);
});

test('rings that cannot be used, and pages given back and taken again', () => {
  const { guest, network, tx, backend, fill } = rig();
  fill(1, 1);
  backend.letGo();
  assert.equal(guest.inUse, 0);
  const saved = backend.save()!;
  assert.deepEqual(parseNetDeviceState(JSON.parse(JSON.stringify({ connection: saved }))), { connection: saved });
  tx.put(...txSlot(1, 0, 0, 1, 64));
  tx.push();
  guest.kick();
  assert.equal(network.frames.length, 1);
  assert.equal(backend.save()!.queues[0]!.txPosition, 1);
  backend.disconnect();
  assert.equal(guest.inUse, 0);
  assert.equal(guest.callbacks.size, 0);
  assert.equal(backend.receive(new Uint8Array(64), NO_OFFLOAD), false);
  guest.isBindRefused = true;
  assert.equal(backend.connect(connection()), false);
  guest.isBindRefused = false;
  guest.granted.delete(RX_PAGE);
  assert.equal(backend.connect(connection()), false);
  assert.equal(guest.inUse, 0);
  assert.equal(guest.callbacks.size, 0);
});

test('a connection goes on although its rings are not granted at that moment, and is served when they are', () => {
  const { guest, network, tx, backend, fill, post } = rig();
  fill(1, 1);
  post(10, 1);
  const saved = backend.save()!;
  backend.disconnect();
  guest.isBindRefused = true;
  assert.equal(backend.goOn(saved), false);
  guest.isBindRefused = false;
  guest.granted.delete(TX_PAGE);
  guest.granted.delete(RX_PAGE);
  assert(backend.goOn(saved));
  backend.wake();
  tx.put(...txSlot(1, 0, 0, 1, 64));
  tx.push();
  guest.kick();
  assert.equal(backend.receive(new Uint8Array(64), NO_OFFLOAD), false);
  assert.deepEqual([network.frames.length, guest.inUse], [0, 0]);
  const before = network.readies;
  guest.granted.set(TX_PAGE, true);
  guest.granted.set(RX_PAGE, true);
  guest.kick();
  assert.deepEqual([network.frames.length, guest.inUse, network.readies], [1, 2, before + 1]);
  assert(backend.receive(new Uint8Array(64), NO_OFFLOAD));
});

test('when there is no frame for a ring, it is looked at again, though nobody tells', async () => {
  const { guest, network, tx, backend, fill, post } = rig();
  fill(1, 1);
  post(10, 1);
  const until = async (isSo: () => boolean): Promise<void> => { while (!isSo()) await turn(); };
  backend.letGo();
  guest.shortage = 2;
  tx.put(...txSlot(1, 0, 0, 1, 64));
  tx.push();
  guest.kick();
  assert.equal(network.frames.length, 0);
  await until(() => network.frames.length === 1);
  backend.letGo();
  guest.shortage = 2;
  const before = network.readies;
  assert.equal(backend.receive(new Uint8Array(64), NO_OFFLOAD), false);
  await until(() => network.readies > before);
  assert(backend.receive(new Uint8Array(64), NO_OFFLOAD));
  backend.disconnect();
  guest.shortage = 1;
  assert(backend.connect(connection()), 'a new one waits as well');
  tx.set('req_prod', 0);
  guest.kick();
  backend.disconnect();
  assert.equal(guest.inUse, 0);
});

test('what a front end says of itself', () => {
  const good: Record<string, string> = {
    'request-rx-copy': '1', 'feature-sg': '1', 'feature-gso-tcpv4': '1',
    'tx-ring-ref': '8', 'rx-ring-ref': '9', 'event-channel': '3',
  };
  const read = (entries: Record<string, string | undefined>) =>
    readFrontEnd((name) => ({ ...good, ...entries })[name]);
  const queue = { txRef: 8, rxRef: 9, txPort: 3, rxPort: 3, txPosition: 0, rxPosition: 0 };
  assert.deepEqual(read({}), {
    queues: [queue], scatterGather: true, features: { checksumPartial: true, tsoV4: true, tsoV6: false },
  });
  assert.deepEqual(read({ 'feature-no-csum-offload': '1', 'feature-sg': '0' }), {
    queues: [queue], scatterGather: false, features: { checksumPartial: false, tsoV4: false, tsoV6: false },
  });
  const numbers = { 'tx-ring-ref': 8, 'rx-ring-ref': 9, 'event-channel-tx': 4, 'event-channel-rx': 5 };
  const two = Object.fromEntries([0, 1].flatMap((i) =>
    Object.entries(numbers).map(([name, value]) => [`queue-${i}/${name}`, String(value + 10 * i)])));
  const both = read({ 'multi-queue-num-queues': '2', ...two });
  assert(typeof both !== 'string');
  assert.deepEqual(both.queues.map(({ txRef, rxPort }) => [txRef, rxPort]), [[8, 5], [18, 15]]);
  for (const entries of [
    { 'request-rx-copy': '0' }, { 'tx-ring-ref': undefined }, { 'rx-ring-ref': '-1' }, { 'event-channel': '99999999999' },
    { 'multi-queue-num-queues': '5', ...two }, { 'multi-queue-num-queues': '0' }, { 'multi-queue-num-queues': '3', ...two },
    { 'tx-ring-ref': '0x10' }, { 'tx-ring-ref': '4294967296' },
  ]) assert.equal(typeof read(entries), 'string', JSON.stringify(entries));
});

test('states of an image that are none', () => {
  const good = { connection: connection() };
  assert.deepEqual(parseNetDeviceState(good), good);
  const { queues: [queue] } = good.connection;
  const bad: unknown[] = [
    undefined, null, 5, { connection: null }, { connection: {} }, { connection: { ...good.connection, queues: [] } },
    { connection: { ...good.connection, queues: [null] } }, { connection: { ...good.connection, features: null } },
    { connection: { ...good.connection, queues: [{ ...queue, txRef: -1 }] } },
    { connection: { ...good.connection, queues: [{ ...queue, txPosition: 2 ** 32 }] } },
    { connection: { ...good.connection, queues: Array.from({ length: 5 }, () => queue) } },
    { connection: { ...good.connection, scatterGather: 1 } },
  ];
  for (const value of bad) assert.equal(parseNetDeviceState(value), undefined, JSON.stringify(value));
});

test('hostile guests: random slots, indices and grants, changed at any time, hurt nobody', () => {
  const word = fc.oneof(
    fc.nat(64), fc.constantFrom(0, 0xffff_ffff, 0x7fff_ffff, 256, 257), fc.integer({ min: 0, max: 0xffff_ffff }),
  );
  const words = fc.tuple(fc.nat(63), fc.nat(0xffff_ffff), fc.nat(0xffff_ffff));
  const part = fc.tuple(fc.nat(63), fc.nat(4096), fc.nat(15), fc.nat(8192));
  const index = fc.constantFrom('req_prod' as const, 'rsp_prod' as const, 'req_event' as const, 'rsp_event' as const);
  const does = <const T extends string>(...what: T[]) => fc.constantFrom(...what);
  const step = fc.oneof(
    fc.record({ do: does('slots'), slots: fc.array(words, { maxLength: 40 }) }),
    // Nearly good ones get further.
    fc.record({ do: does('chain'), size: fc.nat(65535), flags: fc.nat(15), parts: fc.array(part, { maxLength: 24 }) }),
    fc.record({ do: does('buffers'), refs: fc.array(fc.nat(70), { maxLength: 40 }) }),
    fc.record({ do: does('index'), ring: fc.boolean(), name: index, value: word }),
    fc.record({ do: does('grant'), ref: fc.nat(63), how: fc.constantFrom(true, false, undefined) }),
    fc.record({ do: does('receive'), size: fc.integer({ min: 14, max: 65549 }), gso: fc.boolean() }),
    fc.record({ do: does('scribble'), at: fc.nat(8191), value: fc.nat(255) }),
    fc.record({ do: does('kick', 'letGo', 'hold', 'release', 'writable', 'full', 'reconnect') }),
  );
  const gso: Offload = { checksumPartial: true, gsoSize: 1460, gsoType: 'tcpv4' };
  const numRuns = Number(process.env['ZAZEN_FUZZ_RUNS'] ?? 2000);
  const seed = process.env['ZAZEN_SEED'];
  fc.assert(fc.property(fc.nat(0xffff_ffff), fc.array(step, { maxLength: 60 }), (position, steps) => {
    const { guest, network, tx, rx, backend } = rig(position);
    for (let page = 0; page < 40; page++) guest.granted.set(page, page % 3 !== 0);
    let isHeld = false;
    for (const one of steps) {
      if (one.do === 'slots') for (const slot of one.slots) tx.put(...slot);
      else if (one.do === 'chain') {
        const more = (i: number): number => (i < one.parts.length ? NETTXF.more_data : 0);
        tx.put(...txSlot(1, 0, one.flags | more(0), 1, one.size));
        one.parts.forEach(([ref, offset, flags, size], i) =>
          tx.put(...txSlot(ref, offset, (flags & ~NETTXF.more_data) | more(i + 1), i, size)));
      } else if (one.do === 'buffers') for (const ref of one.refs) rx.put(ref, ref);
      else if (one.do === 'index') (one.ring ? tx : rx).set(one.name, one.value);
      else if (one.do === 'grant') {
        if (one.how === undefined) guest.granted.delete(one.ref);
        else guest.granted.set(one.ref, one.how);
      } else if (one.do === 'scribble') guest.memory[TX_PAGE * 4096 + one.at] = one.value;
      else if (one.do === 'full') network.isFull = !network.isFull;
      else if (one.do === 'letGo') backend.letGo();
      else if (one.do === 'hold') { backend.hold(); isHeld = true; }
      else if (one.do === 'release') { backend.release(); isHeld = false; }
      else if (one.do === 'writable') backend.writable();
      // The front end's state is not looked at meanwhile.
      else if (one.do === 'reconnect' && !isHeld) { backend.disconnect(); backend.connect(connection(position)); }
      else if (one.do === 'receive') {
        backend.receive(new Uint8Array(one.size), one.gso ? gso : NO_OFFLOAD);
      }
      if (one.do === 'slots' || one.do === 'chain') tx.push();
      if (one.do === 'buffers') rx.push();
      guest.kick();
      assert(guest.inUse <= (isHeld ? 0 : 2), `${guest.inUse} pages in use`);
    }
    for (const { bytes, offload } of network.frames) {
      assert(bytes.length >= 14 && bytes.length <= 65535);
      assert(offload.gsoType === 'none' || offload.gsoSize > 0);
    }
    backend.disconnect();
    assert.equal(guest.inUse, 0);
    assert.equal(guest.callbacks.size, 0);
  }), { numRuns, ...(seed === undefined ? {} : { seed: Number(seed) }) });
});
